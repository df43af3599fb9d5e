"""Measure each layer's quantization noise in a compressed .tflite model, relative to the float model.

All measurements use rewritten graphs (:mod:`extra_outputs`) with the kernels that run on the device. For each layer,
three signal-to-quantization-noise ratios (SQNR) are computed as ``10·log10(Σ float² / Σ (float − dequantized)²)`` in dB
over a sample of images:

- ``sqnr_db`` is measured at the layer's output in the whole compressed model, so it includes the noise of all previous
  layers.
- ``own_db`` is the SQNR of the noise that this layer adds. Its operator and the float operator read the same inputs:
  the float model's tensors, quantized as this layer receives them. The noise is caused by the layer's weights and the
  range of its output. The range of its input is attributed to the layer that computes the input.
- ``alone_db`` is measured at the logits of the float model, to which only this layer's own noise is added. This noise
  would be avoided if the layer stayed in float. Noise that later layers suppress costs no accuracy, and noise that is
  small compared with the layer's largest channel may cost much.

TensorFlow's ``QuantizationDebugger`` is not used, because it requires the converter that created the model, and does
not use the device's kernels.

**The reference.** If the variant's weights are the rounded weights of the float model, the reference is the float
model. Fine-tuning (QAT, pruning, clustering) changes the weights on purpose, and these changes are not noise. In this
case, the reference is the dequantized version of the variant, and the comparison measures the rounding of activations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.compress.layer_comparison.extra_outputs import CONVERSIONS, dequantized, image_operators, open_graph
from edgerec.compress.layer_comparison.graph_matching import Match, Pair, fine_tuned, layer_name, match, weights
from edgerec.compress.layer_comparison.instrumentation import ComparisonPlan, LayerInterpreters, LayerSums, power
from edgerec.contract.tensors import Normalize, TensorSpec, pixel_table, quantize
from edgerec.errors import ModelError
from edgerec.tflite.flatbuffer import Graph, Operator, Tensor, dequantized_constant
from edgerec.utils.progress import Listener, Progress, ignore

FLOAT_MODEL, DEQUANTIZED = "float model", "dequantized version"
# Higher ratios (in dB) count as exact, because float32 rounding errors alone give about 140 dB.
EXACT_DB = 120.0
# These operators rearrange values without changing them.
_MOVING = {"RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "PAD", "SLICE", "STRIDED_SLICE", "SPLIT", "PACK", "SHAPE"}
# The output of these operators has the same quantization range as the input.
_RANGE_PRESERVING = {*_MOVING, *CONVERSIONS, "MAX_POOL_2D"}
_ALONE_IMAGES = 16
# The number of inferences is limited, because ``alone_db`` requires one inference per layer and image.
_ALONE_RUNS = 1500


@dataclass(frozen=True)
class LayerResult:
    """Quantization noise measured for one layer.

    The module's docstring explains the three signal-to-quantization-noise ratios (SQNR).

    Attributes:
        name, operator, shape: name of the Keras layer, type of the TFLite operator, and shape of its output.
        sqnr_db, own_db, alone_db: signal-to-quantization-noise ratios in dB, or None if the signal is zero or the
            reference has no equivalent tensor. ``alone_db`` is also None for layers after the logits.
        weight_db: SQNR of the weights in dB, or None if the reference is not the float model.
        clipped: fraction of the float outputs outside the quantized range.
        range_used: fraction of the quantized range between the smallest and the largest output, 0 to 1.
        channel_used: the same fraction for the median channel.
        dead: whether the output is constant, unlike in float.
        finite: whether the outputs of both the variant and the reference are free of NaN and infinity.
        readers: layers that read this output with the same range. These layers must stay in float, too, to avoid the
            effect of the range.
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
        """Return the measurements as a JSON-serializable dictionary."""
        return asdict(self) | {"shape": list(self.shape), "readers": list(self.readers)}


