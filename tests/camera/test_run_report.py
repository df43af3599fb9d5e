"""Tests that each call of ``Camera.run`` counts only its own frames."""

from __future__ import annotations

from edgerec.camera.frame_filters import FrameOptions
from edgerec.camera.pipeline import Camera


class Indices:
    """A sink that stores the indices of the frames."""

    closed = False

    def __init__(self):
        self.values = []

    def write(self, result):
        self.values.append(result.frame.index)

    def state(self, change):
        """Ignore state changes."""

    def close(self):
        """Release nothing."""


def test_limit_and_counts_apply_to_each_run(bundle, video):
    sinks = [Indices(), Indices(), Indices()]
    with Camera.open(bundle, str(video), threads=1, frame_options=FrameOptions(every=2)) as camera:
        reports = [camera.run([sink], max_frames=count) for sink, count in zip(sinks, (3, 2, 4), strict=True)]
        assert camera.report == reports[-1]
    assert [report.classified for report in reports] == [len(sink.values) for sink in sinks] == [3, 2, 4]
    assert [report.skipped.get("every") for report in reports] == [2, 2, 4]


def test_run_after_iteration_counts_only_its_own_frames(bundle, video):
    with Camera.open(bundle, str(video), threads=1) as camera:
        next(iter(camera))
        sink = Indices()
        assert camera.run([sink], max_frames=2).classified == len(sink.values) == 2
