"""Inspection of models: operators, cost, memory plan, plot of the graph, and compatibility with targets."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from edgerec import import_tflite, inspect
from edgerec.contract.target import Target, target_names
from edgerec.errors import EdgerecError, TargetError
from edgerec.tflite.compatibility import findings, require_fit
from edgerec.tflite.flatbuffer import pack, parse, read_graph
from edgerec.tflite.graph_plot import BOX_HEIGHT, BOX_WIDTH, graph_plot, layout
from edgerec.tflite.memory import plan
from tests.conftest import error_line


@pytest.fixture(scope="module")
def deeplab(real_data):
    return real_data / "edgetpu" / "deeplabv3_mnv2_dm05_pascal_quant.tflite"


@pytest.fixture(scope="module")
def mobilenet(real_data):
    return real_data / "edgetpu" / "mobilenet_v1_0.25_128_quant.tflite"


def test_json_of_a_bundle_is_complete_and_consistent(bundle, edgerec):
    value = json.loads(edgerec("inspect", bundle, "--json").stdout)
    assert value == json.loads(json.dumps(inspect(bundle).to_dict()))
    assert value["model"] == "model.tflite"
    assert [tensor["dtype"] for tensor in value["inputs"]] == ["uint8"]
    assert value["labels"] == [str(n) for n in range(10)]
    assert value["macs"] == sum(operator["macs"] for operator in value["operators"])
    tensors = {tensor["index"]: tensor for tensor in value["tensors"]}
    for operator in value["operators"]:
        assert operator["layer"] == tensors[operator["outputs"][0]]["name"]
        weights = [tensors[i]["size_bytes"] for i in operator["inputs"] if i is not None and tensors[i]["constant"]]
        assert operator["parameter_bytes"] == sum(weights)
    assert set(value["targets"]) == set(target_names())
    assert set(value["targets"].values()) == {""}  # every target can run an int8 model from edgerec


def test_inspect_prints_a_table(mobilenet, edgerec):
    result = edgerec("inspect", mobilenet, "-t", "coral")
    assert result.returncode == 0, result.stderr
    assert "  0 CONV_2D" in result.stdout
    assert "edge tpu 31 of 31 operators, 0.0% of the multiply-adds stay on the CPU" in result.stdout
    assert "compute  13,570,304 multiply-adds per image, in 31 operators" in result.stdout
    assert "microcontroller  no: CONV_2D" in result.stdout


def test_macs_match_published_numbers(mobilenet, real_data):
    """The MobileNet paper states 14 million for width 0.25 at 128 pixels, and TensorFlow's model zoo 13.6 million."""
    assert inspect(mobilenet).macs == 13_570_304
    assert inspect(real_data / "edgetpu" / "mobilenet_v1_0.5_160_quant.tflite").macs == pytest.approx(77e6, rel=0.02)


def test_memory_of_tensors_with_overlapping_lifetimes_does_not_overlap(deeplab):
    slots = plan(read_graph(deeplab.read_bytes()))
    assert len(slots) == 73  # the input, and one output of each operator
    for number, one in enumerate(slots):
        for other in slots[:number]:
            together = one.first <= other.last and other.first <= one.last
            apart = one.offset >= other.offset + other.size or other.offset >= one.offset + one.size
            assert apart or not together
    largest = max(slot.size for slot in slots)
    assert largest <= max(slot.offset + slot.size for slot in slots) < 1.5 * largest


def test_graph_plot_colors_operators_by_placement(deeplab, tmp_path, edgerec):
    cv2 = pytest.importorskip("cv2")
    pytest.importorskip("matplotlib")
    path = tmp_path / "graph.png"
    assert edgerec("inspect", deeplab, "--plot", path, "--target", "coral-usb").returncode == 0
    image = cv2.imread(str(path))
    assert min(image.shape[:2]) > 800
    # Number of pixels in the BGR colors of three kinds of boxes: 64 operators on the Edge TPU, 3 refused operators, and
    # 5 operators that depend on refused ones.
    on_chip, refused, dependent = (
        int((image == color).all(-1).sum()) for color in ((248, 227, 190), (215, 215, 254), (200, 235, 254))
    )
    assert on_chip / refused == pytest.approx(64 / 3, rel=0.1)
    assert dependent / refused == pytest.approx(5 / 3, rel=0.1)


@pytest.mark.parametrize("target", [None, "microcontroller"])
def test_graph_plot_works_for_targets_without_edge_tpu(mobilenet, tmp_path, target):
    pytest.importorskip("matplotlib")
    graph_plot(inspect(mobilenet, target), tmp_path / "graph.png")
    assert (tmp_path / "graph.png").read_bytes()[:4] == b"\x89PNG"


