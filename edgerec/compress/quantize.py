"""Quantize a run: prune, cluster, run quantization-aware training, convert, compare, and save the variant."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgerec.compress.accuracy_gate import check_drop
from edgerec.compress.calibration import CalibrationSet, draw, pin_range
from edgerec.compress.channels import shrink
from edgerec.compress.cluster import cluster
from edgerec.compress.context import CompressionContext
from edgerec.compress.convert import check_int8, to_dynamic, to_float16, to_int8, to_int16x8, to_mixed
from edgerec.compress.finetune import is_complete, other_setting, resumable_settings
from edgerec.compress.methods import METHODS, Method
from edgerec.compress.prune import prune
from edgerec.compress.qat import quantization_aware
from edgerec.compress.tfmot_wrappers import named_layers
from edgerec.compress.variant_report import QuantizeReport
from edgerec.errors import GateError, ModelError, OutputExistsError, RecipeError
from edgerec.importing.passes import Adapted, adapt
from edgerec.importing.saved_model import refuse_untrainable
from edgerec.importing.unsupported import Purpose
from edgerec.models import reconstructs
from edgerec.recipe import DataSource, Recipe
from edgerec.train.backend import keras
from edgerec.train.run import Run
from edgerec.utils.atomic import refuse_existing
from edgerec.utils.progress import Listener, Progress, ignore

log = logging.getLogger(__name__)

# Methods that "auto" may choose, in the order in which it tries them. PTQ takes seconds, QAT needs training, and
# float16 is not int8.
AUTO = ("ptq", "qat", "float16")
# "auto" tries QAT if PTQ loses more than this fraction of max_drop on the validation images. Because of this margin,
# most variants also lose less than max_drop on the test images.
WORTH_QAT = 0.5
FINE_TUNED = ["auto", *(name for name, method in METHODS.items() if method.stages)]
# The recipe's keys that only some methods use.
USES = {
    "channels": [name for name, method in METHODS.items() if "channels" in method.stages],
    "sparsity": [name for name, method in METHODS.items() if "prune" in method.stages],
    "clusters": [name for name, method in METHODS.items() if "cluster" in method.stages],
    "weight_bits": [
        name for name, method in METHODS.items() if "qat" in method.stages and "cluster" not in method.stages
    ],
    "skip": [name for name, method in METHODS.items() if {"prune", "cluster"} & set(method.stages)],
    "epochs": FINE_TUNED,
    "learning_rate": FINE_TUNED,
    "teacher_weight": FINE_TUNED,
    "float_layers": ["mixed"],
    "calibration": ["auto", *(name for name, method in METHODS.items() if method.calibrates)],
}


def quantize(
    run: Run | str | Path,
    method: str | None = None,
    *,
    channels: float | None = None,
    sparsity: float | None = None,
    clusters: int | None = None,
    weight_bits: int | None = None,
    epochs: int | None = None,
    learning_rate: float | None = None,
    teacher_weight: float | None = None,
    max_drop: float | None = None,
    skip: str | None = None,
    float_layers: str | None = None,
    calibration: str | None = None,
    data: DataSource | None = None,
    resume: bool = False,
    overwrite: bool = False,
    listener: Listener = ignore,
) -> QuantizeReport:
    """Make a compressed variant of a run, and compare the variant with the float model on the test images.

    Args:
        run: a finished run, or its path.
        method: a key of :data:`~edgerec.compress.methods.METHODS`, or ``auto``. ``auto`` chooses ``ptq``, unless it
            loses more than half of ``max_drop`` on the validation images and ``qat`` loses less. If both lose more
            than ``max_drop``, it chooses ``float16``. None uses the recipe's value, here and in the arguments below.
        channels: fraction of the int8 model's estimated inference time that the method ``channels`` saves.
        sparsity: fraction of the weights that the method ``prune`` sets to zero.
        clusters: number of different weight values per layer after the method ``cluster``.
        weight_bits: number of bits per int8 weight in the method ``qat``, if the model is not clustered. For example,
            5 bits allow 31 different values. The file has the same size and speed, but compresses better with gzip.
        epochs: number of epochs of each fine-tuning stage.
        learning_rate: peak learning rate of each fine-tuning stage.
        teacher_weight: weight, 0 to 1, of the distillation loss (the distance to the float model's outputs) in
            fine-tuning. The label loss has the weight ``1 - teacher_weight``.
        max_drop: largest loss of top-1 accuracy that is accepted, in percentage points.
        skip: layers that pruning and clustering leave unchanged: names or patterns, separated by commas.
        float_layers: layers that the method ``mixed`` keeps in float: names or patterns, separated by commas.
        calibration: calibration images: the name of a calibration recipe, a .toml file, or a calibration set's folder.
        data: current location of the run's images, if they were moved.
        resume: resume the fine-tuning of an interrupted call with the same settings.
        overwrite: replace an existing variant, and without ``resume`` discard an interrupted fine-tuning.
        listener: receives the progress.

    Raises:
        GateError: the drop is greater than ``max_drop``. The variant is kept with its report for examination.
        OutputExistsError: the variant or an interrupted fine-tuning exists, and neither ``resume`` nor ``overwrite``
            says what to do with it.
        EdgerecError: the run, its data or its model cannot be used with this method.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    options = {
        "method": method,
        "channels": channels,
        "sparsity": sparsity,
        "clusters": clusters,
        "weight_bits": weight_bits,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "teacher_weight": teacher_weight,
        "max_drop": max_drop,
        "skip": skip,
        "float_layers": float_layers,
        "calibration": calibration,
    }
    recipe = with_options(run.recipe, options)
    check_used([recipe.compress.method], recipe, options)
    auto = recipe.compress.method == "auto"
    # Refuse before any work is done.
    for name in AUTO if auto else [recipe.compress.method]:
        if not auto:
            refuse_existing(run.variant(METHODS[name].variant), overwrite)
        refuse_interrupted(run, with_method(recipe, name), resume, overwrite)
    with CompressionContext.open(run, recipe, data, listener) as context:
        report = (_auto if auto else make)(context, resume=resume, overwrite=overwrite)
    before, after, gained = report.forms[0].top1, report.forms[-1].top1, context.measure.top1_name
    try:
        check_drop(report.variant, before, after, recipe.compress.max_drop, gained)
    except GateError as error:
        error.report = report
        raise
    return report


def with_options(recipe: Recipe, options: dict[str, Any]) -> Recipe:
    """Return the recipe with these values in its ``compress`` section; None keeps the recipe's value."""
    return recipe.override(
        {f"compress.{key}": value for key, value in options.items() if value is not None}, "quantize"
    )


def with_method(recipe: Recipe, method: str) -> Recipe:
    """Return the recipe with another compression method."""
    return recipe.override({"compress.method": method})


def make_float32(run: Run, data: DataSource | None = None, listener: Listener = ignore) -> None:
    """Make the float32 TFLite variant of a run, if it does not exist."""
    with CompressionContext.open(run, run.recipe, data, listener) as context:
        context.float32()


def interrupted_folder(run: Run, method: str) -> Path:
    """Return the folder of a method's fine-tuning checkpoints. It is deleted when the variant is complete."""
    return run.path / "checkpoints" / METHODS[method].variant


def refuse_interrupted(run: Run, recipe: Recipe, resume: bool, overwrite: bool) -> None:
    """Raise an error instead of discarding an interrupted fine-tuning, or resuming it with other settings.

    Raises:
        OutputExistsError: there is an interrupted fine-tuning that the arguments neither resume nor overwrite.
    """
    method = recipe.compress.method
    folder = interrupted_folder(run, method)
    if not any(folder.glob("*.npz")):
        return
    difference = other_setting(folder, resumable_settings(recipe))
    if resume and difference:
        raise OutputExistsError(
            f"{folder} has an interrupted {method} with {difference}: give the same options to resume it, "
            "or --overwrite without --resume to start again"
        )
    if not difference and is_complete(folder, len(METHODS[method].stages), recipe.compress.epochs):
        return  # the fine-tuning is complete: "auto" ran it, but chose another method
    if not resume and not overwrite:
        how = "" if not difference else f" with {difference}"
        raise OutputExistsError(
            f"{folder} has an interrupted {method}{how}: add --resume to resume it, or --overwrite to start again"
        )


@dataclass(frozen=True)
class Candidate:
    """A converted variant that was measured on the validation images, but not on the test images.

    Attributes:
        context: the run, with the candidate's method.
        content: the .tflite.
        provenance: fields of the report about how the variant was made.
        stages: the intermediate Keras models between the float model and the .tflite, by the name of their stage.
        val_top1: top-1 accuracy on the validation images, 0 to 1.
    """

    context: CompressionContext
    content: bytes
    provenance: dict[str, Any]
    stages: dict[str, Any]
    val_top1: float

    @property
    def val_drop_points(self) -> float:
        """Top-1 accuracy lost against the float Keras model on the validation images, in percentage points."""
        return (self.context.val_top1 - self.val_top1) * 100

    def save(self, overwrite: bool) -> QuantizeReport:
        """Measure the candidate on the test images, and save the candidate as a variant of the run."""
        context, method = self.context, METHODS[self.context.recipe.compress.method]
        report = context.save(
            method,
            self.content,
            self.provenance,
            float32=context.float32().forms[-1],
            stages=self.stages,
            val_top1=self.val_top1,
            overwrite=overwrite,
        )
        shutil.rmtree(interrupted_folder(context.run, context.recipe.compress.method), ignore_errors=True)
        return report


def make(context: CompressionContext, *, resume: bool = False, overwrite: bool = False) -> QuantizeReport:
    """Make, measure and save the variant of the context's method, without applying the accuracy gate."""
    refuse_existing(context.run.variant(METHODS[context.recipe.compress.method].variant), overwrite)
    return make_candidate(context, resume=resume, overwrite=overwrite).save(overwrite)


def make_candidate(context: CompressionContext, *, resume: bool, overwrite: bool) -> Candidate:
    """Compress and convert the run's model by the context's method, and measure the result on the validation images."""
    name = context.recipe.compress.method
    method, folder = METHODS[name], interrupted_folder(context.run, name)
    refuse_interrupted(context.run, context.recipe, resume, overwrite)
    context.float32()  # first, because it needs no training and fails early if the model cannot be converted
    if overwrite and not resume:
        shutil.rmtree(folder, ignore_errors=True)
    content, provenance, stages = _compressed(context, method, folder)
    if method.precision == "int8":
        check_int8(content, context.recipe.normalise)
    return Candidate(context, content, provenance, stages, context.validate(content, method.variant))


def reuse_or_make(context: CompressionContext, overwrite: bool) -> QuantizeReport:
    """Return the existing variant of the context's method, or a new one if there is none or ``overwrite`` is set."""
    report = None if overwrite else existing(context.run, context.recipe)
    if report is None:
        return make(context, resume=not _is_interrupted_differently(context) or not overwrite, overwrite=overwrite)
    name, other = report.variant, used_differently(context.run, context.recipe)
    how = f", made with {other}" if other else ""
    log.info("using the existing variant %s%s (--overwrite makes a new one)", name, how)
    return report


def existing(run: Run, recipe: Recipe) -> QuantizeReport | None:
    """Return the report of the existing variant for the recipe's method; None if there is no such variant."""
    values = run.variants().get(METHODS[recipe.compress.method].variant)
    return None if values is None else QuantizeReport.from_dict(values)


def used_differently(run: Run, recipe: Recipe) -> str:
    """Describe the settings in which the existing variant differs from the recipe; empty if there are none."""
    section = recipe.compress
    saved = run.variants()[METHODS[section.method].variant]["compress"]
    used = (key for key, methods in USES.items() if section.method in methods)
    return ", ".join(f"{key} {saved[key]}" for key in used if key in saved and saved[key] != getattr(section, key))


def _is_interrupted_differently(context: CompressionContext) -> bool:
    folder = interrupted_folder(context.run, context.recipe.compress.method)
    return bool(other_setting(folder, resumable_settings(context.recipe)))


def check_used(methods: Sequence[str], recipe: Recipe, options: dict[str, Any]) -> None:
    """Raise :class:`RecipeError` for an option without effect, or for the method ``mixed`` without ``float_layers``."""
    for option, users in USES.items():
        if options.get(option) is not None and not set(users).intersection(methods):
            flag = "--" + option.replace("_", "-")
            first, *others = [user for user in users if user != "auto"]
            also = f" (or {', '.join(others)})" if others else ""
            raise RecipeError(
                f"{flag} has no effect with --method {','.join(methods)}: choose a method that uses it, "
                f"such as --method {first}{also}"
            )
    if options.get("teacher_weight") is not None and reconstructs(recipe.model.arch):
        raise RecipeError(
            "--teacher-weight is for classifiers: an autoencoder learns to reproduce its input; leave it out"
        )
    if "mixed" in methods and not recipe.compress.float_layers.strip():
        raise RecipeError("--method mixed needs --float-layers: edgerec parity RUN names the layers that lose most")


def _auto(context: CompressionContext, *, resume: bool, overwrite: bool) -> QuantizeReport:
    """Choose between PTQ, QAT and float16 by the accuracy that they lose on the validation images.

    Only the chosen variant is measured on the test images and kept. Existing variants are reused.
    """
    budget, count = context.recipe.compress.max_drop, len(context.split.val)
    sources: dict[str, Candidate | QuantizeReport] = {}
    remarks: list[str] = []

    def loss(name: str) -> float:
        return sources[name].val_drop_points

    def fits(name: str, allowed: float) -> bool:
        return name in sources and loss(name) <= allowed + 1e-9

    def attempt(name: str) -> None:
        try:
            sources[name] = _reused_or_made(context.with_method(name), resume, overwrite)
        except ModelError as error:
            remarks.append(f"{name} cannot be used")
            log.info("auto: %s: %s", remarks[-1], error)
        else:
            remarks.append(f"{name} loses {loss(name):.2f} points")
            log.info("auto: %s on %d validation images", remarks[-1], count)

    def explained(reason: str) -> str:
        return f"{reason}; on {count:,} validation images {', '.join(remarks)}; {budget:g} allowed"

    attempt("ptq")
    if fits("ptq", budget * WORTH_QAT):
        reason = f"ptq loses so little that qat is not worth its time (it is tried above {budget * WORTH_QAT:g} points)"
        return _chosen(sources["ptq"], explained(reason), overwrite)
    log.info("auto: trying qat, which trains for %d epochs", context.recipe.compress.epochs)
    attempt("qat")
    int8 = sorted((name for name in AUTO if name in sources), key=loss)  # a stable sort: ptq wins a tie
    if int8 and fits(int8[0], budget):
        reason = f"{int8[0]} loses least" if len(int8) > 1 else f"{int8[0]} is the only int8 method for this model"
        return _chosen(sources[int8[0]], explained(reason), overwrite)
    attempt("float16")
    if fits("float16", budget):
        log.warning(
            "auto chose float16, which is not int8 and does not run on targets that need int8; "
            "for int8, try --method qat with more --epochs, or a higher --max-drop"
        )
        return _chosen(sources["float16"], explained("no int8 method stays inside --max-drop"), overwrite)
    error = GateError(
        f"no method stays inside --max-drop {budget:g} on {count:,} validation images ({', '.join(remarks)}): "
        "try --method qat with more --epochs, or a higher --max-drop"
    )
    if sources:
        error.report = _chosen(sources[min(sources, key=loss)], explained("it loses least"), overwrite)
    raise error


def _reused_or_made(context: CompressionContext, resume: bool, overwrite: bool) -> Candidate | QuantizeReport:
    report = None if overwrite else existing(context.run, context.recipe)
    if report is None:
        return make_candidate(context, resume=resume, overwrite=overwrite)
    if other := used_differently(context.run, context.recipe):
        raise OutputExistsError(
            f"{report.variant} exists and was made with {other}: add --overwrite to replace it, or choose a --method"
        )
    log.info("auto: using the existing %s (--overwrite makes a new one)", report.variant)
    return report


def _chosen(source: Candidate | QuantizeReport, why: str, overwrite: bool) -> QuantizeReport:
    return replace(source.save(overwrite) if isinstance(source, Candidate) else source, why=why)


def _compressed(
    context: CompressionContext, method: Method, checkpoints: Path
) -> tuple[bytes, dict[str, Any], dict[str, Any]]:
    """Compress and convert the run's model by a method.

    Returns:
        The .tflite, the fields of :class:`QuantizeReport` about how the variant was made, and the intermediate Keras
        models by the name of their stage: the pruned, clustered or smaller float model, and the model after QAT.
    """
    recipe, model, stages = context.recipe, context.run.model(), method.stages
    # Draw the calibration set first, so that an invalid set is reported before hours of training.
    calibration = draw(recipe.compress.calibration, context.dataset, context.split) if method.calibrates else None
    if stages:
        refuse_untrainable(model)
    adapted = adapt(model, _purpose(stages)) if isinstance(model, keras().Model) else Adapted(model, ())
    model = adapted.model
    tune = context.fine_tune(checkpoints)
    if "channels" in stages:
        model = shrink(model, recipe.compress.channels, tune)
    if "prune" in stages:
        model = prune(model, recipe.compress, tune)
    if "cluster" in stages:
        model = cluster(model, recipe.compress, tune, preserve_sparsity="prune" in stages)
    before = {"+".join(method.reductions): model} if method.reductions else {}
    if "qat" in stages:
        before["qat"] = model = quantization_aware(
            model,
            recipe.normalise,
            tune,
            pruned="prune" in stages,
            clustered="cluster" in stages,
            weight_bits=recipe.compress.weight_bits,
        )
    context.listener(Progress("converting", 0, 1))
    content = _converted(context, method, model, calibration)
    context.listener(Progress("converting", 1, 1))
    provenance: dict[str, Any] = {"adapted": [change.to_dict() for change in adapted.changes]}
    if calibration is not None:
        provenance["calibration"] = {
            "recipe": calibration.recipe,
            "images": len(calibration.images),
            "digest": calibration.digest,
        }
    return content, provenance, before


def _purpose(stages: Sequence[str]) -> Purpose:
    """Return the kind of compression that the model has to support."""
    if "qat" in stages:
        return "pqat" if len(stages) > 1 else "qat"
    return "prune" if stages else "ptq"


def _converted(context: CompressionContext, method: Method, model: Any, calibration: CalibrationSet | None) -> bytes:
    if method.precision == "float16":
        return to_float16(model)
    if method.precision == "dynamic":
        return to_dynamic(model)
    if calibration is None:
        return to_int8(model)
    pixels = context.recipe.normalise.apply(pin_range(calibration.images).astype(np.float32))
    if method.precision == "mixed":
        float_layers = named_layers(model, context.recipe.compress.float_layers, "compress.float_layers")
        return to_mixed(model, pixels, float_layers)
    return (to_int16x8 if method.precision == "int16x8" else to_int8)(model, pixels)
