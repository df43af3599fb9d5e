"""Damaged .tflite files. Most changes affect values in the model's tables, so that the file is a valid flatbuffer."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from common import REPOSITORY, data_folder

from edgerec.tflite.flatbuffer import pack, parse, read_graph
from fuzzing.isolation import Target
from fuzzing.mutate import damaged_bytes

_NUMBERS = (-2, -1, 0, 1, 2, 3, 4, 7, 127, 128, 255, 256, 65535, 1 << 20, (1 << 31) - 1, -(1 << 31))
TIMEOUT_S = 15.0
_FLOATS = (0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), 3.0)


def start(work: Path) -> list[bytes]:
    """Return small models that contain many kinds of operators."""
    import cv2  # noqa: F401

    from edgerec.runtime.interpreter import find_runtime

    find_runtime()
    folders = (data_folder() / "edgetpu", REPOSITORY.parent / "shared" / "cases")
    files = [path for folder in folders for path in sorted(folder.rglob("*.tflite")) if path.stat().st_size < 900_000]
    models = []
    for path in files:
        content = path.read_bytes()
        if content[4:8] == b"TFL3" and "security" not in path.parts:
            models.append(content if len(content) < 200_000 else first_operators(content))
    models += generated()
    seeds = [pack(parse(model)) for model in models]
    # Run one case in this process to import all modules, so that the forked processes need not import them.
    work.mkdir(parents=True, exist_ok=True)
    use(write(seeds[-1], seeds[-1], work), work)
    return seeds


def generated() -> list[bytes]:
    """Return untrained models. Each one consists of a convolution and one other operator."""
    sys.path.insert(0, str(REPOSITORY))
    from tests.tflite_models import SIZE, Model

    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(4, 3, 3, 3)), rng.normal(size=4)
    square, pixels = (1, SIZE, SIZE, 3), SIZE * SIZE * 3

    def classifier(model: Model, size: int) -> bytes:
        model.add("RESHAPE", (1, size), np.array([1, size]))
        model.add("FULLY_CONNECTED", (1, 3), rng.normal(size=(3, size)), rng.normal(size=3))
        return model.add("SOFTMAX", (1, 3), beta=1.0).to_bytes()

    convolution = {"strideW": 1, "strideH": 1, "dilationWFactor": 1, "dilationHFactor": 1}
    models = [
        classifier(Model().add("CONV_2D", (1, SIZE, SIZE, 4), kernel, bias, **convolution), SIZE * SIZE * 4),
        classifier(
            Model().add(
                "DEPTHWISE_CONV_2D", square, rng.normal(size=(1, 3, 3, 3)), rng.normal(size=3), depthMultiplier=1,
                **convolution,
            ),
            pixels,
        ),
    ]  # fmt: skip
    pool = {"strideW": 2, "strideH": 2, "filterWidth": 2, "filterHeight": 2}
    half = (1, SIZE // 2, SIZE // 2, 3)
    paddings = np.array([[0, 0], [1, 1], [1, 1], [0, 0]])
    for operator, shape, constants, options in (
        ("MAX_POOL_2D", half, (), pool),
        ("AVERAGE_POOL_2D", half, (), pool),
        ("PAD", (1, SIZE + 2, SIZE + 2, 3), (paddings,), {}),
        ("MIRROR_PAD", (1, SIZE + 2, SIZE + 2, 3), (paddings,), {}),
        ("MEAN", (1, 3), (np.array([1, 2]),), {}),
        ("SUM", (1, 3), (np.array([1, 2]),), {}),
        ("TRANSPOSE", (1, 3, SIZE, SIZE), (np.array([0, 3, 1, 2]),), {}),
        ("RESIZE_BILINEAR", half, (np.array([SIZE // 2] * 2),), {}),
        ("RESIZE_NEAREST_NEIGHBOR", half, (np.array([SIZE // 2] * 2),), {}),
        ("GATHER", (1, SIZE, SIZE, 2), (np.array([2, 0]),), {"axis": 3}),
        ("SLICE", (1, 4, 4, 3), (np.array([0, 1, 1, 0]), np.array([1, 4, 4, 3])), {}),
        ("STRIDED_SLICE", (1, 4, 4, 3), (np.array([0] * 4), np.array([1, 8, 8, 3]), np.array([1, 2, 2, 1])), {}),
        ("ADD", square, (rng.normal(size=3),), {}),
        ("MUL", square, (rng.normal(size=3),), {}),
        ("PRELU", square, (rng.normal(size=(1, 1, 3)),), {}),
        ("TILE", (1, SIZE, SIZE, 6), (np.array([1, 1, 1, 2]),), {}),
        ("EXPAND_DIMS", (1, 1, SIZE, SIZE, 3), (np.array(1),), {}),
        ("SPACE_TO_DEPTH", (1, SIZE // 2, SIZE // 2, 12), (), {"blockSize": 2}),
        ("LEAKY_RELU", square, (), {"alpha": 0.1}),
        ("LOGISTIC", square, (), {}),
        ("TANH", square, (), {}),
        ("HARD_SWISH", square, (), {}),
        ("REVERSE_V2", square, (np.array([2]),), {}),
        ("SPACE_TO_BATCH_ND", (4, 4, 4, 3), (np.array([2, 2]), np.zeros((2, 2), int)), {}),
        ("CAST", square, (), {}),
        ("L2_NORMALIZATION", square, (), {}),
    ):
        model = Model().add(operator, shape, *constants, **options)
        if operator.endswith("POOL_2D"):
            pool_options = model.graph.operators[-1].builtinOptions = model.schema.Pool2DOptionsT()
            model.graph.operators[-1].builtinOptionsType = model.schema.BuiltinOptions.Pool2DOptions
            vars(pool_options).update(options)
        models.append(classifier(model, int(np.prod(shape))))
    return models


def first_operators(content: bytes, count: int = 7) -> bytes:
    """Return a model that consists of the first ``count`` operators of a large model."""
    model = parse(content)
    graph = model.subgraphs[0]
    graph.operators = graph.operators[:count]
    graph.outputs = np.array([graph.operators[-1].outputs[0]], np.int32)
    used = {graph.tensors[index].buffer for operator in graph.operators for index in operator.inputs if index >= 0}
    for number, buffer in enumerate(model.buffers):
        buffer.data = buffer.data if number in used else None
    model.signatureDefs = None
    return pack(model)


def make(rng: Random, seeds: list[bytes], folder: Path) -> Path:
    """Write a model after one to four changes of its tables, or rarely of its bytes."""
    seed = rng.choice(seeds)
    return write(seed, damaged_model(rng, seed), folder)


def write(seed: bytes, content: bytes, folder: Path) -> Path:
    """Write the model ``content``, and a label file with one label per class of the undamaged model ``seed``."""
    path = folder / "model.tflite"
    path.write_bytes(content)
    classes = read_graph(seed).outputs[0].shape[-1]
    (folder / "labels.txt").write_text("".join(f"label {number}\n" for number in range(max(2, classes))))
    return path


def damaged_model(rng: Random, content: bytes) -> bytes:
    """Return a model after one to four changes of its tables, or rarely of its bytes."""
    from edgerec.tflite.schema import tflite_schema

    if rng.random() < 0.1:
        changed = damaged_bytes(rng, content, within=((8, 4000), (max(8, len(content) - 20_000), len(content))))
        return changed[:4] + b"TFL3" + changed[8:]
    schema = tflite_schema()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice(_CHANGES)(rng, model)
    try:
        return pack(model)
    except Exception:  # flatbuffers cannot write every change, e.g. numbers that do not fit
        return damaged_bytes(rng, content)


def _random_graph(rng: Random, model: Any) -> Any:
    return rng.choice(model.subgraphs)


def _change_indexes(rng: Random, model: Any) -> None:
    """Change the inputs or outputs of an operator or a graph: other tensors, optional ones, other lengths."""
    graph = _random_graph(rng, model)
    owner = rng.choice([graph, *graph.operators, *graph.operators])
    name = rng.choice(("inputs", "outputs"))
    values = [int(value) for value in (getattr(owner, name) if getattr(owner, name) is not None else ())]
    way = rng.randrange(5)
    if way == 0 and values:
        values[rng.randrange(len(values))] = rng.randrange(len(graph.tensors))
    elif way == 1 and values:
        values[rng.randrange(len(values))] = rng.choice((-1, -1, -2, len(graph.tensors), 1 << 30))
    elif way == 2 and values:
        del values[rng.randrange(len(values)) :]
    elif way == 3:
        values += [rng.choice((-1, *range(min(50, len(graph.tensors)))))] * rng.choice((1, 1, 3, 40))
    else:
        rng.shuffle(values)
    setattr(owner, name, np.array(values, np.int32))


def _change_tensor(rng: Random, model: Any) -> None:
    tensor = rng.choice(_random_graph(rng, model).tensors)
    way = rng.randrange(6)
    if way == 0:
        tensor.type = rng.randrange(24)
    elif way == 1:
        tensor.buffer = rng.choice((0, rng.randrange(len(model.buffers)), len(model.buffers), (1 << 32) - 1))
    elif way == 2:
        tensor.isVariable = not tensor.isVariable
    elif way == 3 and tensor.quantization is not None:
        _change_quantization(rng, tensor.quantization)
    elif way == 4:
        tensor.shapeSignature = np.array([-1] * rng.randrange(6), np.int32)
    else:
        tensor.shape = _changed_numbers(rng, tensor.shape)


def _change_quantization(rng: Random, quantization: Any) -> None:
    way = rng.randrange(4)
    if way == 0:
        quantization.quantizedDimension = rng.choice(_NUMBERS)
    elif way == 1:
        quantization.zeroPoint = np.array([rng.choice(_NUMBERS)] * rng.randrange(5), np.int64)
    elif way == 2:
        quantization.scale = np.array([rng.choice(_FLOATS)] * rng.randrange(5), np.float32)
    else:
        quantization.scale = None


def _changed_numbers(rng: Random, values: Any) -> Any:
    numbers = [int(value) for value in (values if values is not None else ())]
    way = rng.randrange(4)
    if way == 0:
        numbers = numbers[: rng.randrange(len(numbers) + 1)]
    elif way == 1:
        numbers += [rng.choice(_NUMBERS)] * rng.choice((1, 1, 4, 1000))
    elif numbers:
        numbers[rng.randrange(len(numbers))] = rng.choice(_NUMBERS)
    return np.array(numbers, np.int32)


def _change_options(rng: Random, model: Any) -> None:
    """Change an option of an operator, e.g. a stride or the number of a subgraph, or remove all options."""
    operators = _random_graph(rng, model).operators
    if not operators:
        return
    operator = rng.choice(operators)
    if rng.random() < 0.15:
        other = rng.choice(operators)
        operator.builtinOptions, operator.builtinOptionsType = other.builtinOptions, other.builtinOptionsType
        return
    if rng.random() < 0.1 or operator.builtinOptions is None:
        operator.builtinOptions, operator.builtinOptionsType = None, 0
        return
    names = list(vars(operator.builtinOptions))
    if names:
        name = rng.choice(names)
        value = getattr(operator.builtinOptions, name)
        if isinstance(value, bool):
            setattr(operator.builtinOptions, name, not value)
        elif isinstance(value, int):
            setattr(operator.builtinOptions, name, rng.choice(_NUMBERS))
        elif isinstance(value, float):
            setattr(operator.builtinOptions, name, rng.choice(_FLOATS))


def _change_code(rng: Random, model: Any) -> None:
    """Change an operator's code or version, or let an operator use another code."""
    from edgerec.tflite.schema import tflite_schema

    code = rng.choice(model.operatorCodes)
    way = rng.randrange(4)
    if way == 0:
        known = vars(tflite_schema().BuiltinOperator)
        number = rng.choice([value for value in known.values() if isinstance(value, int)])
        code.builtinCode, code.deprecatedBuiltinCode = number, min(number, 127)
    elif way == 1:
        code.version = rng.choice((0, 1, 2, 5, 99))
    elif way == 2:
        operator = rng.choice(_random_graph(rng, model).operators or [model.subgraphs[0]])
        operator.opcodeIndex = rng.choice((rng.randrange(len(model.operatorCodes)), len(model.operatorCodes), 1 << 20))
    else:
        code.builtinCode, code.customCode = (
            32,
            rng.choice((b"", b"FlexAdd", b"x" * 300, b"TFLite_Detection_PostProcess")),
        )


