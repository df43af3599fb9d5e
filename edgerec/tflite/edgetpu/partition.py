"""Which operators the Edge TPU compiler maps, where it refuses some."""

from __future__ import annotations

from collections.abc import Collection

from edgerec.tflite.flatbuffer import Graph


def mapped(graph: Graph, refused: Collection[int]) -> set[int]:
    """The indexes of the operators that become the one ``edgetpu-custom-op``.

    The compiler is a TensorFlow Lite delegate, and TFLite divides a graph for a delegate into alternating steps: one
    takes every operator of its kind (refused or not) whose inputs are there, and all that follow from those; the next
    takes those of the other kind (``PartitionGraphIntoIndependentNodeSubsets`` in TensorFlow's lite/graph_info.cc).
    The compiler keeps the first step that is not refused, and leaves everything else on the processor. So an operator
    on a branch that needs nothing from the processor is mapped, even behind a refused one; and what begins on the
    processor, as the conversion of a float input, delays the first step without ending it.

    Args:
        graph: the model before the compiler.
        refused: indexes of its operators that the Edge TPU cannot run.
    """
    made_by = {id(t): operator.index for operator in graph.operators for t in operator.outputs}
    needs = {
        operator.index: {made_by[id(t)] for t in operator.inputs if t is not None and id(t) in made_by}
        for operator in graph.operators
    }
    left, done = [operator.index for operator in graph.operators], set[int]()
    while left:
        first = next((index for index in left if needs[index] <= done), None)
        if first is None:  # a loop, which only a damaged file has
            return set()
        kind = first in refused
        step = _step(left, needs, done, refused, kind)
        if not kind:
            return step
        done |= step
        left = [index for index in left if index not in step]
    return set()


def _step(
    left: list[int], needs: dict[int, set[int]], done: set[int], refused: Collection[int], kind: bool
) -> set[int]:
    """All of one kind that can be had from what is ``done``, and from each other."""
    step: set[int] = set()
    have, grew = set(done), True
    while grew:
        grew = False
        for index in left:
            if index not in have and (index in refused) == kind and needs[index] <= have:
                step.add(index)
                have.add(index)
                grew = True
    return step
