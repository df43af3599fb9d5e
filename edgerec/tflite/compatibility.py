"""Whether a model runs on a target, found out from its file alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgerec.contract.target import Target
from edgerec.errors import TargetError
from edgerec.tflite.edgetpu.diagnosis import check
from edgerec.tflite.finding import Finding
from edgerec.tflite.flatbuffer import Graph, Operator, Tensor, read_graph, reading_graph
from edgerec.tflite.memory import microcontroller_bytes, plan_bytes
from edgerec.utils.command_line import command

_QUANTIZE = "quantize it: edgerec quantize RUN, or edgerec quantize MODEL --data FOLDER"
_INTEGERS = {"INT8", "UINT8", "INT32", "INT64", "BOOL"}
# Those that TFLite itself registers.
_CUSTOM = {"CUSTOM TFLite_Detection_PostProcess", "CUSTOM Mfcc", "CUSTOM AudioSpectrogram", "CUSTOM NumericVerify"}
# Of a computer's memory, what Python, OpenCV and the system are left with.
_SHARE = 2


def require_fit(content: bytes, target: Target, where: str = "the model") -> Graph:
    """The graph of a .tflite file that the target runs.

    Raises:
        TargetError: it does not; the message has the first reason, how many more there are, and the way out.
    """
    graph = read_graph(content, where)
    with reading_graph(where):
        found = findings(graph, content, target)
    if found:
        # A model inside a bundle's .zip has no path that `edgerec inspect` could read.
        show = f": {command('inspect', where, '--target', target.name)}" if Path(where).is_file() else ""
        more = f" (and {len(found) - 1} more{show})" if len(found) > 1 else ""
        raise TargetError(f"target {target.name} cannot run {where}: {found[0]}{more}")
    return graph


def findings(graph: Graph, content: bytes, target: Target) -> list[Finding]:
    """Every reason why ``target`` cannot run a model as it stands; an empty list: it runs.

    Args:
        graph: of the .tflite file.
        content: its bytes.
        target: its types, inputs, outputs, operators with versions, rules and memory count.
    """
    if target.rules == "edgetpu":
        # The Edge TPU's own rules say all of it, with reasons that fit it better.
        return [*check(graph, target), *_memory(graph, content, target)]
    return [*_types(graph, target), *_ends(graph, target), *_operators(graph, target), *_memory(graph, content, target)]


def _types(graph: Graph, target: Target) -> Iterator[Finding]:
    if "float32" in target.types:
        return
    for operator in graph.operators:
        for tensor in (*operator.inputs, *operator.outputs):
            if tensor is not None and tensor.dtype not in _INTEGERS and tensor.shape != (0,):
                reason = f"tensor {tensor.name[-60:]!r} is {tensor.dtype}, expected {' or '.join(target.types)}"
                layer = operator.outputs[0].name if operator.outputs else ""
                yield Finding(operator.index, operator.name, layer, reason, _QUANTIZE)
                return


def _ends(graph: Graph, target: Target) -> Iterator[Finding]:
    ends: list[tuple[str, tuple[Tensor, ...], tuple[str, ...]]] = [
        ("input", graph.inputs, target.inputs),
        ("output", graph.outputs, target.outputs),
    ]
    for what, tensors, allowed in ends:
        for tensor in tensors:
            if tensor.dtype.lower() not in allowed:
                reason = f"it is {tensor.dtype.lower()}, expected {' or '.join(allowed)}"
                way_out = f"convert it with inference_{what}_type=tf.{allowed[0]}"
                yield Finding(-1, what, tensor.name, reason, way_out)


def _operators(graph: Graph, target: Target) -> Iterator[Finding]:
    for operator in graph.operators:
        layer = operator.outputs[0].name if operator.outputs else ""
        if operator.name == "CUSTOM edgetpu-custom-op":
            reason, way_out = "it was compiled for the Edge TPU", "take the file from before the compiler"
        elif operator.name in _CUSTOM and target.kind != "c":
            continue
        elif operator.name.startswith("CUSTOM"):
            reason, way_out = "it is no operator of TFLite's own", "leave it out, and do what it does outside"
        elif target.kind == "c" and (wrong := _not_for_micro(operator)):
            reason, way_out = wrong, "convert it with int8 inside, as edgerec quantize does"
        elif not target.operators:
            continue
        elif operator.name not in target.operators:
            reason, way_out = "its runtime has no such operator", "use an architecture without it, or another --target"
        elif 0 < target.operators[operator.name] < operator.version:
            highest = target.operators[operator.name]
            reason = f"it is of version {operator.version}, its runtime knows up to {highest}"
            way_out = "convert it with an older TensorFlow, or with edgerec"
        else:
            continue
        yield Finding(operator.index, operator.name, layer, reason, way_out)


def _not_for_micro(operator: Operator) -> str | None:
    """Why TensorFlow Lite Micro's kernel does not take these types, or None."""
    given = operator.inputs[0] if operator.inputs else None
    if given is not None and given.dtype == "FLOAT16":
        return "it works on float16, which TensorFlow Lite Micro does not have"
    if given is None or operator.name in ("QUANTIZE", "DEQUANTIZE", "RESHAPE"):
        return None
    if given.dtype == "UINT8":
        return "it works on uint8, TensorFlow Lite Micro's on int8"
    weights = operator.inputs[1] if len(operator.inputs) > 1 else None
    if given.dtype == "FLOAT32" and weights is not None and weights.dtype == "INT8":
        return "it has int8 weights for float32 numbers, which TensorFlow Lite Micro does not mix"
    return None


def _memory(graph: Graph, content: bytes, target: Target) -> Iterator[Finding]:
    if not target.memory_bytes:
        return
    if target.kind == "c":
        # Weights stay in flash; the arena, and something for the program's own variables, must fit.
        needs, has = microcontroller_bytes(graph), target.memory_bytes
        way_out = "use a smaller --input-size or --width"
    else:
        needs, has = len(content) + plan_bytes(graph), target.memory_bytes // _SHARE
        way_out = "use a smaller --input-size or --width, or a target with more memory"
    if needs > has:
        yield Finding(-1, "memory", "", f"it needs about {needs:,} bytes, expected up to {has:,}", way_out)
