"""Layer comparison of variants without problems and of variants with typical faults."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from edgerec import Run, parity
from edgerec.compress import calibration
from edgerec.compress.convert import to_float32, to_int8, to_mixed
from edgerec.compress.layer_comparison.extra_outputs import dequantized, with_all_outputs
from edgerec.compress.layer_comparison.findings import LOW_DB, costliest, find_input, find_layers, find_outputs
from edgerec.compress.layer_comparison.graph_matching import layer_name, match
from edgerec.compress.layer_comparison.runner import DEQUANTIZED, FLOAT_MODEL, layer_parity
from edgerec.contract.tensors import Normalize
from edgerec.errors import ModelError, RunError
from edgerec.runtime.image_model import ImageModel
from edgerec.runtime.interpreter import open_interpreter
from edgerec.tflite.flatbuffer import pack, parse, read_graph
from tests.conftest import error_line

UNIT = Normalize.named("unit")


@pytest.fixture(scope="module")
def images(run):
    """48 validation images, uint8."""
    dataset, split = run.data()
    return dataset.images[split.val][:48]


@pytest.fixture(scope="module")
def calibration_pixels(run):
    """The run's calibration images, float32 pixels 0 to 255."""
    return calibration.pin_range(calibration.draw("stratified", *run.data()).images).astype(np.float32)


@pytest.fixture(scope="module")
def float_model(run) -> bytes:
    return (run.variant("float32") / "model.tflite").read_bytes()


@pytest.fixture(scope="module")
def ptq(run, calibration_pixels) -> bytes:
    return to_int8(run.model(), UNIT.apply(calibration_pixels))


@pytest.fixture
def with_variant(run, tmp_path):
    """Return a function that copies the run with the given file as its only compressed variant."""

    def make(content: bytes) -> Run:
        copy = Run(tmp_path / "copy")
        shutil.copytree(run.path, copy.path, ignore=shutil.ignore_patterns("checkpoints", "plots", "int8*"))
        shutil.copytree(run.variant("int8-qat"), copy.variant("int8"))
        (copy.variant("int8") / "model.tflite").write_bytes(content)
        return copy

    return make


def scores(content: bytes, pixels) -> np.ndarray:
    model = ImageModel(content, UNIT)
    return np.stack([model.scores(image) for image in pixels])


def kinds(report) -> list[str]:
    return [finding.kind for finding in report.findings]


def test_intermediate_outputs_leave_scores_bit_identical(run, images, ptq):
    for content in (ptq, (run.variant("int8-qat") / "model.tflite").read_bytes()):
        original, inside = open_interpreter(content), open_interpreter(with_all_outputs(content))
        input_index, output_index = original.get_input_details()[0]["index"], original.get_output_details()[0]["index"]
        for image in images[:16]:
            for interpreter in (original, inside):
                interpreter.set_tensor(input_index, image[np.newaxis])
                interpreter.invoke()
            assert np.array_equal(original.get_tensor(output_index), inside.get_tensor(output_index))


def test_ptq_model_without_problems_has_no_findings(float_model, ptq, images):
    report = layer_parity(float_model, ptq, images, UNIT)
    assert report.reference == FLOAT_MODEL
    assert report.unmatched == 0
    assert list(find_layers(report, "runs/x")) == []
    layers = {layer.name: layer for layer in report.layers}
    assert [layer.operator for layer in report.layers if layer.weight_db] == [
        o.name for o in read_graph(float_model).operators if len(o.inputs) == 3
    ]
    assert layers["input"].sqnr_db == 120
    assert all(layer.sqnr_db > 22 and layer.clipped < 0.2 and layer.finite for layer in report.layers)
    assert all(layer.weight_db > 30 for layer in report.layers if layer.weight_db)
    # A pooling layer adds no noise of its own, but its output has the noise of its input.
    assert layers["max_pooling2d"].own_db == 120 > layers["max_pooling2d"].sqnr_db


