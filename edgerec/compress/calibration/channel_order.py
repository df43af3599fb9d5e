"""Detect swapped red and blue channels by comparing the images' colors with those of training images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgerec.utils.optional import require

# Images are reduced to this width and height before their colors are compared.
SIDE_PX = 16
# Colors are compared in a grid with this number of rows and columns.
CELLS = 4
# The channel order is certain if the mean score is more than this number of standard errors from zero.
# At three standard errors, about 1 in 700 correct calibration sets is reported as swapped.
CERTAIN = 3.0


@dataclass(frozen=True)
class ChannelOrder:
    """Estimated channel order.

    Attributes:
        swapped: whether red and blue are swapped; False if this is uncertain.
        certain: whether the estimate is certain.
        reason: the evidence for the estimate, in standard errors.
    """

    swapped: bool
    certain: bool
    reason: str


def estimate_channel_order(
    images: npt.NDArray[np.uint8],
    classes: npt.NDArray[np.int64] | None,
    known: npt.NDArray[np.uint8],
    known_classes: npt.NDArray[np.int64],
) -> ChannelOrder:
    """Estimate whether the images' red and blue channels are swapped.

    An image's features are red minus blue in 4×4 cells, and a comparison of the red and blue contrasts. Their signs
    flip if red and blue are swapped. A linear discriminant between known images and their swapped copies computes a
    score for each image, which is positive for the known order. If the classes are given, the discriminant uses a
    separate mean for each class. The discriminant is fitted to one half of the known images, and the mean and standard
    deviation of the scores are computed from the other half. The order is certain if the mean score of the images is
    more than :data:`CERTAIN` standard errors from zero.

    The result is uncertain for grayscale images, for few images, and for data with similar red and blue channels. The
    result can be wrong for images from other cameras or in different light, or for images of one class if ``classes``
    is None.

    Args:
        images: images to check, uint8 ``(N, H, W, 3)``.
        classes: class of each image, or None if the classes are unknown.
        known: images in RGB order with similar content, uint8 ``(M, H, W, 3)``.
        known_classes: class of each known image.
    """
    known_features = _features(known)
    groups = known_classes if classes is not None else np.zeros(len(known), np.int64)
    own = classes if classes is not None else np.zeros(len(images), np.int64)
    weights = _discriminant(known_features[::2], groups[::2], int(max(groups.max(), own.max())) + 1)
    held_out_scores = (known_features[1::2] * weights[groups[1::2]]).sum(axis=1)
    scores = (_features(images) * weights[own]).sum(axis=1)
    error = max(float(held_out_scores.std()), 1e-9) / np.sqrt(len(scores))
    evidence, expected = float(scores.mean()) / error, float(held_out_scores.mean()) / error
    reason = f"{evidence:+.1f} standard errors, training images have {expected:+.1f}"
    # The result is also uncertain if training images, whose channel order is known, would give an uncertain result.
    certain = abs(evidence) > CERTAIN and expected > CERTAIN
    return ChannelOrder(certain and evidence < 0, certain, reason)


def _features(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Return features that change sign if red and blue are swapped, as a float64 array of shape ``(N, 18)``."""
    cv2 = require("cv2")
    rows = []
    for image in images:
        small = cv2.resize(np.asarray(image), (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
        cells = small.reshape(CELLS, SIDE_PX // CELLS, CELLS, SIDE_PX // CELLS, 3).mean(axis=(1, 3))
        red, green, blue = (small - small.mean(axis=(0, 1))).transpose(2, 0, 1)
        contrast = np.log((red.std() + 1) / (blue.std() + 1))
        follows = ((red - blue) * green).mean() / (green.var() + 1)
        rows.append([*(cells[..., 0] - cells[..., 2]).reshape(-1) / 255, contrast, follows])
    return np.array(rows, np.float64)


def _discriminant(
    features: npt.NDArray[np.float64], groups: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.float64]:
    """Return the Fisher discriminant weights that separate each group from its color-swapped copy.

    The weights have the shape ``(count, features)``.
    """
    overall = features.mean(axis=0)
    # Means of small groups are unreliable, so they are shrunk toward the overall mean.
    sums = np.stack([features[groups == group].sum(axis=0) for group in range(count)])
    sizes = np.bincount(groups, minlength=count)[:, np.newaxis]
    means = (sums + 5 * overall) / (sizes + 5)
    within = features - means[groups]
    spread = within.T @ within / max(1, len(features))
    spread += np.eye(len(spread)) * (1e-3 * np.trace(spread) / len(spread) + 1e-9)
    return np.linalg.solve(spread, means.T).T
