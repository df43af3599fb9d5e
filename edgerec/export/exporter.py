"""Writing the bundle."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import edgerec
from edgerec.compress.methods import FLOAT32
from edgerec.compress.parity import check_drop
from edgerec.compress.quantize import make_float32
from edgerec.contract.bundle import Bundle
from edgerec.contract.decision import DecisionSpec
from edgerec.contract.files import refuse_existing, sha256
from edgerec.contract.manifest import Manifest
from edgerec.contract.preprocess import Image, PreprocessSpec, apply
from edgerec.contract.progress import Listener, ignore
from edgerec.contract.recipe import Recipe
from edgerec.contract.target import Target
from edgerec.data import Dataset, Split
from edgerec.errors import BundleError, TargetError, unknown
from edgerec.export.edgetpu import EdgeTpuReport, compiled
from edgerec.export.fit import require_fit
from edgerec.export.fitted import fitted_decision
from edgerec.export.writer import write_verified
from edgerec.runtime.model import ImageModel
from edgerec.train.run import Run, best_int8

log = logging.getLogger(__name__)

# Golden pictures: one of each class, so many classes at most; larger ones are shrunk to this side.
GOLDEN_PICTURES = 10
GOLDEN_SIDE_PX = 320
DELEGATE_MODEL = "model_edgetpu.tflite"


@dataclass(frozen=True)
class ExportReport:
    """What export wrote.

    Attributes:
        bundle: the folder or .zip.
        top1: of the variant on the held-out pictures; ``drop_points`` against float Keras.
        size_bytes: of the model file.
        files: names in the bundle.
        edgetpu: for Coral: whether the model was compiled, and what to do if not.
    """

    bundle: str
    target: str
    variant: str
    top1: float
    drop_points: float
    size_bytes: int
    files: tuple[str, ...]
    golden: int
    edgetpu: EdgeTpuReport | None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return vars(self) | {"files": list(self.files), "edgetpu": self.edgetpu and self.edgetpu.to_dict()}


def export_bundle(
    run: Run | str | Path,
    target: str = "desktop",
    *,
    variant: str | None = None,
    out: str | Path | None = None,
    max_drop: float | None = None,
    threshold: float = 0.0,
    precision: float | None = None,
    data: str | None = None,
    overwrite: bool = False,
    listener: Listener = ignore,
) -> ExportReport:
    """Write the bundle of a run's variant for a target, and verify it where it stands.

    Args:
        run: a finished run, or its path.
        target: a name in ``targets/``, or a .toml file.
        variant: None takes the one that the target can run with the best validation top-1.
        out: the bundle's folder, or a .zip; None is ``RUN-TARGET`` beside the run.
        max_drop: points of top-1 that the variant may have lost; None takes what quantize allowed.
        threshold: below this calibrated score the bundle answers ``unknown``.
        precision: fit a threshold for each label, so that this part of its answers on the validation pictures is
            right, 0 to 1.
        data: where the run's pictures are now, if they were moved.
        overwrite: replace a bundle that is there.
        listener: told of the progress.

    Raises:
        TargetError: the target cannot run the variant; the message has the command that makes the right one.
        GateError: the variant lost more than ``max_drop``.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    aim = Target.load(target)
    path = Path(out) if out is not None else run.path.with_name(f"{run.path.name}-{aim.name}")
    refuse_existing(path, overwrite, ours=Bundle.stands_at(path))
    dataset, split = run.data(data, listener)
    name = _choose(run, aim, variant, data, listener)
    report = run.variants()[name]
    content = (run.variant(name) / "model.tflite").read_bytes()
    if sha256(content) != report["model_sha256"]:
        raise BundleError(f"{run.variant(name)}/model.tflite is not the file that was measured: quantize again")
    require_fit(content, aim, str(run.variant(name) / "model.tflite"))
    float_row, row = report["forms"][0], report["forms"][-1]
    check_drop(name, float_row["top1"], row["top1"], report["max_drop"] if max_drop is None else max_drop)
    decision = fitted_decision(
        run, content, dataset, split, threshold=threshold, precision=precision, listener=listener
    )
    edgetpu = compiled(content, aim) if aim.compiler else None
    models = {"model.tflite": content}
    if edgetpu is not None and edgetpu.content:
        models[DELEGATE_MODEL] = edgetpu.content
    bundle_name = path.stem if path.suffix == ".zip" else path.name
    provenance: dict[str, Any] = {"data_digest": dataset.digest, "edgerec": edgerec.__version__}
    if "adopted" in run.metrics:
        provenance["adopted"] = run.metrics["adopted"]
    manifest = _manifest(bundle_name, run, aim, report, content, decision, DELEGATE_MODEL in models, provenance)
    pictures = _golden_pictures(dataset, split)
    files, golden = write_verified(path, manifest, models, aim, pictures, report["figures"], overwrite=overwrite)
    return ExportReport(
        bundle=str(path),
        target=aim.name,
        variant=name,
        top1=row["top1"],
        drop_points=report["drop_points"],
        size_bytes=len(content),
        files=files,
        golden=golden,
        edgetpu=edgetpu,
    )


