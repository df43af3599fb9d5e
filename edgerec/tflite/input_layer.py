"""Add a normalization layer to the start of a .tflite graph, so that the model takes unchanged RGB pixels."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.tensors import ChannelNormalise
from edgerec.errors import ModelError
from edgerec.tflite.flatbuffer import pack, parse
from edgerec.tflite.metadata import without_metadata
from edgerec.tflite.schema import tflite_schema

NAME = "rgb_pixels"


def with_input_layer(content: bytes, normalise: ChannelNormalise, where: str = "the model") -> bytes:
    """Return the .tflite bytes of a model with ``normalise`` as its first layer.

    The new input takes RGB pixels from 0 to 255. Its dtype is float32 if the model's input is float32, otherwise uint8
    with scale 1. A 1x1 convolution computes the original input. TFLite metadata is removed, because it describes the
    original input. Use :func:`~edgerec.tflite.metadata.with_metadata` to add new metadata.

    Args:
        content: .tflite bytes of a model with one input ``(1, height, width, 3)``, float32, uint8 or int8.
        normalise: normalization of RGB pixels that the model expects.
        where: name of the model for error messages.

    Raises:
        ModelError: the input is not an RGB image, or has another dtype.
    """
    model = parse(content, where)
    schema, graph = tflite_schema(), model.subgraphs[0]
    old = graph.tensors[graph.inputs[0]]
    types = schema.TensorType
    if len(old.shape) != 4 or old.shape[3] != 3:
        raise ModelError(f"{where} takes {list(old.shape)}; a normalization per channel needs 3 channels: use MEAN,STD")
    if old.type not in (types.FLOAT32, types.UINT8, types.INT8):
        raise ModelError(f"{where} has an input that is neither float32, uint8 nor int8, so it cannot be normalized")
    edit = _Edit(schema, model, old)
    if old.type == types.FLOAT32:
        image = edit.image(NAME, types.FLOAT32)
        operators = [edit.convolution(normalise, image, graph.inputs[0])]
    else:
        operators = edit.quantized(normalise, graph.inputs[0])
        image = operators[0].inputs[0]
    graph.operators = [*operators, *(graph.operators or [])]
    for signature in model.signatureDefs or ():
        for entry in signature.inputs or ():
            entry.tensorIndex = image if entry.tensorIndex == graph.inputs[0] else entry.tensorIndex
    graph.inputs = np.array([image], np.int32)
    return without_metadata(pack(model))


class _Edit:
    """Builder that adds tensors and operators to the first subgraph of a parsed model."""

    def __init__(self, schema: Any, model: Any, old: Any) -> None:
        self._schema, self._model, self._old = schema, model, old
        self._tensors: list[Any] = model.subgraphs[0].tensors

    def image(self, name: str, dtype: int, scale: float = 0.0, zero_point: int = 0) -> int:
        """Add a tensor with the shape of the original input, and return its index."""
        tensor = copy.copy(self._old)
        tensor.name, tensor.type, tensor.buffer = name.encode(), dtype, 0
        tensor.quantization = self._quantization([scale], [zero_point]) if scale else None
        return self._added(tensor)

    def convolution(self, normalise: ChannelNormalise, source: int, result: int) -> Any:
        """Return a float32 1x1 convolution from the tensor ``source`` to the tensor ``result``."""
        kernel, bias = normalise.convolution()
        types = self._schema.TensorType
        weights = self._constant("normalization/kernel", types.FLOAT32, kernel.T.reshape(3, 1, 1, 3))
        return self._convolve(source, weights, self._constant("normalization/bias", types.FLOAT32, bias), result, 1)

    def quantized(self, normalise: ChannelNormalise, result: int) -> list[Any]:
        """Return the operators that convert a uint8 image with scale 1 to the uint8 or int8 tensor ``result``."""
        types, old = self._schema.TensorType, self._old
        quantization = old.quantization
        if quantization is None or quantization.scale is None or len(quantization.scale) == 0:
            raise ModelError(
                "the model's integer input has no quantization scale, so that no normalization can be added"
            )
        scale, zero_point = float(quantization.scale[0]), int(quantization.zeroPoint[0])
        pixels = self.image(NAME, types.UINT8, 1.0, 0)
        signed = self.image("normalization/pixels", types.INT8, 1.0, -128)
        operators = [self._operator("QUANTIZE", 2, [pixels], signed, None)]
        real, bias = normalise.convolution()
        # Each output channel has only one nonzero weight. It is quantized to the int8 maximum, so that it is exact.
        scales = [float(value) / 127 for value in real.max(axis=0)]
        stored = np.rint(real / np.array(scales)).astype(np.int8).T.reshape(3, 1, 1, 3)
        weights = self._constant("normalization/kernel", types.INT8, stored, scales)
        biases = self._constant("normalization/bias", types.INT32, np.rint(bias / scales).astype(np.int32), scales)
        if old.type == types.INT8:
            return [*operators, self._convolve(signed, weights, biases, result, 3)]
        between = self.image("normalization/result", types.INT8, scale, zero_point - 128)
        convolution = self._convolve(signed, weights, biases, between, 3)
        return [*operators, convolution, self._operator("QUANTIZE", 2, [between], result, None)]

    def _convolve(self, source: int, weights: int, bias: int, result: int, version: int) -> Any:
        options = self._schema.Conv2DOptionsT()
        options.padding = self._schema.Padding.VALID
        options.strideH = options.strideW = options.dilationHFactor = options.dilationWFactor = 1
        return self._operator("CONV_2D", version, [source, weights, bias], result, options)

    def _operator(self, name: str, version: int, sources: list[int], result: int, options: Any) -> Any:
        schema, codes = self._schema, self._model.operatorCodes
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), version
        codes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex = len(codes) - 1
        operator.inputs, operator.outputs = np.array(sources, np.int32), np.array([result], np.int32)
        if options is not None:
            operator.builtinOptionsType = schema.BuiltinOptions.Conv2DOptions
            operator.builtinOptions = options
        return operator

    def _constant(self, name: str, dtype: int, values: npt.NDArray[Any], scales: list[float] | None = None) -> int:
        buffer, tensor = self._schema.BufferT(), self._schema.TensorT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self._model.buffers.append(buffer)
        tensor.name, tensor.type, tensor.buffer = name.encode(), dtype, len(self._model.buffers) - 1
        tensor.shape, tensor.hasRank = np.array(values.shape, np.int32), True
        if scales is not None:
            tensor.quantization = self._quantization(scales, [0] * len(scales))
        return self._added(tensor)

    def _quantization(self, scales: list[float], zero_points: list[int]) -> Any:
        quantization = self._schema.QuantizationParametersT()
        quantization.scale = np.array(scales, np.float32)
        quantization.zeroPoint = np.array(zero_points, np.int64)
        return quantization

    def _added(self, tensor: Any) -> int:
        self._tensors.append(tensor)
        return len(self._tensors) - 1
