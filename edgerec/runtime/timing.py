"""How long models take, one against the other, on the machine that this runs on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgerec.contract.preprocess import Image
from edgerec.runtime.model import ImageModel

WARM_UP = 5


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one picture, from pixels to stored scores: median, 95th percentile, and over how many."""

    median_ms: float
    p95_ms: float
    rounds: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def time_models(
    models: Mapping[str, tuple[ImageModel, Image]], *, budget_s: float = 2.0, most_rounds: int = 1000
) -> dict[str, Timing]:
    """Time models in turn, in another order each round, so that what else the machine does falls on all of them alike.

    Args:
        models: by name, each with uint8 pixels ``(height, width, channels)`` for it.
        budget_s: about how long this may take for each model; a slow one gets fewer rounds, at least 20.
        most_rounds: at most so many.
    """
    taken: dict[str, list[float]] = {name: [] for name in models}
    for model, pixels in models.values():
        for _ in range(WARM_UP):
            model.invoke(pixels)
    order = np.random.default_rng(0)
    began = time.perf_counter()
    for done in range(most_rounds):
        if done >= 20 and time.perf_counter() - began > budget_s * len(models):
            break
        for name in order.permutation(list(models)):
            model, pixels = models[name]
            model.invoke(pixels)  # the one before left the caches to itself
            start = time.perf_counter_ns()
            model.invoke(pixels)
            taken[name].append((time.perf_counter_ns() - start) / 1e6)
    return {name: Timing(float(np.median(ms)), float(np.percentile(ms, 95)), len(ms)) for name, ms in taken.items()}
