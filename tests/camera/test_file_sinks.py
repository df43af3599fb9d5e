"""Tests of CSV files, videos and saved images: complete after errors and signals, and limited in size."""

from __future__ import annotations

import contextlib
import csv
import errno
import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import namedtuple
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgerec.camera.config import ImageRecorderConfig
from edgerec.camera.frame import Frame, Result
from edgerec.camera.sinks import video as video_module
from edgerec.camera.sinks.csv import COLUMNS, CsvFile
from edgerec.camera.sinks.image_recorder import ImageRecorder
from edgerec.camera.sinks.sink_thread import SinkWorker
from edgerec.camera.sinks.video import MAX_GAP_S, VideoFile, fit_with_bars
from edgerec.contract.decision import Category, Classification, Decision
from edgerec.data.readers import folder as image_folder
from edgerec.errors import EdgerecError, OutputExistsError


def make_result(
    label="cat", score=0.9, *, at_s=None, index=0, second=0.05, source="camera", shape=(48, 64), value=100, changed=None
) -> Result:
    """Return a result for an image of one gray value."""
    at_s = time.monotonic() if at_s is None else at_s
    image = np.full((*shape, 3), value, np.uint8)
    best = Category(label if label != "unknown" else "cat", 0, score)
    scores = np.array([score, second], np.float32)
    categories = (best, Category("other", 1, second))
    prediction = Classification(label, -1 if label == "unknown" else 0, score, categories, scores)
    decision = None if changed is None else Decision(label, 0, score, at_s, changed)
    return Result(Frame(image, index, at_s, source, source), prediction, at_s + 0.01, decision)


def rows(path: Path) -> list[list[str]]:
    return list(csv.reader(path.open(newline="", encoding="utf-8")))


# CsvFile


def test_csv_has_one_row_per_result(tmp_path):
    path = tmp_path / "out.csv"
    table = CsvFile(path)
    table.write(make_result('a "strange", label\nwith ü', index=7))
    table.write(make_result(changed=True))
    # Rows can be read before the file is closed.
    header, first, second = rows(path)
    table.close()
    assert tuple(header) == COLUMNS
    assert first[1:8] == ["camera", "7", "10.000", 'a "strange", label\\nwith ü', "0", "0.9000", ""]
    assert abs(float(first[0]) - time.time()) < 60
    assert second[-3:] == ["cat", "0.9000", "1"]


def test_csv_refuses_overwrites_or_appends_to_an_existing_file(tmp_path):
    path = tmp_path / "out.csv"
    for existing, expected in (("refuse", 2), ("append", 3), ("append", 4), ("overwrite", 2)):
        table = CsvFile(path, existing)
        table.write(make_result())
        table.close()
        assert len(rows(path)) == expected
    with pytest.raises(OutputExistsError, match="exists"):
        CsvFile(path)
    path.write_text("my,own,table\n")
    with pytest.raises(EdgerecError, match="not the CSV header"):
        CsvFile(path, "append")
    assert path.read_text() == "my,own,table\n"
    with pytest.raises(EdgerecError, match="cannot be written"):
        CsvFile(tmp_path / "nowhere" / "out.csv")
    with pytest.raises(EdgerecError, match="cannot be written"):
        CsvFile(tmp_path, "append")


def test_csv_append_starts_a_new_line_after_a_truncated_row(tmp_path):
    path = tmp_path / "out.csv"
    table = CsvFile(path)
    table.write(make_result())
    table.close()
    path.write_bytes(path.read_bytes()[:-9])
    table = CsvFile(path, "append")
    table.write(make_result("dog"))
    table.close()
    assert [row[4] for row in rows(path)] == ["label", "cat", "dog"]


