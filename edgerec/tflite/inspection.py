"""Inspect a .tflite file or bundle: operators, tensors, cost, memory, and compatible targets.

TensorFlow's Analyzer is not used, because it requires TensorFlow and reports neither costs nor targets.
"""

from __future__ import annotations

import gzip
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgerec.contract.bundle import Bundle
from edgerec.contract.target import Target, target_names
from edgerec.errors import ModelError, TargetError
from edgerec.tflite.compatibility import findings
from edgerec.tflite.cost import macs, tensor_bytes
from edgerec.tflite.edgetpu.compiler import EdgeTpuReport, compile_for_edgetpu
from edgerec.tflite.edgetpu.diagnosis import Diagnosis, diagnose
from edgerec.tflite.flatbuffer import MAX_MODEL_BYTES, Graph, Operator, Tensor, read_graph, reading_graph
from edgerec.tflite.incompatibility import Incompatibility
from edgerec.tflite.memory import microcontroller_bytes, parameter_bytes, plan_bytes
from edgerec.tflite.metadata import Metadata, read_metadata
from edgerec.tflite.probing import probe_model
from edgerec.utils.atomic import read_at_most


@dataclass(frozen=True)
class InspectedTensor:
    """A tensor of an inspected model.

    Attributes:
        index, name: index of the tensor in the first subgraph, and its name.
        dtype: data type in lowercase, such as ``int8``.
        shape: shape of the tensor; dynamic dimensions are −1.
        scales, zero_points: quantization parameters: none, one, or one per channel.
        axis: channel axis if there are several ``scales``.
        constant: whether the tensor's values are stored in the file.
        size_bytes: size of the values.
    """

    index: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int
    constant: bool
    size_bytes: int


@dataclass(frozen=True)
class InspectedOperator:
    """An operator of an inspected model.

    Attributes:
        index: position of the operator in the first subgraph.
        op: builtin name in the TFLite schema, such as ``CONV_2D``, or ``CUSTOM`` followed by the operator's name.
        version: version of the operator.
        layer: name of the first output.
        inputs, outputs: tensor indices; absent optional inputs are None.
        shape: shape of the first output.
        macs: multiply-accumulate operations per image.
        parameter_bytes: size of the constant inputs.
        on: the device that runs the operator, ``edgetpu`` or ``cpu``, or an empty string if no target was specified.
        reason: why the operator cannot run on the Edge TPU or on the target, or an empty string if it can.
    """

    index: int
    op: str
    version: int
    layer: str
    inputs: tuple[int | None, ...]
    outputs: tuple[int, ...]
    shape: tuple[int, ...]
    macs: int
    parameter_bytes: int
    on: str = ""
    reason: str = ""


@dataclass(frozen=True)
class InspectedAutoencoder:
    """A bundle's autoencoder, which detects images that belong to none of the classes.

    Attributes:
        model: name of the model file in the bundle.
        size_bytes: size of the model file.
        threshold: reconstruction error above which an image is unknown.
    """

    model: str
    size_bytes: int
    threshold: float


