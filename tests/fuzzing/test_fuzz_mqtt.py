"""A small part of the MQTT target of ``benchmarks/fuzz.py``, and proof that the target finds faults."""

from __future__ import annotations

import pytest

pytest.importorskip("paho.mqtt.client")


def test_hostile_brokers_neither_stop_the_messages_nor_fill_the_memory(fuzz_target, tmp_path):
    figures = fuzz_target("mqtt", tmp_path, 12)
    assert figures.examples == []
    assert figures.accepted == 12


def test_packet_that_fills_the_memory_is_found(fuzz_target, tmp_path, monkeypatch):
    monkeypatch.setattr("edgerec.camera.sinks.mqtt_client.MAX_PACKET_BYTES", 1 << 40)
    figures = fuzz_target("mqtt", tmp_path, 1, first=13)
    assert "of memory" in figures.examples[0]
