"""Measure each layer's quantization noise, summed over all images."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.compress.layer_comparison.extra_outputs import (
    with_additions,
    with_all_outputs,
    with_disconnected_operators,
)
from edgerec.compress.layer_comparison.graph_matching import Pair
from edgerec.contract.tensors import TensorSpec, dequantize, quantize
from edgerec.runtime.interpreter import open_interpreter

Array = npt.NDArray[Any]


class TensorInterpreter:
    """An interpreter that addresses tensors by their index in the file. All inputs are initialized with zeros."""

    def __init__(self, content: bytes) -> None:
        self._interpreter = open_interpreter(content, trusted=True)
        self.set, self.read = self._interpreter.set_tensor, self._interpreter.get_tensor
        for spec in self._interpreter.get_input_details():
            self.set(spec["index"], np.zeros(spec["shape"], spec["dtype"]))

    def run(self, feeds: dict[int, Array]) -> None:
        """Run the model on the inputs in ``feeds``, a dictionary from tensor indices to values.

        Other inputs keep their values.
        """
        for index, value in feeds.items():
            self.set(index, value)
        self._interpreter.invoke()


@dataclass
class LayerSums:
    """Measurements for one layer, summed over all images.

    Attributes:
        pair: matching operators of the reference and the variant, or None for the input and for requantizations.
        sources: indices of the variant's tensors that the operator reads.
        reference, variant: index of the layer's output tensor in the reference and in the variant.
    """

    name: str
    operator: str
    pair: Pair | None
    sources: tuple[int, ...]
    readers: tuple[str, ...]
    reference: int
    variant: int
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

    def add(self, real: Array, stored: Array, own: Array) -> None:
        """Add one image's measurements to the layer's sums.

        Args:
            real: output of the reference, float32.
            stored: output of the variant, in its quantized dtype.
            own: noise added by this layer alone.
        """
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
class ComparisonPlan:
    """The layers and tensors to compare between a reference model and a variant.

    Attributes:
        contents: the .tflite files of the reference and the variant.
        inputs: index of the input tensor in the reference and the variant.
        rows: the layers, the input first.
        tensors: maps tensor indices in the variant to those in the reference.
        specs: maps tensor indices in the variant to tensor specs.
        logits: index of the logits tensor in the reference.
        softmax: whether a softmax follows the logits.
    """

    contents: tuple[bytes, bytes]
    inputs: tuple[int, int]
    rows: tuple[LayerSums, ...]
    tensors: dict[int, int]
    specs: dict[int, TensorSpec]
    logits: int
    softmax: bool


class LayerInterpreters:
    """Interpreters that measure each layer's noise, using rewritten copies of the reference and the variant."""

    def __init__(self, plan: ComparisonPlan) -> None:
        self._plan = plan
        reference, variant = plan.contents
        inside, self._added = with_additions(reference, [row.reference for row in plan.rows])
        (cut, self._given), (cut_float, self._float_given) = (
            with_disconnected_operators(variant),
            with_disconnected_operators(reference),
        )
        self._reference, self._variant = TensorInterpreter(inside), TensorInterpreter(with_all_outputs(variant))
        self._isolated, self._float_isolated = TensorInterpreter(cut), TensorInterpreter(cut_float)

    def measure(self, real_input: Array, stored_input: Array, *, alone: bool) -> None:
        """Run both models on one image, and add each layer's measurements to the layer's sums.

        Args:
            real_input: the image in the input format of the reference, ``(1, H, W, C)``.
            stored_input: the image in the input format of the variant, ``(1, H, W, C)``.
            alone: also measure the effect of each layer's noise on the logits.
        """
        reference_input, variant_input = self._plan.inputs
        self._reference.run({reference_input: real_input})
        self._variant.run({variant_input: stored_input})
        real = {index: self._reference.read(reference_index) for index, reference_index in self._plan.tensors.items()}
        own = self._own_noise(real, stored_input)
        for row, noise in zip(self._plan.rows, own, strict=True):
            row.add(real[row.variant], self._variant.read(row.variant), noise)
        if alone:
            self._measure_alone(real_input, own)

    def _own_noise(self, real: dict[int, Array], stored_input: Array) -> list[Array]:
        """Return the noise that each layer itself adds to its output, or zero where this noise is unknown."""
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
            expected, actual = real[row.variant], stored_input
            if row.sources:  # every row except the input
                actual = self._isolated.read(row.variant)
                expected = self._float_isolated.read(row.reference) if row.pair else rounded[row.sources[0]]
            noise = dequantize(actual, row.spec) - expected
            noises.append(noise if row.own_known else np.zeros_like(noise))
        return noises

    def _measure_alone(self, real_input: Array, noises: list[Array]) -> None:
        """Add one layer's noise at a time to the reference model, and measure how much the logits change."""
        logits = self._read_logits()
        for row, noise in zip(self._plan.rows, noises, strict=True):
            if not (row.own_known and row.before_logits):
                continue
            index, no_noise = self._plan.inputs[0], real_input
            if row.reference in self._added:
                index, no_noise = self._added[row.reference][0], np.zeros_like(noise)
            self._reference.run({index: no_noise + noise})
            row.logits += power(logits)
            row.alone += power(self._read_logits() - logits)
            self._reference.set(index, no_noise)

    def _read_logits(self) -> Array:
        _, total = self._added.get(self._plan.logits, (0, self._plan.logits))
        logits = self._reference.read(total)
        # Subtract the mean from the logits, because softmax is invariant to adding a constant to all logits.
        return logits - logits.mean() if self._plan.softmax else logits


def power(values: Array) -> float:
    """Return the sum of the squared elements."""
    flat = values.ravel()
    return float(np.dot(flat, flat))
