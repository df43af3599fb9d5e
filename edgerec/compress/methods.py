"""The ways to compress: what each trains, in which order, and what it converts to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "float16", "dynamic", "int16x8", "mixed", "int8"]
Stage = Literal["channels", "prune", "cluster", "qat"]

FLOAT32 = "float32"


@dataclass(frozen=True)
class Method:
    """One way to compress a run.

    Attributes:
        variant: the name of what it makes.
        precision: int8 (full: no float tensor), mixed (int8 but for some layers), int16x8 (activations of 16 bits),
            dynamic (int8 weights, float activations) or float16 (weights).
        stages: the fine-tunings before the conversion; without ``qat`` among them int8 is calibrated (PTQ).
        like: the variant that is the same with nothing left out or shared: what to compare its time with.
    """

    variant: str
    precision: Precision
    stages: tuple[Stage, ...] = ()
    like: str = ""

    @property
    def calibrates(self) -> bool:
        """Whether pictures set the ranges of its activations."""
        return self.precision in ("int8", "int16x8", "mixed") and "qat" not in self.stages

    @property
    def reductions(self) -> tuple[Stage, ...]:
        """The stages that leave something out or share it, while the model is float."""
        return tuple(stage for stage in self.stages if stage != "qat")

    @property
    def milder(self) -> tuple[str, ...]:
        """What may lose less, in the words of the command line."""
        if self.precision not in ("int8", "mixed"):
            return ()
        aware = () if "qat" in self.stages else (f"--method {'+'.join((*self.stages, 'qat'))}",)
        learned = ("more --epochs",) if self.stages else ()
        options = {"channels": "less --channels", "prune": "less --sparsity", "cluster": "more --clusters"}
        return (*aware, *learned, *(options[stage] for stage in self.reductions))


METHODS = {
    "float16": Method("float16", "float16"),
    "dynamic": Method("dynamic", "dynamic"),
    "int16x8": Method("int16x8", "int16x8"),
    "mixed": Method("int8-mixed", "mixed"),
    "ptq": Method("int8", "int8"),
    "qat": Method("int8-qat", "int8", ("qat",)),
    "channels": Method("int8-channels", "int8", ("channels",), like="int8"),
    "channels+qat": Method("int8-channels-qat", "int8", ("channels", "qat"), like="int8-qat"),
    "prune": Method("int8-pruned", "int8", ("prune",), like="int8"),
    "prune+qat": Method("int8-pqat", "int8", ("prune", "qat"), like="int8-qat"),
    "cluster": Method("int8-clustered", "int8", ("cluster",), like="int8"),
    "cluster+qat": Method("int8-cqat", "int8", ("cluster", "qat"), like="int8-qat"),
    "prune+cluster+qat": Method("int8-pcqat", "int8", ("prune", "cluster", "qat"), like="int8-qat"),
}
