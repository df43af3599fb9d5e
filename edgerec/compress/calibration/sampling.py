"""Sampling methods for calibration recipes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgerec.data import Dataset
from edgerec.data.near_duplicates import Indices, farthest_first, thumbnails

# The method ``diverse`` considers at most this number of candidate images per class.
MOST_CANDIDATES = 500

# A sampler takes the arguments ``(dataset, part, count, rng)``, and returns ``count`` positions from ``part``.
Sampler = Callable[[Dataset, Indices, int, np.random.Generator], Indices]


def stratified(dataset: Dataset, part: Indices, count: int, rng: np.random.Generator) -> Indices:
    """Sample images at random, balanced across classes as far as possible."""
    return _round_robin([rng.permutation(members) for members in _by_class(dataset, part)], count, rng)


def random(dataset: Dataset, part: Indices, count: int, rng: np.random.Generator) -> Indices:
    """Draw a simple random sample of the images."""
    return rng.permutation(part)[:count]


def diverse(dataset: Dataset, part: Indices, count: int, rng: np.random.Generator) -> Indices:
    """Sample the same number of diverse images from each class.

    The method is greedy k-center (O. Sener, S. Savarese, arXiv:1708.00489) on thumbnails instead of features.
    """
    orders = []
    for members in _by_class(dataset, part):
        candidates = rng.permutation(members)[:MOST_CANDIDATES]
        orders.append(candidates[farthest_first(thumbnails(dataset.images[candidates]), count)])
    return _round_robin(orders, count, rng)


SAMPLING_METHODS: dict[str, Sampler] = {"stratified": stratified, "random": random, "diverse": diverse}


def _by_class(dataset: Dataset, part: Indices) -> list[Indices]:
    classes = dataset.classes[part]
    return [part[classes == index] for index in range(len(dataset.labels))]


def _round_robin(orders: Sequence[Indices], count: int, rng: np.random.Generator) -> Indices:
    """Return ``count`` image positions, picking from each class in turn."""
    if count < len(orders):  # choose the classes at random
        orders = [orders[i] for i in rng.permutation(len(orders))]
    rounds = [order[turn] for turn in range(max(map(len, orders))) for order in orders if turn < len(order)]
    return np.array(rounds[:count], np.int64)
