"""Quantizing a run: prune and train for int8, convert, compare, and keep the result as a variant."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.compress import calibration
from edgerec.compress.convert import check_int8, to_float32, to_int8
from edgerec.compress.finetune import FineTune
from edgerec.compress.flatbuffer import read_graph, weight_sparsity
from edgerec.compress.parity import Form, check_drop, form
from edgerec.compress.prune import prune
from edgerec.compress.qat import quantization_aware
from edgerec.contract.files import refuse_existing, replacing_folder, sha256
from edgerec.contract.progress import Listener, Progress, ignore
from edgerec.contract.recipe import Recipe
from edgerec.data import Dataset, Split
from edgerec.errors import GateError
from edgerec.runtime.interpreter import fingerprint
from edgerec.runtime.model import ImageModel
from edgerec.train.evaluate import Figures, figures, keras_scorer, tflite_scorer
from edgerec.train.feed import evaluation_feed, training_feed
from edgerec.train.keras import prepare, versions
from edgerec.train.run import Run
from edgerec.train.saved_model import refuse_untrainable

FLOAT32 = "float32"


@dataclass(frozen=True)
class QuantizeReport:
    """What quantizing made.

    Attributes:
        run, variant, path: where the .tflite is.
        forms: the parity table, on the held-out test pictures: float Keras, float32 TFLite, int8.
        val_top1: of the variant on the validation pictures, which choosing between variants may use.
        drop_points: top-1 that the variant lost against float Keras, in points.
        sparsity: part of zeros among its weights.
        calibration: recipe, number of pictures and digest, for post-training quantization.
        model_sha256: digest of the .tflite, by which export knows that these figures are its own.
        figures: accuracy and per-class figures of the variant on the test pictures.
    """

    run: str
    variant: str
    path: str
    method: str
    forms: tuple[Form, ...]
    val_top1: float
    drop_points: float
    max_drop: float
    sparsity: float
    calibration: dict[str, Any]
    model_sha256: str
    figures: Figures

    @property
    def images(self) -> int:
        """How many held-out pictures."""
        return self.figures.images

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return vars(self) | {
            "forms": [row.to_dict() for row in self.forms],
            "figures": self.figures.to_dict(),
            "images": self.images,
        }


def variant_name(method: str, sparsity: float) -> str:
    """``int8`` (ptq), ``int8-qat``, and with pruning ``int8-pruned`` and ``int8-pqat``."""
    if method == "qat":
        return "int8-pqat" if sparsity else "int8-qat"
    return "int8-pruned" if sparsity else "int8"


def quantize(
    run: Run | str | Path,
    method: str | None = None,
    *,
    sparsity: float | None = None,
    epochs: int | None = None,
    max_drop: float | None = None,
    data: str | None = None,
    overwrite: bool = False,
    listener: Listener = ignore,
) -> QuantizeReport:
    """Make a full-int8 variant of a run, and compare it with the float model on the held-out pictures.

    Args:
        run: a finished run, or its path.
        method: ``qat`` or ``ptq``; None takes the recipe's, as for the following.
        sparsity: part of the weights pruned to zero first, 0 for none.
        epochs: of each fine-tuning.
        max_drop: points of top-1 that int8 may lose.
        data: where the run's pictures are now, if they were moved.
        overwrite: replace a variant that is there.
        listener: told of the progress.

    Raises:
        GateError: the drop is past ``max_drop``. The variant is kept, with its report, for looking at.
        EdgerecError: the run, its data or its model do not allow it.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    wanted = {"method": method, "sparsity": sparsity, "epochs": epochs, "max_drop": max_drop}
    changes = {f"compress.{key}": value for key, value in wanted.items() if value is not None}
    recipe = run.recipe.override(changes, "quantize")
    compress = recipe.compress
    name = variant_name(compress.method, compress.sparsity)
    refuse_existing(run.variant(name), overwrite)
    bench = _bench(run, recipe, data, listener)
    float_row = _float32(bench)  # first: it needs no training, so a fault shows at once
    content, drawn = _compressed(bench)
    check_int8(content, recipe.normalise)
    report = _measure(bench, name, content, [float_row], drawn)
    _write(bench, content, report, overwrite)
    try:
        check_drop(name, report.forms[0].top1, report.forms[-1].top1, compress.max_drop)
    except GateError as error:
        error.report = report
        raise
    return report


def make_float32(run: Run, data: str | None = None, listener: Listener = ignore) -> None:
    """Make the float32 TFLite variant of a run, if it is not there."""
    _float32(_bench(run, run.recipe, data, listener))


