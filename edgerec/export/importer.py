"""Create a bundle from a .tflite image classifier that was made with another tool."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgerec._version import __version__
from edgerec.contract.bundle import Bundle
from edgerec.contract.decision import DecisionSpec
from edgerec.contract.labels import distinct, in_order, read_labels
from edgerec.contract.manifest import Manifest
from edgerec.contract.preprocess import Fit, Image, PreprocessSpec
from edgerec.contract.target import Target
from edgerec.contract.tensors import TensorSpec
from edgerec.errors import DataError
from edgerec.export.exporter import shrink
from edgerec.export.writer import DELEGATE_MODEL, add_compiled, bundle_name, write_verified
from edgerec.runtime.classifier import read_image
from edgerec.runtime.third_party import ThirdPartyModel
from edgerec.tflite.compatibility import require_fit
from edgerec.tflite.edgetpu import EdgeTpuReport
from edgerec.tflite.metadata import Metadata, has_metadata, with_metadata, without_metadata
from edgerec.utils.atomic import checked_output, refuse_existing, user_path
from edgerec.utils.package_data import shipped

log = logging.getLogger(__name__)

VARIANT = "imported"


@dataclass(frozen=True)
class ImportReport:
    """Summary of a bundle created by :func:`import_tflite`.

    Attributes:
        bundle: path of the bundle folder or .zip file.
        labels: number of labels.
        input, output: the model's input and output tensors.
        normalize: mean and standard deviation for normalizing pixels in [0, 255].
        activation: function that converts the output to scores; ``none`` if the output contains scores.
        activation_reason: how the activation was determined.
        last_operator: operator that computes the output.
        sums_to_one: whether each image's scores add up to 1. Otherwise, several labels can apply to an image.
        fit: how images with a different aspect ratio are fitted to the input: ``crop``, ``stretch`` or ``pad``.
        fit_reason: why this fit was chosen.
        family: the tool that created the model, such as ``Teachable Machine``; empty if the tool was not recognized.
        label_source: file that contains the labels.
        layout: how the original input differs from ``(1, height, width, channels)``; empty if it does not.
        golden: number of verified golden images.
        edgetpu: Edge TPU compiler result for Coral targets, or None for other targets.
    """

    bundle: str
    target: str
    labels: int
    input: TensorSpec
    output: TensorSpec
    normalize: tuple[float, float]
    activation: str
    activation_reason: str
    last_operator: str
    sums_to_one: bool
    fit: Fit
    fit_reason: str
    family: str
    label_source: str
    layout: str
    size_bytes: int
    files: tuple[str, ...]
    golden: int
    edgetpu: EdgeTpuReport | None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-serializable dictionary."""
        return vars(self) | {
            "input": self.input.to_dict(),
            "output": self.output.to_dict(),
            "normalize": list(self.normalize),
            "files": list(self.files),
            "edgetpu": self.edgetpu and self.edgetpu.to_dict(),
        }


