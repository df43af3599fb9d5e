"""Quantization-aware training (arXiv:1712.05877), using tensorflow-model-optimization."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.compress.fake_quantization import with_fake_quantization
from edgerec.compress.finetune import FineTune, fine_tune
from edgerec.contract.tensors import Normalize
from edgerec.utils.optional import require

CALIBRATION_ROUNDS = 4
CALIBRATION_STEPS = 25
# This constant must equal the decay of tensorflow-model-optimization's MovingAverageQuantizer.
EMA_DECAY = 0.999


def quantization_aware(
    model: Any,
    normalize: Normalize,
    tune: FineTune,
    *,
    pruned: bool = False,
    clustered: bool = False,
    weight_bits: int = 8,
) -> Any:
    """Fine-tune the model with int8 fake quantization in every layer.

    Activation ranges are calibrated on training images without augmentation or dropout, before the first step and
    before the last third of the epochs, in which the ranges are frozen (arXiv:1806.08342, section 4). With a single
    epoch, the ranges are frozen from the first step. Batch normalization keeps its statistics from float training.

    Args:
        model: a float model returned by :func:`~edgerec.importing.passes.adapt`; it may be pruned or clustered.
        normalize: normalization, which determines the input's fixed range, so that the int8 input is the pixel value
            minus 128.
        tune: data and schedule.
        pruned: keep zero weights at zero.
        clustered: keep the number of distinct weights in each layer.
        weight_bits: bits per weight, 5 to 8, if the model is not clustered. The converter would store 4-bit weights
            with a type other than int8.

    Raises:
        ModelError: a layer cannot be quantized; the message names the layer.
    """
    return fine_tune(
        partial(with_fake_quantization, model, normalize, pruned=pruned, clustered=clustered, weight_bits=weight_bits),
        tune,
        "quantization-aware training",
        calibrator=partial(range_calibrator, tune=tune),
        freeze=freeze_ranges,
    )


def range_calibrator(aware: Any, tune: FineTune) -> Callable[[], None]:
    """Return a function that calibrates a quantization-aware model's activation ranges on training images.

    No weights are trained, and random layers such as dropout are inactive, as in inference.

    The ranges are moving averages that start at ±6 or at their previous values. After n steps, the start value has the
    weight ``decay**n``. The corrected average is ``(average − decay**n · start) / (1 − decay**n)`` (arXiv:1412.6980,
    section 3). The calibration is repeated in rounds, because a range that is still too small clips the inputs of the
    next layers.
    """
    tf = require("tensorflow")
    ranges = list(activation_ranges(aware))
    start_weight = EMA_DECAY**CALIBRATION_STEPS

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def update(pixels: Any) -> None:
        # Python executes this body only once, when TensorFlow traces the function.
        with _inference_inside_wrappers(aware):
            aware(pixels, training=True)

    def calibrate() -> None:
        for _ in range(CALIBRATION_ROUNDS):
            start = _values(ranges)
            for pixels, *_ in tune.plain.take(CALIBRATION_STEPS):
                update(pixels)
            ends = (_values(ranges) - start_weight * start) / (1 - start_weight)
            # Float32 rounding errors can turn an exact 0, e.g. the minimum after a ReLU, into a tiny value.
            ends[np.abs(ends) < 1e-3 * np.abs(ends).max(axis=1, keepdims=True)] = 0.0
            for variables, values in zip(ranges, ends, strict=True):
                for variable, value in zip(variables, values, strict=True):
                    variable.assign(value)

    return calibrate


@contextmanager
def _inference_inside_wrappers(aware: Any) -> Iterator[None]:
    """Run wrapped layers in inference mode while their wrappers are in training mode (context manager).

    The wrappers update their ranges only in training mode, and pass ``training=True`` on to each wrapped layer whose
    ``call`` has the parameter ``training``. Other layers are called without this argument.
    """
    inner = [wrapper.layer for wrapper in aware.layers if hasattr(wrapper, "layer")]
    replaced = [layer for layer in inner if "training" in inspect.signature(layer.call).parameters]
    for layer in replaced:
        layer.call = partial(_call_in_inference, layer.call)
    try:
        yield
    finally:
        for layer in replaced:
            del layer.call


def _call_in_inference(call: Callable[..., Any], inputs: Any) -> Any:
    return call(inputs, training=False)


def _values(ranges: Sequence[tuple[Any, Any]]) -> npt.NDArray[np.float64]:
    return np.array([[float(end.numpy()) for end in pair] for pair in ranges])


def freeze_ranges(aware: Any) -> None:
    """Freeze the activation ranges of a quantization-aware model. The weights remain trainable."""
    for wrapper in aware.layers:
        if getattr(wrapper, "_output_quantizers", ()):
            wrapper._output_quantizers = [_Frozen(wrapper._output_quantizers[0])]
        for activation in getattr(wrapper, "_quantize_activations", ()):
            activation.quantizer = _Frozen(activation.quantizer)


class _Frozen:
    """A quantizer with a fixed range that is not updated during training."""

    def __init__(self, quantizer: Any) -> None:
        self.quantizer = quantizer

    def __call__(self, inputs: Any, training: Any, weights: Any, **options: Any) -> Any:
        return self.quantizer(inputs, False, weights, **options)


def activation_ranges(aware: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the variables that store the minimum and maximum of each activation range."""
    for wrapper in aware.layers:
        owners = [(wrapper, "_output_quantizer_vars")]
        for activation in getattr(wrapper, "_quantize_activations", ()):
            owners += [(activation, "_pre_activation_vars"), (activation, "_post_activation_vars")]
        for owner, name in owners:
            if ends := getattr(owner, name, None):
                yield ends["min_var"], ends["max_var"]
