"""Tests of `run_camera`: one Python call does what `edgerec camera` does."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edgerec import CameraConfig, run_camera
from edgerec.camera.config import CsvConfig, ImageRecorderConfig, WebhookConfig
from edgerec.camera.interrupts import raise_on_signals
from edgerec.errors import OutputExistsError
from tests.camera.test_sink_webhook import Server

# Fields that depend on the time at which a frame was captured or classified.
TIME_FIELDS = {"captured_s", "since_s", "age_ms"}


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(field) for key, field in value.items() if key not in TIME_FIELDS}
    return value


def outputs(folder: Path, json_lines: str, server: Server) -> dict[str, object]:
    """Return all results, without times, of a camera with the sinks of ``test_python_call_gives_…``."""
    with (folder / "t.csv").open(newline="", encoding="utf-8") as file:
        rows = [without_times(row) for row in csv.DictReader(file)]
    images = [(path.parent.name, path.stem[-4:], path.read_bytes()) for path in (folder / "saved").glob("*/*.jpg")]
    return {
        "csv": rows,
        "json lines": [without_times(json.loads(line)) for line in json_lines.splitlines()],
        "saved images": sorted(images),
        "webhook": [without_times(json.loads(body)) for _, _, body in server.requests],
        "signed": {"X-Edgerec-Signature" in headers for _, headers, _ in server.requests},
    }


def test_python_call_gives_the_same_results_as_the_command(bundle, video, tmp_path, edgerec, capsys, monkeypatch):
    monkeypatch.setenv("EDGEREC_WEBHOOK_SECRET", "key")
    for folder in ("command", "call"):
        (tmp_path / folder).mkdir()
    with contextlib.closing(Server(200)) as for_command, contextlib.closing(Server(200)) as for_call:
        folder = tmp_path / "command"
        options = ["--csv", folder / "t.csv", "--save", "all", "--save-dir", folder / "saved"]
        result = edgerec("camera", bundle, "--source", video, "--json", *options, "--webhook", for_command.url)
        assert result.returncode == 0, result.stderr
        folder = tmp_path / "call"
        report = run_camera(
            CameraConfig(
                bundle=bundle,
                sources=str(video),
                output="json",
                csv=CsvConfig(folder / "t.csv"),
                images=ImageRecorderConfig(folder / "saved", "all"),
                webhook=WebhookConfig(for_call.url),
            )
        )
        call = outputs(folder, capsys.readouterr().out, for_call)
        assert call == outputs(tmp_path / "command", result.stdout, for_command)
    assert len(call["csv"]) == len(call["saved images"]) == report.classified == 30
    assert len(call["webhook"]) > 1
    assert call["signed"] == {True}
    assert report.exit_code == 0


class Failing:
    """A sink that cannot write."""

    closed = False

    def write(self, result):
        raise OSError("disk full")

    def state(self, change):
        pass

    def close(self):
        self.closed = True


def test_sinks_of_the_caller_get_the_results_and_their_losses_are_counted(bundle, video, capsys):
    sink = Failing()
    report = run_camera(CameraConfig(bundle=bundle, sources=str(video), output="none", max_frames=5), sinks=[sink])
    assert sink.closed
    assert report.classified == 5
    assert report.dropped == {"Failing": 5}
    assert report.exit_code == 1
    assert capsys.readouterr().out == ""


def test_sink_that_cannot_be_opened_closes_the_others(bundle, video, tmp_path):
    (tmp_path / "t.csv").write_text("mine")
    before = {thread for thread in threading.enumerate() if thread.name.startswith("edgerec-")}
    with contextlib.closing(Server(200)) as server, pytest.raises(OutputExistsError):
        run_camera(
            CameraConfig(
                bundle=bundle,
                sources=str(video),
                output="none",
                csv=CsvConfig(tmp_path / "t.csv"),
                images=ImageRecorderConfig(tmp_path / "saved"),
                webhook=WebhookConfig(server.url),
            )
        )
    assert {thread for thread in threading.enumerate() if thread.name.startswith("edgerec-")} == before
    assert (tmp_path / "t.csv").read_text() == "mine"


@pytest.mark.skipif(os.name != "posix", reason="Windows cannot send SIGTERM")
def test_sigterm_stops_the_call_which_returns_and_restores_the_signal_handlers(bundle):
    code = f"""
import signal
from edgerec import CameraConfig, run_camera

before = signal.getsignal(signal.SIGTERM)
report = run_camera(CameraConfig(bundle={str(bundle)!r}, sources="synthetic:64x64@20", output="text"))
print("returned", report.exit_code, signal.getsignal(signal.SIGTERM) == before, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("frame ")  # A slow machine may drop the first frame.
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=30)
    assert out.splitlines()[-1] == "returned 0 True", error
    assert process.returncode == 0


def test_modules_of_sinks_are_not_imported_before_they_are_used(bundle, video):
    code = f"""
import sys
from edgerec import CameraConfig, run_camera

run_camera(CameraConfig(bundle={str(bundle)!r}, sources={str(video)!r}, output="text", max_frames=1))
unused = ("window", "label_text", "csv", "video", "image_recorder", "mqtt", "webhook", "prometheus", "web")
loaded = [name for name in unused if f"edgerec.camera.sinks.{{name}}" in sys.modules]
print(loaded + [name for name in ("PIL", "paho", "starlette", "uvicorn", "ssl") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_sinks_are_closed_if_a_source_cannot_be_started(bundle, video, monkeypatch):
    start = threading.Thread.start

    def start_unless_source(thread):
        if thread.name == f"edgerec-{video}":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_unless_source)
    before = {thread for thread in threading.enumerate() if thread.name.startswith("edgerec-")}
    with contextlib.closing(Server(200)) as server:
        config = CameraConfig(bundle=bundle, sources=str(video), output="none", webhook=WebhookConfig(server.url))
        with pytest.raises(RuntimeError, match="can't start new thread"):
            run_camera(config)
    assert {thread for thread in threading.enumerate() if thread.name.startswith("edgerec-")} == before


def test_signal_handlers_that_python_did_not_install_stay_unchanged(monkeypatch):
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        patched.setattr(signal, "getsignal", lambda number: None)
        with raise_on_signals():
            patched.undo()
            assert signal.getsignal(signal.SIGTERM) is handler
    assert signal.getsignal(signal.SIGTERM) is handler
