"""What every bundle has besides its models, and the proof that it was written whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgerec.contract.bundle import Bundle
from edgerec.contract.manifest import Manifest
from edgerec.contract.preprocess import Image
from edgerec.contract.target import Target
from edgerec.export.card import readme, requirements
from edgerec.export.service import service_files
from edgerec.export.sources import sources
from edgerec.runtime.classifier import Classifier
from edgerec.runtime.golden import make_golden, verify


def write_verified(
    path: Path,
    manifest: Manifest,
    models: Mapping[str, bytes],
    target: Target,
    pictures: Sequence[tuple[str, Image]],
    figures: dict[str, Any] | None,
    *,
    overwrite: bool,
) -> tuple[tuple[str, ...], int]:
    """Write a bundle, and verify it where it stands.

    Args:
        path: its folder, or a .zip.
        manifest: its digests are made here.
        models: the files that it names.
        target: where it goes.
        pictures: for the golden vectors, with where they come from.
        figures: as for :func:`~edgerec.export.card.readme`.
        overwrite: replace a bundle that is there.

    Returns:
        The names of its files, sorted, and how many golden pictures were verified.
    """
    files = {**models, "labels.txt": "".join(f"{label}\n" for label in manifest.labels).encode()}
    files |= make_golden(Classifier(Bundle(path, manifest, files), delegate=""), pictures)
    if target.requirements:
        files["requirements.txt"] = requirements(target).encode()
    if target.service:
        files |= service_files(target)
    if target.kind == "c":
        files |= sources(models[manifest.model], manifest)
    files["README.md"] = readme(manifest, target, figures, models[manifest.model]).encode()
    Bundle.write(path, manifest, files, overwrite=overwrite)
    return tuple(sorted(files)), verify(path).pictures
