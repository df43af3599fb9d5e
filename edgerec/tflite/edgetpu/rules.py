"""Rules for predicting which operators the Edge TPU can run.

Source: coral.ai, "TensorFlow models on the Edge TPU", sections "Model requirements" and "Supported operations". Limits
not stated on this page are inferred from the operators that the compiler accepted or rejected in the published models
and compiler logs listed in ``docs/concepts/edge-tpu.md``. The supported operators and their versions are in
``targets/coral-usb.toml``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import numpy as np

from edgerec.tflite.flatbuffer import Operator, Tensor

# A rule returns the reason why the Edge TPU cannot run an operator, or None if the Edge TPU can run it.
Rule = Callable[[Operator], str | None]

QUANTIZE = "quantize it: edgerec quantize RUN"
ONE_IMAGE = "convert the model with a batch size of 1: keras.Input(shape, batch_size=1)"

# The cell state of an LSTM may also be INT16.
_ACTIVATION_TYPES = {"INT8", "UINT8"}
_CONSTANT_TYPES = {"INT8", "UINT8", "INT32", "INT64"}
# Coral documents a limit of 16,000 values for softmax, but the compiler accepts 128×128 values.
_MAX_SOFTMAX_VALUES = 16_384
# According to published logs, the Edge TPU compiler rejects upsampling to 512 pixels or by a factor of 16.
_MAX_RESIZE_PX, _MAX_RESIZE_FACTOR = 255, 8
# According to published logs, the Edge TPU compiler accepts TRANSPOSE of 14×14×255 values, but not of 40×40×65.
_MAX_TRANSPOSE_VALUES = 65_536
# According to published logs, the Edge TPU compiler accepts MEAN over 64×128 values, but not over 256×128.
_MAX_MEAN_VALUES = 16_384

_SOLUTIONS = {
    "ARG_MAX": "remove it from the model, and compute it in the application",
    "ELU": "train it with ReLU6 instead",
    "GELU": "train it with ReLU6 instead",
    "HARD_SWISH": "train it with ReLU6 instead (MobileNetV3 minimalistic)",
    "LEAKY_RELU": "train it with ReLU or PReLU instead",
    "DEQUANTIZE": "convert the model with integer outputs: inference_output_type=tf.uint8",
    "CAST": "convert the model with uint8 inputs: inference_input_type=tf.uint8",
    "RESIZE_BILINEAR": "resize in the application, or by a factor of 2 and to at most 128 pixels",
    "RESIZE_NEAREST_NEIGHBOR": "resize in the application, or to at most 128 pixels",
    "SHAPE": ONE_IMAGE,
    "TRANSPOSE": "remove it from the model, or use a smaller input size",
}


def refusal_reason(operator: Operator, versions: Mapping[str, int]) -> str | None:
    """Return why the Edge TPU cannot run an operator, or None if it can.

    Args:
        operator: operator from the model before compilation.
        versions: highest supported version of each operator that the compiler supports, by name. 0 means any version.
    """
    if operator.name not in versions:
        return "the Edge TPU does not support this operator"
    highest = versions[operator.name]
    if highest and operator.version > highest:
        return f"it has version {operator.version}, but the compiler supports versions up to {highest}"
    upsampling = _is_upsampling_step(operator)
    for tensor in (*operator.inputs, *operator.outputs):
        if tensor is not None and (reason := _tensor_refusal(tensor, operator, upsampling)):
            return reason
    rule = _RULES.get(operator.name)
    return rule(operator) if rule else None


def way_out(operator: Operator, reason: str) -> str:
    """Suggest a change to a model, so that the Edge TPU can run an operator."""
    if "dynamic shape" in reason:
        return ONE_IMAGE
    if "it has version" in reason:
        return "convert the model with TensorFlow 2.5 to 2.8, or with edgerec"
    if operator.name not in _SOLUTIONS and any(t.dtype not in _CONSTANT_TYPES for t in operator.outputs):
        return QUANTIZE
    return _SOLUTIONS.get(operator.name, "use an architecture without it, or --target desktop or rpi")


def _tensor_refusal(tensor: Tensor, operator: Operator, upsampling: bool) -> str | None:
    if -1 in tensor.shape:
        return f"tensor {tensor.name!r} has a dynamic shape {list(tensor.shape)}"
    if tensor.constant:
        allowed = _CONSTANT_TYPES
    else:
        allowed = _ACTIVATION_TYPES | ({"INT16"} if operator.name == "UNIDIRECTIONAL_SEQUENCE_LSTM" else set())
    # LSTM operators have empty float tensors, which are ignored.
    if tensor.dtype not in allowed and tensor.shape != (0,):
        return f"tensor {tensor.name!r} is {tensor.dtype}, expected 8-bit integers"
    if not tensor.constant and not upsampling and any(n > 1 for n in tensor.shape[:-3]):
        return f"tensor {tensor.name!r} is {list(tensor.shape)}: only the three innermost dimensions may exceed 1"
    return None


def _is_upsampling_step(operator: Operator) -> bool:
    """Return whether an operator is a step of nearest-neighbor upsampling by a factor of 2.

    Two PACK operators repeat each pixel, from ``(1, h, w, c)`` to ``(1, h, w, 2, c)`` and ``(1, h, 2, w, 2, c)``. Then
    RESHAPE converts the result to ``(1, 2h, 2w, c)``. The compiler supports this pattern from version 16 on, although
    its tensors have more than three dimensions above 1.
    """
    first, output_shape = operator.inputs[:1], operator.outputs[0].shape if operator.outputs else ()
    if not first or first[0] is None:
        return False
    shape = first[0].shape
    if operator.name == "PACK":
        return all(tensor is first[0] for tensor in operator.inputs) and len(shape) in (4, 5) and shape[0] == 1
    if operator.name != "RESHAPE" or len(shape) != 6 or shape[0] != 1:
        return False
    return output_shape == (1, shape[1] * shape[2], shape[3] * shape[4], shape[5])


def _no_activation(operator: Operator) -> str | None:
    return "it has a fused activation" if operator.options.fusedActivationFunction else None


def _conv(operator: Operator) -> str | None:
    weights, options = operator.inputs[1], operator.options
    # Dilation has no effect on an axis with kernel size 1.
    one_dimensional = weights is not None and 1 in weights.shape[1:3]
    if options.dilationWFactor != options.dilationHFactor and not one_dimensional:
        return "its horizontal and vertical dilation differ"
    return _constant_parameters(operator)


def _constant_parameters(operator: Operator) -> str | None:
    if any(t is not None and not t.constant for t in operator.inputs[1:]):
        return "its weights or bias is not constant"
    return None


def _transpose_conv(operator: Operator) -> str | None:
    # The feature map of TRANSPOSE_CONV is the input at index 2.
    if any(t is not None and not t.constant for i, t in enumerate(operator.inputs) if i != 2):
        return "its weights, bias or output shape is not constant"
    return None


def _fully_connected(operator: Operator) -> str | None:
    if operator.options.weightsFormat:
        return "its weights are not stored in the default format"
    if sum(n > 1 for n in operator.outputs[0].shape) > 1:
        return "its output has more than one dimension above 1"
    return _constant_parameters(operator)


def _concatenation(operator: Operator) -> str | None:
    constants = [t for t in operator.inputs if t is not None and t.constant]
    for tensor in constants:
        zero = tensor.zero_points[0] if tensor.zero_points else 0
        stored = _constant_values(tensor, np.uint8 if tensor.dtype == "UINT8" else np.int8)
        if len(operator.inputs) != 2 or any(n != zero for n in stored):
            return "a constant input is only allowed if it contains zeros and there is one other input"
    return _no_activation(operator)


def _reduction(operator: Operator) -> str | None:
    tensor, axes = operator.inputs[0], _axes(operator)
    if tensor is None or not axes:
        return "its axes are not constant"
    if 0 in axes:
        return "it reduces the batch dimension"
    if operator.name != "MEAN":
        return None
    if len(tensor.shape) - 1 in axes and tensor.shape[-1] % 4:
        return f"it averages over {tensor.shape[-1]} channels, expected a multiple of 4"
    count = prod(tensor.shape[axis] for axis in axes)
    too_many = f"it averages over {count:,} values, expected at most {_MAX_MEAN_VALUES:,}"
    return too_many if count > _MAX_MEAN_VALUES else None


def _axes(operator: Operator) -> set[int]:
    tensor, axes = operator.inputs[0], operator.inputs[1]
    return {n % len(tensor.shape) for n in _constant_values(axes)} if tensor is not None and tensor.shape else set()


def _pad(operator: Operator) -> str | None:
    amounts = _constant_values(operator.inputs[1])
    if not amounts:
        return "its padding is not constant"
    return "it pads the batch dimension" if any(amounts[:2]) and len(amounts) == 8 else None


def _softmax(operator: Operator) -> str | None:
    size = max(operator.outputs[0].shape[-1:], default=1)
    too_many = f"it is computed over {size:,} values, expected at most {_MAX_SOFTMAX_VALUES:,}"
    return too_many if size > _MAX_SOFTMAX_VALUES else None


def _resize(operator: Operator) -> str | None:
    image, resized = operator.inputs[0], operator.outputs[0].shape
    if image is None or len(image.shape) != 4 or len(resized) != 4:
        return None
    before, after = image.shape[1:3], resized[1:3]
    text = f"it resizes {before[0]}×{before[1]} to {after[0]}×{after[1]}, which the Edge TPU cannot compute precisely"
    if before == after:
        return None
    if max(after) > _MAX_RESIZE_PX:
        return text
    if operator.name == "RESIZE_BILINEAR":
        factor = max(n / max(1, m) for n, m in zip(after, before, strict=True))
        if factor > _MAX_RESIZE_FACTOR or 1 in before:
            return text
    return None


def _strided_slice(operator: Operator) -> str | None:
    strides = _constant_values(operator.inputs[3])
    if not strides or any(n != 1 for n in strides):
        return "its strides are not all 1"
    if operator.options.ellipsisMask or operator.options.newAxisMask:
        return "it uses an ellipsis or a new axis"
    return None


def _split(operator: Operator) -> str | None:
    axis, tensor = _constant_values(operator.inputs[0]), operator.inputs[1]
    if not axis or tensor is None or not tensor.shape:
        return "its axis is not constant"
    divides = operator.options.numSplits > 1
    return "it splits the batch dimension" if divides and axis[0] % len(tensor.shape) == 0 else None


def _pack(operator: Operator) -> str | None:
    return "it packs along the batch dimension" if operator.options.axis == 0 else None


def _prelu(operator: Operator) -> str | None:
    alpha = operator.inputs[1]
    if alpha is not None and any(n > 1 for n in alpha.shape[:-1]):
        return f"its alpha has the shape {list(alpha.shape)}, expected one value per channel (shared_axes=[1, 2])"
    return None


def _transpose(operator: Operator) -> str | None:
    order, tensor = _constant_values(operator.inputs[1]), operator.inputs[0]
    if not order or tensor is None:
        return "its permutation is not constant"
    if len(order) == 4 and order[0] != 0 and tensor.shape[0] != 1:
        return "it moves the batch dimension"
    size = prod(tensor.shape)
    too_many = f"it transposes {size:,} values, expected at most {_MAX_TRANSPOSE_VALUES:,}"
    return too_many if size > _MAX_TRANSPOSE_VALUES else None


def _constant_values(tensor: Tensor | None, dtype: type = np.int32) -> list[int]:
    """Return the integers in a constant tensor, or an empty list if the tensor is not constant."""
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
