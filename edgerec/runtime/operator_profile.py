"""Measure the time spent in each operator of a model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgerec.runtime.interpreter import open_interpreter
from edgerec.tflite.flatbuffer import pack, parse, read_graph

# Minimum number of latency samples for each truncated model.
LEAST_ROUNDS = 15
# Minimum duration of a sample in seconds. For fast models, a sample is the mean of several runs.
SAMPLE_S = 0.001
# Approximate memory limit in bytes for truncated models loaded at the same time.
OPEN_BYTES = 32 << 20


@dataclass(frozen=True)
class OperatorTime:
    """The time of one operator.

    Attributes:
        model: index of the model in an ensemble, from 0.
        index: index of the operator in the file.
        op: name of the operator in TFLite's schema.
        output: name of the first output tensor.
        ms: median time in milliseconds. If two operators are fused, one of them has the time of both.
        part: fraction of the total time, 0 to 1.
    """

    model: int
    index: int
    op: str
    output: str
    ms: float
    part: float

    @property
    def name(self) -> str:
        """Operator index, e.g. ``3``, or ``1.3`` for operator 3 of an ensemble's second model."""
        return f"{self.model}.{self.index}" if self.model else str(self.index)


def profile_operators(
    contents: Sequence[bytes], *, threads: int = 0, budget_s: float = 5.0
) -> tuple[OperatorTime, ...]:
    """Measure the time spent in each operator of one or more models.

    LiteRT's Python interpreter has no profiler. Therefore, the model is truncated after each operator. The time of an
    operator is the time of the model that ends with this operator minus the time of the model that ends before it.
    Both models are measured alternately so that other load on the machine affects them equally. Truncated models are
    loaded in groups because each of them holds the weights of its operators in memory.

    Args:
        contents: the bytes of the .tflite files.
        threads: number of interpreter threads. 0 lets the runtime choose.
        budget_s: approximate duration of the measurement in seconds. At least ``LEAST_ROUNDS`` rounds are measured.

    Raises:
        MissingExtraError: no package that can read the graph is installed.
    """
    graphs = [read_graph(content).operators for content in contents]
    budget_per_operator_s = budget_s / max(1, sum(map(len, graphs)))
    times_ms = [
        _operator_times(content, len(operators), threads, budget_per_operator_s * len(operators))
        for content, operators in zip(contents, graphs, strict=True)
    ]
    total_ms = sum(sum(times) for times in times_ms) or 1.0
    return tuple(
        OperatorTime(number, op.index, op.name, op.outputs[0].name, round(ms, 5), round(ms / total_ms, 4))
        for number, (operators, times) in enumerate(zip(graphs, times_ms, strict=True))
        for op, ms in zip(operators, times, strict=True)
    )


def _operator_times(content: bytes, count: int, threads: int, budget_s: float) -> list[float]:
    """Return the median time of each operator in milliseconds."""
    # A loaded model needs about twice its file size in memory.
    model, group = _Prefixes(content), max(1, OPEN_BYTES // (2 * len(content)))
    times: list[float] = []
    for begin in range(0, count, group):
        end = min(count, begin + group)
        # Groups overlap by one model, because the time of an operator is the difference between two consecutive models.
        runs = [_Run(model.first(length), threads) for length in range(begin or 1, end + 1)]
        _sample(runs, budget_s * (end - begin) / count)
        cumulative_ms = [float(np.median(run.samples_ms)) for run in runs]
        del runs  # Free the memory before loading the next group of models.

        # Adding an operator cannot make a model faster, so negative differences are noise.
        cumulative_ms = list(np.maximum.accumulate(cumulative_ms if begin else [0.0, *cumulative_ms]))
        times += [float(ms) for ms in np.diff(cumulative_ms)]
    return times


def _sample(runs: Sequence[_Run], budget_s: float) -> None:
    generator = np.random.default_rng(0)
    start, rounds = time.perf_counter(), 0
    while rounds < LEAST_ROUNDS or time.perf_counter() - start < budget_s:
        for index in generator.permutation(len(runs)):
            runs[index].sample()
        rounds += 1


class _Prefixes:
    """Creates truncated copies of a model."""

    def __init__(self, content: bytes) -> None:
        self._model = parse(content)
        self._model.signatureDefs = None
        self._operators, self._buffers = self._model.subgraphs[0].operators, self._model.buffers

    def first(self, count: int) -> bytes:
        """Return a copy of the model that contains only the first ``count`` operators."""
        subgraph = self._model.subgraphs[0]
        subgraph.operators = self._operators[:count]
        subgraph.outputs = np.array([subgraph.operators[-1].outputs[0]], np.int32)
        used_tensors = {int(index) for operator in subgraph.operators for index in operator.inputs if index >= 0}
        used_buffers = {subgraph.tensors[index].buffer for index in used_tensors}
        empty = type(self._buffers[0])()
        self._model.buffers = [buffer if index in used_buffers else empty for index, buffer in enumerate(self._buffers)]
        return pack(self._model)


class _Run:
    """Measures a truncated model's latency with a random input."""

    def __init__(self, content: bytes, threads: int) -> None:
        self.samples_ms: list[float] = []
        self._interpreter: Any = open_interpreter(content, threads=threads, where="a truncated model", trusted=True)
        detail = self._interpreter.get_input_details()[0]
        random = np.random.default_rng(0).integers(0, 127, detail["shape"])
        self._interpreter.set_tensor(detail["index"], random.astype(detail["dtype"]))
        self._interpreter.invoke()
        start = time.perf_counter()
        self._interpreter.invoke()
        self._repetitions = max(1, int(SAMPLE_S / (time.perf_counter() - start)))

    def sample(self) -> None:
        self._interpreter.invoke()  # Warm up the CPU caches.
        start = time.perf_counter_ns()
        for _ in range(self._repetitions):
            self._interpreter.invoke()
        self.samples_ms.append((time.perf_counter_ns() - start) / 1e6 / self._repetitions)
