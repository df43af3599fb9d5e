"""Convert model scores to a prediction for an image. :mod:`~edgerec.contract.smoothing` handles video streams."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

UNKNOWN = "unknown"
Smoothing = Literal["none", "mean", "vote"]
# Minimum score, half an int8 quantization step, which prevents the logarithm of 0.
_MIN_SCORE = 1 / 512
# The mean score has a small weight, because it only breaks ties between classes with the same number of votes.
_TIE_WEIGHT = 1e-3
# Images with a higher relative novelty are classified as unknown.
MAX_RELATIVE_NOVELTY = 0.5

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class DecisionSpec:
    """Settings for converting scores to predictions.

    Attributes:
        threshold: minimum calibrated score, 0 to 1. If the best score is lower, the prediction is ``unknown`` with
            index −1. With 0, the best class is always predicted.
        top_k: number of categories in a classification.
        temperature: temperature for calibrating the scores by temperature scaling (arXiv:1706.04599). With 1, scores
            are unchanged.
        thresholds: minimum calibrated scores for individual labels, which replace ``threshold`` for these labels.
        smoothing: smoothing over the frames of a stream: ``none``, ``mean`` (exponential moving average of the scores
            over about ``memory`` frames) or ``vote`` (the label of at least ``votes`` of the last ``memory`` frames).
        memory: number of frames for smoothing.
        votes: minimum number of votes within ``memory`` frames.
        hysteresis: margin, 0 to 1, by which another class's score must exceed the current class's score.
        least_s: minimum duration of a decision, in seconds.
        novelty: maximum reconstruction error of an image as a multiple of the autoencoder's threshold. If the error is
            higher, the prediction is ``unknown`` regardless of the scores. 0 disables this check. Without an
            autoencoder in the bundle, this setting has no effect.
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
        _check_range("threshold", self.threshold, 0, 1)
        _check_integer("top_k", self.top_k)
        _check_range("temperature", self.temperature, 0.01, 100)
        if not isinstance(self.thresholds, Mapping):
            raise ValueError(
                f"decision.thresholds is {self.thresholds!r}; expected an object that maps labels to numbers"
            )
        for label, value in self.thresholds.items():
            _check_range(f"thresholds[{label!r}]", value, 0, 1)
        if self.smoothing not in get_args(Smoothing):
            raise ValueError(
                f"decision.smoothing is {self.smoothing!r}; expected one of {', '.join(get_args(Smoothing))}"
            )
        _check_integer("memory", self.memory)
        _check_integer("votes", self.votes)
        if self.smoothing == "vote" and self.votes > self.memory:
            raise ValueError(f"decision.votes is {self.votes}, but must not exceed decision.memory ({self.memory})")
        _check_range("hysteresis", self.hysteresis, 0, 1)
        _check_range("least_s", self.least_s, 0, 86400)
        _check_range("novelty", self.novelty, 0, 1000)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-serializable dictionary."""
        return vars(self) | {"thresholds": dict(self.thresholds)}

    def for_single(self) -> DecisionSpec:
        """Return a copy of the settings without smoothing, for classifying independent images."""
        return replace(self, smoothing="none", hysteresis=0.0, least_s=0.0)

    def threshold_of(self, label: str) -> float:
        """Return the minimum calibrated score for predicting ``label``."""
        return self.thresholds.get(label, self.threshold)

    def relative_novelty(self, novelty: float | None) -> float:
        """Scale a novelty to the range [0, 1], where 0.5 corresponds to the limit ``self.novelty``.

        Return 0 if ``novelty`` is None or the check is disabled, and 1 if ``novelty`` is NaN.
        """
        if novelty is None or not self.novelty:
            return 0.0
        ratio = novelty / (2 * self.novelty)
        return ratio if ratio <= 1 else 1.0  # also 1.0 if the ratio is NaN


@dataclass(frozen=True)
class Category:
    """A class and its score in [0, 1]."""

    label: str
    index: int
    score: float


@dataclass(frozen=True)
class Classification:
    """The prediction for a single image.

    Attributes:
        label, index: the best class; ``unknown`` and −1 if its score is below the threshold or the image is novel.
        score: score of the best class, even if the label is ``unknown``.
        categories: the ``top_k`` classes, best first.
        scores: scores of all classes before calibration, float32 ``(classes,)``, in [0, 1].
        novelty: the image's reconstruction error divided by the autoencoder's threshold, or None if the bundle has no
            autoencoder.
        finite: False if the model returned scores that are NaN or infinite. In this case, the label is ``unknown``.
    """

    label: str
    index: int
    score: float
    categories: tuple[Category, ...]
    scores: Scores
    novelty: float | None = None
    finite: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as a JSON-serializable dictionary, without the scores of all classes."""
        return {
            "label": self.label,
            "index": self.index,
            "score": self.score,
            "categories": [vars(category).copy() for category in self.categories],
            **({} if self.novelty is None else {"novelty": round(self.novelty, 4)}),
        }


