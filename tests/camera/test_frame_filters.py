"""Tests of the selection and cropping of frames, and of sinks that are slow, fail or hang."""

from __future__ import annotations

import io
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from edgerec.camera.frame import Frame, Result
from edgerec.camera.frame_filters import FrameOptions, FrameSelector, parse_roi
from edgerec.camera.sinks.console import StateLines
from edgerec.camera.sinks.sink_thread import MAX_EVENTS, SinkWorker
from edgerec.camera.source_state import SourceState, StateChange
from edgerec.contract.decision import Classification
from edgerec.errors import SourceError

NUMBERED = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)


def frame(index=0, grabbed_s=0.0, image=NUMBERED, source="0"):
    return Frame(image, index, grabbed_s, source, source)


def result(index):
    prediction = Classification("a", 0, 1.0, (), np.ones(1, np.float32))
    return Result(frame(index), prediction, time.monotonic())


@pytest.mark.parametrize(
    ("frame_options", "expected"),
    [
        (FrameOptions(roi=(2, 1, 4, 3)), NUMBERED[1:4, 2:6]),
        (FrameOptions(roi=(0.25, 0.5, 0.5, 0.5)), NUMBERED[3:6, 2:6]),
        (FrameOptions(roi=(0, 0, 1, 1)), NUMBERED),
        (FrameOptions(roi=(6, 4, 100, 100)), NUMBERED[4:, 6:]),
        (FrameOptions(rotate=90), np.rot90(NUMBERED, -1)),
        (FrameOptions(rotate=180), NUMBERED[::-1, ::-1]),
        (FrameOptions(rotate=270), np.rot90(NUMBERED)),
        (FrameOptions(mirror=True), NUMBERED[:, ::-1]),
        (FrameOptions(roi=(0, 0, 2, 2), rotate=90, mirror=True), np.rot90(NUMBERED[:2, :2], -1)[:, ::-1]),
    ],
)
def test_frame_options_crop_rotate_and_mirror(frame_options, expected):
    (selected_frame,) = FrameSelector(frame_options).select(frame())
    assert np.array_equal(selected_frame.image, expected)


def test_region_outside_the_first_frame_is_an_error():
    with pytest.raises(SourceError, match=r"the region 500,1,2,2 is outside the frames of .*, 8x6"):
        FrameSelector(FrameOptions(roi=(500, 1, 2, 2))).select(frame())


def test_region_that_exceeds_the_frame_is_logged_once(caplog):
    selector = FrameSelector(FrameOptions(roi=(0.75, 0, 0.5, 1)))
    for _ in range(3):
        assert [part.image.shape for part in selector.select(frame())] == [(6, 2, 3)]
    assert caplog.text.count("only 6,0,2,6 is classified") == 1


def test_frames_are_skipped_if_the_region_is_outside_after_a_change_of_resolution(caplog):
    """The camera does not stop, because the source may return to its earlier resolution."""
    selector = FrameSelector(FrameOptions(roi=(6, 4, 2, 2)))
    small = replace(frame(), grabbed=NUMBERED[:3, :3])
    assert [len(selector.select(f)) for f in (frame(), small, small, frame())] == [1, 0, 0, 1]
    assert selector.skipped == {"roi": 2}
    assert caplog.text.count("these frames are skipped") == 1


def test_rotation_by_90_degrees_is_clockwise():
    image = np.zeros((2, 4, 3), np.uint8)
    image[:, 0] = 255
    assert (FrameOptions(rotate=90).apply(image)[0] == 255).all()


def select(frame_options, frames):
    selector = FrameSelector(frame_options)
    return [f.index for f in frames if selector.select(f)], dict(selector.skipped)


def test_every_and_max_fps_limit_the_number_of_frames():
    at_30 = [frame(i, i / 30) for i in range(90)]
    assert select(FrameOptions(every=10), at_30) == (list(range(0, 90, 10)), {"every": 81})
    indices, skipped = select(FrameOptions(max_fps=10), at_30)
    assert len(indices) == pytest.approx(30, abs=1)
    assert skipped == {"rate": 90 - len(indices)}
    # At 30 frames per second, max_fps=25 selects 25 frames per second, and not only every second frame.
    assert len(select(FrameOptions(max_fps=25), at_30)[0]) == pytest.approx(75, abs=2)
    # After a pause, the frame rate does not exceed max_fps.
    slowed = [frame(i, i / 30) for i in range(10)] + [frame(10 + i, 60 + i / 30) for i in range(30)]
    assert len([i for i in select(FrameOptions(max_fps=10), slowed)[0] if i >= 10]) <= 12


def test_every_counts_the_frames_of_each_source():
    both = [frame(i, i / 30, source=source) for i in range(4) for source in ("0", "1")]
    assert select(FrameOptions(every=2), both)[0] == [0, 0, 2, 2]


def test_max_age_skips_old_live_frames():
    now = time.monotonic()
    frames = [frame(0, now - 5), frame(1, now)]
    assert select(FrameOptions(max_age_s=1), frames) == ([1], {"age": 1})


