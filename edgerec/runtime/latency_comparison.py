"""Compare the latency of models on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgerec.contract.preprocess import Image
from edgerec.runtime.image_model import ImageModel


@dataclass(frozen=True)
class Timing:
    """A model's latency in milliseconds, excluding preprocessing and postprocessing.

    Attributes:
        median_ms, p95_ms: median and 95th percentile.
        rounds: number of measurements.
    """

    median_ms: float
    p95_ms: float
    rounds: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-serializable dictionary."""
        return asdict(self)


def time_models(
    models: Mapping[str, tuple[ImageModel, Image]],
    *,
    budget_s: float = 2.0,
    least_rounds: int = 20,
    most_rounds: int = 1000,
) -> dict[str, Timing]:
    """Measure the latency of one or more models.

    In each round, every model runs once, in random order so that other load on the machine affects all models equally.

    Args:
        models: dictionary that maps names to models, each with a uint8 input image of shape
            ``(height, width, channels)``.
        budget_s: approximate time limit for each model in seconds.
        least_rounds: minimum number of rounds, even if they exceed the time limit.
        most_rounds: maximum number of rounds.
    """
    times_ms: dict[str, list[float]] = {name: [] for name in models}
    generator = np.random.default_rng(0)
    began = time.perf_counter()
    for number in range(most_rounds):
        if number >= least_rounds and time.perf_counter() - began > budget_s * len(models):
            break
        for name in generator.permutation(list(models)):
            model, pixels = models[name]
            model.invoke(pixels)  # Warm up the CPU caches.
            start = time.perf_counter_ns()
            model.invoke(pixels)
            times_ms[name].append((time.perf_counter_ns() - start) / 1e6)
    return {name: Timing(float(np.median(ms)), float(np.percentile(ms, 95)), len(ms)) for name, ms in times_ms.items()}
