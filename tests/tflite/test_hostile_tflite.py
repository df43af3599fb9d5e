"""A .tflite file that would crash, block or exhaust an interpreter is refused with an error of one line."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from edgerec import evaluate, import_tflite, inspect
from edgerec.errors import ModelError
from edgerec.tflite import probing
from edgerec.tflite.flatbuffer import pack, parse, read_graph
from tests.conftest import error_line
from tests.tflite_models import SIZE, Model, softmax

SQUARE = (1, SIZE, SIZE, 3)
LABELS = "red\ngreen\nblue\n"


def quantized(model: Model, index: int, scale: float) -> None:
    """Change the type of a tensor to int8."""
    tensor = model.graph.tensors[index]
    tensor.type, tensor.quantization = model.schema.TensorType.INT8, model.schema.QuantizationParametersT()
    tensor.quantization.scale = np.array([scale], np.float32)
    tensor.quantization.zeroPoint = np.array([0], np.int64)


def crashing() -> bytes:
    """Return a model whose preparation aborts: the output of an int8 addition has no scale."""
    model = Model().add("QUANTIZE", SQUARE)
    quantized(model, model.last, 0.5)
    model.add("ADD", SQUARE, model.last)
    quantized(model, model.last, 0.5)
    model.graph.tensors[model.last].quantization.scale = np.array([], np.float32)
    return softmax(model.add("DEQUANTIZE", SQUARE)).to_bytes()


def endless() -> bytes:
    """Return a model with a WHILE loop whose condition is always true."""
    model = Model()
    schema = model.schema
    model.add("WHILE", SQUARE)
    operator = model.graph.operators[-1]
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.WhileOptions, schema.WhileOptionsT()
    operator.builtinOptions.condSubgraphIndex, operator.builtinOptions.bodySubgraphIndex = 1, 2
    for number in (1, 2):
        graph = schema.SubGraphT()
        shapes = [SQUARE, (1,) if number == 1 else SQUARE]
        graph.tensors = []
        for shape in shapes:
            tensor = schema.TensorT()
            tensor.shape, tensor.name, tensor.buffer = np.array(shape, np.int32), b"t", 0
            graph.tensors.append(tensor)
        graph.operators = []
        graph.inputs, graph.outputs = np.array([0], np.int32), np.array([0], np.int32)
        if number == 1:
            graph.tensors[1].type = schema.TensorType.BOOL
            buffer = schema.BufferT()
            buffer.data = np.ones(1, np.uint8)
            model.model.buffers.append(buffer)
            graph.tensors[1].buffer, graph.outputs = len(model.model.buffers) - 1, np.array([1], np.int32)
        model.model.subgraphs.append(graph)
    return softmax(model).to_bytes()


def model_with_huge_tensors() -> bytes:
    """Return a small model with tensors of 12 GB."""
    paddings = np.array([[0, 0], [0, 1 << 15], [0, 1 << 15], [0, 0]])
    return softmax(Model().add("PAD", (1, SIZE + (1 << 15), SIZE + (1 << 15), 3), paddings)).to_bytes()


# Hostile models with a time limit in seconds and the reason in the error. Only the endless model runs until the limit.
HOSTILE = {
    "crashing": (crashing, 60.0, "the interpreter crashed with SIGABRT"),
    "endless": (endless, 4.0, "the interpreter timed out after 4 s"),
    "huge": (model_with_huge_tensors, 60.0, "cannot load the model"),
}


@pytest.fixture
def labels(tmp_path):
    (tmp_path / "labels.txt").write_text(LABELS)
    return tmp_path / "labels.txt"


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    """Use an empty cache of checked models."""
    monkeypatch.setenv("EDGEREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "runnable-models"


@pytest.mark.parametrize("name", HOSTILE)
def test_model_that_ends_its_process_is_refused(name, tmp_path, labels, monkeypatch):
    create, timeout_s, reason = HOSTILE[name]
    monkeypatch.setattr(probing, "TIMEOUT_S", timeout_s)
    path = tmp_path / "model.tflite"
    path.write_bytes(create())
    assert reason in inspect(path).interpreter_error
    with pytest.raises(ModelError, match=f"cannot be run: .*{reason}"):
        import_tflite(path, tmp_path / "bundle", labels=labels, normalize="unit")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["labels.txt", "model.tflite"]


def with_model(bundle, content: bytes, path):
    """Write a copy of a bundle with another model and its correct digest."""
    shutil.copytree(bundle, path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["model.tflite"] = probing.sha256(content)
    (path / "model.tflite").write_bytes(content)
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def test_every_command_reports_a_model_that_crashes_in_one_line(tmp_path, labels, bundle, golden_images, edgerec):
    (tmp_path / "model.tflite").write_bytes(crashing())
    copy = with_model(bundle, crashing(), tmp_path / "copy")
    for arguments in (
        ("import", tmp_path / "model.tflite", "--labels", labels, "--normalize", "unit", "--out", tmp_path / "new"),
        ("evaluate", tmp_path / "model.tflite", "--labels", labels, "--normalize", "unit", "--data", "digits"),
        ("predict", copy, golden_images[0]),
        ("verify", copy),
        ("benchmark", copy, "--seconds", "0.1"),
        ("camera", copy, "--source", golden_images[0].parent, "--headless"),
    ):
        assert "cannot be run: the interpreter crashed with SIGABRT" in error_line(edgerec(*arguments))


def test_a_model_is_run_in_a_child_process_only_once(tmp_path, fresh_cache, bundle, monkeypatch):
    # No other test runs this model, so that this process does not know it yet.
    content = softmax(scale=0.0123).to_bytes()
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    assert not inspect(path).interpreter_error
    assert len(list(fresh_cache.iterdir())) == 1
    code = (
        "import sys, subprocess; from edgerec.runtime.interpreter import open_interpreter\n"
        "sys.addaudithook(lambda event, _: event == 'subprocess.Popen' and sys.exit('a child process'))\n"
        f"open_interpreter(open({str(path)!r}, 'rb').read())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    (next(fresh_cache.iterdir())).unlink()
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 1


def test_models_are_checked_without_a_cache_folder(tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    path.write_bytes(softmax(scale=0.07).to_bytes())
    for folder in (tmp_path / "model.tflite" / "x", "/proc/nothing"):
        monkeypatch.setenv("EDGEREC_CACHE", str(folder))
        assert not inspect(path).interpreter_error


def change(content: bytes, **changes) -> bytes:
    """Return a model after a change of its first subgraph."""
    model = parse(content)
    graph = model.subgraphs[0]
    for name, value in changes.items():
        setattr(graph, name, value(graph))
    return pack(model)


def _with_inputs(number: int, indexes: list[int]):
    def apply(graph):
        graph.operators[number].inputs = np.array(indexes, np.int32)
        return graph.operators

    return apply


def _cycle(graph):
    """Let the first operator read the output of the last."""
    graph.operators[0].inputs = np.array([graph.operators[-1].outputs[0], *graph.operators[0].inputs[1:]], np.int32)
    return graph.operators


INVALID = {
    "operators in a cycle": {"operators": _cycle},
    "operators in another order": {"operators": lambda graph: graph.operators[::-1]},
    "missing input": {"operators": _with_inputs(0, [0])},
    "optional input where none is allowed": {"operators": _with_inputs(0, [-1, 1])},
    "unknown input": {"operators": _with_inputs(0, [0, 1 << 20])},
    "too many inputs": {"operators": _with_inputs(0, [0, 1, 1])},
    "output that nothing computes": {"operators": lambda graph: graph.operators[:-1]},
    "unknown output": {"outputs": lambda graph: np.array([-5], np.int32)},
    "one operator twice": {"operators": lambda graph: [*graph.operators, graph.operators[0]]},
}


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_graph_is_refused_before_a_runtime_reads_it(name, tmp_path, labels):
    content = change(softmax().to_bytes(), **INVALID[name])
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    for function in (
        lambda: read_graph(content),
        lambda: inspect(path),
        lambda: import_tflite(path, tmp_path / "bundle", labels=labels, normalize="unit"),
        lambda: evaluate(path, data="digits", labels=labels, normalize="unit"),
    ):
        with pytest.raises(ModelError, match=r"is a damaged TFLite model \(.*\): copy or convert it again"):
            function()


@pytest.mark.parametrize("called", [-1, 0, 1, 2, 99])
def test_subgraphs_must_exist_and_not_call_themselves(called):
    model = parse(endless())
    operator = model.subgraphs[0].operators[0]
    operator.builtinOptions.bodySubgraphIndex = called
    if called == 2:  # the body calls itself
        model.subgraphs[2].operators, model.subgraphs[2].tensors = [operator], [*model.subgraphs[2].tensors]
        operator.inputs, operator.outputs = np.array([0], np.int32), np.array([1], np.int32)
    if called == 1:  # the reference is valid, although the types of the tensors do not match
        read_graph(pack(model))
        return
    with pytest.raises(ModelError, match="damaged"):
        read_graph(pack(model))


def test_options_of_another_operator_are_refused(tmp_path):
    model = parse(softmax().to_bytes())
    first, last = model.subgraphs[0].operators[0], model.subgraphs[0].operators[-1]
    first.builtinOptions, first.builtinOptionsType = last.builtinOptions, last.builtinOptionsType
    (tmp_path / "model.tflite").write_bytes(pack(model))
    with pytest.raises(ModelError, match=r"operator 0 \(MEAN\) has options of type SoftmaxOptions"):
        inspect(tmp_path / "model.tflite")


def test_missing_options_have_their_default_values(tmp_path):
    model = parse(softmax().to_bytes())
    for operator in model.subgraphs[0].operators:
        operator.builtinOptions, operator.builtinOptionsType = None, 0
    (tmp_path / "model.tflite").write_bytes(pack(model))
    assert read_graph(pack(model)).operators[-1].options.beta == 0.0
    assert inspect(tmp_path / "model.tflite", "coral-usb", compiler=False).findings


@pytest.mark.parametrize("shape", [(), (3,), (1, 2, 3, 4, 5)])
def test_weights_with_another_number_of_dimensions_are_refused_in_one_line(tmp_path, shape):
    model = Model()
    model.add("CONV_2D", SQUARE, np.ones((3, 1, 1, 3)), np.ones(3), strideW=1, strideH=1)
    weights = model.graph.operators[0].inputs[1]
    model.graph.tensors[weights].shape = np.array(shape, np.int32)
    (tmp_path / "model.tflite").write_bytes(softmax(model).to_bytes())
    try:
        fault = inspect(tmp_path / "model.tflite", "coral-usb", compiler=False).interpreter_error
    except ModelError as error:
        fault = str(error)
    assert fault
    assert "\n" not in fault


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory")
def test_libraries_of_the_runtime_do_not_count_toward_the_memory_of_a_model(tmp_path, bundle, monkeypatch):
    runtime = importlib.util.find_spec("ai_edge_litert")
    package = tmp_path / "ai_edge_litert"
    package.mkdir()
    (package / "__init__.py").write_text(f"__path__.append({str(runtime.submodule_search_locations[0])!r})\n")
    (package / "interpreter.py").write_text(
        "import importlib.util, mmap, sys\n"
        f"reserved = mmap.mmap(-1, {4 << 30}, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ)\n"
        f"exec(open({importlib.util.find_spec('ai_edge_litert.interpreter').origin!r}).read())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert probing.probe_model((bundle / "model.tflite").read_bytes()).error == ""
