"""Export a run's variant as a bundle for a target."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgerec._version import __version__
from edgerec.contract.bundle import Bundle
from edgerec.contract.decision import DecisionSpec
from edgerec.contract.manifest import Manifest
from edgerec.contract.preprocess import Image, PreprocessSpec, apply
from edgerec.contract.signing import check_key, check_serial, create_signature, with_serial
from edgerec.contract.target import Target
from edgerec.data import Dataset, Split
from edgerec.errors import ConfigError
from edgerec.export.decision_fitting import fit_decision
from edgerec.export.novelty import Novelty, NoveltyReport, fit_autoencoder, require_edgerec
from edgerec.export.variants import choose, without_folders
from edgerec.export.writer import DELEGATE_MODEL, add_compiled, bundle_name, write_verified
from edgerec.recipe import DataSource
from edgerec.runtime.image_model import ImageModel
from edgerec.tflite.edgetpu import EdgeTpuReport
from edgerec.train.run import Run
from edgerec.train.run_files import VariantRecord
from edgerec.train.split_record import split_summary
from edgerec.utils.atomic import checked_output, refuse_existing, user_path
from edgerec.utils.progress import Listener, Progress, ignore

# A bundle contains at most this number of golden images, each from a different class.
GOLDEN_IMAGES = 10
# Golden images are reduced to at most this width and height, in pixels.
GOLDEN_SIDE_PX = 320


@dataclass(frozen=True)
class ExportReport:
    """Summary of a bundle created by :func:`export_bundle`.

    Attributes:
        bundle: path of the bundle folder or .zip file.
        target: name of the target.
        variant: name of the exported variant.
        top1: the variant's top-1 accuracy on the test images, in [0, 1].
        drop_points: loss of top-1 accuracy compared with the float Keras model, in percentage points.
        size_bytes: size of the model file.
        files: sorted names of the files in the bundle.
        golden: number of verified golden images.
        edgetpu: Edge TPU compiler result for Coral targets, or None for other targets.
        novelty: the bundle's autoencoder, or None if it has none.
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
    novelty: NoveltyReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-serializable dictionary."""
        return vars(self) | {
            "files": list(self.files),
            "edgetpu": self.edgetpu and self.edgetpu.to_dict(),
            "novelty": self.novelty and vars(self.novelty),
        }


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
    sign: str | Path | None = None,
    serial: int | None = None,
    overwrite: bool = False,
    listener: Listener = ignore,
) -> ExportReport:
    """Export a run's variant as a bundle, and verify the bundle on this machine.

    Args:
        run: a finished run or its path.
        target: a name in ``targets/``, or a .toml file.
        variant: name of the variant. If None, the variant with the best validation accuracy among those supported by
            the target is chosen.
        out: output folder or .zip file for the bundle. If None, ``RUN-TARGET`` next to the run is used.
        max_drop: maximum loss of top-1 accuracy compared with the float Keras model, in percentage points. If None, the
            limit used for quantization applies.
        threshold: predict ``unknown`` if the score, after temperature scaling, is below this value, in [0, 1].
        precision: fit a threshold for each label so that its precision on the validation images is at least this value,
            in [0, 1]. If None, no per-label thresholds are fitted.
        novelty: an autoencoder run, or :class:`~edgerec.export.novelty.Novelty`. The bundle predicts ``unknown`` for
            images with a large reconstruction error.
        data: current location of the run's images if they were moved.
        sign: SSH key that signs the bundle; see :func:`~edgerec.contract.signing.sign_bundle`. None does not sign it.
        serial: serial number of a signed bundle. None uses the current Unix time in seconds.
        overwrite: replace an existing bundle.
        listener: receives progress updates.

    Raises:
        TargetError: the target cannot run the variant. The message contains a command that creates a suitable variant.
        GateError: the variant loses more than ``max_drop``.
        SignatureError: the key cannot be used.
        ConfigError: ``serial`` is out of range, or is specified without ``sign``.
    """
    key = None if sign is None else check_key(sign)
    if serial is not None and key is None:
        raise ConfigError("serial", "has no effect without sign: pass the path of an SSH key, or omit serial")
    check_serial(serial)
    run = Run.open_classifier(run.path if isinstance(run, Run) else run)
    device = Target.load(target)
    if novelty is not None:
        require_edgerec(device)
    path = user_path(out) if out is not None else run.path.with_name(f"{run.path.name}-{device.name}")
    autoencoder_run = novelty.run if isinstance(novelty, Novelty) else novelty
    checked_output(path, [run.path, autoencoder_run, data or run.recipe.data.source], suffixes=(".zip",), folder=True)
    refuse_existing(path, overwrite, replaceable=Bundle.exists_at(path))
    dataset, split = run.data(data, listener)
    chosen = choose(run, device, variant, max_drop=max_drop, data=data, listener=listener)
    content, report = chosen.content, chosen.report
    autoencoder = None if novelty is None else fit_autoencoder(Novelty.of(novelty), run, device, data, listener)
    decision = fit_decision(run, content, dataset, split, threshold=threshold, precision=precision, listener=listener)
    models = {"model.tflite": content}
    edgetpu = add_compiled(models, content, device, DELEGATE_MODEL)
    provenance: dict[str, Any] = {"data_digest": dataset.digest, "edgerec": __version__}
    if summary := split_summary(run.split_record):
        provenance["split"] = summary
    if run.adopted is not None:
        provenance["adopted"] = run.adopted
    manifest = _manifest(
        bundle_name(path), run, device, report, content, decision, DELEGATE_MODEL in models, provenance
    )
    if autoencoder is not None:
        models |= autoencoder.files
        manifest = autoencoder.added_to(manifest)
    images = _golden_images(dataset, split)
    if key is not None:
        manifest = with_serial(manifest, serial)
    files, golden = write_verified(
        path,
        manifest,
        models,
        device,
        images,
        report["figures"],
        overwrite=overwrite,
        sign=None if key is None else partial(_sign, key=key, listener=listener),
    )
    run.record_export(chosen.name, report["model_sha256"], device.name, str(path))
    return ExportReport(
        bundle=str(path),
        target=device.name,
        variant=chosen.name,
        top1=report["forms"][-1]["top1"],
        drop_points=report["drop_points"],
        size_bytes=len(content),
        files=files,
        golden=golden,
        edgetpu=edgetpu,
        novelty=None if autoencoder is None else autoencoder.report,
    )


def _sign(content: bytes, key: Path, listener: Listener) -> bytes:
    listener(Progress("signing", 0, 1, may_ask_user=True))
    signature = create_signature(content, key)
    listener(Progress("signing", 1, 1))
    return signature


def _manifest(
    name: str,
    run: Run,
    target: Target,
    report: VariantRecord,
    content: bytes,
    decision: DecisionSpec,
    compiled: bool,
    provenance: dict[str, Any],
) -> Manifest:
    recipe = run.recipe
    model = ImageModel(content, recipe.normalize, where=report["variant"])
    return Manifest(
        name=name,
        labels=run.labels,
        input=model.input,
        output=model.output,
        preprocess=recipe.preprocess,
        normalize=recipe.normalize,
        decision=decision,
        target=target.name,
        variant=report["variant"],
        files={},  # filled in by Bundle.write
        threads=target.threads,
        delegate=target.manifest_delegate if compiled else "",
        delegate_model=DELEGATE_MODEL if compiled else "",
        metrics={"forms": report["forms"], "drop_points": report["drop_points"], "images": report["images"]},
        provenance=provenance
        | {"recipe": without_folders(recipe).to_dict()}
        | {"calibration": report["calibration"], "sparsity": report["sparsity"], "versions": report["versions"]},
    )


def _golden_images(dataset: Dataset, split: Split) -> list[tuple[str, Image]]:
    chosen = [
        next(int(i) for i in split.test if dataset.classes[i] == index)
        for index in np.unique(dataset.classes[split.test])[:GOLDEN_IMAGES]
    ]
    return [(dataset.names[i], shrink(dataset.original(i))) for i in chosen]


def shrink(image: Image) -> Image:
    """Shrink an image to at most ``GOLDEN_SIDE_PX`` pixels in width and height.

    Returns:
        An image of shape ``(height, width, channels)``.
    """
    longest = max(image.shape[:2])
    if longest <= GOLDEN_SIDE_PX:
        return image if image.ndim == 3 else image[:, :, np.newaxis]
    height, width = (max(1, side * GOLDEN_SIDE_PX // longest) for side in image.shape[:2])
    return apply(image, PreprocessSpec(height, width, 1 if image.ndim == 2 else image.shape[2], fit="stretch"))
