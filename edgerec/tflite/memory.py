"""How much memory a model works in, estimated from its file."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from edgerec.tflite.cost import tensor_bytes
from edgerec.tflite.flatbuffer import Graph, Operator, Tensor

# TFLite and TFLite Micro place every tensor at a multiple of it (kDefaultTensorAlignment: 64 on computers).
ALIGNMENT, MICRO_ALIGNMENT = 64, 16
# What TFLite Micro keeps beside the plan, measured with its interpreter on x86-64; a 32-bit board needs less of it.
# For the interpreter, each tensor, each operator, and each output channel with its own multiplier and shift.
_MICRO_BASE, _MICRO_TENSOR, _MICRO_OPERATOR, _MICRO_CHANNEL = 1024, 40, 160, 8
# What differs between its releases.
_MICRO_MARGIN = 1.05


@dataclass(frozen=True)
class Slot:
    """A tensor in the plan: where it lies, and from which operator to which one it is needed (−1: before the first)."""

    tensor: Tensor
    offset: int
    size: int
    first: int
    last: int


def plan(graph: Graph, alignment: int = ALIGNMENT) -> list[Slot]:
    """Place every tensor that is no constant, as the arena planners of TFLite and TFLite Micro do.

    Greedily, the largest first, each at the lowest place that is free while it is needed (Pisarchyk and Lee,
    "Efficient Memory Management for Deep Neural Net Inference", 2020). Without what single kernels take for themselves.
    """
    slots: list[Slot] = []
    for tensor, (first, last) in sorted(_lives(graph), key=lambda item: -tensor_bytes(item[0])):
        size = _aligned(tensor_bytes(tensor), alignment)
        at = 0
        for other in sorted((o for o in slots if o.first <= last and first <= o.last), key=lambda o: o.offset):
            if other.offset >= at + size:
                break
            at = max(at, other.offset + other.size)
        slots.append(Slot(tensor, at, size, first, last))
    return slots


def plan_bytes(graph: Graph, alignment: int = ALIGNMENT) -> int:
    """The size of the arena of :func:`plan`."""
    return max((slot.offset + slot.size for slot in plan(graph, alignment)), default=0)


def microcontroller_bytes(graph: Graph) -> int:
    """Arena that TensorFlow Lite Micro needs, with a margin, to a whole KiB."""
    needs = plan_bytes(graph, MICRO_ALIGNMENT) + _scratch_bytes(graph) + _variable_bytes(graph) + _MICRO_BASE
    needs += sum(_MICRO_TENSOR for _ in graph.tensors)
    needs += sum(_MICRO_OPERATOR + _MICRO_CHANNEL * _channels(operator) for operator in graph.operators)
    return _aligned(int(needs * _MICRO_MARGIN), 1024)


def parameter_bytes(graph: Graph) -> int:
    """What the constants of all tensors take."""
    return sum(len(tensor.data) for tensor in graph.tensors if tensor.data is not None)


def _lives(graph: Graph) -> list[tuple[Tensor, tuple[int, int]]]:
    """Each tensor that comes and goes, with the first and the last operator that needs it."""
    lives = {id(tensor): (tensor, -1, -1) for tensor in graph.inputs}
    for operator in graph.operators:
        lives |= {id(tensor): (tensor, operator.index, operator.index) for tensor in operator.outputs}
        for tensor in operator.inputs:
            if tensor is not None and id(tensor) in lives:
                lives[id(tensor)] = (tensor, lives[id(tensor)][1], operator.index)
    for tensor in graph.outputs:
        if id(tensor) in lives:
            lives[id(tensor)] = (tensor, lives[id(tensor)][1], len(graph.operators))
    return [(tensor, (first, last)) for tensor, first, last in lives.values()]


def _variable_bytes(graph: Graph) -> int:
    """Of tensors that no operator makes and no file holds: an LSTM keeps its state in them."""
    made = {id(tensor) for tensor, _ in _lives(graph)}
    needed = {id(t): t for operator in graph.operators for t in operator.inputs if t is not None and not t.constant}
    return sum(_aligned(tensor_bytes(t), MICRO_ALIGNMENT) for key, t in needed.items() if key not in made)


def _scratch_bytes(graph: Graph) -> int:
    """The most that one kernel takes for itself while it runs."""
    return max((_scratch(operator) for operator in graph.operators), default=0)


def _scratch(operator: Operator) -> int:
    match operator.name:
        case "CONV_2D" | "DEPTHWISE_CONV_2D":  # CMSIS-NN unfolds two pixels' windows as 16-bit integers
            weights = operator.inputs[1]
            return 4 * prod(weights.shape[1:]) if weights is not None else 0
        case "TRANSPOSE_CONV" | "MEAN" | "SUM":  # their sums as 32-bit integers
            return 4 * sum(tensor_bytes(t) for t in operator.outputs)
        case "UNIDIRECTIONAL_SEQUENCE_LSTM":  # four gates in 16 bits
            return 8 * sum(tensor_bytes(t) for t in operator.inputs[18:19] if t is not None)
    return 0


def _channels(operator: Operator) -> int:
    """Output channels with a multiplier of their own."""
    if operator.name not in ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED"):
        return 0
    weights = operator.inputs[1]
    return len(weights.scales) if weights is not None else 0


def _aligned(size: int, to: int) -> int:
    return -(-size // to) * to
