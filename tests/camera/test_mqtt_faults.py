"""Tests of the MQTT sink with full disks, exceptions, hostile brokers and sources with similar names."""

from __future__ import annotations

import json
import socket
import sqlite3
import threading
import urllib.request

import pytest

from edgerec.camera.sinks import mqtt as mqtt_module
from edgerec.camera.sinks import mqtt_queue as outbox_module
from edgerec.camera.sinks.events import safe_name
from edgerec.camera.sinks.homeassistant import discovery
from edgerec.camera.sinks.mqtt import Mqtt
from edgerec.camera.sinks.mqtt_client import Broker
from edgerec.camera.sinks.mqtt_queue import MessageQueue
from edgerec.camera.sinks.prometheus import Prometheus
from edgerec.errors import EdgerecError
from tests.network import MANIFEST, Mosquitto, MqttSubscriber, result, state_change, wait_for


def payloads(outbox: MessageQueue) -> list[bytes]:
    return [message.payload for message in outbox.pending(1000)]


def put_all(outbox: MessageQueue, *texts: str) -> None:
    for text in texts:
        outbox.put("topic", text.encode(), True)


@pytest.mark.parametrize("existing", [(), ("a", "b")])
def test_queue_opens_its_file_again_after_a_failure(tmp_path, monkeypatch, existing):
    path = tmp_path / "queue.sqlite3"
    outbox = MessageQueue(path)
    put_all(outbox, *existing)
    outbox.close()

    def fail(*_, **__):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", fail)
        outbox = MessageQueue(path)
        put_all(outbox, "c")
    monkeypatch.setattr(outbox_module, "REOPEN_S", 0.0)
    put_all(outbox, "d")
    assert payloads(outbox) == [text.encode() for text in (*existing, "c", "d")]
    outbox.close()
    reopened = MessageQueue(path)
    assert payloads(reopened) == [text.encode() for text in (*existing, "c", "d")]
    assert reopened.dropped == outbox.dropped == 0
    reopened.close()


def test_messages_that_cannot_be_written_are_counted_as_lost(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(sqlite3, "connect", fail)
    outbox = MessageQueue(tmp_path / "queue.sqlite3")
    put_all(outbox, "a", "b")
    outbox.close()
    assert (outbox.dropped, len(outbox)) == (2, 0)


def test_closed_queue_does_not_open_its_file_again(tmp_path):
    queue = MessageQueue(tmp_path / "queue.sqlite3")
    number = queue.put("topic", b"payload", True)
    queue.close()
    queue.remove(number)  # the acknowledgment arrived late
    reopened = MessageQueue(tmp_path / "queue.sqlite3")  # opening the file fails while another object has opened it
    assert len(reopened) == 1
    reopened.close()


@pytest.mark.parametrize("prefix", ["ha/+", "#", "a//b", "$SYS", "a\0b", "x" * 70_000])
def test_invalid_discovery_prefix_is_refused(tmp_path, prefix):
    pytest.importorskip("paho.mqtt.client")
    with pytest.raises(EdgerecError, match="topic prefix"):
        Mqtt(Broker("127.0.0.1", 1), tmp_path, MANIFEST, discovery_prefix=prefix)


def test_exception_in_the_sending_thread_does_not_stop_it(tmp_path, monkeypatch):
    (tmp_path / "broker").mkdir()
    broker = Mosquitto(tmp_path / "broker").start()
    subscriber = MqttSubscriber(broker)

    def fail(*_, **__):
        raise ValueError("an invalid topic")

    try:
        monkeypatch.setattr(mqtt_module, "discovery", fail)
        sink = Mqtt(Broker("127.0.0.1", broker.port, prefix="home"), tmp_path / "queue", MANIFEST)
        sink.write(result("stop"))
        sink.write(result("go"))
        wait_for(lambda: len(subscriber.payloads("home/camera/decision")) == 2)
        sink.close()
        assert sink.waiting == 0
    finally:
        subscriber.close()
        broker.stop()


def flood(kind: str) -> bytes:
    if kind == "qos 2":  # 500 messages of 20 kB, each with another packet ID
        payload = b"\0\1t" + b"%b" + bytes(20_000)
        size = len(payload)
        head = b"\x34" + bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14])
        return b"".join(head + payload.replace(b"%b", number.to_bytes(2, "big")) for number in range(1, 500))
    if kind == "large":  # one packet of 256 MB
        return b"\x40\xff\xff\xff\x7f" + bytes(10_000_000)
    return {"pubrel": b"\x62\x02\0\1", "connack": b"\x20\x02\0\0", "pingreq": b"\xc0\0"}[kind] * 500_000


@pytest.mark.parametrize("kind", ["qos 2", "large", "pubrel", "connack", "pingreq"])
def test_unexpected_packets_end_the_connection(tmp_path, kind):
    """Otherwise, paho would read and store all packets, although the client has no subscriptions."""
    pytest.importorskip("paho.mqtt.client")
    ended, sent_bytes = threading.Event(), []

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(20)
            connection.recv(1000)
            connection.sendall(b"\x20\x02\0\0")
            content = flood(kind)
            try:
                for start in range(0, len(content), 10_000):
                    sent_bytes.append(connection.send(content[start : start + 10_000]))
                while connection.recv(10_000):
                    pass
            except ConnectionError:
                sent_bytes.append(-1)
        ended.set()

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
        thread = threading.Thread(target=serve)
        thread.start()
        sink = Mqtt(Broker("127.0.0.1", server.getsockname()[1]), tmp_path, MANIFEST)
        sink.write(result())
        try:
            assert ended.wait(15)
            assert sent_bytes[-1] == -1
        finally:
            sink.close()
            thread.join(20)


LONG = "rtsp://10.0.0.1:554/" + "very/long/path/" * 5 + "stream"


@pytest.mark.parametrize(
    ("first", "second"),
    [(LONG, LONG.replace("10.0.0.1", "10.0.0.2")), ("前门", "后门"), ("摄像头1", "照相机1")],
)
def test_names_of_different_sources_differ(first, second):
    names = {safe_name(first), safe_name(second)}
    assert len(names) == 2
    assert all(1 <= len(name) <= 64 and name.isascii() for name in names)


def test_sources_that_differ_in_punctuation_have_their_own_topics_ids_and_metrics(tmp_path):
    pytest.importorskip("paho.mqtt.client")
    sources = ("cam/1", "cam 1", "door")
    announced = [discovery(MANIFEST, "home", source, sources) for source in sources]
    assert len({topic for topics in announced for topic in topics}) == 9
    assert len({entity["unique_id"] for topics in announced for entity in topics.values()}) == 9
    assert len({json.dumps(entity["state_topic"]) for topics in announced for entity in topics.values()}) == 6
    with Prometheus(MANIFEST, port=0, sources=sources) as metrics:
        for source in sources:
            metrics.state(state_change("live", source))
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}/metrics") as response:
            lines = response.read().decode().splitlines()
    assert len([line for line in lines if 'state="live"' in line and line.endswith(" 1.0")]) == 3
