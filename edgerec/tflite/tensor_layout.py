"""Add a RESHAPE or TRANSPOSE to the start of a .tflite graph, so that its input is an image in NHWC layout."""

from __future__ import annotations

import copy
import io
import zipfile
import zlib
from dataclasses import dataclass
from lzma import LZMAError

import numpy as np

from edgerec.tflite.flatbuffer import pack, parse
from edgerec.tflite.schema import tflite_schema

MAX_SIDE_PX = 4096
# Limit of the total size of the associated files, such as labels, that are appended to a model.
MAX_FILES_BYTES = 1 << 24
NAME = "image"


@dataclass(frozen=True)
class Layout:
    """Conversion of an image ``(1, height, width, channels)`` to an input of another shape.

    Attributes:
        shape: shape of the image, ``(1, height, width, channels)``.
        operator: name of the operator that converts the image, ``RESHAPE`` or ``TRANSPOSE``.
        description: difference between the input's shape and the image, for messages.
    """

    shape: tuple[int, int, int, int]
    operator: str
    description: str


def layout_of(shape: tuple[int, ...]) -> Layout | None:
    """Return the conversion for an input shape; None if the input already is an image or cannot be an image.

    The supported shapes are ``(1, height, width)`` and ``(height, width)`` for grayscale images,
    ``(height, width, channels)``, and ``(1, channels, height, width)``. A dynamic batch size (-1) is treated as 1.
    """
    batch = shape[:1] in ((1,), (-1,))
    sides = [n for n in shape if n not in (1, 3, -1)]
    if not all(n == -1 or 1 <= n <= MAX_SIDE_PX for n in shape) or -1 in shape[1:] or not sides:
        return None
    if len(shape) == 2 and not batch and len(sides) == 2:
        return Layout((1, *shape, 1), "RESHAPE", "no batch and no channel dimension")  # type: ignore[arg-type]
    if len(shape) == 3 and batch and len(sides) == 2:
        return Layout((1, *shape[1:], 1), "RESHAPE", "no channel dimension")  # type: ignore[arg-type]
    if len(shape) == 3 and shape[2] in (1, 3) and len(sides) == 2:
        return Layout((1, *shape), "RESHAPE", "no batch dimension")  # type: ignore[arg-type]
    if len(shape) == 4 and batch and shape[1] in (1, 3) and shape[3] not in (1, 3):
        return Layout((1, shape[2], shape[3], shape[1]), "TRANSPOSE", "channels first")
    return None


def with_image_input(content: bytes, layout: Layout, where: str = "the model") -> bytes:
    """Return the .tflite bytes of a model whose input is an image with the original dtype and quantization.

    The outputs do not change, because the operator only rearranges values. Metadata and associated files are kept.

    Args:
        content: .tflite bytes of a model with one input.
        layout: result of :func:`layout_of` for the shape of the model's input.
        where: name of the model for error messages.
    """
    model, schema = parse(content, where), tflite_schema()
    graph = model.subgraphs[0]
    own = graph.tensors[graph.inputs[0]]
    own.shape = np.array([1 if n == -1 else n for n in own.shape], np.int32)
    own.shapeSignature = None
    image = copy.copy(own)
    image.name, image.buffer, image.shape = NAME.encode(), 0, np.array(layout.shape, np.int32)
    buffer, argument = schema.BufferT(), schema.TensorT()
    transpose = layout.operator == "TRANSPOSE"
    values = np.array([0, 3, 1, 2] if transpose else own.shape, np.int32)
    buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    model.buffers.append(buffer)
    argument.name, argument.type = f"{NAME}/{layout.operator.lower()}".encode(), schema.TensorType.INT32
    argument.buffer, argument.shape = len(model.buffers) - 1, np.array([len(values)], np.int32)
    graph.tensors += [image, argument]
    first, last = len(graph.tensors) - 2, int(graph.inputs[0])
    code, operator = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, layout.operator)
    # TRANSPOSE supports int8 from version 2 on.
    code.version = 2 if transpose and own.type == schema.TensorType.INT8 else 1
    model.operatorCodes.append(code)
    operator.opcodeIndex = len(model.operatorCodes) - 1
    operator.inputs = np.array([first, first + 1], np.int32)
    operator.outputs = np.array([last], np.int32)
    if transpose:
        operator.builtinOptionsType = schema.BuiltinOptions.TransposeOptions
        operator.builtinOptions = schema.TransposeOptionsT()
    else:
        operator.builtinOptionsType = schema.BuiltinOptions.ReshapeOptions
        operator.builtinOptions = schema.ReshapeOptionsT()
        operator.builtinOptions.newShape = values
    graph.operators = [operator, *(graph.operators or [])]
    graph.inputs = np.array([first], np.int32)
    for signature in model.signatureDefs or ():
        for entry in signature.inputs or ():
            entry.tensorIndex = first if entry.tensorIndex == last else entry.tensorIndex
    return _with_files(pack(model), content)


def _with_files(model: bytes, original: bytes) -> bytes:
    """Append the files that are packed behind the original model, such as its labels, to ``model``."""
    try:
        with zipfile.ZipFile(io.BytesIO(original)) as source:
            if sum(info.file_size for info in source.infolist()) > MAX_FILES_BYTES:
                return model
            files = {info.filename: source.read(info) for info in source.infolist()}
    except (zipfile.BadZipFile, zlib.error, LZMAError, ValueError, RuntimeError, OSError, EOFError):
        return model
    content = io.BytesIO(model)
    with zipfile.ZipFile(content, "a", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
    return content.getvalue()
