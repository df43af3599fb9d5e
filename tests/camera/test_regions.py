"""Tests of the classification, decisions, motion detection and counters of named regions."""

from __future__ import annotations

import json
import shutil
import threading
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest

from edgerec import Camera, CameraConfig
from edgerec.camera.config import RegionConfig
from edgerec.camera.frame import Frame
from edgerec.camera.frame_filters import FrameOptions, FrameSelector
from edgerec.camera.reconnection import Timeouts
from edgerec.camera.service_notifier import ServiceNotifier
from edgerec.camera.sources import Address, CaptureFormat
from edgerec.errors import ConfigError, RecipeError, SourceError
from edgerec.runtime.classifier import Classifier
from tests.conftest import error_line

LEFT = RegionConfig("left", (0, 0, 0.5, 1))
RIGHT = RegionConfig("right", (0.5, 0, 0.5, 1))
PAIR_FRAMES = 30


@pytest.fixture(scope="module")
def pair_video(golden_images, tmp_path_factory):
    """Return a video whose left half shows the digits 0 to 9, and whose right half shows 9 to 0."""
    path = tmp_path_factory.mktemp("pair") / "pair.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (240, 120))
    digits = [cv2.resize(cv2.imread(str(image)), (120, 120)) for image in golden_images]
    for digit, other in zip(digits, reversed(digits), strict=True):
        for _ in range(3):
            writer.write(np.hstack([digit, other]))
    writer.release()
    return path


def results_of(bundle, source, **options):
    with Camera.open(bundle, source, **options) as camera:
        return list(camera)


def summary(results):
    """Return the time-independent values of results."""
    return [
        (r.frame.index, r.classification.label, r.classification.score, r.decision.label, r.decision.changed)
        for r in results
    ]


def names(results):
    return [result.frame.display_name for result in results]


# Classification.


@pytest.mark.parametrize("threads", [1, 3])
def test_each_region_has_the_results_of_a_camera_with_only_this_region(bundle, pair_video, threads):
    """Smoothing must not combine the scores of different regions."""
    regions = [LEFT, RegionConfig("right", (0.5, 0, 0.5, 1), rotate=90, mirror=True)]
    results = results_of(bundle, str(pair_video), regions=regions, threads=threads)
    assert names(results) == [f"{pair_video}/left", f"{pair_video}/right"] * PAIR_FRAMES
    for region in regions:
        options = FrameOptions(roi=region.roi, rotate=region.rotate or 0, mirror=region.mirror or False)
        alone = results_of(bundle, str(pair_video), frame_options=options)
        own = [result for result in results if result.frame.region.name == region.name]
        assert summary(own) == summary(alone)
        assert all(np.array_equal(r.frame.image, a.frame.image) for r, a in zip(own, alone, strict=True))
    left, right = (
        [r.classification.label for r in results if r.frame.region.name == name] for name in ("left", "right")
    )
    assert left != right


def test_rotation_and_mirroring_for_all_frames_apply_to_each_region(bundle, pair_video):
    options = FrameOptions(rotate=180, mirror=True)
    regions = [LEFT, RegionConfig("upright", (0, 0, 0.5, 1), rotate=0, mirror=False)]
    results = results_of(bundle, str(pair_video), regions=regions, frame_options=options)
    expected = results_of(bundle, str(pair_video), frame_options=FrameOptions(roi=LEFT.roi, rotate=180, mirror=True))
    assert summary(results[::2]) == summary(expected)
    assert summary(results[1::2]) == summary(results_of(bundle, str(pair_video), regions=[LEFT]))


def test_result_names_the_region_its_box_and_the_whole_frame(bundle, pair_video):
    first, second = results_of(bundle, str(pair_video), regions=[LEFT, RIGHT])[:2]
    assert (first.to_dict()["source"], first.to_dict()["region"]) == (str(pair_video), "left")
    assert second.frame.region.box == (120, 0, 240, 120)
    assert (first.frame.region.is_last, second.frame.region.is_last) == (False, True)
    assert np.array_equal(second.frame.region.whole[:, 120:], second.frame.image)
    assert second.without_image.frame.region.whole.size == 0
    assert "region" not in results_of(bundle, str(pair_video))[0].to_dict()


