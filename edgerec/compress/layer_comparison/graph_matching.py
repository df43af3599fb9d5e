"""Match one .tflite graph's operators to the equivalent operators in another graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

from edgerec.compress.layer_comparison.extra_outputs import CONVERSIONS, image_operators
from edgerec.tflite.flatbuffer import Graph, Operator, Tensor, dequantized_constant

# TensorFlow includes these kernel names in the names of weights.
_KERNELS = {"CONV_2D": "Conv2D", "DEPTHWISE_CONV_2D": "depthwise", "FULLY_CONNECTED": "MatMul"}
# A layer counts as fine-tuned if more than this fraction of its weights changed by more than rounding errors.
_CHANGED_FRACTION = 0.01

Pair = tuple[Operator, Operator]


@dataclass(frozen=True)
class Match:
    """A variant's operators and tensors, and their equivalents in the reference model.

    Attributes:
        tensors: maps the indices of tensors computed by the variant to those of the reference.
        pairs: pairs of equivalent operators of the reference and the variant, in the variant's execution order.
        unmatched: number of operators of the variant without an equivalent in the reference, not counting conversions.
    """

    tensors: dict[int, int]
    pairs: list[Pair]
    unmatched: int


def match(reference: Graph, variant: Graph) -> Match:
    """Match the operators of two graphs by type, output shape, fused activation and name, and the others by order.

    Pairs whose operators are known to read different inputs are dropped, because branches with equal shapes may be in a
    different order.
    """
    reference_operators, variant_operators = _without_conversions(reference), _without_conversions(variant)
    chosen = _by_name(reference_operators, variant_operators)
    matched = {operator.index for operator in chosen.values()}
    chosen |= _by_order(
        [o for o in reference_operators if o.index not in matched],
        [t for t in variant_operators if t.index not in chosen],
    )
    tensors = {variant.inputs[0].index: reference.inputs[0].index}
    pairs: list[Pair] = []
    for operator in image_operators(variant):
        if operator.name in CONVERSIONS:
            for source in _matched_inputs(operator, tensors):
                tensors[operator.outputs[0].index] = tensors[source]
        elif (counterpart := chosen.get(operator.index)) and _consistent(counterpart, operator, tensors):
            tensors |= {
                variant_tensor.index: reference_tensor.index
                for reference_tensor, variant_tensor in zip(counterpart.outputs, operator.outputs, strict=True)
            }
            pairs.append((counterpart, operator))
    return Match(tensors, pairs, len(variant_operators) - len(pairs))


def fine_tuned(pairs: Sequence[Pair], reference: Graph, variant: Graph) -> bool:
    """Return True if the two models' weights differ by more than rounding errors, or cannot be compared."""
    changed = []
    for reference_operator, variant_operator in pairs:
        before, after = weights(reference_operator, reference), weights(variant_operator, variant)
        if before is not None and after is not None:
            changed.append(_changed_fraction(before, after) > _CHANGED_FRACTION)
    return not changed or any(changed)


def weights(operator: Operator, graph: Graph) -> Tensor | None:
    """Return an operator's weight tensor, or None if the operator has no weights.

    The weights are the first constant input with two or more axes. The input of a ``DEQUANTIZE`` operator is used
    instead of its output.
    """
    packed = {o.outputs[0].index: o.inputs[0] for o in graph.operators if o.name == "DEQUANTIZE"}
    for tensor in operator.inputs:
        candidate = packed.get(tensor.index, tensor) if tensor is not None else None
        if candidate is not None and candidate.constant and len(candidate.shape) > 1:
            return candidate
    return None


def layer_name(operator: Operator) -> str:
    """Return the name of the operator's Keras layer, such as ``conv2d_1``, or the operator's type if unknown."""
    kernel = _KERNELS.get(operator.name)
    candidates = [t.name for t in operator.inputs if kernel and t is not None and len(t.shape) > 1 and t.constant]
    paths = [part.split("/") for name in (*candidates, operator.outputs[0].name) for part in name.split(";")]
    paths = [path for path in paths if len(path) > 1]
    named = [path for path in paths if kernel and path[-1].startswith(kernel)] or paths[-1:]
    if not named:
        return operator.name.lower()
    # In a tensor name, the layer name is between the model name and the kernel name.
    inner = named[0][1:-1] or named[0][:1]
    return "/".join(part.removeprefix("quant_") for part in inner if not part.startswith("StatefulPartitionedCall"))


def _without_conversions(graph: Graph) -> list[Operator]:
    return [operator for operator in image_operators(graph) if operator.name not in CONVERSIONS]


def _kind(operator: Operator) -> Hashable:
    fused = getattr(operator.options, "fusedActivationFunction", 0)
    # Compare shapes without the batch size, which some files do not define.
    return operator.name, fused, *(tensor.shape[1:] for tensor in operator.outputs)


def _by_name(reference_operators: list[Operator], variant_operators: list[Operator]) -> dict[int, Operator]:
    """Match operators whose type, shape and name are unique in both graphs.

    Return a dictionary that maps the indices of the variant's operators to operators of the reference.
    """

    def unique(operators: list[Operator]) -> dict[Hashable, Operator]:
        keys = [(_kind(operator), layer_name(operator)) for operator in operators]
        counts = Counter(keys)
        return {key: operator for key, operator in zip(keys, operators, strict=True) if counts[key] == 1}

    known = unique(reference_operators)
    return {operator.index: known[key] for key, operator in unique(variant_operators).items() if key in known}


def _by_order(reference_operators: list[Operator], variant_operators: list[Operator]) -> dict[int, Operator]:
    matcher = SequenceMatcher(
        None, [_kind(o) for o in reference_operators], [_kind(t) for t in variant_operators], autojunk=False
    )
    return {
        variant_operators[block.b + i].index: reference_operators[block.a + i]
        for block in matcher.get_matching_blocks()
        for i in range(block.size)
    }


def _matched_inputs(operator: Operator, known: dict[int, int]) -> list[int]:
    return [tensor.index for tensor in operator.inputs if tensor is not None and tensor.index in known]


def _consistent(reference_operator: Operator, variant_operator: Operator, tensors: dict[int, int]) -> bool:
    """Return False if both operators have matched inputs, but none of these inputs match each other."""
    mapped = {tensors[index] for index in _matched_inputs(variant_operator, tensors)}
    reached = set(tensors.values())
    expected = {tensor.index for tensor in reference_operator.inputs if tensor is not None and tensor.index in reached}
    return not (mapped and expected) or bool(mapped & expected)


def _changed_fraction(reference: Tensor, variant: Tensor) -> float:
    """Return the fraction of weights that differ by more than the rounding error of int8 or float16."""
    real, rounded = dequantized_constant(reference), dequantized_constant(variant)
    if real.shape != rounded.shape:
        return 1.0
    allowed = np.abs(real) * 2.0**-10 + 1e-7
    if variant.scales:
        shape = [-1 if axis == variant.axis and len(variant.scales) > 1 else 1 for axis in range(real.ndim)]
        allowed = allowed + 0.5 * np.array(variant.scales).reshape(shape)
    return float(np.mean(np.abs(real - rounded) > allowed))
