"""Which training pictures go into a calibration set: the methods that its recipes name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgerec.data import Dataset
from edgerec.data.near_duplicates import farthest_first, thumbnails
from edgerec.data.split import Indices

# Of each class, so many at most are looked at to find different ones.
MOST_CANDIDATES = 500

# (data set, the part to pick from, how many, seeded generator) -> positions in the data set
Method = Callable[[Dataset, Indices, int, np.random.Generator], Indices]


def stratified(dataset: Dataset, part: Indices, count: int, rng: np.random.Generator) -> Indices:
    """By chance, as evenly over the classes as they allow."""
    return _in_turn([rng.permutation(members) for members in _by_class(dataset, part)], count, rng)


def random(dataset: Dataset, part: Indices, count: int, rng: np.random.Generator) -> Indices:
    """By chance, so that frequent classes stay frequent."""
    return rng.permutation(part)[:count]


def diverse(dataset: Dataset, part: Indices, count: int, rng: np.random.Generator) -> Indices:
    """As evenly over the classes, and in each class pictures that are far from one another: k-center greedy
    (O. Sener, S. Savarese, arXiv:1708.00489), on thumbnails in place of features."""
    orders = []
    for members in _by_class(dataset, part):
        some = rng.permutation(members)[:MOST_CANDIDATES]
        orders.append(some[farthest_first(thumbnails(dataset.images[some]), count)])
    return _in_turn(orders, count, rng)


METHODS: dict[str, Method] = {"stratified": stratified, "random": random, "diverse": diverse}


def _by_class(dataset: Dataset, part: Indices) -> list[Indices]:
    classes = dataset.classes[part]
    return [part[classes == index] for index in range(len(dataset.labels))]


def _in_turn(orders: Sequence[Indices], count: int, rng: np.random.Generator) -> Indices:
    """One of each class, then the second of each …, until there are enough."""
    if count < len(orders):  # not the first classes of the alphabet
        orders = [orders[i] for i in rng.permutation(len(orders))]
    rounds = [order[turn] for turn in range(max(map(len, orders))) for order in orders if turn < len(order)]
    return np.array(rounds[:count], np.int64)