def _change_buffer(rng: Random, model: Any) -> None:
    buffer = rng.choice(model.buffers)
    if buffer.data is None or not len(buffer.data):
        buffer.data = np.zeros(rng.choice((1, 4, 400)), np.uint8)
        return
    data = np.array(buffer.data, np.uint8)
    way = rng.randrange(4)
    if way == 0:
        data = data[: rng.randrange(len(data))]
    elif way == 1 and len(data) >= 4:
        at = rng.randrange(len(data) // 4) * 4
        data[at : at + 4] = np.frombuffer(np.int32(rng.choice(_NUMBERS)).tobytes(), np.uint8)
    elif way == 2:
        data[:] = rng.choice((0, 1, 127, 255))
    else:
        data = np.concatenate([data, data])[:100_000]
    buffer.data = data


def _change_graph(rng: Random, model: Any) -> None:
    """Reorder, repeat or remove operators, which makes cycles and unused tensors, or repeat subgraphs."""
    graph = _random_graph(rng, model)
    way = rng.randrange(5)
    if way == 0:
        rng.shuffle(graph.operators)
    elif way == 1 and graph.operators:
        graph.operators.append(rng.choice(graph.operators))
    elif way == 2 and graph.operators:
        graph.operators.remove(rng.choice(graph.operators))
    elif way == 3:
        model.subgraphs += [graph] * rng.choice((1, 3))
    else:
        control = rng.choice(graph.operators) if graph.operators else None
        if control is not None:
            _call_subgraph(rng, model, control)


def _call_subgraph(rng: Random, model: Any, operator: Any) -> None:
    """Replace an operator by WHILE, IF or CALL_ONCE, which calls a random subgraph, possibly its own one."""
    from edgerec.tflite.schema import tflite_schema

    schema = tflite_schema()
    kind = rng.choice(("While", "If", "CallOnce"))
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, {"While": "WHILE", "If": "IF", "CallOnce": "CALL_ONCE"}[kind])
    code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
    model.operatorCodes.append(code)
    operator.opcodeIndex = len(model.operatorCodes) - 1
    operator.builtinOptionsType = getattr(schema.BuiltinOptions, f"{kind}Options")
    operator.builtinOptions = getattr(schema, f"{kind}OptionsT")()
    for name in vars(operator.builtinOptions):
        setattr(operator.builtinOptions, name, rng.choice((0, 1, len(model.subgraphs), -1)))


