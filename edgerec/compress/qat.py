"""Quantization-aware training (arXiv:1712.05877), by tensorflow-model-optimization."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.compress.annotate import annotate
from edgerec.compress.finetune import FineTune, fine_tune
from edgerec.contract.tensors import Normalise
from edgerec.errors import ModelError
from edgerec.optional import require
from edgerec.train.keras import as_written, first_line, keras

SETTLING_ROUNDS = 4
SETTLING_STEPS = 25
# What tensorflow-model-optimization's MovingAverageQuantizer keeps of a range at each step.
EMA_DECAY = 0.999


def quantization_aware(
    model: Any,
    normalise: Normalise,
    tune: FineTune,
    *,
    pruned: bool = False,
    clustered: bool = False,
    weight_bits: int = 8,
) -> Any:
    """The model with int8 rounding simulated in every layer, fine-tuned.

    Activation ranges are settled on training pictures as they are, not augmented, before the first step and before the
    last third, where they stay so (arXiv:1806.08342, section 4). Batch normalisation's statistics stay those of the
    float training: with others it would be another model before anything is rounded.

    Args:
        model: a float model that :func:`~edgerec.compress.adapt.adapt` let through, pruned, clustered or neither.
        normalise: fixes the input's range, so that pixels pass through.
        tune: data and schedule.
        pruned: keep zero weights at zero.
        clustered: keep the number of different weights.
        weight_bits: of each weight, 5 to 8, where nothing is clustered; of 4 the converter makes another type.

    Raises:
        ModelError: a layer that cannot be quantized, by its name.
    """
    return fine_tune(
        partial(rounded, model, normalise, pruned=pruned, clustered=clustered, weight_bits=weight_bits),
        tune,
        "quantization-aware training",
        settler=partial(_settler, tune=tune),  # twice, as augmented pictures have other ranges than those that will run
        freeze=_freeze,
    )


def rounded(
    model: Any, normalise: Normalise, *, pruned: bool = False, clustered: bool = False, weight_bits: int = 8
) -> Any:
    """A copy of the model with int8 rounding simulated in every layer; not trained yet."""
    tfmot = require("tensorflow_model_optimization")
    quantization, combine = tfmot.quantization.keras, tfmot.experimental.combine
    scheme: tuple[Any, ...] = ()
    if clustered:
        scheme = (combine.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=pruned),)
    elif pruned:
        scheme = (combine.Default8BitPrunePreserveQuantizeScheme(),)
    try:
        with quantization.quantize_scope():
            aware = as_written(quantization.quantize_apply)(annotate(model), *scheme)
    except (ValueError, RuntimeError) as error:
        raise ModelError(
            f"quantization-aware training refuses {model.name}: {first_line(error)}; use --method ptq"
        ) from None
    _fix_input_range(aware, normalise)
    if not clustered:
        _take_bits(aware, weight_bits)
    for wrapper in aware.layers:
        layer = getattr(wrapper, "layer", wrapper)
        if isinstance(layer, keras().layers.BatchNormalization):
            layer.trainable = False  # keeps its statistics; tfmot's wrapper trains scale and offset all the same
    return aware


def _take_bits(aware: Any, count: int) -> None:
    """Let each weight be one of ``2**count - 1`` values, evenly apart: the converter takes so many of int8's 255."""
    for wrapper in aware.layers:
        for _, quantizer, _ in getattr(wrapper, "_weight_vars", ()):
            quantizer.num_bits = count


def _fix_input_range(aware: Any, normalise: Normalise) -> None:
    """Give the input the range of all pixel values, instead of learning about that one from the data.

    Its scale is then 1/std and its zero point the mean: quantize(normalise(p)) == p.
    """
    from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import QuantizeLayer
    from tensorflow_model_optimization.python.core.quantization.keras.quantizers import FixedQuantizer

    low, high = (0 - normalise.mean) / normalise.std, (255 - normalise.mean) / normalise.std
    for layer in aware.layers:
        if isinstance(layer, QuantizeLayer):
            layer.quantizer = FixedQuantizer(num_bits=8, init_min=low, init_max=high, narrow_range=False)


def _settler(aware: Any, tune: FineTune) -> Callable[[], None]:
    """What runs training pictures through without learning, until the ranges are theirs.

    The ranges are moving averages that start at ±6, or what was, and forget a thousandth of it a step. What is left
    of the start after n steps is known, and taken out: ``(average − decay**n · start) / (1 − decay**n)``
    (arXiv:1412.6980, section 3). They cannot start at zero, where every layer would cut off what the next one sees;
    as one that starts too small does so too, it is done in rounds.
    """
    tf = require("tensorflow")
    ranges = list(_activation_ranges(aware))
    see = tf.function(lambda pixels: aware(pixels, training=True), autograph=False)
    left = EMA_DECAY**SETTLING_STEPS

    def settle() -> None:
        for _ in range(SETTLING_ROUNDS):
            start = _values(ranges)
            for pixels, _ in tune.plain.take(SETTLING_STEPS):
                see(pixels)
            settled = (_values(ranges) - left * start) / (1 - left)
            # An end that is zero, as behind each ReLU, comes out as what float32 rounded on the way.
            settled[np.abs(settled) < 1e-3 * np.abs(settled).max(axis=1, keepdims=True)] = 0.0
            for pair, ends in zip(ranges, settled, strict=True):
                for variable, end in zip(pair, ends, strict=True):
                    variable.assign(end)

    return settle


def _values(ranges: Sequence[tuple[Any, Any]]) -> npt.NDArray[np.float64]:
    """The ends of the ranges: ``(ranges, 2)``."""
    return np.array([[float(end.numpy()) for end in pair] for pair in ranges])


def _freeze(aware: Any) -> None:
    """Keep activation ranges from now on; weights go on learning."""
    for wrapper in aware.layers:
        if getattr(wrapper, "_output_quantizers", ()):
            wrapper._output_quantizers = [_Still(wrapper._output_quantizers[0])]
        for activation in getattr(wrapper, "_quantize_activations", ()):
            activation.quantizer = _Still(activation.quantizer)


class _Still:
    """A quantizer with a range that no longer follows its input."""

    def __init__(self, quantizer: Any) -> None:
        self.quantizer = quantizer

    def __call__(self, inputs: Any, training: Any, weights: Any, **options: Any) -> Any:
        return self.quantizer(inputs, False, weights, **options)


def _activation_ranges(aware: Any) -> Iterator[tuple[Any, Any]]:
    """The two variables with the ends of each activation's range."""
    for wrapper in aware.layers:
        places = [(wrapper, "_output_quantizer_vars")]
        for activation in getattr(wrapper, "_quantize_activations", ()):
            places += [(activation, "_pre_activation_vars"), (activation, "_post_activation_vars")]
        for owner, name in places:
            if ends := getattr(owner, name, None):
                yield ends["min_var"], ends["max_var"]
