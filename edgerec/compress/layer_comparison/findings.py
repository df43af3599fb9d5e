"""Describe the problems found by comparing layers, and recommend fixes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgerec.compress.layer_comparison.runner import FLOAT_MODEL, LayerParity, LayerResult
from edgerec.contract.tensors import Normalize, TensorSpec, dequantize, pixel_table
from edgerec.recipe import DataSource
from edgerec.utils.command_line import command, data_options

# Layers with a lower signal-to-quantization-noise ratio (SQNR), in dB, are reported.
# The int8 layers of working models typically have an SQNR of 25 dB or more.
LOW_DB = 20.0
# A model is considered collapsed if it predicts the same class for more than this fraction of the images.
_COLLAPSED = 0.9
# The input scale is wrong if the 256 pixel values are mapped to fewer distinct quantized values than this.
_PIXEL_LEVELS = 230
# Top scores at or above this threshold count as saturated.
_SURE = 0.99
# Saturation is reported if the fraction of saturated scores increases by more than this value.
_MORE_SURE = 0.25
# Clipping is reported if more than this fraction of a layer's float outputs is outside the quantized range.
_CLIPPED = 0.005
# Layers whose outputs use less than this fraction of the quantized range waste at least two bits.
_RANGE = 1 / 4
# A layer's median channel should use at least this fraction of the quantized range.
_CHANNEL_RANGE = 1 / 32
# Weights with a lower signal-to-quantization-noise ratio (SQNR), in dB, are reported.
_WEIGHT_DB = 30.0


@dataclass(frozen=True)
class ParityFinding:
    """A problem with a variant, found by comparing it with the float model.

    Attributes:
        kind: ``input-scale``, ``collapse``, ``saturated``, ``not-finite``, ``layer`` (the layer that costs the most
            accuracy), ``leaves-float`` (the first layer that differs much from float) or ``dead``.
        layer: name of the layer, or None if the problem concerns the whole model.
        text: the problem and the recommended action.
    """

    kind: str
    layer: str | None
    text: str


def find_input(spec: TensorSpec, normalize: Normalize) -> Iterator[ParityFinding]:
    """Yield a finding if the input quantization maps many different pixel values to the same quantized value."""
    if not spec.quantized:
        return
    table = pixel_table(normalize, spec)
    levels = 256 if table is None else len(np.unique(table))
    if levels >= _PIXEL_LEVELS:
        return
    limits = np.iinfo(spec.dtype)
    least, most = dequantize(np.array([limits.min, limits.max]), spec)
    low, high = normalize.apply(0.0), normalize.apply(255.0)
    yield ParityFinding(
        "input-scale",
        "input",
        f"wrong input scale: the input can represent {least:.4g} to {most:.4g} in {limits.max - limits.min + 1} steps, "
        f"but normalized pixels are {low:.4g} to {high:.4g}, so that only {levels} of 256 pixel values are "
        "distinguished: calibrate with images that are normalized exactly once, as in training",
    )


def find_outputs(
    reference: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], labels: Sequence[str]
) -> Iterator[ParityFinding]:
    """Yield findings if nearly all predictions are the same class or if scores are saturated.

    Args:
        reference: scores of the float model, float32 ``(N, classes)``.
        scores: scores of the variant, float32 ``(N, classes)``.
        labels: label of each class.
    """
    float_predictions, predictions = reference.argmax(axis=1), scores.argmax(axis=1)
    prediction = int(np.bincount(predictions).argmax())
    before, after = float(np.mean(float_predictions == prediction)), float(np.mean(predictions == prediction))
    if before > _COLLAPSED:
        yield ParityFinding(
            "collapse",
            None,
            f"the float model itself predicts {labels[prediction]!r} for {before:.0%} of the validation images: check "
            "their classes, or train the model longer",
        )
    elif after > _COLLAPSED:
        yield ParityFinding(
            "collapse",
            None,
            f"collapse to one class: {labels[prediction]!r} for {after:.0%} of the validation images, {before:.0%} "
            "with float: find the first layer that differs much from float, then quantize again",
        )
    was_sure, sure = (float(np.mean(each.max(axis=1) >= _SURE)) for each in (reference, scores))
    if sure > was_sure + _MORE_SURE:
        yield ParityFinding(
            "saturated",
            None,
            f"saturated scores: {sure:.0%} of the top scores are {_SURE} or more ({was_sure:.0%} in float), so that "
            "scores no longer express confidence and thresholds do not work: quantize again",
        )


def find_layers(parity: LayerParity, run: str, data: DataSource | None = None) -> Iterator[ParityFinding]:
    """Yield findings about layers with NaN or infinite outputs, high quantization noise, or constant outputs.

    Args:
        parity: result of the layer comparison.
        run: path of the run, for the suggested commands.
        data: location of the run's images, for the suggested commands.
    """
    layers = parity.layers
    for layer in layers:
        if not layer.finite:
            yield ParityFinding(
                "not-finite",
                layer.name,
                f"the outputs of {layer.name} are NaN or infinite: train again with a lower learning rate",
            )
            return  # the outputs of all later layers are also NaN or infinite
    if (worst := costliest(layers)) and _low(worst.alone_db):
        yield ParityFinding(
            "layer",
            worst.name,
            f"{worst.name} costs the most accuracy: its noise alone reduces the SQNR of the logits to "
            f"{worst.alone_db:.1f} dB ({cause(worst)}): {_recommendation(worst, parity.reference, run, data)}",
        )
    if first := next((layer for layer in layers if _low(layer.sqnr_db)), None):
        small_noise = first.own_db is not None and first.own_db >= LOW_DB
        blame = f", but its own noise is small ({first.own_db:.1f} dB)" if small_noise else ""
        yield ParityFinding(
            "leaves-float",
            first.name,
            f"{first.name} is the first layer that differs much from float: its SQNR of {first.sqnr_db:.1f} dB is "
            f"below {LOW_DB:g} dB, so the noise is more than a tenth of the signal{blame}",
        )
    if dead := [layer for layer in layers if layer.dead and _low(layer.sqnr_db)]:
        names = ", ".join(layer.name for layer in dead[:5])
        yield ParityFinding(
            "dead",
            dead[0].name,
            f"{names}: the output is constant for all images, unlike in float, because its range is too wide or "
            f"too narrow: {_recommendation(dead[0], parity.reference, run, data)}",
        )


def _recommendation(layer: LayerResult, reference: str, run: str, data: DataSource | None) -> str:
    trained = (
        "use quantization-aware training (--method qat)"
        if reference == FLOAT_MODEL
        else "calibrate longer (more --epochs)"
    )
    names = ",".join(dict.fromkeys((layer.name, *layer.readers)))
    mixed = command("quantize", run, "--method", "mixed", "--float-layers", names, *data_options(data))
    return f"{trained}, or keep this layer and the layers that read its output in float: {mixed}"


def _low(ratio_db: float | None) -> bool:
    return ratio_db is not None and ratio_db < LOW_DB


def costliest(layers: Sequence[LayerResult]) -> LayerResult | None:
    """Return the layer whose quantization noise affects the logits most, or None if this was not measured."""
    costs = {layer.alone_db: layer for layer in reversed(layers) if layer.alone_db is not None}
    return costs[min(costs)] if costs else None


def cause(layer: LayerResult) -> str:
    """Describe the probable cause of a layer's quantization noise."""
    if layer.clipped is not None and layer.clipped > _CLIPPED:
        return f"{layer.clipped:.1%} of its values are outside its range"
    if layer.range_used and layer.range_used < _RANGE:
        return f"its values use only {layer.range_used:.1%} of its range"
    if layer.range_used and layer.channel_used and layer.channel_used < _CHANNEL_RANGE < layer.range_used:
        return (
            f"half of its channels use {layer.channel_used:.1%} of its range or less, because one channel needs all of "
            "it"
        )
    if layer.weight_db is not None and layer.weight_db < _WEIGHT_DB:
        return f"its weights have an SQNR of {layer.weight_db:.1f} dB"
    return "its range is too coarse for its values"
