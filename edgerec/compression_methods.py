"""Compression methods, with their fine-tuning stages and the converted model's precision.

This is the only list of methods. The recipe, command line, comparison and report are derived from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "float16", "dynamic", "int16x8", "mixed", "int8"]
FineTuningStage = Literal["channels", "prune", "cluster", "qat"]

AUTO = "auto"
FLOAT32 = "float32"
# Advice in error messages. In edgerec build, --epochs is the number of training epochs.
MORE_EPOCHS = "more fine-tuning epochs (compress.epochs, or --epochs of edgerec quantize)"


@dataclass(frozen=True)
class Method:
    """A compression method.

    Attributes:
        variant: name of the variant that the method creates.
        precision: ``int8`` (no float tensor), ``mixed`` (int8 with some float layers), ``int16x8`` (int16 activations
            and int8 weights), ``dynamic`` (int8 weights, float activations) or ``float16`` (float16 weights).
        stages: fine-tuning stages before the conversion. An int8 method without the stage ``qat`` is calibrated (PTQ).
        like: the variant without pruning or clustering, with whose latency this variant's latency is compared.
    """

    variant: str
    precision: Precision
    stages: tuple[FineTuningStage, ...] = ()
    like: str = ""

    @property
    def calibrates(self) -> bool:
        """Whether the method needs calibration images to determine the activation ranges."""
        return self.precision in ("int8", "int16x8", "mixed") and "qat" not in self.stages

    @property
    def reductions(self) -> tuple[FineTuningStage, ...]:
        """The fine-tuning stages that prune or cluster the float model."""
        return tuple(stage for stage in self.stages if stage != "qat")

    @property
    def milder(self) -> tuple[str, ...]:
        """Changes to settings that may reduce the accuracy loss, such as ``--method qat``.

        The strings name recipe keys, because ``edgerec build`` has no options for these settings.
        """
        if self.precision not in ("int8", "mixed"):
            return ()
        with_qat = () if "qat" in self.stages else (f"--method {'+'.join((*self.stages, 'qat'))}",)
        longer = (MORE_EPOCHS,) if self.stages else ()
        options = {"channels": "a lower compress.channels", "prune": "a lower compress.sparsity"}
        options["cluster"] = "more compress.clusters"
        return (*with_qat, *longer, *(options[stage] for stage in self.reductions))


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


def _with_stage(*stages: FineTuningStage) -> list[str]:
    return [name for name, method in METHODS.items() if set(stages) & set(method.stages)]


_FINE_TUNED = [AUTO, *(name for name, method in METHODS.items() if method.stages)]
# Methods that use a key of the recipe's compress section. Keys that all methods use are omitted.
METHODS_BY_KEY = {
    "channels": _with_stage("channels"),
    "sparsity": _with_stage("prune"),
    "schedule": _with_stage("prune"),
    "clusters": _with_stage("cluster"),
    "weight_bits": [name for name in _with_stage("qat") if "cluster" not in METHODS[name].stages],
    "skip": _with_stage("prune", "cluster"),
    "epochs": _FINE_TUNED,
    "learning_rate": _FINE_TUNED,
    "teacher_weight": _FINE_TUNED,
    "float_layers": ["mixed"],
    "calibration": [AUTO, *(name for name, method in METHODS.items() if method.calibrates)],
}
