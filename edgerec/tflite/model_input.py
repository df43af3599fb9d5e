"""Insert operators at the start of a .tflite graph, so that the model accepts RGB pixels in NHWC layout.

LiteRT and TensorFlow have no function for adding operators to a converted model.
"""

from __future__ import annotations

import copy
import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from lzma import LZMAError
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.tensors import ChannelNormalize
from edgerec.errors import ModelError
from edgerec.tflite.flatbuffer import pack, parse
from edgerec.tflite.metadata import remove_metadata, with_files
from edgerec.tflite.schema import tflite_schema

MAX_SIDE_PX = 4096
# Associated files are not copied to the new model if they have more than this number of bytes in total.
MAX_FILES_BYTES = 1 << 24


@dataclass(frozen=True)
class InputLayout:
    """An operator that converts an image to a model's input shape.

    Attributes:
        shape: the image's shape, ``(1, height, width, channels)``.
        operator: the operator's name, ``RESHAPE`` or ``TRANSPOSE``.
        description: how the input shape differs from the image, for messages.
    """

    shape: tuple[int, int, int, int]
    operator: str
    description: str


def layout_of(shape: tuple[int, ...]) -> InputLayout | None:
    """Return the operator that converts an image to a model's input shape, or None if it is unnecessary or impossible.

    The supported shapes are ``(1, height, width)`` and ``(height, width)`` for grayscale images,
    ``(height, width, channels)``, and ``(1, channels, height, width)``. A dynamic batch size (-1) is treated as 1.
    """
    batch = shape[:1] in ((1,), (-1,))
    sides = [n for n in shape if n not in (1, 3, -1)]
    if not all(n == -1 or 1 <= n <= MAX_SIDE_PX for n in shape) or -1 in shape[1:] or not sides:
        return None
    if len(shape) == 2 and not batch and len(sides) == 2:
        return InputLayout((1, *shape, 1), "RESHAPE", "no batch and no channel dimension")  # type: ignore[arg-type]
    if len(shape) == 3 and batch and len(sides) == 2:
        return InputLayout((1, *shape[1:], 1), "RESHAPE", "no channel dimension")  # type: ignore[arg-type]
    if len(shape) == 3 and shape[2] in (1, 3) and len(sides) == 2:
        return InputLayout((1, *shape), "RESHAPE", "no batch dimension")  # type: ignore[arg-type]
    if len(shape) == 4 and batch and shape[1] in (1, 3) and shape[3] not in (1, 3):
        return InputLayout((1, shape[2], shape[3], shape[1]), "TRANSPOSE", "channels first")
    return None


def with_nhwc_input(content: bytes, layout: InputLayout, where: str = "the model") -> bytes:
    """Insert a RESHAPE or TRANSPOSE operator so that the model accepts images. Return the .tflite bytes.

    The outputs do not change, because the operator only rearranges values. The input's dtype and quantization, the
    metadata and the associated files are kept.

    Args:
        content: .tflite bytes of a model with one input.
        layout: result of :func:`layout_of` for the model's input shape.
        where: the model's name in error messages.
    """
    edit = _InputEdit(content, where)
    schema, old = edit.schema, edit.old
    old.shape = np.array([1 if n == -1 else n for n in old.shape], np.int32)
    old.shapeSignature = None
    if layout.operator == "TRANSPOSE":
        values, options = np.array([0, 3, 1, 2], np.int32), schema.TransposeOptionsT()
    else:
        values, options = old.shape, schema.ReshapeOptionsT()
        options.newShape = values
    image = edit.tensor("image", old.type, old.quantization, layout.shape)
    argument = edit.constant(f"image/{layout.operator.lower()}", schema.TensorType.INT32, values)
    # The TRANSPOSE operator supports int8 tensors since version 2.
    version = 2 if layout.operator == "TRANSPOSE" and old.type == schema.TensorType.INT8 else 1
    edit.start_with(image, [edit.operator(layout.operator, version, [image, argument], edit.old_index, options)])
    return _with_files(pack(edit.model), content)


def with_normalization(content: bytes, normalize: ChannelNormalize, where: str = "the model") -> bytes:
    """Insert a normalization layer so that the model accepts unnormalized RGB pixels. Return the .tflite bytes.

    The new input takes RGB pixels from 0 to 255. Its dtype is float32 if the model's input is float32, otherwise uint8
    with scale 1. A 1x1 convolution computes the original input. TFLite metadata is removed, because it describes the
    original input. Use :func:`~edgerec.tflite.metadata.with_metadata` to add new metadata.

    Args:
        content: .tflite bytes of a model with one input ``(1, height, width, 3)``, float32, uint8 or int8.
        normalize: the normalization that the model expects.
        where: the model's name in error messages.

    Raises:
        ModelError: the input is not an RGB image, or has another dtype.
    """
    edit = _InputEdit(content, where)
    types, old = edit.schema.TensorType, edit.old
    if len(old.shape) != 4 or old.shape[3] != 3:
        raise ModelError(
            f"{where} has input shape {[int(n) for n in old.shape]}, but per-channel normalization requires "
            "3 channels: use a single mean and standard deviation (MEAN,STD)"
        )
    if old.type not in (types.FLOAT32, types.UINT8, types.INT8):
        raise ModelError(f"the input of {where} cannot be normalized, because its dtype is not float32, uint8 or int8")
    if old.type == types.FLOAT32:
        image = edit.tensor("rgb_pixels", types.FLOAT32, None)
        kernel, bias = normalize.convolution()
        weights = edit.constant("normalization/kernel", types.FLOAT32, kernel.T.reshape(3, 1, 1, 3))
        biases = edit.constant("normalization/bias", types.FLOAT32, bias)
        operators = [edit.convolution(1, image, weights, biases, edit.old_index)]
    else:
        image, operators = _quantized_normalization(edit, normalize, where)
    edit.start_with(image, operators)
    remove_metadata(edit.model)
    return pack(edit.model)


