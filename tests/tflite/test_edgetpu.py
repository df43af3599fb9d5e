"""What the Edge TPU's compiler does with a model, predicted; and the compiler, for which a script stands in."""

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
from edgerec.tflite.edgetpu import compiled, compiler, diagnose, left_on_cpu
from edgerec.tflite.edgetpu.partition import mapped
from edgerec.tflite.edgetpu.rules import refused
from edgerec.tflite.flatbuffer import Graph, Operator, Tensor, read_graph
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
def test_every_operator_is_where_the_compiler_put_it(real_data, name):
    before, after = (read_graph(path.read_bytes()) for path in pair(real_data, name))
    left = left_on_cpu(before, after)
    kept = [operator for operator in after.operators if operator.name != compiler.CUSTOM]
    assert len(left) == len(kept)  # every operator of the compiled file was found again
    predicted = {operator.index for operator in diagnose(before).operators if operator.on == "cpu"}
    assert predicted == left


def test_inspect_tells_it_as_json(real_data, edgerec):
    before, after = pair(real_data, "deeplabv3_mnv2_dm05_pascal_quant")
    value = json.loads(edgerec("inspect", before, "--target", "coral-usb", "--json").stdout)
    left = left_on_cpu(read_graph(before.read_bytes()), read_graph(after.read_bytes()))
    assert [operator["index"] for operator in value["operators"]] == list(range(72))
    assert {operator["index"] for operator in value["operators"] if operator["on"] == "cpu"} == left
    by_index = {operator["index"]: operator for operator in value["operators"]}
    assert by_index[64]["reason"] == "it resizes 1×1 to 33×33, which loses precision there"
    assert by_index[66]["reason"].startswith("it needs QUANTIZE 'ResizeBilinear1', which stays on the processor")
    assert by_index[71]["reason"] == "the Edge TPU has no such operator"
    assert all(operator["reason"] == "" for operator in value["operators"] if operator["on"] == "edgetpu")
    assert value["edgetpu"]["cpu_macs"] == sum(by_index[index]["macs"] for index in left)
    assert 0.15 < value["edgetpu"]["cpu_macs"] / value["edgetpu"]["macs"] < 0.2


def chain(*names: str, wires: dict[int, tuple[int, ...]] | None = None) -> Graph:
    """Operators in order, each of which takes what the one before gives, or those in ``wires`` (−1: the input)."""
    tensors = [Tensor(f"t{i}", "INT8", (1, 4), (1.0,), (0,), None, 0, i) for i in range(len(names) + 1)]
    operators = tuple(
        Operator(
            i, name, 1, tuple(tensors[before + 1] for before in (wires or {}).get(i, (i - 1,))), (tensors[i + 1],), None
        )
        for i, name in enumerate(names)
    )
    return Graph(tuple(tensors), operators, (tensors[0],), (tensors[-1],), 1)


@pytest.mark.parametrize(
    ("graph", "not_there", "on_chip"),
    [
        (chain("A", "B", "C"), (), {0, 1, 2}),
        (chain("A", "B", "C"), (0, 1, 2), set()),
        (chain("A", "B", "C", "D"), (2,), {0, 1}),  # what follows stays, though nothing is wrong with it
        (chain("A", "B", "C", "D"), (0,), {1, 2, 3}),  # what comes first delays, and does not end
        (chain("A", "B", "C", "D"), (0, 2), {1}),
        # A branch behind a refused operator that needs nothing of it, as in MoveNet; and where they meet.
        (chain("A", "B", "C", "D", wires={2: (0,), 3: (1, 2)}), (1,), {0, 2}),
        # Two branches from the input, of which the first begins with a refused operator.
        (chain("A", "B", "C", "D", wires={1: (-1,), 2: (0,), 3: (1,)}), (0,), {1, 2, 3}),
        # The largest part is not the one that is taken: the first is (google-coral/edgetpu issue 342).
        (chain("A", "B", "C", "D", "E"), (1,), {0}),
    ],
)
def test_one_part_is_mapped_the_first(graph, not_there, on_chip):
    assert mapped(graph, not_there) == on_chip


