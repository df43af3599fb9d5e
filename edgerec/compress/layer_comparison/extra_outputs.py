"""Rewrite .tflite graphs so that intermediate tensors can be read and changed.

The intermediate tensors of an interpreter with a delegate cannot be read. The option
``experimental_preserve_all_tensors`` makes them readable, but only without the delegate. In this case, other kernels
run than on the device, and the int8 scores of a MobileNet on noise differ by up to 38 of 255 units. If the intermediate
tensors are outputs of the graph, the same kernels run as on the device, and the scores are bit-identical.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np

from edgerec.errors import ModelError
from edgerec.tflite.flatbuffer import Graph, Operator, dequantized_constant, pack, parse, read_graph
from edgerec.tflite.schema import tflite_schema

# These operators only convert between data types.
CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")


def open_graph(content: bytes, where: str) -> Graph:
    """Read the graph of a .tflite model that has one input, one output and no control flow.

    Raises:
        ModelError: the model has control flow, or more than one input or output.
    """
    graph = read_graph(content, where)
    if graph.subgraphs > 1:
        raise ModelError(f"cannot compare the layers of {where}: models with control flow are not supported")
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ModelError(
            f"cannot compare the layers of {where}: expected one input and one output, but the model "
            f"has {len(graph.inputs)} and {len(graph.outputs)}"
        )
    return graph


def image_operators(graph: Graph) -> list[Operator]:
    """Return the operators whose outputs depend on the input image, in execution order.

    Operators that only unpack weights are omitted.
    """
    image_tensors = {tensor.index for tensor in graph.inputs}
    dependent = []
    for operator in graph.operators:
        if any(tensor is not None and tensor.index in image_tensors for tensor in operator.inputs):
            image_tensors.update(tensor.index for tensor in operator.outputs)
            dependent.append(operator)
    return dependent


def with_all_outputs(content: bytes) -> bytes:
    """Return a copy of the model that outputs each operator's result."""
    model = parse(content)
    _set_inputs_and_outputs(model, model.subgraphs[0].inputs, _operator_outputs(content))
    return pack(model)


def with_disconnected_operators(content: bytes) -> tuple[bytes, dict[tuple[int, int], int]]:
    """Return a copy of the model in which each operator reads its activations from new model inputs.

    Returns:
        The model, which outputs the result of every operator, and a dictionary that maps each pair of an operator's
        position and the index of a tensor that it reads to the index of the new input.
    """
    model = parse(content)
    main = model.subgraphs[0]
    results = _operator_outputs(content)
    image_tensors = {int(main.inputs[0]), *results}
    new_inputs: dict[tuple[int, int], int] = {}
    for position, operator in enumerate(main.operators):
        for index in image_tensors.intersection(map(int, operator.inputs)):
            name = f"input_{position}_{index}"
            new_inputs[position, index] = _add_tensor(main, copy.copy(main.tensors[index]), name)
        operator.inputs = [new_inputs.get((position, int(index)), int(index)) for index in operator.inputs]
    _set_inputs_and_outputs(model, new_inputs.values(), results)
    return pack(model), new_inputs


def with_additions(content: bytes, tensors: Iterable[int]) -> tuple[bytes, dict[int, tuple[int, int]]]:
    """Return a copy of a float model with an additional input for each tensor, whose value is added to the tensor.

    The copy outputs all operators' results and the sums.

    Returns:
        The copy, and a dictionary that maps the index of each tensor to the index of its new input and of the sum.
    """
    schema = tflite_schema()
    model = parse(content)
    main, selected, results = model.subgraphs[0], set(tensors), _operator_outputs(content)
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    model.operatorCodes.append(code)
    added: dict[int, tuple[int, int]] = {}
    operators = []
    for operator in main.operators:
        operator.inputs = [added.get(int(index), (0, int(index)))[1] for index in operator.inputs]
        operators.append(operator)
        for index in selected.intersection(map(int, operator.outputs)):
            new_input, total = (
                _add_tensor(main, copy.copy(main.tensors[index]), f"{n}_{index}") for n in ("added", "sum")
            )
            added[index] = new_input, total
            adding = schema.OperatorT()
            adding.opcodeIndex = len(model.operatorCodes) - 1
            adding.inputs, adding.outputs = [index, new_input], [total]
            adding.builtinOptionsType, adding.builtinOptions = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
            operators.append(adding)
    main.operators = operators
    sums = [total for _, total in added.values()]
    _set_inputs_and_outputs(model, [*main.inputs, *(new_input for new_input, _ in added.values())], [*results, *sums])
    return pack(model), added


def dequantized(content: bytes) -> bytes:
    """Return a float32 copy of a quantized model, with dequantized weights.

    The copy computes what the quantized model would compute without rounding its activations. Tensors keep their
    indices. ``QUANTIZE`` and ``DEQUANTIZE`` operators are removed.
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
            buffer.data = np.frombuffer(dequantized_constant(about).tobytes(), np.uint8)
            model.buffers.append(buffer)
            tensor.buffer = len(model.buffers) - 1
        tensor.type, tensor.quantization = schema.TensorType.FLOAT32, None
    replacements: dict[int, int] = {}
    operators = []
    for operator, read in zip(main.operators, graph.operators, strict=True):
        operator.inputs = [replacements.get(int(index), int(index)) for index in operator.inputs]
        if read.name in CONVERSIONS:
            replacements[int(operator.outputs[0])] = operator.inputs[0]
        else:
            operators.append(operator)
    main.operators = operators
    _set_inputs_and_outputs(model, main.inputs, [replacements.get(int(index), int(index)) for index in main.outputs])
    return pack(model)


def _operator_outputs(content: bytes) -> list[int]:
    return [tensor.index for operator in image_operators(read_graph(content)) for tensor in operator.outputs]


def _set_inputs_and_outputs(model: Any, inputs: Iterable[int], outputs: Iterable[int]) -> None:
    main = model.subgraphs[0]
    main.inputs, main.outputs = [int(i) for i in inputs], [int(i) for i in outputs]
    model.signatureDefs = []  # signatures would still refer to the old inputs and outputs


def _add_tensor(main: Any, tensor: Any, name: str) -> int:
    tensor.name = name.encode()
    main.tensors.append(tensor)
    return len(main.tensors) - 1
