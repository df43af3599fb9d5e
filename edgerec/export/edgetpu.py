"""What the Edge TPU takes, after Coral's published rules, and its compiler where there is one.

Rules: coral.ai, "TensorFlow models on the Edge TPU", sections "Model requirements" and "Supported operations".
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgerec.contract.flatbuffer import Graph, Operator, Tensor, read_graph
from edgerec.contract.target import Target
from edgerec.errors import TargetError

log = logging.getLogger(__name__)

COMPILE_TIMEOUT_S = 300
HOW_TO_COMPILE = (
    "install edgetpu_compiler (x86-64 Debian or Ubuntu, from Coral's package archive; see coral.ai, "
    "'Edge TPU Compiler') and export again with --overwrite; until then the bundle runs on the processor"
)

# A rule gives the reason why an operator is refused, or None.
Rule = Callable[[Operator], str | None]


@dataclass(frozen=True)
class Finding:
    """An operator (index −1: the whole model) that the Edge TPU refuses, why, and the way out."""

    index: int
    op: str
    layer: str
    reason: str
    way_out: str


@dataclass(frozen=True)
class EdgeTpuReport:
    """A model that the rules take, and what the compiler said; ``content`` is empty without a compiler."""

    operators: int
    compiler: str
    log: str
    content: bytes

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values, without the file."""
        return {
            "operators": self.operators,
            "compiled": bool(self.content),
            "compiler": self.compiler,
            "log": self.log,
        }


def for_edgetpu(content: bytes, target: Target) -> EdgeTpuReport:
    """Check a .tflite file by the rules, and compile it when the target's compiler is on the PATH.

    Raises:
        TargetError: the rules refuse it, or the compiler fails.
    """
    graph = read_graph(content)
    if findings := check(graph):
        first = findings[0]
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        raise TargetError(f"the Edge TPU refuses {first.op} {first.layer!r}: {first.reason}{more}; {first.way_out}")
    compiler = shutil.which(target.compiler)
    if compiler is None:
        log.warning("not compiled for the Edge TPU: %s", HOW_TO_COMPILE)
        return EdgeTpuReport(len(graph.operators), "", HOW_TO_COMPILE, b"")
    compiled, said = compile_model(compiler, content)
    return EdgeTpuReport(len(graph.operators), compiler, said, compiled)


