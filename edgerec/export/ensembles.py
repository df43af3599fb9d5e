"""A bundle of several models that answer together."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, zip_longest
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from edgerec._version import __version__
from edgerec.contract.bundle import Bundle
from edgerec.contract.decision import COMBINATIONS
from edgerec.contract.manifest import Manifest, ModelSpec, NoveltySpec, origins
from edgerec.contract.target import Target
from edgerec.errors import BundleError, unknown
from edgerec.export.exporter import export_bundle
from edgerec.export.writer import write_verified
from edgerec.runtime.verification import golden_images
from edgerec.tflite.compatibility import require_fit
from edgerec.train.run import Run
from edgerec.utils.atomic import checked_output, refuse_existing, sha256, user_path

Spec = TypeVar("Spec", bound=ModelSpec)


@dataclass(frozen=True)
class EnsembleReport:
    """What :func:`ensemble` wrote.

    Attributes:
        bundle: the folder or .zip.
        models: how many answer together.
        combine: what their scores become.
        size_bytes: of all the model files.
        golden: pictures that were verified.
    """

    bundle: str
    models: int
    combine: str
    size_bytes: int
    files: tuple[str, ...]
    golden: int

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return vars(self) | {"files": list(self.files)}


def ensemble(
    bundles: Sequence[str | Path],
    out: str | Path,
    *,
    combine: str = "mean",
    target: str | None = None,
    threshold: float = 0.0,
    overwrite: bool = False,
) -> EnsembleReport:
    """Write one bundle of the models of several bundles or runs, and verify it where it stands.

    Each model keeps its own preprocessing, so they may have inputs of different sizes, and be imported ones.

    Args:
        bundles: folders or .zip files, of the same labels and for the same target; or runs, which are exported for it.
        out: the new bundle's folder, or a .zip.
        combine: ``mean`` of the scores; or ``vote``, the part of the models that answer with a label.
        target: a name in ``targets/``, or a .toml file; None is what the bundles are for, and desktop for runs.
        threshold: below this score the bundle answers ``unknown``, in [0, 1].
        overwrite: replace a bundle that is there.

    Raises:
        BundleError: fewer than two models, or bundles that do not fit each other.
        TargetError: the target cannot run one of them.
    """
    if combine not in COMBINATIONS:
        raise BundleError(unknown("combination", combine, COMBINATIONS))
    path = checked_output(out, bundles, suffixes=(".zip",), folder=True)
    refuse_existing(path, overwrite, ours=Bundle.stands_at(path))
    opened = _opened([user_path(bundle) for bundle in bundles], target)
    _check_alike(opened)
    first = opened[0].manifest
    aim = Target.load(target) if target else Target.of_manifest(first.target)
    if aim.kind != "bundle":
        raise BundleError(f"target {aim.name} takes one model: an ensemble is for what runs edgerec, as desktop or rpi")
    models: dict[str, bytes] = {}
    specs = [_taken(bundle, spec, models) for bundle in opened for spec in bundle.manifest.models]
    for spec in specs:
        require_fit(models[spec.model], aim, spec.model)
    novelty = _novelty(opened, models)
    members = [origin for bundle in opened for origin in origins(bundle.manifest)]
    manifest = replace(
        first,
        **vars(specs[0]),
        name=path.stem if path.suffix.lower() == ".zip" else path.name,
        variant="+".join(dict.fromkeys(bundle.manifest.variant for bundle in opened)),
        target=aim.name,
        threads=aim.threads,
        members=tuple(specs[1:]),
        combine=combine,
        novelty=novelty,
        delegate=next((bundle.manifest.delegate for bundle in opened if bundle.manifest.delegate), ""),
        # What was fitted to one model's scores says nothing of all together.
        decision=replace(first.decision, temperature=1.0, threshold=threshold, thresholds={}),
        metrics={"members": [_summary(bundle.manifest) for bundle in opened]},
        provenance={"members": members, "edgerec": __version__},
        files={},
    )
    pictures = list(golden_images(opened[0]).items())
    files, golden = write_verified(path, manifest, models, aim, pictures, None, overwrite=overwrite)
    return EnsembleReport(
        bundle=str(path),
        models=len(specs),
        combine=combine,
        size_bytes=sum(len(models[spec.model]) for spec in specs),
        files=files,
        golden=golden,
    )


def _opened(paths: Sequence[Path], target: str | None) -> list[Bundle]:
    """The bundles, and those of the runs among them, which are read whole and not kept."""
    found = {path: Bundle.open(path) for path in paths if not (path / "recipe.toml").is_file()}
    named = next((bundle.manifest.target for bundle in found.values()), "desktop")
    aim = target or Target.of_manifest(named).name
    with tempfile.TemporaryDirectory(prefix="edgerec-ensemble-") as folder:
        for number, path in enumerate(path for path in paths if path not in found):
            name = Run.open(path).path.name
            made = export_bundle(path, aim, out=Path(folder) / str(number) / name).bundle
            found[path] = replace(Bundle.open(made), path=path)
    return [found[path] for path in paths]


def _check_alike(bundles: Sequence[Bundle]) -> None:
    if len(bundles) < 2:
        raise BundleError(f"an ensemble needs two bundles or more, got {len(bundles)}")
    first = bundles[0]
    models = [
        (sha256(bundle.files[spec.model]), spec.preprocess) for bundle in bundles for spec in bundle.manifest.models
    ]
    if len(set(models)) < len(models):
        raise BundleError("the same model is in the ensemble twice: expected different ones")
    for other in bundles[1:]:
        if other.manifest.labels != first.manifest.labels:
            theirs, ours = other.manifest.labels, first.manifest.labels
            number, said = next(
                (number, pair) for number, pair in enumerate(zip_longest(theirs, ours)) if pair[0] != pair[1]
            )
            raise BundleError(
                f"{other.path} and {first.path} have different labels: number {number} is {said[0]!r} and {said[1]!r}; "
                "an ensemble's models must know the same ones in the same order"
            )
        if other.manifest.target != first.manifest.target:
            raise BundleError(
                f"{other.path} is for {other.manifest.target}, {first.path} for {first.manifest.target}: "
                "export both for the same target"
            )


def _taken(bundle: Bundle, spec: Spec, files: dict[str, bytes]) -> Spec:
    """The model with its files under names of their own, which are added to ``files``."""

    def take(name: str) -> str:
        stem, suffix = PurePosixPath(name).stem.partition("-")[0], PurePosixPath(name).suffix
        numbered = (f"{stem}-{number}{suffix}" for number in count(2))
        free = next(found for found in chain([f"{stem}{suffix}"], numbered) if found not in files)
        files[free] = bundle.files[name]
        return free

    return replace(
        spec, model=take(spec.model), delegate_model=take(spec.delegate_model) if spec.delegate_model else ""
    )


def _novelty(bundles: Sequence[Bundle], files: dict[str, bytes]) -> NoveltySpec | None:
    """The autoencoder of the bundles that have one, with its files; raises where they have different ones."""
    having = [(bundle, bundle.manifest.novelty) for bundle in bundles if bundle.manifest.novelty is not None]
    if not having:
        return None
    (first, spec), *others = having
    same = (first.files[spec.model], spec.threshold)
    if other := next((bundle for bundle, its in others if (bundle.files[its.model], its.threshold) != same), None):
        raise BundleError(
            f"{first.path} and {other.path} have different autoencoders, an ensemble has one: "
            "export all but one without --novelty"
        )
    return _taken(first, spec, files)


def _summary(manifest: Manifest) -> dict[str, Any]:
    return {"name": manifest.name, "variant": manifest.variant, "metrics": manifest.metrics}
