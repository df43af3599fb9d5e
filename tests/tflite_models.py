"""Small .tflite models, built operator by operator like files from other tools. TensorFlow is not needed."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import flatbuffers
import numpy as np

from edgerec.tflite.flatbuffer import pack, parse
from edgerec.tflite.schema import tflite_schema

SIZE = 8


class Model:
    """A graph that is built from its input to its output, one operator at a time."""

    def __init__(self, shape: tuple[int, ...] = (1, SIZE, SIZE, 3), name: str = "input") -> None:
        self.schema = tflite_schema()
        self.model = self.schema.ModelT()
        self.graph = self.schema.SubGraphT()
        self.model.version, self.model.subgraphs = 3, [self.graph]
        self.model.operatorCodes, self.model.buffers = [], [self.schema.BufferT()]
        self.graph.tensors, self.graph.operators = [], []
        self.last = self.tensor(shape, name)
        self.graph.inputs = np.array([self.last], np.int32)

    def tensor(self, shape: tuple[int, ...], name: str = "", values: Any = None) -> int:
        tensor = self.schema.TensorT()
        tensor.shape, tensor.name, tensor.buffer = np.array(shape, np.int32), name.encode(), 0
        integers = values is not None and np.asarray(values).dtype.kind == "i"
        tensor.type = self.schema.TensorType.INT32 if integers else self.schema.TensorType.FLOAT32
        if values is not None:
            buffer = self.schema.BufferT()
            data = np.asarray(values, np.int32 if integers else np.float32)
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def add(
        self, op: str, shape: tuple[int, ...], *constants: Any, name: str = "", first: bool = True, **options
    ) -> Model:
        """Append an operator that reads the last tensor and ``constants``, which are arrays or tensor indices."""
        others = [
            item if isinstance(item, int) else self.tensor(np.shape(item), name, item)
            for item in map(_plain, constants)
        ]
        code, operator = self.schema.OperatorCodeT(), self.schema.OperatorT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(self.schema.BuiltinOperator, op)
        code.version = 1
        self.model.operatorCodes.append(code)
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        operator.inputs = np.array([self.last, *others] if first else [*others, self.last], np.int32)
        self.last = self.tensor(shape, f"{op.lower()}_{len(self.graph.operators)}")
        operator.outputs = np.array([self.last], np.int32)
        kind = {"MEAN": "Reducer", "SUM": "Reducer"}.get(op, op.title().replace("_", ""))
        if hasattr(self.schema, f"{kind}OptionsT"):
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, f"{kind}Options")
            operator.builtinOptions = getattr(self.schema, f"{kind}OptionsT")()
            for key, value in options.items():
                setattr(operator.builtinOptions, key, value)
        self.graph.operators.append(operator)
        return self

    def to_bytes(self) -> bytes:
        self.graph.outputs = np.array([self.last], np.int32)
        return pack(self.model)


def _plain(item: Any) -> Any:
    return item if isinstance(item, int) else np.asarray(item)


def logits(model: Model | None = None, axes: tuple[int, int] = (1, 2), scale: float = 0.05) -> Model:
    """Compute the mean of each channel, scaled and centered: three logits that classify red, green and blue images."""
    model = model or Model()
    model.add("MEAN", (1, 3), np.array(axes, np.int32))
    return model.add("FULLY_CONNECTED", (1, 3), np.eye(3) * scale, np.full(3, -3.0), name="dense")


def softmax(model: Model | None = None, **options: Any) -> Model:
    return logits(model, **options).add("SOFTMAX", (1, 3), beta=1.0)


def channels_first(gray: bool = False) -> bytes:
    channels = 1 if gray else 3
    model = Model((1, channels, SIZE, SIZE + 4))
    model.add("MEAN", (1, channels), np.array((2, 3), np.int32))
    weights = np.eye(3)[:, :channels] * 0.05
    model.add("FULLY_CONNECTED", (1, 3), weights, np.array([-3.0, 0.0, 1.0]))
    return model.add("SOFTMAX", (1, 3), beta=1.0).to_bytes()


def without_channel_axis(shape: tuple[int, ...]) -> bytes:
    """A model without a channel axis, as in tutorials, that compares the means of the upper and of the lower half."""
    weights = np.zeros((2, SIZE * SIZE), np.float32)
    weights[0, : SIZE * SIZE // 2] = weights[1, SIZE * SIZE // 2 :] = 0.01
    model = Model(shape).add("RESHAPE", (1, SIZE * SIZE), np.array([1, SIZE * SIZE], np.int32))
    return model.add("FULLY_CONNECTED", (1, 2), weights).add("SOFTMAX", (1, 2), beta=1.0).to_bytes()


def unloadable() -> bytes:
    """A model that runtimes cannot load, because its biases are quantized along an axis that they do not have."""
    model = logits()
    bias = next(t for t in model.graph.tensors if t.name == b"dense" and len(t.shape) == 1)
    bias.quantization = model.schema.QuantizationParametersT()
    bias.quantization.scale = np.full(3, 0.5, np.float32)
    bias.quantization.zeroPoint = np.zeros(3, np.int64)
    bias.quantization.quantizedDimension = 3
    return model.add("SOFTMAX", (1, 3), beta=1.0).to_bytes()


def with_label_files(content: bytes, files: Mapping[str, tuple[str, str]], std: float = 1.0) -> bytes:
    """Add TFLite metadata with several label files, as in ML Kit's object_labeler.tflite.

    Args:
        content: the model.
        files: the text and the locale of each label file, by its name.
        std: the standard deviation that the metadata states.
    """
    build = flatbuffers.Builder(1024)

    def table(size: int, fields: Mapping[int, tuple[Callable[..., Any], Any, Any]]) -> int:
        build.StartObject(size)
        for slot, (prepend, value, default) in fields.items():
            prepend(slot, value, default)
        return int(build.EndObject())

    def offset(value: int) -> tuple[Callable[..., Any], Any, Any]:
        return build.PrependUOffsetTRelativeSlot, value, 0

    def vector(items: list[int]) -> int:
        build.StartVector(4, len(items), 4)
        for item in reversed(items):
            build.PrependUOffsetTRelative(item)
        return int(build.EndVector())

    def floats(value: float) -> int:
        build.StartVector(4, 1, 4)
        build.PrependFloat32(value)
        return int(build.EndVector())

    byte = build.PrependInt8Slot
    listed = []
    for name, (_, locale) in files.items():
        fields = (
            {0: offset(build.CreateString(name)), 3: offset(build.CreateString(locale))}
            if locale
            else {0: offset(build.CreateString(name))}
        )
        listed.append(table(5, fields | {2: (byte, 2, 0)}))
    scores = table(7, {6: offset(vector(listed))})
    options = table(2, {0: offset(floats(0.0)), 1: offset(floats(std))})
    unit = table(2, {0: (byte, 1, 0), 1: offset(options)})
    image = table(7, {4: offset(vector([unit]))})
    subgraph = table(4, {2: offset(vector([image])), 3: offset(vector([scores]))})
    build.Finish(table(8, {3: offset(vector([subgraph]))}), b"M001")
    schema, model = tflite_schema(), parse(content)
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(bytes(build.Output()), np.uint8)
    model.buffers.append(buffer)
    entry.name, entry.buffer = "TFLITE_METADATA", len(model.buffers) - 1
    model.metadata = [entry]
    result = io.BytesIO(pack(model))
    with zipfile.ZipFile(result, "a") as archive:
        for name, (text, _) in files.items():
            archive.writestr(name, text)
    return result.getvalue()
