"""Quantized models agree with the float model and are full int8, checked in the flatbuffer."""

from __future__ import annotations

import gzip
import json
import re
import sys

import numpy as np
import pytest

from edgerec import Recipe, Run, fit, quantize
from edgerec.compress import calibration
from edgerec.compress.accuracy_drop import check_drop
from edgerec.compress.convert import check_int8, to_float32, to_int8
from edgerec.compress.variant_report import QuantizeReport
from edgerec.compression_methods import MORE_EPOCHS
from edgerec.contract.tensors import Normalize, pixel_table
from edgerec.errors import GateError, ModelError, OutputExistsError, RecipeError
from edgerec.runtime.image_model import ImageModel
from edgerec.tflite.edgetpu import diagnose
from edgerec.tflite.flatbuffer import float_tensors, pack, parse, read_graph, weight_sparsity
from tests.conftest import error_line


def is_full_int8(content: bytes, normalize: str = "unit") -> None:
    graph = read_graph(content)
    assert float_tensors(graph) == []
    (image,), (scores,) = graph.inputs, graph.outputs
    assert (image.dtype, scores.dtype) == ("UINT8", "UINT8")
    assert image.shape[0] == scores.shape[0] == 1
    assert all(-1 not in tensor.shape for tensor in graph.tensors)
    model = ImageModel(content, Normalize.named(normalize))
    assert pixel_table(Normalize.named(normalize), model.input) is None


def test_qat_is_full_int8_and_small(run):
    report = run.variants()["int8-qat"]
    content = (run.variant("int8-qat") / "model.tflite").read_bytes()
    is_full_int8(content)
    keras_row, float_row, trained_row, row = report["forms"]
    assert [r["name"] for r in report["forms"]] == ["keras float32", "float32", "keras qat", "int8-qat"]
    # The deployed model agrees with the trained model with fake quantization.
    assert trained_row["agreement"] > 0.95
    assert trained_row["size_bytes"] == 0
    assert report["agreements"]["keras qat"] >= 0.99
    assert row["size_bytes"] == len(content)
    assert row["gzip_bytes"] == len(gzip.compress(content, mtime=0))
    assert row["size_bytes"] <= 0.27 * float_row["size_bytes"]
    assert float_row["agreement"] == 1.0
    assert row["agreement"] > 0.95
    assert report["drop_points"] == pytest.approx(100 * (keras_row["top1"] - row["top1"]))


def test_ptq_is_full_int8_and_records_its_calibration(run):
    report = quantize(run, "ptq")
    content = (run.variant("int8") / "model.tflite").read_bytes()
    is_full_int8(content)
    dataset, split = run.data()
    indices = calibration.draw("stratified", dataset, split)
    assert report.calibration == {"recipe": "stratified", "images": 200, "digest": indices.digest}
    assert report.forms[-1].agreement > 0.95
    with pytest.raises(OutputExistsError):
        quantize(run, "ptq")


def test_pruning_survives_quantization(run, capsys):
    from edgerec.cli.quantize import show_report

    report = quantize(run, "prune+qat", sparsity=0.5, max_drop=5)
    content = (run.variant("int8-pqat") / "model.tflite").read_bytes()
    is_full_int8(content)
    assert report.sparsity == pytest.approx(weight_sparsity(read_graph(content)))
    assert 0.48 < report.sparsity < 0.6
    # The report separates the effects of pruning, int8 and the conversion.
    names = [form.name for form in report.forms]
    keras_row, _, pruned, trained, row = report.forms
    assert names == ["keras float32", "float32", "keras prune", "keras qat", "int8-pqat"]
    assert pruned.size_bytes == trained.size_bytes == 0
    assert keras_row.agreement == 1.0 > pruned.agreement
    assert report.agreements["keras prune"] > max(0.95, row.agreement - 0.02)
    assert report.agreements["keras qat"] >= 0.99
    show_report(report, json=False)
    agreements = ", ".join(f"{report.agreements[name]:.2%} with {name}" for name in ("keras prune", "keras qat"))
    assert f"agrees   same predicted label on the test images: {agreements}" in capsys.readouterr().out
    assert QuantizeReport.from_dict(run.variants()["int8-pqat"]) == report
    dense = run.variants()["int8-qat"]["forms"][-1]
    assert report.forms[-1].gzip_bytes < 0.8 * dense["gzip_bytes"]


