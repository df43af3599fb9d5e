"""Tests that several interpreters in parallel give the same results in the same order as a single interpreter."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from edgerec import Camera
from edgerec.camera.frame import Frame
from edgerec.camera.inference_pool import classify_events
from edgerec.camera.source_state import SourceState, StateChange


def frames(count):
    return [Frame(np.full((2, 2, 3), number, np.uint8), number, 0.0, "made", "made") for number in range(count)]


class SlowClassifier:
    """A classifier that takes longer for some images, and records how many classifiers run at the same time."""

    def __init__(self, running, running_counts, barrier=None):
        self._running, self._running_counts, self._lock = running, running_counts, threading.Lock()
        self._barrier = barrier

    def classify(self, image):
        assert self._lock.acquire(blocking=False), "two threads in one interpreter"
        self._running.append(1)
        self._running_counts.append(len(self._running))
        if self._barrier and image[0, 0, 0] < self._barrier.parties:
            self._barrier.wait(timeout=60)  # for the first image of every other classifier
        time.sleep(0.02 if image[0, 0, 0] % 3 == 0 else 0.002)
        self._running.pop()
        self._lock.release()
        return int(image[0, 0, 0])


def slow_classifiers(count):
    running, running_counts = [], []
    return [SlowClassifier(running, running_counts) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_results_have_the_order_of_the_frames(count):
    running, running_counts, barrier = [], [], threading.Barrier(count)
    classifiers = [SlowClassifier(running, running_counts, barrier) for _ in range(count)]
    inputs = frames(40)
    change = StateChange("made", SourceState.ENDED, 0.0)
    results = list(classify_events([*inputs, change], classifiers))
    assert results == [*((frame, frame.index) for frame in inputs), change]
    assert max(running_counts) == count


def test_number_of_requested_frames_is_limited():
    classifiers = slow_classifiers(2)
    requested = []
    for number, (frame, _) in enumerate(
        classify_events((requested.append(1) or frame for frame in frames(30)), classifiers)
    ):
        assert frame.index == number
        assert len(requested) - number <= 5


def test_threads_end_after_an_early_exit_and_after_a_failure():
    classifiers = slow_classifiers(3)
    running = classify_events(frames(30), classifiers)
    next(running)
    running.close()

    def broken(image):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        list(classify_events(frames(3), [*classifiers[:2], SimpleNamespace(classify=broken)]))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("edgerec-model")]


@pytest.mark.parametrize("count", [1, 3])
def test_results_before_an_error_of_the_source_are_not_lost(count):
    def events():
        yield from frames(5)
        raise RuntimeError("the source failed")

    classifiers = slow_classifiers(count)
    results = []
    with pytest.raises(RuntimeError, match="the source failed"):
        results.extend(classify_events(events(), classifiers))
    assert [index for _, index in results] == list(range(5))


def test_results_of_a_video_do_not_depend_on_the_number_of_interpreters(bundle, video):
    def results_of(threads):
        with Camera.open(bundle, str(video), threads=threads) as camera:
            assert len(camera._classifiers) == threads
            return [(r.frame.index, r.classification.label, r.classification.score, r.decision.label) for r in camera]

    expected = results_of(1)
    assert len(expected) == 30
    assert results_of(3) == expected


def test_live_source_uses_one_interpreter(bundle):
    with Camera.open(bundle, "synthetic:32x32@100", threads=3) as camera:
        assert len(camera._classifiers) == 1
        report = camera.run([], max_frames=5)
    assert report.classified == 5


def test_max_frames_limits_the_number_of_results_with_several_interpreters(bundle, video):
    with Camera.open(bundle, str(video), threads=3) as camera:
        assert camera.run([], max_frames=7).classified == 7


def test_process_ends_if_the_results_of_a_camera_are_not_consumed(bundle, video):
    code = (
        "import sys; from edgerec import Camera\n"
        "with Camera.open(sys.argv[1], sys.argv[2], threads=2) as camera:\n"
        "    results = iter(camera)\n"
        "    next(results)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(bundle), str(video)], check=True, timeout=60)


def test_iteration_ends_after_the_camera_was_closed(bundle, video):
    with Camera.open(bundle, str(video), threads=2) as camera:
        results = iter(camera)
        next(results)
    assert len(list(results)) < 30
