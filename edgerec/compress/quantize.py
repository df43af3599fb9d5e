"""Compress a run's model, and save the result as a variant of the run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgerec.compress.accuracy_drop import check_drop
from edgerec.compress.automatic_method import AUTO_METHODS, choose_method
from edgerec.compress.candidate import make_candidate
from edgerec.compress.context import CompressionContext
from edgerec.compress.existing_variants import (
    existing,
    is_interrupted_differently,
    refuse_interrupted,
    used_differently,
)
from edgerec.compress.variant_report import QuantizeReport
from edgerec.compression_methods import AUTO, METHODS, METHODS_BY_KEY
from edgerec.errors import GateError, RecipeError
from edgerec.models import reconstructs
from edgerec.recipe import DataSource, Recipe
from edgerec.train.run import Run
from edgerec.utils.atomic import refuse_existing
from edgerec.utils.progress import Listener, ignore

log = logging.getLogger(__name__)


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
    """Create a compressed variant of a run, and compare it with the float model on the test images.

    Args:
        run: a finished run, or its path.
        method: a key of :data:`~edgerec.compression_methods.METHODS`, or ``auto``. ``auto`` chooses ``ptq``, unless it
            loses more than half of ``max_drop`` on the validation images and ``qat`` loses less. If both lose more
            than ``max_drop``, ``auto`` chooses ``float16``. For this argument and the arguments below, None uses the
            value in the run's recipe.
        channels: fraction of the int8 model's estimated inference time that the method ``channels`` saves.
        sparsity: fraction of the weights that the method ``prune`` sets to zero.
        clusters: number of distinct weight values per layer for the method ``cluster``.
        weight_bits: number of bits per int8 weight in the method ``qat``, if the model is not clustered. For example,
            5 bits allow 31 different values. The file has the same size and speed, but compresses better with gzip.
        epochs: number of epochs of each fine-tuning stage.
        learning_rate: peak learning rate of each fine-tuning stage.
        teacher_weight: weight, 0 to 1, of the distillation loss (the distance to the float model's outputs) in
            fine-tuning. The label loss has the weight ``1 - teacher_weight``.
        max_drop: maximum accepted loss of top-1 accuracy, in percentage points.
        skip: names or patterns of layers to exclude from pruning and clustering, separated by commas.
        float_layers: names or patterns of layers that the method ``mixed`` keeps in float, separated by commas.
        calibration: name of a calibration recipe, path of a .toml recipe, or folder of a calibration set.
        data: current location of the run's images, if they were moved.
        resume: resume interrupted fine-tuning with the same settings.
        overwrite: replace an existing variant. Without ``resume``, also discard an interrupted fine-tuning.
        listener: receives the progress.

    Raises:
        GateError: the loss is greater than ``max_drop``. The variant and its report are kept for inspection.
        OutputExistsError: the variant or an interrupted fine-tuning exists, and neither ``resume`` nor ``overwrite`` is
            set.
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
    check_options([recipe.compress.method], recipe, options)
    return quantize_as(run, recipe, data=data, resume=resume, overwrite=overwrite, listener=listener)


def quantize_as(
    run: Run,
    recipe: Recipe,
    *,
    data: DataSource | None = None,
    resume: bool = False,
    overwrite: bool = False,
    listener: Listener = ignore,
) -> QuantizeReport:
    """Create a compressed variant of a run with the settings in a recipe."""
    require_float_layers([recipe.compress.method], recipe)
    auto = recipe.compress.method == AUTO
    # Existing results are reported first, because loading the images may take long.
    for name in AUTO_METHODS if auto else [recipe.compress.method]:
        if not auto:
            refuse_existing(run.variant(METHODS[name].variant), overwrite)
        refuse_interrupted(run, recipe.override({"compress.method": name}), resume, overwrite)
    with CompressionContext.open(run, recipe, data, listener) as context:
        report = (choose_method if auto else make)(context, resume=resume, overwrite=overwrite)
    before, after, metric = report.forms[0].top1, report.forms[-1].top1, context.measure.top1_name
    try:
        check_drop(report.variant, before, after, recipe.compress.max_drop, metric)
    except GateError as error:
        error.report = report
        raise
    return report


def make(context: CompressionContext, *, resume: bool = False, overwrite: bool = False) -> QuantizeReport:
    """Create and save a compressed variant, without checking the accuracy loss."""
    refuse_existing(context.run.variant(METHODS[context.recipe.compress.method].variant), overwrite)
    return make_candidate(context, resume=resume, overwrite=overwrite).save(overwrite)


def reuse_or_make(context: CompressionContext, overwrite: bool) -> QuantizeReport:
    """Return the report of the variant for the context's method, and create the variant if necessary.

    An existing variant is reused unless ``overwrite`` is set.
    """
    run, recipe = context.run, context.recipe
    report = None if overwrite else existing(run, recipe)
    if report is None:
        return make(context, resume=not (overwrite and is_interrupted_differently(run, recipe)), overwrite=overwrite)
    other = used_differently(run, recipe)
    how = f", made with {other}" if other else ""
    log.info("using the existing variant %s%s (--overwrite replaces it)", report.variant, how)
    return report


def make_float32(run: Run, data: DataSource | None = None, listener: Listener = ignore) -> None:
    """Create a run's float32 TFLite variant if it does not exist yet."""
    with CompressionContext.open(run, run.recipe, data, listener) as context:
        context.float32()


def with_options(recipe: Recipe, options: dict[str, Any]) -> Recipe:
    """Return a copy of the recipe with the given compression options. Options that are None are ignored."""
    return recipe.override(
        {f"compress.{key}": value for key, value in options.items() if value is not None}, "quantize"
    )


def check_options(methods: Sequence[str], recipe: Recipe, options: dict[str, Any]) -> None:
    """Raise :class:`RecipeError` if an option has no effect with the methods, or with the model."""
    for option, users in METHODS_BY_KEY.items():
        if options.get(option) is not None and not set(users).intersection(methods):
            flag = "--" + option.replace("_", "-")
            first, *others = [user for user in users if user != AUTO]
            also = f" (or {', '.join(others)})" if others else ""
            raise RecipeError(
                f"{flag} has no effect with --method {','.join(methods)}: omit it, or choose a method that uses it, "
                f"such as --method {first}{also}"
            )
    if options.get("teacher_weight") is not None and reconstructs(recipe.model.arch):
        raise RecipeError("--teacher-weight requires a classifier, but this model is an autoencoder: omit the option")


def require_float_layers(methods: Sequence[str], recipe: Recipe) -> None:
    """Raise :class:`RecipeError` if the method ``mixed`` lacks ``compress.float_layers``."""
    if "mixed" in methods and not recipe.compress.float_layers.strip():
        raise RecipeError(
            "the method mixed requires compress.float_layers (--float-layers of edgerec quantize): run edgerec parity "
            "RUN to find the layers that lose the most accuracy"
        )
