"""Methods by which calibration recipes draw training images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgerec.data import Dataset
from edgerec.data.near_duplicates import farthest_first, thumbnails
from edgerec.data.split import Indices

# Maximum number of images per class that are compared to find images that differ from each other.
MOST_CANDIDATES = 500

# (data set, positions to draw from, number of images, random generator) -> positions in the data set
Method = Callable[[Dataset, Indices, int, np.random.Generator], Indices]


def stratified(dataset: Dataset, part: Indices, count: int, rng: np.random.Generator) -> Indices:
    """Draw images at random, with the same number for each class as far as possible."""
    return _round_robin([rng.permutation(members) for members in _by_class(dataset, part)], count, rng)


def random(dataset: Dataset, part: Indices, count: int, rng: np.random.Generator) -> Indices:
    """Draw images at random, so that the classes keep their frequencies."""
    return rng.permutation(part)[:count]


def diverse(dataset: Dataset, part: Indices, count: int, rng: np.random.Generator) -> Indices:
    """Draw the same number for each class, and in each class images that differ much from each other.

    The method is greedy k-center (O. Sener, S. Savarese, arXiv:1708.00489) on thumbnails instead of features.
    """
    orders = []
    for members in _by_class(dataset, part):
        candidates = rng.permutation(members)[:MOST_CANDIDATES]
        orders.append(candidates[farthest_first(thumbnails(dataset.images[candidates]), count)])
    return _round_robin(orders, count, rng)


METHODS: dict[str, Method] = {"stratified": stratified, "random": random, "diverse": diverse}


def _by_class(dataset: Dataset, part: Indices) -> list[Indices]:
    classes = dataset.classes[part]
    return [part[classes == index] for index in range(len(dataset.labels))]


def _round_robin(orders: Sequence[Indices], count: int, rng: np.random.Generator) -> Indices:
    """Return one position of each class, then a second one of each, and so on, until there are ``count``."""
    if count < len(orders):  # choose random classes instead of the first ones in the alphabet
        orders = [orders[i] for i in rng.permutation(len(orders))]
    rounds = [order[turn] for turn in range(max(map(len, orders))) for order in orders if turn < len(order)]
    return np.array(rounds[:count], np.int64)
