"""Tests of the MQTT sink with a real broker: restarts, outages, wrong passwords, invalid data and full disks."""

from __future__ import annotations

import json
import logging
import random
import socket
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from edgerec.camera.sinks import mqtt_client as broker_module
from edgerec.camera.sinks.events import DecisionChanges, safe_name
from edgerec.camera.sinks.homeassistant import discovery
from edgerec.camera.sinks.mqtt import Mqtt
from edgerec.camera.sinks.mqtt_client import Broker, BrokerConnection
from edgerec.camera.sinks.mqtt_queue import MessageQueue
from edgerec.errors import EdgerecError
from tests.conftest import REPOSITORY
from tests.network import MANIFEST, Mosquitto, MqttSubscriber, free_port, result, state_change, wait_for


@pytest.fixture
def paho():
    pytest.importorskip("paho.mqtt.client", reason="no paho-mqtt")


@pytest.fixture
def broker(tmp_path):
    (tmp_path / "broker").mkdir()
    running = Mosquitto(tmp_path / "broker").start()
    yield running
    running.stop()


@pytest.fixture
def subscriber(broker):
    subscriber = MqttSubscriber(broker)
    yield subscriber
    subscriber.close()


def sink_to(port, folder, **options):
    return Mqtt(Broker("127.0.0.1", port, prefix="home/hall"), folder, MANIFEST, **options)


def labels(payloads):
    return [json.loads(payload)["label"] for payload in payloads]


def names():
    return [
        thread.name for thread in threading.enumerate() if thread.name.startswith(("edgerec", "paho-mqtt-client-edge"))
    ]


def test_mqtt_client_receives_states_decisions_and_results(broker, subscriber, tmp_path):
    sink = sink_to(broker.port, tmp_path / "out", results_per_s=float("inf"))
    wait_for(lambda: sink.connected)
    sink.state(state_change("connecting"))
    sink.state(state_change("live"))
    since = time.monotonic()
    for index in range(5):
        sink.write(result("stop", index, changed=index == 0, since_s=since))
    sink.write(result("go", 5))
    wait_for(lambda: len(subscriber.payloads("home/hall/camera/result")) == 6 and sink.waiting == 0)
    sink.close()
    wait_for(lambda: subscriber.payloads("home/hall/status")[-1:] == [b"offline"])
    assert subscriber.payloads("home/hall/status") == [b"online", b"offline"]
    assert [json.loads(p)["state"] for p in subscriber.payloads("home/hall/camera/state")] == ["connecting", "live"]
    assert labels(subscriber.payloads("home/hall/camera/decision")) == ["stop", "go"]
    decision = json.loads(subscriber.payloads("home/hall/camera/decision")[0])
    assert (decision["event"], decision["source"], decision["score"]) == ("decision", "camera", 0.75)
    assert abs(decision["since_s"] - time.time()) < 120
    assert (sink.dropped, sink.missed, names()) == (0, 0, [])
    # A client that connects later receives the retained messages.
    late = MqttSubscriber(broker, name="late")
    wait_for(lambda: late.payloads("home/hall/camera/decision"))
    assert labels(late.payloads("home/hall/camera/decision")) == ["go"]
    assert json.loads(late.payloads("home/hall/camera/state")[0])["state"] == "live"
    assert all(retained for _, _, retained in late.messages)
    late.close()


def test_discovery_announces_all_entities_to_home_assistant(broker, subscriber, tmp_path):
    sink = sink_to(broker.port, tmp_path / "out")
    sink.state(state_change("live", "rtsp://10.0.0.5:554/door?channel=1"))
    wait_for(lambda: len([1 for topic, _, _ in subscriber.messages if topic.startswith("homeassistant/")]) == 3)
    sink.close()
    configurations = {
        topic: json.loads(payload) for topic, payload, _ in subscriber.messages if topic.startswith("homeassistant/")
    }
    assert [topic.split("/")[1] for topic in configurations] == ["sensor", "sensor", "binary_sensor"]
    assert all(len(topic.split("/")) == 5 and topic.endswith("/config") for topic in configurations)
    label, score, live = configurations.values()
    assert label["state_topic"] == "home/hall/rtsp-10-0-0-5-554-door-channel-1/decision" == score["state_topic"]
    assert (label["device_class"], label["options"]) == ("enum", ["stop", "go", "unknown"])
    assert label["json_attributes_topic"] == label["state_topic"]
    assert live["device_class"] == "connectivity"
    assert {entity["availability_topic"] for entity in configurations.values()} == {"home/hall/status"}
    assert len({entity["unique_id"] for entity in configurations.values()}) == 3
    assert len({json.dumps(entity["device"]) for entity in configurations.values()}) == 1