def _quantized_normalization(edit: _InputEdit, normalize: ChannelNormalize, where: str) -> tuple[int, list[Any]]:
    """Add a uint8 image input. Return its tensor index and the operators that compute the original input."""
    types, old = edit.schema.TensorType, edit.old
    if old.quantization is None or old.quantization.scale is None or len(old.quantization.scale) == 0:
        raise ModelError(f"cannot add a normalization to {where}: its integer input has no quantization scale")
    scale, zero_point = float(old.quantization.scale[0]), int(old.quantization.zeroPoint[0])
    pixels = edit.tensor("rgb_pixels", types.UINT8, edit.quantization([1.0], [0]))
    signed = edit.tensor("normalization/pixels", types.INT8, edit.quantization([1.0], [-128]))
    operators = [edit.operator("QUANTIZE", 2, [pixels], signed)]
    real, bias = normalize.convolution()
    # The quantization is exact, because the only nonzero weight of each output channel becomes 127.
    scales = [float(value) / 127 for value in real.max(axis=0)]
    stored = np.rint(real / np.array(scales)).astype(np.int8).T.reshape(3, 1, 1, 3)
    weights = edit.constant("normalization/kernel", types.INT8, stored, scales)
    biases = edit.constant("normalization/bias", types.INT32, np.rint(bias / scales).astype(np.int32), scales)
    if old.type == types.INT8:
        return pixels, [*operators, edit.convolution(3, signed, weights, biases, edit.old_index)]
    between = edit.tensor("normalization/result", types.INT8, edit.quantization([scale], [zero_point - 128]))
    convolution = edit.convolution(3, signed, weights, biases, between)
    return pixels, [*operators, convolution, edit.operator("QUANTIZE", 2, [between], edit.old_index)]


class _InputEdit:
    """Inserts tensors and operators at the start of a model's first subgraph.

    Attributes:
        schema: the classes generated from the TFLite schema.
        model: the parsed model.
        old: the original input tensor.
        old_index: index of the original input tensor.
    """

    def __init__(self, content: bytes, where: str) -> None:
        self.schema, self.model = tflite_schema(), parse(content, where)
        self._graph = self.model.subgraphs[0]
        self.old_index = int(self._graph.inputs[0])
        self.old = self._graph.tensors[self.old_index]

    def tensor(self, name: str, dtype: int, quantization: Any, shape: Sequence[int] | None = None) -> int:
        """Add a tensor and return its index. The default shape is that of the original input."""
        tensor = copy.copy(self.old)
        tensor.name, tensor.type, tensor.buffer, tensor.quantization = name.encode(), dtype, 0, quantization
        if shape is not None:
            tensor.shape = np.array(shape, np.int32)
        return self._added(tensor)

    def constant(self, name: str, dtype: int, values: npt.NDArray[Any], scales: list[float] | None = None) -> int:
        """Add a constant tensor and return its index."""
        buffer, tensor = self.schema.BufferT(), self.schema.TensorT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        tensor.name, tensor.type, tensor.buffer = name.encode(), dtype, len(self.model.buffers) - 1
        tensor.shape, tensor.hasRank = np.array(values.shape, np.int32), True
        if scales is not None:
            tensor.quantization = self.quantization(scales, [0] * len(scales))
        return self._added(tensor)

    def quantization(self, scales: list[float], zero_points: list[int]) -> Any:
        quantization = self.schema.QuantizationParametersT()
        quantization.scale = np.array(scales, np.float32)
        quantization.zeroPoint = np.array(zero_points, np.int64)
        return quantization

    def operator(self, name: str, version: int, inputs: list[int], output: int, options: Any = None) -> Any:
        """Create an operator. The inputs and the output are tensor indices."""
        code, operator = self.schema.OperatorCodeT(), self.schema.OperatorT()
        code.builtinCode = getattr(self.schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), version
        self.model.operatorCodes.append(code)
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
        if options is not None:
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
            operator.builtinOptions = options
        return operator

    def convolution(self, version: int, source: int, weights: int, bias: int, output: int) -> Any:
        """Create a 1x1 convolution from the indices of its tensors."""
        options = self.schema.Conv2DOptionsT()
        options.padding = self.schema.Padding.VALID
        options.strideH = options.strideW = options.dilationHFactor = options.dilationWFactor = 1
        return self.operator("CONV_2D", version, [source, weights, bias], output, options)

    def start_with(self, image: int, operators: list[Any]) -> None:
        """Insert operators at the start of the graph, and make the tensor ``image`` the model's input."""
        self._graph.operators = [*operators, *(self._graph.operators or [])]
        self._graph.inputs = np.array([image], np.int32)
        for signature in self.model.signatureDefs or ():
            for entry in signature.inputs or ():
                entry.tensorIndex = image if entry.tensorIndex == self.old_index else entry.tensorIndex

    def _added(self, tensor: Any) -> int:
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1


def _with_files(model: bytes, original: bytes) -> bytes:
    """Append the associated files of the original model, e.g. its labels, to a new model."""
    try:
        with zipfile.ZipFile(io.BytesIO(original)) as source:
            if sum(info.file_size for info in source.infolist()) > MAX_FILES_BYTES:
                return model
            files = {info.filename: source.read(info) for info in source.infolist()}
    except (zipfile.BadZipFile, zlib.error, LZMAError, ValueError, RuntimeError, OSError, EOFError):
        return model
    return with_files(model, files)