@dataclass(frozen=True)
class _Bench:
    """What the forms of a run's model are measured on, and against which scores."""

    run: Run
    recipe: Recipe
    model: Any
    dataset: Dataset
    split: Split
    reference: npt.NDArray[np.float32]
    listener: Listener


def _bench(run: Run, recipe: Recipe, data: str | None, listener: Listener) -> _Bench:
    prepare(replace(recipe.train, mixed_precision=False), recipe.seed)
    dataset, split = run.data(data, listener)
    model = run.model()
    reference = keras_scorer(model, recipe.normalise)(dataset.images[split.test], listener)
    return _Bench(run, recipe, model, dataset, split, reference, listener)


def _measure(bench: _Bench, name: str, content: bytes, between: list[Form], drawn: dict[str, Any]) -> QuantizeReport:
    """A variant's report; ``between`` are the parity table's rows between float Keras and it."""
    dataset, split = bench.dataset, bench.split
    scorer = tflite_scorer(ImageModel(content, bench.recipe.normalise, where=name))
    scores = scorer(dataset.images[split.test], bench.listener)
    classes = dataset.classes[split.test]
    keras_row = form("keras float32", bench.reference, bench.reference, classes)
    row = form(name, scores, bench.reference, classes, content)
    val_scores = scorer(dataset.images[split.val], ignore)
    return QuantizeReport(
        run=str(bench.run.path),
        variant=name,
        path=str(bench.run.variant(name) / "model.tflite"),
        method=bench.recipe.compress.method if name != FLOAT32 else "none",
        forms=(keras_row, *between, row),
        val_top1=float(np.mean(val_scores.argmax(axis=1) == dataset.classes[split.val])),
        drop_points=(keras_row.top1 - row.top1) * 100,
        max_drop=bench.recipe.compress.max_drop,
        sparsity=weight_sparsity(read_graph(content)),
        calibration=drawn,
        model_sha256=sha256(content),
        figures=figures(scores, classes, dataset.labels, "test"),
    )


def _float32(bench: _Bench) -> Form:
    """The float32 TFLite's row of the parity table; its variant is made if it is not there."""
    report = bench.run.variants().get(FLOAT32)
    if report is not None:
        return Form(**report["forms"][-1])
    content = to_float32(bench.model)
    measured = _measure(bench, FLOAT32, content, [], {})
    _write(bench, content, measured, overwrite=True)
    return measured.forms[-1]


def _compressed(bench: _Bench) -> tuple[bytes, dict[str, Any]]:
    """The int8 file, and what calibrated it."""
    recipe, dataset, split, model = bench.recipe, bench.dataset, bench.split, bench.model
    listener, compress = bench.listener, bench.recipe.compress
    # Fine-tuning goes on where training ended: other orders and augmentations than it saw.
    feed = training_feed(dataset, split.train, recipe, first_epoch=recipe.train.epochs)
    tune = FineTune(
        feed,
        evaluation_feed(dataset, split.val, recipe.normalise),
        compress.epochs,
        compress.learning_rate or recipe.train.learning_rate / 10,
        listener,
    )
    if compress.sparsity or compress.method == "qat":
        refuse_untrainable(model)
    if compress.sparsity:
        model = prune(model, compress.sparsity, tune)
    if compress.method == "qat":
        aware = quantization_aware(model, recipe.normalise, tune, preserve_sparsity=bool(compress.sparsity))
        listener(Progress("converting", 0, 1))
        content = to_int8(aware)
        drawn: dict[str, Any] = {}
    else:
        calibrated = calibration.draw(compress.calibration, dataset, split)
        drawn = {"recipe": calibrated.recipe, "images": len(calibrated.images), "digest": calibrated.digest}
        listener(Progress("converting", 0, 1))
        pixels = calibration.pin_range(calibrated.images).astype(np.float32)
        content = to_int8(model, recipe.normalise.apply(pixels))
    listener(Progress("converting", 1, 1))
    return content, drawn


def _write(bench: _Bench, content: bytes, report: QuantizeReport, overwrite: bool) -> None:
    about = report.to_dict() | {
        "compress": vars(bench.recipe.compress),
        "versions": versions(),
        "measured_on": fingerprint().to_dict(),
    }
    with replacing_folder(bench.run.variant(report.variant), overwrite=overwrite) as partial:
        (partial / "model.tflite").write_bytes(content)
        (partial / "report.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
