"""Estimate the time of an int8 model on a Raspberry Pi 4 from its operators.

The estimate is fitted to two published measurements (XNNPACK's README, February 2022; Raspberry Pi 4 with a 64-bit
system, several threads): int8 MobileNetV1 1.0 at 224 px takes 24 ms, and int8 MobileNetV2 1.0 at 224 px takes 17 ms.
It assumes two kinds of work. Convolutions do many multiply-accumulates for each number that they read. All other
operators are limited by memory: depthwise convolutions, dense layers (which read every weight once), additions and
poolings. The counts of the two models,

    V1: 550.3 million in convolutions, 18.46 million in other operators    24 ms
    V2: 278.8 million in convolutions, 22.65 million in other operators    17 ms

give one rate for each kind. The estimate ignores caches, clock rates, other boards and delegates, and two models
cannot show how large its error is. Use it as a guide; ``edgerec benchmark`` on the Pi measures the time.
"""

from __future__ import annotations

from math import prod

from edgerec.tflite.cost import macs
from edgerec.tflite.flatbuffer import Graph, Operator

CONVOLUTION_PER_MS = 31.85e6
OTHER_PER_MS = 2.746e6
# Shown with each estimate.
CONDITIONS = "estimated for a Raspberry Pi 4, all its cores"
# These operators only change the shape of a tensor.
_FREE = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")


def pi4_ms(graph: Graph) -> float:
    """Estimate the milliseconds for one image on an otherwise idle Raspberry Pi 4 that uses all of its cores."""
    return estimated_ms(*work(graph))


def estimated_ms(convolution: float, other: float) -> float:
    """Estimate the milliseconds for the two counts that :func:`work` returns."""
    return convolution / CONVOLUTION_PER_MS + other / OTHER_PER_MS


def work(graph: Graph) -> tuple[int, int]:
    """Return the work of all convolutions and of all other operators.

    The work of an operator is its number of multiply-accumulates. If it has none, the values that it reads are counted.
    """
    convolution = sum(macs(operator) for operator in graph.operators if operator.name == "CONV_2D")
    return convolution, sum(_other(operator) for operator in graph.operators)


def _other(operator: Operator) -> int:
    if operator.name == "CONV_2D" or operator.name in _FREE:
        return 0
    read = sum(prod(abs(n) for n in tensor.shape) for tensor in operator.inputs if tensor and not tensor.constant)
    return macs(operator) or read