def test_threshold_and_decision_of_one_region_do_not_affect_the_other(bundle, pair_video):
    strict = RegionConfig("strict", RIGHT.roi, threshold=1.0)
    single = RegionConfig("single", RIGHT.roi, decision={"smoothing": "none", "top_k": 2})
    results = results_of(bundle, str(pair_video), regions=[LEFT, strict, single])
    plain = results_of(bundle, str(pair_video), regions=[LEFT, RIGHT])
    assert summary(results[::3]) == summary(plain[::2])
    assert {result.classification.label for result in results[1::3]} == {"unknown"}
    assert {result.decision.label for result in results[1::3]} == {"unknown"}
    assert [r.decision.label for r in results[2::3]] == [r.classification.label for r in plain[1::2]]
    assert {len(result.classification.categories) for result in results[2::3]} == {2}


def test_regions_of_several_sources(bundle, pair_video, golden_images, tmp_path):
    """A region applies to one source or to all sources, and a source without regions is classified as a whole."""
    folder = tmp_path / "images"
    folder.mkdir()
    for path in golden_images[:4]:
        shutil.copy(path, folder)
    sources = [str(pair_video), str(folder)]
    both = RegionConfig("both", (0, 0, 1, 0.5))
    only = RegionConfig("only", RIGHT.roi, source=str(pair_video))
    results = results_of(bundle, sources, regions=[both, only])
    assert {name: names(results).count(name) for name in dict.fromkeys(names(results))} == {
        f"{pair_video}/both": PAIR_FRAMES,
        f"{pair_video}/only": PAIR_FRAMES,
        f"{folder}/both": 4,
    }
    results = results_of(bundle, sources, regions=[only])
    whole = [result for result in results if result.frame.source == str(folder)]
    assert names(whole) == [str(folder)] * 4
    assert summary(whole) == summary(results_of(bundle, str(folder)))


# Selection of frames.


def frame(index, image, source="0"):
    return Frame(image, index, float(index), source, source)


def selected(selector, *frames):
    return [(part.index, part.region.name, part.region.is_last) for each in frames for part in selector.select(each)]


def selector_with(*regions, **options):
    common = FrameOptions(**options)
    return FrameSelector(common, {"0": [(region.name, region.frame_options(common)) for region in regions]})


def test_motion_is_detected_in_each_region_separately():
    still = np.full((120, 160, 3), 90, np.uint8)
    moved = still.copy()
    moved[:, :80] = 200
    selector = selector_with(LEFT, RIGHT, motion=0.1)
    assert selected(selector, *(frame(i, image) for i, image in enumerate((still, still, moved, moved)))) == [
        (0, "left", False),
        (0, "right", True),
        (2, "left", True),
    ]
    assert selector.skipped == {"motion": 5}
    selector.forget("0")  # The source was lost.
    assert selected(selector, frame(4, moved)) == [(4, "left", False), (4, "right", True)]


@pytest.mark.parametrize(("options", "reason"), [({"every": 3}, "every"), ({"max_fps": 1 / 3}, "rate")])
def test_rate_limits_count_frames_and_not_regions(options, reason):
    selector = selector_with(LEFT, RIGHT, **options)
    frames = [frame(i, np.zeros((12, 16, 3), np.uint8)) for i in range(6)]
    assert [(index, name) for index, name, _ in selected(selector, *frames)] == [
        (0, "left"),
        (0, "right"),
        (3, "left"),
        (3, "right"),
    ]
    assert selector.skipped == {reason: 4}


def test_region_outside_the_first_frame_is_an_error(bundle, pair_video):
    outside = RegionConfig("door", (500, 0, 10, 10))
    with pytest.raises(SourceError, match=r"the region door 500,0,10,10 is outside the frames of .*, 240x120: choose"):
        results_of(bundle, str(pair_video), regions=[LEFT, outside])


def test_other_regions_are_classified_after_a_change_of_resolution(caplog):
    large, small = np.zeros((120, 160, 3), np.uint8), np.zeros((60, 80, 3), np.uint8)
    selector = selector_with(RegionConfig("near", (0, 0, 20, 20)), RegionConfig("far", (100, 0, 20, 20)))
    assert selected(selector, frame(0, large), frame(1, small), frame(2, large)) == [
        (0, "near", False),
        (0, "far", True),
        (1, "near", True),
        (2, "near", False),
        (2, "far", True),
    ]
    assert selector.skipped == {"roi": 1}
    assert "the region far 100,0,20,20 is outside the frames of 0, 80x60" in caplog.text


def test_box_of_a_region_that_extends_beyond_the_frame_is_clipped():
    (part,) = selector_with(RegionConfig("edge", (100, 60, 500, 500))).select(
        frame(0, np.zeros((120, 160, 3), np.uint8))
    )
    assert part.region.box == (100, 60, 160, 120)
    assert part.image.shape == (60, 60, 3)


