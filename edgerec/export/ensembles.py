"""Combine the models from several bundles or runs into one bundle (an ensemble)."""

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
from edgerec.export.writer import bundle_name, write_verified
from edgerec.runtime.verification import golden_images
from edgerec.tflite.compatibility import require_fit
from edgerec.train.run import Run
from edgerec.utils.atomic import checked_output, refuse_existing, sha256, user_path

Spec = TypeVar("Spec", bound=ModelSpec)


@dataclass(frozen=True)
class EnsembleReport:
    """Summary of an ensemble bundle created by :func:`ensemble`.

    Attributes:
        bundle: path of the bundle folder or .zip file.
        models: number of models.
        combine: method used to combine the scores, ``mean`` or ``vote``.
        size_bytes: total size of the model files.
        files: sorted names of the files in the bundle.
        golden: number of verified golden images.
    """

    bundle: str
    models: int
    combine: str
    size_bytes: int
    files: tuple[str, ...]
    golden: int

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-serializable dictionary."""
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
    """Combine the models from several bundles or runs into one bundle, and verify it on this machine.

    Each model keeps its own preprocessing, so the models may have different input sizes and may include imported
    models.

    Args:
        bundles: paths of runs, or of bundles (folders or .zip files) with the same labels and target. Runs are first
            exported for this target.
        out: output folder or .zip file for the new bundle.
        combine: ``mean`` averages the scores; ``vote`` defines a label's score as the fraction of models that predict
            it.
        target: a name in ``targets/``, or a .toml file. If None, the bundles' target is used, or desktop if there are
            only runs.
        threshold: predict ``unknown`` if the combined score is below this value, in [0, 1].
        overwrite: replace an existing bundle.

    Raises:
        BundleError: there are fewer than two models, or the bundles have different labels or targets.
        TargetError: the target cannot run one of the models.
    """
    if combine not in COMBINATIONS:
        raise BundleError(unknown("combination", combine, COMBINATIONS))
    path = checked_output(out, bundles, suffixes=(".zip",), folder=True)
    refuse_existing(path, overwrite, replaceable=Bundle.exists_at(path))
    opened = _open_all([user_path(bundle) for bundle in bundles], target)
    _check_consistent(opened)
    first = opened[0].manifest
    device = Target.load(target) if target else Target.of_manifest(first.target)
    if device.kind != "bundle":
        raise BundleError(
            f"target {device.name} supports only one model, but an ensemble has several: choose a target that runs "
            "edgerec, such as desktop or rpi"
        )
    models: dict[str, bytes] = {}
    specs = [_add_model(bundle, spec, models) for bundle in opened for spec in bundle.manifest.models]
    for spec in specs:
        require_fit(models[spec.model], device, spec.model)
    novelty = _novelty(opened, models)
    members = [origin for bundle in opened for origin in origins(bundle.manifest)]
    manifest = replace(
        first,
        **vars(specs[0]),
        name=bundle_name(path),
        variant="+".join(dict.fromkeys(bundle.manifest.variant for bundle in opened)),
        target=device.name,
        threads=device.threads,
        members=tuple(specs[1:]),
        combine=combine,
        novelty=novelty,
        delegate=next((bundle.manifest.delegate for bundle in opened if bundle.manifest.delegate), ""),
        # The temperature and thresholds were fitted to one model's scores, so they do not apply to combined scores.
        decision=replace(first.decision, temperature=1.0, threshold=threshold, thresholds={}),
        metrics={"members": [_summary(bundle.manifest) for bundle in opened]},
        provenance={"members": members, "edgerec": __version__},
        files={},
    )
    images = list(golden_images(opened[0]).items())
    files, golden = write_verified(path, manifest, models, device, images, None, overwrite=overwrite)
    return EnsembleReport(
        bundle=str(path),
        models=len(specs),
        combine=combine,
        size_bytes=sum(len(models[spec.model]) for spec in specs),
        files=files,
        golden=golden,
    )


def _open_all(paths: Sequence[Path], target: str | None) -> list[Bundle]:
    """Open all bundles, and export runs as temporary bundles."""
    bundles = {path: Bundle.open(path) for path in paths if not (path / "recipe.toml").is_file()}
    common_target = next((bundle.manifest.target for bundle in bundles.values()), "desktop")
    target_name = target or Target.of_manifest(common_target).name
    with tempfile.TemporaryDirectory(prefix="edgerec-ensemble-") as folder:
        for number, path in enumerate(path for path in paths if path not in bundles):
            name = Run.open(path).path.name
            exported = export_bundle(path, target_name, out=Path(folder) / str(number) / name).bundle
            bundles[path] = replace(Bundle.open(exported), path=path)
    return [bundles[path] for path in paths]


def _check_consistent(bundles: Sequence[Bundle]) -> None:
    """Check that the bundles can form an ensemble.

    Raises:
        BundleError: there are fewer than two models, two models are identical, or the labels or targets differ.
    """
    if len(bundles) < 2:
        raise BundleError(
            f"an ensemble requires at least two bundles, got {len(bundles)}: add another bundle or training run"
        )
    first = bundles[0]
    models = [
        (sha256(bundle.files[spec.model]), spec.preprocess) for bundle in bundles for spec in bundle.manifest.models
    ]
    if len(set(models)) < len(models):
        raise BundleError("two of the bundles contain the same model: remove one of them")
    for other in bundles[1:]:
        if other.manifest.labels != first.manifest.labels:
            theirs, ours = other.manifest.labels, first.manifest.labels
            number, (their_label, our_label) = next(
                (number, pair) for number, pair in enumerate(zip_longest(theirs, ours)) if pair[0] != pair[1]
            )
            raise BundleError(
                f"all models in an ensemble must have the same labels in the same order, but at index {number}, "
                f"{other.path} has {their_label!r} and {first.path} has {our_label!r}"
            )
        if other.manifest.target != first.manifest.target:
            raise BundleError(
                f"{other.path} was exported for target {other.manifest.target}, but {first.path} was exported for "
                f"{first.manifest.target}: export both bundles for the same target"
            )


def _add_model(bundle: Bundle, spec: Spec, files: dict[str, bytes]) -> Spec:
    """Copy a model's files from ``bundle`` to ``files``, and return the model's spec with the new file names."""

    def add(name: str) -> str:
        stem, suffix = PurePosixPath(name).stem.partition("-")[0], PurePosixPath(name).suffix
        numbered = (f"{stem}-{number}{suffix}" for number in count(2))
        unused = next(candidate for candidate in chain([f"{stem}{suffix}"], numbered) if candidate not in files)
        files[unused] = bundle.files[name]
        return unused

    return replace(spec, model=add(spec.model), delegate_model=add(spec.delegate_model) if spec.delegate_model else "")


def _novelty(bundles: Sequence[Bundle], files: dict[str, bytes]) -> NoveltySpec | None:
    """Add the bundles' common autoencoder to ``files``, and return its spec, or None if there is none.

    Raises:
        BundleError: the bundles have different autoencoders.
    """
    with_novelty = [(bundle, bundle.manifest.novelty) for bundle in bundles if bundle.manifest.novelty is not None]
    if not with_novelty:
        return None
    (first, spec), *others = with_novelty
    same = (first.files[spec.model], spec.threshold)
    if other := next(
        (bundle for bundle, other_spec in others if (bundle.files[other_spec.model], other_spec.threshold) != same),
        None,
    ):
        raise BundleError(
            f"an ensemble can have only one autoencoder, but {first.path} and {other.path} have different ones: "
            "export all but one of the bundles without --novelty"
        )
    return _add_model(first, spec, files)


def _summary(manifest: Manifest) -> dict[str, Any]:
    return {"name": manifest.name, "variant": manifest.variant, "metrics": manifest.metrics}
