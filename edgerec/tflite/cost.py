"""Count multiply-accumulate operations (MACs), and compute tensor sizes."""

from __future__ import annotations

from math import prod

from edgerec.tflite.flatbuffer import Operator, Tensor


def macs(operator: Operator) -> int:
    """Return the number of multiply-accumulate operations that an operator performs per image.

    Bias additions, activations, pooling and means are not counted. The result is 0 for operators without weights, such
    as additions and reshapes. A dynamic dimension counts as 1.
    """
    shapes = [_shape(tensor) for tensor in operator.inputs]
    output_size = _size(operator.outputs[0]) if operator.outputs else 0
    match operator.name:
        case "CONV_2D" | "CONV_3D":
            return output_size * prod(shapes[1][1:] if operator.name == "CONV_2D" else shapes[1][:-1])
        case "DEPTHWISE_CONV_2D":
            return output_size * prod(shapes[1][1:3])
        case "FULLY_CONNECTED":
            return output_size * shapes[1][-1]
        case "TRANSPOSE_CONV":
            return prod(shapes[2]) * prod(shapes[1][:3])
        case "BATCH_MATMUL":
            return output_size * shapes[0][-2 if operator.options.adjX else -1]
        case "UNIDIRECTIONAL_SEQUENCE_LSTM":
            steps = shapes[0][0 if operator.options.timeMajor else 1]
            return steps * sum(prod(shape) for shape in shapes[1:9] if len(shape) == 2)
    return 0


def tensor_bytes(tensor: Tensor) -> int:
    """Return the size of a tensor's data in bytes. A dynamic dimension counts as 1."""
    return (_size(tensor) * _BITS.get(tensor.dtype, 8) + 7) // 8


def _size(tensor: Tensor) -> int:
    return prod(_shape(tensor))


def _shape(tensor: Tensor | None) -> tuple[int, ...]:
    return () if tensor is None else tuple(abs(n) for n in tensor.shape)


# Number of bits per value for each data type that does not have 8 bits.
_BITS = {
    "FLOAT64": 64,
    "FLOAT32": 32,
    "FLOAT16": 16,
    "INT64": 64,
    "UINT64": 64,
    "INT32": 32,
    "UINT32": 32,
    "INT16": 16,
    "UINT16": 16,
    "COMPLEX64": 64,
    "COMPLEX128": 128,
    "INT4": 4,
    "INT2": 2,
    "BFLOAT16": 16,
}