def test_gate_fails_but_keeps_variant_for_examination(recipe, tmp_path):
    trained_run = fit(recipe.override({"train.epochs": 2}), tmp_path / "run")
    # This learning rate destroys the model.
    harmful = trained_run.recipe.override({"compress.learning_rate": 5.0, "compress.max_drop": 1.0})
    (trained_run.path / "recipe.toml").write_text(harmful.to_toml())
    with pytest.raises(GateError, match=r"int8-qat loses .* --max-drop allows 1"):
        quantize(trained_run, "qat")
    assert trained_run.variants()["int8-qat"]["drop_points"] > 1


@pytest.mark.parametrize(
    ("variant", "advice"),
    [
        ("int8", "try --method qat, or increase --max-drop"),
        ("int8-qat", f"try {MORE_EPOCHS}, or increase --max-drop"),
        ("int8-pruned", f"try --method prune+qat, {MORE_EPOCHS}, a lower compress.sparsity, or increase --max-drop"),
        ("int8-pcqat", f"try {MORE_EPOCHS}, a lower compress.sparsity, more compress.clusters, or increase --max-drop"),
        ("float16", "increase --max-drop"),
    ],
)
def test_gate_recommends_options_that_are_not_used_yet(variant, advice):
    with pytest.raises(GateError, match=f"--max-drop allows 1: {re.escape(advice)}$"):
        check_drop(variant, 1.0, 0.5, 1.0)


def test_table_is_shown_although_gate_fails(run, monkeypatch):
    from typer.testing import CliRunner

    from edgerec.cli.app import app

    # The variant "dynamic" represents a bad variant, because the replaced gate always fails.
    module = sys.modules["edgerec.compress.quantize"]
    monkeypatch.setattr(module, "check_drop", lambda *figures: check_drop("int8", 1.0, 0.5, 1.0))
    result = CliRunner().invoke(app, ["quantize", str(run.path), "--method", "dynamic"])
    assert result.exit_code == 1
    assert "keras float32" in result.stdout
    assert "int8 loses 50.00 percentage points" in result.stderr


def test_export_refuses_variant_that_fails_gate(run, tmp_path, invoke):
    report = run.variant("int8-qat") / "report.json"
    before = report.read_text()
    values = json.loads(before)
    values["forms"][-1]["top1"] = 0.1
    try:
        report.write_text(json.dumps(values))
        result = invoke("export", run.path, "--variant", "int8-qat", "--out", tmp_path / "b")
        assert "int8-qat loses" in error_line(result)
        assert not (tmp_path / "b").exists()
    finally:
        report.write_text(before)


def test_calibration_images_are_stratified_seeded_and_from_training_set(run, tmp_path):
    dataset, split = run.data()
    first = calibration.draw("stratified", dataset, split)
    assert first.digest == calibration.draw("stratified", dataset, split).digest
    assert len(first.images) == 200
    held_out = {dataset.images[i].tobytes() for i in (*split.test, *split.val)}
    trained = {dataset.images[i].tobytes(): dataset.classes[i] for i in split.train}
    assert not {image.tobytes() for image in first.images} & held_out
    counts = np.bincount([trained[image.tobytes()] for image in first.images])
    assert set(counts) == {20}
    own = tmp_path / "own.toml"
    own.write_text("images = 7\nseed = 3\n")
    assert len(calibration.draw(str(own), dataset, split).images) == 7
    own.write_text("image = 7\n")
    with pytest.raises(RecipeError, match="did you mean 'images'"):
        calibration.draw(str(own), dataset, split)
    with pytest.raises(RecipeError, match="did you mean 'stratified'"):
        calibration.draw("stratifed", dataset, split)


def test_pin_range_changes_two_values():
    images = np.full((3, 4, 4, 1), 100, np.uint8)
    pinned = calibration.pin_range(images)
    assert (pinned != images).sum() == 2
    assert (pinned.min(), pinned.max()) == (0, 255)


def test_check_int8_refuses_float_tensors_and_wrong_input_scale(run):
    float32 = to_float32(run.model())
    with pytest.raises(ModelError, match="float tensors"):
        check_int8(float32, Normalize.named("unit"))
    # The model is calibrated on dark images only, so its input scale does not match the pixels.
    dark = np.random.default_rng(0).random((20, 28, 28, 1), np.float32) / 2
    with pytest.raises(ModelError, match="does not equal the pixel values"):
        check_int8(to_int8(run.model(), dark), Normalize.named("unit"))


