"""Estimate a .tflite model's working memory, i.e. the size of its arena.

LiteRT's Python interpreter does not report its arena size.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from edgerec.tflite.cost import tensor_bytes
from edgerec.tflite.flatbuffer import Graph, Operator, Tensor

# Alignment of tensors in the arena, in bytes.
ALIGNMENT, MICRO_ALIGNMENT = 64, 16
# Memory overhead of TFLite Micro on x86-64 in bytes: interpreter, each tensor, each operator, each output channel.
_MICRO_BASE, _MICRO_TENSOR, _MICRO_OPERATOR, _MICRO_CHANNEL = 1024, 40, 160, 8
# The arena size may differ between releases of TFLite Micro.
_MICRO_SAFETY_FACTOR = 1.05


@dataclass(frozen=True)
class Slot:
    """A tensor's position and lifetime in the arena.

    Attributes:
        tensor: the tensor.
        offset, size: position and size in the arena, in bytes.
        first, last: indices of the first and last operators during which the tensor must be stored; −1 means before the
            first operator.
    """

    tensor: Tensor
    offset: int
    size: int
    first: int
    last: int


def plan(graph: Graph, alignment: int = ALIGNMENT) -> list[Slot]:
    """Plan the arena layout of all non-constant tensors with the algorithm of TFLite and TFLite Micro.

    The greedy algorithm places the largest tensor first, and each tensor at the lowest offset that is free during its
    lifetime (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020). Temporary buffers
    of kernels are not included.
    """
    slots: list[Slot] = []
    for tensor, (first, last) in sorted(_lifetimes(graph), key=lambda item: -tensor_bytes(item[0])):
        size = _round_up(tensor_bytes(tensor), alignment)
        at = 0
        for other in sorted((o for o in slots if o.first <= last and first <= o.last), key=lambda o: o.offset):
            if other.offset >= at + size:
                break
            at = max(at, other.offset + other.size)
        slots.append(Slot(tensor, at, size, first, last))
    return slots


def plan_bytes(graph: Graph, alignment: int = ALIGNMENT) -> int:
    """Return the arena size in bytes, as computed by :func:`plan`."""
    return max((slot.offset + slot.size for slot in plan(graph, alignment)), default=0)


def microcontroller_bytes(graph: Graph) -> int:
    """Estimate TensorFlow Lite Micro's arena size in bytes, with a safety margin and rounded up to a full KiB."""
    needs = plan_bytes(graph, MICRO_ALIGNMENT) + _max_scratch_bytes(graph) + _variable_bytes(graph) + _MICRO_BASE
    needs += sum(_MICRO_TENSOR for _ in graph.tensors)
    needs += sum(_MICRO_OPERATOR + _MICRO_CHANNEL * _channels(operator) for operator in graph.operators)
    return _round_up(int(needs * _MICRO_SAFETY_FACTOR), 1024)


def parameter_bytes(graph: Graph) -> int:
    """Return the total size of all constant tensors in bytes."""
    return sum(len(tensor.data) for tensor in graph.tensors if tensor.data is not None)


def _lifetimes(graph: Graph) -> list[tuple[Tensor, tuple[int, int]]]:
    """Return each non-constant tensor, with the indices of the first and last operators that use the tensor."""
    lifetimes = {id(tensor): (tensor, -1, -1) for tensor in graph.inputs}
    for operator in graph.operators:
        lifetimes |= {id(tensor): (tensor, operator.index, operator.index) for tensor in operator.outputs}
        for tensor in operator.inputs:
            if tensor is not None and id(tensor) in lifetimes:
                lifetimes[id(tensor)] = (tensor, lifetimes[id(tensor)][1], operator.index)
    for tensor in graph.outputs:
        if id(tensor) in lifetimes:
            lifetimes[id(tensor)] = (tensor, lifetimes[id(tensor)][1], len(graph.operators))
    return [(tensor, (first, last)) for tensor, first, last in lifetimes.values()]


def _variable_bytes(graph: Graph) -> int:
    """Return the total size in bytes of variable tensors, such as an LSTM's state.

    A variable tensor is neither a constant, nor a graph input, nor an operator's output.
    """
    computed = {id(tensor) for tensor, _ in _lifetimes(graph)}
    read = {id(t): t for operator in graph.operators for t in operator.inputs if t is not None and not t.constant}
    return sum(_round_up(tensor_bytes(t), MICRO_ALIGNMENT) for key, t in read.items() if key not in computed)


def _max_scratch_bytes(graph: Graph) -> int:
    """Return the size in bytes of the largest temporary kernel buffer. All kernels share one buffer."""
    return max((_scratch_bytes(operator) for operator in graph.operators), default=0)


def _scratch_bytes(operator: Operator) -> int:
    match operator.name:
        case "CONV_2D" | "DEPTHWISE_CONV_2D":  # CMSIS-NN's im2col buffer stores int16 patches for two output pixels.
            weights = operator.inputs[1]
            return 4 * prod(weights.shape[1:]) if weights is not None else 0
        case "TRANSPOSE_CONV" | "MEAN" | "SUM":  # sums as int32
            return 4 * sum(tensor_bytes(t) for t in operator.outputs)
        case "UNIDIRECTIONAL_SEQUENCE_LSTM":  # four gates as int16
            return 8 * sum(tensor_bytes(t) for t in operator.inputs[18:19] if t is not None)
    return 0


def _channels(operator: Operator) -> int:
    """Return the number of output channels that have their own multiplier and shift."""
    if operator.name not in ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED"):
        return 0
    weights = operator.inputs[1]
    return len(weights.scales) if weights is not None else 0


def _round_up(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