@dataclass(frozen=True)
class InspectReport:
    """Result of inspecting a .tflite file or bundle.

    Attributes:
        file: the inspected path.
        model: name of the model file, which differs from ``file`` if a bundle was inspected.
        size_bytes, gzip_bytes: size of the model before and after gzip compression.
        parameter_bytes: size of the constants.
        macs: multiply-accumulate operations per image.
        arena_bytes: working memory for the tensors on a computer, as planned by TFLite.
        microcontroller_bytes: estimated arena size for TensorFlow Lite Micro, with a safety margin.
        subgraphs: number of subgraphs; more than one if the model contains control flow.
        inputs, outputs, tensors, operators: tensors and operators of the first subgraph.
        labels: labels in the metadata.
        normalize: pairs of mean and standard deviation in the metadata: one for all channels, or one per channel.
        targets: result of :func:`target_problems`.
        target: the target that was checked in detail, or an empty string if none was.
        findings: all reasons why ``target`` cannot run the model.
        edgetpu: predicted placement of each operator, or None if the target has no Edge TPU.
        compiler: the Edge TPU compiler's result, or None if the compiler failed or was not run.
        compiler_error: why the compiler failed, or an empty string if it succeeded or was not run.
        interpreter_error: why the interpreter on this machine cannot load or run the model, or an empty string if it
            can.
        metadata_faults: parts of the TFLite metadata that cannot be used, and why.
        novelty: the bundle's autoencoder, or None if there is none.
    """

    file: str
    model: str
    size_bytes: int
    gzip_bytes: int
    parameter_bytes: int
    macs: int
    arena_bytes: int
    microcontroller_bytes: int
    subgraphs: int
    inputs: tuple[InspectedTensor, ...]
    outputs: tuple[InspectedTensor, ...]
    tensors: tuple[InspectedTensor, ...]
    operators: tuple[InspectedOperator, ...]
    labels: tuple[str, ...]
    normalize: tuple[tuple[float, float], ...]
    targets: dict[str, str]
    target: str = ""
    findings: tuple[Incompatibility, ...] = ()
    edgetpu: Diagnosis | None = None
    compiler: EdgeTpuReport | None = None
    compiler_error: str = ""
    novelty: InspectedAutoencoder | None = None
    interpreter_error: str = ""
    metadata_faults: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-serializable dictionary."""
        return asdict(self) | {
            "edgetpu": self.edgetpu and self.edgetpu.to_dict(),
            "compiler": self.compiler and self.compiler.to_dict(),
        }


def inspect(path: str | Path, target: str | None = None, *, compiler: bool = True) -> InspectReport:
    """Inspect a .tflite file or a bundle's model, and test in a child process whether the model can run.

    Args:
        path: the file, or a bundle's folder or .zip. In an ensemble, the first model is inspected.
        target: a name in ``targets/`` or a .toml file. The report then states where each operator runs on this target,
            and every reason why the target cannot run the model.
        compiler: run the target's compiler if it is installed, and compare its result with the predicted placement.

    Raises:
        ModelError: the file is not a .tflite file, or is damaged.
        BundleError: the bundle is damaged.
        TargetError: the target is unknown or invalid.
    """
    loaded = Target.load(target) if target else None
    with reading_graph(str(path)):
        return _inspect(Path(path), loaded, compiler)


def _inspect(where: Path, target: Target | None, compiler: bool) -> InspectReport:
    name, content, autoencoder = _read_model(where)
    graph = read_graph(content, str(where))
    error = _interpreter_error(graph, content)
    problems = tuple(_all_findings(graph, content, target, error)) if target else ()
    diagnosis = diagnose(graph, target) if target and target.rules == "edgetpu" else None
    operators = tuple(_operator(operator) for operator in graph.operators)
    if target is not None:
        operators = _with_placement(operators, problems, diagnosis)
    compiler_report, compiler_error = _compile(content, target) if target and compiler else (None, "")
    metadata = read_metadata(content, str(where), needs=()) or Metadata("", "", (), ())
    return InspectReport(
        file=str(where),
        model=name,
        size_bytes=len(content),
        gzip_bytes=len(gzip.compress(content, 6)),
        parameter_bytes=parameter_bytes(graph),
        macs=sum(operator.macs for operator in operators),
        arena_bytes=plan_bytes(graph),
        microcontroller_bytes=microcontroller_bytes(graph),
        subgraphs=graph.subgraphs,
        inputs=tuple(_tensor(tensor) for tensor in graph.inputs),
        outputs=tuple(_tensor(tensor) for tensor in graph.outputs),
        tensors=tuple(_tensor(tensor) for tensor in _used(graph)),
        operators=operators,
        labels=metadata.labels,
        normalize=tuple((each.mean, each.std) for each in metadata.normalize),
        targets=target_problems(graph, content, error),
        interpreter_error=error,
        metadata_faults=tuple(f"{part}: {fault}" for part, fault in metadata.faults.items()),
        target=target.name if target else "",
        findings=problems,
        edgetpu=diagnosis,
        compiler=compiler_report,
        compiler_error=compiler_error,
        novelty=autoencoder,
    )


def target_problems(graph: Graph, content: bytes, error: str = "") -> dict[str, str]:
    """Check which built-in targets can run a model.

    Args:
        graph: the model's graph.
        content: the .tflite file's bytes.
        error: why the interpreter on this machine cannot load the model, or an empty string if it can.

    Returns:
        For each target name, the first reason why the target cannot run the model, or an empty string if it can.
    """
    first_problems = {}
    for name in target_names():
        problems = _all_findings(graph, content, Target.load(name), error)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        first_problems[name] = f"{problems[0]}{more}" if problems else ""
    return first_problems


def _interpreter_error(graph: Graph, content: bytes) -> str:
    """Return why the interpreter cannot run the model, or an empty string if it can.

    Models with custom operators are not loaded. :func:`findings` reports whether a target supports these operators.
    """
    if any(operator.name.startswith("CUSTOM") for operator in graph.operators):
        return ""
    return probe_model(content).error


def _all_findings(graph: Graph, content: bytes, target: Target, error: str) -> list[Incompatibility]:
    problems = findings(graph, content, target)
    if error and target.kind != "c":  # Targets of kind "c" use TensorFlow Lite Micro.
        problems.append(
            Incompatibility(-1, "interpreter", "", error, "convert the model again with a current TensorFlow")
        )
    return problems


def _compile(content: bytes, target: Target) -> tuple[EdgeTpuReport | None, str]:
    """Run the target's compiler if it is installed. Return its report, and an error message if the compiler failed."""
    if not target.compiler or shutil.which(target.compiler) is None:
        return None, ""
    try:
        return compile_for_edgetpu(content, target), ""
    except TargetError as error:
        return None, str(error)


