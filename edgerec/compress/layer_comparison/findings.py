"""What the figures of parity mean, in words, each with a way out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgerec.compress.layer_comparison.runner import FLOAT_MODEL, Layer, LayerParity
from edgerec.contract.tensors import Normalise, TensorSpec, dequantize, pixel_table
from edgerec.recipe import DataSource
from edgerec.utils.command_line import command, data_options

# A noise of a tenth of the signal. Healthy int8 layers of simple_cnn, ResNet8 and MobileNetV1 had 25 to 48 dB; with
# one scale for all channels' weights, which is known to cost accuracy, they came down to 20.
LOW_DB = 20.0
# One class for more than this part of the pictures is a collapse, unless the float model does the same.
_COLLAPSED = 0.9
# How many of the 256 pixel values the input must tell apart.
_PIXEL_LEVELS = 230
# A best score that leaves no doubt, and how much more often than float's it may be one.
_SURE, _MORE_SURE = 0.99, 0.25
# A cause is named from here on: the part of its values out of range, the part of its range that is in use (a
# quarter is two bits less) and that half of its channels have, and the SQNR of its weights.
_CLIPPED, _RANGE, _CHANNEL_RANGE, _WEIGHT_DB = 0.005, 1 / 4, 1 / 32, 30.0


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: ``input-scale``, ``collapse``, ``saturated``, ``not-finite``, ``layer`` (the one that costs most),
            ``leaves-float`` (the first that is far off) or ``dead``.
        layer: its name, where it is about one.
        text: what was found, and the way out.
    """

    kind: str
    layer: str | None
    text: str


def find_input(spec: TensorSpec, normalise: Normalise) -> Iterator[Finding]:
    """A quantized input, ``spec``, that does not tell pixel values apart."""
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
        f"wrong input scale: the input holds {least:.4g} to {most:.4g} in {limits.max - limits.min + 1} steps, the "
        f"pixels are {low:.4g} to {high:.4g}, so that {levels} of 256 pixel values are told apart: calibrate with "
        "pictures normalised as in training, exactly once",
    )


def find_answers(
    reference: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], labels: Sequence[str]
) -> Iterator[Finding]:
    """Collapse to one class and scores without doubt, from both models' scores ``(N, classes)``."""
    ours, theirs = reference.argmax(axis=1), scores.argmax(axis=1)
    answer = int(np.bincount(theirs).argmax())
    before, after = float(np.mean(ours == answer)), float(np.mean(theirs == answer))
    if before > _COLLAPSED:
        yield Finding(
            "collapse",
            None,
            f"the float model itself answers {labels[answer]!r} for {before:.0%} of the validation pictures: "
            "look at their classes, or train it longer",
        )
    elif after > _COLLAPSED:
        yield Finding(
            "collapse",
            None,
            f"collapse to one class: {labels[answer]!r} for {after:.0%} of the validation pictures, {before:.0%} in "
            "float: look at the first layer that leaves float, then quantize again",
        )
    was_sure, sure = (float(np.mean(each.max(axis=1) >= _SURE)) for each in (reference, scores))
    if sure > was_sure + _MORE_SURE:
        yield Finding(
            "saturated",
            None,
            f"{sure:.0%} of the best scores are {_SURE} or more, {was_sure:.0%} in float: they say nothing about "
            "confidence any more, so thresholds do not hold; quantize again",
        )


def find_layers(parity: LayerParity, run: str, data: DataSource | None = None) -> Iterator[Finding]:
    """Yield findings about layers; ``run`` and ``data`` are inserted into the commands that the findings suggest."""
    layers = parity.layers
    for layer in layers:
        if not layer.finite:
            yield Finding(
                "not-finite", layer.name, f"{layer.name} gives NaN or infinity: train again with a lower learning rate"
            )
            return  # whatever follows it is not finite either
    if (worst := costliest(layers)) and _low(worst.alone_db):
        yield Finding(
            "layer",
            worst.name,
            f"{worst.name} costs most: alone in the float model it leaves {worst.alone_db:.1f} dB at the logits "
            f"({cause(worst)}): {_way_out(worst, parity.reference, run, data)}",
        )
    if first := next((layer for layer in layers if _low(layer.sqnr_db)), None):
        innocent = first.own_db is not None and first.own_db >= LOW_DB
        blame = f", though not by itself ({first.own_db:.1f} dB)" if innocent else ""
        yield Finding(
            "leaves-float",
            first.name,
            f"{first.name} is the first layer that leaves float: {first.sqnr_db:.1f} dB, below {LOW_DB:g}, is a noise "
            f"of more than a tenth of its signal{blame}",
        )
    if dead := [layer for layer in layers if layer.dead and _low(layer.sqnr_db)]:
        names = ", ".join(layer.name for layer in dead[:5])
        yield Finding(
            "dead",
            dead[0].name,
            f"{names}: one value for all pictures, not so in float, since its range is far too wide or too narrow: "
            f"{_way_out(dead[0], parity.reference, run, data)}",
        )


def _way_out(layer: Layer, reference: str, run: str, data: DataSource | None) -> str:
    trained = (
        "train it for int8 (--method qat)" if reference == FLOAT_MODEL else "calibrate its range longer (more --epochs)"
    )
    names = ",".join(dict.fromkeys((layer.name, *layer.readers)))
    mixed = command("quantize", run, "--method", "mixed", "--float-layers", names, *data_options(data))
    return f"{trained}, or keep this layer and the layers that read its output in float: {mixed}"


def _low(ratio_db: float | None) -> bool:
    return ratio_db is not None and ratio_db < LOW_DB


def costliest(layers: Sequence[Layer]) -> Layer | None:
    """The layer whose own noise is largest at the logits."""
    costs = {layer.alone_db: layer for layer in reversed(layers) if layer.alone_db is not None}
    return costs[min(costs)] if costs else None


def cause(layer: Layer) -> str:
    """Why a layer is far off."""
    if layer.clipped is not None and layer.clipped > _CLIPPED:
        return f"{layer.clipped:.1%} of its values are past the ends of its range"
    if layer.range_used and layer.range_used < _RANGE:
        return f"its values reach {layer.range_used:.1%} of its range"
    if layer.range_used and layer.channel_used and layer.channel_used < _CHANNEL_RANGE < layer.range_used:
        return f"half of its channels have {layer.channel_used:.1%} of its range or less, since one needs all of it"
    if layer.weight_db is not None and layer.weight_db < _WEIGHT_DB:
        return f"its weights alone keep {layer.weight_db:.1f} dB"
    return "its values need finer steps"