def test_the_upsampling_of_feature_pyramids_is_mapped():
    shapes = [(1, 5, 5, 8), (1, 5, 5, 2, 8), (1, 5, 2, 5, 2, 8), (1, 10, 10, 8)]
    tensors = [Tensor(f"t{i}", "INT8", shape, (1.0,), (0,), None, 0, i) for i, shape in enumerate(shapes)]
    pack = tflite_schema().PackOptionsT()
    pack.axis = 3
    versions = {"PACK": 0, "RESHAPE": 0}
    wide, high, back = (
        Operator(i, name, 1, (tensors[i],) * count, (tensors[i + 1],), pack)
        for i, (name, count) in enumerate((("PACK", 2), ("PACK", 2), ("RESHAPE", 1)))
    )
    assert [refused(operator, versions) for operator in (wide, high, back)] == [None, None, None]
    other = replace(tensors[0], name="another")
    mixed = replace(wide, inputs=(tensors[0], other))
    assert "only the three innermost dimensions may exceed 1" in refused(mixed, versions)


@pytest.fixture(scope="module")
def small():
    """Makes small models with TensorFlow: a convolution, perhaps hard-swish, and a dense layer."""
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


def test_a_whole_int8_model_is_mapped_whole(small):
    diagnosis = diagnose(read_graph(small("int8")))
    assert {operator.on for operator in diagnosis.operators} == {"edgetpu"}
    assert (diagnosis.findings, diagnosis.cpu_macs) == ((), 0)
    assert diagnosis.macs == 36 * 4 * 27 + 16 * 4 * 36 + 4 * 5


def test_a_float_model_is_refused(small):
    diagnosis = diagnose(read_graph(small("float")))
    assert {operator.on for operator in diagnosis.operators} == {"cpu"}
    assert all("FLOAT32, expected 8-bit integers" in operator.reason for operator in diagnosis.operators)
    assert all("edgerec quantize" in finding.way_out for finding in diagnosis.findings)


def test_a_dynamic_batch_is_refused(small):
    diagnosis = diagnose(read_graph(small("int8", batch=None)))
    assert {operator.on for operator in diagnosis.operators} == {"cpu"}
    assert "dynamic shape [-1, 8, 8, 3]" in diagnosis.findings[0].reason
    assert "batch_size=1" in diagnosis.findings[0].way_out
    assert all("dynamic" in operator.reason for operator in diagnosis.operators)


def test_sixteen_bits_are_refused(small):
    diagnosis = diagnose(read_graph(small("int16x8")))
    assert {operator.on for operator in diagnosis.operators} == {"cpu"}
    assert any("INT16, expected 8-bit integers" in operator.reason for operator in diagnosis.operators)


def test_hard_swish_splits_the_model(small):
    diagnosis = diagnose(read_graph(small("int8", swish=True)))
    placed = [(operator.op, operator.on) for operator in diagnosis.operators]
    at = [op for op, _ in placed].index("HARD_SWISH")
    assert {on for _, on in placed[:at]} == {"edgetpu"}
    assert {on for _, on in placed[at:]} == {"cpu"}
    assert diagnosis.operators[at].reason == "the Edge TPU has no such operator"
    assert "HARD_SWISH" in diagnosis.operators[at + 1].reason
    assert [finding.way_out for finding in diagnosis.findings if finding.op == "HARD_SWISH"] == [
        "train it with ReLU6 in its place (MobileNetV3 minimalistic)"
    ]
    assert 0 < diagnosis.cpu_macs < diagnosis.macs
    assert findings(read_graph(small("int8", swish=True)), b"", CORAL)


def test_versions_that_its_compiler_does_not_know_are_refused(real_data):
    graph = read_graph(pair(real_data, PAIRS[0])[0].read_bytes())
    first = graph.operators[0]
    newer = Operator(first.index, first.name, 6, first.inputs, first.outputs, first.options)
    changed = Graph(graph.tensors, (newer, *graph.operators[1:]), graph.inputs, graph.outputs, 1)
    finding = diagnose(changed).findings[0]
    assert finding.reason == "it is of version 6, the compiler knows up to 5"