def test_memory_of_the_whole_frame_is_counted():
    whole = np.zeros((120, 160, 3), np.uint8)
    (view,) = selector_with(LEFT).select(frame(0, whole))
    (copied,) = selector_with(RegionConfig("turned", LEFT.roi, rotate=90)).select(frame(0, whole))
    assert view.size_bytes == whole.nbytes + view.grabbed.nbytes
    assert copied.size_bytes == whole.nbytes + copied.grabbed.nbytes


# Counters, limits and interruptions.


class PlannedSource:
    """A source that delivers a fixed number of frames and then ends or fails."""

    format = CaptureFormat(16, 12)

    def __init__(self, frames, error=None, failing=None):
        """Create the source. Raise ``error`` after the last frame when the event ``failing`` is set."""
        self.frames, self.error, self.failing, self.delivered = frames, error, failing, 0

    def images(self):
        for _ in range(self.frames):
            self.delivered += 1
            yield np.zeros((12, 16, 3), np.uint8), "planned"
        if self.error:
            self.failing.wait(10)
            raise self.error

    def close(self):
        pass


class Recorder:
    """A sink that stores all results and state changes."""

    closed = False

    def __init__(self):
        self.results, self.states = [], []

    def write(self, result):
        self.results.append(result)

    def state(self, change):
        self.states.append(change)

    def close(self):
        pass


def camera_of(bundle, *sources, live=False, **options):
    remaining = list(sources)

    def open_next():
        if not remaining:
            raise SourceError("no more sources")
        return remaining.pop(0)

    return Camera(
        Classifier.open(bundle),
        [Address("planned", live, True, open_next)],
        regions={"planned": [LEFT, RIGHT]},
        **options,
    )


def test_frame_is_decoded_once_and_each_region_is_counted(bundle):
    source, sink = PlannedSource(20), Recorder()
    with camera_of(bundle, source) as camera:
        report = camera.run([sink])
    assert (source.delivered, report.classified, len(sink.results)) == (20, 40, 40)
    assert (report.skipped, report.dropped, report.exit_code) == ({}, {}, 0)


def test_max_frames_is_the_number_of_predictions(bundle):
    sink = Recorder()
    with camera_of(bundle, PlannedSource(20)) as camera:
        assert camera.run([sink], max_frames=3).classified == 3
    assert [(r.frame.index, r.frame.region.name) for r in sink.results] == [(0, "left"), (0, "right"), (1, "left")]


def test_decisions_of_all_regions_start_again_after_a_lost_source(bundle):
    failing = threading.Event()  # Set after the first frame was classified.
    sources = [PlannedSource(1, SourceError("gone"), failing), PlannedSource(1, SourceError("gone"), failing)]
    changes = []
    with camera_of(bundle, *sources, live=True, timeouts=Timeouts(first_wait_s=0.01)) as camera:
        for result in camera:
            changes.append((result.frame.region.name, result.decision.changed))
            if len(changes) == 2:
                failing.set()
            if len(changes) == 4:
                break
    assert changes == [("left", True), ("right", True)] * 2


def test_watchdog_is_reset_for_each_region(bundle, monkeypatch):
    """Classifying all regions of a frame may take longer than the watchdog's timeout."""
    resets = []
    monkeypatch.setattr(ServiceNotifier, "alive", lambda self: resets.append(time.monotonic()))
    with camera_of(bundle, PlannedSource(1)) as camera:
        camera.run([Recorder()])
    states, frames = 3, 1
    assert len(resets) == states + frames + 2


# Configuration.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "front door"}, r"RegionConfig.name is 'front door'; expected 1 to 32 ASCII letters"),
        ({"name": "a/b"}, r"RegionConfig.name is 'a/b'"),
        ({"name": "ü"}, r"RegionConfig.name is 'ü'"),
        ({"name": "x" * 33}, r"RegionConfig.name is"),
        ({"roi": (0, 0, 0, 1)}, r"RegionConfig.roi is \(0, 0, 0, 1\); expected x,y,width,height"),
        ({"rotate": 45}, r"RegionConfig.rotate is 45; expected 0, 90, 180 or 270"),
        ({"threshold": 2}, r"RegionConfig.threshold is 2; expected 0 to 1"),
        (
            {"decision": {"memmory": 3}},
            r"RegionConfig.decision has an unknown setting 'memmory'; did you mean 'memory'",
        ),
    ],
)
def test_invalid_region_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        RegionConfig(**{"name": "door", "roi": (0, 0, 1, 1)} | arguments)


