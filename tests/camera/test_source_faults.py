"""Tests of folders with unreadable files, of cameras that report invalid formats, and of `benchmark --source`."""

from __future__ import annotations

import math
import subprocess
import threading

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from edgerec.camera.sources import find_source
from edgerec.camera.sources.opencv_capture import OpenCVSource
from edgerec.cli.app import app
from edgerec.errors import SourceError
from tests.servers import MjpegServer, stream_images


@pytest.fixture
def folder(tmp_path):
    for number in range(4):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((16, 16, 3), 50 * number, np.uint8))
    return tmp_path


def remove(path):
    path.unlink()


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


def replace_by_loop(path):
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize("damage", [remove, replace_by_folder, replace_by_loop])
def test_folder_source_skips_unreadable_files(folder, damage, caplog):
    source = find_source(str(folder)).open()
    damage(folder / "1.png")  # after the folder was listed
    assert [int(image[0, 0, 0]) for image, _ in source.images()] == [0, 100, 150]
    assert caplog.text.count("1.png was skipped") == 1


def test_a_folder_without_readable_files_is_an_error(folder):
    source = find_source(str(folder)).open()
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(SourceError, match="none of the 4 files"):
        next(source.images())


class Device:
    """Stands for an open ``cv2.VideoCapture`` that reports the given properties."""

    def __init__(self, **properties):
        self._properties = {getattr(cv2, f"CAP_PROP_{name.upper()}"): value for name, value in properties.items()}

    def get(self, key):
        return self._properties[key]


@pytest.mark.parametrize(
    ("fourcc", "letters"),
    [
        (0x47504A4D, "MJPG"),
        (0x47504A4D | 1 << 31, "MJPG"),
        (-1, ""),
        (0xFFFFFFFF, ""),
        (2**40, ""),
        (math.nan, ""),
        (math.inf, ""),
        (0, ""),
    ],
)
def test_fourcc_of_any_reported_number_is_valid_text(fourcc, letters):
    device = Device(frame_width=640, frame_height=480, fps=30, fourcc=float(fourcc))
    assert OpenCVSource(device, "0", live=True).format.fourcc == letters


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, -1.0, 1e300])
def test_invalid_reported_size_is_ignored(number):
    reported = OpenCVSource(Device(frame_width=number, frame_height=number, fps=number, fourcc=0.0), "0", live=True)
    assert (reported.format.width, reported.format.height, reported.format.fps) == (0, 0, 0.0)


@pytest.mark.parametrize(
    "option",
    [
        "--size=²x³",
        f"--size={'9' * 5000}x1",
        "--format=ÄÖÜß",
        "--format=\x1b[1m",
        "--give-up-after=nan",
        "--max-fps=nan",
    ],
)
def test_invalid_option_value_is_a_usage_error(bundle, option):
    result = CliRunner().invoke(
        app, ["camera", str(bundle), "--source", "synthetic:8x8@0", "--json", "--max-frames=2", option]
    )
    assert (result.exit_code, type(result.exception)) == (2, SystemExit)


class Server(MjpegServer):
    """Sets an event at the first connection."""

    def __init__(self):
        self.connected = threading.Event()
        super().__init__(self._deliver)

    def _deliver(self, peer):
        self.connected.set()
        stream_images(peer)


def test_benchmark_opens_the_source_after_the_cold_start(bundle, monkeypatch):
    connections, popen = [], subprocess.Popen

    def observed(*arguments, **options):
        server.connected.wait(1)  # a source that was opened too early has connected by then
        connections.append(server.connections)
        return popen(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", observed)
    with Server() as server:
        command = ["benchmark", str(bundle), "--source", server.url, "--seconds", "0.1", "--no-operators", "--json"]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        assert server.connections == 1
    assert connections
    assert set(connections) == {0}
