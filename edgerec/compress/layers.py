"""Parity down to the layer: where a compressed .tflite leaves the float one, and which layer makes it.

Everything is measured on the kernels that run later, by graphs that are wired otherwise (:mod:`rewire`). For each
layer there are three signal-to-quantization-noise ratios, ``10·log10(Σ float² / Σ (float − dequantised)²)`` in dB
over a sample of pictures:

- ``sqnr_db``: at the layer's output in the whole compressed model. It carries the noise of all layers before.
- ``own_db``: of the layer's operator alone, given the float model's own inputs (rounded to its input's scale, where
  it has one). What this layer adds.
- ``alone_db``: at the logits of the float model, where this one layer has the noise of ``own_db`` and all others
  none. What leaving this layer float would spare: a noise that later layers weigh down costs nothing, and one that
  is small beside the layer's largest channel may cost everything.

**The reference.** Where the variant's weights are the float model's, rounded, the float model is the reference.
Fine-tuning (QAT, pruning, clustering) moves them on purpose; the distance to the old model would then be called
noise. The reference is the variant's float twin instead: its graph with its weights in float32, so that what is
measured is the rounding of activations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.compress.flatbuffer import Graph, Operator, Tensor, real_values
from edgerec.compress.match import Match, Pair, layer_name, match, retrained, weights
from edgerec.compress.rewire import CONVERSIONS, computed, disturbed, exposed, float_twin, isolated, open_graph
from edgerec.contract.progress import Listener, Progress, ignore
from edgerec.contract.tensors import Normalise, TensorSpec, dequantize, pixel_table, quantize
from edgerec.errors import ModelError
from edgerec.runtime.interpreter import open_interpreter

FLOAT_MODEL, FLOAT_TWIN = "float model", "float twin"
# What no difference at all is called in dB; float32 itself has about 140.
EXACT_DB = 120.0
# These move numbers and change none.
_MOVING = {"RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "PAD", "SLICE", "STRIDED_SLICE", "SPLIT", "PACK", "SHAPE"}
# Each layer alone takes a run of the whole float model for each picture.
_ALONE_IMAGES = 16

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Layer:
    """One layer; see the module for the three ratios.

    Attributes:
        name, operator, shape: Keras' name of it, TFLite's operator, and its output's shape.
        sqnr_db, own_db, alone_db: None where there is no signal, or where the float model lacks what is needed;
            ``alone_db`` also after the logits.
        weight_db: of its weights, where the reference is the float model.
        clipped: part of the float outputs that are past the ends of the quantized range.
        range_used: part of the stored numbers' range that its outputs reach, 0 to 1.
        channel_used: the same of its median channel.
        dead: it gives one value for everything, and float does not.
        finite: no NaN and no infinity, in the variant and in the reference.
    """

    name: str
    operator: str
    shape: tuple[int, ...]
    sqnr_db: float | None
    own_db: float | None
    alone_db: float | None
    weight_db: float | None
    clipped: float | None
    range_used: float | None
    channel_used: float | None
    dead: bool
    finite: bool

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self) | {"shape": list(self.shape)}


@dataclass(frozen=True)
class LayerParity:
    """All layers that could be compared.

    Attributes:
        reference: ``float model`` or ``float twin``.
        layers: in execution order; the first is the input.
        images: how many pictures.
        unmatched: operators that the reference does not have.
    """

    reference: str
    layers: tuple[Layer, ...]
    images: int
    unmatched: int


def decibels(signal: float, noise: float) -> float | None:
    """``10·log10(signal / noise)`` of two powers, at most :data:`EXACT_DB`; None without a signal."""
    if not (math.isfinite(signal) and math.isfinite(noise)) or signal <= 0:
        return None
    return EXACT_DB if noise <= 0 else min(EXACT_DB, 10 * math.log10(signal / noise))


def layer_parity(
    float_content: bytes | None,
    variant_content: bytes,
    pixels: npt.NDArray[np.uint8],
    normalise: Normalise,
    listener: Listener = ignore,
) -> LayerParity:
    """Compare a variant with its float model, layer by layer.

    Args:
        float_content: the float32 .tflite; None where there is none, as for a quantized model made by others.
        variant_content: the compressed .tflite.
        pixels: uint8 ``(N, H, W, C)``, some tens of them.
        normalise: what a pixel means to the float model.
        listener: told of the progress.

    Raises:
        ModelError: not TFLite models with one input and one output each, of the pictures' size, or weights that
            cannot be read.
    """
    variant = open_graph(variant_content, "the variant")
    if variant.inputs[0].shape[1:] != pixels.shape[1:]:
        raise ModelError(f"the variant takes {list(variant.inputs[0].shape)}, the pictures are {list(pixels.shape)}")
    kind, reference_content, reference, found = _reference(float_content, variant_content, variant)
    bench = _Bench(reference_content, variant_content, (reference, variant), found)
    spec = _spec(variant.inputs[0])
    if spec is None:
        raise ModelError(f"the variant takes {variant.inputs[0].dtype}, expected pixels")
    table = pixel_table(normalise, spec)
    real_table = quantize(normalise.apply(np.arange(256)), TensorSpec("float32", ()))
    for i, picture in enumerate(pixels):
        stored = picture if table is None else table[picture]
        bench.measure(real_table[picture][np.newaxis], stored[np.newaxis], alone=i < _ALONE_IMAGES)
        listener(Progress("comparing layers", i + 1, len(pixels)))
    graphs = (reference, variant) if kind == FLOAT_MODEL else None
    return LayerParity(kind, tuple(row.layer(graphs) for row in bench.rows), len(pixels), found.unmatched)


def _reference(float_content: bytes | None, content: bytes, variant: Graph) -> tuple[str, bytes, Graph, Match]:
    """What the variant is fairly compared with: see the module."""
    if float_content is not None:
        reference = open_graph(float_content, "the float model")
        found = match(reference, variant)
        if not retrained(found.pairs, reference, variant):
            return FLOAT_MODEL, float_content, reference, found
    twin_content = float_twin(content)
    twin = open_graph(twin_content, "the float twin")
    return FLOAT_TWIN, twin_content, twin, match(twin, variant)


class _Probe:
    """An interpreter whose tensors go by their index in the file."""

    def __init__(self, content: bytes) -> None:
        self._interpreter = open_interpreter(content)
        self.set, self.read = self._interpreter.set_tensor, self._interpreter.get_tensor

    def run(self, feeds: dict[int, Array]) -> None:
        """Invoke with these inputs; others keep what they have."""
        for index, value in feeds.items():
            self.set(index, value)
        self._interpreter.invoke()


@dataclass
class _Row:
    """A layer, and its sums while the pictures go by."""

    name: str
    pair: Pair | None
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

    def take(self, real: Array, stored: Array, own: Array | None) -> Array | None:
        """Count one picture's outputs; gives the noise that the layer alone makes."""
        channels = tuple(range(stored.ndim - 1))
        self.low = np.minimum(self.low, stored.min(axis=channels))
        self.high = np.maximum(self.high, stored.max(axis=channels))
        self.real_low = min(self.real_low, float(real.min()))
        self.real_high = max(self.real_high, float(real.max()))
        self.signal += _power(real)
        self.noise += _power(real - dequantize(stored, self.spec))
        self.count += real.size
        if self.spec.quantized:
            ends = np.array([np.iinfo(self.spec.dtype).min, np.iinfo(self.spec.dtype).max])
            least, most = dequantize(ends, self.spec) + np.array([-0.5, 0.5]) * self.spec.scale
            self.clipped += int(np.count_nonzero((real < least) | (real > most)))
        if own is None:
            return None
        noise = dequantize(own, self.spec) - real
        self.own += _power(noise)
        return noise

    def layer(self, graphs: tuple[Graph, Graph] | None) -> Layer:
        """What was counted; the weights are compared in the reference's and the variant's graph."""
        levels = 2 ** np.iinfo(self.spec.dtype).bits if self.spec.quantized else 0
        return Layer(
            name=self.name,
            operator=self.pair[1].name if self.pair else "",
            shape=self.spec.shape,
            sqnr_db=decibels(self.signal, self.noise),
            own_db=decibels(self.signal, self.own) if self.own_known else None,
            alone_db=decibels(self.logits, self.alone) if self.own_known and self.before_logits else None,
            weight_db=_weight_db(self.pair, graphs) if self.pair and graphs else None,
            clipped=self.clipped / self.count if levels else None,
            range_used=float(self.high.max() - self.low.min() + 1) / levels if levels else None,
            channel_used=float(np.median(self.high - self.low) + 1) / levels if levels else None,
            dead=bool(self.high.max() == self.low.min()) and self.real_low < self.real_high,
            finite=math.isfinite(self.signal) and math.isfinite(self.noise),
        )


