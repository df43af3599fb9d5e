"""Find the causes of a compressed model's accuracy loss by comparing it with the float model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.compress.compression_plots import layer_bars
from edgerec.compress.layer_comparison.findings import (
    LOW_DB,
    ParityFinding,
    costliest,
    find_input,
    find_layers,
    find_outputs,
)
from edgerec.compress.layer_comparison.runner import EXACT_DB, LayerResult, layer_parity
from edgerec.compress.quantize import make_float32
from edgerec.compression_methods import FLOAT32
from edgerec.data import Dataset
from edgerec.errors import DataError, RunError, unknown
from edgerec.recipe import DataSource
from edgerec.runtime.image_model import ImageModel
from edgerec.train.run import Run
from edgerec.train.scorers import tflite_scorer
from edgerec.utils.command_line import command
from edgerec.utils.progress import Listener, ignore


@dataclass(frozen=True)
class ParityReport:
    """Result of comparing a variant with its float model.

    Attributes:
        run, variant: the run's folder and the variant's name.
        reference: the model that the layers are compared with: ``float model``, or ``dequantized version`` (the variant
            itself in float32) if fine-tuning changed the weights.
        layers: the layers in execution order, measured on ``images`` validation images.
        images: number of validation images for the layers.
        unmatched: number of operators without an equivalent in the reference.
        findings: the problems found, most severe first.
        float_top1, top1: top-1 accuracy of the float model and the variant on all validation images, 0 to 1.
        agreement: fraction of all validation images with the same prediction in both models, 0 to 1.
        val_images: number of all validation images.
    """

    run: str
    variant: str
    reference: str
    layers: tuple[LayerResult, ...]
    images: int
    unmatched: int
    findings: tuple[ParityFinding, ...]
    float_top1: float
    top1: float
    agreement: float
    val_images: int

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-serializable dictionary."""
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
    """Compare a run's variant with the float model, layer by layer.

    Args:
        run: a finished run, or its path.
        variant: name of the variant. None uses the int8 variant with the best top-1 accuracy on the validation images,
            or the best variant if there is no int8 variant.
        images: number of validation images for the layer comparison, evenly sampled from the classes.
        data: current location of the run's images, if they were moved.
        listener: receives the progress.

    Raises:
        EdgerecError: the run does not have this variant, or its images or models cannot be read.
    """
    run = Run.open_classifier(run.path if isinstance(run, Run) else run)
    name = _choose(run, variant)
    if images < 1:
        raise DataError(f"cannot compare layers: the number of images must be at least 1, got {images}")
    if FLOAT32 not in run.variants():
        make_float32(run, data, listener)
    normalize = run.recipe.normalize
    dataset, split = run.data(data, listener)
    contents = [(run.variant(each) / "model.tflite").read_bytes() for each in (FLOAT32, name)]
    pixels = dataset.images[_sample(dataset, split.val, images)]
    layers = layer_parity(contents[0], contents[1], pixels, normalize, listener)
    models = [
        ImageModel(content, normalize, where=model_name)
        for content, model_name in zip(contents, (FLOAT32, name), strict=True)
    ]
    scores = [tflite_scorer(model)(dataset.select(split.val), listener) for model in models]
    predicted, classes = [output.argmax(axis=1) for output in scores], dataset.classes[split.val]
    findings = (
        *find_input(models[1].input, normalize),
        *find_outputs(scores[0], scores[1], dataset.labels),
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
    """Plot each layer's SQNR to a PNG file, highlighting the costliest layer and layers with findings."""
    worst = costliest(report.layers)
    marked = {finding.layer for finding in report.findings} | ({worst.name} if worst else set())
    layer_bars(
        [layer.name for layer in report.layers],
        [(layer.sqnr_db, layer.own_db, layer.alone_db) for layer in report.layers],
        [layer.name in marked for layer in report.layers],
        (LOW_DB, EXACT_DB),
        f"{Path(report.run).name}: {report.variant} compared with its {report.reference}, {report.images} images",
        path,
    )


def _choose(run: Run, variant: str | None) -> str:
    compressed = {name: report["val_top1"] for name, report in run.variants().items() if name != FLOAT32}
    if not compressed:
        raise RunError(
            f"{run.path} has no variant to compare with the float model: create one with "
            f"{command('quantize', run.path)}"
        )
    if variant is None:
        # Prefer int8 variants, because those with float activations hardly differ from the float model.
        int8 = [name for name in compressed if name.startswith("int8")] or compressed
        return max(int8, key=lambda name: compressed[name])
    if variant not in compressed:
        raise RunError(
            f"{run.path}: {unknown('variant', variant, compressed)}; to create a variant, run edgerec quantize"
        )
    return variant


def _sample(dataset: Dataset, part: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Return ``count`` randomly chosen positions from ``part``, balanced across classes as far as possible."""
    order = np.random.default_rng(0).permutation(part)
    classes = dataset.classes[order]
    turn = np.empty(len(order), np.int64)
    for index in np.unique(classes):
        members = np.flatnonzero(classes == index)
        turn[members] = np.arange(len(members))
    return order[np.lexsort((classes, turn))][:count]