def compile_model(compiler: str, content: bytes) -> tuple[bytes, str]:
    """Run ``edgetpu_compiler``; gives the compiled file and what the compiler said.

    Raises:
        TargetError: it failed, or took longer than five minutes.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.tflite"
        source.write_bytes(content)
        try:
            done = subprocess.run(
                [compiler, "-s", "-o", folder, str(source)],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=COMPILE_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise TargetError(f"{compiler} did not end within {COMPILE_TIMEOUT_S} s: run it by hand") from None
        except OSError as error:
            raise TargetError(f"{compiler} does not run: {error}") from None
        said = (done.stdout + done.stderr).strip()
        result = Path(folder) / "model_edgetpu.tflite"
        if done.returncode or not result.is_file():
            last = said.splitlines()[-1] if said else "it said nothing"
            raise TargetError(f"{compiler} failed with exit code {done.returncode}: {last}")
        return result.read_bytes(), said


def check(graph: Graph) -> list[Finding]:
    """Everything that the rules refuse; an empty list means that the whole model is mapped."""
    findings = []
    for what, tensors in (("input", graph.inputs), ("output", graph.outputs)):
        for tensor in tensors:
            if tensor.dtype not in ("INT8", "UINT8"):
                findings.append(
                    Finding(-1, what, tensor.name, f"it is {tensor.dtype}, expected INT8 or UINT8", _QUANTIZE)
                )
    if graph.subgraphs > 1:
        findings.append(
            Finding(
                -1, "model", "", f"it has {graph.subgraphs} subgraphs, expected one", "build it without control flow"
            )
        )
    for operator in graph.operators:
        if reason := _refused(operator):
            layer = operator.outputs[0].name if operator.outputs else ""
            findings.append(Finding(operator.index, operator.name, layer, reason, _way_out(operator)))
    return findings


_QUANTIZE = "quantize it: edgerec quantize RUN --method qat"


def _way_out(operator: Operator) -> str:
    if any("FLOAT" in t.dtype for t in operator.outputs):
        return _QUANTIZE
    return "use an architecture without it, or --target desktop or rpi"


def _refused(operator: Operator) -> str | None:
    if operator.name not in _RULES:
        return "the operator is not on its list"
    tensors = [t for t in (*operator.inputs, *operator.outputs) if t is not None]
    # An LSTM keeps its cell state in 16 bits, and is mapped so.
    dtypes = _DTYPES | ({"INT16"} if operator.name == "UNIDIRECTIONAL_SEQUENCE_LSTM" else set())
    for tensor in tensors:
        if reason := _refused_tensor(tensor, dtypes):
            return reason
    return _RULES[operator.name](operator)


_DTYPES = {"INT8", "UINT8", "INT32"}


def _refused_tensor(tensor: Tensor, dtypes: set[str]) -> str | None:
    if tensor.dtype not in dtypes:
        return f"tensor {tensor.name!r} is {tensor.dtype}, expected 8-bit integers"
    if -1 in tensor.shape:
        return f"tensor {tensor.name!r} has a dynamic shape {list(tensor.shape)}"
    if not tensor.constant and any(n > 1 for n in tensor.shape[:-3]):
        return f"tensor {tensor.name!r} is {list(tensor.shape)}: only the three innermost dimensions may exceed 1"
    return None


def _any(operator: Operator) -> str | None:
    return None


def _no_activation(operator: Operator) -> str | None:
    return "it has a fused activation" if operator.options.fusedActivationFunction else None


def _conv(operator: Operator) -> str | None:
    if operator.options.dilationWFactor != operator.options.dilationHFactor:
        return "its dilation differs between x and y"
    return _constant_parameters(operator)


def _constant_parameters(operator: Operator) -> str | None:
    if any(t is not None and not t.constant for t in operator.inputs[1:]):
        return "its weights or bias are not constant"
    return None


def _fully_connected(operator: Operator) -> str | None:
    if operator.options.weightsFormat:
        return "its weights have another format than the default"
    if sum(n > 1 for n in operator.outputs[0].shape) > 1:
        return "its output has more than one dimension"
    return _constant_parameters(operator)


def _concatenation(operator: Operator) -> str | None:
    constants = [t for t in operator.inputs if t is not None and t.constant]
    for tensor in constants:
        zero = tensor.zero_points[0] if tensor.zero_points else 0
        if len(operator.inputs) != 2 or (tensor.data is not None and (tensor.data.view(np.int8) != zero).any()):
            return "a constant input is only allowed as zeros beside one other input"
    return _no_activation(operator)


def _axes(operator: Operator) -> set[int]:
    tensor, axes = operator.inputs[0], operator.inputs[1]
    if tensor is None or axes is None or axes.data is None:
        return {0}
    return {int(n) % len(tensor.shape) for n in axes.data.view(np.int32)}


def _reduction(operator: Operator) -> str | None:
    axes, tensor = _axes(operator), operator.inputs[0]
    if 0 in axes:
        return "it reduces the batch"
    if operator.name == "MEAN" and tensor is not None and len(tensor.shape) - 1 in axes and tensor.shape[-1] % 4:
        return f"it averages {tensor.shape[-1]} channels, expected a multiple of 4"
    return None


def _pad(operator: Operator) -> str | None:
    amounts = operator.inputs[1]
    if amounts is None or amounts.data is None:
        return "its amounts are not constant"
    return "it pads the batch" if amounts.data.view(np.int32)[:2].any() else None


def _softmax(operator: Operator) -> str | None:
    shape = operator.outputs[0].shape
    if sum(n > 1 for n in shape) > 1 or max(shape, default=1) > 16000:
        return f"its input is {list(shape)}, expected one dimension of at most 16,000"
    return None


def _strided_slice(operator: Operator) -> str | None:
    strides = operator.inputs[3]
    if strides is None or strides.data is None or (strides.data.view(np.int32) != 1).any():
        return "its strides are not all 1"
    if operator.options.ellipsisMask or operator.options.newAxisMask:
        return "it has an ellipsis or a new axis"
    return None


def _split(operator: Operator) -> str | None:
    axis, tensor = operator.inputs[0], operator.inputs[1]
    if axis is None or axis.data is None or tensor is None:
        return "its axis is not constant"
    return "it splits the batch" if int(axis.data.view(np.int32)[0]) % len(tensor.shape) == 0 else None


def _pack(operator: Operator) -> str | None:
    return "it packs the batch" if operator.options.axis == 0 else None


def _prelu(operator: Operator) -> str | None:
    alpha = operator.inputs[1]
    if alpha is not None and any(n > 1 for n in alpha.shape[:-1]):
        return f"its alpha is {list(alpha.shape)}, expected one dimension (shared_axes=[1, 2])"
    return None


_RULES: dict[str, Rule] = {
    "ADD": _any,
    "AVERAGE_POOL_2D": _no_activation,
    "CONCATENATION": _concatenation,
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _conv,
    "EXPAND_DIMS": _any,
    "FULLY_CONNECTED": _fully_connected,
    "L2_NORMALIZATION": _any,
    "LOGISTIC": _any,
    "MAXIMUM": _any,
    "MAX_POOL_2D": _no_activation,
    "MEAN": _reduction,
    "MINIMUM": _any,
    "MUL": _any,
    "PACK": _pack,
    "PAD": _pad,
    "PRELU": _prelu,
    "QUANTIZE": _any,
    "REDUCE_MAX": _reduction,
    "REDUCE_MIN": _reduction,
    "RELU": _any,
    "RELU6": _any,
    "RELU_N1_TO_1": _any,
    "RESHAPE": _any,
    "RESIZE_BILINEAR": _any,
    "RESIZE_NEAREST_NEIGHBOR": _any,
    "RSQRT": _any,
    "SLICE": _any,
    "SOFTMAX": _softmax,
    "SPACE_TO_DEPTH": _any,
    "SPLIT": _split,
    "SQUARED_DIFFERENCE": _any,
    "SQUEEZE": _any,
    "STRIDED_SLICE": _strided_slice,
    "SUB": _any,
    "SUM": _reduction,
    "TANH": _any,
    "TRANSPOSE": _any,
    "TRANSPOSE_CONV": _any,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _any,
}
