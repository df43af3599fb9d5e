"""The predicted and the actual result of the Edge TPU compiler. A shell script replaces the real compiler."""

from __future__ import annotations

import json
import os
import stat
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgerec import inspect
from edgerec.contract.target import Target
from edgerec.errors import TargetError
from edgerec.tflite.compatibility import findings
from edgerec.tflite.edgetpu import compile_for_edgetpu, compiler, diagnose, left_on_cpu
from edgerec.tflite.edgetpu.partition import mapped_operators
from edgerec.tflite.edgetpu.rules import refusal_reason
from edgerec.tflite.flatbuffer import Graph, Operator, Tensor, read_graph
from edgerec.tflite.operators import EDGETPU_CUSTOM
from edgerec.tflite.schema import tflite_schema
from edgerec.utils.atomic import cache_folder

PAIRS = (
    "mobilenet_v1_0.25_128_quant",
    "mobilenet_v1_0.5_160_quant",
    "keras_lstm_mnist_ptq",
    "deeplabv3_mnv2_dm05_pascal_quant",
)
CORAL = Target.load("coral-usb")


def pair(real_data, name) -> tuple[Path, Path]:
    return tuple(real_data / "edgetpu" / f"{name}{end}.tflite" for end in ("", "_edgetpu"))


@pytest.mark.parametrize("name", PAIRS)
def test_predicted_placement_is_the_placement_in_compiled_models_of_google(real_data, name):
    before, after = (read_graph(path.read_bytes()) for path in pair(real_data, name))
    on_cpu = left_on_cpu(before, after)
    unmapped = [operator for operator in after.operators if operator.name != EDGETPU_CUSTOM]
    assert len(on_cpu) == len(unmapped)  # every operator of the compiled file was matched
    predicted = {operator.index for operator in diagnose(before).operators if operator.on == "cpu"}
    assert predicted == on_cpu


def test_inspect_json_contains_placement_and_reason_of_each_operator(real_data, edgerec):
    before, after = pair(real_data, "deeplabv3_mnv2_dm05_pascal_quant")
    value = json.loads(edgerec("inspect", before, "--target", "coral-usb", "--json").stdout)
    on_cpu = left_on_cpu(read_graph(before.read_bytes()), read_graph(after.read_bytes()))
    assert [operator["index"] for operator in value["operators"]] == list(range(72))
    assert {operator["index"] for operator in value["operators"] if operator["on"] == "cpu"} == on_cpu
    by_index = {operator["index"]: operator for operator in value["operators"]}
    assert by_index[64]["reason"] == "it resizes 1×1 to 33×33, which the Edge TPU cannot compute precisely"
    assert by_index[66]["reason"].startswith("it needs the output of QUANTIZE 'ResizeBilinear1', which runs on the CPU")
    assert by_index[71]["reason"] == "the Edge TPU does not support this operator"
    assert all(operator["reason"] == "" for operator in value["operators"] if operator["on"] == "edgetpu")
    assert value["edgetpu"]["cpu_macs"] == sum(by_index[index]["macs"] for index in on_cpu)
    assert 0.15 < value["edgetpu"]["cpu_macs"] / value["edgetpu"]["macs"] < 0.2


def chain(*names: str, wires: dict[int, tuple[int, ...]] | None = None) -> Graph:
    """Return a graph in which each operator reads the output of the previous one.

    ``wires`` contains the operators whose outputs an operator reads instead, by its index; −1 stands for the input.
    """
    tensors = [Tensor(f"t{i}", "INT8", (1, 4), (1.0,), (0,), None, 0, i) for i in range(len(names) + 1)]
    operators = tuple(
        Operator(
            i, name, 1, tuple(tensors[before + 1] for before in (wires or {}).get(i, (i - 1,))), (tensors[i + 1],), None
        )
        for i, name in enumerate(names)
    )
    return Graph(tuple(tensors), operators, (tensors[0],), (tensors[-1],), 1)


@pytest.mark.parametrize(
    ("graph", "refused", "on_chip"),
    [
        (chain("A", "B", "C"), (), {0, 1, 2}),
        (chain("A", "B", "C"), (0, 1, 2), set()),
        (chain("A", "B", "C", "D"), (2,), {0, 1}),  # a supported operator after a refused one is not mapped
        (chain("A", "B", "C", "D"), (0,), {1, 2, 3}),  # refused operators at the start do not prevent mapping
        (chain("A", "B", "C", "D"), (0, 2), {1}),
        # Operator 2 comes after the refused operator 1, but does not depend on it (as in MoveNet). Operator 3 does.
        (chain("A", "B", "C", "D", wires={2: (0,), 3: (1, 2)}), (1,), {0, 2}),
        # Two branches start at the input, and the first one starts with a refused operator.
        (chain("A", "B", "C", "D", wires={1: (-1,), 2: (0,), 3: (1,)}), (0,), {1, 2, 3}),
        # The compiler maps the first part, even if another part is larger (google-coral/edgetpu issue 342).
        (chain("A", "B", "C", "D", "E"), (1,), {0}),
    ],
)
def test_only_the_first_supported_part_is_mapped(graph, refused, on_chip):
    assert mapped_operators(graph, refused) == on_chip