def test_discovery_can_be_turned_off(broker, subscriber, tmp_path):
    sink = sink_to(broker.port, tmp_path / "out", discovery_prefix="")
    sink.state(state_change("live"))
    wait_for(lambda: subscriber.payloads("home/hall/camera/state"))
    sink.close()
    assert not [topic for topic, _, _ in subscriber.messages if topic.startswith("homeassistant")]
    large_manifest = type(MANIFEST)(**vars(MANIFEST) | {"labels": tuple(str(number) for number in range(1000))})
    assert "options" not in next(iter(discovery(large_manifest, "p", "s").values()))


SENDER_PROGRAM = """
import sys, time, pathlib
from edgerec.camera.sinks.mqtt_client import Broker, BrokerConnection
from edgerec.camera.sinks.mqtt import Mqtt
from tests.network import MANIFEST, result
sink = Mqtt(Broker("127.0.0.1", int(sys.argv[1]), prefix="home/hall"), pathlib.Path(sys.argv[2]), MANIFEST)
for number in range(20):
    sink.write(result(f"d{number}"))
while sys.argv[3] == "sent" and sink.waiting:
    time.sleep(0.01)
print("written", flush=True)
time.sleep(60)
"""


def sender(port, folder, end):
    process = subprocess.Popen(
        [sys.executable, "-c", SENDER_PROGRAM, str(port), str(folder), end],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "written\n"
    process.kill()
    process.communicate()


def test_last_will_is_published_after_sigkill(broker, subscriber, tmp_path):
    sender(broker.port, tmp_path / "out", "sent")
    wait_for(lambda: subscriber.payloads("home/hall/status") == [b"online", b"offline"])
    assert labels(subscriber.payloads("home/hall/camera/decision")) == [f"d{number}" for number in range(20)]


def test_messages_of_a_killed_process_are_sent_at_the_next_start(broker, subscriber, tmp_path):
    sender(free_port(), tmp_path / "out", "written")  # there is no broker on this port
    (queue,) = (tmp_path / "out").glob("*.sqlite3")
    for file in (tmp_path / "out").glob("*"):  # there is a broker at the next start
        file.rename(
            file.with_name(file.name.replace(queue.name, f"mqtt-mqtt-127-0-0-1-{broker.port}-home-hall.sqlite3"))
        )
    sink = sink_to(broker.port, tmp_path / "out")
    assert sink.waiting > 0
    sink.write(result("after"))
    wait_for(lambda: sink.waiting == 0)
    sink.close()
    wait_for(lambda: len(subscriber.payloads("home/hall/camera/decision")) == 21)
    assert labels(subscriber.payloads("home/hall/camera/decision")) == [f"d{number}" for number in range(20)] + [
        "after"
    ]


@pytest.mark.nightly
def test_no_message_is_lost_in_ten_broker_restarts_and_an_outage(broker, subscriber, tmp_path, caplog):
    caplog.set_level(logging.INFO, "edgerec")
    sink = sink_to(broker.port, tmp_path / "out")
    wait_for(lambda: sink.connected)
    sent, stop = [], threading.Event()

    def decide():
        while not stop.wait(0.004):
            sent.append(f"d{len(sent)}")
            sink.write(result(sent[-1]))

    thread = threading.Thread(target=decide)
    thread.start()
    for restart in range(10):
        time.sleep(0.15)
        broker.stop()
        time.sleep(3 if restart == 5 else 0.05)
        broker.start()
        wait_for(lambda: sink.connected)
    stop.set()
    thread.join()
    wait_for(lambda: sink.waiting == 0, 30)
    topic = "home/hall/camera/decision"
    wait_for(lambda: labels(subscriber.payloads(topic))[-1] == sent[-1], 30)
    received = labels(subscriber.payloads(topic))
    assert list(dict.fromkeys(received)) == sent
    assert sink.dropped == 0
    assert len(sent) > 500
    # A message arrives at most twice, and only if the connection was lost before its acknowledgment.
    assert len(received) < len(sent) + 11 * 20
    start = time.monotonic()
    sink.close()
    assert time.monotonic() - start < 5
    assert len(caplog.records) < 25


def test_messages_beyond_the_queue_limit_are_counted(tmp_path, paho, broker):
    broker.stop()
    sink = sink_to(broker.port, tmp_path / "out", max_messages=30)
    sent = [f"d{number}" for number in range(100)]
    for label in sent:
        sink.write(result(label))
    assert (sink.waiting, sink.dropped) == (30, 70)
    broker.start()
    subscriber = MqttSubscriber(broker)
    wait_for(lambda: sink.waiting == 0)
    wait_for(lambda: len(subscriber.payloads("home/hall/camera/decision")) >= 30)
    assert list(dict.fromkeys(labels(subscriber.payloads("home/hall/camera/decision")))) == sent[70:]
    sink.close()
    subscriber.close()


def test_latest_messages_are_published_again_after_the_broker_lost_them(tmp_path, broker, subscriber):
    sink = sink_to(broker.port, tmp_path / "out")
    sink.state(state_change("live"))
    sink.write(result("stop"))
    wait_for(lambda: sink.waiting == 0)
    subscriber.close()
    broker.stop()
    (tmp_path / "broker" / "mosquitto.db").unlink()
    broker.start()
    late = MqttSubscriber(broker, name="late")
    wait_for(
        lambda: (
            {"home/hall/status", "home/hall/camera/state", "home/hall/camera/decision"} <= {m[0] for m in late.messages}
        )
    )
    wait_for(lambda: len([1 for topic, _, _ in late.messages if topic.startswith("homeassistant/")]) == 3)
    sink.close()
    late.close()


def test_wrong_password_logs_one_line(tmp_path, caplog):
    (tmp_path / "broker").mkdir()
    running = Mosquitto(tmp_path / "broker", passwords={"cam": "right"}).start()
    try:
        address = Broker.parse(f"mqtt://cam:wr%3Fong@127.0.0.1:{running.port}/home")
        sink = Mqtt(address, tmp_path / "out", MANIFEST)
        sink.write(result())
        wait_for(lambda: caplog.records)
        time.sleep(0.5)
        (record,) = caplog.records
        message = record.getMessage()
        assert "rejected user 'cam' (not authorized): check user name and password; trying again every 60 s" in message
        assert "wr?ong" not in caplog.text
        assert "wr%3Fong" not in caplog.text
        assert record.exc_info is None
        assert sink.waiting == 1
        sink.close()
        right = Mqtt(
            Broker.parse(f"mqtt://cam@127.0.0.1:{running.port}/home", {"EDGEREC_MQTT_PASSWORD": "right"}),
            tmp_path / "out",
            MANIFEST,
        )
        wait_for(lambda: right.waiting == 0)
        right.close()
    finally:
        running.stop()
    assert names() == []


def test_tls_checks_the_certificate(tmp_path, monkeypatch, caplog):
    (tmp_path / "broker").mkdir()
    running = Mosquitto(tmp_path / "broker", tls=True).start()
    try:
        address = Broker.parse(f"mqtts://127.0.0.1:{running.port}/home", {})
        sink = Mqtt(address, tmp_path / "out", MANIFEST)
        sink.write(result())
        wait_for(lambda: "CERTIFICATE_VERIFY_FAILED" in caplog.text)
        assert sink.waiting == 1
        sink.close()
        monkeypatch.setenv("SSL_CERT_FILE", str(running.certificate))
        trusting = Mqtt(address, tmp_path / "out", MANIFEST)
        wait_for(lambda: trusting.waiting == 0)
        trusting.close()
    finally:
        running.stop()


class ScriptedServer:
    """A server that sends the bytes that ``respond`` returns for each connection; none to stay silent."""

    def __init__(self, respond):
        self.connection_count, self._respond, self._open = 0, respond, []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self.connection_count += 1
            connection.settimeout(2)
            try:
                connection.recv(1000)
                if content := self._respond(self.connection_count):
                    connection.sendall(content)
                    connection.close()
            except OSError:
                pass
            self._open.append(connection)

    def close(self):
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(5)
        for connection in self._open:
            connection.close()


def test_silent_broker_does_not_block_the_sink(tmp_path, paho, caplog):
    silent = ScriptedServer(lambda _: b"")
    sink = sink_to(silent.port, tmp_path / "out", results_per_s=100)
    for number in range(50):
        sink.write(result(f"d{number}", number))
    wait_for(lambda: silent.connection_count)
    start = time.monotonic()
    sink.close()
    assert time.monotonic() - start < 3
    silent.close()
    assert "50 queued messages will be sent at the next start" in caplog.text
    assert sink.missed > 0
    wait_for(lambda: names() == [])


def test_broker_that_never_acknowledges_does_not_cause_repeated_messages(tmp_path, paho, monkeypatch):
    published, publish = [], BrokerConnection.publish
    monkeypatch.setattr(
        BrokerConnection,
        "publish",
        lambda self, topic, payload, **options: published.append(topic) or publish(self, topic, payload, **options),
    )
    accepted = b"\x20\x02\x00\x00"
    half = ScriptedServer(lambda number: accepted)
    sink = sink_to(half.port, tmp_path / "out")
    for number in range(50):
        sink.write(result(f"d{number}", number))
    wait_for(lambda: half.connection_count >= 3)
    # The number of published messages does not grow with each connection, because paho resends them.
    assert len(published) < 30
    assert sink.waiting == 50
    start = time.monotonic()
    sink.close()
    assert time.monotonic() - start < 4
    half.close()


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_invalid_data_from_a_broker_does_not_stop_the_sink(tmp_path, paho, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "edgerec")
    monkeypatch.setattr(broker_module, "RETRY_S", (0.01, 0.01))
    monkeypatch.setattr(broker_module, "REJECTED_S", 0.01)
    rng = random.Random(7)

    def random_packet(number):
        if number % 3 == 0:
            return rng.randbytes(rng.randrange(1, 60))
        kind, size = rng.randrange(256), rng.randrange(0, 6)
        return b"\x20\x02\x00\x00" * (number % 3 - 1) + bytes([kind, size]) + rng.randbytes(size)

    server = ScriptedServer(random_packet)
    sink = sink_to(server.port, tmp_path / "out")
    for number in range(5):
        sink.write(result(f"d{number}"))
    wait_for(lambda: server.connection_count > 150, 60)
    sink.close()
    server.close()
    wait_for(lambda: names() == [])
    assert len(caplog.records) < 30
    assert not [record for record in caplog.records if record.exc_info]


def test_unreachable_broker_logs_one_line(tmp_path, paho, caplog):
    sink = sink_to(free_port(), tmp_path / "out")
    wait_for(lambda: caplog.records)
    time.sleep(1.5)
    assert len(caplog.records) == 1
    assert "cannot be reached (" in caplog.text
    sink.close()


def test_second_process_cannot_open_the_queue(tmp_path, paho):
    port = free_port()
    sink = sink_to(port, tmp_path / "out")
    with pytest.raises(EdgerecError, match="in use by another process"):
        sink_to(port, tmp_path / "out")
    sink.close()


# The message queue.


def fill(outbox, count, start=0):
    return [outbox.put("t", f"{number}".encode(), True) for number in range(start, start + count)]


def waiting(outbox):
    return [int(message.payload) for message in outbox.pending(10_000)]


def test_queue_keeps_the_order_after_restarts(tmp_path):
    outbox = MessageQueue(tmp_path / "deep" / "q.sqlite3")
    ids = fill(outbox, 5)
    assert [message.payload for message in outbox.pending(2)] == [b"0", b"1"]
    outbox.remove(ids[0])
    outbox.close()
    reopened = MessageQueue(tmp_path / "deep" / "q.sqlite3")
    fill(reopened, 2, 5)
    assert waiting(reopened) == [1, 2, 3, 4, 5, 6]
    assert len(reopened) == 6
    assert reopened.dropped == 0
    reopened.close()


def test_queue_is_limited_in_number_and_bytes(tmp_path):
    outbox = MessageQueue(tmp_path / "q.sqlite3", max_messages=3)
    ids = fill(outbox, 5)
    assert (waiting(outbox), outbox.dropped) == ([2, 3, 4], 2)
    outbox.remove(ids[1])  # the message was sent before it was dropped from the queue
    assert outbox.dropped == 1
    outbox.close()
    small = MessageQueue(tmp_path / "small.sqlite3", max_bytes=100)
    for _ in range(10):
        small.put("topic", bytes(25), False)
    assert (len(small), small.dropped) == (3, 7)
    small.put("topic", bytes(1000), False)  # larger than the whole queue
    assert (len(small), small.dropped) == (0, 11)
    small.close()
    reopened = MessageQueue(tmp_path / "q.sqlite3", max_messages=1)
    assert (waiting(reopened), reopened.dropped) == ([4], 2)
    reopened.close()


@pytest.fixture
def databases(monkeypatch):
    """Return the list of all SQLite connections that are opened in the test."""
    opened, connect = [], sqlite3.connect

    def record(*arguments, **options):
        opened.append(connect(*arguments, factory=FullDisk, **options))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", record)
    return opened


class FullDisk(sqlite3.Connection):
    """A connection whose transactions fail, because the disk is full, while ``failures`` is a list."""

    failures = None

    def __enter__(self):
        if self.failures is not None:
            self.failures.append(len(self.failures))
            raise OSError(28, "No space left on device")
        return super().__enter__()


def test_queue_keeps_messages_in_memory_if_the_disk_is_full(tmp_path, caplog, databases):
    outbox = MessageQueue(tmp_path / "q.sqlite3", max_messages=500)
    fill(outbox, 10)
    pages = databases[0].execute("PRAGMA page_count").fetchone()[0]
    databases[0].execute(f"PRAGMA max_page_count={pages}")  # SQLite then raises "database or disk is full"
    for number in range(10, 700):
        outbox.put("t", str(number).encode(), True)
    assert waiting(outbox) == list(range(200, 700))
    assert outbox.dropped == 200
    assert len([r for r in caplog.records if "full" in r.getMessage()]) == 1
    databases[0].execute("PRAGMA max_page_count=1000000")
    fill(outbox, 1, 700)
    outbox.close()
    reopened = MessageQueue(tmp_path / "q.sqlite3")
    assert waiting(reopened) == list(range(201, 701))
    reopened.close()


def test_messages_are_sent_if_the_disk_is_full(broker, subscriber, tmp_path, databases):
    sink = sink_to(broker.port, tmp_path / "out")

    failures = databases[0].failures = []
    sent = [f"d{number}" for number in range(50)]
    for label in sent:
        sink.write(result(label))
    wait_for(lambda: sink.waiting == 0)
    wait_for(lambda: labels(subscriber.payloads("home/hall/camera/decision")) == sent)
    assert len(failures) >= 50
    assert sink.dropped == 0
    sink.close()


def test_damaged_queue_is_renamed_and_replaced(tmp_path, caplog):
    path = tmp_path / "q.sqlite3"
    path.write_bytes(b"nonsense" * 1000)
    outbox = MessageQueue(path)
    fill(outbox, 3)
    assert waiting(outbox) == [0, 1, 2]
    assert "is damaged" in caplog.text
    assert (tmp_path / "q.damaged").read_bytes().startswith(b"nonsense")
    outbox.close()


def test_mutated_queue_files_do_not_crash(tmp_path):
    outbox = MessageQueue(tmp_path / "good.sqlite3")
    fill(outbox, 200)
    outbox.close()
    valid, rng = (tmp_path / "good.sqlite3").read_bytes(), random.Random(3)
    for number in range(150):
        mutated = bytearray(valid)
        for _ in range(rng.randrange(1, 40)):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        (tmp_path / "bad.sqlite3").write_bytes(
            mutated[: rng.randrange(1, len(mutated))] if number % 3 == 0 else mutated
        )
        outbox = MessageQueue(tmp_path / "bad.sqlite3")
        messages = outbox.pending(10_000)
        assert all(isinstance(m.topic, str) and isinstance(m.payload, bytes) for m in messages)
        assert [m.id for m in messages] == sorted({m.id for m in messages})
        outbox.put("t", b"new", True)
        assert outbox.pending(10_000)[-1].payload == b"new"
        outbox.close()


def test_queue_folder_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgerecError, match="cannot store queued messages"):
        MessageQueue(tmp_path / "file" / "q.sqlite3")
    (tmp_path / "q.sqlite3").mkdir()
    with pytest.raises(EdgerecError, match="cannot store queued messages"):
        MessageQueue(tmp_path / "q.sqlite3")


