"""The interpreters that a variant's layers are measured with, and the sums that are kept while pictures go by."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.compress.layer_comparison.extra_outputs import disturbed, exposed, isolated
from edgerec.compress.layer_comparison.graph_matching import Pair
from edgerec.contract.tensors import TensorSpec, dequantize, quantize
from edgerec.runtime.interpreter import open_interpreter

Array = npt.NDArray[Any]


class Probe:
    """An interpreter whose tensors go by their index in the file; inputs are zero until they are given."""

    def __init__(self, content: bytes) -> None:
        self._interpreter = open_interpreter(content, trusted=True)
        self.set, self.read = self._interpreter.set_tensor, self._interpreter.get_tensor
        for given in self._interpreter.get_input_details():
            self.set(given["index"], np.zeros(given["shape"], given["dtype"]))

    def run(self, feeds: dict[int, Array]) -> None:
        """Invoke with these inputs; others keep what they have."""
        for index, value in feeds.items():
            self.set(index, value)
        self._interpreter.invoke()


@dataclass
class Row:
    """A layer, and its sums while the pictures go by."""

    name: str
    operator: str
    pair: Pair | None  # None for the input and for a change of scale
    sources: tuple[int, ...]  # what the variant's operator reads
    readers: tuple[str, ...]
    reference: int  # the output's index there
    variant: int  # and here
    spec: TensorSpec
    own_known: bool
    before_logits: bool
    signal: float = 0.0
    noise: float = 0.0
    own: float = 0.0
    logits: float = 0.0
    alone: float = 0.0
    clipped: int = 0
    count: int = 0
    real_low: float = math.inf
    real_high: float = -math.inf
    low: Array = field(default_factory=lambda: np.array(np.inf))
    high: Array = field(default_factory=lambda: np.array(-np.inf))

    def take(self, real: Array, stored: Array, own: Array) -> None:
        """Count one picture's outputs, and the noise that the layer alone makes."""
        channels = tuple(range(stored.ndim - 1))
        self.low = np.minimum(self.low, stored.min(axis=channels))
        self.high = np.maximum(self.high, stored.max(axis=channels))
        self.real_low = min(self.real_low, float(real.min()))
        self.real_high = max(self.real_high, float(real.max()))
        self.signal += power(real)
        self.noise += power(real - dequantize(stored, self.spec))
        self.count += real.size
        if self.spec.quantized:
            ends = np.array([np.iinfo(self.spec.dtype).min, np.iinfo(self.spec.dtype).max])
            least, most = dequantize(ends, self.spec) + np.array([-0.5, 0.5]) * self.spec.scale
            self.clipped += int(np.count_nonzero((real < least) | (real > most)))
        self.own += power(own)


@dataclass(frozen=True)
class Plan:
    """What is compared with what.

    Attributes:
        contents, inputs: of the reference and of the variant: the .tflite, and its input's index.
        rows: the layers, the input first.
        tensors: index of a tensor of the variant to that of the reference's.
        specs: of the variant's tensors.
        logits: index of the reference's tensor whose differences decide.
        softmax: whether it is followed by one.
    """

    contents: tuple[bytes, bytes]
    inputs: tuple[int, int]
    rows: tuple[Row, ...]
    tensors: dict[int, int]
    specs: dict[int, TensorSpec]
    logits: int
    softmax: bool


class Bench:
    """The interpreters that a plan is measured with."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        reference, variant = plan.contents
        inside, self._added = disturbed(reference, [row.reference for row in plan.rows])
        (cut, self._given), (cut_float, self._float_given) = isolated(variant), isolated(reference)
        self._reference, self._variant = Probe(inside), Probe(exposed(variant))
        self._isolated, self._float_isolated = Probe(cut), Probe(cut_float)

    def measure(self, real_input: Array, stored_input: Array, *, alone: bool) -> None:
        """Let one picture through, ``(1, H, W, C)`` as either model takes it."""
        ours, theirs = self._plan.inputs
        self._reference.run({ours: real_input})
        self._variant.run({theirs: stored_input})
        real = {index: self._reference.read(there) for index, there in self._plan.tensors.items()}
        own = self._own_noise(real, stored_input)
        for row, noise in zip(self._plan.rows, own, strict=True):
            row.take(real[row.variant], self._variant.read(row.variant), noise)
        if alone:
            self._measure_alone(real_input, own)

    def _own_noise(self, real: dict[int, Array], stored_input: Array) -> list[Array]:
        """What each row adds by itself, in the shape of its output; zeros where that is not known."""
        specs = self._plan.specs
        stored = {index: quantize(value, specs[index]) for index, value in real.items()}
        rounded = {index: dequantize(value, specs[index]) for index, value in stored.items()}
        self._isolated.run({given: stored[i] for (_, i), given in self._given.items() if i in stored})
        self._float_isolated.run(
            {
                self._float_given[row.pair[0].index, self._plan.tensors[source]]: rounded[source]
                for row in self._plan.rows
                if row.pair and row.own_known
                for source in row.sources
            }
        )
        noises = []
        for row in self._plan.rows:
            wanted, made = real[row.variant], stored_input
            if row.sources:  # all but the input
                made = self._isolated.read(row.variant)
                wanted = self._float_isolated.read(row.reference) if row.pair else rounded[row.sources[0]]
            noise = dequantize(made, row.spec) - wanted
            noises.append(noise if row.own_known else np.zeros_like(noise))
        return noises

    def _measure_alone(self, real_input: Array, noises: list[Array]) -> None:
        """One layer's noise after the other through the float model, all others silent."""
        logits = self._read_logits()
        for row, noise in zip(self._plan.rows, noises, strict=True):
            if not (row.own_known and row.before_logits):
                continue
            spot, silence = self._plan.inputs[0], real_input
            if row.reference in self._added:
                spot, silence = self._added[row.reference][0], np.zeros_like(noise)
            self._reference.run({spot: silence + noise})
            row.logits += power(logits)
            row.alone += power(self._read_logits() - logits)
            self._reference.set(spot, silence)

    def _read_logits(self) -> Array:
        _, total = self._added.get(self._plan.logits, (0, self._plan.logits))
        logits = self._reference.read(total)
        # Softmax does not see what is added to all of them.
        return logits - logits.mean() if self._plan.softmax else logits


def power(values: Array) -> float:
    """The sum of squares."""
    flat = values.ravel()
    return float(np.dot(flat, flat))