def test_motion_skips_unchanged_frames():
    rng = np.random.default_rng(0)
    still = rng.integers(0, 256, (120, 160, 3)).astype(np.uint8)
    noisy = np.clip(still.astype(int) + rng.integers(-4, 5, still.shape), 0, 255).astype(np.uint8)
    moved = still.copy()
    moved[20:80, 20:80] = 255 - moved[20:80, 20:80] // 2
    frames = [frame(i, i, image) for i, image in enumerate((still, noisy, still, moved, moved, still))]
    assert select(FrameOptions(motion=0.02), frames) == ([0, 3, 5], {"motion": 3})


@pytest.mark.parametrize("text", ["1,2,3", "a,b,c,d", "1,1,0,4", "-1,0,2,2", "nan,0,1,1", ""])
def test_invalid_region_is_refused(text):
    with pytest.raises(ValueError, match=r"roi is .*; expected x,y,width,height"):
        FrameOptions(roi=parse_roi(text))


def test_invalid_frame_option_is_a_usage_error(bundle, video, edgerec):
    result = edgerec("camera", bundle, "--source", video, "--roi", "1,2,3", "--headless")
    assert result.returncode == 2
    assert "expected x,y,width,height" in " ".join(result.stderr.split())
    result = edgerec("camera", bundle, "--source", video, "--rotate", "45", "--headless")
    assert "expected 0, 90, 180 or 270" in " ".join(result.stderr.split())
    assert "must have the form WxH, such as 1280x720" in edgerec("camera", bundle, "--size", "big", "--headless").stderr


def test_every_option_selects_every_nth_frame_of_a_video(bundle, video, edgerec):
    result = edgerec("camera", bundle, "--source", video, "--headless", "--every", 10, "--mirror", "--roi", "0,0,.5,1")
    assert [line.split()[1] for line in result.stdout.splitlines()] == ["0", "10", "20"]


class CallbackSink:
    """A sink that calls a function for each result."""

    def __init__(self, callback=lambda result: None):
        self.closed = self.was_closed = False
        self.results, self.states = [], []
        self._callback = callback

    def write(self, result):
        self._callback(result)
        self.results.append(result.frame.index)

    def state(self, change):
        self.states.append(str(change.state))

    def close(self):
        self.was_closed = True


def test_slow_sink_drops_and_counts_the_oldest_results():
    release = threading.Event()
    slow, quick = CallbackSink(lambda _: release.wait(10)), CallbackSink()
    workers = [SinkWorker(slow, lossless=False), SinkWorker(quick, lossless=False)]
    change = StateChange("0", SourceState.LIVE, 0.0)
    for worker in workers:
        worker.put(change)
    for index in range(500):
        for worker in workers:
            worker.put(result(index))
        if index % 50 == 0:
            time.sleep(0.01)
    release.set()
    for worker in workers:
        worker.close()
    assert slow.states == quick.states == ["live"]
    assert slow.was_closed
    assert quick.was_closed
    assert slow.results[-1] == 499
    assert len(slow.results) + workers[0].dropped == 500
    assert workers[0].dropped >= 500 - MAX_EVENTS - 60
    message = f"CallbackSink did not process {workers[0].dropped} of 500 results, because it was too slow"
    assert list(workers[0].problems(500)) == [message]
    assert len(quick.results) + workers[1].dropped == 500


def test_slow_sink_receives_all_results_of_a_file():
    slow = CallbackSink(lambda _: time.sleep(0.001))
    worker = SinkWorker(slow, lossless=True)
    for index in range(300):
        worker.put(result(index))
    worker.close()
    assert slow.results == list(range(300))
    assert worker.dropped == 0


def test_exceptions_of_a_sink_are_counted_and_later_results_are_sent(caplog):
    def fail_at_first(result):
        if result.frame.index < 5:
            raise OSError("no space left")

    sink = CallbackSink(fail_at_first)
    worker = SinkWorker(sink, lossless=True)
    for index in range(8):
        worker.put(result(index))
    worker.close()
    assert sink.results == [5, 6, 7]
    assert (worker.failed, worker.dropped, worker.written) == (5, 5, 3)
    assert list(worker.problems(8)) == ["CallbackSink did not process 5 of 8 results"]
    assert caplog.text.count("CallbackSink: 1 results lost so far") == 1
    assert "no space left" in caplog.text


def test_hung_sink_is_abandoned(monkeypatch, caplog):
    monkeypatch.setattr("edgerec.camera.sinks.sink_thread.CLOSE_S", 0.1)
    forever = threading.Event()
    worker = SinkWorker(CallbackSink(lambda _: forever.wait(30)), lossless=False)
    for index in range(3):
        worker.put(result(index))
    start = time.monotonic()
    worker.close()
    assert time.monotonic() - start < 5
    assert "does not finish" in caplog.text
    forever.set()


def test_equal_failures_to_connect_are_printed_once():
    out = io.StringIO()
    lines = StateLines(out)
    lost = StateChange("rtsp://c", SourceState.LOST, 0.0, "rtsp://c cannot be opened")
    connecting, live = (
        StateChange("rtsp://c", SourceState.CONNECTING, 0.0),
        StateChange("rtsp://c", SourceState.LIVE, 0.0, "4x4"),
    )
    for change in (lost, connecting, lost, live):
        lines.state(change)
    assert out.getvalue().splitlines() == ["rtsp://c: lost: cannot be opened", "rtsp://c: live: 4x4"]
