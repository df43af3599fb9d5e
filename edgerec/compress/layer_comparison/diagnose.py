"""Parity of a run's variant with its float model: layer by layer, at the input, and in the answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.compress.compression_plots import layer_bars
from edgerec.compress.layer_comparison.findings import LOW_DB, Finding, costliest, find_answers, find_input, find_layers
from edgerec.compress.layer_comparison.runner import EXACT_DB, Layer, layer_parity
from edgerec.compress.methods import FLOAT32
from edgerec.compress.quantize import make_float32
from edgerec.data import Dataset
from edgerec.errors import DataError, RunError, unknown
from edgerec.recipe import DataSource
from edgerec.runtime.model import ImageModel
from edgerec.train.evaluate import tflite_scorer
from edgerec.train.run import Run
from edgerec.utils.command_line import command
from edgerec.utils.progress import Listener, ignore


@dataclass(frozen=True)
class ParityReport:
    """A variant beside its float model, layer by layer.

    Attributes:
        run, variant: what was compared.
        reference: with what: ``float model``, or ``float twin`` where fine-tuning moved the weights.
        layers: in execution order, over ``images`` validation pictures.
        unmatched: operators that could not be compared.
        findings: what is wrong, the gravest first; empty for a healthy variant.
        float_top1, top1, agreement: on all ``val_images`` validation pictures, 0 to 1.
    """

    run: str
    variant: str
    reference: str
    layers: tuple[Layer, ...]
    images: int
    unmatched: int
    findings: tuple[Finding, ...]
    float_top1: float
    top1: float
    agreement: float
    val_images: int

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return vars(self) | {
            "layers": [layer.to_dict() for layer in self.layers],
            "findings": [asdict(finding) for finding in self.findings],
            "low_db": LOW_DB,
        }


def parity(
    run: Run | str | Path,
    variant: str | None = None,
    *,
    images: int = 64,
    data: DataSource | None = None,
    listener: Listener = ignore,
) -> ParityReport:
    """Compare a variant of a run with the float model, down to the layer.

    Args:
        run: a finished run, or its path.
        variant: None takes the int8 one with the best validation top-1, or else the best.
        images: how many validation pictures the layers are compared on, evenly over the classes.
        data: where the run's pictures are now, if they were moved.
        listener: told of the progress.

    Raises:
        EdgerecError: the run has no such variant, or its pictures or models cannot be read.
    """
    run = Run.open_classifier(run.path if isinstance(run, Run) else run)
    name = _choose(run, variant)
    if images < 1:
        raise DataError(f"parity needs at least 1 picture, got images={images}")
    if FLOAT32 not in run.variants():
        make_float32(run, data, listener)
    normalise = run.recipe.normalise
    dataset, split = run.data(data, listener)
    contents = [(run.variant(each) / "model.tflite").read_bytes() for each in (FLOAT32, name)]
    pixels = dataset.images[_sample(dataset, split.val, images)]
    layers = layer_parity(contents[0], contents[1], pixels, normalise, listener)
    models = [
        ImageModel(content, normalise, where=each) for content, each in zip(contents, (FLOAT32, name), strict=True)
    ]
    scores = [tflite_scorer(model)(dataset.select(split.val), listener) for model in models]
    predicted, classes = [each.argmax(axis=1) for each in scores], dataset.classes[split.val]
    findings = (
        *find_input(models[1].input, normalise),
        *find_answers(scores[0], scores[1], dataset.labels),
        *find_layers(layers, str(run.path), data),
    )
    return ParityReport(
        run=str(run.path),
        variant=name,
        reference=layers.reference,
        layers=layers.layers,
        images=layers.images,
        unmatched=layers.unmatched,
        findings=findings,
        float_top1=float(np.mean(predicted[0] == classes)),
        top1=float(np.mean(predicted[1] == classes)),
        agreement=float(np.mean(predicted[0] == predicted[1])),
        val_images=len(classes),
    )


def draw_layers(report: ParityReport, path: Path) -> None:
    """A PNG of the report's layers; those of its findings are marked, and the one that costs most."""
    worst = costliest(report.layers)
    blamed = {finding.layer for finding in report.findings} | ({worst.name} if worst else set())
    layer_bars(
        [layer.name for layer in report.layers],
        [(layer.sqnr_db, layer.own_db, layer.alone_db) for layer in report.layers],
        [layer.name in blamed for layer in report.layers],
        (LOW_DB, EXACT_DB),
        f"{Path(report.run).name}: {report.variant} against its {report.reference}, {report.images} pictures",
        path,
    )


def _choose(run: Run, wanted: str | None) -> str:
    compressed = {name: report["val_top1"] for name, report in run.variants().items() if name != FLOAT32}
    if not compressed:
        raise RunError(
            f"{run.path} has no variant to compare with float: make one with {command('quantize', run.path)}"
        )
    if wanted is None:
        # Forms with float activations agree in any case.
        int8 = [name for name in compressed if name.startswith("int8")] or compressed
        return max(int8, key=lambda name: compressed[name])
    if wanted not in compressed:
        raise RunError(f"{run.path}: {unknown('variant', wanted, compressed)}; edgerec quantize makes them")
    return wanted


def _sample(dataset: Dataset, part: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """So many positions of ``part``: one of each class, then the second of each …"""
    order = np.random.default_rng(0).permutation(part)
    classes = dataset.classes[order]
    turn = np.empty(len(order), np.int64)
    for index in np.unique(classes):
        members = np.flatnonzero(classes == index)
        turn[members] = np.arange(len(members))
    return order[np.lexsort((classes, turn))][:count]