def test_sqnr_equals_sqnr_of_reference_kernels(float_model, ptq, images):
    """Compare with the interpreter's option to preserve all tensors, which uses other kernels."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreters = []
    for content in (float_model, ptq):
        interpreter = Interpreter(
            model_content=content,
            experimental_preserve_all_tensors=True,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        interpreter.allocate_tensors()
        interpreters.append(interpreter)
    outputs = [
        next(o.outputs[0] for o in read_graph(c).operators if layer_name(o) == "conv2d_1") for c in (float_model, ptq)
    ]
    signal = noise = 0.0
    for image in images:
        outputs_of_both = []
        for interpreter, stored, output in zip(
            interpreters, (UNIT.apply(image.astype(np.float32)), image), outputs, strict=True
        ):
            interpreter.set_tensor(
                interpreter.get_input_details()[0]["index"],
                stored[np.newaxis].astype(interpreter.get_input_details()[0]["dtype"]),
            )
            interpreter.invoke()
            value = interpreter.get_tensor(output.index).astype(np.float64)
            outputs_of_both.append((value - output.zero_points[0]) * output.scales[0] if output.scales else value)
        signal += (outputs_of_both[0] ** 2).sum()
        noise += ((outputs_of_both[0] - outputs_of_both[1]) ** 2).sum()
    layer = next(layer for layer in layer_parity(float_model, ptq, images, UNIT).layers if layer.name == "conv2d_1")
    assert layer.sqnr_db == pytest.approx(10 * np.log10(signal / noise), abs=0.5)


def test_qat_variant_is_compared_with_its_dequantized_version(run):
    report = parity(run)
    assert (report.variant, report.reference) == ("int8-qat", DEQUANTIZED)
    assert not {"input-scale", "collapse", "dead", "not-finite"} & set(kinds(report))
    assert report.agreement > 0.95
    convolution = next(layer for layer in report.layers if layer.operator == "CONV_2D")
    assert convolution.sqnr_db > LOW_DB
    assert convolution.weight_db is None
    json.dumps(report.to_dict(), allow_nan=False)


def test_dequantized_version_is_close_to_float_model(ptq, float_model, images):
    twin = scores(dequantized(ptq), images)
    assert np.abs(twin - scores(float_model, images)).max() < 0.05  # the weights are rounded
    assert layer_parity(None, ptq, images[:4], UNIT).reference == DEQUANTIZED


def test_layer_with_one_huge_channel_is_named_first(run, images, calibration_pixels, with_variant):
    """Scale one channel by 300, and the next layer's weights for it by 1/300, which keeps the float outputs."""
    model = run.model()
    source, reader = model.get_layer("conv2d_1"), model.get_layer("dense")
    kernel, bias = source.get_weights()
    channels = kernel.shape[-1]
    strongest = int(np.abs(kernel).sum(axis=(0, 1, 2)).argmax())
    kernel[..., strongest] *= 300
    bias[strongest] *= 300
    source.set_weights([kernel, bias])
    weights, offset = reader.get_weights()
    weights[strongest::channels] /= 300
    reader.set_weights([weights, offset])
    float_model, quantized = to_float32(model), to_int8(model, UNIT.apply(calibration_pixels))
    copy = with_variant(quantized)
    (copy.variant("float32") / "model.tflite").write_bytes(float_model)
    report = parity(copy, images=32)
    assert report.reference == FLOAT_MODEL
    assert (report.findings[0].kind, report.findings[0].layer) == ("layer", "conv2d_1")
    assert "half of its channels" in report.findings[0].text
    named = report.findings[0].text.rpartition("--method mixed --float-layers ")[2]
    assert named == "conv2d_1,max_pooling2d_1,flatten,dense"
    # The recommended float layers solve the problem. Without the layers that read the range, the problem remains.
    for names, solved in ((named.split(","), True), (["conv2d_1"], False)):
        mixed = to_mixed(model, UNIT.apply(calibration_pixels), names)
        findings = list(find_layers(layer_parity(float_model, mixed, images[:16], UNIT), "runs/x"))
        assert (findings == []) == solved
    layers = {layer.name: layer for layer in report.layers}
    assert costliest(report.layers).name == "conv2d_1"
    assert layers["conv2d_1"].alone_db < LOW_DB < layers["dense"].alone_db
    # Its SQNR at its own output is high, because the huge channel hides the noise of the others.
    assert layers["conv2d_1"].sqnr_db > LOW_DB > layers["dense"].sqnr_db
    assert report.findings[1].kind == "leaves-float"
    assert report.findings[1].layer == "dense"


