"""Tests of recordings after killed processes, with full disks, with moved images and with several processes."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import deque, namedtuple
from dataclasses import replace

import cv2
import numpy as np
import pytest

from edgerec.camera.config import ImageRecorderConfig
from edgerec.camera.frame import Frame, Result
from edgerec.camera.sinks.csv import CsvFile
from edgerec.camera.sinks.image_recorder import ImageRecorder
from edgerec.camera.sinks.video import VideoFile
from edgerec.camera.source_state import SourceState, StateChange
from edgerec.contract.decision import Category, Classification
from edgerec.errors import EdgerecError
from tests.conftest import REPOSITORY, error_line
from tests.network import wait_for

STARTED = StateChange("camera", SourceState.CONNECTING, 0.0)
BLOCK = 4096


def result(label="cat", at_s=0.0, source="camera") -> Result:
    image = np.full((48, 64, 3), 100, np.uint8)
    classification = Classification(label, 0, 0.9, (Category(label, 0, 0.9),), np.float32([0.9]))
    return Result(Frame(image, 0, 1000 + at_s, source, source), classification, 1000.0 + at_s)


def frames_of(path) -> int:
    capture, count = cv2.VideoCapture(str(path)), 0
    while capture.read()[0]:
        count += 1
    capture.release()
    return count


_RECORD = """
import sys, time
from tests.camera.test_recordings import VideoFile, result
sink = VideoFile(sys.argv[1], fps=25)
for number in range(200):
    sink.write(result(at_s=number / 25))