def test_upsampling_with_pack_and_reshape_is_mapped():
    shapes = [(1, 5, 5, 8), (1, 5, 5, 2, 8), (1, 5, 2, 5, 2, 8), (1, 10, 10, 8)]
    tensors = [Tensor(f"t{i}", "INT8", shape, (1.0,), (0,), None, 0, i) for i, shape in enumerate(shapes)]
    pack = tflite_schema().PackOptionsT()
    pack.axis = 3
    versions = {"PACK": 0, "RESHAPE": 0}
    wide, high, back = (
        Operator(i, name, 1, (tensors[i],) * count, (tensors[i + 1],), pack)
        for i, (name, count) in enumerate((("PACK", 2), ("PACK", 2), ("RESHAPE", 1)))
    )
    assert [refusal_reason(operator, versions) for operator in (wide, high, back)] == [None, None, None]
    other = replace(tensors[0], name="another")
    mixed = replace(wide, inputs=(tensors[0], other))
    assert "only the three innermost dimensions may exceed 1" in refusal_reason(mixed, versions)


@pytest.fixture(scope="module")
def small():
    """Return a function that builds a small model: two convolutions, optionally with hard-swish, and a dense layer."""
    import tensorflow as tf

    from edgerec.train.backend import keras

    rng = np.random.default_rng(0)

    def make(kind: str, *, batch: int | None = 1, swish: bool = False) -> bytes:
        layers = keras().layers
        inputs = keras().Input((8, 8, 3), batch_size=batch)
        x = layers.Conv2D(4, 3, name="first")(inputs)
        if swish:
            x = x * tf.nn.relu6(x + 3.0) / 6.0
        x = layers.Conv2D(4, 3, name="second")(x)
        model = keras().Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        if kind != "float":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: (
                [rng.uniform(-4, 4, (1, 8, 8, 3)).astype(np.float32)] for _ in range(4)
            )
            sixteen = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
            eight = tf.lite.OpsSet.TFLITE_BUILTINS_INT8
            converter.target_spec.supported_ops = [sixteen if kind == "int16x8" else eight]
            if kind == "int8":
                converter.inference_input_type = converter.inference_output_type = tf.uint8
        return converter.convert()

    return make


def test_all_operators_of_an_int8_model_are_mapped(small):
    diagnosis = diagnose(read_graph(small("int8")))
    assert {operator.on for operator in diagnosis.operators} == {"edgetpu"}
    assert (diagnosis.findings, diagnosis.cpu_macs) == ((), 0)
    assert diagnosis.macs == 36 * 4 * 27 + 16 * 4 * 36 + 4 * 5


def test_float_model_is_refused(small):
    diagnosis = diagnose(read_graph(small("float")))
    assert {operator.on for operator in diagnosis.operators} == {"cpu"}
    assert all("FLOAT32, expected 8-bit integers" in operator.reason for operator in diagnosis.operators)
    assert all("edgerec quantize" in finding.way_out for finding in diagnosis.findings)


def test_dynamic_batch_size_is_refused(small):
    diagnosis = diagnose(read_graph(small("int8", batch=None)))
    assert {operator.on for operator in diagnosis.operators} == {"cpu"}
    assert "dynamic shape [-1, 8, 8, 3]" in diagnosis.findings[0].reason
    assert "batch_size=1" in diagnosis.findings[0].way_out
    assert all("dynamic" in operator.reason for operator in diagnosis.operators)


def test_int16_activations_are_refused(small):
    diagnosis = diagnose(read_graph(small("int16x8")))
    assert {operator.on for operator in diagnosis.operators} == {"cpu"}
    assert any("INT16, expected 8-bit integers" in operator.reason for operator in diagnosis.operators)


def test_operators_that_depend_on_hard_swish_run_on_the_cpu(small):
    diagnosis = diagnose(read_graph(small("int8", swish=True)))
    placed = [(operator.op, operator.on) for operator in diagnosis.operators]
    at = [op for op, _ in placed].index("HARD_SWISH")
    assert {device for _, device in placed[:at]} == {"edgetpu"}
    assert {device for _, device in placed[at:]} == {"cpu"}
    assert diagnosis.operators[at].reason == "the Edge TPU does not support this operator"
    assert "HARD_SWISH" in diagnosis.operators[at + 1].reason
    assert [finding.way_out for finding in diagnosis.findings if finding.op == "HARD_SWISH"] == [
        "train it with ReLU6 instead (MobileNetV3 minimalistic)"
    ]
    assert 0 < diagnosis.cpu_macs < diagnosis.macs
    assert findings(read_graph(small("int8", swish=True)), b"", CORAL)


