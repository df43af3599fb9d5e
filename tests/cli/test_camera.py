"""Tests of the sinks that `edgerec camera` opens."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request

import cv2
import pytest

from edgerec.cli.camera import complete_arguments
from edgerec.cli.options import parse_delegate_options
from tests.conftest import error_line


def test_csv_video_and_saved_images_contain_every_frame(bundle, video, tmp_path, edgerec):
    table, video_copy, saved = tmp_path / "t.csv", tmp_path / "f.avi", tmp_path / "saved"
    options = ["--csv", table, "--video", video_copy, "--save", "all", "--save-dir", saved, "--save-max", "10MB"]
    result = edgerec("camera", bundle, "--source", video, "--headless", "--json", *options)
    assert result.returncode == 0, result.stderr
    results = [value for value in map(json.loads, result.stdout.splitlines()) if value["event"] == "result"]
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [value["label"] for value in results]
    assert len(rows) == 30
    assert cv2.VideoCapture(str(video_copy)).get(cv2.CAP_PROP_FRAME_COUNT) == 30
    assert len(list(saved.glob("*/*.jpg"))) == 30
    # An existing file is kept without --overwrite.
    assert "t.csv" in error_line(edgerec("camera", bundle, "--source", video, "--headless", "--csv", table))
    second = edgerec("camera", bundle, "--source", video, "--headless", "--csv", table, "--overwrite")
    assert second.returncode == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--save", "all"], "--save has no effect without --save-dir FOLDER"),
        (["--save-dir", "x"], "--save-dir has no effect without --save low-confidence|changes|all"),
        (["--csv-append"], "--csv-append has no effect without --csv FILE"),
        (["--queue-dir", "x"], "--queue-dir has no effect without --mqtt URL"),
        (["--web-save", "x"], "--web-save has no effect without --web"),
        (["--decision", "memory"], "expected KEY=VALUE, such as smoothing=vote, got 'memory"),
        (["--decision", "smooth=1"], "--decision smooth is unknown; did you mean 'smoothing'?"),
        (["--decision", "smoothing=often"], "--decision smoothing is 'often'; expected one of none, mean, vote"),
        (["--delegate-option", "=1"], "expected KEY=VALUE, such as device=usb:1, got '=1"),
    ],
)
def test_invalid_combinations_and_values_are_usage_errors(bundle, video, edgerec, tmp_path, options, message):
    result = edgerec("camera", bundle, "--source", video, "--headless", *options, cwd=tmp_path)
    assert result.returncode == 2
    assert message in re.sub(r"\W*\n\W*", " ", result.stderr)


@pytest.mark.parametrize(
    "options", [["--mqtt", "http://x"], ["--webhook", "file:///etc/passwd"], ["--video", "x.mkv9"]]
)
def test_invalid_addresses_and_file_types_give_one_line(bundle, video, edgerec, tmp_path, options):
    error_line(edgerec("camera", bundle, "--source", video, "--headless", *options, cwd=tmp_path))


def without_display() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have a display")
def test_failed_start_creates_no_files(bundle, video, edgerec, tmp_path):
    options = ["--csv", tmp_path / "t.csv", "--save", "all", "--save-dir", tmp_path / "saved"]
    message = error_line(edgerec("camera", bundle, "--source", video, *options, env=without_display()))
    assert "no display" in message
    assert "--web to serve a web page" in message
    assert list(tmp_path.iterdir()) == []


def test_headless_needs_no_display_and_names_the_source_if_there_are_several(bundle, video, golden_images, edgerec):
    golden = golden_images[0].parent
    sources = ["--source", video, "--source", golden]
    result = edgerec("camera", bundle, *sources, "--headless", env=without_display())
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 40
    assert {line.split("  ")[0] for line in lines} == {str(video), str(golden)}
    one_source = edgerec("camera", bundle, "--source", video, "--headless", env=without_display())
    assert one_source.stdout.startswith("frame 0  ")
    script = edgerec("camera", bundle, "--source", video, "--json", "--max-frames", "2", env=without_display())
    assert [json.loads(line)["event"] for line in script.stdout.splitlines()].count("result") == 2


def test_address_of_web_and_metrics_is_optional():
    assert complete_arguments(["b", "--web"]) == ["b", "--web", "127.0.0.1:8000"]
    assert complete_arguments(["--web", "bundle"]) == ["--web", "127.0.0.1:8000", "bundle"]
    assert complete_arguments(["--web", "0.0.0.0:80", "--metrics", "--json"]) == [
        *("--web", "0.0.0.0:80", "--metrics", "127.0.0.1:9464", "--json"),
    ]
    assert complete_arguments(["--web", "9000"]) == ["--web", "9000"]
    assert complete_arguments(["--web", "localhost:abc"]) == [
        "--web",
        "localhost:abc",
    ]  # an address, although an invalid one
    assert complete_arguments(["--web", "signs8"]) == ["--web", "127.0.0.1:8000", "signs8"]


def test_running_camera_serves_web_page_and_metrics(bundle):
    """SIGTERM, which service managers send, stops the camera and closes its servers."""
    command = [sys.executable, "-m", "edgerec", "camera", bundle, "--source", "synthetic:64x64@20"]
    process = subprocess.Popen(
        [*map(str, command), "--headless", "--web", "127.0.0.1:0", "--metrics", "127.0.0.1:0"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        addresses = []
        while len(addresses) < 2:
            line = process.stderr.readline()
            assert line, process.wait()
            addresses += re.findall(r"http://127\.0\.0\.1:\d+\S*", line)
        for address in addresses:
            try:
                with urllib.request.urlopen(address.rstrip(".,"), timeout=10) as response:
                    assert response.status == 200
            except OSError as error:
                raise AssertionError(f"{address}: {error}; exit status of the camera: {process.poll()}") from None
    finally:
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=15)
    assert process.returncode == 0, error
    assert "Traceback" not in error
    assert not out or out.startswith("frame ")


def test_web_page_replaces_the_window_without_a_display(bundle, video, edgerec):
    environment = {key: value for key, value in os.environ.items() if "DISPLAY" not in key}
    command = ("camera", bundle, "--source", video, "--web", "127.0.0.1:0", "--max-frames", "2")
    result = edgerec(*command, env=environment)
    assert result.returncode == 0, result.stderr
    assert "http://127.0.0.1:" in result.stderr


def test_port_in_use_is_reported_in_one_line(bundle, video, edgerec):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        address = f"127.0.0.1:{port}"
        for option in ("--web", "--metrics"):
            result = edgerec("camera", bundle, "--source", video, "--headless", option, address)
            assert str(port) in error_line(result)


@pytest.mark.skipif(not shutil.which("mosquitto"), reason="no MQTT broker (apt install mosquitto)")
def test_unreachable_broker_does_not_stop_the_camera(bundle, video, edgerec, tmp_path):
    environment = os.environ | {"EDGEREC_CACHE": str(tmp_path)}
    result = edgerec(
        *("camera", bundle, "--source", video, "--headless", "--mqtt", "mqtt://u:secret@127.0.0.1:9/e"), env=environment
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 30
    assert "secret" not in result.stdout + result.stderr


def test_delegate_options_are_passed_as_they_were_typed():
    texts = ["device=usb:1", "fp16=true", "mask=0x10", " limit = 1_000"]
    assert parse_delegate_options(texts) == {"device": "usb:1", "fp16": "true", "mask": "0x10", "limit": "1_000"}
