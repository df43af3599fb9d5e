"""Which operator of one .tflite graph does the work of which in another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

from edgerec.compress.layer_comparison.extra_outputs import CONVERSIONS, computed
from edgerec.tflite.flatbuffer import Graph, Operator, Tensor, real_values

# How TensorFlow calls the kernel that a layer's weights are named after.
_KERNELS = {"CONV_2D": "Conv2D", "DEPTHWISE_CONV_2D": "depthwise", "FULLY_CONNECTED": "MatMul"}
# Where more of a layer's weights are further off than rounding takes them, they were trained again.
_MOVED_PART = 0.01

Pair = tuple[Operator, Operator]


@dataclass(frozen=True)
class Match:
    """How a variant's graph lies on its reference's.

    Attributes:
        tensors: index of a computed tensor of the variant to that of the reference's.
        pairs: operators (reference, variant) in the variant's execution order.
        unmatched: how many operators of the variant, conversions aside, the reference does not have.
    """

    tensors: dict[int, int]
    pairs: list[Pair]
    unmatched: int


def match(reference: Graph, variant: Graph) -> Match:
    """Match by operator, output shape, fused activation and layer name; what finds no name, by its order.

    A pair is dropped when its inputs are known to be others': two branches of one shape may have changed places.
    """
    ours, theirs = _work(reference), _work(variant)
    chosen = _by_name(ours, theirs)
    taken = {operator.index for operator in chosen.values()}
    chosen |= _by_order([o for o in ours if o.index not in taken], [t for t in theirs if t.index not in chosen])
    tensors = {variant.inputs[0].index: reference.inputs[0].index}
    pairs: list[Pair] = []
    for operator in computed(variant):
        if operator.name in CONVERSIONS:
            for source in _flowing(operator, tensors):
                tensors[operator.outputs[0].index] = tensors[source]
        elif (twin := chosen.get(operator.index)) and _consistent(twin, operator, tensors):
            tensors |= {mine.index: its.index for its, mine in zip(twin.outputs, operator.outputs, strict=True)}
            pairs.append((twin, operator))
    return Match(tensors, pairs, len(theirs) - len(pairs))


def retrained(pairs: Sequence[Pair], reference: Graph, variant: Graph) -> bool:
    """Whether the variant's weights are others than the reference's rounded ones (or none could be compared)."""
    moved = []
    for ours, theirs in pairs:
        before, after = weights(ours, reference), weights(theirs, variant)
        if before is not None and after is not None:
            moved.append(_moved_part(before, after) > _MOVED_PART)
    return not moved or any(moved)


def weights(operator: Operator, graph: Graph) -> Tensor | None:
    """The constant with two or more axes that an operator computes with, unpacked by no operator."""
    packed = {o.outputs[0].index: o.inputs[0] for o in graph.operators if o.name == "DEQUANTIZE"}
    for tensor in operator.inputs:
        found = packed.get(tensor.index, tensor) if tensor is not None else None
        if found is not None and found.constant and len(found.shape) > 1:
            return found
    return None


def layer_name(operator: Operator) -> str:
    """The Keras layer's name, as far as the file still tells: ``conv2d_1``, without ``quant_``."""
    kernel = _KERNELS.get(operator.name)
    candidates = [t.name for t in operator.inputs if kernel and t is not None and len(t.shape) > 1 and t.constant]
    paths = [part.split("/") for name in (*candidates, operator.outputs[0].name) for part in name.split(";")]
    paths = [path for path in paths if len(path) > 1]
    named = [path for path in paths if kernel and path[-1].startswith(kernel)] or paths[-1:]
    if not named:
        return operator.name.lower()
    # The model's name before, the kernel's after it; a layer's own name may have strokes, as MobileNetV3's have.
    inner = named[0][1:-1] or named[0][:1]
    return "/".join(part.removeprefix("quant_") for part in inner if not part.startswith("StatefulPartitionedCall"))


def _work(graph: Graph) -> list[Operator]:
    return [operator for operator in computed(graph) if operator.name not in CONVERSIONS]


def _kind(operator: Operator) -> Hashable:
    fused = getattr(operator.options, "fusedActivationFunction", 0)
    # Without the batch, which a converter may leave open.
    return operator.name, fused, *(tensor.shape[1:] for tensor in operator.outputs)


def _by_name(ours: list[Operator], theirs: list[Operator]) -> dict[int, Operator]:
    """Those whose kind and name exist once on either side: index of theirs to ours."""

    def unique(operators: list[Operator]) -> dict[Hashable, Operator]:
        keys = [(_kind(operator), layer_name(operator)) for operator in operators]
        counts = Counter(keys)
        return {key: operator for key, operator in zip(keys, operators, strict=True) if counts[key] == 1}

    known = unique(ours)
    return {operator.index: known[key] for key, operator in unique(theirs).items() if key in known}


def _by_order(ours: list[Operator], theirs: list[Operator]) -> dict[int, Operator]:
    matcher = SequenceMatcher(None, [_kind(o) for o in ours], [_kind(t) for t in theirs], autojunk=False)
    return {
        theirs[block.b + i].index: ours[block.a + i]
        for block in matcher.get_matching_blocks()
        for i in range(block.size)
    }


def _flowing(operator: Operator, known: dict[int, int]) -> list[int]:
    return [tensor.index for tensor in operator.inputs if tensor is not None and tensor.index in known]


def _consistent(ours: Operator, theirs: Operator, tensors: dict[int, int]) -> bool:
    """Whether the inputs agree, as far as they are known on both sides."""
    mapped = {tensors[index] for index in _flowing(theirs, tensors)}
    reached = set(tensors.values())
    expected = {tensor.index for tensor in ours.inputs if tensor is not None and tensor.index in reached}
    return not (mapped and expected) or bool(mapped & expected)


def _moved_part(ours: Tensor, theirs: Tensor) -> float:
    """Part of the weights that are off by more than rounding: half a step, or float16's precision."""
    real, rounded = real_values(ours), real_values(theirs)
    if real.shape != rounded.shape:
        return 1.0
    allowed = np.abs(real) * 2.0**-10 + 1e-7
    if theirs.scales:
        along = [-1 if axis == theirs.axis and len(theirs.scales) > 1 else 1 for axis in range(real.ndim)]
        allowed = allowed + 0.5 * np.array(theirs.scales).reshape(along)
    return float(np.mean(np.abs(real - rounded) > allowed))
