"""Compression methods and the fine-tuning stages that they share."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest

from edgerec import Recipe, Run, fit, quantize
from edgerec.compress.compare import compare
from edgerec.compress.context import CompressionContext
from edgerec.compress.convert import plain_names, to_int8
from edgerec.compress.finetune import fine_tune
from edgerec.compress.quantize import make
from edgerec.errors import RecipeError
from edgerec.importing.graph_rewriter import copied
from edgerec.runtime.image_model import ImageModel
from edgerec.tflite.flatbuffer import float_tensors, read_graph
from edgerec.utils.progress import ignore
from tests.conftest import error_line, write_red_and_blue_images


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    """A quick run of a network with batch normalization."""
    folder = write_red_and_blue_images(tmp_path_factory.mktemp("data") / "pictures")
    recipe = Recipe.from_dict(
        {
            "data": {"source": str(folder), "input_size": 16},
            "model": {"arch": "resnet8", "width": 0.5},
            "train": {"epochs": 3, "batch_size": 8},
            "compress": {"epochs": 3, "max_drop": 100.0},
        }
    )
    return fit(recipe, tmp_path_factory.mktemp("runs") / "residual")


def weights(content: bytes) -> list[np.ndarray]:
    """Return the int8 weights of a .tflite file, layer by layer."""
    graph = read_graph(content)
    return [
        t.data.view(np.int8).reshape(t.shape)
        for op in graph.operators
        if op.name in ("CONV_2D", "FULLY_CONNECTED")
        for t in op.inputs[1:2]
    ]


@pytest.mark.parametrize(
    ("method", "most", "dtype"), [("float16", 0.52, "FLOAT16"), ("dynamic", 0.28, "INT8"), ("int16x8", 0.29, "INT16")]
)
def test_methods_without_training_have_expected_types_and_sizes(run, method, most, dtype):
    report = quantize(run, method)
    content = (run.variant(method) / "model.tflite").read_bytes()
    graph = read_graph(content)
    assert (report.variant, report.precision) == (method, method)
    assert dtype in {tensor.dtype for tensor in graph.tensors}
    # Inputs are normalized pixels and outputs are scores, so both are float.
    assert graph.inputs[0].dtype == graph.outputs[0].dtype == "FLOAT32"
    assert len(content) < most * report.forms[1].size_bytes
    assert report.forms[-1].agreement > 0.98
    assert report.calibration == {} if method != "int16x8" else report.calibration["images"] == 200


def test_mixed_keeps_named_layers_in_float(run):
    report = quantize(run, "mixed", float_layers="dense")
    graph = read_graph((run.variant("int8-mixed") / "model.tflite").read_bytes())
    kernels = {op.outputs[0].name: op.inputs[1].dtype for op in graph.operators if op.name == "FULLY_CONNECTED"}
    assert sorted(kernels.values()) == ["FLOAT32", "INT8"]
    assert all(op.inputs[1].dtype == "INT8" for op in graph.operators if op.name == "CONV_2D")
    assert (report.precision, report.forms[-1].agreement > 0.98) == ("mixed", True)
    with pytest.raises(RecipeError, match=r"mixed requires compress\.float_layers"):
        quantize(run, "mixed", overwrite=True)


def test_export_refuses_float_variant_for_int8_target(run, invoke, tmp_path):
    if not run.variant("float16").exists():
        quantize(run, "float16")
    result = invoke("export", run.path, "--target", "coral", "--variant", "float16", "--out", tmp_path / "b")
    assert "target coral supports only int8 models, not the variant float16" in error_line(result)
    assert invoke("export", run.path, "--variant", "float16", "--out", tmp_path / "b").returncode == 0


def test_clustering_and_pruning_survive_quantization(run):
    report = quantize(run, "prune+cluster+qat", clusters=8, sparsity=0.6, max_drop=100)
    content = (run.variant("int8-pcqat") / "model.tflite").read_bytes()
    assert float_tensors(read_graph(content)) == []
    for kernel in weights(content):
        # Each output channel has its own scale, so weights are shared only within a channel.
        channels = kernel.reshape(len(kernel), -1)
        assert max(len(np.unique(channel)) for channel in channels) <= 8
    assert report.sparsity > 0.55
    dense = run.variants()["int8-qat"]["forms"][-1]
    assert report.forms[-1].gzip_bytes < 0.6 * dense["gzip_bytes"]


def test_fewer_weight_bits_compress_better(run, tmp_path):
    copied = Run(shutil.copytree(run.path, tmp_path / "run"))
    before = copied.variants()["int8-qat"]["forms"][-1]
    report = quantize(copied, "qat", weight_bits=5, max_drop=100, overwrite=True)
    values = [set(np.unique(kernel)) for kernel in weights((copied.variant("int8-qat") / "model.tflite").read_bytes())]
    assert len(values) == 4
    assert len(set.union(*values)) <= 31  # the same ones in all layers
    assert max(map(max, values)) == 127
    assert abs(report.forms[-1].size_bytes - before["size_bytes"]) < 500
    assert report.forms[-1].gzip_bytes < 0.75 * before["gzip_bytes"]
    with pytest.raises(
        RecipeError,
        match=r"--weight-bits has no effect with --method cluster\+qat: .* --method qat \(or channels",
    ):
        quantize(run, "cluster+qat", weight_bits=5)


def test_skipped_layers_stay_dense(run):
    quantize(run, "prune", sparsity=0.9, skip="logits, conv2d*", max_drop=100, overwrite=True)
    zeros = [
        float((kernel == 0).mean()) for kernel in weights((run.variant("int8-pruned") / "model.tflite").read_bytes())
    ]
    conv1, conv2, hidden, logits = zeros
    assert hidden > 0.85
    assert max(conv1, conv2, logits) < 0.2


def test_constant_schedule_reaches_sparsity(run):
    recipe = run.recipe.override({"compress.schedule": "constant", "compress.method": "prune"})
    with CompressionContext.open(run, recipe, None, ignore) as context:
        assert make(context, overwrite=True).sparsity > 0.48


def test_out_of_memory_is_one_line_and_keeps_existing_variants(run, monkeypatch):
    from typer.testing import CliRunner

    from edgerec.cli.app import app

    def converter(*_):
        raise MemoryError

    before = (run.variant("int8-qat") / "model.tflite").read_bytes()
    monkeypatch.setattr("edgerec.compress.candidate.to_float16", converter)
    result = CliRunner().invoke(app, ["quantize", str(run.path), "--method", "float16", "--overwrite"])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: out of memory: ")
    assert (run.variant("int8-qat") / "model.tflite").read_bytes() == before
    assert not list(run.path.glob(".*partial*"))


class Stopped(Exception):
    """Replaces KeyboardInterrupt, which pytest would handle itself."""


@pytest.mark.nightly
def test_resumed_fine_tuning_equals_uninterrupted_fine_tuning(image_folder, tmp_path, caplog):
    def stop(progress):
        if progress.stage == "quantization-aware training" and progress.text.startswith("epoch 3"):
            raise Stopped

    trained_run = fit(Recipe().override({"data.source": str(image_folder), "train.epochs": 1}), tmp_path / "run")
    settings = {"sparsity": 0.5, "max_drop": 100}
    uninterrupted = quantize(trained_run, "prune+qat", **settings)
    content = (trained_run.variant("int8-pqat") / "model.tflite").read_bytes()
    with pytest.raises(Stopped):
        quantize(trained_run, "prune+qat", **settings, overwrite=True, listener=stop)
    # The existing variant is unchanged.
    assert (trained_run.variant("int8-pqat") / "model.tflite").read_bytes() == content
    with caplog.at_level(logging.INFO, "edgerec"):
        resumed = quantize(trained_run, "prune+qat", **settings, overwrite=True, resume=True)
    log = " ".join(caplog.messages)
    assert "pruning: resuming after epoch 3/3" in log
    assert "quantization-aware training: resuming after epoch 2/3" in log
    assert resumed.sparsity == pytest.approx(uninterrupted.sparsity)
    first, second = (weights(c) for c in (content, (trained_run.variant("int8-pqat") / "model.tflite").read_bytes()))
    differences = np.concatenate(
        [np.abs(a.astype(int) - b.astype(int)).ravel() for a, b in zip(first, second, strict=True)]
    )
    assert (differences <= 1).mean() > 0.99  # sums in another order
    assert not (trained_run.path / "checkpoints" / "int8-pqat").exists()


@pytest.mark.nightly
def test_ranges_are_calibrated_twice_and_frozen_in_the_last_third(residual, monkeypatch):
    from edgerec.compress import qat

    calibrated = []

    def range_ends(quantized):
        return [float(end) for pair in qat.activation_ranges(quantized) for end in pair]

    def twice(quantized, tune):
        calibrate = range_calibrator(quantized, tune)

        def calibrate_twice():
            for _ in range(2):
                calibrate()
                calibrated.append(range_ends(quantized))

        return calibrate_twice

    range_calibrator = qat.range_calibrator
    monkeypatch.setattr(qat, "range_calibrator", twice)
    converted = []
    monkeypatch.setattr("edgerec.compress.candidate.to_int8", lambda model: converted.append(model) or to_int8(model))
    quantize(residual, "qat", overwrite=True)
    first, second, third, fourth = calibrated
    # The initial range of ±6 has no effect any more: each range after a ReLU begins or ends at zero.
    assert not any(abs(abs(value) - 6) < 1e-3 for value in first)
    assert 0.0 in first
    # A second calibration changes nothing, so the ranges do not depend on where they start.
    assert np.allclose(first, second, rtol=0.02, atol=0.02)
    assert np.allclose(third, fourth, rtol=0.02, atol=0.02)
    # Training changes the ranges before the last third of the epochs, but not in the last third.
    assert not np.allclose(second, third, rtol=0.02, atol=0.02)
    assert range_ends(converted[0]) == fourth
    # The batch-normalization statistics are exactly those of the float model.
    trained = {v.name: v.numpy() for v in residual.model().variables if "/moving_" in v.name}
    final = {v.name: v.numpy() for v in converted[0].variables}
    assert trained
    assert [name for name, value in trained.items() if not np.array_equal(final[name], value)] == []


def test_learning_rate_depends_on_method_and_teacher(run, tmp_path):
    rate = run.recipe.train.learning_rate
    with CompressionContext.open(run, run.recipe, None, ignore) as context:
        qat, labels, smaller = (
            changed.fine_tune(tmp_path)
            for changed in (
                context.with_method("qat"),
                replace(context, recipe=context.recipe.override({"compress.teacher_weight": 0.0})),
                context.with_method("prune+qat"),
            )
        )
    assert qat.learning_rate == pytest.approx(0.01 * rate)
    assert labels.learning_rate == smaller.learning_rate == pytest.approx(0.1 * rate)
    assert qat.retraining_rate == smaller.retraining_rate == rate


def test_fine_tuning_with_teacher_approaches_float_outputs(run, tmp_path):
    def smaller():
        model = copied(run.model())
        model.set_weights([0.8 * array for array in model.get_weights()])
        return model

    final_weights = []
    with CompressionContext.open(run, run.recipe, None, ignore) as context:
        base = replace(
            context.fine_tune(tmp_path), epochs=1, learning_rate=2e-4
        )  # enough to show which outputs the weights approach
        feed = base.feed

        def wrong_labels(epoch, indices):
            return feed(epoch, indices).map(lambda pixels, classes: (pixels, 0 * classes))

        for number, (labeled, weight) in enumerate([(feed, 1.0), (wrong_labels, 1.0), (wrong_labels, 0.0)]):
            tune = replace(base, feed=labeled, teacher_weight=weight, checkpoints=tmp_path / str(number))
            final_weights.append(fine_tune(smaller, tune, "fine-tuning").get_weights())

        def max_difference(first, second):
            return max(np.abs(a - b).max() for a, b in zip(first, second, strict=True))

        with_teacher, unlabeled, labeled = final_weights
        # The labels have no effect (only the order of sums differs), but the weights are trained.
        assert 20 * max_difference(with_teacher, unlabeled) < min(
            max_difference(with_teacher, labeled), max_difference(with_teacher, smaller().get_weights())
        )
        # The fine-tuned model is closer to the float model.
        model, start = smaller(), smaller()
        model.set_weights(with_teacher)
        pixels, _ = next(iter(base.plain))
        distances = [float(base.teacher(pixels, scored(pixels))) for scored in (start, model, context.model)]
        assert distances[2] == pytest.approx(0, abs=1e-5)
        assert distances[1] < 0.5 * distances[0]


def test_plain_names_make_file_smaller_without_changing_model(residual):
    from edgerec.compress.fake_quantization import with_fake_quantization

    quantized = with_fake_quantization(residual.model(), residual.recipe.normalize)
    content = to_int8(quantized)
    plain = plain_names(content)
    before, after = read_graph(content), read_graph(plain)
    names = [tensor.name for tensor in after.tensors]
    layer = next(layer.name for layer in quantized.layers[::-1] if "conv2d" in layer.name).removeprefix("quant_")
    assert any(f"/quant_{layer}/" in tensor.name for tensor in before.tensors)
    assert sum(f"/{layer}/" in name for name in names) >= 3  # kernel, bias, output
    assert len(set(names)) == len(names)
    assert not any("quant_" in name or "PerChannel" in name for name in names)
    assert len(plain) < 0.85 * len(content)
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert (old.dtype, old.shape, old.scales, old.zero_points) == (
            *(new.dtype, new.shape, new.scales, new.zero_points),
        )
        assert (old.data is None) == (new.data is None)
        assert old.data is None or np.array_equal(old.data, new.data)
    models = [ImageModel(c, residual.recipe.normalize) for c in (content, plain)]
    for image in residual.data()[0].images[:20]:
        assert np.array_equal(*(model.invoke(image) for model in models))


def test_compare_measures_all_methods(run, invoke, caplog):
    result = invoke(
        "quantize", run.path, "--compare", "--method", "ptq,qat,prune+qat,float16", "--epochs", "1", "--json"
    )
    assert result.returncode == 0, result.stderr
    value = json.loads(result.stdout)
    assert [row["variant"] for row in value["rows"]] == ["float32", "int8", "int8-qat", "int8-pqat", "float16"]
    reports = run.variants()
    for row in value["rows"]:
        assert row["top1"] == reports[row["variant"]]["forms"][-1]["top1"]
        assert 0 < row["median_ms"] <= row["p95_ms"]
    assert value["threads"] == 1
    assert (run.path / "plots" / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((run.path / "compare.json").read_text()) == value
    with pytest.raises(RecipeError, match="did you mean 'ptq'"):
        compare(run, ["ptqq"])
    with pytest.raises(
        RecipeError, match=r"--sparsity has no effect with --method ptq,qat: omit it, .* --method prune"
    ):
        compare(run, ["ptq", "qat"], sparsity=0.5)
    # Options are passed to the methods. An existing variant with other options is reused, and the log says so.
    with caplog.at_level(logging.INFO, "edgerec"):
        compare(run, ["ptq", "prune+qat"], sparsity=0.7)
    assert "using the existing variant int8-pqat, made with sparsity 0.5 (" in caplog.text
    assert "using the existing variant int8 (" in caplog.text


def test_note_says_that_zeros_do_not_make_model_faster():
    from edgerec.compress.compare import VariantRow, speed_notes

    dense = VariantRow("qat", "int8-qat", 0.9, 0, 1, 1000, 900, 0, 0.5, 0.6)
    pruned = VariantRow("prune+qat", "int8-pqat", 0.9, 0, 1, 1000, 500, 0.5, 0.49, 0.6)
    faster = VariantRow("cluster+qat", "int8-cqat", 0.9, 0, 1, 1000, 500, 0.5, 0.2, 0.6)
    (note,) = speed_notes([dense, pruned, faster])
    assert "do not make the model faster" in note
    assert "int8-pqat takes 0.98 times as long as int8-qat" in note
    assert "int8-cqat" not in note