@pytest.mark.parametrize("batch", [2, -1])
def test_check_int8_refuses_other_batch_sizes(run, bundle, batch):
    model = parse((bundle / "model.tflite").read_bytes())
    image = model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]]
    check_int8(pack(model), run.recipe.normalize)
    if batch == -1:
        image.shapeSignature = [batch, *image.shape[1:]]
    else:
        image.shape, image.shapeSignature = [batch, *image.shape[1:]], None
    with pytest.raises(ModelError, match=rf"input shape \[{batch}, 28, 28, 1\], expected a batch size of 1"):
        check_int8(pack(model), run.recipe.normalize)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1c\0\0\0TFL3" + b"\xff" * 200])
def test_file_that_is_not_a_flatbuffer_is_refused(content):
    with pytest.raises(ModelError):
        read_graph(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "methods"),
    [
        ("simple_cnn", ["prune"]),
        pytest.param("resnet8", ["qat"], marks=pytest.mark.nightly),
        # MobileNet V1 has the head that ImageNet weights require.
        pytest.param("mobilenet_v1", ["prune"], marks=pytest.mark.nightly),
        pytest.param("mobilenet_v2", ["qat"], marks=pytest.mark.nightly),
    ],
)
def test_architecture_becomes_full_int8(arch, methods, image_folder, tmp_path, monkeypatch):
    """Training and compression give a full int8 model that the Edge TPU supports."""
    import tf_keras

    # Do not download weights; everything else is real.
    real = tf_keras.applications.MobileNet
    monkeypatch.setattr(tf_keras.applications, "MobileNet", lambda **options: real(**(options | {"weights": None})))
    recipe = Recipe.from_dict(
        {
            "data": {"source": str(image_folder), "input_size": 32, "normalize": "signed"},
            "model": {"arch": arch, "width": 0.25, "weights": "imagenet" if arch == "mobilenet_v1" else "none"},
            "train": {"epochs": 1},
            "compress": {"epochs": 1, "max_drop": 100.0},
        }
    )
    trained_run = fit(recipe, tmp_path / "run")
    assert all(not hasattr(layer, "layers") for layer in trained_run.model().layers)  # flat
    for method in methods:
        report = quantize(trained_run, method)
        content = (trained_run.variant(report.variant) / "model.tflite").read_bytes()
        is_full_int8(content, "signed")
        assert diagnose(read_graph(content)).findings == ()
        if "prune" in method:
            # Depthwise kernels are not pruned, because they are few and important for accuracy.
            assert report.sparsity > 0.45


def test_pruning_reaches_sparsity_in_one_step(image_folder, tmp_path):
    trained_run = fit(Recipe().override({"data.source": str(image_folder), "train.epochs": 1}), tmp_path / "run")
    assert quantize(trained_run, "prune", sparsity=0.5, epochs=1, max_drop=100).sparsity > 0.45


def test_unfinished_run_is_refused(tmp_path, invoke):
    assert "is not a run" in error_line(invoke("quantize", tmp_path))
    (tmp_path / "recipe.toml").write_text("")
    (tmp_path / "split.json").write_text("{}")
    assert "is unfinished: resume it with edgerec train --resume" in error_line(invoke("quantize", tmp_path))


def test_wrong_options_are_refused(run, invoke):
    assert "compress.method is 'qta', expected auto, float16" in error_line(
        invoke("quantize", run.path, "--method", "qta")
    )
    prune = ("quantize", run.path, "--method", "prune")
    assert "compress.sparsity is 2.0" in error_line(invoke(*prune, "--sparsity", "2"))
    assert (
        "--sparsity has no effect with --method qat: omit it, or choose a method that uses it, such as --method prune"
        in error_line(invoke("quantize", run.path, "--method", "qat", "--sparsity", "0.5"))
    )
    assert "--clusters has no effect with --method prune: omit it" in error_line(invoke(*prune, "--clusters", "8"))
    assert "unknown layer 'conv'" in error_line(invoke(*prune, "--skip", "conv"))


def test_quantize_prints_json(run, invoke):
    result = invoke("quantize", run.path, "--method", "qat", "--overwrite", "--json")
    assert result.returncode == 0, result.stderr
    value = json.loads(result.stdout)
    assert value["variant"] == "int8-qat"
    assert [row["name"] for row in value["forms"]] == ["keras float32", "float32", "keras qat", "int8-qat"]
    assert {"top1", "agreement", "size_bytes", "gzip_bytes"} <= set(value["forms"][0])
    assert Run.open(run.path).variants()["int8-qat"]["model_sha256"] == value["model_sha256"]