@pytest.mark.parametrize("scale", ["not at all", "twice"])
def test_wrong_input_scale_is_detected(run, calibration_pixels, with_variant, scale):
    pixels = calibration_pixels if scale == "not at all" else UNIT.apply(UNIT.apply(calibration_pixels))
    report = parity(with_variant(to_int8(run.model(), pixels)), images=16)
    first = report.findings[0]
    assert (first.kind, first.layer) == ("input-scale", "input")
    assert "2 of 256 pixel values" in first.text
    assert report.layers[0].sqnr_db < LOW_DB
    # Only a range that is too narrow clips values.
    assert (report.layers[0].clipped > 0.1) == (scale == "twice")


def test_input_that_equals_the_pixels_has_no_finding(ptq, float_model):
    for content in (ptq, float_model):
        assert list(find_input(ImageModel(content, UNIT).input, UNIT)) == []
    # The same model used with another normalization.
    (finding,) = find_input(ImageModel(ptq, UNIT).input, Normalize.named("signed"))
    assert "-1 to 0.99" in finding.text


def test_collapse_to_one_class_is_detected(run, calibration_pixels, with_variant):
    model = run.model()
    weights, bias = model.get_layer("logits").get_weights()
    bias[:] = 0
    bias[7] = 5
    model.get_layer("logits").set_weights([np.zeros_like(weights), bias])
    report = parity(with_variant(to_int8(model, UNIT.apply(calibration_pixels))), images=16)
    assert report.findings[0].kind == "collapse"
    assert "'7' for 100% of the validation images" in report.findings[0].text
    assert report.agreement < 0.3


def test_collapse_of_float_model_is_not_attributed_to_int8():
    rng = np.random.default_rng(0)
    spread, collapsed = rng.random((100, 3), np.float32), np.tile(np.float32([0.1, 0.8, 0.1]), (100, 1))
    labels = ("a", "b", "c")
    assert "float model itself" in next(find_outputs(collapsed, collapsed, labels)).text
    assert list(find_outputs(spread, spread, labels)) == []
    assert next(find_outputs(spread, collapsed, labels)).text.startswith("collapse to one class: 'b' for 100%")
    sure = np.eye(3, dtype=np.float32)[spread.argmax(axis=1)]
    assert [finding.kind for finding in find_outputs(spread, sure, labels)] == ["saturated"]


def test_first_layer_with_nan_is_named(run, ptq, images):
    model = run.model()
    kernel, bias = model.get_layer("conv2d_1").get_weights()
    model.get_layer("conv2d_1").set_weights([kernel, bias * np.nan])
    report = layer_parity(to_float32(model), ptq, images[:2], UNIT)
    (finding,) = find_layers(report, "runs/x")
    assert (finding.kind, finding.layer) == ("not-finite", "conv2d_1")


@pytest.fixture(scope="module")
def branched():
    """Two parallel convolutions with equal shapes, added: as float32, float16, dynamic range and int8."""
    import tensorflow as tf
    import tf_keras as keras

    keras.utils.set_random_seed(1)
    inputs = keras.Input((16, 16, 3))
    stem = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(inputs)
    left = keras.layers.Conv2D(8, 3, padding="same", name="left")(stem)
    right = keras.layers.Conv2D(8, 3, padding="same", name="right")(stem)
    joined = keras.layers.Add(name="joined")([keras.layers.Conv2D(8, 3, padding="same", name="deep")(left), right])
    both = keras.layers.Concatenate(name="both")([joined, stem])
    scores = keras.layers.Dense(4, activation="softmax", name="scores")(keras.layers.GlobalAveragePooling2D()(both))
    model = keras.Model(inputs, scores)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)

    def convert(**options) -> bytes:
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        for key, value in options.items():
            setattr(converter.target_spec, key, value)
        return converter.convert()

    calibration_pixels = UNIT.apply(calibration.pin_range(pixels).astype(np.float32))
    return {
        "float32": to_float32(model),
        "int8": to_int8(model, calibration_pixels),
        "float16": convert(supported_types=[tf.float16]),
        "dynamic": convert(),
    }, pixels


