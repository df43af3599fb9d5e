"""Smooth a video stream's predictions, so that the label does not flicker."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from edgerec.contract.decision import MAX_RELATIVE_NOVELTY, UNKNOWN, Decision, DecisionSpec, Scores, calibrated

# Durations are compared with this tolerance in seconds, because video files round timestamps to milliseconds.
TIME_TOLERANCE_S = 0.001


class Decider:
    """Smooths the predictions for the frames of a video stream."""

    def __init__(self, spec: DecisionSpec, labels: Sequence[str]) -> None:
        self._spec, self._labels = spec, labels
        self.reset()

    def reset(self) -> None:
        """Discard the state of previous frames, e.g. after the stream was interrupted."""
        self._mean: Scores | None = None
        self._novelty = 0.0  # smoothed relative novelty
        self._recent: deque[int] = deque(maxlen=self._spec.memory)
        self._current: Decision | None = None

    def update(self, scores: Scores, at_s: float, novelty: float | None = None, finite: bool | None = None) -> Decision:
        """Add a frame's classification, and return the smoothed decision.

        Args:
            scores: scores of all classes before calibration, float32 ``(classes,)``.
            at_s: capture time of the frame, in seconds.
            novelty: the attribute ``novelty`` of the frame's :class:`Classification`.
            finite: the attribute ``finite`` of the frame's :class:`Classification`. If it is False, the frame counts as
                unknown. None checks whether the scores are finite.
        """
        spec = self._spec
        if finite is None:
            finite = bool(np.isfinite(scores).all())
        frame_scores = calibrated(scores, spec.temperature) if finite else np.zeros_like(scores)
        frame_novelty = spec.relative_novelty(novelty) if finite else 1.0
        if spec.smoothing == "mean" and self._mean is not None:
            weight = 2 / (spec.memory + 1)
            self._mean = self._mean + np.float32(weight) * (frame_scores - self._mean)
            self._novelty += weight * (frame_novelty - self._novelty)
        else:
            self._mean, self._novelty = frame_scores, frame_novelty
        index = self._smoothed_index(self._mean, self._novelty > MAX_RELATIVE_NOVELTY)
        now = self._current
        changed = now is None or (index != now.index and at_s - now.since_s >= spec.least_s - TIME_TOLERANCE_S)
        if now is not None and not changed:
            index, since_s = now.index, now.since_s
        else:
            since_s = at_s
        label = self._labels[index] if index >= 0 else UNKNOWN
        score = float(self._mean[index] if index >= 0 else self._mean.max())
        self._current = Decision(label, index, score, since_s, changed)
        return self._current

    def _smoothed_index(self, scores: Scores, novel: bool) -> int:
        """Apply thresholds, voting and hysteresis. Return the index of the predicted class, or −1 for unknown."""
        spec, current = self._spec, self._current.index if self._current is not None else -1
        best = int(scores.argmax())
        index = best if not novel and scores[best] >= spec.threshold_of(self._labels[best]) else -1
        if spec.smoothing == "vote":
            self._recent.append(index)
            if self._current is not None and self._recent.count(index) < spec.votes:
                index = next((i for i in set(self._recent) if self._recent.count(i) >= spec.votes), current)
        if current < 0 or index == current:
            return index
        if index < 0:
            weak = scores[current] < spec.threshold_of(self._labels[current]) - spec.hysteresis
            return -1 if novel or weak else current
        return index if scores[index] >= scores[current] + spec.hysteresis else current
