"""Read and write the operators and tensors of a .tflite file without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.content import describe
from edgerec.errors import EdgerecError, ModelError
from edgerec.tflite.schema import tflite_schema
from edgerec.tflite.verifier import check_bounds
from edgerec.utils.optional import require

# Size limit of a flatbuffer, whose offsets are signed 32-bit integers.
MAX_MODEL_BYTES = 1 << 31


@dataclass(frozen=True)
class Tensor:
    """A tensor of a model.

    Attributes:
        name: name of the tensor.
        dtype: name of the type in the TFLite schema, such as ``INT8``.
        shape: shape of the tensor; dynamic dimensions are −1.
        scales, zero_points: quantization parameters: none, one, or one per channel.
        data: content of a constant tensor, uint8 ``(bytes,)``; None for other tensors.
        axis: axis of the channels if there are several ``scales``.
        index: index of the tensor in its subgraph, which is also its index in an interpreter.
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
        """Whether the values of the tensor are stored in the file."""
        return self.data is not None


@dataclass(frozen=True)
class Operator:
    """An operator of a model.

    Attributes:
        index: position of the operator in the first subgraph.
        name: builtin name in the TFLite schema, e.g. ``CONV_2D``, or ``CUSTOM`` followed by the name of the operator.
        version: version of the operator.
        inputs, outputs: tensors of the operator; an optional input that is absent is None.
        options: options object of the TFLite schema.
    """

    index: int
    name: str
    version: int
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    options: Any


@dataclass(frozen=True)
class Graph:
    """The graph of a model.

    Attributes:
        tensors: tensors of all subgraphs.
        operators: operators of the first subgraph, in the order of execution.
        inputs, outputs: inputs and outputs of the first subgraph.
        subgraphs: number of subgraphs; more than one if the model contains control flow.
    """

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    subgraphs: int


def read_graph(model: bytes, where: str = "the model") -> Graph:
    """Parse the bytes of a .tflite file; raise :class:`ModelError` if they are not one."""
    parsed = parse(model, where)
    try:
        return _graph(tflite_schema(), parsed)
    except Exception as error:
        raise ModelError(f"{where} is a damaged TFLite model: {error}") from None


def require_tflite(model: bytes, where: str = "the model") -> None:
    """Raise :class:`ModelError` if the bytes are not a .tflite file; the message names their actual format."""
    if model[4:8] != b"TFL3":
        kind = describe(model) or "does not have the TFL3 identifier"
        raise ModelError(f"{where} is not a TFLite model: it {kind}")


def parse(model: bytes, where: str = "the model") -> Any:
    """Parse a .tflite file to a ``ModelT`` object of the TFLite schema, which can be changed and packed again.

    Raises:
        ModelError: the bytes are not a .tflite file, or its tables or its graph are not valid.
    """
    schema = tflite_schema()
    require_tflite(model, where)
    check_bounds(model, where)
    try:
        return schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
    except Exception as error:  # a damaged flatbuffer can cause any error, such as struct.error or IndexError
        raise ModelError(f"{where} is a damaged TFLite model: {error}") from None


def pack(model: Any) -> bytes:
    """Return the .tflite bytes of a ``ModelT`` object, see :func:`parse`. Identical vectors are stored only once.

    This matters because every tensor with a scale per channel also has a zero point of 8 bytes per channel. These zero
    points are all zero, but take an eighth of a small model.
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


def real_values(tensor: Tensor) -> npt.NDArray[np.float32]:
    """Return the real values of a constant tensor, float32 in its shape: ``scale · (stored − zero_point)``.

    Raises:
        ModelError: the values are stored in a format that NumPy does not support, such as 4-bit integers.
    """
    data = np.empty(0, np.uint8) if tensor.data is None else tensor.data
    try:
        stored = data.view(tensor.dtype.lower()).reshape(tensor.shape)
    except (TypeError, ValueError):
        raise ModelError(
            f"the tensor {tensor.name[-60:]!r} cannot be read, because its values are stored in a packed format "
            f"({tensor.dtype})"
        ) from None
    if not tensor.scales:
        return stored.astype(np.float32)
    broadcast = [-1 if axis == tensor.axis and len(tensor.scales) > 1 else 1 for axis in range(stored.ndim)]
    scales = np.array(tensor.scales, np.float64).reshape(broadcast or [])
    zero_points = np.array(tensor.zero_points or [0] * len(tensor.scales), np.float64).reshape(broadcast or [])
    return ((stored - zero_points) * scales).astype(np.float32)


def float_tensors(graph: Graph) -> list[Tensor]:
    """Return the floating-point tensors of a model. A fully quantized model has none.

    Empty tensors are ignored, because an int8 LSTM has four of them, which store only a scale.
    """
    return [tensor for tensor in graph.tensors if "FLOAT" in tensor.dtype and tensor.shape != (0,)]


def weight_sparsity(graph: Graph) -> float:
    """Return the fraction of zeros among the int8 weights of convolutions and dense layers, whose zero point is 0."""
    weights = [t.data for t in graph.tensors if t.data is not None and t.dtype == "INT8" and len(t.shape) > 1]
    return float(sum((w == 0).sum() for w in weights) / max(1, sum(w.size for w in weights)))


def _graph(schema: Any, model: Any) -> Graph:
    # A model without control flow has one subgraph. Callers also check the tensors of the other subgraphs.
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
    """Return the options of an operator, by default the schema's defaults; raise ValueError if their type is wrong."""
    kind = _OPTIONS.get(name, name).replace("_", "").lower()
    create = next((value for key, value in vars(schema).items() if key.lower() == f"{kind}optionst"), None)
    if create is None:
        return options
    if options is not None and not isinstance(options, create):
        raise ValueError(f"operator {index} ({name}) has options of type {type(options).__name__.removesuffix('T')}")
    return create() if options is None else options


# Names of option types that differ from the name of the operator.
_OPTIONS = {
    **dict.fromkeys(("AVERAGE_POOL_2D", "L2_POOL_2D", "MAX_POOL_2D"), "Pool2D"),
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_ALL", "REDUCE_ANY", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD"), "Reducer"),
    **dict.fromkeys(("MAXIMUM", "MINIMUM"), "MaximumMinimum"),
    "L2_NORMALIZATION": "L2Norm",
    "UNIDIRECTIONAL_SEQUENCE_RNN": "SequenceRNN",
}


@contextmanager
def reading_graph(where: str) -> Iterator[None]:
    """Convert errors that an invalid graph causes, e.g. a shape with too few dimensions, to :class:`ModelError`."""
    try:
        yield
    except EdgerecError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelError(f"{where} is a damaged TFLite model ({error}): copy or convert it again") from error


def _name_of(enum: Any, value: int) -> str:
    return next((name for name, known in vars(enum).items() if known == value and name.isupper()), str(value))