def without_names(content: bytes) -> bytes:
    model = parse(content)
    for index, tensor in enumerate(model.subgraphs[0].tensors):
        tensor.name = f"t{index}".encode()
    return pack(model)


def test_parallel_branches_with_equal_shapes_are_matched(branched):
    contents, pixels = branched
    matched = match(read_graph(contents["float32"]), read_graph(contents["int8"]))
    names = [
        (layer_name(reference_operator), layer_name(variant_operator))
        for reference_operator, variant_operator in matched.pairs
    ]
    assert {("left", "left"), ("right", "right"), ("deep", "deep"), ("joined", "joined")} <= set(names)
    named = layer_parity(contents["float32"], contents["int8"], pixels, UNIT)
    unnamed = layer_parity(without_names(contents["float32"]), without_names(contents["int8"]), pixels, UNIT)
    assert [layer.sqnr_db for layer in named.layers] == [layer.sqnr_db for layer in unnamed.layers]
    assert min(layer.sqnr_db for layer in named.layers) > LOW_DB


def test_variants_with_float_activations_have_no_range_figures(branched):
    contents, pixels = branched
    half = layer_parity(contents["float32"], contents["float16"], pixels, UNIT)
    dynamic = layer_parity(contents["float32"], contents["dynamic"], pixels, UNIT)
    assert half.reference == dynamic.reference == FLOAT_MODEL
    assert half.unmatched == dynamic.unmatched == 0
    assert all(layer.clipped is None and layer.range_used is None for layer in half.layers)
    assert all(layer.sqnr_db > 45 for layer in half.layers)
    assert all(layer.weight_db > 60 for layer in half.layers if layer.weight_db)
    joined = next(layer for layer in dynamic.layers if layer.name == "joined")
    assert joined.own_db == 120


def test_incomparable_models_are_refused(run, ptq, float_model, images, with_variant, tmp_path):
    with pytest.raises(
        ModelError, match=r"expects inputs of shape \[1, 28, 28, 1\], but the images have shape \[48, 9"
    ):
        layer_parity(float_model, ptq, images[:, :9], UNIT)
    with pytest.raises(ModelError, match="not a TFLite model"):
        layer_parity(float_model, b"not a model", images, UNIT)
    with pytest.raises(RunError, match=r"unknown variant 'int9'; did you mean 'int8'\?"):
        parity(with_variant(ptq), "int9")
    shutil.rmtree(tmp_path / "copy" / "int8")
    with pytest.raises(RunError, match="no variant to compare with the float model: create one with edgerec quantize"):
        parity(tmp_path / "copy")


def test_parity_command_writes_table_plot_and_json(run, tmp_path, invoke):
    import cv2
    from typer.testing import CliRunner

    from edgerec.cli.app import app

    plot = tmp_path / "layers.png"
    result = CliRunner().invoke(app, ["parity", str(run.path), "--images", "8", "--out", str(plot)])
    assert result.exit_code == 0, result.output
    assert "conv2d_1" in result.stdout
    assert "int8-qat compared with its dequantized version, on 8 validation images" in result.stdout
    height, width, _ = cv2.imread(str(plot)).shape
    assert width > height / 2 > 100
    result = CliRunner().invoke(app, ["parity", str(run.path), "--images", "8", "--json"])
    report = json.loads(result.stdout)
    assert report["images"] == 8
    assert report["layers"][0] | {"name": "input", "sqnr_db": 120.0} == report["layers"][0]
    refused = invoke("parity", run.path, "--out", plot)
    assert "already exists" in error_line(refused)
