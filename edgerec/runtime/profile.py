"""How long each operator of a model takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgerec.contract.flatbuffer import pack, parse, read_graph
from edgerec.runtime.interpreter import open_interpreter

# Rounds over all the cut models: each gives one sample of each operator.
LEAST_ROUNDS = 15
# A sample of a quick model is many invokes, or an operator of it would be lost in the clock's noise.
SAMPLE_S = 0.001


@dataclass(frozen=True)
class OperatorTime:
    """One operator.

    Attributes:
        model: which of an ensemble's models it belongs to, from 0.
        index: its place in the file.
        op: as TFLite calls it.
        output: the name of its first output.
        ms: median milliseconds; what a neighbour hides by being fused with it counts there.
        part: of the whole, 0 to 1.
    """

    model: int
    index: int
    op: str
    output: str
    ms: float
    part: float

    @property
    def name(self) -> str:
        """Its place: ``3``, or ``1.3`` in an ensemble's second model."""
        return f"{self.model}.{self.index}" if self.model else str(self.index)


def profile_operators(
    contents: Sequence[bytes], *, threads: int = 0, budget_s: float = 5.0
) -> tuple[OperatorTime, ...]:
    """Time each operator by the kernels that run later.

    LiteRT's Python interpreter has no profiler. So the model is cut behind each operator in turn, and an operator's
    time is that of the model up to it less that of the model up to the one before. All are timed in turn, so that
    what else the machine does falls on all alike.

    Args:
        contents: the bytes of .tflite files that run one after the other.
        threads: of the interpreter; 0 lets the runtime choose.
        budget_s: about how long this may take; at least ``LEAST_ROUNDS`` rounds.
    """
    operators = [read_graph(content).operators for content in contents]
    runs = [
        _Prefix(_cut(content, count), threads)
        for content, found in zip(contents, operators, strict=True)
        for count in range(1, len(found) + 1)
    ]
    order = np.random.default_rng(0)
    began, rounds = time.perf_counter(), 0
    while rounds < LEAST_ROUNDS or time.perf_counter() - began < budget_s:
        for at in order.permutation(len(runs)):
            runs[at].sample()
        rounds += 1
    medians = iter([float(np.median(run.taken_ms)) for run in runs])
    # A longer model takes no less time than a shorter one: what noise says otherwise is taken back.
    upto = [np.maximum.accumulate([next(medians) for _ in found]) for found in operators]
    whole = sum(float(times[-1]) for times in upto)
    return tuple(
        OperatorTime(number, op.index, op.name, op.outputs[0].name, round(float(ms), 5), round(float(ms) / whole, 4))
        for number, (found, times) in enumerate(zip(operators, upto, strict=True))
        for op, ms in zip(found, np.diff(times, prepend=0.0), strict=True)
    )


def _cut(content: bytes, count: int) -> bytes:
    """The model's first ``count`` operators; what the last of them computes is the output."""
    model = parse(content)
    subgraph = model.subgraphs[0]
    subgraph.operators = subgraph.operators[:count]
    subgraph.outputs = np.array([subgraph.operators[-1].outputs[0]], np.int32)
    model.signatureDefs = None
    return pack(model)


class _Prefix:
    """A cut model with a random input."""

    def __init__(self, content: bytes, threads: int) -> None:
        self.taken_ms: list[float] = []
        self._interpreter: Any = open_interpreter(content, threads=threads, where="a part of the model")
        given = self._interpreter.get_input_details()[0]
        random = np.random.default_rng(0).integers(0, 127, given["shape"])
        self._interpreter.set_tensor(given["index"], random.astype(given["dtype"]))
        self._interpreter.invoke()
        start = time.perf_counter()
        self._interpreter.invoke()
        self._times = max(1, int(SAMPLE_S / (time.perf_counter() - start)))

    def sample(self) -> None:
        self._interpreter.invoke()  # the one before left the caches to itself
        start = time.perf_counter_ns()
        for _ in range(self._times):
            self._interpreter.invoke()
        self.taken_ms.append((time.perf_counter_ns() - start) / 1e6 / self._times)