def test_result_that_is_lost_with_its_connection_is_counted():
    """paho raises an exception if ``is_published`` is called for a message that was lost."""
    import paho.mqtt.client as mqtt

    connection = BrokerConnection(Broker("127.0.0.1", free_port()), will_topic="t", will="w", changed=lambda: None)
    lost = mqtt.MQTTMessageInfo(1)
    lost.rc = mqtt.MQTT_ERR_NO_CONN
    connection._client.publish = lambda *_, **__: lost
    connection.connected = True
    for _ in range(3):
        connection.publish_qos0("t", b"")
    assert connection.missed == 2  # the third message has not been checked yet
    connection.close(5.0)


# Addresses and names.


def test_broker_addresses_are_parsed():
    broker_settings = Broker.parse("mqtts://cam:p%40ss%2Fw@broker.example:8884/home/hall/", {})
    assert broker_settings == Broker("broker.example", 8884, True, "cam", "p@ss/w", "home/hall")
    assert "p@ss" not in f"{broker_settings} {broker_settings!r}"
    assert str(broker_settings) == "mqtts://broker.example:8884"
    short = Broker.parse("mqtt://10.0.0.2", {"EDGEREC_MQTT_PASSWORD": ""})
    assert (short.port, short.tls, short.user) == (1883, False, "")
    assert short.prefix.startswith("edgerec/")
    assert Broker.parse("mqtts://h/p", {}).port == 8883
    assert Broker.parse("mqtt://u@h/p", {"EDGEREC_MQTT_PASSWORD": "secret"}).password == "secret"