@dataclass(frozen=True)
class LayerParity:
    """Quantization noise measured for all layers that can be compared.

    Attributes:
        reference: ``float model`` or ``dequantized version``.
        layers: the layers in execution order; the first is the input.
        images: number of images.
        unmatched: number of operators without an equivalent in the reference.
    """

    reference: str
    layers: tuple[LayerResult, ...]
    images: int
    unmatched: int


def decibels(signal: float, noise: float) -> float | None:
    """Return the ratio of two powers in dB, ``10·log10(signal / noise)``, capped at :data:`EXACT_DB`.

    Return None if the signal is zero, or if one of the powers is NaN or infinite.
    """
    if not (math.isfinite(signal) and math.isfinite(noise)) or signal <= 0:
        return None
    return EXACT_DB if noise <= 0 else min(EXACT_DB, 10 * math.log10(signal / noise))


def layer_parity(
    float_content: bytes | None,
    variant_content: bytes,
    pixels: npt.NDArray[np.uint8],
    normalize: Normalize,
    listener: Listener = ignore,
) -> LayerParity:
    """Compare a variant with its float model, layer by layer.

    Args:
        float_content: the float32 .tflite file, or None if there is none, e.g. for a quantized model from another tool.
        variant_content: the compressed .tflite file.
        pixels: images, uint8 ``(N, H, W, C)``. A few dozen images are enough.
        normalize: normalization of the float model's input.
        listener: receives the progress.

    Raises:
        ModelError: a file is not a TFLite model with one input and one output, its input size differs from that of the
            images, or its weights cannot be read.
    """
    variant = open_graph(variant_content, "the variant")
    if variant.inputs[0].shape[1:] != pixels.shape[1:]:
        raise ModelError(
            f"cannot compare layers: the variant expects inputs of shape {list(variant.inputs[0].shape)}, but the "
            f"images have shape {list(pixels.shape)}"
        )
    kind, reference_content, reference, matched = _reference(float_content, variant_content, variant)
    spec = _spec(variant.inputs[0])
    if spec is None:
        raise ModelError(
            f"cannot compare layers: the variant's input type is {variant.inputs[0].dtype}, expected float32 or int8"
        )
    plan = _plan((reference_content, variant_content), (reference, variant), matched)
    measurement = LayerInterpreters(plan)
    alone = min(_ALONE_IMAGES, max(2, _ALONE_RUNS // len(plan.rows)))
    table = pixel_table(normalize, spec)
    real_table = quantize(normalize.apply(np.arange(256)), TensorSpec("float32", ()))
    for i, image in enumerate(pixels):
        stored = image if table is None else table[image]
        # NumPy's warnings are hidden, because NaN is reported as a finding.
        with np.errstate(invalid="ignore", over="ignore"):
            measurement.measure(real_table[image][np.newaxis], stored[np.newaxis], alone=i < alone)
        listener(Progress("comparing layers", i + 1, len(pixels)))
    graphs = (reference, variant) if kind == FLOAT_MODEL else None
    return LayerParity(kind, tuple(_layer(row, graphs) for row in plan.rows), len(pixels), matched.unmatched)


def _reference(float_content: bytes | None, content: bytes, variant: Graph) -> tuple[str, bytes, Graph, Match]:
    """Return the reference model: the float model, or the dequantized variant if fine-tuning changed the weights."""
    if float_content is not None:
        reference = open_graph(float_content, "the float model")
        matched = match(reference, variant)
        if not fine_tuned(matched.pairs, reference, variant):
            return FLOAT_MODEL, float_content, reference, matched
    dequantized_content = dequantized(content)
    reference = open_graph(dequantized_content, "the dequantized version")
    return DEQUANTIZED, dequantized_content, reference, match(reference, variant)


def _layer(row: LayerSums, graphs: tuple[Graph, Graph] | None) -> LayerResult:
    levels = 2 ** np.iinfo(row.spec.dtype).bits if row.spec.quantized else 0
    return LayerResult(
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


def _plan(contents: tuple[bytes, bytes], graphs: tuple[Graph, Graph], matched: Match) -> ComparisonPlan:
    reference, variant = graphs
    specs = {tensor.index: spec for tensor in variant.tensors if (spec := _spec(tensor))}
    tensors = {index: reference_index for index, reference_index in matched.tensors.items() if index in specs}
    logits, softmax = _logits(reference)
    rows = _rows(graphs, matched.pairs, tensors, specs, logits)
    inputs = reference.inputs[0].index, variant.inputs[0].index
    return ComparisonPlan(contents, inputs, tuple(rows), tensors, specs, logits, softmax)


def _rows(
    graphs: tuple[Graph, Graph], pairs: list[Pair], tensors: dict[int, int], specs: dict[int, TensorSpec], logits: int
) -> Iterator[LayerSums]:
    reference, variant = graphs
    input_index, scores = variant.inputs[0].index, reference.outputs[0].index
    by_index = {
        variant_operator.index: (reference_operator, variant_operator) for reference_operator, variant_operator in pairs
    }
    reference_tensors = {
        reference.inputs[0].index,
        *(tensor.index for o in image_operators(reference) for tensor in o.outputs),
    }
    image_tensors = {input_index}
    yield LayerSums(
        "input",
        "",
        None,
        (),
        (),
        tensors[input_index],
        input_index,
        specs[input_index],
        own_known=True,
        before_logits=True,
    )
    for operator in image_operators(variant):
        sources = {tensor.index for tensor in operator.inputs if tensor is not None} & image_tensors
        image_tensors |= {tensor.index for tensor in operator.outputs}
        index, pair = operator.outputs[0].index, by_index.get(operator.index)
        if index not in tensors or _changes_nothing(operator):
            continue
        read = {tensor.index for tensor in pair[0].inputs if tensor is not None} & reference_tensors if pair else set()
        yield LayerSums(
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
    """Return the layer's name in the reference model, or its name in the variant if the reference has no such layer."""
    names = [layer_name(member) for member in pair or (operator,)]
    return next((name for name in names if name != operator.name.lower()), names[0])


def _readers(graph: Graph, index: int, pairs: dict[int, Pair]) -> Iterator[str]:
    reached = {index}
    for operator in image_operators(graph):
        if not reached.isdisjoint(tensor.index for tensor in operator.inputs if tensor is not None):
            if operator.name in _RANGE_PRESERVING:
                reached |= {tensor.index for tensor in operator.outputs}
            name = _name(operator, pairs.get(operator.index))
            if name != operator.name.lower():
                yield name


def _changes_nothing(operator: Operator) -> bool:
    if operator.name != "QUANTIZE":
        return operator.name in _MOVING or operator.name in CONVERSIONS
    source = operator.inputs[0]
    return source is not None and source.scales == operator.outputs[0].scales  # such as uint8 to int8


def _logits(graph: Graph) -> tuple[int, bool]:
    """Return the logits tensor's index, and whether a softmax follows."""
    scores = graph.outputs[0].index
    for operator in image_operators(graph):
        if operator.name == "SOFTMAX" and operator.outputs[0].index == scores and operator.inputs[0] is not None:
            return operator.inputs[0].index, True
    return scores, False


def _spec(tensor: Tensor) -> TensorSpec | None:
    """Return the tensor's spec, or None if the tensor is neither float nor quantized per tensor."""
    scale, zero_point = (tensor.scales or (0.0,))[0], (tensor.zero_points or (0,))[0]
    try:
        return TensorSpec(tensor.dtype.lower(), tensor.shape, scale, zero_point) if len(tensor.scales) < 2 else None
    except ValueError:
        return None


def _weight_db(pair: Pair, graphs: tuple[Graph, Graph]) -> float | None:
    reference_weights, variant_weights = (
        weights(operator, graph) for operator, graph in zip(pair, graphs, strict=True)
    )
    if reference_weights is None or variant_weights is None:
        return None
    real = dequantized_constant(reference_weights)
    return decibels(power(real), power(real - dequantized_constant(variant_weights)))
