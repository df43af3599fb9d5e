"""Helpers for the tests of network sinks: example results, a real MQTT broker and an MQTT client."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from types import SimpleNamespace

import numpy as np
import pytest

from edgerec.camera.frame import Frame, Result
from edgerec.camera.source_state import SourceState, StateChange
from edgerec.contract.decision import Category, Classification, Decision

MANIFEST = SimpleNamespace(
    name="signs",
    target="rpi",
    variant="int8",
    labels=("stop", "go"),
    model="model.tflite",
    files={"model.tflite": "00"},
)
IMAGE = np.zeros((4, 4, 3), np.uint8)


def result(label="stop", index=0, source="camera", changed=True, since_s=None, score=0.75):
    """Return a result whose decision is ``label``. Results with different ``since_s`` have different decisions."""
    now = time.monotonic()
    classification = Classification(label, 0, score, (Category(label, 0, score),), np.float32([score, 1 - score]))
    decision = Decision(label, 0, score, now if since_s is None else since_s, changed)
    return Result(Frame(IMAGE, index, now - 0.02, source, source), classification, now, decision)


def state_change(state, source="camera", reason=""):
    """Return a state change of a source."""
    return StateChange(source, SourceState(state), time.monotonic(), reason)


def wait_for(condition, seconds=15.0):
    """Wait until ``condition()`` is true; fail the test after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"the condition was not met within {seconds} s"
        time.sleep(0.02)


def free_port() -> int:
    """Return a TCP port on which no process listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Mosquitto:
    """A real MQTT broker on the loopback interface, which can be stopped and started again.

    The broker saves sessions and retained messages when it is stopped, and restores them when it is started.
    """

    def __init__(self, folder, *, passwords: dict[str, str] | None = None, tls: bool = False) -> None:
        command = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
        if not command:
            pytest.skip("no MQTT broker (apt install mosquitto)")
        pytest.importorskip("paho.mqtt.client", reason="no paho-mqtt")
        self.port, self._process = free_port(), None
        lines = [f"listener {self.port} 127.0.0.1", "persistence true", f"persistence_location {folder}/"]
        lines += ["user root", "max_queued_messages 0", f"allow_anonymous {'false' if passwords else 'true'}"]
        if passwords:
            file = folder / "passwords"
            file.touch()
            for user, password in passwords.items():
                subprocess.run(["mosquitto_passwd", "-b", str(file), user, password], check=True, capture_output=True)
            lines.append(f"password_file {file}")
        self.certificate = folder / "certificate.pem"
        if tls:
            self._certify(folder / "key.pem")
            lines += [f"certfile {self.certificate}", f"keyfile {folder / 'key.pem'}"]
        configuration = folder / "mosquitto.conf"
        configuration.write_text("\n".join(lines) + "\n")
        self._command = [command, "-c", str(configuration)]

    def start(self) -> Mosquitto:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(self._accepts_connections)
        return self

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def _certify(self, key) -> None:
        if not shutil.which("openssl"):
            pytest.skip("no openssl to create a certificate")
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(self.certificate)]
        subprocess.run(command, check=True, capture_output=True)

    def _accepts_connections(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True


class MqttSubscriber:
    """An MQTT client with a persistent session, which therefore receives every message with QoS 1.

    Attributes:
        messages: topic, payload and retain flag of each received message.
    """

    def __init__(self, broker: Mosquitto, topics="#", name="subscriber", user=None) -> None:
        import paho.mqtt.client as mqtt

        self.messages: list[tuple[str, bytes, bool]] = []
        self.subscribed = False
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, clean_session=False)
        if user:
            self._client.username_pw_set(*user)
        self._client.on_message = lambda _c, _u, m: self.messages.append((m.topic, m.payload, m.retain))
        self._client.on_connect = lambda client, *_: client.subscribe(topics, 1)
        self._client.on_subscribe = lambda *_: setattr(self, "subscribed", True)
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()
        wait_for(lambda: self.subscribed)

    def payloads(self, topic: str) -> list[bytes]:
        """Return the payloads of all messages with a topic."""
        return [payload for name, payload, _ in list(self.messages) if name == topic]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
