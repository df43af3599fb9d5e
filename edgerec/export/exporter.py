"""Writing the bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgerec._version import __version__
from edgerec.contract.bundle import Bundle
from edgerec.contract.decision import DecisionSpec
from edgerec.contract.manifest import Manifest
from edgerec.contract.preprocess import Image, PreprocessSpec, apply
from edgerec.contract.target import Target
from edgerec.data import Dataset, Split
from edgerec.export.anomaly import Novelty, novelty_guard, refuse_kind
from edgerec.export.decision_fitting import fitted_decision
from edgerec.export.variants import choose, without_folders
from edgerec.export.writer import write_verified
from edgerec.recipe import DataSource
from edgerec.runtime.model import ImageModel
from edgerec.tflite.edgetpu import EdgeTpuReport, compiled
from edgerec.train.run import Run, split_summary
from edgerec.utils.atomic import checked_output, refuse_existing, user_path
from edgerec.utils.progress import Listener, ignore

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
        novelty: of the autoencoder, where the bundle has one: ``variant``, ``threshold``, ``known`` (of its validation
            pictures), ``known_held_out``, ``error``, ``size_bytes`` …
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
    novelty: dict[str, Any] | None = None

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
    novelty: Novelty | str | Path | None = None,
    data: DataSource | None = None,
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
        novelty: an autoencoder's run, or :class:`~edgerec.export.anomaly.Novelty`: the bundle answers ``unknown`` to
            pictures that it makes again badly.
        data: where the run's pictures are now, if they were moved.
        overwrite: replace a bundle that is there.
        listener: told of the progress.

    Raises:
        TargetError: the target cannot run the variant; the message has the command that makes the right one.
        GateError: the variant lost more than ``max_drop``.
    """
    run = Run.open_classifier(run.path if isinstance(run, Run) else run)
    aim = Target.load(target)
    if novelty is not None:
        refuse_kind(aim)
    path = user_path(out) if out is not None else run.path.with_name(f"{run.path.name}-{aim.name}")
    guard_run = novelty.run if isinstance(novelty, Novelty) else novelty
    checked_output(path, [run.path, guard_run, data or run.recipe.data.source], suffixes=(".zip",), folder=True)
    refuse_existing(path, overwrite, ours=Bundle.stands_at(path))
    dataset, split = run.data(data, listener)
    chosen = choose(run, aim, variant, max_drop=max_drop, data=data, listener=listener)
    content, report = chosen.content, chosen.report
    guard = None if novelty is None else novelty_guard(Novelty.of(novelty), run, aim, data, listener)
    decision = fitted_decision(
        run, content, dataset, split, threshold=threshold, precision=precision, listener=listener
    )
    edgetpu = compiled(content, aim) if aim.compiler else None
    models = {"model.tflite": content}
    if edgetpu is not None and edgetpu.content:
        models[DELEGATE_MODEL] = edgetpu.content
    bundle_name = path.stem if path.suffix.lower() == ".zip" else path.name
    provenance: dict[str, Any] = {"data_digest": dataset.digest, "edgerec": __version__}
    if summary := split_summary(run.split_record):
        provenance["split"] = summary
    if run.adopted is not None:
        provenance["adopted"] = run.adopted
    manifest = _manifest(bundle_name, run, aim, report, content, decision, DELEGATE_MODEL in models, provenance)
    if guard is not None:
        models |= guard.files
        manifest = guard.added_to(manifest)
    pictures = _golden_pictures(dataset, split)
    files, golden = write_verified(path, manifest, models, aim, pictures, report["figures"], overwrite=overwrite)
    run.record_export(chosen.name, report["model_sha256"], aim.name, str(path))
    return ExportReport(
        bundle=str(path),
        target=aim.name,
        variant=chosen.name,
        top1=report["forms"][-1]["top1"],
        drop_points=report["drop_points"],
        size_bytes=len(content),
        files=files,
        golden=golden,
        edgetpu=edgetpu,
        novelty=None if guard is None else guard.about,
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
        delegate=target.manifest_delegate if compiled else "",
        delegate_model=DELEGATE_MODEL if compiled else "",
        metrics={key: report[key] for key in ("forms", "drop_points", "images")},
        provenance=provenance
        | {"recipe": without_folders(recipe).to_dict()}
        | {key: report[key] for key in ("calibration", "sparsity", "versions")},
    )


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
