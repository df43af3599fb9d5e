"""Tests of the Prometheus metrics and of their HTTP server."""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from types import SimpleNamespace

import pytest

from edgerec.camera.sinks import prometheus as module
from edgerec.camera.sinks.prometheus import MAX_CLIENTS, Prometheus
from edgerec.errors import EdgerecError
from tests.network import MANIFEST, result, state_change, wait_for

parser = pytest.importorskip("prometheus_client.parser", reason="no prometheus-client")


def get(port, path="/metrics", timeout=10):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def samples(port):
    status, text = get(port)
    assert status == 200
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def threads():
    return [t for t in threading.enumerate() if "edgerec-prometheus" in t.name or "process_request" in t.name]


def test_metrics_match_the_written_results():
    counted = SimpleNamespace(overtaken=7, skipped={"every": 3}, dropped={"Mqtt": 2}, invalid=1)
    with Prometheus(MANIFEST, port=0, counters=lambda: counted) as sink:
        sink.state(state_change("connecting", "rtsp://u:p@10.0.0.5/door"))
        sink.state(state_change("live", "rtsp://u:p@10.0.0.5/door"))
        since = time.monotonic()
        for index in range(5):
            sink.write(result("stop", index, since_s=since, score=0.5))
        sink.write(result("go", 5, score=0.75))
        sink.write(result("made up", 6))
        sink.write(result("made up too", 7))
        metrics = samples(sink.port)
    assert metrics["edgerec_frames_total", "camera"] == 8
    assert metrics["edgerec_decisions_total", "camera", "stop"] == 1
    assert metrics["edgerec_decisions_total", "camera", "go"] == 1
    assert metrics["edgerec_decisions_total", "camera", "other"] == 2
    assert metrics["edgerec_score", "camera"] == 0.75
    assert metrics["edgerec_result_age_seconds_count", "camera"] == 8
    assert 0.1 < metrics["edgerec_result_age_seconds_sum", "camera"] < 1
    assert metrics["edgerec_source_state", "live", "rtsp-10-0-0-5-door"] == 1
    assert metrics["edgerec_source_state", "connecting", "rtsp-10-0-0-5-door"] == 0
    assert metrics["edgerec_frames_overtaken_total",] == 7
    assert metrics["edgerec_frames_skipped_total", "every"] == 3
    assert metrics["edgerec_results_dropped_total", "Mqtt"] == 2
    assert [key for key in metrics if key[0] == "edgerec_bundle_info" and "signs" in key]
    assert metrics["process_resident_memory_bytes",] > 0
    assert threads() == []


def test_other_paths_are_not_found():
    with Prometheus(MANIFEST, port=0) as sink:
        assert get(sink.port, "/")[0] == 404
        assert get(sink.port, "/metrics?x=1")[0] == 200
        assert get(sink.port, "/../../etc/passwd")[0] == 404


def test_port_in_use_is_a_one_line_error():
    with (
        Prometheus(MANIFEST, port=0) as sink,
        pytest.raises(EdgerecError, match="another program uses the port") as excinfo,
    ):
        Prometheus(MANIFEST, port=sink.port)
    assert "\n" not in str(excinfo.value)
    with pytest.raises(EdgerecError, match="cannot listen on"):
        Prometheus(MANIFEST, "192.0.2.1", 9)
    with pytest.raises(EdgerecError, match="cannot listen on"):
        Prometheus(MANIFEST, "no.such.host.invalid", 9)
    assert threads() == []


def test_port_is_free_after_closing():
    sink = Prometheus(MANIFEST, port=0)
    assert get(sink.port)[0] == 200
    sink.close()
    sink.close()
    Prometheus(MANIFEST, port=sink.port).close()


def test_silent_clients_are_limited_and_disconnected(monkeypatch):
    monkeypatch.setattr(module, "CLIENT_S", 3.0)
    sink = Prometheus(MANIFEST, port=0)
    idle = [socket.create_connection(("127.0.0.1", sink.port)) for _ in range(MAX_CLIENTS + 4)]
    wait_for(lambda: len(threads()) > MAX_CLIENTS)
    wait_for(lambda: len(threads()) <= MAX_CLIENTS + 1)  # the thread of a disconnected client ends a moment later

    def is_responding():
        try:
            return get(sink.port)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    wait_for(is_responding)
    idle_connection = socket.create_connection(("127.0.0.1", sink.port))
    start = time.monotonic()
    sink.close()
    assert time.monotonic() - start < 3
    assert threads() == []
    for client in (*idle, idle_connection):
        client.close()


def test_mutated_requests_do_not_crash_the_server(capfd):
    request = b"GET /metrics?name[]=edgerec_frames_total HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n"
    rng = random.Random(5)
    with Prometheus(MANIFEST, port=0) as sink:
        for _ in range(500):
            mutated_request = bytearray(request)
            for _ in range(rng.randrange(1, 10)):
                mutated_request[rng.randrange(len(mutated_request))] = rng.randrange(256)
            with socket.create_connection(("127.0.0.1", sink.port), 5) as client:
                client.sendall(mutated_request)
                client.shutdown(socket.SHUT_WR)
                try:
                    while client.recv(65536):
                        pass
                except ConnectionError:
                    pass
        assert samples(sink.port)
    assert threads() == []
    assert capfd.readouterr().err == ""
