"""How alike pictures are, seen from afar: small enough to compare all with all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.utils.optional import require

Thumbnails = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

SIDE_PX = 8
# So many are compared with so many at once.
BLOCK = 2048
# Pictures no farther apart than this are near duplicates. Measured in grey levels on digits, hand signs and
# CIFAR-10: the same picture again as JPEG, with noise or brighter 0.5 to 4, two different pictures 9 and more.
NEAR_LEVELS = 4.0
# Thin strokes in few places, as handwritten ones, come nearer than that. In 16×16 cells nine of ten such pairs of MNIST
# are farther apart than this; the same picture as JPEG, enlarged or brighter is not (median 1.5 to 5.5).
FINE_PX, FINE_LEVELS = 16, 5.5


def thumbnails(images: npt.NDArray[np.uint8], side_px: int = SIDE_PX) -> Thumbnails:
    """Pictures ``(N, H, W, C)`` as float32 ``(N, 64·C)``: the means of 8×8 cells, about the picture's own mean, so
    that another exposure of a scene stays near it."""
    cv2 = require("cv2")
    cells = np.empty((len(images), side_px * side_px * images.shape[3]), np.float32)
    for row, image in zip(cells, images, strict=True):
        small = cv2.resize(np.asarray(image), (side_px, side_px), interpolation=cv2.INTER_AREA)
        row[:] = small.reshape(-1)
    return cells - cells.mean(axis=1, keepdims=True)


def distances(some: Thumbnails, others: Thumbnails) -> npt.NDArray[np.float32]:
    """Root mean square difference of all pairs in grey levels, ``(len(some), len(others))``."""
    squares = (some**2).sum(axis=1)[:, None] + (others**2).sum(axis=1)[None] - 2 * some @ others.T
    return np.sqrt(np.maximum(squares, 0) / some.shape[1])


def to_nearest_other(some: Thumbnails) -> npt.NDArray[np.float32]:
    """How far each one's nearest neighbour among the others is, ``(N,)``, for two or more."""
    apart = distances(some, some)
    np.fill_diagonal(apart, np.inf)
    return apart.min(axis=1)


def farthest_first(some: Thumbnails, count: int) -> npt.NDArray[np.int64]:
    """The first one, then always the one that is farthest from all chosen (T. F. Gonzalez, 1985)."""
    chosen = [0]
    apart = distances(some[:1], some)[0]
    while len(chosen) < min(count, len(some)):
        chosen.append(int(apart.argmax()))
        apart = np.minimum(apart, distances(some[chosen[-1:]], some)[0])
    return np.array(chosen, np.int64)


@dataclass(frozen=True)
class Pairs:
    """Pictures that are alike: ``one[i]`` and ``other[i]``, the later one, are ``apart[i]`` grey levels apart."""

    one: npt.NDArray[np.int64]
    other: npt.NDArray[np.int64]
    apart: npt.NDArray[np.float32]


def near_pairs(some: Thumbnails, tags: Sequence[npt.NDArray[Any]], most_levels: float = NEAR_LEVELS) -> Pairs:
    """Find the nearest neighbor of each image within a distance of ``most_levels`` gray levels.

    Each array in ``tags`` has one tag per image, such as its split or class. For each of these arrays, the nearest
    neighbor with a different tag is returned as well. The number of pairs is therefore at most
    ``len(some) * (1 + len(tags))``, even if many images are near-duplicates.

    The search is exact, but compares only images whose projections onto the first principal component are close. This
    is sufficient, because the distance of two projections is never greater than the distance of the images.
    """
    along = _main_direction(some)
    order = np.argsort(along, kind="stable")
    along, sorted_ = along[order], some[order]
    tags = [tag[order] for tag in tags]
    reach = most_levels * np.sqrt(some.shape[1])
    nearest = [_Nearest(len(some)) for _ in (None, *tags)]
    for start in range(0, len(some), BLOCK):
        end = min(start + BLOCK, len(some))
        last = int(np.searchsorted(along, along[end - 1] + reach, side="right"))
        for begin in range(start, last, BLOCK):
            stop = min(begin + BLOCK, last)
            apart = distances(sorted_[start:end], sorted_[begin:stop])
            row, column = np.nonzero(apart <= most_levels)
            one, other, levels = row + start, column + begin, apart[row, column]
            later = other > one
            one, other, levels = one[later], other[later], levels[later]
            for tag, best in zip((None, *tags), nearest, strict=True):
                chosen = np.ones(len(one), bool) if tag is None else tag[one] != tag[other]
                best.update(one[chosen], other[chosen], levels[chosen])
                best.update(other[chosen], one[chosen], levels[chosen])
    pairs, levels = (np.concatenate(parts) for parts in zip(*(best.pairs(order) for best in nearest), strict=True))
    pairs, first = np.unique(pairs, axis=0, return_index=True)
    return Pairs(pairs[:, 0], pairs[:, 1], levels[first])


class _Nearest:
    """Nearest neighbor of each image among all pairs that were passed to :meth:`update`."""

    def __init__(self, count: int) -> None:
        self._partner = np.full(count, -1, np.int64)
        self._levels = np.full(count, np.inf, np.float32)

    def update(self, images: Indices, partners: Indices, levels: npt.NDArray[np.float32]) -> None:
        """Replace the stored neighbors of ``images`` by ``partners`` where these are nearer."""
        by_distance = np.argsort(levels, kind="stable")
        candidates, first = np.unique(images[by_distance], return_index=True)
        rows = by_distance[first]
        nearer = levels[rows] < self._levels[candidates]
        self._partner[candidates[nearer]] = partners[rows[nearer]]
        self._levels[candidates[nearer]] = levels[rows[nearer]]

    def pairs(self, order: Indices) -> tuple[Indices, npt.NDArray[np.float32]]:
        """Return the pairs of original positions ``(M, 2)``, the smaller one first, and the distances ``(M,)``."""
        images = np.flatnonzero(self._partner >= 0)
        pairs = np.stack([order[images], order[self._partner[images]]], axis=1)
        return np.sort(pairs, axis=1), self._levels[images]


def confirmed(pairs: Pairs, images: Any) -> Pairs:
    """Return the pairs that are also near-duplicates at a finer resolution.

    Args:
        pairs: candidate pairs.
        images: array-like; ``images[positions]`` must return ``(M, H, W, C)``.
    """
    kept = np.zeros(len(pairs.one), bool)
    for start in range(0, len(kept), BLOCK):
        end = start + BLOCK
        one, other = (thumbnails(images[some[start:end]], FINE_PX) for some in (pairs.one, pairs.other))
        kept[start:end] = np.sqrt(((one - other) ** 2).mean(axis=1)) <= FINE_LEVELS
    return Pairs(pairs.one[kept], pairs.other[kept], pairs.apart[kept])


def _main_direction(some: Thumbnails) -> npt.NDArray[np.float32]:
    """Return the projection of each thumbnail onto the first principal component, in gray levels."""
    centred = some - some.mean(axis=0)
    return centred @ np.linalg.eigh(centred.T @ centred)[1][:, -1]
