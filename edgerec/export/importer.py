"""A bundle of a finished .tflite model that others made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edgerec
from edgerec.compress.flatbuffer import Graph, read_graph
from edgerec.contract.bundle import Bundle
from edgerec.contract.decision import DecisionSpec
from edgerec.contract.files import refuse_existing, sha256
from edgerec.contract.labels import distinct, in_order, read_labels
from edgerec.contract.manifest import Manifest
from edgerec.contract.metadata import Metadata, normalise_for, read_metadata
from edgerec.contract.preprocess import Fit, Image, PreprocessSpec
from edgerec.contract.shipped import shipped
from edgerec.contract.target import Target
from edgerec.contract.tensors import TensorSpec, parse_normalise
from edgerec.errors import DataError, ModelError, TargetError
from edgerec.export.card import readme, requirements
from edgerec.export.edgetpu import EdgeTpuReport, for_edgetpu
from edgerec.export.exporter import DELEGATE_MODEL, shrunk
from edgerec.runtime.classifier import Classifier, read_image
from edgerec.runtime.golden import make_golden, verify
from edgerec.runtime.interpreter import input_spec, open_interpreter, output_spec

VARIANT = "imported"
_DTYPES = ("FLOAT32", "UINT8", "INT8")
# Operators that change how the output is stored, not what it says.
_AFTER = ("DEQUANTIZE", "QUANTIZE", "RESHAPE", "SQUEEZE")


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
        labels: a text file, one label a line or ``index label``; None takes those in the model's metadata.
        target: a name in ``targets/``, or a .toml file.
        normalise: what pixels become, as ``parse_normalise`` reads it. None lets them pass through uint8 and int8,
            and takes what the metadata says of float32.
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
    finished = _open(source)
    _check_target(finished, aim)
    _, height, width, channels = finished.input.shape
    if normalise:
        pixels_become = parse_normalise(normalise)
    else:
        pixels_become = normalise_for(finished.input, finished.metadata, finished.where)
    compiled = for_edgetpu(finished.content, aim) if aim.compiler else None
    files = {"model.tflite": finished.content}
    if compiled is not None and compiled.content:
        files[DELEGATE_MODEL] = compiled.content
    manifest = Manifest(
        name=path.stem if path.suffix == ".zip" else path.name,
        labels=_labels(labels, finished),
        input=finished.input,
        output=finished.output,
        preprocess=PreprocessSpec(height, width, channels, fit),
        normalise=pixels_become,
        decision=DecisionSpec(),
        target=aim.name,
        variant=VARIANT,
        files={},  # Bundle.write fills in the digests
        activation=finished.activation,
        threads=aim.threads,
        delegate=aim.delegate if DELEGATE_MODEL in files else "",
        delegate_model=DELEGATE_MODEL if DELEGATE_MODEL in files else "",
        provenance={
            "imported": {"file": source.name, "sha256": sha256(finished.content)},
            "edgerec": edgerec.__version__,
        },
    )
    files["labels.txt"] = "".join(f"{label}\n" for label in manifest.labels).encode()
    files |= make_golden(Classifier(Bundle(path, manifest, files), delegate=""), _golden_pictures(pictures))
    if aim.requirements:
        files["requirements.txt"] = requirements(aim).encode()
    files["README.md"] = readme(manifest, aim, None).encode()
    Bundle.write(path, manifest, files, overwrite=overwrite)
    return ImportReport(
        bundle=str(path),
        target=aim.name,
        labels=len(manifest.labels),
        input=finished.input,
        output=finished.output,
        normalise=(manifest.normalise.mean, manifest.normalise.std),
        activation=finished.activation,
        last_operator=finished.last_operator,
        size_bytes=len(finished.content),
        files=tuple(sorted(files)),
        golden=len(verify(path).golden),
        edgetpu=compiled,
    )


@dataclass(frozen=True)
class _Finished:
    """A .tflite file that is an image classifier, and what it says of itself."""

    where: str
    content: bytes
    input: TensorSpec
    output: TensorSpec
    last_operator: str
    activation: str
    metadata: Metadata | None

    @property
    def classes(self) -> int:
        return 2 if self.activation == "binary" else self.output.size


def _open(path: Path) -> _Finished:
    where = str(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{where} cannot be read: {error.strerror}") from None
    graph = read_graph(content, where)
    _check(graph, where)
    metadata = read_metadata(content, where)
    interpreter = open_interpreter(content, where=where)
    answer, last = output_spec(interpreter, where), _last_operator(graph)
    activation = _activation(last, answer, where)
    return _Finished(where, content, input_spec(interpreter, where), answer, last, activation, metadata)


def _check(graph: Graph, where: str) -> None:
    """Refuse what no bundle can hold, before an interpreter sees it."""
    if any(operator.name == "CUSTOM edgetpu-custom-op" for operator in graph.operators):
        raise ModelError(
            f"{where} was compiled for the Edge TPU and runs nowhere else, so that nothing could verify it: "
            "import the file from before the compiler; --target coral compiles it where edgetpu_compiler is installed"
        )
    for what, tensors in (("input", graph.inputs), ("output", graph.outputs)):
        if len(tensors) != 1:
            raise ModelError(f"{where} has {len(tensors)} {what}s, an image classifier has one")
        shape, dtype = tensors[0].shape, tensors[0].dtype
        if dtype not in _DTYPES:
            raise ModelError(f"{where}: its {what} is {dtype}, expected {', '.join(_DTYPES)}: convert it with one")
        if -1 in shape[1:]:  # a batch of any size is used as one
            raise ModelError(
                f"{where}: its {what} has a dynamic shape {list(shape)} (-1 is any): convert it with a fixed one"
            )
    shape = graph.inputs[0].shape
    sized = len(shape) == 4 and all(1 <= n <= 4096 for n in shape[1:3])
    if not sized or shape[0] not in (1, -1) or shape[3] not in (1, 3):
        raise ModelError(f"{where} takes {list(shape)}, expected [1, height, width, 1 or 3], 4096 pixels at most")
    shape = graph.outputs[0].shape
    if len(shape) < 2 or shape[0] not in (1, -1) or sum(n > 1 for n in shape) > 1:
        raise ModelError(f"{where} gives {list(shape)}, expected [1, classes]: it is no image classifier")


def _last_operator(graph: Graph) -> str:
    """The operator that computes the output, past those that only store it otherwise; empty without one."""
    makers = {id(tensor): operator for operator in graph.operators for tensor in operator.outputs}
    operator = makers.get(id(graph.outputs[0]))
    while operator is not None and operator.name in _AFTER:
        earlier = makers.get(id(operator.inputs[0]))
        if earlier is None:
            break
        operator = earlier
    return operator.name if operator is not None else ""


def _activation(last: str, answer: TensorSpec, where: str) -> str:
    if answer.size == 1:
        if last != "LOGISTIC":
            raise ModelError(
                f"{where} gives one number that no sigmoid made (its last operator is {last}): it is no classifier; "
                "end a classifier of two classes in a sigmoid, or in two outputs"
            )
        return "binary"
    return "none" if last in ("SOFTMAX", "LOGISTIC") else "softmax"


def _check_target(finished: _Finished, target: Target) -> None:
    kind = "int8" if finished.input.quantized and finished.output.quantized else "float32"
    if kind not in target.types:
        raise TargetError(
            f"target {target.name} runs {' and '.join(target.types)}, {finished.where} has a float32 input or output: "
            "convert it with uint8 or int8 ones, or choose --target desktop"
        )


def _labels(path: str | Path | None, finished: _Finished) -> tuple[str, ...]:
    where, classes = finished.where, finished.classes
    if path is not None:
        labels, origin = read_labels(Path(path)), str(path)
    else:
        labels, origin = in_order(finished.metadata.labels if finished.metadata else ()), f"the metadata of {where}"
        if not labels:
            raise DataError(f"{where} has no labels in it: add --labels labels.txt, with {classes} lines")
    if len(labels) != classes:
        raise DataError(f"{origin} has {len(labels)} labels, {where} gives {classes} scores: they must be as many")
    return distinct(labels, origin)


def _golden_pictures(pictures: Sequence[str | Path]) -> list[tuple[str, Image]]:
    """The given pictures, or one of each shipped digit: not what the model knows, but its arithmetic is proven."""
    paths = [Path(picture) for picture in pictures] or [
        sorted(folder.iterdir())[0] for folder in sorted((shipped("calibration") / "digits").glob("[0-9]"))
    ]
    return [(path.name, shrunk(read_image(path))) for path in paths]
