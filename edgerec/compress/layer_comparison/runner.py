"""Parity down to the layer: where a compressed .tflite leaves the float one, and which layer makes it.

Everything is measured on the kernels that run later, by graphs that are wired otherwise (:mod:`rewire`). For each
layer there are three signal-to-quantization-noise ratios, ``10·log10(Σ float² / Σ (float − dequantised)²)`` in dB
over a sample of pictures:

- ``sqnr_db``: at the layer's output in the whole compressed model. It carries the noise of all layers before.
- ``own_db``: what this layer adds. Its operator and the float one, alone, are given the same inputs: the float
  model's, rounded as they reach this layer. So its weights and its output's range count here, its input's where that
  is made.
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
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.compress.layer_comparison.extra_outputs import CONVERSIONS, computed, float_twin, open_graph
from edgerec.compress.layer_comparison.graph_matching import Match, Pair, layer_name, match, retrained, weights
from edgerec.compress.layer_comparison.instrumentation import Bench, Plan, Row, power
from edgerec.contract.tensors import Normalise, TensorSpec, pixel_table, quantize
from edgerec.errors import ModelError
from edgerec.tflite.flatbuffer import Graph, Operator, Tensor, real_values
from edgerec.utils.progress import Listener, Progress, ignore

FLOAT_MODEL, FLOAT_TWIN = "float model", "float twin"
# What no difference at all is called in dB; float32 itself has about 140.
EXACT_DB = 120.0
# These move numbers and change none; they and the selecting ones keep the range that they are given.
_MOVING = {"RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "PAD", "SLICE", "STRIDED_SLICE", "SPLIT", "PACK", "SHAPE"}
_KEEPING = {*_MOVING, *CONVERSIONS, "MAX_POOL_2D"}
# Each layer alone takes a run of the whole float model for each picture: so many pictures, fewer of deep models.
_ALONE_IMAGES, _ALONE_RUNS = 16, 1500


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
        readers: the layers that take its output in its range, up to those that compute with it: float as well, if
            that range is to matter no more.
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
    readers: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self) | {"shape": list(self.shape), "readers": list(self.readers)}


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
    spec = _spec(variant.inputs[0])
    if spec is None:
        raise ModelError(f"the variant takes {variant.inputs[0].dtype}, expected pixels")
    plan = _plan((reference_content, variant_content), (reference, variant), found)
    bench = Bench(plan)
    alone = min(_ALONE_IMAGES, max(2, _ALONE_RUNS // len(plan.rows)))
    table = pixel_table(normalise, spec)
    real_table = quantize(normalise.apply(np.arange(256)), TensorSpec("float32", ()))
    for i, picture in enumerate(pixels):
        stored = picture if table is None else table[picture]
        with np.errstate(invalid="ignore", over="ignore"):  # NaN is a finding, not a warning
            bench.measure(real_table[picture][np.newaxis], stored[np.newaxis], alone=i < alone)
        listener(Progress("comparing layers", i + 1, len(pixels)))
    graphs = (reference, variant) if kind == FLOAT_MODEL else None
    return LayerParity(kind, tuple(_layer(row, graphs) for row in plan.rows), len(pixels), found.unmatched)


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


def _layer(row: Row, graphs: tuple[Graph, Graph] | None) -> Layer:
    """What was counted; the weights are compared in the two graphs, where the reference is the float model."""
    levels = 2 ** np.iinfo(row.spec.dtype).bits if row.spec.quantized else 0
    return Layer(
        name=row.name,
        operator=row.operator,
        shape=row.spec.shape,
        sqnr_db=decibels(row.signal, row.noise),
        own_db=decibels(row.signal, row.own) if row.own_known else None,
        alone_db=decibels(row.logits, row.alone) if row.own_known and row.before_logits else None,
        weight_db=_weight_db(row.pair, graphs) if row.pair and graphs else None,
        clipped=row.clipped / row.count if levels else None,
        range_used=float(row.high.max() - row.low.min() + 1) / levels if levels else None,
        channel_used=float(np.median(row.high - row.low) + 1) / levels if levels else None,
        dead=bool(row.high.max() == row.low.min()) and row.real_low < row.real_high,
        finite=math.isfinite(row.signal) and math.isfinite(row.noise),
        readers=row.readers,
    )


def _plan(contents: tuple[bytes, bytes], graphs: tuple[Graph, Graph], found: Match) -> Plan:
    reference, variant = graphs
    specs = {tensor.index: spec for tensor in variant.tensors if (spec := _spec(tensor))}
    tensors = {index: there for index, there in found.tensors.items() if index in specs}
    logits, softmax = _logits(reference)
    rows = _rows(graphs, found.pairs, tensors, specs, logits)
    inputs = reference.inputs[0].index, variant.inputs[0].index
    return Plan(contents, inputs, tuple(rows), tensors, specs, logits, softmax)


def _rows(
    graphs: tuple[Graph, Graph], pairs: list[Pair], tensors: dict[int, int], specs: dict[int, TensorSpec], logits: int
) -> Iterator[Row]:
    """The input, each matched layer, and each change of scale between them."""
    reference, variant = graphs
    given, scores = variant.inputs[0].index, reference.outputs[0].index
    by_index = {theirs.index: (ours, theirs) for ours, theirs in pairs}
    made = {reference.inputs[0].index, *(tensor.index for o in computed(reference) for tensor in o.outputs)}
    flowing = {given}
    yield Row("input", "", None, (), (), tensors[given], given, specs[given], own_known=True, before_logits=True)
    for operator in computed(variant):
        sources = {tensor.index for tensor in operator.inputs if tensor is not None} & flowing
        flowing |= {tensor.index for tensor in operator.outputs}
        index, pair = operator.outputs[0].index, by_index.get(operator.index)
        if index not in tensors or _changes_nothing(operator):
            continue
        read = {tensor.index for tensor in pair[0].inputs if tensor is not None} & made if pair else set()
        yield Row(
            _name(operator, pair),
            operator.name,
            pair,
            tuple(sources),
            tuple(_readers(variant, index, by_index)),
            tensors[index],
            index,
            specs[index],
            own_known=sources <= tensors.keys() and (not pair or read == {tensors[source] for source in sources}),
            before_logits=tensors[index] != scores or logits == scores,
        )


def _name(operator: Operator, pair: Pair | None) -> str:
    """The layer's name in whichever of the two files has one."""
    names = [layer_name(side) for side in pair or (operator,)]
    return next((name for name in names if name != operator.name.lower()), names[0])


def _readers(graph: Graph, index: int, pairs: dict[int, Pair]) -> Iterator[str]:
    reached = {index}
    for operator in computed(graph):
        if not reached.isdisjoint(tensor.index for tensor in operator.inputs if tensor is not None):
            if operator.name in _KEEPING:
                reached |= {tensor.index for tensor in operator.outputs}
            name = _name(operator, pairs.get(operator.index))
            if name != operator.name.lower():
                yield name


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
    return decibels(power(real), power(real - real_values(theirs)))
