"""A small part of the MQTT target of ``benchmarks/fuzz.py``, and proof that the target finds faults."""

from __future__ import annotations

import sys

import pytest

from tests.conftest import REPOSITORY

pytest.importorskip("paho.mqtt.client")


@pytest.fixture(scope="module")
def run_mqtt():
    """Run cases of the target, and return the figures."""
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    try:
        import fuzz

        yield lambda folder, first, count: fuzz.run_target(
            "mqtt", fuzz.TARGETS["mqtt"], folder, seed=0, count=count, first=first
        )
    finally:
        sys.path.pop(0)


def test_hostile_brokers_neither_stop_the_messages_nor_fill_the_memory(run_mqtt, tmp_path):
    figures = run_mqtt(tmp_path, 0, 12)
    assert figures.examples == []
    assert figures.accepted == 12


def test_packet_that_fills_the_memory_is_found(run_mqtt, tmp_path, monkeypatch):
    monkeypatch.setattr("edgerec.camera.sinks.broker.MAX_PACKET_BYTES", 1 << 40)
    figures = run_mqtt(tmp_path, 13, 1)
    assert "of memory" in figures.examples[0]