_CHANGES: tuple[Callable[[Random, Any], None], ...] = (
    _change_indexes,
    _change_indexes,
    _change_tensor,
    _change_tensor,
    _change_options,
    _change_code,
    _change_buffer,
    _change_graph,
)


def use(path: Path, out: Path) -> None:
    """Inspect and import the model."""
    from edgerec import import_tflite, inspect
    from edgerec.errors import EdgerecError
    from edgerec.tflite import probing

    probing.TIMEOUT_S = TIMEOUT_S
    if sum(path.read_bytes()) % 50:  # otherwise use real child processes, which are 50 times slower
        probing.run_python = forked
    refused = None
    for step in (
        lambda: inspect(path, "coral-usb", compiler=False),
        lambda: import_tflite(path, out / "bundle", labels=path.parent / "labels.txt", normalize="unit"),
    ):
        try:
            step()
        except EdgerecError as error:
            refused = refused or error
    if refused is not None:
        raise refused


def forked(code: str, *arguments: str, content: bytes, timeout_s: float) -> Any:
    """Replacement for ``run_python`` that forks this process, which is faster because all modules are imported."""
    from edgerec.runtime.interpreter import open_interpreter
    from edgerec.tflite.probing import child
    from edgerec.utils.child_process import Outcome

    with tempfile.TemporaryFile() as model, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        model.write(content)
        model.seek(0)
        process = os.fork()
        if not process:
            try:
                for number, file in enumerate((model, output, errors)):
                    os.dup2(file.fileno(), number)
                sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
                child(open_interpreter, *arguments)
            finally:
                os._exit(1)
        deadline = time.monotonic() + timeout_s
        while not (ended := os.waitpid(process, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                return Outcome(-signal.SIGTERM, failure=f"timed out after {timeout_s:g} s")
            time.sleep(0.002)
        exit_code = os.waitstatus_to_exitcode(ended[1])
        output.seek(0)
        errors.seek(0)
        texts = output.read().decode(errors="replace"), errors.read().decode(errors="replace")
        return Outcome(exit_code, *texts, f"crashes with {signal.Signals(-exit_code).name}" if exit_code < 0 else "")


TARGET = Target(start, make, use)
