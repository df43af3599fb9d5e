"""Estimate an int8 model's latency on a Raspberry Pi 4 from its operators.

The estimate is fitted to two published measurements (XNNPACK's README, February 2022; Raspberry Pi 4 with a 64-bit
system, several threads): int8 MobileNetV1 1.0 at 224 px takes 24 ms, and int8 MobileNetV2 1.0 at 224 px takes 17 ms.
The estimate distinguishes two kinds of operators. Convolutions are limited by arithmetic, because they use each value
they read for many multiply-accumulates. All other operators are limited by memory bandwidth: depthwise convolutions,
dense layers (which read every weight once), additions and pooling. The operation counts of the two models determine one
rate for each kind:

    V1: 550.3 million in convolutions, 18.46 million in other operators    24 ms
    V2: 278.8 million in convolutions, 22.65 million in other operators    17 ms

The estimate ignores caches, clock rates, other boards and delegates. Its error is unknown, because it is fitted to only
two models. Run ``edgerec benchmark`` on the Raspberry Pi to measure the latency.
"""

from __future__ import annotations

from math import prod

from edgerec.tflite.cost import macs
from edgerec.tflite.flatbuffer import Graph, Operator
from edgerec.tflite.operators import RESHAPING

# Operations per millisecond.
CONVOLUTION_PER_MS = 31.85e6
OTHER_PER_MS = 2.746e6
CONDITIONS = "estimated for a Raspberry Pi 4, all its cores"


def pi4_ms(graph: Graph) -> float:
    """Estimate the latency in milliseconds on an otherwise idle Raspberry Pi 4, using one thread per core."""
    return estimated_ms(*operation_counts(graph))


def estimated_ms(convolution: float, other: float) -> float:
    """Estimate the latency in milliseconds from the operation counts of convolutions and other operators."""
    return convolution / CONVOLUTION_PER_MS + other / OTHER_PER_MS


def operation_counts(graph: Graph) -> tuple[int, int]:
    """Return two operation counts: one for convolutions, and one for all other operators.

    The operation count is the number of multiply-accumulate operations or, for operators without any, the number of
    values read.
    """
    convolution = sum(macs(operator) for operator in graph.operators if operator.name == "CONV_2D")
    return convolution, sum(_other(operator) for operator in graph.operators)


def _other(operator: Operator) -> int:
    if operator.name == "CONV_2D" or operator.name in RESHAPING:
        return 0
    read = sum(prod(abs(n) for n in tensor.shape) for tensor in operator.inputs if tensor and not tensor.constant)
    return macs(operator) or read
