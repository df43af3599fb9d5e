"""Check whether a target can run a model, without running the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgerec.contract.target import Target
from edgerec.errors import TargetError
from edgerec.tflite.edgetpu.diagnosis import diagnose
from edgerec.tflite.flatbuffer import Graph, Operator, Tensor, read_graph, reading_graph
from edgerec.tflite.incompatibility import Incompatibility
from edgerec.tflite.memory import microcontroller_bytes, plan_bytes
from edgerec.tflite.operators import EDGETPU_CUSTOM, TFLITE_CUSTOM
from edgerec.utils.command_line import command

_QUANTIZE = "quantize it: edgerec quantize RUN, or edgerec quantize MODEL --data FOLDER"
_INTEGER_TYPES = {"INT8", "UINT8", "INT32", "INT64", "BOOL"}
# A model may use only half of a computer's memory, because other programs need memory as well.
_MEMORY_DIVISOR = 2


def require_fit(content: bytes, target: Target, where: str = "the model") -> Graph:
    """Check that a target can run a model, and return the model's graph.

    Args:
        content: the .tflite file's bytes.
        target: the target.
        where: the model's name in error messages.

    Raises:
        TargetError: the target cannot run the model. The message states the first reason, a solution, and the number
            of other reasons.
        ModelError: the bytes are not a .tflite file.
    """
    graph = read_graph(content, where)
    with reading_graph(where):
        problems = findings(graph, content, target)
    if problems:
        # A model in a bundle's .zip file has no path for `edgerec inspect`.
        show = f": {command('inspect', where, '--target', target.name)}" if Path(where).is_file() else ""
        more = f" (and {len(problems) - 1} more{show})" if len(problems) > 1 else ""
        raise TargetError(f"target {target.name} cannot run {where}: {problems[0]}{more}")
    return graph


def findings(graph: Graph, content: bytes, target: Target) -> list[Incompatibility]:
    """Return all reasons why ``target`` cannot run a model, or an empty list if it can.

    Args:
        graph: the model's graph.
        content: the .tflite file's bytes.
        target: the target, with its data types, operators and their versions, rules and memory.
    """
    if target.rules == "edgetpu":
        # The Edge TPU rules replace the general checks, because they state more specific reasons.
        return [*diagnose(graph, target).findings, *_memory(graph, content, target)]
    return [
        *_types(graph, target),
        *_input_and_output_types(graph, target),
        *_operators(graph, target),
        *_memory(graph, content, target),
    ]


def _types(graph: Graph, target: Target) -> Iterator[Incompatibility]:
    if "float32" in target.types:
        return
    for operator in graph.operators:
        for tensor in (*operator.inputs, *operator.outputs):
            if tensor is not None and tensor.dtype not in _INTEGER_TYPES and tensor.shape != (0,):
                reason = f"tensor {tensor.name[-60:]!r} is {tensor.dtype}, expected {' or '.join(target.types)}"
                yield Incompatibility(operator.index, operator.name, operator.layer, reason, _QUANTIZE)
                return


def _input_and_output_types(graph: Graph, target: Target) -> Iterator[Incompatibility]:
    ends: list[tuple[str, tuple[Tensor, ...], tuple[str, ...]]] = [
        ("input", graph.inputs, target.inputs),
        ("output", graph.outputs, target.outputs),
    ]
    for what, tensors, allowed in ends:
        for tensor in tensors:
            if tensor.dtype.lower() not in allowed:
                reason = f"the {what} is {tensor.dtype.lower()}, expected {' or '.join(allowed)}"
                way_out = f"convert it with inference_{what}_type=tf.{allowed[0]}"
                yield Incompatibility(-1, what, tensor.name, reason, way_out)


def _operators(graph: Graph, target: Target) -> Iterator[Incompatibility]:
    for operator in graph.operators:
        if operator.name == EDGETPU_CUSTOM:
            reason, way_out = "it was compiled for the Edge TPU", "use the .tflite file that was the compiler's input"
        elif operator.name in TFLITE_CUSTOM and target.kind != "c":
            continue
        elif operator.name.startswith("CUSTOM"):
            reason = "it is a custom operator, which TFLite does not provide"
            way_out = "remove it from the model, and compute it in the application"
        elif target.kind == "c" and (wrong := _unsupported_by_micro(operator)):
            reason, way_out = wrong, "quantize the model to int8, for example with edgerec quantize"
        elif not target.operators:
            continue
        elif operator.name not in target.operators:
            reason = "the target's runtime does not support this operator"
            way_out = "use an architecture without it, or another --target"
        elif 0 < target.operators[operator.name] < operator.version:
            highest = target.operators[operator.name]
            reason = f"it has version {operator.version}, but the target's runtime supports versions up to {highest}"
            way_out = "convert the model with an older version of TensorFlow, or with edgerec"
        else:
            continue
        yield Incompatibility(operator.index, operator.name, operator.layer, reason, way_out)


def _unsupported_by_micro(operator: Operator) -> str | None:
    """Return why TensorFlow Lite Micro does not support the data types of an operator, or None if it supports them."""
    data = operator.inputs[0] if operator.inputs else None
    if data is not None and data.dtype == "FLOAT16":
        return "its input is float16, which TensorFlow Lite Micro does not support"
    if data is None or operator.name in ("QUANTIZE", "DEQUANTIZE", "RESHAPE"):
        return None
    if data.dtype == "UINT8":
        return "its input is uint8, but TensorFlow Lite Micro supports only int8"
    weights = operator.inputs[1] if len(operator.inputs) > 1 else None
    if data.dtype == "FLOAT32" and weights is not None and weights.dtype == "INT8":
        return "it has int8 weights and a float32 input, which TensorFlow Lite Micro does not support"
    return None


def _memory(graph: Graph, content: bytes, target: Target) -> Iterator[Incompatibility]:
    if not target.memory_bytes:
        return
    if target.kind == "c":
        # Microcontrollers read weights from flash memory, so only the arena must fit into RAM.
        needs, has = microcontroller_bytes(graph), target.memory_bytes
        way_out = "use a smaller input size or width"
    else:
        needs, has = len(content) + plan_bytes(graph), target.memory_bytes // _MEMORY_DIVISOR
        way_out = "use a smaller input size or width, or a target with more memory"
    if needs > has:
        yield Incompatibility(
            -1, "memory", "", f"the model needs about {needs:,} bytes, but only {has:,} can be used", way_out
        )
