"""How alike pictures are, seen from afar: small enough to compare all with all."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgerec.optional import require

Thumbnails = npt.NDArray[np.float32]

SIDE_PX = 8
# Pictures no farther apart than this are near duplicates. Measured in grey levels on digits, hand signs and
# CIFAR-10: the same picture again as JPEG, with noise or brighter 0.5 to 4, two different pictures 9 and more.
NEAR_LEVELS = 4.0


def thumbnails(images: npt.NDArray[np.uint8]) -> Thumbnails:
    """Pictures ``(N, H, W, C)`` as float32 ``(N, 64·C)``: the means of 8×8 cells, about the picture's own mean, so
    that another exposure of a scene stays near it."""
    cv2 = require("cv2")
    cells = np.empty((len(images), SIDE_PX * SIDE_PX * images.shape[3]), np.float32)
    for row, image in zip(cells, images, strict=True):
        small = cv2.resize(np.asarray(image), (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)
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
