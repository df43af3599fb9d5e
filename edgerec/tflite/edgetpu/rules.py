"""Why the Edge TPU refuses an operator.

Rules: coral.ai, "TensorFlow models on the Edge TPU", sections "Model requirements" and "Supported operations". Where
they leave a limit open, it is between what the compiler mapped and what it refused in files and logs that people
published; ``docs/edgetpu.md`` has them. Which operators and versions are known at all says ``targets/coral-usb.toml``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import numpy as np

from edgerec.tflite.flatbuffer import Operator, Tensor

# A rule gives the reason why an operator is refused, or None.
Rule = Callable[[Operator], str | None]

QUANTIZE = "quantize it: edgerec quantize RUN"
ONE_PICTURE = "convert it for one picture at a time: keras.Input(shape, batch_size=1)"

# Parameters may be 32-bit integers, and an LSTM keeps its cell state in 16 bits.
_ACTIVATIONS = {"INT8", "UINT8"}
_CONSTANTS = {"INT8", "UINT8", "INT32", "INT64"}
# Coral's page says 16,000; the compiler mapped 128×128.
_SOFTMAX_MOST = 16_384
# Published: an upsampling from 256 to 512 pixels and one by 16 were refused, those to 128 pixels and by 2 were mapped.
_RESIZE_MOST_PX, _RESIZE_MOST_TIMES = 255, 8
# Published: a transposition of 40×40×65 numbers was refused, one of 14×14×255 was mapped.
_TRANSPOSE_MOST = 65_536
# Published: a mean over 256×128 was refused, one over 64×128 was mapped.
_MEAN_MOST = 16_384

_WAYS_OUT = {
    "ARG_MAX": "leave it out: the largest score is found outside of the model",
    "ELU": "train it with ReLU6 in its place",
    "GELU": "train it with ReLU6 in its place",
    "HARD_SWISH": "train it with ReLU6 in its place (MobileNetV3 minimalistic)",
    "LEAKY_RELU": "train it with ReLU or PReLU in its place",
    "DEQUANTIZE": "convert it with integer outputs: inference_output_type=tf.uint8",
    "CAST": "convert it with uint8 inputs: inference_input_type=tf.uint8",
    "RESIZE_BILINEAR": "resize outside of the model, or by 2 and up to 128 pixels",
    "RESIZE_NEAREST_NEIGHBOR": "resize outside of the model, or up to 128 pixels",
    "SHAPE": ONE_PICTURE,
    "TRANSPOSE": "leave it out, or use a smaller --input-size",
}


def refused(operator: Operator, versions: Mapping[str, int]) -> str | None:
    """Why the Edge TPU cannot run this operator, or None.

    Args:
        operator: of the model.
        versions: every operator that it has, with the highest version that its compiler knows; 0 is any.
    """
    if operator.name not in versions:
        return "the Edge TPU has no such operator"
    highest = versions[operator.name]
    if highest and operator.version > highest:
        return f"it is of version {operator.version}, the compiler knows up to {highest}"
    upsampling = _of_upsampling(operator)
    for tensor in (*operator.inputs, *operator.outputs):
        if tensor is not None and (reason := _refused_tensor(tensor, operator, upsampling)):
            return reason
    rule = _RULES.get(operator.name)
    return rule(operator) if rule else None


def way_out(operator: Operator, reason: str) -> str:
    """What to do about it."""
    if "dynamic shape" in reason:
        return ONE_PICTURE
    if "of version" in reason:
        return "convert it with TensorFlow 2.5 to 2.8, or with edgerec"
    if operator.name not in _WAYS_OUT and any(t.dtype not in _CONSTANTS for t in operator.outputs):
        return QUANTIZE
    return _WAYS_OUT.get(operator.name, "use an architecture without it, or --target desktop or rpi")


def _refused_tensor(tensor: Tensor, operator: Operator, upsampling: bool) -> str | None:
    if -1 in tensor.shape:
        return f"tensor {tensor.name!r} has a dynamic shape {list(tensor.shape)}"
    if tensor.constant:
        # What is packed or float is no parameter of an 8-bit operator.
        allowed = _CONSTANTS
    else:
        allowed = _ACTIVATIONS | ({"INT16"} if operator.name == "UNIDIRECTIONAL_SEQUENCE_LSTM" else set())
    # An LSTM lists float tensors without an element.
    if tensor.dtype not in allowed and tensor.shape != (0,):
        return f"tensor {tensor.name!r} is {tensor.dtype}, expected 8-bit integers"
    if not tensor.constant and not upsampling and any(n > 1 for n in tensor.shape[:-3]):
        return f"tensor {tensor.name!r} is {list(tensor.shape)}: only the three innermost dimensions may exceed 1"
    return None


def _of_upsampling(operator: Operator) -> bool:
    """Whether it is a step of the upsampling that feature pyramids are written with, which has more dimensions.

    Every pixel is packed beside itself, ``(1, h, w, c)`` to ``(1, h, w, 2, c)`` to ``(1, h, 2, w, 2, c)``, and that is
    reshaped to ``(1, 2h, 2w, c)``. The compiler knows it since version 16.
    """
    given, made = operator.inputs[:1], operator.outputs[0].shape if operator.outputs else ()
    if not given or given[0] is None:
        return False
    shape = given[0].shape
    if operator.name == "PACK":
        return all(tensor is given[0] for tensor in operator.inputs) and len(shape) in (4, 5) and shape[0] == 1
    if operator.name != "RESHAPE" or len(shape) != 6 or shape[0] != 1:
        return False
    return made == (1, shape[1] * shape[2], shape[3] * shape[4], shape[5])


def _no_activation(operator: Operator) -> str | None:
    return "it has a fused activation" if operator.options.fusedActivationFunction else None


def _conv(operator: Operator) -> str | None:
    weights, options = operator.inputs[1], operator.options
    # Where the kernel is one pixel wide a dilation does nothing, as in a convolution along a sequence.
    flat = weights is not None and 1 in weights.shape[1:3]
    if options.dilationWFactor != options.dilationHFactor and not flat:
        return "its dilation differs between x and y"
    return _constant_parameters(operator)


def _constant_parameters(operator: Operator) -> str | None:
    if any(t is not None and not t.constant for t in operator.inputs[1:]):
        return "its weights or bias are not constant"
    return None


def _transpose_conv(operator: Operator) -> str | None:
    # Output shape, weights, input, bias.
    if any(t is not None and not t.constant for i, t in enumerate(operator.inputs) if i != 2):
        return "its weights, bias or output shape are not constant"
    return None


def _fully_connected(operator: Operator) -> str | None:
    if operator.options.weightsFormat:
        return "its weights have another format than the default"
    if sum(n > 1 for n in operator.outputs[0].shape) > 1:
        return "its output has more than one dimension"
    return _constant_parameters(operator)


def _concatenation(operator: Operator) -> str | None:
    constants = [t for t in operator.inputs if t is not None and t.constant]
    for tensor in constants:
        zero = tensor.zero_points[0] if tensor.zero_points else 0
        stored = _numbers(tensor, np.uint8 if tensor.dtype == "UINT8" else np.int8)
        if len(operator.inputs) != 2 or any(n != zero for n in stored):
            return "a constant input is only allowed as zeros beside one other input"
    return _no_activation(operator)


def _reduction(operator: Operator) -> str | None:
    tensor, axes = operator.inputs[0], _axes(operator)
    if tensor is None or not axes:
        return "its axes are not constant"
    if 0 in axes:
        return "it reduces the batch"
    if operator.name != "MEAN":
        return None
    if len(tensor.shape) - 1 in axes and tensor.shape[-1] % 4:
        return f"it averages {tensor.shape[-1]} channels, expected a multiple of 4"
    over = prod(tensor.shape[axis] for axis in axes)
    return f"it averages {over:,} numbers, expected up to {_MEAN_MOST:,}" if over > _MEAN_MOST else None


def _axes(operator: Operator) -> set[int]:
    tensor, axes = operator.inputs[0], operator.inputs[1]
    return {n % len(tensor.shape) for n in _numbers(axes)} if tensor is not None and tensor.shape else set()


def _pad(operator: Operator) -> str | None:
    amounts = _numbers(operator.inputs[1])
    if not amounts:
        return "its amounts are not constant"
    return "it pads the batch" if any(amounts[:2]) and len(amounts) == 8 else None


def _softmax(operator: Operator) -> str | None:
    size = max(operator.outputs[0].shape[-1:], default=1)
    return f"it is over {size:,} numbers, expected up to {_SOFTMAX_MOST:,}" if size > _SOFTMAX_MOST else None


def _resize(operator: Operator) -> str | None:
    given, made = operator.inputs[0], operator.outputs[0].shape
    if given is None or len(given.shape) != 4 or len(made) != 4:
        return None
    before, after = given.shape[1:3], made[1:3]
    text = f"it resizes {before[0]}×{before[1]} to {after[0]}×{after[1]}, which loses precision there"
    if before == after:
        return None
    if max(after) > _RESIZE_MOST_PX:
        return text
    if operator.name == "RESIZE_BILINEAR":
        times = max(n / max(1, m) for n, m in zip(after, before, strict=True))
        if times > _RESIZE_MOST_TIMES or 1 in before:
            return text
    return None


def _strided_slice(operator: Operator) -> str | None:
    strides = _numbers(operator.inputs[3])
    if not strides or any(n != 1 for n in strides):
        return "its strides are not all 1"
    if operator.options.ellipsisMask or operator.options.newAxisMask:
        return "it has an ellipsis or a new axis"
    return None


def _split(operator: Operator) -> str | None:
    axis, tensor = _numbers(operator.inputs[0]), operator.inputs[1]
    if not axis or tensor is None or not tensor.shape:
        return "its axis is not constant"
    apart = operator.options.numSplits > 1
    return "it splits the batch" if apart and axis[0] % len(tensor.shape) == 0 else None


def _pack(operator: Operator) -> str | None:
    return "it packs the batch" if operator.options.axis == 0 else None


def _prelu(operator: Operator) -> str | None:
    alpha = operator.inputs[1]
    if alpha is not None and any(n > 1 for n in alpha.shape[:-1]):
        return f"its alpha is {list(alpha.shape)}, expected one dimension (shared_axes=[1, 2])"
    return None


def _transpose(operator: Operator) -> str | None:
    order, tensor = _numbers(operator.inputs[1]), operator.inputs[0]
    if not order or tensor is None:
        return "its order is not constant"
    if len(order) == 4 and order[0] != 0 and tensor.shape[0] != 1:
        return "it moves the batch"
    size = prod(tensor.shape)
    return f"it moves {size:,} numbers, expected up to {_TRANSPOSE_MOST:,}" if size > _TRANSPOSE_MOST else None


def _numbers(tensor: Tensor | None, dtype: type = np.int32) -> list[int]:
    """The integers of a constant tensor; none where it is not constant."""
    if tensor is None or tensor.data is None:
        return []
    return [int(n) for n in tensor.data.view(np.int64 if tensor.dtype == "INT64" else dtype)]


_RULES: dict[str, Rule] = {
    "AVERAGE_POOL_2D": _no_activation,
    "CONCATENATION": _concatenation,
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _conv,
    "FULLY_CONNECTED": _fully_connected,
    "MAX_POOL_2D": _no_activation,
    "MEAN": _reduction,
    "PACK": _pack,
    "PAD": _pad,
    "PRELU": _prelu,
    "REDUCE_MAX": _reduction,
    "REDUCE_MIN": _reduction,
    "RESIZE_BILINEAR": _resize,
    "RESIZE_NEAREST_NEIGHBOR": _resize,
    "SOFTMAX": _softmax,
    "SPLIT": _split,
    "STRIDED_SLICE": _strided_slice,
    "SUM": _reduction,
    "TRANSPOSE": _transpose,
    "TRANSPOSE_CONV": _transpose_conv,
}