class _Bench:
    """The three interpreters, and the layers that are measured with them."""

    def __init__(self, reference: bytes, variant: bytes, graphs: tuple[Graph, Graph], found: Match) -> None:
        ours, theirs = graphs
        self._inputs = ours.inputs[0].index, theirs.inputs[0].index
        self._logits, self._softmax = _logits(ours)
        self._specs = {tensor.index: _spec(tensor) for tensor in theirs.tensors}
        self._tensors = {index: there for index, there in found.tensors.items() if self._specs[index]}
        self.rows = list(_rows(graphs, found.pairs, self._tensors, self._specs, self._logits))
        self._variant = _Probe(exposed(variant))
        cut, self._given = isolated(variant)
        self._isolated = _Probe(cut)
        inside, self._added = disturbed(reference, [row.reference for row in self.rows])
        self._reference = _Probe(inside)
        for added, _ in self._added.values():
            self._reference.set(added, np.zeros_like(self._reference.read(added)))

    def measure(self, real_input: Array, stored_input: Array, *, alone: bool) -> None:
        """Let one picture through, ``(1, H, W, C)`` as either model takes it."""
        ours, theirs = self._inputs
        self._reference.run({ours: real_input})
        self._variant.run({theirs: stored_input})
        real = {index: self._reference.read(there) for index, there in self._tensors.items()}
        given = {g: quantize(real[i], s) for i, g in self._given.items() if i in real and (s := self._specs[i])}
        self._isolated.run(given)
        noises = []
        for row in self.rows:
            stored = self._variant.read(row.variant)
            own = stored if row.variant == theirs else self._isolated.read(row.variant)
            noises.append(row.take(real[row.variant], stored, own if row.own_known else None))
        if alone:
            self._measure_alone(real_input, noises)

    def _measure_alone(self, real_input: Array, noises: list[Array | None]) -> None:
        """One layer's noise after the other through the float model, all others silent."""
        logits = self._read_logits()
        for row, noise in zip(self.rows, noises, strict=True):
            if noise is None or not row.before_logits:
                continue
            spot, silence = self._inputs[0], real_input
            if row.reference in self._added:
                spot, silence = self._added[row.reference][0], np.zeros_like(noise)
            self._reference.run({spot: silence + noise})
            row.logits += _power(logits)
            row.alone += _power(self._read_logits() - logits)
            self._reference.set(spot, silence)

    def _read_logits(self) -> Array:
        _, sum_index = self._added.get(self._logits, (0, self._logits))
        logits = self._reference.read(sum_index)
        # Softmax does not see what is added to all of them.
        return logits - logits.mean() if self._softmax else logits


