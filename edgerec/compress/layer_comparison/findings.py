"""Explain the result of a layer comparison in sentences, and recommend what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgerec.compress.layer_comparison.runner import FLOAT_MODEL, Layer, LayerParity
from edgerec.contract.tensors import Normalise, TensorSpec, dequantize, pixel_table
from edgerec.recipe import DataSource
from edgerec.utils.command_line import command, data_options

# At 20 dB, the noise is a tenth of the signal. Healthy int8 layers of simple_cnn, ResNet8 and MobileNetV1 had 25 to 48
# dB. With one scale for the weights of all channels, which is known to cost accuracy, they dropped to 20 dB.
LOW_DB = 20.0
# Predicting one class for more than this fraction of the images is a collapse, unless the float model does the same.
_COLLAPSED = 0.9
# Minimum number of the 256 pixel values that the quantized input has to distinguish.
_PIXEL_LEVELS = 230
# Scores are saturated if the fraction of images with a best score of at least _SURE is greater by _MORE_SURE than with
# the float model.
_SURE, _MORE_SURE = 0.99, 0.25
# Thresholds for the probable cause: fraction of values out of range, fraction of the range in use (a quarter loses two
# bits), fraction of the range in use by the median channel, and SQNR of the weights in dB.
_CLIPPED, _RANGE, _CHANNEL_RANGE, _WEIGHT_DB = 0.005, 1 / 4, 1 / 32, 30.0


@dataclass(frozen=True)
class Finding:
    """A problem that the comparison found.

    Attributes:
        kind: ``input-scale``, ``collapse``, ``saturated``, ``not-finite``, ``layer`` (the layer that costs most
            accuracy), ``leaves-float`` (the first layer that differs much from float) or ``dead``.
        layer: name of the layer; None if the finding is about the whole model.
        text: the problem and the recommended action.
    """

    kind: str
    layer: str | None
    text: str


def find_input(spec: TensorSpec, normalise: Normalise) -> Iterator[Finding]:
    """Yield a finding if the quantized input ``spec`` maps many different pixel values to the same number."""
    if not spec.quantized:
        return
    table = pixel_table(normalise, spec)
    levels = 256 if table is None else len(np.unique(table))
    if levels >= _PIXEL_LEVELS:
        return
    limits = np.iinfo(spec.dtype)
    least, most = dequantize(np.array([limits.min, limits.max]), spec)
    low, high = normalise.apply(0.0), normalise.apply(255.0)
    yield Finding(
        "input-scale",
        "input",
        f"wrong input scale: the input can represent {least:.4g} to {most:.4g} in {limits.max - limits.min + 1} steps, "
        f"but normalized pixels are {low:.4g} to {high:.4g}, so that only {levels} of 256 pixel values are "
        "distinguished: calibrate with images that are normalized exactly once, as in training",
    )


def find_outputs(
    reference: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], labels: Sequence[str]
) -> Iterator[Finding]:
    """Yield findings about predictions of one class and saturated scores.

    Args:
        reference: scores of the float model, float32 ``(N, classes)``.
        scores: scores of the variant, float32 ``(N, classes)``.
        labels: label of each class.
    """
    float_predictions, predictions = reference.argmax(axis=1), scores.argmax(axis=1)
    prediction = int(np.bincount(predictions).argmax())
    before, after = float(np.mean(float_predictions == prediction)), float(np.mean(predictions == prediction))
    if before > _COLLAPSED:
        yield Finding(
            "collapse",
            None,
            f"the float model itself predicts {labels[prediction]!r} for {before:.0%} of the validation images: check "
            "their classes, or train the model longer",
        )
    elif after > _COLLAPSED:
        yield Finding(
            "collapse",
            None,
            f"collapse to one class: {labels[prediction]!r} for {after:.0%} of the validation images, {before:.0%} "
            "with float: find the first layer that differs from float, then quantize again",
        )
    was_sure, sure = (float(np.mean(each.max(axis=1) >= _SURE)) for each in (reference, scores))
    if sure > was_sure + _MORE_SURE:
        yield Finding(
            "saturated",
            None,
            f"saturated scores: {sure:.0%} of the best scores are {_SURE} or more, {was_sure:.0%} with float, so that "
            "scores no longer express confidence and thresholds do not work: quantize again",
        )


def find_layers(parity: LayerParity, run: str, data: DataSource | None = None) -> Iterator[Finding]:
    """Yield findings about layers; ``run`` and ``data`` are inserted into the commands that the findings suggest."""
    layers = parity.layers
    for layer in layers:
        if not layer.finite:
            yield Finding(
                "not-finite",
                layer.name,
                f"the outputs of {layer.name} are NaN or infinite: train again with a lower learning rate",
            )
            return  # the outputs of all following layers are not finite either
    if (worst := costliest(layers)) and _low(worst.alone_db):
        yield Finding(
            "layer",
            worst.name,
            f"{worst.name} costs most: its noise alone leaves {worst.alone_db:.1f} dB at the float model's logits "
            f"({cause(worst)}): {_recommendation(worst, parity.reference, run, data)}",
        )
    if first := next((layer for layer in layers if _low(layer.sqnr_db)), None):
        small_noise = first.own_db is not None and first.own_db >= LOW_DB
        blame = f", but its own noise is small ({first.own_db:.1f} dB)" if small_noise else ""
        yield Finding(
            "leaves-float",
            first.name,
            f"{first.name} is the first layer that differs from float: {first.sqnr_db:.1f} dB is below {LOW_DB:g} dB, "
            f"so the noise is more than a tenth of the signal{blame}",
        )
    if dead := [layer for layer in layers if layer.dead and _low(layer.sqnr_db)]:
        names = ", ".join(layer.name for layer in dead[:5])
        yield Finding(
            "dead",
            dead[0].name,
            f"{names}: constant for all images, unlike in float, because the range is far too wide or too narrow: "
            f"{_recommendation(dead[0], parity.reference, run, data)}",
        )


def _recommendation(layer: Layer, reference: str, run: str, data: DataSource | None) -> str:
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


def costliest(layers: Sequence[Layer]) -> Layer | None:
    """Return the layer whose own noise is largest at the logits; None if no layer has this measurement."""
    costs = {layer.alone_db: layer for layer in reversed(layers) if layer.alone_db is not None}
    return costs[min(costs)] if costs else None


def cause(layer: Layer) -> str:
    """Describe the probable cause of a layer's noise."""
    if layer.clipped is not None and layer.clipped > _CLIPPED:
        return f"{layer.clipped:.1%} of its values are outside of its range"
    if layer.range_used and layer.range_used < _RANGE:
        return f"its values use only {layer.range_used:.1%} of its range"
    if layer.range_used and layer.channel_used and layer.channel_used < _CHANNEL_RANGE < layer.range_used:
        return (
            f"half of its channels use {layer.channel_used:.1%} of its range or less, because one channel needs all of "
            "it"
        )
    if layer.weight_db is not None and layer.weight_db < _WEIGHT_DB:
        return f"its weights have {layer.weight_db:.1f} dB"
    return "its range is too coarse for its values"