def _manifest(
    name: str,
    run: Run,
    target: Target,
    report: dict[str, Any],
    content: bytes,
    decision: DecisionSpec,
    compiled: bool,
    provenance: dict[str, Any],
) -> Manifest:
    recipe = run.recipe
    model = ImageModel(content, recipe.normalise, where=report["variant"])
    return Manifest(
        name=name,
        labels=run.labels,
        input=model.input,
        output=model.output,
        preprocess=recipe.preprocess,
        normalise=recipe.normalise,
        decision=decision,
        target=target.name,
        variant=report["variant"],
        files={},  # Bundle.write fills in the digests
        threads=target.threads,
        delegate=target.delegate if compiled else "",
        delegate_model=DELEGATE_MODEL if compiled else "",
        metrics={key: report[key] for key in ("forms", "drop_points", "images")},
        provenance=provenance
        | {"recipe": _without_folders(recipe).to_dict()}
        | {key: report[key] for key in ("calibration", "sparsity", "versions")},
    )


def _without_folders(recipe: Recipe) -> Recipe:
    """The recipe as others may see it: the names of its data, weights and calibration set, not where they lay."""
    data = replace(recipe.data, source=Path(recipe.data.source).name)
    compress = replace(recipe.compress, calibration=Path(recipe.compress.calibration).name)
    return replace(
        recipe, data=data, model=replace(recipe.model, weights=Path(recipe.model.weights).name), compress=compress
    )


def _choose(run: Run, target: Target, wanted: str | None, data: str | None, listener: Listener) -> str:
    """The variant to export; float32 is made where it is what is wanted and not there yet."""
    variants = run.variants()
    make_int8 = f"make an int8 one with: edgerec quantize {run.path} --method qat"
    if wanted is None:
        best = best_int8(variants)
        if best is not None and "int8" in target.types:
            return best
        if "float32" not in target.types:
            raise TargetError(f"target {target.name} runs int8 only and {run.path} has no int8 variant: {make_int8}")
        log.warning("%s has no int8 variant, float32 it is; %s", run.path, make_int8)
        wanted = FLOAT32
    full_int8 = wanted != FLOAT32 and (wanted not in variants or variants[wanted]["precision"] == "int8")
    if ("int8" if full_int8 else "float32") not in target.types:
        raise TargetError(f"target {target.name} runs {' and '.join(target.types)}, not {wanted}: {make_int8}")
    if wanted == FLOAT32 and wanted not in variants:
        make_float32(run, data, listener)
    elif wanted not in variants:
        raise TargetError(
            f"{run.path}: {unknown('variant', wanted, [*variants, FLOAT32])}; edgerec quantize makes them"
        )
    return wanted


def _golden_pictures(dataset: Dataset, split: Split) -> list[tuple[str, Image]]:
    """A held-out picture of each class, so many at most, with its name."""
    chosen = [
        next(int(i) for i in split.test if dataset.classes[i] == index)
        for index in np.unique(dataset.classes[split.test])[:GOLDEN_PICTURES]
    ]
    return [(dataset.names[i], shrunk(dataset.original(i))) for i in chosen]


def shrunk(image: Image) -> Image:
    """A golden picture of ``image``: no side longer than ``GOLDEN_SIDE_PX``."""
    longest = max(image.shape[:2])
    if longest <= GOLDEN_SIDE_PX:
        return image if image.ndim == 3 else image[:, :, np.newaxis]
    height, width = (max(1, side * GOLDEN_SIDE_PX // longest) for side in image.shape[:2])
    return apply(image, PreprocessSpec(height, width, 1 if image.ndim == 2 else image.shape[2], fit="stretch"))
