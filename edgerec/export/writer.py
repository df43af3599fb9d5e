"""Write a complete bundle and verify it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgerec.contract.bundle import Bundle
from edgerec.contract.manifest import Manifest
from edgerec.contract.preprocess import Image
from edgerec.contract.target import Target
from edgerec.errors import BundleError
from edgerec.export.install_and_service_files import install_files
from edgerec.export.readme import readme, requirements
from edgerec.export.tflm import sources
from edgerec.export.wheel import bundled_wheel
from edgerec.runtime.classifier import Classifier
from edgerec.runtime.verification import make_golden, verify
from edgerec.tflite.edgetpu import EdgeTpuReport, compile_for_edgetpu
from edgerec.train.run_files import EvaluationRecord

log = logging.getLogger(__name__)

DELEGATE_MODEL = "model_edgetpu.tflite"


def bundle_name(path: Path) -> str:
    """Return a bundle's name, i.e. its folder or .zip file name without the suffix."""
    return path.stem if path.suffix.lower() == ".zip" else path.name


def add_compiled(files: dict[str, bytes], content: bytes, target: Target, name: str) -> EdgeTpuReport | None:
    """Compile a model for the target's Edge TPU, and add the compiled model to ``files``.

    Args:
        files: contents of the model files, keyed by file name.
        content: the .tflite file.
        target: the bundle's target.
        name: file name of the compiled model.

    Returns:
        The compiler's result, or None if the target has no Edge TPU.
    """
    if not target.compiler:
        return None
    report = compile_for_edgetpu(content, target)
    if report.content:
        files[name] = report.content
    return report


def write_verified(
    path: Path,
    manifest: Manifest,
    models: Mapping[str, bytes],
    target: Target,
    images: Sequence[tuple[str, Image]],
    figures: EvaluationRecord | None,
    *,
    overwrite: bool,
    sign: Callable[[bytes], bytes] | None = None,
) -> tuple[tuple[str, ...], int]:
    """Verify a bundle on this machine, and write it if verification succeeds.

    Args:
        path: output folder or .zip file for the bundle.
        manifest: the bundle's manifest, without digests.
        models: contents of the model files listed in the manifest, keyed by file name.
        target: the bundle's target.
        images: names and pixels of the golden images.
        figures: metrics on the test images; see :func:`~edgerec.export.readme.readme`.
        overwrite: replace an existing bundle.
        sign: function that signs the manifest; see :meth:`Bundle.write`.

    Returns:
        The sorted names of the bundle's files and the number of verified golden images.
    """
    files = {**models, "labels.txt": "".join(f"{label}\n" for label in manifest.labels).encode()}
    files |= make_golden(Classifier(Bundle(path, manifest, files), delegate=""), images)
    if target.requirements:
        files["requirements.txt"] = requirements(target).encode()
    if target.service:
        files |= install_files(target)
    files |= bundled_wheel(target)
    if target.kind == "c":
        files |= sources(models[manifest.model], manifest)
    files["README.md"] = readme(manifest, target, figures, models[manifest.model]).encode()
    if target.delegate and not target.manifest_delegate:
        log.warning(
            "the manifest of %s does not include the target's delegate %s, because edgerec does not know it: run "
            "edgerec camera with --delegate %s",
            path,
            target.delegate,
            target.delegate,
        )
    golden_images = 0

    def check(partial: Path) -> None:
        nonlocal golden_images
        try:
            # No delegate is used, because the delegate may be installed only on the device.
            golden_images = verify(partial, delegate="").images
        except BundleError as error:
            raise BundleError(str(error).replace(str(partial), str(path))) from None

    Bundle.write(path, manifest, files, overwrite=overwrite, check=check, sign=sign)
    return tuple(sorted(files)), golden_images
