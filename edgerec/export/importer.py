"""A bundle of a finished .tflite model that others made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edgerec
from edgerec.contract.bundle import Bundle
from edgerec.contract.decision import DecisionSpec
from edgerec.contract.files import refuse_existing, sha256
from edgerec.contract.labels import distinct, in_order, read_labels
from edgerec.contract.manifest import Manifest
from edgerec.contract.metadata import with_metadata
from edgerec.contract.preprocess import Fit, Image, PreprocessSpec
from edgerec.contract.shipped import shipped
from edgerec.contract.target import Target
from edgerec.contract.tensors import TensorSpec
from edgerec.errors import DataError
from edgerec.export.edgetpu import EdgeTpuReport, compiled
from edgerec.export.exporter import DELEGATE_MODEL, shrunk
from edgerec.export.fit import require_fit
from edgerec.export.writer import write_verified
from edgerec.runtime.classifier import read_image
from edgerec.runtime.finished import Finished

VARIANT = "imported"


@dataclass(frozen=True)
class ImportReport:
    """What import wrote.

    Attributes:
        bundle: the folder or .zip.
        labels: how many.
        input, output: the tensors as the file declares them.
        normalise: mean and std, in pixels, of what pixels become.
        activation: what makes scores of the output; ``none`` where the model does so itself.
        last_operator: from which that follows.
        golden: pictures that were verified.
        edgetpu: for Coral: whether the model was compiled, and what to do if not.
    """

    bundle: str
    target: str
    labels: int
    input: TensorSpec
    output: TensorSpec
    normalise: tuple[float, float]
    activation: str
    last_operator: str
    size_bytes: int
    files: tuple[str, ...]
    golden: int
    edgetpu: EdgeTpuReport | None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return vars(self) | {
            "input": self.input.to_dict(),
            "output": self.output.to_dict(),
            "normalise": list(self.normalise),
            "files": list(self.files),
            "edgetpu": self.edgetpu and self.edgetpu.to_dict(),
        }


def import_tflite(
    model: str | Path,
    out: str | Path,
    *,
    labels: str | Path | None = None,
    target: str = "desktop",
    normalise: str | None = None,
    fit: Fit = "stretch",
    pictures: Sequence[str | Path] = (),
    overwrite: bool = False,
) -> ImportReport:
    """Write the bundle of a finished .tflite image classifier, and verify it where it stands.

    Args:
        model: float32, uint8 or int8 ``(1, height, width, 1 or 3)`` in, as many numbers as labels out.
        out: the bundle's folder, or a .zip.
        labels: a label file, as :func:`~edgerec.contract.labels.read_labels` reads it; None uses the labels in the
            model's metadata.
        target: a name in ``targets/``, or a .toml file.
        normalise: the normalization that the model expects, as ``parse_normalise`` reads it. None lets pixels pass
            through uint8 and int8, and takes what the metadata states for float32. If it differs between channels,
            or the model takes BGR, a layer at the start of the graph applies it.
        fit: how a picture of another shape becomes the input; ``stretch`` is what other TFLite tools do.
        pictures: picture files for the golden vectors; none takes those that come with edgerec.
        overwrite: replace a bundle that is there.

    Raises:
        ModelError: the model is no image classifier, or does not say what its pixels become.
        DataError: the labels are not as many as the scores.
        TargetError: the target cannot run it.
    """
    source, path, aim = Path(model), Path(out), Target.load(target)
    refuse_existing(path, overwrite, ours=Bundle.stands_at(path))
    original = Finished.open(source)
    names = _labels(labels, original)
    finished, pixels = original.normalised(normalise)
    require_fit(finished.content, aim, finished.where)
    _, height, width, channels = finished.input.shape
    content = finished.content
    if finished.metadata is None and (aim.kind == "model" or finished is not original):
        content = with_metadata(content, names, pixels, source.stem)  # where apps look for them
    edgetpu = compiled(content, aim) if aim.compiler else None
    models = {"model.tflite": content}
    if edgetpu is not None and edgetpu.content:
        models[DELEGATE_MODEL] = edgetpu.content
    manifest = Manifest(
        name=path.stem if path.suffix == ".zip" else path.name,
        labels=names,
        input=finished.input,
        output=finished.output,
        preprocess=PreprocessSpec(height, width, channels, fit),
        normalise=pixels,
        decision=DecisionSpec(),
        target=aim.name,
        variant=VARIANT,
        files={},  # Bundle.write fills in the digests
        activation=finished.activation,
        threads=aim.threads,
        delegate=aim.delegate if DELEGATE_MODEL in models else "",
        delegate_model=DELEGATE_MODEL if DELEGATE_MODEL in models else "",
        provenance={
            "imported": {"file": source.name, "sha256": sha256(original.content)}
            | ({} if finished is original else {"normalise": original.expected(normalise).to_text()}),
            "edgerec": edgerec.__version__,
        },
    )
    shown = _golden_pictures(pictures)
    files, golden = write_verified(path, manifest, models, aim, shown, None, overwrite=overwrite)
    return ImportReport(
        bundle=str(path),
        target=aim.name,
        labels=len(manifest.labels),
        input=finished.input,
        output=finished.output,
        normalise=(manifest.normalise.mean, manifest.normalise.std),
        activation=finished.activation,
        last_operator=finished.last_operator,
        size_bytes=len(content),
        files=files,
        golden=golden,
        edgetpu=edgetpu,
    )


def _labels(path: str | Path | None, finished: Finished) -> tuple[str, ...]:
    where, classes = finished.where, finished.classes
    if path is not None:
        return distinct(read_labels(Path(path), classes, where), str(path))
    labels, origin = in_order(finished.metadata.labels if finished.metadata else ()), f"the metadata of {where}"
    if not labels:
        raise DataError(f"{where} has no labels in it: add --labels labels.txt, with {classes} lines")
    if len(labels) != classes:
        raise DataError(
            f"{origin} has {len(labels)} labels, but {where} gives {classes} scores: add --labels labels.txt"
        )
    return distinct(labels, origin)


def _golden_pictures(pictures: Sequence[str | Path]) -> list[tuple[str, Image]]:
    """The given pictures, or one of each shipped digit: not what the model knows, but its arithmetic is proven."""
    paths = [Path(picture) for picture in pictures] or [
        sorted(folder.iterdir())[0] for folder in sorted((shipped("calibration") / "digits").glob("[0-9]"))
    ]
    return [(path.name, shrunk(read_image(path))) for path in paths]