def test_boxes_do_not_overlap_and_are_below_their_inputs(deeplab):
    report = inspect(deeplab)
    positions = layout(report)
    boxes = list(positions.values())
    for number, one in enumerate(boxes):
        for other in boxes[:number]:
            assert abs(one.x - other.x) >= BOX_WIDTH or abs(one.y - other.y) >= BOX_HEIGHT
    producers = {tensor: operator.index for operator in report.operators for tensor in operator.outputs}
    for operator in report.operators:
        for tensor in operator.inputs:
            if tensor in producers:
                assert positions[producers[tensor]].row < positions[operator.index].row


@pytest.mark.parametrize("shape", ["chain", "branches"])
def test_layout_effort_is_linear_in_the_number_of_operators(mobilenet, shape):
    report = inspect(mobilenet)

    def layout_instructions(count):
        """Return the number of bytecode instructions that laying out ``count`` operators executes."""
        operators = tuple(
            replace(report.operators[0], index=i, inputs=(i if shape == "chain" else 0,), outputs=(i + 1,))
            for i in range(count)
        )
        instructions = 0

        def trace(frame, event, argument):
            nonlocal instructions
            frame.f_trace_opcodes = True
            instructions += event == "opcode"
            return trace

        previous = sys.gettrace()
        sys.settrace(trace)
        try:
            positions = layout(replace(report, operators=operators))
        finally:
            sys.settrace(previous)
        assert len({(position.x, position.y) for position in positions.values()}) == count
        return instructions

    assert layout_instructions(800) < 2.5 * layout_instructions(400)


def test_error_for_other_files_is_one_line(tmp_path, edgerec, mobilenet):
    (tmp_path / "half.tflite").write_bytes(mobilenet.read_bytes()[:5000])
    assert "half.tflite is a damaged TFLite model" in error_line(edgerec("inspect", tmp_path / "half.tflite"))
    (tmp_path / "text.tflite").write_text("no model at all")
    for path, target, message in (
        (tmp_path / "text.tflite", None, "is not a TFLite model"),
        (tmp_path / "none.tflite", None, "cannot be read .No such file"),
        (tmp_path, None, "is not a bundle"),
        (mobilenet, "corel", "did you mean 'coral'"),
    ):
        with pytest.raises(EdgerecError, match=message):
            inspect(path, target)


def test_model_that_was_compiled_for_the_edge_tpu_can_be_inspected(real_data):
    report = inspect(real_data / "edgetpu" / "deeplabv3_mnv2_dm05_pascal_quant_edgetpu.tflite", "desktop")
    assert report.operators[0].op == "CUSTOM edgetpu-custom-op"
    assert any("the compiler's input" in finding.way_out for finding in report.findings)


def test_inspect_does_not_import_tensorflow(mobilenet):
    code = f"import sys, edgerec; edgerec.inspect({str(mobilenet)!r}, 'coral'); print('tensorflow' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "False"


def test_operator_version_that_the_runtime_does_not_support_is_refused(mobilenet, tmp_path):
    """The target for tflite-runtime lists the supported versions, and the target for LiteRT accepts all versions."""
    model = parse(mobilenet.read_bytes())
    model.operatorCodes[0].version = 40
    content, path = pack(model), tmp_path / "newer.tflite"
    path.write_bytes(content)
    (finding, *_) = findings(read_graph(content), content, Target.load("rpi-32bit"))
    assert "it has version 40, but the target's runtime supports versions up to" in finding.reason
    assert findings(read_graph(content), content, Target.load("rpi")) == []
    with pytest.raises(TargetError, match=r"target rpi-32bit cannot run .*newer.tflite: .* it has version 40"):
        require_fit(content, Target.load("rpi-32bit"), str(path))


def test_import_refuses_a_model_that_the_target_cannot_run(mobilenet, tmp_path):
    with pytest.raises(
        TargetError, match=r"microcontroller cannot run .*its input is uint8, .* 29 more: edgerec inspect"
    ):
        import_tflite(mobilenet, tmp_path / "b", target="microcontroller")
    assert not (tmp_path / "b").exists()


def test_every_finding_has_a_reason_and_a_solution(deeplab):
    content = deeplab.read_bytes()
    graph = read_graph(content)
    for name in target_names():
        target = replace(Target.load(name), memory_bytes=1000)
        for finding in findings(graph, content, target):
            assert finding.reason
            assert finding.way_out