def test_csv_is_complete_after_sigkill(tmp_path):
    path = tmp_path / "out.csv"
    code = (
        "import sys; from tests.camera.test_file_sinks import make_result, CsvFile\n"
        "table = CsvFile(sys.argv[1])\n"
        "while True: table.write(make_result())"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    try:
        wait_for(lambda: path.exists() and path.stat().st_size > 20_000, 60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert path.read_bytes().endswith(b"\n")
    assert {len(row) for row in rows(path)} == {len(COLUMNS)}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_csv_on_a_full_disk_raises_a_one_line_error():
    with pytest.raises(EdgerecError, match="No space left"):
        CsvFile("/dev/full", "overwrite")


def test_csv_removes_an_incomplete_row(tmp_path, monkeypatch):
    path = tmp_path / "out.csv"
    table, write = CsvFile(path), os.write
    table.write(make_result())
    before = path.read_bytes()
    monkeypatch.setattr(os, "write", lambda file, content: write(file, content[:10]))
    with pytest.raises(EdgerecError, match="free some disk space"):
        table.write(make_result())
    monkeypatch.undo()
    assert path.read_bytes() == before
    table.write(make_result())
    table.close()
    assert len(rows(path)) == 3


# Video


def read_video(path: Path) -> tuple[list[np.ndarray], float]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    fps = capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    return frames, fps


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_video_lasts_as_long_as_the_stream(tmp_path, suffix):
    """The frames last two seconds: 10 frames per second, a pause of one second, and then 100 frames per second."""
    path = tmp_path / f"out{suffix}"
    sink = VideoFile(path, fps=20)
    times = [*np.arange(0, 0.5, 0.1), *np.arange(1.5, 2.0, 0.01)]
    for at_s in times:
        sink.write(make_result(at_s=1000 + at_s, value=60 if at_s < 1 else 200))
    sink.close()
    frames, fps = read_video(path)
    assert fps == pytest.approx(20)
    assert len(frames) == pytest.approx(40, abs=1)
    brightness = [frame[: frame.shape[0] - 60].mean() for frame in frames]
    assert sum(value < 130 for value in brightness) == pytest.approx(30, abs=1)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_video_of_a_file_has_all_frames(tmp_path):
    sink = VideoFile(tmp_path / "out.avi", fps=30, live=False)
    for number in range(12):
        sink.write(make_result(at_s=1000 + number * 0.5, value=20 * number))
    sink.close()
    frames, _ = read_video(tmp_path / "out.avi")
    assert [round(frame[100, 100].mean() / 20) for frame in frames] == list(range(12))


def test_video_shortens_long_gaps(tmp_path):
    sink = VideoFile(tmp_path / "out.avi", fps=10)
    for at_s in (0, 0.1, 3600, 3600.1):
        sink.write(make_result(at_s=1000 + at_s))
    sink.close()
    assert len(read_video(tmp_path / "out.avi")[0]) == pytest.approx(MAX_GAP_S * 10 + 4, abs=2)


def test_video_keeps_its_size_if_the_size_of_the_frames_changes(tmp_path):
    sink = VideoFile(tmp_path / "out.avi", fps=10, live=False)
    shapes = [(401, 641), (401, 641), (800, 400), (90, 640), (401, 641)]
    for shape in shapes:
        sink.write(make_result(shape=shape, value=200))
    sink.close()
    frames, _ = read_video(tmp_path / "out.avi")
    assert len(frames) == len(shapes)
    assert {frame.shape for frame in frames} == {(456, 640, 3)}
    assert frames[2][200, 5].max() < 30  # the black bars beside an image in portrait format
    assert frames[2][100, 320].min() > 150


def test_fit_with_bars_keeps_the_aspect_ratio():
    image = np.full((50, 100, 3), 255, np.uint8)
    letterboxed = fit_with_bars(image, (100, 100))
    assert letterboxed.shape == (100, 100, 3)
    assert letterboxed[:25].max() == 0
    assert letterboxed[25:75].min() == 255
    assert letterboxed[75:].max() == 0
    assert fit_with_bars(np.zeros((1, 500, 3), np.uint8), (20, 20)).shape == (20, 20, 3)


def test_each_source_has_its_own_video_file(tmp_path):
    sink = VideoFile(tmp_path / "out.avi", live=False)
    for number in range(6):
        sink.write(make_result(source=("left", "right")[number % 2]))
    sink.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-2.avi", "out.avi"]
    assert len(read_video(tmp_path / "out-2.avi")[0]) == 3


def test_csv_file_is_not_executable(tmp_path):
    CsvFile(tmp_path / "t.csv").close()
    assert not (tmp_path / "t.csv").stat().st_mode & 0o111


def test_video_errors_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(EdgerecError, match=r"out\.mkv must end in \.mp4 or \.avi"):
        VideoFile(tmp_path / "out.mkv")
    (tmp_path / "out.avi").write_bytes(b"")
    with pytest.raises(OutputExistsError, match="exists"):
        VideoFile(tmp_path / "out.avi")
    with pytest.raises(EdgerecError, match="cannot be written"):
        VideoFile(tmp_path / "nowhere" / "out.avi")
    monkeypatch.setitem(video_module.CODECS, ".mp4", "XXXX")
    with pytest.raises(EdgerecError, match=r"cannot write \.mp4 .*use \.avi"):
        VideoFile(tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["out.avi"]


def test_video_is_complete_if_the_disk_becomes_full(tmp_path, monkeypatch):
    sink = VideoFile(tmp_path / "out.avi", fps=5, live=False)
    for _ in range(5):
        sink.write(make_result())
    monkeypatch.setattr(video_module, "free_bytes", lambda _: 1000)
    with pytest.raises(EdgerecError, match="disk is full"):
        sink.write(make_result())
    monkeypatch.undo()
    with pytest.raises(EdgerecError, match="is incomplete because the disk is full"):
        sink.write(make_result())
    sink.close()
    assert len(read_video(tmp_path / "out.avi")[0]) == 5


def test_video_without_frames_creates_no_file(tmp_path):
    VideoFile(tmp_path / "out.mp4").close()
    assert list(tmp_path.iterdir()) == []


_RUN = """
import signal, sys, contextlib, types
import numpy as np
from edgerec.camera.pipeline import Camera
from edgerec.camera.config import ImageRecorderConfig
from edgerec.camera.sinks.image_recorder import ImageRecorder
from edgerec.camera.sinks.csv import CsvFile
from edgerec.camera.sinks.video import VideoFile
from edgerec.camera.sources import find_source
from edgerec.contract.decision import DecisionSpec, decide
labels, spec = ("cat", "dog"), DecisionSpec()
manifest = types.SimpleNamespace(decision=spec, labels=labels)
answer = decide(np.array([0.3, 0.7], np.float32), labels, spec)
classifier = types.SimpleNamespace(manifest=manifest, classify=lambda image: answer, invalid=0)
signal.signal(signal.SIGTERM, signal.default_int_handler)
folder = sys.argv[1]
saver = ImageRecorder(ImageRecorderConfig(folder + "/saved", "all", reserve_bytes=0))
sinks = [CsvFile(folder + "/out.csv"), VideoFile(folder + "/out.mp4", fps=30), VideoFile(folder + "/out.avi"), saver]
with Camera(classifier, [find_source("synthetic:64x48@30")]) as camera, contextlib.suppress(KeyboardInterrupt):
    camera.run(sinks)
"""


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_csv_and_video_are_complete_after_a_signal(tmp_path, signal_number):
    process = subprocess.Popen([sys.executable, "-c", _RUN, str(tmp_path)], stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: len(saved(tmp_path / "saved")) > 20, 60)
        process.send_signal(signal_number)
        _, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, stderr) == (0, "")
    assert len(rows(tmp_path / "out.csv")) > 20
    for name in ("out.mp4", "out.avi"):
        assert len(read_video(tmp_path / name)[0]) > 10
    assert not list(tmp_path.rglob(".*"))


# Saved images


def saved(folder: Path) -> list[Path]:
    return sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.name)


def recorder(folder, **values) -> ImageRecorder:
    return ImageRecorder(ImageRecorderConfig(folder, **({"rule": "all", "reserve_bytes": 0} | values)))


def test_saved_images_can_be_read_as_a_data_set(tmp_path):
    sink = recorder(tmp_path / "new")
    sink.write(make_result("cat", 0.87, value=50))
    sink.write(make_result("dog", 1.0, value=150, source="rtsp://host/Front door"))
    sink.write(make_result("unknown", 0.0))
    sink.close()
    files = image_folder(tmp_path / "new")
    assert files.labels == ("cat", "dog", "unknown")
    assert len(files.paths) == 3
    cat, dog, _ = files.paths
    assert re.fullmatch(r"edgerec_\d{8}T\d{6}\.\d{6}Z_camera_[0-9a-f]{8}_s087\.jpg", cat.name)
    assert re.fullmatch(r"edgerec_\d{8}T\d{6}\.\d{6}Z_rtsp-host-Front-door_[0-9a-f]{8}_s100\.jpg", dog.name)
    assert abs(int(cv2.imread(str(cat)).mean()) - 50) <= 1
    assert abs(time.time() - cat.stat().st_mtime) < 60


def test_png_is_lossless(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    result = make_result()
    result = Result(Frame(image, 0, result.frame.grabbed_s, "c", "c"), result.classification, result.completed_s)
    recorder(tmp_path, png=True).write(result)
    (path,) = saved(tmp_path)
    assert path.suffix == ".png"
    assert np.array_equal(cv2.imread(str(path))[:, :, ::-1], image)


def test_low_confidence_rule_selects_low_scores_and_small_margins(tmp_path):
    sink = recorder(tmp_path, rule="low-confidence", below=0.6, margin=0.2)
    for label, score, second in (
        ("sure", 0.9, 0.1),
        ("weak", 0.5, 0.1),
        ("close", 0.65, 0.5),
        ("unknown", 0.9, 0.0),
        ("just", 0.6, 0.3),
    ):
        sink.write(make_result(label, score, second=second))
    assert [path.parent.name for path in saved(tmp_path)] == ["weak", "close", "unknown"]


def test_changes_rule_selects_frames_that_change_the_decision(tmp_path):
    sink = recorder(tmp_path, rule="changes")
    for label, changed in (("a", True), ("a", False), ("b", True), ("b", False), ("a", True)):
        sink.write(make_result(label, changed=changed))
    assert [path.parent.name for path in saved(tmp_path)] == ["a", "b", "a"]


def test_changes_rule_uses_labels_and_minimum_interval_limits_the_rate(tmp_path):
    sink = recorder(tmp_path / "1", rule="changes")
    for label in "aabba":
        sink.write(make_result(label))
    assert [path.parent.name for path in saved(tmp_path / "1")] == ["a", "b", "a"]
    sink = recorder(tmp_path / "2", min_interval_s=1.0)
    for number in range(21):
        sink.write(make_result(at_s=1000 + number / 10))
    assert len(saved(tmp_path / "2")) == 3


@pytest.mark.parametrize("listed", [4096, 1, 9, 10])
def test_recorder_deletes_the_oldest_of_its_own_images(tmp_path, monkeypatch, listed):
    monkeypatch.setattr("edgerec.camera.sinks.image_recorder.MAX_LISTED", listed)
    (tmp_path / "cat").mkdir()
    user_file = tmp_path / "cat" / "mine.jpg"
    user_file.write_bytes(b"x" * 100_000)
    readme = tmp_path / "README"
    readme.write_text("mine, too")
    sink = recorder(tmp_path, max_bytes=10 * 4096)
    now = time.monotonic() - 100
    for number in range(35):
        sink.write(make_result("cat" if number % 2 else "dog", at_s=now + number))
        assert len([path for path in saved(tmp_path) if path not in (user_file, readme)]) <= 10
    names = [path for path in saved(tmp_path) if path not in (user_file, readme)]
    assert len(names) == 10
    assert sink.saved == 35
    assert user_file.exists()
    assert readme.exists()
    # The newest images are kept.
    sink.close()
    reopened = recorder(tmp_path, max_bytes=10 * 4096)
    reopened.write(make_result("bird", at_s=now + 50))
    remaining = [path for path in saved(tmp_path) if path not in (user_file, readme)]
    assert remaining[:-1] == names[1:]
    assert remaining[-1].parent.name == "bird"


def test_memory_does_not_grow_with_the_number_of_saved_images(tmp_path, monkeypatch):
    monkeypatch.setattr("edgerec.camera.sinks.image_recorder.MAX_LISTED", 50)
    sink = recorder(tmp_path)
    tracemalloc.start()
    try:
        sizes = []
        for _ in range(2):
            for _ in range(200):
                sink.write(make_result())
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert sizes[1] - sizes[0] < 10_000
    assert len(saved(tmp_path)) == 400


def test_empty_label_folders_are_deleted(tmp_path):
    sink = recorder(tmp_path, max_bytes=4096)
    sink.write(make_result("cat"))
    sink.write(make_result("dog"))
    assert [path.name for path in tmp_path.iterdir()] == ["dog"]


def test_incomplete_files_of_a_power_failure_are_deleted(tmp_path):
    sink = recorder(tmp_path)
    sink.write(make_result())
    sink.close()
    (complete,) = saved(tmp_path)
    empty = complete.with_name(complete.name.replace("s090", "s091"))
    empty.write_bytes(b"")
    partial = complete.with_name(f".{complete.name}.part")
    partial.write_bytes(b"half")
    recorder(tmp_path)
    assert saved(tmp_path) == [complete]


LABELS = [
    "../x",
    "a/b",
    "",
    "..",
    ".",
    "/etc/passwd",
    "a\\b",
    "a\0b",
    "x" * 3000,
    "ü" * 300,
    "train",
    "CON\n",
    ".hid",
    " ",
]


@pytest.mark.parametrize("label", LABELS)
def test_saved_images_stay_in_the_folder_for_any_label(tmp_path, label):
    inside = tmp_path / "in"
    sink = recorder(inside)
    sink.write(make_result(label))
    sink.close()
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    (path,) = saved(tmp_path)
    assert path.parent.parent == inside
    files = image_folder(inside)
    assert len(files.labels) == 1
    assert files.labels[0] not in ("train", "val", "test")


def test_recorder_keeps_the_reserved_disk_space_free(tmp_path, monkeypatch):
    """If other files fill the disk, the oldest images are deleted; then saving fails until there is space again."""
    usage = namedtuple("usage", "free")
    other_bytes = [0]
    sink = recorder(tmp_path, reserve_bytes=100_000)

    def disk_usage(_):
        return usage(200_000 - other_bytes[0] - 4096 * len(saved(tmp_path)))

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    for _ in range(40):
        sink.write(make_result())
        assert disk_usage(0).free >= 100_000
    assert len(saved(tmp_path)) == 24
    other_bytes[0] = 60_000
    sink.write(make_result())
    assert len(saved(tmp_path)) == 9
    other_bytes[0] = 199_000
    for _ in range(3):
        with pytest.raises(EdgerecError, match="--save-max is too small"):
            sink.write(make_result())
    assert len(saved(tmp_path)) == 9
    other_bytes[0] = 0
    sink.write(make_result())
    assert len(saved(tmp_path)) == 10


def test_failed_write_leaves_no_file(tmp_path, monkeypatch):
    sink = recorder(tmp_path)
    sink.write(make_result())

    def raise_disk_full(self, content):
        with open(self, "wb") as file:
            file.write(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", raise_disk_full)
    with pytest.raises(EdgerecError, match="No space left"):
        sink.write(make_result())
    monkeypatch.undo()
    assert len(saved(tmp_path)) == 1
    sink.write(make_result())
    assert len(saved(tmp_path)) == 2


@pytest.fixture
def small_disk(tmp_path):
    """Mount a real file system of one megabyte, and yield its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a disk of one megabyte needs the right to mount one")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(not shutil.which("mount"), reason="no mount")
def test_recorder_saves_again_after_a_real_disk_was_full(small_disk, caplog):
    """Lost results are counted and logged once, and saving continues when there is space again."""
    sink = recorder(small_disk)
    worker = SinkWorker(sink, lossless=True)
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb") as file:
        for _ in range(100):
            file.write(b"x" * 50_000)
            file.flush()
    for _ in range(20):
        worker.put(make_result())
    wait_for(lambda: worker.dropped == 20, 20)
    filler.unlink()
    for _ in range(20):
        worker.put(make_result())
    wait_for(lambda: worker.written == 20, 20)
    worker.close()
    assert len(saved(small_disk)) == 20
    assert len([record for record in caplog.records if "save: 1 results lost so far" in record.message]) == 1
    for path in saved(small_disk):
        assert cv2.imread(str(path)) is not None


def test_folder_that_cannot_be_created_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(EdgerecError, match="cannot save images"):
        recorder(tmp_path / "file")
    with pytest.raises(EdgerecError, match="cannot save images"):
        recorder(tmp_path / "file" / "below")


def test_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="expected one of low-confidence"):
        ImageRecorderConfig("saved", rule="everything")


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
