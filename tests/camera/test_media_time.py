"""Tests that the times of frames from files follow the media time, and not the speed of decoding."""

from __future__ import annotations

import json
import time

import cv2
import numpy as np
import pytest

from edgerec.camera.config import ImageRecorderConfig
from edgerec.camera.frame_filters import FrameOptions
from edgerec.camera.pipeline import Camera
from edgerec.camera.sinks.image_recorder import ImageRecorder
from edgerec.camera.sources import Address, CaptureFormat, find_source
from edgerec.camera.supervisor import SourceSupervisor

FPS, FRAMES = 10, 30


@pytest.fixture(scope="module", params=["MJPG:avi", "mp4v:mp4"])
def clip(request, tmp_path_factory):
    """A video of three seconds; its first half differs from its second half."""
    codec, suffix = request.param.split(":")
    path = tmp_path_factory.mktemp("clip") / f"clip.{suffix}"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), FPS, (64, 48))
    for number in range(FRAMES):
        writer.write(np.full((48, 64, 3), 200 if number < FRAMES // 2 else 50, np.uint8))
    writer.release()
    return path


class Slow:
    """A sink that takes an irregular time for each result."""

    name, closed = "slow", False
    inline = True

    def __init__(self):
        self.results = []

    def write(self, result):
        self.results.append(result)
        time.sleep(0.02 * (len(self.results) % 3))

    def state(self, change):
        pass

    def close(self):
        pass


@pytest.mark.parametrize("slow", [False, True])
def test_captured_s_advances_with_the_media_time(bundle, clip, slow):
    sink = Slow()
    with Camera.open(bundle, str(clip)) as camera:
        if slow:
            camera.run([sink])
        results = sink.results if slow else list(camera)
    times = np.array([result.to_dict()["captured_s"] for result in results])
    assert np.diff(times) == pytest.approx(1 / FPS, abs=0.002)
    assert abs(times[0] - time.time()) < 120


@pytest.mark.parametrize(("max_fps", "expected"), [(5, 15), (2, 6), (1, 3)])
def test_max_fps_counts_frames_per_second_of_the_file(bundle, clip, max_fps, expected):
    with Camera.open(bundle, str(clip), frame_options=FrameOptions(max_fps=max_fps)) as camera:
        indices = [result.frame.index for result in camera]
    assert indices == list(range(0, FRAMES, FPS // max_fps))
    assert len(indices) == expected


def test_max_age_drops_no_frame_of_a_file(bundle, clip):
    sink = Slow()
    with Camera.open(bundle, str(clip), frame_options=FrameOptions(max_age_s=1e-6)) as camera:
        report = camera.run([sink])
    assert (report.classified, report.skipped) == (FRAMES, {})


def test_save_every_follows_the_media_time(bundle, clip, tmp_path):
    with Camera.open(bundle, str(clip)) as camera:
        camera.run([ImageRecorder(ImageRecorderConfig(tmp_path, rule="all", min_interval_s=0.5, max_bytes=10**7))])
    assert len(list(tmp_path.glob("*/*.jpg"))) == 6


def test_save_every_keeps_all_images_of_a_folder(bundle, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(5):
        cv2.imwrite(str(images / f"{number}.png"), np.full((32, 32, 3), 50 * number, np.uint8))
    with Camera.open(bundle, str(images), frame_options=FrameOptions(max_fps=1)) as camera:
        camera.run(
            [ImageRecorder(ImageRecorderConfig(tmp_path / "saved", rule="all", min_interval_s=60, max_bytes=10**7))]
        )
    assert len(list((tmp_path / "saved").glob("*/*.jpg"))) == 5


def test_minimum_duration_of_a_decision_follows_the_media_time(bundle, clip, edgerec):
    options = ("--decision", "smoothing=none", "--decision", "least_s=1", "--decision", "threshold=0")
    result = edgerec("camera", bundle, "--source", clip, "--json", *options)
    results = [value for value in map(json.loads, result.stdout.splitlines()) if value["event"] == "result"]
    changed = [value["frame"] for value in results if value["decision"]["changed"]]
    first, second = results[0]["label"], results[-1]["label"]
    assert first != second
    assert changed == [0, FRAMES // 2]
    since = [value["decision"]["since_s"] for value in results]
    assert since[-1] - since[0] == pytest.approx(1.5, abs=0.002)


def test_media_time_continues_when_a_file_starts_again(clip):
    with SourceSupervisor([find_source(str(clip), loop=True)]) as supervisor:
        frames = [frame for frame, _ in zip(supervisor.frames(), range(2 * FRAMES + 5), strict=False)]
    assert np.diff([frame.captured_s for frame in frames]) == pytest.approx(1 / FPS, abs=0.002)


def test_media_time_of_a_source_without_positions_uses_the_frame_rate():
    class Recorded:
        format = CaptureFormat(8, 8, 20.0)

        def images(self):
            for _ in range(5):
                yield np.zeros((8, 8, 3), np.uint8), "recorded"

        def close(self):
            pass

    with SourceSupervisor([Address("recorded", False, False, Recorded)]) as supervisor:
        frames = list(supervisor.frames())
    assert [frame.media_s for frame in frames] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
