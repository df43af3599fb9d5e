"""Predict which operators run on the Edge TPU if the model also contains unsupported operators."""

from __future__ import annotations

from collections.abc import Collection

from edgerec.tflite.flatbuffer import Graph


def mapped_operators(graph: Graph, refused: Collection[int]) -> set[int]:
    """Return the indices of the operators that the compiler maps to the Edge TPU.

    The compiler is a TensorFlow Lite delegate. TFLite partitions the graph into alternating subsets of supported and
    unsupported operators (``PartitionGraphIntoIndependentNodeSubsets`` in TensorFlow's lite/graph_info.cc). Each subset
    contains all operators of its kind whose inputs come from earlier subsets or from the subset itself. The compiler
    maps only the first subset of supported operators, and leaves all other operators on the CPU.

    An operator is therefore mapped even if it comes after an unsupported operator, as long as it does not depend on it.
    Operators on the CPU at the start of the graph, e.g. the conversion of a float input, do not prevent later operators
    from being mapped.

    Args:
        graph: the model before compilation.
        refused: indices of the operators that the Edge TPU cannot run.
    """
    producers = {id(t): operator.index for operator in graph.operators for t in operator.outputs}
    dependencies = {
        operator.index: {producers[id(t)] for t in operator.inputs if t is not None and id(t) in producers}
        for operator in graph.operators
    }
    remaining, done = [operator.index for operator in graph.operators], set[int]()
    while remaining:
        first = next((index for index in remaining if dependencies[index] <= done), None)
        if first is None:  # Only the graph of a damaged file can contain a cycle.
            return set()
        is_refused = first in refused
        subset = _next_subset(remaining, dependencies, done, refused, is_refused)
        if not is_refused:
            return subset
        done |= subset
        remaining = [index for index in remaining if index not in subset]
    return set()


def _next_subset(
    remaining: list[int],
    dependencies: dict[int, set[int]],
    done: set[int],
    refused: Collection[int],
    is_refused: bool,
) -> set[int]:
    """Return the next subset of the graph, which contains only supported or only unsupported operators."""
    subset: set[int] = set()
    available, changed = set(done), True
    while changed:
        changed = False
        for index in remaining:
            if index not in available and (index in refused) == is_refused and dependencies[index] <= available:
                subset.add(index)
                available.add(index)
                changed = True
    return subset
