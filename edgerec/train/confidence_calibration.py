"""Measure the expected calibration error and the reliability diagram of a classifier.

scikit-learn's ``calibration_curve`` is not used, because it does not return the number of images in each bin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgerec.utils.optional import require

# Number of bins in the reliability diagram, as in arXiv:1706.04599.
BINS = 15


def wilson_interval(fraction: float, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval (Wilson score interval) for a fraction measured on ``count`` images.

    Returns:
        The lower and the upper limit, 0 to 1.
    """
    if count < 1:
        return 0.0, 1.0
    low, high = require("scipy.stats").binomtest(round(fraction * count), count).proportion_ci(method="wilson")
    return float(low), float(high)


@dataclass(frozen=True)
class Bin:
    """A bin of a reliability diagram, for images whose highest score is in the interval (``low``, ``high``].

    Attributes:
        images: number of images.
        score: mean highest score, 0 to 1, or None if there are no images.
        accuracy: accuracy, 0 to 1, or None if there are no images.
    """

    low: float
    high: float
    images: int
    score: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Reliability:
    """The expected calibration error and the reliability diagram of a classifier.

    Attributes:
        ece: expected calibration error, 0 to 1: mean difference between score and accuracy over the bins, weighted by
            the number of images (arXiv:1706.04599, equation 3).
        score: mean highest score of all images, 0 to 1. If it is greater than ``accuracy``, the model is overconfident.
        accuracy: accuracy, 0 to 1.
        images: number of images.
        bins: bins of equal width from 0 to 1.
    """

    ece: float
    score: float
    accuracy: float
    images: int
    bins: tuple[Bin, ...]


def reliability(scores: npt.NDArray[np.float32], classes: npt.NDArray[np.int64], bins: int = BINS) -> Reliability:
    """Compute the expected calibration error and the reliability diagram.

    Args:
        scores: float32 ``(N, classes)``, 0 to 1.
        classes: index of the true class of each image, int64 ``(N,)``.
        bins: number of bins.
    """
    best = scores.max(axis=1).astype(np.float64)
    correct = scores.argmax(axis=1) == classes
    edges = np.linspace(0, 1, bins + 1)
    bin_index = np.digitize(best, edges[1:-1], right=True)
    count = np.bincount(bin_index, minlength=bins)
    total_score = np.bincount(bin_index, weights=best, minlength=bins)
    total_correct = np.bincount(bin_index, weights=correct, minlength=bins)
    return Reliability(
        ece=float(np.abs(total_correct - total_score).sum() / len(best)),
        score=float(best.mean()),
        accuracy=float(correct.mean()),
        images=len(best),
        bins=tuple(
            Bin(
                float(edges[i]),
                float(edges[i + 1]),
                int(count[i]),
                float(total_score[i] / count[i]) if count[i] else None,
                float(total_correct[i] / count[i]) if count[i] else None,
            )
            for i in range(bins)
        ),
    )