def test_parameters_beyond_the_chip_are_a_remark(real_data, tmp_path):
    (tmp_path / "small.toml").write_text('like = "coral-usb"\nparameter_bytes = 100000\n')
    graph = read_graph(pair(real_data, PAIRS[0])[0].read_bytes())
    diagnosis = diagnose(graph, Target.load(str(tmp_path / "small.toml")))
    assert diagnosis.findings == ()
    assert diagnosis.parameter_bytes > 400_000
    assert diagnosis.chip_bytes == 100_000
    assert "sent over USB for each picture" in diagnosis.remarks[0]


def script(folder, text, monkeypatch) -> None:
    """A stand-in for Google's closed compiler, on the PATH; called as ``-s -o FOLDER MODEL``."""
    path = folder / "edgetpu_compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


SAID = """Edge TPU Compiler version 16.0.384591198
Number of operations that will run on Edge TPU: 64
Operator                       Count      Status

CONV_2D                        2          More than one subgraph is not supported
CONV_2D                        36         Mapped to Edge TPU
RESIZE_BILINEAR                1          Image-interpolation layer won't run precisely enough on Edge TPU
"""


def test_the_compiler_is_compared_with_the_prediction(real_data, tmp_path, monkeypatch, caplog):
    before, after = pair(real_data, "deeplabv3_mnv2_dm05_pascal_quant")
    (tmp_path / "said").write_text(SAID)
    script(tmp_path, f'cat {tmp_path}/said; cp {after} "$3/model_edgetpu.tflite"', monkeypatch)
    report = compiled(before.read_bytes(), CORAL)
    assert report.content == after.read_bytes()
    assert report.differences == ()
    assert (report.statuses[0].op, report.statuses[0].count) == ("CONV_2D", 2)
    assert len(report.statuses) == 3
    assert inspect(before, "coral-usb").compiler == report
    assert inspect(before, "coral-usb", compiler=False).compiler is None
    # A newer compiler may leave everything where it was; the log file counts as much as what was printed.
    script(tmp_path, f'cp {tmp_path}/said "$3/model_edgetpu.log"; cp "$4" "$3/model_edgetpu.tflite"', monkeypatch)
    report = compiled(before.read_bytes(), CORAL)
    assert len(report.differences) == 64
    assert "on the cpu (More than one subgraph is not supported), not on the edgetpu" in report.differences[0]
    assert "did otherwise than predicted" in caplog.text


def test_what_a_failing_compiler_said_is_kept(real_data, tmp_path, monkeypatch):
    script(
        tmp_path,
        'echo "ERROR: Registration failed."; echo "Internal compiler error. Aborting!" >&2; exit 1',
        monkeypatch,
    )
    with pytest.raises(TargetError, match=r"exit code 1: Internal compiler error.*all that it said is in ") as caught:
        compiled(pair(real_data, PAIRS[0])[0].read_bytes(), CORAL)
    assert "exit code 1" in inspect(pair(real_data, PAIRS[0])[0], "coral-usb").compiler_error
    kept = Path(str(caught.value).rpartition(" is in ")[2])
    assert kept == cache_folder() / "edgetpu_compiler.log"
    assert "Registration failed" in kept.read_text()


def test_a_hanging_compiler_is_stopped_with_its_children(real_data, tmp_path, monkeypatch):
    script(tmp_path, f"echo working; sleep 60 & echo $! > {tmp_path}/child; wait", monkeypatch)
    monkeypatch.setattr(compiler, "COMPILE_TIMEOUT_S", 1)
    with pytest.raises(TargetError, match=r"timed out after 1 s and was stopped: try again; what it said is in "):
        compiled(pair(real_data, PAIRS[0])[0].read_bytes(), CORAL)
    assert "working" in (cache_folder() / "edgetpu_compiler.log").read_text()
    child = Path("/proc") / (tmp_path / "child").read_text().strip() / "stat"
    for _ in range(200):  # the kernel ends a killed process a moment later
        if not child.exists() or child.read_text().split()[2] == "Z":  # gone, or waits for init to fetch it
            return
        time.sleep(0.05)
    pytest.fail("the compiler's child is still running")
