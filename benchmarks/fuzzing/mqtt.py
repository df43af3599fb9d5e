"""Hostile MQTT brokers: packets of every type and length, floods, and connections that end at any point.

After each case, the sink connects to a correct broker, which must receive all messages.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from pathlib import Path
from random import Random
from types import SimpleNamespace
from unittest import mock

from edgerec.camera.sinks import mqtt_client as broker_module
from edgerec.camera.sinks.mqtt import Mqtt
from edgerec.camera.sinks.mqtt_client import Broker
from edgerec.camera.source_state import SourceState, StateChange
from fuzzing.isolation import Target
from fuzzing.mutate import damaged_bytes
from fuzzing.servers import Peers
from fuzzing.tally import Broken

MESSAGES = 5
DELIVERY_S = 40.0
SEND_S = 2.0
_ACCEPTED = b"\x20\x02\0\0"
# Valid packets: CONNACK, PUBACK 1 to 4, PUBREC, SUBACK, PINGRESP, PUBLISH with QoS 1, UNSUBACK.
_VALID = bytes.fromhex(
    "20020000 40020001 40020002 40020003 40020004 50020005 9003000101 d000 320700036162630001 b0020001"
)
# Possible numbers of repetitions of a packet, and the maximum total size of the repetitions in bytes.
_REPEATED = (1, 1, 1, 3, 100, 100_000)
_ID = b"\xa7\xa8"
_FLOOD_BYTES = 50_000_000


def start(work: Path) -> None:
    """Import paho before the cases run, so that it does not count toward their memory."""
    import paho.mqtt.client  # noqa: F401


def make(rng: Random, seeds: None, folder: Path) -> list[list[tuple[bytes, int]]]:
    """Return the packets that the broker sends on each connection, with the number of repetitions of each packet.

    The byte sequence ``_ID`` in a packet stands for a packet ID that increases with each repetition.
    """
    return [[_packets(rng) for _ in range(rng.choice((1, 2, 5)))] for _ in range(rng.choice((1, 2, 3)))]


def _packets(rng: Random) -> tuple[bytes, int]:
    if rng.random() < 0.2:
        return damaged_bytes(rng, _VALID), 1
    kind = rng.choice((2, 3, 4, 5, 6, 7, 9, 11, 12, 13, 14, rng.randrange(16)))
    packet_id = rng.choice((_ID, _ID, b"\0\0", b"\0\1", b"\xff\xff", rng.randbytes(2)))
    body = packet_id
    if kind == 3:  # PUBLISH
        topic = rng.choice((b"t", b"", b"$SYS/x", b"\xff\xfe", b"a/#", bytes(300)))
        body = len(topic).to_bytes(2, "big") + topic + packet_id + bytes(rng.choice((0, 10, 20_000, 1_000_000)))
    elif kind == 2:  # CONNACK
        body = rng.choice((b"\0\0", b"\1\0", b"\0\4", b"\0\5", rng.randbytes(2), b"", bytes(5)))
    elif kind in (12, 13, 14):
        body = rng.choice((b"", b"", rng.randbytes(3)))
    length = rng.choice((len(body),) * 6 + (0, 1, 2, 127, 128, 16_384, 2_097_152, 268_435_455))
    packet = bytes([kind << 4 | rng.choice((0, 2, 4, 6, rng.randrange(16)))]) + _encoded(rng, length) + body
    return packet, min(rng.choice(_REPEATED), _FLOOD_BYTES // len(packet))


def _encoded(rng: Random, length: int) -> bytes:
    """Encode a packet length (MQTT 3.1.1, section 2.2.3), sometimes with more bytes than the standard allows."""
    if rng.random() < 0.03:
        return b"\xff" * rng.choice((4, 5, 100))
    data = b""
    while length > 127:
        data += bytes([length & 127 | 128])
        length >>= 7
    return data + bytes([length])


def use(connections: list[list[tuple[bytes, int]]], out: Path) -> None:
    """Publish messages to the hostile broker, and then to a correct broker on the same port."""
    remaining = list(connections)

    def serve(connected: socket.socket) -> None:
        connected.recv(65536)
        if not remaining:
            _acknowledge(connected)
            return
        packets = remaining.pop(0)
        connected.settimeout(SEND_S)
        connected.sendall(_ACCEPTED)
        for packet, count in packets:
            step = max(1, 100_000 // len(packet))
            for at in range(0, count, step):
                numbers = range(at, min(at + step, count))
                copies = (packet.replace(_ID, (number & 0xFFFF).to_bytes(2, "big")) for number in numbers)
                connected.sendall(b"".join(copies))
        connected.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            connected.recv(65536)

    manifest = SimpleNamespace(name="fuzz", target="rpi", variant="int8", labels=("a",), model="m", files={})
    with Peers(serve) as peers, mock.patch.multiple(broker_module, RETRY_S=(0, 0), REJECTED_S=0):
        sink = Mqtt(Broker("127.0.0.1", peers.port, prefix="fuzz"), out, manifest, results_per_s=float("inf"))
        try:
            for number in range(MESSAGES):
                sink.state(StateChange(f"camera{number}", SourceState.LIVE, time.monotonic()))
            deadline = time.monotonic() + DELIVERY_S
            while sink.waiting or remaining:
                if time.monotonic() > deadline:
                    raise Broken(
                        f"{sink.waiting} messages wait for a correct broker, {len(remaining)} connections left"
                    )
                time.sleep(0.01)
            if sink.dropped:
                raise Broken(f"{sink.dropped} messages were dropped")
        finally:
            sink.close()


def _acknowledge(connected: socket.socket) -> None:
    """Parse the received packets (MQTT 3.1.1, section 2.2), and acknowledge every PUBLISH with QoS 1."""
    connected.sendall(_ACCEPTED)
    data = b""
    while more := connected.recv(65536):
        data += more
        while header := re.match(rb"(.)([\x80-\xff]{0,3}[\x00-\x7f])", data, re.DOTALL):
            size = sum((byte & 127) << 7 * at for at, byte in enumerate(header[2]))
            body = data[header.end() : header.end() + size]
            if len(body) < size:
                break
            data = data[header.end() + size :]
            if header[1][0] & 0xF6 == 0x32:
                number = 2 + int.from_bytes(body[:2], "big")
                connected.sendall(b"\x40\x02" + body[number : number + 2])


TARGET = Target(start, make, use, timeout_s=100.0, memory_bytes=32 << 20, network=True)