@pytest.mark.parametrize(
    ("regions", "options", "message"),
    [
        ([LEFT, LEFT], {}, r"has two regions with the name 'left': rename one of them"),
        ([LEFT], {"roi": (0, 0, 1, 1)}, r"cannot be combined with a roi for all frames"),
        ([RegionConfig(f"r{i}", (0, 0, 1, 1)) for i in range(65)], {}, r"has 65 regions; expected at most 64"),
    ],
)
def test_regions_that_cannot_be_combined_are_refused(bundle, video, regions, options, message):
    with pytest.raises(ConfigError, match=message):
        CameraConfig(bundle=bundle, regions=tuple(regions), frames=FrameOptions(**options))
    with pytest.raises(ConfigError, match=message):
        Camera.open(bundle, str(video), regions=regions, frame_options=FrameOptions(**options))


def test_region_of_an_unknown_source_is_refused_without_its_password(bundle):
    region = RegionConfig("door", (0, 0, 1, 1), source="rtsp://u:hush@10.0.0.6/x")
    assert "hush" not in repr(region)
    with pytest.raises(
        ConfigError, match=r"CameraConfig.regions\[0\].source is not a source of the camera; expected one of rtsp:"
    ) as raised:
        Camera.open(bundle, ["rtsp://u:hush@10.0.0.5/x"], regions=[region])
    assert "hush" not in str(raised.value)


def test_region_refers_to_a_source_with_or_without_its_password(bundle):
    uri = "rtsp://u:hush@10.0.0.5/x"
    (name,) = Camera.open(bundle, uri).sources
    assert "hush" not in name
    for source in (uri, name):
        camera = Camera.open(bundle, uri, regions=[RegionConfig("door", (0, 0, 1, 1), source=source)])
        assert camera.regions == {name: ("door",)}


def test_invalid_decision_of_a_region_is_refused(bundle, video):
    region = RegionConfig("door", (0, 0, 1, 1), decision={"smoothing": "often"})
    with pytest.raises(RecipeError, match=r"decision.smoothing is 'often'; expected one of none, mean, vote"):
        Camera.open(bundle, str(video), regions=[region])


def test_region_with_the_display_name_of_another_source_is_refused(bundle, tmp_path):
    for folder in ("a", "a/b"):
        (tmp_path / folder).mkdir()
    region = RegionConfig("b", (0, 0, 1, 1), source=str(tmp_path / "a"))
    with pytest.raises(SourceError, match="is specified twice"):
        Camera.open(bundle, [str(tmp_path / "a"), str(tmp_path / "a/b")], regions=[region])


def test_regions_in_a_file_have_the_same_effect_as_in_python(bundle, pair_video, tmp_path, edgerec):
    path = tmp_path / "camera.toml"
    path.write_text(
        f"""
        bundle = {json.dumps(str(bundle))}
        sources = {json.dumps(str(pair_video))}
        output = "json"

        [[region]]
        name = "left"
        roi = [0, 0, 0.5, 1]
        threshold = 0.9
        decision = {{ smoothing = "none" }}

        [[region]]
        name = "right"
        roi = [0.5, 0, 0.5, 1]
        source = {json.dumps(str(pair_video))}
        rotate = 90
        mirror = true
        """
    )
    config = CameraConfig.from_file(path)
    assert config.regions == (
        replace(LEFT, threshold=0.9, decision={"smoothing": "none"}),
        replace(RIGHT, source=str(pair_video), rotate=90, mirror=True),
    )
    copy = tmp_path / "copy.toml"
    copy.write_text(config.to_toml())
    assert CameraConfig.from_file(copy) == config
    process = edgerec("camera", "--config", path)
    assert process.returncode == 0, process.stderr
    values = [value for value in map(json.loads, process.stdout.splitlines()) if value["event"] == "result"]
    results = results_of(bundle, str(pair_video), regions=config.regions)
    assert [(v["frame"], v["region"], v["label"], v["score"], v["decision"]["label"]) for v in values] == [
        (r.frame.index, r.frame.region.name, r.classification.label, r.classification.score, r.decision.label)
        for r in results
    ]


def test_invalid_region_in_a_file_is_reported_with_its_key(tmp_path, edgerec):
    path = tmp_path / "camera.toml"
    regions = ['name = "left"\nroi = [0, 0, 1, 1]', 'name = "right"\nroi = [0, 0, 1, 1]\nrotate = 91']
    path.write_text('bundle = "b"\n' + "".join(f"[[region]]\n{region}\n" for region in regions))
    process = edgerec("camera", "--config", path)
    assert "camera.toml: region[1].rotate is 91; expected 0, 90, 180 or 270" in error_line(process)
