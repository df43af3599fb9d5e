"""How long an int8 model will take on a Raspberry Pi 4: an estimate, from its operators alone.

XNNPACK's README has measurements of a Raspberry Pi 4 with a 64-bit system, several threads (February 2022): int8
MobileNetV1 1.0 at 224 px 24 ms, MobileNetV2 1.0 at 224 px 17 ms. Two kinds of work explain both of them. Convolutions
do many multiply-accumulates with each number that they read. All others are bound by memory: depthwise convolutions,
dense layers (which read every weight once), additions and poolings. With the counts of the two models,

    V1: 550.3 million in convolutions, 18.46 million others    24 ms
    V2: 278.8 million in convolutions, 22.65 million others    17 ms

there is one rate for each kind. The estimate knows nothing of caches, clocks, other boards or a delegate, and two
models cannot tell how far it is off: it is a guide, and ``edgerec benchmark`` on the Pi is the measurement.
"""

from __future__ import annotations

from math import prod

from edgerec.contract.flatbuffer import Graph, Operator
from edgerec.export.cost import macs

CONVOLUTION_PER_MS = 31.85e6
OTHER_PER_MS = 2.746e6
# These only give a tensor another shape.
_FREE = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")


def pi4_ms(graph: Graph) -> float:
    """Estimated milliseconds of one picture on a Raspberry Pi 4, all its cores, nothing else running."""
    return estimated_ms(*work(graph))


def estimated_ms(convolution: float, other: float) -> float:
    """The same from the two amounts of :func:`work`."""
    return convolution / CONVOLUTION_PER_MS + other / OTHER_PER_MS


def work(graph: Graph) -> tuple[int, int]:
    """Multiply-accumulates of the convolutions, and what all other operators do: theirs, or numbers read."""
    convolution = sum(macs(operator) for operator in graph.operators if operator.name == "CONV_2D")
    return convolution, sum(_other(operator) for operator in graph.operators)


def _other(operator: Operator) -> int:
    if operator.name == "CONV_2D" or operator.name in _FREE:
        return 0
    read = sum(prod(abs(n) for n in tensor.shape) for tensor in operator.inputs if tensor and not tensor.constant)
    return macs(operator) or read
