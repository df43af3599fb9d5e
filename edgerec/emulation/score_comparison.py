"""Two machines' answers to the same pictures, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgerec.contract.manifest import ModelSpec

# Scores are compared in steps of an 8-bit output, whatever the output is.
STEPS = 256


@dataclass(frozen=True)
class Comparison:
    """How far answers are from what they should be.

    Attributes:
        pictures: how many were compared.
        same_pixels: of how many the models saw the same bytes.
        same_top1: for how many every model answers with the same label.
        max_difference: of any score of any model: in units of a quantized output, of 1/256 of a score where the
            output is float32 or behind an activation.
        allowed: as much of it is expected between these two machines.
    """

    pictures: int
    same_pixels: int
    same_top1: int
    max_difference: float
    allowed: float

    @property
    def problem(self) -> str:
        """What is wrong, or empty."""
        if other := self.pictures - self.same_pixels:
            return f"preprocessing gives other pixels of {other} of {self.pictures} pictures: please report this"
        if not self.max_difference <= self.allowed:  # also NaN
            return (
                f"scores are off by {self.max_difference:.3g} units of 1/{STEPS}, allowed are {self.allowed:.3g}; "
                f"top-1 is the same for {self.same_top1} of {self.pictures} pictures"
            )
        return ""


Answers = Mapping[str, Mapping[str, Any] | None]


def compare(expected: Answers, found: Answers, specs: Sequence[ModelSpec], tolerances: Sequence[float]) -> Comparison:
    """The answers of one machine to those of another; what one of them cannot decode is left out where both cannot.

    Args:
        expected, found: ``pixels`` (a digest) and ``scores`` (a list for each model), by the pictures' names.
        specs: of the models.
        tolerances: of each model, in units of its output.
    """
    pictures, same_pixels, same_top1, furthest = 0, 0, 0, 0.0
    units = [_units(spec) for spec in specs]
    for name, wanted in expected.items():
        given = found.get(name)
        if wanted is None and given is None:
            continue
        pictures += 1
        if wanted is None or given is None:
            continue
        same_pixels += wanted["pixels"] == given["pixels"]
        pairs = [
            (np.asarray(ours, np.float64), np.asarray(theirs, np.float64))
            for ours, theirs in zip(wanted["scores"], given["scores"], strict=True)
        ]
        same_top1 += all(ours.argmax() == theirs.argmax() for ours, theirs in pairs)
        off = [float(np.abs(ours - theirs).max()) * unit for (ours, theirs), unit in zip(pairs, units, strict=True)]
        # max() would drop a NaN.
        furthest = float(np.max([furthest, *off]))
    allowed = max(tolerance * unit for tolerance, unit in zip(tolerances, units, strict=True))
    return Comparison(pictures, same_pixels, same_top1, furthest, allowed)


def _units(spec: ModelSpec) -> float:
    """What one of an output's numbers is in units."""
    return 1.0 if spec.output.quantized and spec.activation == "none" else float(STEPS)