@pytest.mark.parametrize(
    "url",
    [
        "mqtt://user:se/cret@host/p",
        "mqtt://user:se#cret@host/p",
        "mqtt://host:99999/p",
        "mqtt://host:0/p",
        "http://host/secret",
        "mqtt://",
        "secret",
        "mqtt://:secret@host/p",
        "mqtt://[::1/secret",
        "mqtt://" + "h" * 70 + "/secret",
        "mqtt://host/secret?x=1",
    ],
)
def test_invalid_addresses_are_refused(url):
    with pytest.raises(EdgerecError, match=r"use mqtt\[s\]://") as excinfo:
        Broker.parse(url, {})
    assert "secret" not in str(excinfo.value)
    assert "cret" not in str(excinfo.value)


@pytest.mark.parametrize("prefix", ["a/+/b", "%23", "a//b", "$SYS/x", "a%00b", "x" * 300])
def test_invalid_topic_prefixes_are_refused(prefix):
    with pytest.raises(EdgerecError, match="topic prefix"):
        Broker.parse(f"mqtt://host/{prefix}", {})


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("0", "0"),
        ("/dev/video0", "dev-video0"),
        ("rtsp://user:se/cr@t@10.0.0.5:554/a?channel=2&token=hush", "rtsp"),
        ("rtsp://user:secret@10.0.0.5:554/a?channel=2&token=hush", "rtsp-10-0-0-5-554-a-channel-2"),
        ("synthetic:640x480@30", "synthetic-640x480-30"),
        ("a+b#c\x00d\n/e", "a-b-c-d-e"),
        ("Café", "Cafe"),
        ("++", "source"),
        ("x" * 100 + "/end.mp4", "x" * 47 + "-end-mp4-440a6ad2"),
    ],
)
def test_safe_names_are_ascii_and_distinct(text, name):
    assert safe_name(text) == name
    assert safe_name(name) == name


def test_new_decision_is_detected_if_its_first_result_was_dropped():
    changes = DecisionChanges()
    assert changes.is_new(result("a", since_s=1.0))
    assert not changes.is_new(result("a", since_s=1.0, changed=False))
    assert changes.is_new(result("b", since_s=2.0, changed=False))
    assert changes.is_new(result("b", source="other", since_s=2.0))


def test_results_are_published_at_the_requested_rate(tmp_path, paho, monkeypatch):
    sink = sink_to(free_port(), tmp_path / "out", results_per_s=10)
    now, sent = [100.0], []
    monkeypatch.setattr(BrokerConnection, "publish_qos0", lambda self, topic, payload: sent.append(topic))
    monkeypatch.setattr("edgerec.camera.sinks.mqtt.time.monotonic", lambda: now[0])
    frame = result(since_s=1.0)
    for _ in range(250):
        sink.write(frame)
        now[0] += 0.04
    monkeypatch.undo()
    sink.close()
    assert 95 <= len(sent) <= 101
