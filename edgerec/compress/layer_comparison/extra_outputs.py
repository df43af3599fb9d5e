"""Other wirings of a .tflite graph, which bring to light what an interpreter keeps to itself.

An interpreter's delegate keeps intermediate tensors where nobody can read them. Asking for all tensors
(``experimental_preserve_all_tensors``) works only without the delegate, with other kernels than those that run
later: the int8 scores of a MobileNet, given noise, differ by up to 38 of 255 units between the two. A graph whose
intermediate tensors *are outputs* is computed by the kernels that count, and its scores are the same bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np

from edgerec.errors import ModelError
from edgerec.tflite.flatbuffer import Graph, Operator, pack, parse, read_graph, real_values
from edgerec.tflite.schema import tflite_schema

# Between two forms of the same numbers.
CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")


def open_graph(content: bytes, where: str) -> Graph:
    """Read a graph that can be rewired; raises :class:`ModelError` where it has control flow or several inputs."""
    graph = read_graph(content, where)
    if graph.subgraphs > 1:
        raise ModelError(f"{where} has control flow ({graph.subgraphs} subgraphs): its layers cannot be compared")
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ModelError(
            f"{where} has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs, an image classifier one of each"
        )
    return graph


def computed(graph: Graph) -> list[Operator]:
    """The operators, in execution order, that depend on the picture: not those that unpack weights."""
    flowing = {tensor.index for tensor in graph.inputs}
    found = []
    for operator in graph.operators:
        if any(tensor is not None and tensor.index in flowing for tensor in operator.inputs):
            flowing.update(tensor.index for tensor in operator.outputs)
            found.append(operator)
    return found


def exposed(content: bytes) -> bytes:
    """The same model with everything that it computes as outputs."""
    model = parse(content)
    _wire(model, model.subgraphs[0].inputs, _results(content))
    return pack(model)


def isolated(content: bytes) -> tuple[bytes, dict[tuple[int, int], int]]:
    """The same operators with every connection between them cut: each computes from inputs of its own.

    Returns the model, whose outputs are the operators' own, and for (operator, tensor that it reads) the input that
    stands for it.
    """
    model = parse(content)
    main = model.subgraphs[0]
    results = _results(content)
    flowing = {int(main.inputs[0]), *results}
    given: dict[tuple[int, int], int] = {}
    for position, operator in enumerate(main.operators):
        for index in flowing.intersection(map(int, operator.inputs)):
            name = f"given_{position}_{index}"
            given[position, index] = _add_tensor(main, copy.copy(main.tensors[index]), name)
        operator.inputs = [given.get((position, int(index)), int(index)) for index in operator.inputs]
    _wire(model, given.values(), results)
    return pack(model), given


def disturbed(content: bytes, tensors: Iterable[int]) -> tuple[bytes, dict[int, tuple[int, int]]]:
    """A float model to which something can be added at some of its ``tensors``, with everything as outputs.

    Returns the model, and for each tensor the input that is added to it and their sum.
    """
    schema = tflite_schema()
    model = parse(content)
    main, wanted, results = model.subgraphs[0], set(tensors), _results(content)
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    model.operatorCodes.append(code)
    added: dict[int, tuple[int, int]] = {}
    operators = []
    for operator in main.operators:
        operator.inputs = [added.get(int(index), (0, int(index)))[1] for index in operator.inputs]
        operators.append(operator)
        for index in wanted.intersection(map(int, operator.outputs)):
            given, total = (_add_tensor(main, copy.copy(main.tensors[index]), f"{n}_{index}") for n in ("added", "sum"))
            added[index] = given, total
            adding = schema.OperatorT()
            adding.opcodeIndex = len(model.operatorCodes) - 1
            adding.inputs, adding.outputs = [index, given], [total]
            adding.builtinOptionsType, adding.builtinOptions = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
            operators.append(adding)
    main.operators = operators
    sums = [total for _, total in added.values()]
    _wire(model, [*main.inputs, *(given for given, _ in added.values())], [*results, *sums])
    return pack(model), added


def float_twin(content: bytes) -> bytes:
    """The same operators in float32, with the weights that the quantized model has.

    It is what the model would compute if only its activations were not rounded. Tensors keep their index; that of a
    QUANTIZE or DEQUANTIZE is computed no more, its input stands in for it.
    """
    schema = tflite_schema()
    model = parse(content)
    graph = read_graph(content)
    main = model.subgraphs[0]
    for tensor, about in zip(main.tensors, graph.tensors, strict=True):
        if not (about.scales or about.dtype == "FLOAT16"):
            continue
        if about.constant:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(real_values(about).tobytes(), np.uint8)
            model.buffers.append(buffer)
            tensor.buffer = len(model.buffers) - 1
        tensor.type, tensor.quantization = schema.TensorType.FLOAT32, None
    same: dict[int, int] = {}
    operators = []
    for operator, read in zip(main.operators, graph.operators, strict=True):
        operator.inputs = [same.get(int(index), int(index)) for index in operator.inputs]
        if read.name in CONVERSIONS:
            same[int(operator.outputs[0])] = operator.inputs[0]
        else:
            operators.append(operator)
    main.operators = operators
    _wire(model, main.inputs, [same.get(int(index), int(index)) for index in main.outputs])
    return pack(model)


def _results(content: bytes) -> list[int]:
    return [tensor.index for operator in computed(read_graph(content)) for tensor in operator.outputs]


def _wire(model: Any, inputs: Iterable[int], outputs: Iterable[int]) -> None:
    main = model.subgraphs[0]
    main.inputs, main.outputs = [int(i) for i in inputs], [int(i) for i in outputs]
    model.signatureDefs = []  # they name the old ones


def _add_tensor(main: Any, tensor: Any, name: str) -> int:
    tensor.name = name.encode()
    main.tensors.append(tensor)
    return len(main.tensors) - 1
