"""From scores to an answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

UNKNOWN = "unknown"
Smoothing = Literal["none", "mean", "vote"]
# A stored score of zero is less than half of an int8 unit, not nothing.
_LEAST = 1 / 512
_TIE = 1e-3
# Of a picture's newness: above it, it is unknown.
_NEW = 0.5

# Tolerance for comparing durations in seconds, because video files round media times to milliseconds.
TIME_TOLERANCE_S = 0.001

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class DecisionSpec:
    """How scores become an answer, of one picture and of a stream of them.

    Attributes:
        threshold: below this calibrated score the answer is ``unknown`` with index −1; 0 answers always.
        top_k: how many categories a result lists.
        temperature: divides the logarithms of the scores before they are compared with a threshold, so that they
            say how often they are right (arXiv:1706.04599); 1 leaves them.
        thresholds: a label's own threshold instead of the common one.
        smoothing: over a stream's frames: ``none``; an exponential ``mean`` of the scores over about ``memory``
            frames; or a ``vote``: a label that won ``votes`` of the last ``memory`` frames.
        memory: frames.
        votes: frames of ``memory``.
        hysteresis: how much better than the present answer another must be, 0 to 1 in score.
        least_s: how long an answer stays at least, seconds.
        novelty: where the bundle has an autoencoder, how many times its threshold a picture's reconstruction error may
            be; above it the answer is ``unknown``, whatever the scores; 0 lets every picture through.
    """

    threshold: float = 0.0
    top_k: int = 5
    temperature: float = 1.0
    thresholds: Mapping[str, float] = field(default_factory=dict)
    smoothing: Smoothing = "none"
    memory: int = 5
    votes: int = 3
    hysteresis: float = 0.0
    least_s: float = 0.0
    novelty: float = 1.0

    def __post_init__(self) -> None:
        _within("threshold", self.threshold, 0, 1)
        _whole("top_k", self.top_k)
        _within("temperature", self.temperature, 0.01, 100)
        if not isinstance(self.thresholds, Mapping):
            raise ValueError(f"decision.thresholds is {self.thresholds!r}; expected labels with numbers")
        for label, value in self.thresholds.items():
            _within(f"thresholds[{label!r}]", value, 0, 1)
        if self.smoothing not in get_args(Smoothing):
            raise ValueError(f"decision.smoothing is {self.smoothing!r}; expected {', '.join(get_args(Smoothing))}")
        _whole("memory", self.memory)
        _whole("votes", self.votes)
        if self.smoothing == "vote" and self.votes > self.memory:
            raise ValueError(f"decision.votes is {self.votes} of a memory of {self.memory} frames")
        _within("hysteresis", self.hysteresis, 0, 1)
        _within("least_s", self.least_s, 0, 86400)
        _within("novelty", self.novelty, 0, 1000)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return vars(self) | {"thresholds": dict(self.thresholds)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> DecisionSpec:
        """The inverse of :meth:`to_dict`; raises TypeError or ValueError on anything else."""
        return cls(**fields)

    def for_single(self) -> DecisionSpec:
        """The same for pictures that have nothing to do with each other."""
        return replace(self, smoothing="none", hysteresis=0.0, least_s=0.0)

    def threshold_of(self, label: str) -> float:
        """The label's own threshold, or the common one."""
        return self.thresholds.get(label, self.threshold)

    def newness(self, novelty: float | None) -> float:
        """How new a picture is, from 0 to 1, where it has twice the ``novelty`` that is let through; above a half it
        is unknown."""
        if novelty is None or not self.novelty:
            return 0.0
        share = novelty / (2 * self.novelty)
        return share if share <= 1 else 1.0  # also of NaN


@dataclass(frozen=True)
class Category:
    """One class with its score in [0, 1]."""

    label: str
    index: int
    score: float


@dataclass(frozen=True)
class Classification:
    """The prediction for one image.

    Attributes:
        label, index: the best class; ``unknown`` and −1 if its score is below the threshold or the image is novel.
        score: score of the best class, even if the label is ``unknown``.
        categories: the ``top_k`` classes, best first.
        scores: scores of all classes before calibration, float32 ``(classes,)``, in [0, 1].
        novelty: reconstruction error of the image divided by the threshold that was determined on the validation
            images; None if the bundle has no autoencoder.
        finite: False if the model returned scores that are NaN or infinite. In this case the label is ``unknown``.
    """

    label: str
    index: int
    score: float
    categories: tuple[Category, ...]
    scores: Scores
    novelty: float | None = None
    finite: bool = True


