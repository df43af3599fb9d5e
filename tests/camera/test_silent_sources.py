"""Tests of sources that hang, are silent or come back after an outage."""

from __future__ import annotations

import contextlib
import threading
import time

import numpy as np
import pytest

from edgerec.camera.frame_filters import FrameOptions
from edgerec.camera.pipeline import Camera
from edgerec.camera.reconnection import Timeouts
from edgerec.camera.source_state import SourceState
from edgerec.camera.sources import Address, CaptureFormat
from edgerec.camera.supervisor import SourceSupervisor
from edgerec.errors import SourceError
from edgerec.runtime.classifier import Classifier, read_image

# The tests release everything that hangs; this limit only bounds a test that fails.
LIMIT_S = 20.0


class Scripted:
    """A source that yields images and calls functions in a given order."""

    format = CaptureFormat(8, 8)

    def __init__(self, *steps):
        self._steps = steps

    def images(self):
        for step in self._steps:
            if callable(step):
                step()
            else:
                yield step, "scripted"

    def close(self):
        pass


def gray(value):
    return np.full((28, 28, 3), value, np.uint8)


def raise_connection_lost():
    raise SourceError("gone")


def in_thread(function):
    """Run ``work`` in a thread and return its result, or fail if it does not end."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    assert results, "the call did not return"
    return results[0]


@pytest.mark.parametrize("hang_in", ["open", "images"])
@pytest.mark.parametrize("delivered", [0, 1])
def test_give_up_ends_a_source_whose_connections_all_hang(hang_in, delivered):
    release, opened = threading.Event(), []

    def hang():
        release.wait(LIMIT_S)

    def open_source():
        opened.append(1)
        if len(opened) <= delivered:
            return Scripted(gray(0), raise_connection_lost)
        if hang_in == "open":
            hang()
        return Scripted(hang)

    timeouts = Timeouts(0.05, 0.05, 0.05, 0.01, 0.01, give_up_s=0.5)
    supervisor = SourceSupervisor([Address("camera", True, True, open_source)], timeouts)
    with supervisor:
        events = in_thread(lambda: list(supervisor))
        release.set()
    assert [str(error)[:6] for error in supervisor.errors] == ["camera"]
    assert events[-1].state is SourceState.ENDED
    assert len(opened) == delivered + 3  # no more connections than may hang at the same time


def test_give_up_is_not_later_than_the_timeout_of_a_connection():
    release = threading.Event()
    timeouts = Timeouts(open_s=LIMIT_S, give_up_s=0.1)
    with SourceSupervisor(
        [Address("camera", True, True, lambda: Scripted(lambda: release.wait(LIMIT_S)))], timeouts
    ) as supervisor:
        in_thread(lambda: list(supervisor))
        assert not release.is_set()
        release.set()
    assert len(supervisor.errors) == 1


def test_pauses_double_up_to_the_longest():
    pauses = Timeouts(first_wait_s=0.25, longest_wait_s=2.0).pauses()
    assert [next(pauses) for _ in range(6)] == [0.25, 0.5, 1.0, 2.0, 2.0, 2.0]


def collect_results(bundle, connections, frame_options=None, decision=None):
    """Return the results of a source whose connections deliver the given images one after the other."""
    results, remaining = [], list(connections)

    def open_source():
        if not remaining:
            raise_connection_lost()
        images = remaining.pop(0)
        known = len(results)
        waits = [lambda n=n: wait_until(lambda: len(results) >= known + n) for n in range(1, len(images) + 1)]
        return Scripted(*(step for pair in zip(images, waits, strict=True) for step in pair), raise_connection_lost)

    timeouts = Timeouts(first_wait_s=0.01, longest_wait_s=0.01, give_up_s=0.5)
    classifier = Classifier.open(bundle, decision=decision)
    address = Address("camera", True, True, open_source)
    with (
        Camera(classifier, [address], frame_options=frame_options, timeouts=timeouts) as camera,
        contextlib.suppress(SourceError),
    ):
        for result in camera:
            results.append(result)
    return results


def wait_until(condition):
    """Wait for a condition. A frame that is not replaced by a newer one needs this."""
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)


@pytest.mark.parametrize("smoothing", ["mean", "vote"])
def test_first_frame_after_an_outage_starts_a_new_decision(bundle, golden_images, smoothing):
    """The first frame after an outage starts a new decision, whatever was decided before."""
    digits = [read_image(path) for path in golden_images[:2]]
    results = collect_results(
        bundle, [[digits[0]] * 3, [digits[1]] * 3], decision={"smoothing": smoothing, "least_s": 3600, "threshold": 0}
    )
    assert [result.decision.changed for result in results] == [True, False, False, True, False, False]
    assert results[3].decision.label == results[3].classification.label != results[0].decision.label
    assert results[3].decision.since_s == results[3].frame.grabbed_s


def test_an_unchanged_label_is_a_new_decision_after_an_outage(bundle, golden_images):
    results = collect_results(bundle, [[read_image(golden_images[0])]] * 2)
    assert [result.decision.changed for result in results] == [True, True]


def test_motion_is_not_compared_across_an_outage(bundle):
    assert len(collect_results(bundle, [[gray(9)], [gray(9)]], FrameOptions(motion=0.5))) == 2


class Polled:
    """An inline sink that counts how often its events are processed."""

    name, inline, closed = "polled", True, False

    def __init__(self, polled):
        self._polled = polled

    def poll(self):
        self._polled.set()

    def write(self, result):
        pass

    def state(self, change):
        pass

    def close(self):
        pass


@pytest.mark.parametrize("frame_options", [FrameOptions(), FrameOptions(motion=1.0)], ids=["silent", "no motion"])
def test_a_window_is_polled_while_no_frame_is_classified(bundle, frame_options):
    polled, was_polled, first = threading.Event(), [], gray(0)

    def wait():
        was_polled.append(polled.wait(5))

    still = (first, lambda: polled.wait(0.1)) * 20 if frame_options.motion else ()
    source = Scripted(first, *still, wait, raise_connection_lost)
    classifier = Classifier.open(bundle)
    address = Address("camera", True, True, lambda: source)
    with (
        Camera(classifier, [address], frame_options=frame_options, timeouts=Timeouts(give_up_s=0)) as camera,
        pytest.raises(SourceError),
    ):
        camera.run([Polled(polled)])
    assert was_polled == [True]


def test_a_sink_that_closes_is_noticed_while_the_source_is_silent(bundle):
    release, written, released = threading.Event(), threading.Event(), []

    class Closing(Polled):
        inline = False

        @property
        def closed(self):
            return written.is_set()

        def write(self, result):
            threading.Timer(0.3, written.set).start()

    source = Scripted(gray(0), lambda: released.append(release.wait(5)))
    with Camera(Classifier.open(bundle), [Address("camera", True, True, lambda: source)]) as camera:
        report = camera.run([Closing(threading.Event())])
        release.set()
    assert report.classified == 1
    assert released == [True]
