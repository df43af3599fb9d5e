"""Read and write a .tflite file's operators and tensors without TensorFlow.

Files are parsed with the classes generated from the TFLite schema. This module adds what these classes lack: names
instead of numbers, tensors instead of indices, default options, and errors for damaged files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.format_detection import describe
from edgerec.errors import EdgerecError, ModelError
from edgerec.tflite.operators import OPTIONS_TYPES
from edgerec.tflite.schema import tflite_schema
from edgerec.tflite.verifier import check_bounds
from edgerec.utils.optional import require

# FlatBuffers files are smaller than 2 GiB, because their offsets are signed 32-bit integers.
MAX_MODEL_BYTES = 1 << 31


@dataclass(frozen=True)
class Tensor:
    """A model's tensor.

    Attributes:
        name: name of the tensor.
        dtype: data type in the TFLite schema, such as ``INT8``.
        shape: shape of the tensor; dynamic dimensions are −1.
        scales, zero_points: quantization parameters: none, one, or one per channel.
        data: a constant tensor's content, uint8 ``(bytes,)``, or None for other tensors.
        axis: channel axis if there are several ``scales``.
        index: the tensor's index in its subgraph and in interpreters.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    data: npt.NDArray[np.uint8] | None = field(repr=False)
    axis: int
    index: int

    @property
    def constant(self) -> bool:
        """True if the model file contains the values of the tensor."""
        return self.data is not None


@dataclass(frozen=True)
class Operator:
    """A model's operator.

    Attributes:
        index: position of the operator in the first subgraph.
        name: builtin name in the TFLite schema, e.g. ``CONV_2D``, or ``CUSTOM`` followed by the operator's name.
        version: version of the operator.
        inputs, outputs: the operator's tensors; absent optional inputs are None.
        options: options object from the TFLite schema.
    """

    index: int
    name: str
    version: int
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    options: Any

    @property
    def layer(self) -> str:
        """Name of the first output, or an empty string if the operator has no outputs."""
        return self.outputs[0].name if self.outputs else ""


@dataclass(frozen=True)
class Graph:
    """A model's graph.

    Attributes:
        tensors: tensors of all subgraphs.
        operators: the first subgraph's operators, in execution order.
        inputs, outputs: inputs and outputs of the first subgraph.
        subgraphs: number of subgraphs; more than one if the model contains control flow.
    """

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    subgraphs: int


def read_graph(model: bytes, where: str = "the model") -> Graph:
    """Parse a .tflite file into a :class:`Graph`.

    Raises:
        ModelError: the bytes are not a .tflite file, or its tables or its graph are not valid.
    """
    parsed = parse(model, where)
    try:
        return _graph(tflite_schema(), parsed)
    except Exception as error:
        raise ModelError(f"{where} is a damaged TFLite model: {error}") from None


def require_tflite(model: bytes, where: str = "the model") -> None:
    """Raise :class:`ModelError` if the bytes are not a .tflite file. The message names the actual format."""
    if model[4:8] != b"TFL3":
        kind = describe(model) or "does not have the identifier TFL3"
        raise ModelError(f"{where} is not a TFLite model: it {kind}")


def parse(model: bytes, where: str = "the model") -> Any:
    """Parse a .tflite file into a mutable ``ModelT`` object from the TFLite schema. :func:`pack` is the inverse.

    Raises:
        ModelError: the bytes are not a .tflite file, or its tables or its graph are not valid.
    """
    schema = tflite_schema()
    require_tflite(model, where)
    check_bounds(model, where)
    try:
        return schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
    # Parsing a damaged flatbuffer can raise any exception.
    except Exception as error:
        raise ModelError(f"{where} is a damaged TFLite model: {error}") from None


def pack(model: Any) -> bytes:
    """Serialize a ``ModelT`` object from :func:`parse` to .tflite bytes.

    Identical vectors are stored only once. Otherwise, zero points would make up a large fraction of a small model,
    because a tensor with one scale per channel also has an 8-byte zero point per channel, which is 0.
    """
    written: dict[tuple[str, bytes], int] = {}

    class Builder(require("flatbuffers").Builder):  # type: ignore[misc]
        def CreateNumpyVector(self, vector: npt.NDArray[Any]) -> int:
            key = (vector.dtype.str, vector.tobytes())
            if key not in written:
                written[key] = super().CreateNumpyVector(vector)
            return written[key]

    builder = Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def dequantized_constant(tensor: Tensor) -> npt.NDArray[np.float32]:
    """Return a constant tensor's values, dequantized to float32 as ``scale · (stored − zero_point)``.

    Raises:
        ModelError: the values are stored in a format that NumPy does not support, such as 4-bit integers.
    """
    data = np.empty(0, np.uint8) if tensor.data is None else tensor.data
    try:
        stored = data.view(tensor.dtype.lower()).reshape(tensor.shape)
    except (TypeError, ValueError):
        raise ModelError(
            f"cannot read the values of tensor {tensor.name[-60:]!r}: NumPy does not support the type {tensor.dtype}"
        ) from None
    if not tensor.scales:
        return stored.astype(np.float32)
    broadcast = [-1 if axis == tensor.axis and len(tensor.scales) > 1 else 1 for axis in range(stored.ndim)]
    scales = np.array(tensor.scales, np.float64).reshape(broadcast or [])
    zero_points = np.array(tensor.zero_points or [0] * len(tensor.scales), np.float64).reshape(broadcast or [])
    return ((stored - zero_points) * scales).astype(np.float32)