@dataclass(frozen=True)
class Decision:
    """What a stream shows, steadier than each of its frames.

    Attributes:
        label, index: a class, or ``unknown`` and −1.
        score: its calibrated score after smoothing, in [0, 1]; of ``unknown``, the best one's.
        since_s: monotonic time since which it is the answer, seconds.
        changed: whether it became so with this frame.
    """

    label: str
    index: int
    score: float
    since_s: float
    changed: bool


def calibrated(scores: Scores, temperature: float) -> Scores:
    """``softmax(log(scores) / temperature)``, float32 ``(…, classes)``; the order of the classes stays."""
    if temperature == 1.0:
        return scores
    powers = np.maximum(scores, _LEAST).astype(np.float64) ** (1 / temperature)
    return (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)


def _mean(scores: Scores) -> Scores:
    return scores.mean(axis=0)


def _vote(scores: Scores) -> Scores:
    votes = np.bincount(scores.argmax(axis=1), minlength=scores.shape[1])
    # Of as many votes the better mean wins: it counts for less than one vote.
    return ((votes + _TIE * scores.mean(axis=0)) / (len(scores) + _TIE)).astype(np.float32)


# What several models' scores, float32 (models, classes), become: float32 (classes,).
COMBINATIONS: dict[str, Callable[[Scores], Scores]] = {"mean": _mean, "vote": _vote}


def fit_temperature(scores: Scores, classes: npt.NDArray[np.int64]) -> float:
    """Return the temperature, 0.05 to 20, that minimizes the negative log-likelihood of the true classes.

    The loss is convex in the inverse temperature (arXiv:1706.04599, section 4.2), so a ternary search over the
    logarithm of the temperature finds the minimum. If every image is classified correctly, the loss decreases further
    and further as the temperature approaches 0. With such a temperature, all images would get scores near 1, even
    images that show none of the classes. Therefore the temperature is at least 1 in that case.

    Args:
        scores: probabilities, float32 ``(N, classes)``.
        classes: true class of each image, int64 ``(N,)``.
    """
    logs = np.log(np.maximum(scores, _LEAST).astype(np.float64))
    rows = np.arange(len(classes))

    def loss(exponent: float) -> float:
        scaled = logs / np.exp(exponent)
        scaled -= scaled.max(axis=1, keepdims=True)
        return float(np.mean(np.log(np.exp(scaled).sum(axis=1)) - scaled[rows, classes]))

    low, high = np.log(0.05), np.log(20.0)
    while high - low > 1e-4:
        third = (high - low) / 3
        low, high = (low, high - third) if loss(low + third) < loss(high - third) else (low + third, high)
    temperature = round(float(np.exp((low + high) / 2)), 4)
    return max(temperature, 1.0) if np.array_equal(scores.argmax(axis=1), classes) else temperature


def fit_thresholds(
    scores: Scores, classes: npt.NDArray[np.int64], labels: Sequence[str], precision: float
) -> dict[str, float]:
    """For each label the lowest threshold above which its answers are right as often as wanted.

    Args:
        scores: calibrated, float32 ``(N, classes)``, of pictures that the model did not learn.
        classes: the true ones, ``(N,)``.
        labels: one for each class.
        precision: part of the answers that shall be right, 0 to 1.

    Returns:
        A threshold for each label; 1 where no threshold reaches the precision, so that it is answered hardly ever.
    """
    found, best = {}, scores.argmax(axis=1)
    for index, label in enumerate(labels):
        answered = best == index
        order = np.argsort(-scores[answered, index], kind="stable")
        sure, right = scores[answered, index][order], (classes[answered] == index)[order]
        # Equal scores are answered together: only the last of them is a place for the threshold.
        ends = np.append(sure[1:] < sure[:-1], True) if len(sure) else np.zeros(0, bool)
        kept = np.flatnonzero(ends & (np.cumsum(right) >= precision * np.arange(1, len(sure) + 1)))
        found[label] = float(np.floor(float(sure[kept[-1]]) * 1e4) / 1e4) if len(kept) else 1.0
    return found