@dataclass(frozen=True)
class Decision:
    """The prediction for a video stream, smoothed over several frames.

    Attributes:
        label, index: the predicted class; ``unknown`` and −1 if there is none.
        score: calibrated and smoothed score of the class, in [0, 1]; the best score if the label is ``unknown``.
        since_s: capture time of the first frame with this decision, in seconds.
        changed: whether the decision changed with this frame.
    """

    label: str
    index: int
    score: float
    since_s: float
    changed: bool


def calibrated(scores: Scores, temperature: float) -> Scores:
    """Return temperature-scaled scores, ``softmax(log(scores) / temperature)``, of shape ``(…, classes)``."""
    if temperature == 1.0:
        return scores
    powers = np.maximum(scores, _MIN_SCORE).astype(np.float64) ** (1 / temperature)
    return (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)


def _mean(scores: Scores) -> Scores:
    return scores.mean(axis=0)


def _vote(scores: Scores) -> Scores:
    votes = np.bincount(scores.argmax(axis=1), minlength=scores.shape[1])
    return ((votes + _TIE_WEIGHT * scores.mean(axis=0)) / (len(scores) + _TIE_WEIGHT)).astype(np.float32)


# Functions that combine an ensemble's scores, an array of shape (models, classes), into one score per class.
COMBINATIONS: dict[str, Callable[[Scores], Scores]] = {"mean": _mean, "vote": _vote}


def fit_temperature(scores: Scores, classes: npt.NDArray[np.int64]) -> float:
    """Return the temperature between 0.05 and 20 that minimizes the negative log-likelihood of the true classes.

    The loss is convex in the inverse temperature (arXiv:1706.04599, section 4.2), so a ternary search over the
    logarithm of the temperature finds the minimum. If every image is classified correctly, the loss has no minimum and
    decreases as the temperature approaches 0. All images would then get scores near 1, even images that show none of
    the classes. Therefore, the temperature is at least 1 in this case.

    Args:
        scores: probabilities, float32 ``(N, classes)``.
        classes: true class of each image, int64 ``(N,)``.
    """
    logs = np.log(np.maximum(scores, _MIN_SCORE).astype(np.float64))
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
    """Return each label's lowest threshold at which its predictions reach the requested precision.

    Args:
        scores: calibrated scores of images that were not used for training, float32 ``(N, classes)``.
        classes: true class of each image, int64 ``(N,)``.
        labels: label of each class.
        precision: fraction of each label's predictions that must be correct, 0 to 1.

    Returns:
        A dictionary that maps labels to thresholds. A threshold is 1 if no lower threshold reaches the precision.
    """
    thresholds, best = {}, scores.argmax(axis=1)
    for index, label in enumerate(labels):
        predicted = best == index
        order = np.argsort(-scores[predicted, index], kind="stable")
        sorted_scores, correct = scores[predicted, index][order], (classes[predicted] == index)[order]
        # A threshold cannot separate equal scores.
        last = np.append(sorted_scores[1:] < sorted_scores[:-1], True) if len(order) else np.zeros(0, bool)
        precise = np.flatnonzero(last & (np.cumsum(correct) >= precision * np.arange(1, len(order) + 1)))
        thresholds[label] = float(np.floor(float(sorted_scores[precise[-1]]) * 1e4) / 1e4) if len(precise) else 1.0
    return thresholds


def decide(scores: Scores, labels: Sequence[str], spec: DecisionSpec, novelty: float | None = None) -> Classification:
    """Classify an image from its novelty and its float32 scores of shape ``(classes,)``.

    Classes with equal scores are ordered by index. If any score is NaN or infinite, the label is unknown, and 0
    replaces these scores.
    """
    order = np.argsort(-scores, kind="stable")
    finite = math.isfinite(scores[order[0]]) and math.isfinite(scores[order[-1]])  # NaN is sorted last
    if not finite:
        scores = np.nan_to_num(scores, nan=0.0, posinf=0.0, neginf=0.0)
        order = np.argsort(-scores, kind="stable")
    categories = tuple(Category(labels[i], i, float(scores[i])) for i in order[: spec.top_k].tolist())
    best = categories[0]
    unsure = float(calibrated(scores, spec.temperature)[best.index]) < spec.threshold_of(best.label)
    if unsure or not finite or spec.relative_novelty(novelty) > MAX_RELATIVE_NOVELTY:
        return Classification(UNKNOWN, -1, best.score, categories, scores, novelty, finite)
    return Classification(best.label, best.index, best.score, categories, scores, novelty)


def _check_range(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"decision.{name} is {value!r}; expected {low:g} to {high:g}")


def _check_integer(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10_000:
        raise ValueError(f"decision.{name} is {value!r}; expected an integer from 1 to 10000")