def test_operator_version_that_the_compiler_does_not_support_is_refused(real_data):
    graph = read_graph(pair(real_data, PAIRS[0])[0].read_bytes())
    first = graph.operators[0]
    newer = Operator(first.index, first.name, 6, first.inputs, first.outputs, first.options)
    changed = Graph(graph.tensors, (newer, *graph.operators[1:]), graph.inputs, graph.outputs, 1)
    finding = diagnose(changed).findings[0]
    assert finding.reason == "it has version 6, but the compiler supports versions up to 5"


def test_remark_states_that_weights_exceed_the_memory_of_the_chip(real_data, tmp_path):
    (tmp_path / "small.toml").write_text('like = "coral-usb"\nparameter_bytes = 100000\n')
    graph = read_graph(pair(real_data, PAIRS[0])[0].read_bytes())
    diagnosis = diagnose(graph, Target.load(str(tmp_path / "small.toml")))
    assert diagnosis.findings == ()
    assert diagnosis.parameter_bytes > 400_000
    assert diagnosis.chip_bytes == 100_000
    assert "transferred over USB for each image" in diagnosis.remarks[0]


def script(folder, text, monkeypatch) -> None:
    """Put a shell script on the PATH that replaces the compiler. Its arguments are ``-s -o FOLDER MODEL``."""
    path = folder / "edgetpu_compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


COMPILER_OUTPUT = """Edge TPU Compiler version 16.0.384591198
Number of operations that will run on Edge TPU: 64
Operator                       Count      Status

CONV_2D                        2          More than one subgraph is not supported
CONV_2D                        36         Mapped to Edge TPU
RESIZE_BILINEAR                1          Image-interpolation layer won't run precisely enough on Edge TPU
"""


def test_report_lists_differences_between_compiler_and_prediction(real_data, tmp_path, monkeypatch, caplog):
    before, after = pair(real_data, "deeplabv3_mnv2_dm05_pascal_quant")
    (tmp_path / "output").write_text(COMPILER_OUTPUT)
    script(tmp_path, f'cat {tmp_path}/output; cp {after} "$3/model_edgetpu.tflite"', monkeypatch)
    report = compile_for_edgetpu(before.read_bytes(), CORAL)
    assert report.content == after.read_bytes()
    assert report.differences == ()
    assert (report.statuses[0].op, report.statuses[0].count) == ("CONV_2D", 2)
    assert len(report.statuses) == 3
    assert inspect(before, "coral-usb").compiler == report
    assert inspect(before, "coral-usb", compiler=False).compiler is None
    # This compiler maps nothing, and writes its report to the log file instead of stdout.
    script(tmp_path, f'cp {tmp_path}/output "$3/model_edgetpu.log"; cp "$4" "$3/model_edgetpu.tflite"', monkeypatch)
    report = compile_for_edgetpu(before.read_bytes(), CORAL)
    assert len(report.differences) == 64
    reason = "(More than one subgraph is not supported)"
    assert f"runs on the CPU {reason}, but was predicted for the Edge TPU" in report.differences[0]
    assert "the compiler's result differs from the prediction" in caplog.text


def test_output_of_a_failing_compiler_is_saved(real_data, tmp_path, monkeypatch):
    script(
        tmp_path,
        'echo "ERROR: Registration failed."; echo "Internal compiler error. Aborting!" >&2; exit 1',
        monkeypatch,
    )
    with pytest.raises(TargetError, match=r"exit code 1: Internal compiler error.*its output is in ") as excinfo:
        compile_for_edgetpu(pair(real_data, PAIRS[0])[0].read_bytes(), CORAL)
    assert "exit code 1" in inspect(pair(real_data, PAIRS[0])[0], "coral-usb").compiler_error
    saved = Path(str(excinfo.value).rpartition(" is in ")[2])
    assert saved == cache_folder() / "edgetpu_compiler.log"
    assert "Registration failed" in saved.read_text()


def test_compiler_that_times_out_is_stopped_with_its_child_processes(real_data, tmp_path, monkeypatch):
    script(tmp_path, f"echo working; sleep 60 & echo $! > {tmp_path}/child; wait", monkeypatch)
    monkeypatch.setattr(compiler, "COMPILE_TIMEOUT_S", 1)
    with pytest.raises(TargetError, match=r"timed out after 1 s: its output is in "):
        compile_for_edgetpu(pair(real_data, PAIRS[0])[0].read_bytes(), CORAL)
    assert "working" in (cache_folder() / "edgetpu_compiler.log").read_text()
    child = Path("/proc") / (tmp_path / "child").read_text().strip() / "stat"
    for _ in range(200):  # wait, because the kernel ends a killed process with a delay
        if not child.exists() or child.read_text().split()[2] == "Z":  # the process has ended or is a zombie
            return
        time.sleep(0.05)
    pytest.fail("the compiler's child is still running")
