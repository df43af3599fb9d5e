"""Compress a trained model with one method, and measure its validation accuracy."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgerec.compress.calibration import CalibrationSet, draw, pin_range
from edgerec.compress.channels import shrink
from edgerec.compress.cluster import cluster
from edgerec.compress.context import CompressionContext
from edgerec.compress.convert import check_int8, to_dynamic, to_float16, to_int8, to_int16x8, to_mixed
from edgerec.compress.existing_variants import interrupted_folder, refuse_interrupted
from edgerec.compress.layer_wrappers import named_layers
from edgerec.compress.prune import prune
from edgerec.compress.qat import quantization_aware
from edgerec.compress.variant_report import QuantizeReport
from edgerec.compression_methods import METHODS, Method
from edgerec.importing.passes import Adapted, adapt
from edgerec.importing.saved_model import refuse_untrainable
from edgerec.importing.unsupported import Purpose
from edgerec.train.backend import keras
from edgerec.utils.progress import Progress


@dataclass(frozen=True)
class Candidate:
    """A compressed model that was evaluated on the validation images, but not yet on the test images.

    Attributes:
        context: the run, with the candidate's method.
        content: the .tflite file.
        provenance: report fields that describe how the variant was created.
        stages: maps stage names to the intermediate Keras models between the float model and the .tflite file.
        val_top1: top-1 accuracy on the validation images, 0 to 1.
    """

    context: CompressionContext
    content: bytes
    provenance: dict[str, Any]
    stages: dict[str, Any]
    val_top1: float

    @property
    def val_drop_points(self) -> float:
        """Drop in top-1 validation accuracy relative to the float Keras model, in percentage points."""
        return (self.context.val_top1 - self.val_top1) * 100

    def save(self, overwrite: bool) -> QuantizeReport:
        """Evaluate the candidate on the test images, and save it as a variant of the run."""
        context, name = self.context, self.context.recipe.compress.method
        report = context.save(
            METHODS[name],
            self.content,
            self.provenance,
            float32=context.float32().forms[-1],
            stages=self.stages,
            val_top1=self.val_top1,
            overwrite=overwrite,
        )
        shutil.rmtree(interrupted_folder(context.run, name), ignore_errors=True)
        return report


def make_candidate(context: CompressionContext, *, resume: bool, overwrite: bool) -> Candidate:
    """Compress the model with the context's method, and measure its validation accuracy."""
    name = context.recipe.compress.method
    method, folder = METHODS[name], interrupted_folder(context.run, name)
    refuse_interrupted(context.run, context.recipe, resume, overwrite)
    # The float model is converted first, so that unsupported layers are reported before fine-tuning.
    context.float32()
    if overwrite and not resume:
        shutil.rmtree(folder, ignore_errors=True)
    # The calibration set is sampled early, so that an invalid set is reported before hours of training.
    calibration = None
    if method.calibrates:
        calibration = draw(context.recipe.compress.calibration, context.dataset, context.split)
    adapted = _adapted(context.run.model(), method.stages)
    model, stages = _fine_tuned(context, method, adapted.model, folder)
    context.listener(Progress("converting", 0, 1))
    content = _converted(context, method, model, calibration)
    context.listener(Progress("converting", 1, 1))
    if method.precision == "int8":
        check_int8(content, context.recipe.normalize)
    provenance: dict[str, Any] = {"adapted": [change.to_dict() for change in adapted.changes]}
    if calibration is not None:
        provenance["calibration"] = {
            "recipe": calibration.recipe,
            "images": len(calibration.images),
            "digest": calibration.digest,
        }
    return Candidate(context, content, provenance, stages, context.validate(content, method.variant))


def _adapted(model: Any, stages: Sequence[str]) -> Adapted:
    if stages:
        refuse_untrainable(model)
    purpose: Purpose = "prune" if stages else "ptq"
    if "qat" in stages:
        purpose = "pqat" if len(stages) > 1 else "qat"
    return adapt(model, purpose) if isinstance(model, keras().Model) else Adapted(model, ())


def _fine_tuned(
    context: CompressionContext, method: Method, model: Any, checkpoints: Path
) -> tuple[Any, dict[str, Any]]:
    """Fine-tune a model for a compression method, e.g. by pruning or quantization-aware training.

    Returns:
        The model to convert, and a dictionary that maps stage names to intermediate models: the model after pruning
        and clustering, and the model after QAT.
    """
    recipe, stages = context.recipe, method.stages
    tune = context.fine_tune(checkpoints)
    if "channels" in stages:
        model = shrink(model, recipe.compress.channels, tune)
    if "prune" in stages:
        model = prune(model, recipe.compress, tune)
    if "cluster" in stages:
        model = cluster(model, recipe.compress, tune, preserve_sparsity="prune" in stages)
    intermediate = {"+".join(method.reductions): model} if method.reductions else {}
    if "qat" in stages:
        intermediate["qat"] = model = quantization_aware(
            model,
            recipe.normalize,
            tune,
            pruned="prune" in stages,
            clustered="cluster" in stages,
            weight_bits=recipe.compress.weight_bits,
        )
    return model, intermediate


def _converted(context: CompressionContext, method: Method, model: Any, calibration: CalibrationSet | None) -> bytes:
    if method.precision == "float16":
        return to_float16(model)
    if method.precision == "dynamic":
        return to_dynamic(model)
    if calibration is None:
        return to_int8(model)
    pixels = context.recipe.normalize.apply(pin_range(calibration.images).astype(np.float32))
    if method.precision == "mixed":
        float_layers = named_layers(model, context.recipe.compress.float_layers, "compress.float_layers")
        return to_mixed(model, pixels, float_layers)
    return (to_int16x8 if method.precision == "int16x8" else to_int8)(model, pixels)