def _read_model(path: Path) -> tuple[str, bytes, InspectedAutoencoder | None]:
    if path.is_dir() or path.suffix == ".zip":
        bundle = Bundle.open(path)
        spec = bundle.manifest.novelty
        size = 0 if spec is None else len(bundle.files[spec.model])
        autoencoder = None if spec is None else InspectedAutoencoder(spec.model, size, spec.threshold)
        return bundle.manifest.model, bundle.model, autoencoder
    try:
        return path.name, read_at_most(path, MAX_MODEL_BYTES), None
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); expected a .tflite file or a bundle") from None


def _used(graph: Graph) -> list[Tensor]:
    """Return the graph's inputs and outputs and all tensors of operators, sorted by index."""
    used = {id(tensor): tensor for tensor in (*graph.inputs, *graph.outputs)}
    for operator in graph.operators:
        used |= {id(t): t for t in (*operator.inputs, *operator.outputs) if t is not None}
    return sorted(used.values(), key=lambda tensor: tensor.index)


def _tensor(tensor: Tensor) -> InspectedTensor:
    return InspectedTensor(
        tensor.index,
        tensor.name,
        tensor.dtype.lower(),
        tensor.shape,
        tensor.scales,
        tensor.zero_points,
        tensor.axis,
        tensor.constant,
        tensor_bytes(tensor),
    )


def _operator(operator: Operator) -> InspectedOperator:
    return InspectedOperator(
        operator.index,
        operator.name,
        operator.version,
        operator.layer,
        tuple(None if tensor is None else tensor.index for tensor in operator.inputs),
        tuple(tensor.index for tensor in operator.outputs),
        operator.outputs[0].shape if operator.outputs else (),
        macs(operator),
        sum(len(tensor.data) for tensor in operator.inputs if tensor is not None and tensor.data is not None),
    )


def _with_placement(
    operators: tuple[InspectedOperator, ...], problems: tuple[Incompatibility, ...], diagnosis: Diagnosis | None
) -> tuple[InspectedOperator, ...]:
    """Set the device of each operator, and the reason if the target cannot run the operator."""
    if diagnosis is not None:
        return tuple(
            replace(operator, on=placement.on, reason=placement.reason)
            for operator, placement in zip(operators, diagnosis.operators, strict=True)
        )
    reasons = {finding.index: finding.reason for finding in problems}
    return tuple(replace(operator, on="cpu", reason=reasons.get(operator.index, "")) for operator in operators)
