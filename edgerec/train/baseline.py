"""Compare an accuracy with the majority-class baseline, i.e. always predicting the most frequent class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# Number of standard deviations by which an accuracy must exceed the baseline to be significantly better.
DEVIATIONS = 2.0


def majority_level(metrics: Mapping[str, Any]) -> float:
    """Return the fraction of images that belong to the most frequent class, or 0 if there are no classes."""
    counts = [float(row["support"]) for row in metrics.get("per_class", {}).values()]
    return max(counts) / sum(counts) if sum(counts) else 0.0


def is_near(accuracy: float, level: float, images: int) -> bool:
    """Return whether an accuracy is not significantly better than the baseline accuracy ``level``.

    The result is False if the accuracy is 1, or if there are no images or classes.
    """
    if not images or not level:
        return False
    margin = DEVIATIONS * math.sqrt(level * (1 - level) / images)
    return accuracy < 1.0 and accuracy <= level + margin


def warning(metrics: Mapping[str, Any]) -> str:
    """Return a warning if the accuracy is near the majority-class baseline, otherwise an empty string.

    Args:
        metrics: a dictionary with ``accuracy``, ``images`` and ``per_class``, such as the content of ``metrics.json``.
    """
    level = majority_level(metrics)
    if not is_near(metrics["accuracy"], level, metrics["images"]):
        return ""
    return (
        f"the accuracy of {metrics['accuracy']:.1%} on {metrics['images']} images is not clearly better than always "
        f"predicting the most frequent class ({level:.1%}): the model has hardly learned to distinguish the classes"
    )


ADVICE = "run 'edgerec data check', then add images, or train with more epochs or another architecture"
