"""Quantizing a run: prune, cluster and train for int8, convert, compare, and keep the result as a variant."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgerec.compress.adapt import Adapted, adapt
from edgerec.compress.adapt.refuse import Purpose
from edgerec.compress.bench import Bench
from edgerec.compress.calibration import CalibrationSet, draw, pin_range
from edgerec.compress.channels import shrink
from edgerec.compress.cluster import cluster
from edgerec.compress.convert import check_int8, to_dynamic, to_float16, to_int8, to_int16x8, to_mixed
from edgerec.compress.methods import METHODS, Method
from edgerec.compress.parity import check_drop
from edgerec.compress.prune import prune
from edgerec.compress.qat import quantization_aware
from edgerec.compress.report import QuantizeReport
from edgerec.compress.wrap import named_layers
from edgerec.contract.files import refuse_existing
from edgerec.contract.progress import Listener, Progress, ignore
from edgerec.contract.recipe import DataSource, Recipe
from edgerec.errors import GateError, ModelError, RecipeError
from edgerec.models import reconstructs
from edgerec.train.keras import keras
from edgerec.train.run import Run
from edgerec.train.saved_model import refuse_untrainable

log = logging.getLogger(__name__)

# What auto tries, the cheapest to make first. float16 nearly always fits, but not on a target that wants int8.
AUTO = ("ptq", "qat", "float16")
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
    """Make a compressed variant of a run, and compare it with the float model on the held-out pictures.

    Args:
        run: a finished run, or its path.
        method: a name of :data:`~edgerec.compress.methods.METHODS`, or ``auto``: the first of ptq, qat and float16
            that loses no more than ``max_drop`` on the validation pictures. None takes the recipe's, as for the
            following.
        channels: part of the int8 model's time that ``channels`` saves by leaving out channels, as estimated.
        sparsity: part of the weights that ``prune`` sets to zero.
        clusters: different values that ``cluster`` leaves in each layer.
        weight_bits: of each int8 weight that ``qat`` takes, where nothing is clustered: with 5 there are 31 different
            values. The file has its size and its speed, but compresses better.
        epochs: of each fine-tuning.
        learning_rate: the highest of each fine-tuning.
        teacher_weight: part of its loss that is the distance to the float model's answers; the rest is the labels'.
        max_drop: points of top-1 that the variant may lose.
        skip: layers that prune and cluster leave alone: names or patterns, separated by commas.
        float_layers: layers that ``mixed`` leaves float, likewise.
        calibration: what calibrates: a recipe, a .toml, or a calibration set's folder.
        data: where the run's pictures are now, if they were moved.
        resume: go on with the fine-tuning that a stopped quantize with these settings left.
        overwrite: replace a variant that is there.
        listener: told of the progress.

    Raises:
        GateError: the drop is past ``max_drop``. The variant is kept, with its report, for looking at.
        EdgerecError: the run, its data or its model do not allow it.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    wanted = {
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
    recipe = with_options(run.recipe, wanted)
    check_used([recipe.compress.method], recipe, wanted)
    auto = recipe.compress.method == "auto"
    if not auto:
        # Both before any work is done.
        refuse_existing(run.variant(METHODS[recipe.compress.method].variant), overwrite)
    with Bench.open(run, recipe, data, listener) as bench:
        report = _auto(bench, overwrite) if auto else make(bench, resume=resume, overwrite=overwrite)
    before, after, gained = report.forms[0].top1, report.forms[-1].top1, bench.measure.gained
    try:
        check_drop(report.variant, before, after, recipe.compress.max_drop, gained)
    except GateError as error:
        error.report = report
        raise
    return report


def with_options(recipe: Recipe, wanted: dict[str, Any]) -> Recipe:
    """The recipe with keys of its compress section changed; None changes none."""
    return recipe.override({f"compress.{key}": value for key, value in wanted.items() if value is not None}, "quantize")


def make_float32(run: Run, data: DataSource | None = None, listener: Listener = ignore) -> None:
    """Make the float32 TFLite variant of a run, if it is not there."""
    with Bench.open(run, run.recipe, data, listener) as bench:
        bench.float32()


def make(bench: Bench, *, resume: bool = False, overwrite: bool = False) -> QuantizeReport:
    """Make and measure the variant of the bench's method; its drop is not judged."""
    method = METHODS[bench.recipe.compress.method]
    refuse_existing(bench.run.variant(method.variant), overwrite)
    float32 = bench.float32()  # first: it needs no training, so a fault shows at once
    unfinished = bench.run.path / "checkpoints" / method.variant
    if unfinished.exists() and not resume:
        log.info("%s: starting again (--resume goes on with what was stopped)", method.variant)
        shutil.rmtree(unfinished)
    content, how, before = _compressed(bench, method, unfinished)
    if method.precision == "int8":
        check_int8(content, bench.recipe.normalise)
    report = bench.keep(method, content, how, float32=float32.forms[-1], before=before, overwrite=overwrite)
    shutil.rmtree(unfinished, ignore_errors=True)
    return report


def make_or_take(bench: Bench, overwrite: bool) -> QuantizeReport:
    """The variant of the bench's method as it is, if it is there and may not be replaced."""
    section = bench.recipe.compress
    name = METHODS[section.method].variant
    report = None if overwrite else bench.run.variants().get(name)
    if report is None:
        return make(bench, resume=True, overwrite=True)
    used = (key for key, methods in USES.items() if section.method in methods)
    given = report["compress"]
    other = [f"{key} {given[key]}" for key in used if key in given and given[key] != getattr(section, key)]
    how = f", made with {', '.join(other)}," if other else ""
    log.info("%s is there already%s and taken as it is (--overwrite makes it anew)", name, how)
    return QuantizeReport.from_dict(report)


def check_used(methods: Sequence[str], recipe: Recipe, wanted: dict[str, Any]) -> None:
    """Refuse an option that none of the methods uses, or the run's network, and ``mixed`` without its layers."""
    for option, users in USES.items():
        if wanted.get(option) is not None and not set(users).intersection(methods):
            flag = "--" + option.replace("_", "-")
            raise RecipeError(f"{flag} is for {', '.join(users)}; --method {','.join(methods)} would ignore it")
    if wanted.get("teacher_weight") is not None and reconstructs(recipe.model.arch):
        raise RecipeError("--teacher-weight is for classifiers; what an autoencoder learns to answer is its picture")
    if "mixed" in methods and not recipe.compress.float_layers.strip():
        raise RecipeError("--method mixed needs --float-layers: edgerec parity RUN names the layers that lose most")


def _auto(bench: Bench, overwrite: bool) -> QuantizeReport:
    """The first method whose drop on the validation pictures is inside the budget."""
    budget, count = bench.recipe.compress.max_drop, len(bench.split.val)
    tried: list[str] = []
    for name in AUTO:
        try:
            report = make_or_take(bench.with_method(name), overwrite)
        except ModelError as error:
            tried.append(f"{name} cannot be used")
            log.info("auto: %s: %s", tried[-1], error)
            continue
        tried.append(f"{name} loses {report.val_drop_points:.2f}")
        log.info("auto: %s points of %d validation images", tried[-1], count)
        if report.val_drop_points <= budget + 1e-9:
            return replace(report, why=f"{', '.join(tried)} points on {count} validation images; {budget:g} allowed")
    raise GateError(
        f"nothing stays inside --max-drop {budget:g} on {count} validation images: {', '.join(tried)} points; "
        "try --method qat with more --epochs, or allow more"
    )


def _compressed(bench: Bench, method: Method, unfinished: Path) -> tuple[bytes, dict[str, Any], dict[str, Any]]:
    """The .tflite, what of :class:`QuantizeReport` tells how it was made, and the Keras models on the way.

    Those are, by the stages that led to them, the float one with something left out or shared, and QAT's.
    """
    recipe, model, stages = bench.recipe, bench.run.model(), method.stages
    # Before any training: a set that is refused costs no time.
    pictures = draw(recipe.compress.calibration, bench.dataset, bench.split) if method.calibrates else None
    if stages:
        refuse_untrainable(model)
    adapted = adapt(model, _purpose(stages)) if isinstance(model, keras().Model) else Adapted(model, ())
    model = adapted.model
    tune = bench.fine_tune(unfinished)
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
    bench.listener(Progress("converting", 0, 1))
    content = _converted(bench, method, model, pictures)
    bench.listener(Progress("converting", 1, 1))
    how: dict[str, Any] = {"adapted": [change.to_dict() for change in adapted.changes]}
    if pictures is not None:
        how["calibration"] = {"recipe": pictures.recipe, "images": len(pictures.images), "digest": pictures.digest}
    return content, how, before


def _purpose(stages: Sequence[str]) -> Purpose:
    """What the model must be fit for."""
    if "qat" in stages:
        return "pqat" if len(stages) > 1 else "qat"
    return "prune" if stages else "ptq"


def _converted(bench: Bench, method: Method, model: Any, pictures: CalibrationSet | None) -> bytes:
    if method.precision == "float16":
        return to_float16(model)
    if method.precision == "dynamic":
        return to_dynamic(model)
    if pictures is None:
        return to_int8(model)
    pixels = bench.recipe.normalise.apply(pin_range(pictures.images).astype(np.float32))
    if method.precision == "mixed":
        float_layers = named_layers(model, bench.recipe.compress.float_layers, "compress.float_layers")
        return to_mixed(model, pixels, float_layers)
    return (to_int16x8 if method.precision == "int16x8" else to_int8)(model, pixels)
