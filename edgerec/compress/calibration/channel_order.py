"""Whether pictures have red and blue exchanged, judged by the colours of training pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgerec.utils.optional import require

# Colours are looked at in so many cells a side, of pictures of so many pixels a side.
CELLS, SIDE_PX = 4, 16
# Standard errors between the evidence and a toss-up; one false alarm in 700 sets if it were normally distributed.
CERTAIN = 3.0


@dataclass(frozen=True)
class Order:
    """``swapped`` and ``certain`` are both False where colours do not tell; ``reason`` has the figures."""

    swapped: bool
    certain: bool
    reason: str


def judge_order(
    images: npt.NDArray[np.uint8],
    classes: npt.NDArray[np.int64] | None,
    known: npt.NDArray[np.uint8],
    known_classes: npt.NDArray[np.int64],
) -> Order:
    """Judge RGB pictures ``(N, H, W, 3)`` against known ones of the same kind.

    A picture's features change their sign when red and blue are exchanged (red minus blue in 4×4 cells, and how
    their contrasts compare). A linear discriminant between known pictures and their exchanged copies, the mean of
    each class of its own where the classes are given, scores every picture: positive is the known order. It is fitted
    on one half of the known pictures and its mean and spread are taken on the other half. The set's order is certain
    where its mean score is more than :data:`CERTAIN` standard errors from zero.

    It cannot tell for grey pictures, for few ones, and for data whose red and blue are alike; pictures of other
    cameras or light, or without classes and of one class only, can be judged wrongly.
    """
    known_features = _features(known)
    groups = known_classes if classes is not None else np.zeros(len(known), np.int64)
    own = classes if classes is not None else np.zeros(len(images), np.int64)
    weights = _discriminant(known_features[::2], groups[::2], int(max(groups.max(), own.max())) + 1)
    held = (known_features[1::2] * weights[groups[1::2]]).sum(axis=1)
    scores = (_features(images) * weights[own]).sum(axis=1)
    error = max(float(held.std()), 1e-9) / np.sqrt(len(scores))
    evidence, expected = float(scores.mean()) / error, float(held.mean()) / error
    reason = f"{evidence:+.1f} standard errors, training pictures have {expected:+.1f}"
    # Evidence counts for nothing where training pictures themselves would give none.
    certain = abs(evidence) > CERTAIN and expected > CERTAIN
    return Order(certain and evidence < 0, certain, reason)


def _features(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """``(N, 18)``, each the negative of what it is for the picture with red and blue exchanged."""
    cv2 = require("cv2")
    found = []
    for image in images:
        small = cv2.resize(np.asarray(image), (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
        cells = small.reshape(CELLS, SIDE_PX // CELLS, CELLS, SIDE_PX // CELLS, 3).mean(axis=(1, 3))
        red, green, blue = (small - small.mean(axis=(0, 1))).transpose(2, 0, 1)
        contrast = np.log((red.std() + 1) / (blue.std() + 1))
        follows = ((red - blue) * green).mean() / (green.var() + 1)
        found.append([*(cells[..., 0] - cells[..., 2]).reshape(-1) / 255, contrast, follows])
    return np.array(found, np.float64)


def _discriminant(
    features: npt.NDArray[np.float64], groups: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.float64]:
    """Fisher's weights for each group against its mirror image, ``(count, features)``."""
    overall = features.mean(axis=0)
    # A small group's mean is drawn towards that of all.
    sums = np.stack([features[groups == group].sum(axis=0) for group in range(count)])
    sizes = np.bincount(groups, minlength=count)[:, np.newaxis]
    means = (sums + 5 * overall) / (sizes + 5)
    within = features - means[groups]
    spread = within.T @ within / max(1, len(features))
    spread += np.eye(len(spread)) * (1e-3 * np.trace(spread) / len(spread) + 1e-9)
    return np.linalg.solve(spread, means.T).T