print("recorded", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_video_of_a_killed_process_can_be_played(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    process = subprocess.Popen(
        [sys.executable, "-c", _RECORD, str(path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "recorded\n"
    process.kill()
    process.communicate()
    # FFmpeg buffers up to 256 KiB of an .avi file.
    assert frames_of(path) > {".mp4": 190, ".avi": 80}[suffix]
    # A new recording replaces the file and the lock of the killed process.
    replacement = VideoFile(path, overwrite=True)
    replacement.write(result())
    replacement.close()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a limit on the size of files")
def test_write_error_of_a_video_is_reported(tmp_path):
    path = tmp_path / "out.mp4"
    sink, limit = VideoFile(path), resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
    frames = (Frame(noise, number, 1000 + number / 25, "camera", "camera") for number in range(300))
    results = (replace(result(), frame=frame) for frame in frames)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limit[1]))
    try:
        with pytest.raises(EdgerecError, match="File too large"):
            deque(map(sink.write, results))
        with pytest.raises(EdgerecError, match="frames"):
            sink.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert frames_of(path) >= 1


@pytest.mark.parametrize("period_s", [0.04, 0.2, 1.0])
def test_live_video_ends_before_the_disk_is_full(tmp_path, monkeypatch, period_s):
    free = namedtuple("free", "free")
    free_bytes = [80_000_000]

    def disk_usage(_):
        free_bytes[0] -= 1_000_000
        return free(free_bytes[0])

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    path = tmp_path / "out.mp4"
    sink = VideoFile(path, fps=25)
    results = [result(at_s=number * period_s) for number in range(100)]
    with pytest.raises(EdgerecError, match="disk is full"):
        deque(map(sink.write, results))
    assert free_bytes[0] >= 45_000_000
    assert frames_of(path) > 20
    sink.close()


def images(folder) -> set:
    return set(folder.rglob("*.jpg"))


def save(folder, count, label="cat", at_s=0.0, blocks=10):
    sink = ImageRecorder(ImageRecorderConfig(folder, "all", reserve_bytes=0, max_bytes=blocks * BLOCK))
    for number in range(count):
        sink.write(result(label, at_s + number))
    sink.close()


@pytest.mark.parametrize("running", [False, True])
def test_images_that_were_moved_are_never_deleted_and_count_toward_the_limit(tmp_path, running):
    folder = tmp_path / "saved"
    if not running:
        save(folder, 10)
    sink = ImageRecorder(ImageRecorderConfig(folder, "all", reserve_bytes=0, max_bytes=10 * BLOCK))
    if running:
        for number in range(10):
            sink.write(result("cat", number))
    corrected = set()
    for number, path in enumerate(sorted(images(folder))[:4]):
        new = folder / ("dog", "cat/unclear", "", "bird")[number] / path.name
        new.parent.mkdir(exist_ok=True)
        corrected.add(path.rename(new))
    if not running:
        sink.close()
        sink = ImageRecorder(ImageRecorderConfig(folder, "all", reserve_bytes=0, max_bytes=10 * BLOCK))
    for number in range(30):
        sink.write(result("cat", 100 + number))
        assert len(images(folder)) <= 10
    assert corrected <= images(folder)
    sink.close()


def test_images_of_another_recorder_are_not_deleted(tmp_path):
    save(tmp_path / "a", 3)
    save(tmp_path / "b", 1)
    for path in images(tmp_path / "a"):
        path.rename(tmp_path / "b" / "cat" / path.name)
    before = images(tmp_path / "b")
    save(tmp_path / "b", 30, at_s=100)
    assert len(before & images(tmp_path / "b")) == 3


def test_recorder_reports_moved_images_that_leave_no_room_and_deletes_nothing(tmp_path):
    save(tmp_path, 10)
    (tmp_path / "dog").mkdir()
    for path in sorted(images(tmp_path))[:8]:
        path.rename(tmp_path / "dog" / path.name)
    with pytest.raises(EdgerecError, match=r"images that were moved .* increase --save-max"):
        save(tmp_path, 1, blocks=8)
    assert len(images(tmp_path)) == 10


def test_nothing_is_deleted_if_an_image_does_not_fit_beside_images_that_were_just_moved(tmp_path):
    sink = ImageRecorder(ImageRecorderConfig(tmp_path, "all", reserve_bytes=0, max_bytes=10 * BLOCK, png=True))
    for number in range(10):
        sink.write(result(at_s=number))
    (tmp_path / "dog").mkdir()
    for path in sorted(tmp_path.rglob("*.png"))[:8]:
        path.rename(tmp_path / "dog" / path.name)
    noise = np.random.default_rng(0).integers(0, 255, (50, 50, 3), np.uint8)  # 2 blocks as PNG
    large = replace(result(at_s=20), frame=Frame(np.concatenate([noise, noise[::-1]]), 0, 1020.0, "camera", "camera"))
    with pytest.raises(EdgerecError, match="images that were moved"):
        sink.write(large)
    sink.close()
    assert len(list(tmp_path.rglob("*.png"))) == 10


def test_images_are_saved_again_after_moved_images_have_left_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("edgerec.camera.sinks.image_recorder.RESCAN_S", 0.0)
    sink = ImageRecorder(ImageRecorderConfig(tmp_path / "saved", "all", reserve_bytes=0, max_bytes=BLOCK, png=True))
    sink.write(result(at_s=0))
    (tmp_path / "saved" / "dog").mkdir()
    (image,) = (tmp_path / "saved").rglob("*.png")
    moved = image.rename(tmp_path / "saved" / "dog" / image.name)
    with pytest.raises(EdgerecError, match="images that were moved"):
        sink.write(result(at_s=1))
    moved.rename(tmp_path / moved.name)
    sink.write(result(at_s=2))
    sink.close()
    assert len(list((tmp_path / "saved").rglob("*.png"))) == 1


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs the list of open files")
def test_video_that_cannot_be_created_leaves_no_file_open(tmp_path):
    sink = VideoFile(tmp_path / "out.mp4")
    (tmp_path / "out.mp4").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(OSError, match="Is a directory"):
            sink.write(result())
    assert len(os.listdir("/proc/self/fd")) == before
    sink.close()


def test_second_video_that_exists_is_refused_for_each_frame(tmp_path):
    sink = VideoFile(tmp_path / "out.mp4")
    (tmp_path / "out-2.mp4").write_bytes(b"x")
    sink.write(result())
    for _ in range(2):
        with pytest.raises(EdgerecError, match=r"out-2\.mp4 exists"):
            sink.write(result(source="other"))
    sink.close()


def test_csv_does_not_change_an_existing_file_before_the_first_event(tmp_path):
    path = tmp_path / "t.csv"
    table = CsvFile(path)
    table.write(result())
    table.close()
    old = path.read_bytes()
    for existing in ("overwrite", "append"):
        path.write_bytes(old[:-5])
        table = CsvFile(path, existing)
        table.close()
        assert path.read_bytes() == old[:-5]
    table = CsvFile(path, "overwrite")
    table.state(STARTED)
    table.close()
    assert len(path.read_text().splitlines()) == 1


def test_start_that_fails_does_not_change_existing_files(bundle, edgerec, tmp_path):
    table, video, queue = tmp_path / "t.csv", tmp_path / "v.avi", tmp_path / "queue"
    options = ["--headless", "--csv", table, "--video", video, "--max-frames", 3]
    source = ["--source", "synthetic:64x48@0"]
    assert edgerec("camera", bundle, *source, *options).returncode == 0
    old = table.read_bytes(), video.read_bytes()
    queue.write_text("not a folder")
    mqtt = ["--mqtt", "mqtt://127.0.0.1:1", "--queue-dir", queue]
    error_line(edgerec("camera", bundle, *source, *options, "--overwrite", *mqtt))
    assert (table.read_bytes(), video.read_bytes()) == old


@pytest.mark.parametrize(
    "open_sink",
    [
        lambda folder: VideoFile(folder / "v.avi", overwrite=True),
        lambda folder: ImageRecorder(ImageRecorderConfig(folder / "saved")),
        lambda folder: CsvFile(folder / "t.csv", "overwrite"),
    ],
    ids=["video", "images", "table"],
)
def test_output_that_is_in_use_is_refused(tmp_path, open_sink):
    first = open_sink(tmp_path)
    with pytest.raises(EdgerecError, match="in use"):
        open_sink(tmp_path)
    first.state(STARTED)
    first.close()
    open_sink(tmp_path).close()


def test_two_processes_may_append_to_one_csv_file(tmp_path):
    CsvFile(tmp_path / "t.csv").close()
    tables = [CsvFile(tmp_path / "t.csv", "append") for _ in range(2)]
    for number in range(10):
        tables[number % 2].write(result(at_s=number))
    for table in tables:
        table.close()
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 11


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_closed_terminal_does_not_lose_the_video(bundle, tmp_path):
    video, table = tmp_path / "v.mp4", tmp_path / "t.csv"
    command = [sys.executable, "-m", "edgerec", "camera", str(bundle), "--source", "synthetic:64x48@30", "--headless"]
    process = subprocess.Popen(
        [*command, "--video", str(video), "--csv", str(table)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # If the tests run under nohup, the camera would inherit that the signal is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    try:
        wait_for(lambda: table.exists() and table.read_bytes().count(b"\n") > 20, 60)
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert frames_of(video) >= 15
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["t.csv", "v.mp4"]