def import_tflite(
    model: str | Path,
    out: str | Path,
    *,
    labels: str | Path | None = None,
    target: str = "desktop",
    normalize: str | None = None,
    activation: str | None = None,
    fit: Fit | None = None,
    images: Sequence[str | Path] = (),
    overwrite: bool = False,
) -> ImportReport:
    """Import a .tflite image classifier as a bundle, and verify the bundle on this machine.

    Args:
        model: a file with one input, float32, uint8 or int8 ``(1, height, width, 1 or 3)``, ``(1, height, width)``,
            ``(height, width)`` or ``(1, 1 or 3, height, width)``, and one score per label as its output.
        out: output folder or .zip file for the bundle.
        labels: a label file in one of the formats supported by :func:`~edgerec.contract.labels.read_labels`. If None,
            the labels in the model's metadata are used.
        target: a name in ``targets/``, or a .toml file.
        normalize: the normalization that the model expects, in the syntax of ``parse_normalize``. If None, pixels for
            uint8 and int8 inputs are not changed, and the normalization in the metadata is used for float32 inputs. If
            the normalization differs between channels or the model expects BGR, a normalization layer is added to the
            start of the graph.
        activation: function that converts the output to scores: ``none``, ``softmax`` or ``sigmoid``. If None, the
            model is run on test inputs to find out whether the outputs are already probabilities.
        fit: how images with a different aspect ratio are fitted to the input. If None, the method used by the tool that
            created the model is used, or ``stretch`` if the tool is not recognized.
        images: files to use as golden images; if empty, images included in edgerec are used.
        overwrite: replace an existing bundle.

    Raises:
        ModelError: the model is not an image classifier, or its normalization is unknown.
        DataError: the number of labels differs from the number of scores.
        TargetError: the target cannot run the model.
    """
    source, device = user_path(model), Target.load(target)
    path = checked_output(out, [source, labels, *images], suffixes=(".zip",), folder=True)
    refuse_existing(path, overwrite, replaceable=Bundle.exists_at(path))
    original = ThirdPartyModel.open(
        source, activation=activation, own_labels=labels is not None, own_normalize=normalize is not None
    )
    names, label_source = _labels(labels, original)
    fit_reason = "chosen with --fit" if fit else original.family.reason
    fit = fit or original.family.fit
    finished, pixels = original.normalized(normalize)
    require_fit(finished.content, device, finished.where)
    _, height, width, channels = finished.input.shape
    content = finished.content
    if device.kind == "model" and has_metadata(content) and _overridden(original, names if labels else None, normalize):
        log.info("replacing the metadata in %s, because it differs from --labels or --normalize", original.where)
        content = without_metadata(content)
    if not has_metadata(content) and (device.kind == "model" or finished is not original):
        content = with_metadata(content, names, pixels, source.stem)  # for apps
    models = {"model.tflite": content}
    edgetpu = add_compiled(models, content, device, DELEGATE_MODEL)
    manifest = Manifest(
        name=bundle_name(path),
        labels=names,
        input=finished.input,
        output=finished.output,
        preprocess=PreprocessSpec(height, width, channels, fit),
        normalize=pixels,
        decision=DecisionSpec(),
        target=device.name,
        variant=VARIANT,
        files={},  # filled in by Bundle.write
        activation=finished.activation,
        threads=device.threads,
        delegate=device.manifest_delegate if DELEGATE_MODEL in models else "",
        delegate_model=DELEGATE_MODEL if DELEGATE_MODEL in models else "",
        provenance={
            "imported": {"file": source.name, "sha256": original.sha256}
            | ({"layout": original.layout.description} if original.layout else {})
            | ({} if finished is original else {"normalize": original.expected(normalize).to_text()}),
            "edgerec": __version__,
        },
    )
    golden_images = _golden_images(images)
    files, golden = write_verified(path, manifest, models, device, golden_images, None, overwrite=overwrite)
    return ImportReport(
        bundle=str(path),
        target=device.name,
        labels=len(manifest.labels),
        input=finished.input,
        output=finished.output,
        normalize=(manifest.normalize.mean, manifest.normalize.std),
        activation=finished.activation,
        activation_reason=finished.activation_reason,
        last_operator=finished.last_operator,
        sums_to_one=finished.sums_to_one,
        fit=fit,
        fit_reason=fit_reason,
        family=finished.family.name,
        label_source=label_source,
        layout=finished.layout.description if finished.layout else "",
        size_bytes=len(content),
        files=files,
        golden=golden,
        edgetpu=edgetpu,
    )


def _overridden(finished: ThirdPartyModel, labels: tuple[str, ...] | None, normalize: str | None) -> bool:
    """Return whether the labels or normalization given by the user differ from the TFLite metadata."""
    metadata = finished.metadata or Metadata("", "", (), ())
    other_labels = labels is not None and metadata.labels != labels
    return other_labels or (normalize is not None and set(metadata.normalize) != {finished.expected(normalize)})


def _labels(path: str | Path | None, finished: ThirdPartyModel) -> tuple[tuple[str, ...], str]:
    """Return the labels, and the path or name of the file that contains them."""
    where, classes, metadata = finished.where, finished.classes, finished.metadata
    if path is not None:
        return distinct(read_labels(Path(path), classes, where), str(path)), str(path)
    labels, origin = in_order(metadata.labels if metadata else ()), f"the metadata of {where}"
    if not labels:
        raise DataError(
            f"{where} contains no labels: add --labels with a text file that lists {classes} labels, one per line"
        )
    if len(labels) != classes:
        raise DataError(
            f"{origin} contains {len(labels)} labels, but {where} outputs {classes} scores: add --labels with a text "
            f"file that lists {classes} labels, one per line"
        )
    return distinct(labels, origin), metadata.label_file if metadata else ""


def _golden_images(images: Sequence[str | Path]) -> list[tuple[str, Image]]:
    """Load the golden images and return them with their file names.

    If no images are given, images of digits from ``calibration/`` are used. They suit any model, because golden images
    only test the arithmetic.
    """
    paths = [Path(image) for image in images] or [
        sorted(folder.iterdir())[0] for folder in sorted((shipped("calibration") / "digits").glob("[0-9]"))
    ]
    return [(path.name, shrink(read_image(path))) for path in paths]
