"""Test a camera whose MQTT broker is not available for a minute.

    python benchmarks/broker.py [--away 60] [--rate 10]

The script needs mosquitto and paho-mqtt. It prints a JSON object with the number of published decisions, the number of
decisions that another client received, whether they arrived in order, and the number of dropped decisions.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from edgerec.camera.frame import Frame, Result
from edgerec.camera.sinks.mqtt import Mqtt
from edgerec.camera.sinks.mqtt_client import Broker
from edgerec.contract.decision import Category, Classification, Decision

# Seconds before and after the outage, and maximum wait for queued messages.
BEFORE_S, AFTER_S, ARRIVE_S = 5.0, 10.0, 60.0
LABELS = ("one", "two")
MANIFEST: Any = SimpleNamespace(name="test", target="desktop", variant="int8", labels=LABELS)


class Mosquitto:
    """A real broker on the loopback interface, which keeps the sessions of its clients across a restart."""

    def __init__(self, folder: Path) -> None:
        command = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
        if not command:
            sys.exit("no MQTT broker: apt install mosquitto")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        configuration = folder / "mosquitto.conf"
        configuration.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n"
            f"persistence true\npersistence_location {folder}/\nuser root\n"
        )
        self._command = [command, "-c", str(configuration)]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the broker during the block."""
        with subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                wait(self._accepts_connections, 15)
                yield
            finally:
                process.terminate()

    def _accepts_connections(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False


@contextlib.contextmanager
def subscribe(port: int, received: list[int]) -> Iterator[None]:
    """Run another client with a persistent session, and append the numbers of received decisions to ``received``."""
    import paho.mqtt.client as mqtt

    ready: list[Any] = []
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="listener", clean_session=False)
    client.on_connect = lambda c, *_: c.subscribe("camera/#", 1)
    client.on_subscribe = lambda *_: ready.append(True)
    client.on_message = lambda _c, _u, m: (
        received.append(json.loads(m.payload)["frame"]) if "decision" in m.topic else None
    )
    client.reconnect_delay_set(1, 1)
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        wait(lambda: bool(ready), 15)
        yield
    finally:
        client.disconnect()
        client.loop_stop()


def outage(folder: Path, away_s: float, rate: float) -> dict[str, Any]:
    """Stop the broker for ``away_s`` seconds while decisions are sent, and return the measurements."""
    broker, received, numbers = Mosquitto(folder), list[int](), itertools.count()
    with contextlib.ExitStack() as stack:
        broker_before_outage = stack.enter_context(contextlib.ExitStack())
        broker_before_outage.enter_context(broker.running())
        stack.enter_context(subscribe(broker.port, received))
        sink = Mqtt(Broker.parse(f"mqtt://127.0.0.1:{broker.port}/camera", {}), folder / "queue", MANIFEST)
        stack.callback(sink.close)
        decide(sink, numbers, BEFORE_S, rate)
        broker_before_outage.close()
        decide(sink, numbers, away_s, rate)
        waiting = sink.waiting
        stack.enter_context(broker.running())
        restart_s = time.monotonic()
        decide(sink, numbers, AFTER_S, rate)
        published = next(numbers)
        with contextlib.suppress(TimeoutError):
            wait(lambda: sink.waiting == 0 and len(set(received)) >= published, ARRIVE_S)
        unique = list(dict.fromkeys(received))
        return {
            "away_s": away_s,
            "published": published,
            "waited": waiting,
            "received": len(unique),
            "received_twice": len(received) - len(unique),
            "in_order": unique == sorted(unique),
            "dropped": sink.dropped,
            "lost": published - len(unique) - sink.dropped,
            "delivered_after_s": round(time.monotonic() - restart_s, 1),
        }


def decide(sink: Mqtt, numbers: Iterator[int], seconds: float, rate: float) -> None:
    """Send new decisions at this rate."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        number, now = next(numbers), time.monotonic()
        label = LABELS[number % 2]
        prediction = Classification(label, number % 2, 0.75, (Category(label, 0, 0.75),), np.float32([0.75, 0.25]))
        frame = Frame(np.zeros((4, 4, 3), np.uint8), number, now, "0", "0")
        sink.write(Result(frame, prediction, now, Decision(label, number % 2, 0.75, now, True)))
        time.sleep(1 / rate)


def wait(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until the condition is true, or raise TimeoutError."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.05)


def main() -> None:
    """Print the measurements, and return 1 if a decision was lost or arrived out of order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--away", type=float, default=60.0, help="duration of the outage in seconds")
    parser.add_argument("--rate", type=float, default=10.0, help="decisions per second")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgerec-broker-") as folder:
        figures = outage(Path(folder), arguments.away, arguments.rate)
    print(json.dumps(figures))
    sys.exit(figures["lost"] != 0 or not figures["in_order"])


if __name__ == "__main__":
    main()
