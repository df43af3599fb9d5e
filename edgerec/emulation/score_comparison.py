"""Compare the preprocessed pixels and scores of the same images on two machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from edgerec.contract.manifest import ModelSpec

# Score differences are measured in steps of 1/256, which is the resolution of an 8-bit output.
STEPS = 256


class ImageResult(TypedDict):
    """Results for one image.

    Attributes:
        pixels: SHA-256 digest of the preprocessed pixels.
        scores: each model's scores.
    """

    pixels: str
    scores: Sequence[Sequence[float]]


# Maps each image name to a result, or to None if the image cannot be decoded.
ImageResults = Mapping[str, ImageResult | None]


@dataclass(frozen=True)
class ScoreComparison:
    """Differences between two machines' results for the same images.

    Attributes:
        images: number of compared images.
        same_pixels: number of images with identical pixels after preprocessing.
        same_top1: number of images for which each model predicts the same label on both machines.
        max_difference: largest score difference of any model, in quantization steps of its output, or in units of 1/256
            if the output is float32 or an activation is applied to it.
        allowed: maximum expected difference between the two machines, in the same unit.
    """

    images: int
    same_pixels: int
    same_top1: int
    max_difference: float
    allowed: float

    @property
    def problem(self) -> str:
        """Return a description of the first unexpected difference, or an empty string if there is none."""
        if other := self.images - self.same_pixels:
            return (
                f"preprocessing produces different pixels for {other} of {self.images} images: please report this as a "
                "bug in edgerec"
            )
        if not self.max_difference <= self.allowed:  # also NaN
            return (
                f"scores differ by up to {self.max_difference:.3g} steps of 1/{STEPS}, but must not differ by more "
                f"than {self.allowed:.3g}; the predicted label is the same for {self.same_top1} of {self.images} images"
            )
        return ""


def compare(
    expected: ImageResults, actual: ImageResults, specs: Sequence[ModelSpec], tolerances: Sequence[float]
) -> ScoreComparison:
    """Compare two machines' results. Files that neither machine can decode are ignored.

    Args:
        expected: the reference machine's results.
        actual: the other machine's results.
        specs: the models.
        tolerances: allowed difference for each model's output, in units of the output.
    """
    images, same_pixels, same_top1, max_difference = 0, 0, 0, 0.0
    units = [_units(spec) for spec in specs]
    for name, one in expected.items():
        other = actual.get(name)
        images += one is not None or other is not None
        if one is None or other is None:
            continue
        same_pixels += one["pixels"] == other["pixels"]
        pairs = [
            (np.asarray(ours, np.float64), np.asarray(theirs, np.float64))
            for ours, theirs in zip(one["scores"], other["scores"], strict=True)
        ]
        same_top1 += all(ours.argmax() == theirs.argmax() for ours, theirs in pairs)
        differences = [
            float(np.abs(ours - theirs).max()) * unit for (ours, theirs), unit in zip(pairs, units, strict=True)
        ]
        # Unlike max(), np.max always propagates NaN.
        max_difference = float(np.max([max_difference, *differences]))
    allowed = max(tolerance * unit for tolerance, unit in zip(tolerances, units, strict=True))
    return ScoreComparison(images, same_pixels, same_top1, max_difference, allowed)


def _units(spec: ModelSpec) -> float:
    """Return the factor that converts a difference between outputs to steps of an 8-bit output."""
    return 1.0 if spec.output.quantized and spec.activation == "none" else float(STEPS)