def float_tensors(graph: Graph) -> list[Tensor]:
    """Return a model's floating-point tensors. A fully quantized model has none.

    Empty tensors are ignored, because an int8 LSTM has four of them, which store only a scale.
    """
    return [tensor for tensor in graph.tensors if "FLOAT" in tensor.dtype and tensor.shape != (0,)]


def weight_sparsity(graph: Graph) -> float:
    """Return the fraction of zeros among the int8 weights of convolutions and dense layers."""
    weights = [t.data for t in graph.tensors if t.data is not None and t.dtype == "INT8" and len(t.shape) > 1]
    return float(sum((w == 0).sum() for w in weights) / max(1, sum(w.size for w in weights)))


def _graph(schema: Any, model: Any) -> Graph:
    # Loops and branches are stored in separate subgraphs.
    tensors: list[Tensor] = []
    first: tuple[Tensor, ...] = ()
    for subgraph in model.subgraphs:
        current = tuple(_tensor(schema, model, tensor, index) for index, tensor in enumerate(subgraph.tensors))
        first = first or current
        tensors += current
    main = model.subgraphs[0]
    return Graph(
        tuple(tensors),
        tuple(_operators(schema, model, main, first)),
        tuple(first[i] for i in main.inputs),
        tuple(first[i] for i in main.outputs),
        len(model.subgraphs),
    )


def _tensor(schema: Any, model: Any, tensor: Any, index: int) -> Tensor:
    quantization = tensor.quantization
    scales = () if quantization is None or quantization.scale is None else quantization.scale
    zero_points = () if quantization is None or quantization.zeroPoint is None else quantization.zeroPoint
    signature = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    data = model.buffers[tensor.buffer].data
    return Tensor(
        (tensor.name or b"").decode(errors="replace"),
        _name_of(schema.TensorType, tensor.type),
        tuple(int(n) for n in (signature if signature is not None else ())),
        tuple(float(n) for n in scales),
        tuple(int(n) for n in zero_points),
        np.asarray(data, np.uint8) if data is not None and len(data) else None,
        0 if quantization is None else int(quantization.quantizedDimension),
        index,
    )


def _operators(schema: Any, model: Any, subgraph: Any, tensors: tuple[Tensor, ...]) -> Iterator[Operator]:
    for index, operator in enumerate(subgraph.operators):
        code = model.operatorCodes[operator.opcodeIndex]
        builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
        name = _name_of(schema.BuiltinOperator, builtin)
        if name == "CUSTOM":
            name = f"CUSTOM {(code.customCode or b'').decode(errors='replace')}"
        yield Operator(
            index,
            name,
            code.version,
            tuple(tensors[i] if i >= 0 else None for i in _indexes(operator.inputs)),
            tuple(tensors[i] for i in _indexes(operator.outputs)),
            _options(schema, name, operator.builtinOptions, index),
        )


def _indexes(values: Any) -> Any:
    return () if values is None else values


def _options(schema: Any, name: str, options: Any, index: int) -> Any:
    """Return the options of an operator, or the default options if it has none.

    Raises:
        ValueError: the options belong to another operator type.
    """
    create = _options_classes(schema).get(OPTIONS_TYPES.get(name, name).replace("_", "").lower())
    if create is None:
        return options
    if options is not None and not isinstance(options, create):
        raise ValueError(
            f"operator {index} ({name}) has options of type {type(options).__name__.removesuffix('T')}, which belong "
            "to another operator"
        )
    return create() if options is None else options


@cache
def _options_classes(schema: Any) -> dict[str, Any]:
    return {key.lower().removesuffix("optionst"): value for key, value in vars(schema).items() if "OptionsT" in key}


@contextmanager
def reading_graph(where: str) -> Iterator[None]:
    """Raise :class:`ModelError` if the code in a ``with`` block fails because of a damaged graph.

    The verifier does not check everything, e.g. not the number of dimensions that an operator expects.
    """
    try:
        yield
    except EdgerecError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelError(f"{where} is a damaged TFLite model ({error}): copy or convert it again") from error


def _name_of(enum: Any, value: int) -> str:
    return _names(enum).get(value, str(value))


@cache
def _names(enum: Any) -> dict[int, str]:
    return {value: name for name, value in reversed(vars(enum).items()) if name.isupper()}