def _rows(
    graphs: tuple[Graph, Graph],
    pairs: list[Pair],
    tensors: dict[int, int],
    specs: dict[int, TensorSpec | None],
    logits: int,
) -> Iterator[_Row]:
    """The input, each matched layer, and each change of scale between them."""
    reference, variant = graphs
    given, scores = variant.inputs[0].index, reference.outputs[0].index
    by_index = {pair[1].index: pair for pair in pairs}
    flowing = {given}
    if spec := specs[given]:
        yield _Row("input", None, tensors[given], given, spec, own_known=True, before_logits=True)
    for operator in computed(variant):
        sources = {tensor.index for tensor in operator.inputs if tensor is not None} & flowing
        flowing |= {tensor.index for tensor in operator.outputs}
        index = operator.outputs[0].index
        spec = specs[index]
        if spec is None or index not in tensors or _changes_nothing(operator):
            continue
        yield _Row(
            _name(operator, by_index.get(operator.index)),
            by_index.get(operator.index, (operator, operator)),
            tensors[index],
            index,
            spec,
            own_known=sources <= tensors.keys(),
            before_logits=tensors[index] != scores or logits == scores,
        )


def _name(operator: Operator, pair: Pair | None) -> str:
    """The layer's name in whichever of the two files has one."""
    names = [layer_name(side) for side in pair or (operator,)]
    return next((name for name in names if name != operator.name.lower()), names[0])


def _changes_nothing(operator: Operator) -> bool:
    if operator.name != "QUANTIZE":
        return operator.name in _MOVING or operator.name in CONVERSIONS
    source = operator.inputs[0]
    return source is not None and source.scales == operator.outputs[0].scales  # as uint8 to int8


def _logits(graph: Graph) -> tuple[int, bool]:
    """The tensor whose differences decide: before the final softmax, where there is one."""
    scores = graph.outputs[0].index
    for operator in computed(graph):
        if operator.name == "SOFTMAX" and operator.outputs[0].index == scores and operator.inputs[0] is not None:
            return operator.inputs[0].index, True
    return scores, False


def _spec(tensor: Tensor) -> TensorSpec | None:
    """None for what is neither float nor quantized with one scale."""
    scale, zero_point = (tensor.scales or (0.0,))[0], (tensor.zero_points or (0,))[0]
    try:
        return TensorSpec(tensor.dtype.lower(), tensor.shape, scale, zero_point) if len(tensor.scales) < 2 else None
    except ValueError:
        return None


def _weight_db(pair: Pair, graphs: tuple[Graph, Graph]) -> float | None:
    ours, theirs = (weights(operator, graph) for operator, graph in zip(pair, graphs, strict=True))
    if ours is None or theirs is None:
        return None
    real = real_values(ours)
    return decibels(_power(real), _power(real - real_values(theirs)))


def _power(values: Array) -> float:
    flat = values.ravel()
    return float(np.dot(flat, flat))