def decide(scores: Scores, labels: Sequence[str], spec: DecisionSpec, novelty: float | None = None) -> Classification:
    """Return the classification for ``scores``, float32 ``(classes,)``, and ``novelty``.

    Classes with equal scores are ordered by index. If any score is NaN or infinite, the label is unknown, and the NaN
    and infinite scores are replaced by 0.
    """
    finite = bool(np.isfinite(scores).all())
    scores = scores if finite else np.nan_to_num(scores, nan=0.0, posinf=0.0, neginf=0.0)
    order = np.argsort(-scores, kind="stable")[: spec.top_k]
    categories = tuple(Category(labels[i], int(i), float(scores[i])) for i in order)
    best = categories[0]
    unsure = float(calibrated(scores, spec.temperature)[best.index]) < spec.threshold_of(best.label)
    if unsure or not finite or spec.newness(novelty) > _NEW:
        return Classification(UNKNOWN, -1, best.score, categories, scores, novelty, finite)
    return Classification(best.label, best.index, best.score, categories, scores, novelty)


class Decider:
    """Combines the predictions for the frames of one stream into a smoothed decision."""

    def __init__(self, spec: DecisionSpec, labels: Sequence[str]) -> None:
        self._spec, self._labels = spec, labels
        self.reset()

    def reset(self) -> None:
        """Forget all frames, e.g. after the stream was interrupted. The next frame starts a new decision."""
        self._mean: Scores | None = None
        self._newness = 0.0
        self._recent: deque[int] = deque(maxlen=self._spec.memory)
        self._now: Decision | None = None

    def update(self, scores: Scores, at_s: float, novelty: float | None = None, finite: bool = True) -> Decision:
        """Add the classification of one frame, and return the smoothed decision.

        Args:
            scores: scores of all classes before calibration, float32 ``(classes,)``.
            at_s: capture time of the frame, in seconds.
            novelty, finite: values of the frame's :class:`Classification`. Without finite scores, the frame counts as
                unknown.
        """
        spec, finite = self._spec, bool(np.isfinite(scores).all()) and finite
        seen = calibrated(scores, spec.temperature) if finite else np.zeros_like(scores)
        newness = spec.newness(novelty) if finite else 1.0
        if spec.smoothing == "mean" and self._mean is not None:
            weight = 2 / (spec.memory + 1)
            self._mean = self._mean + np.float32(weight) * (seen - self._mean)
            self._newness += weight * (newness - self._newness)
        else:
            self._mean, self._newness = seen, newness
        index = self._steady(self._mean, self._newness > _NEW)
        now = self._now
        changed = now is None or (index != now.index and at_s - now.since_s >= spec.least_s - TIME_TOLERANCE_S)
        if now is not None and not changed:
            index, since_s = now.index, now.since_s
        else:
            since_s = at_s
        label = self._labels[index] if index >= 0 else UNKNOWN
        score = float(self._mean[index] if index >= 0 else self._mean.max())
        self._now = Decision(label, index, score, since_s, changed)
        return self._now

    def _steady(self, scores: Scores, new: bool) -> int:
        """The class to answer with, −1 for unknown, after votes and hysteresis."""
        spec, present = self._spec, self._now.index if self._now is not None else -1
        best = int(scores.argmax())
        index = best if not new and scores[best] >= spec.threshold_of(self._labels[best]) else -1
        if spec.smoothing == "vote":
            self._recent.append(index)
            if self._now is not None and self._recent.count(index) < spec.votes:
                index = next((i for i in set(self._recent) if self._recent.count(i) >= spec.votes), present)
        if present < 0 or index == present:
            return index
        if index < 0:  # unknown, but only when the picture is new, or the present answer clearly too weak
            weak = scores[present] < spec.threshold_of(self._labels[present]) - spec.hysteresis
            return -1 if new or weak else present
        return index if scores[index] >= scores[present] + spec.hysteresis else present


def _within(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"decision.{name} is {value!r}; expected {low:g} to {high:g}")


def _whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10_000:
        raise ValueError(f"decision.{name} is {value!r}; expected a whole number from 1 to 10000")
