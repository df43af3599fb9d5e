"""The ways to compress, side by side, and the fine-tuning that they share."""

from __future__ import annotations

import json
import logging
import shutil
import sys
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
from edgerec.runtime.model import ImageModel
from edgerec.tflite.flatbuffer import float_tensors, read_graph
from edgerec.train.backend import copied
from edgerec.utils.progress import ignore
from tests.conftest import one_line, red_and_blue


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    """A quick run of a net with batch normalisation."""
    folder = red_and_blue(tmp_path_factory.mktemp("data") / "pictures")
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
    """The int8 weights of a file, by layer."""
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
def test_methods_without_training(run, method, most, dtype):
    report = quantize(run, method)
    content = (run.variant(method) / "model.tflite").read_bytes()
    graph = read_graph(content)
    assert (report.variant, report.precision) == (method, method)
    assert dtype in {tensor.dtype for tensor in graph.tensors}
    # Pixels are normalised outside and scores are real numbers: float at both ends.
    assert graph.inputs[0].dtype == graph.outputs[0].dtype == "FLOAT32"
    assert len(content) < most * report.forms[1].size_bytes
    assert report.forms[-1].agreement > 0.98
    assert report.calibration == {} if method != "int16x8" else report.calibration["images"] == 200


def test_layers_can_stay_float(run):
    report = quantize(run, "mixed", float_layers="dense")
    graph = read_graph((run.variant("int8-mixed") / "model.tflite").read_bytes())
    kernels = {op.outputs[0].name: op.inputs[1].dtype for op in graph.operators if op.name == "FULLY_CONNECTED"}
    assert sorted(kernels.values()) == ["FLOAT32", "INT8"]
    assert all(op.inputs[1].dtype == "INT8" for op in graph.operators if op.name == "CONV_2D")
    assert (report.precision, report.forms[-1].agreement > 0.98) == ("mixed", True)
    with pytest.raises(RecipeError, match="mixed needs --float-layers"):
        quantize(run, "mixed", overwrite=True)


def test_float_variants_do_not_go_where_int8_is_wanted(run, here, tmp_path):
    if not run.variant("float16").exists():
        quantize(run, "float16")
    done = here("export", run.path, "--target", "coral", "--variant", "float16", "--out", tmp_path / "b")
    assert "target coral runs int8, not float16" in one_line(done)
    assert here("export", run.path, "--variant", "float16", "--out", tmp_path / "b").returncode == 0


def test_clustering_and_pruning_survive_quantization(run):
    report = quantize(run, "prune+cluster+qat", clusters=8, sparsity=0.6, max_drop=100)
    content = (run.variant("int8-pcqat") / "model.tflite").read_bytes()
    assert float_tensors(read_graph(content)) == []
    for kernel in weights(content):
        # Each output channel has a scale of its own: what is shared is shared within a channel.
        channels = kernel.reshape(len(kernel), -1)
        assert max(len(np.unique(channel)) for channel in channels) <= 8
    assert report.sparsity > 0.55
    dense = run.variants()["int8-qat"]["forms"][-1]
    assert report.forms[-1].gzip_bytes < 0.6 * dense["gzip_bytes"]


def test_weights_of_fewer_bits_make_a_smaller_download(run, tmp_path):
    copied = Run(shutil.copytree(run.path, tmp_path / "run"))
    before = copied.variants()["int8-qat"]["forms"][-1]
    report = quantize(copied, "qat", weight_bits=5, max_drop=100, overwrite=True)
    found = [set(np.unique(kernel)) for kernel in weights((copied.variant("int8-qat") / "model.tflite").read_bytes())]
    assert len(found) == 4
    assert len(set.union(*found)) <= 31  # the same ones in all layers
    assert max(map(max, found)) == 127
    assert abs(report.forms[-1].size_bytes - before["size_bytes"]) < 500
    assert report.forms[-1].gzip_bytes < 0.75 * before["gzip_bytes"]
    with pytest.raises(
        RecipeError,
        match=r"--weight-bits has no effect with --method cluster\+qat: .* --method qat \(or channels",
    ):
        quantize(run, "cluster+qat", weight_bits=5)


def test_layers_that_are_skipped_stay_dense(run):
    quantize(run, "prune", sparsity=0.9, skip="logits, conv2d*", max_drop=100, overwrite=True)
    zeros = [
        float((kernel == 0).mean()) for kernel in weights((run.variant("int8-pruned") / "model.tflite").read_bytes())
    ]
    conv1, conv2, hidden, logits = zeros
    assert hidden > 0.85
    assert max(conv1, conv2, logits) < 0.2


def test_constant_sparsity_is_there_from_the_first_step(run):
    recipe = run.recipe.override({"compress.schedule": "constant", "compress.method": "prune"})
    with CompressionContext.open(run, recipe, None, ignore) as context:
        assert make(context, overwrite=True).sparsity > 0.48


def test_out_of_memory_is_one_line_and_leaves_what_was_there(run, monkeypatch):
    from typer.testing import CliRunner

    from edgerec.cli.app import app

    def converter(*_):
        raise MemoryError

    before = (run.variant("int8-qat") / "model.tflite").read_bytes()
    monkeypatch.setattr(sys.modules["edgerec.compress.quantize"], "to_float16", converter)
    done = CliRunner().invoke(app, ["quantize", str(run.path), "--method", "float16", "--overwrite"])
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("error: out of memory: ")
    assert (run.variant("int8-qat") / "model.tflite").read_bytes() == before
    assert not list(run.path.glob(".*partial*"))


class Stopped(Exception):
    """Stands for Ctrl-C, which pytest takes for its own."""


def test_a_stopped_fine_tuning_goes_on_to_the_same_end(image_folder, tmp_path, caplog):
    def stop(progress):
        if progress.stage == "quantization-aware training" and progress.text.startswith("epoch 3"):
            raise Stopped

    made = fit(Recipe().override({"data.source": str(image_folder), "train.epochs": 1}), tmp_path / "run")
    settings = {"sparsity": 0.5, "max_drop": 100}
    whole = quantize(made, "prune+qat", **settings)
    content = (made.variant("int8-pqat") / "model.tflite").read_bytes()
    with pytest.raises(Stopped):
        quantize(made, "prune+qat", **settings, overwrite=True, listener=stop)
    # What was there is whole.
    assert (made.variant("int8-pqat") / "model.tflite").read_bytes() == content
    with caplog.at_level(logging.INFO, "edgerec"):
        again = quantize(made, "prune+qat", **settings, overwrite=True, resume=True)
    said = " ".join(caplog.messages)
    assert "pruning: resuming after epoch 3/3" in said
    assert "quantization-aware training: resuming after epoch 2/3" in said
    assert again.sparsity == pytest.approx(whole.sparsity)
    first, second = (weights(c) for c in (content, (made.variant("int8-pqat") / "model.tflite").read_bytes()))
    apart = np.concatenate([np.abs(a.astype(int) - b.astype(int)).ravel() for a, b in zip(first, second, strict=True)])
    assert (apart <= 1).mean() > 0.99  # sums in another order
    assert not (made.path / "checkpoints" / "int8-pqat").exists()


def test_ranges_are_calibrated_twice_and_frozen_in_the_last_third(residual, monkeypatch):
    from edgerec.compress import qat

    calibrated = []

    def ends(aware):
        return [float(end) for pair in qat.activation_ranges(aware) for end in pair]

    def twice(aware, tune):
        calibrate = range_calibrator(aware, tune)

        def calibrate_twice():
            for _ in range(2):
                calibrate()
                calibrated.append(ends(aware))

        return calibrate_twice

    range_calibrator = qat.range_calibrator
    monkeypatch.setattr(qat, "range_calibrator", twice)
    made = []
    module = sys.modules["edgerec.compress.quantize"]
    monkeypatch.setattr(module, "to_int8", lambda model: made.append(model) or to_int8(model))
    quantize(residual, "qat", overwrite=True)
    before, again, late, late_again = calibrated
    # The start of ±6 is gone: a range begins or ends at zero behind each ReLU.
    assert not any(abs(abs(value) - 6) < 1e-3 for value in before)
    assert 0.0 in before
    # A second calibration changes nothing, so the ranges do not depend on where they start.
    assert np.allclose(before, again, rtol=0.02, atol=0.02)
    assert np.allclose(late, late_again, rtol=0.02, atol=0.02)
    # Training moved them before, and in the last third nothing does.
    assert not np.allclose(again, late, rtol=0.02, atol=0.02)
    assert ends(made[0]) == late_again
    # Batch normalisation's statistics are the float model's, to the bit.
    trained = {v.name: v.numpy() for v in residual.model().variables if "/moving_" in v.name}
    kept = {v.name: v.numpy() for v in made[0].variables}
    assert trained
    assert [name for name, value in trained.items() if not np.array_equal(kept[name], value)] == []


def test_the_rate_goes_by_what_is_changed(run, tmp_path):
    rate = run.recipe.train.learning_rate
    with CompressionContext.open(run, run.recipe, None, ignore) as context:
        whole, labels, smaller = (
            changed.fine_tune(tmp_path)
            for changed in (
                context.with_method("qat"),
                replace(context, recipe=context.recipe.override({"compress.teacher_weight": 0.0})),
                context.with_method("prune+qat"),
            )
        )
    assert whole.learning_rate == pytest.approx(0.01 * rate)
    assert labels.learning_rate == smaller.learning_rate == pytest.approx(0.1 * rate)
    assert whole.retraining_rate == smaller.retraining_rate == rate


def test_fine_tuning_learns_the_float_models_answers(run, tmp_path):
    def smaller():
        model = copied(run.model())
        model.set_weights([0.8 * array for array in model.get_weights()])
        return model

    ends = []
    with CompressionContext.open(run, run.recipe, None, ignore) as context:
        given = replace(context.fine_tune(tmp_path), epochs=1, learning_rate=2e-4)  # enough to show which answers pull
        feed = given.feed

        def wrong(epoch, places):
            return feed(epoch, places).map(lambda pixels, classes: (pixels, 0 * classes))

        for number, (labelled, weight) in enumerate([(feed, 1.0), (wrong, 1.0), (wrong, 0.0)]):
            tune = replace(given, feed=labelled, teacher_weight=weight, checkpoints=tmp_path / str(number))
            ends.append(fine_tune(smaller, tune, "fine-tuning").get_weights())

        def apart(ours, theirs):
            return max(np.abs(one - other).max() for one, other in zip(ours, theirs, strict=True))

        right, unlabelled, labelled = ends
        # No label is looked at (what is left are sums in another order), and something is learned.
        assert 20 * apart(right, unlabelled) < min(apart(right, labelled), apart(right, smaller().get_weights()))
        # What it learns is the float model.
        model, start = smaller(), smaller()
        model.set_weights(right)
        pixels, _ = next(iter(given.plain))
        distances = [float(given.teacher(pixels, scored(pixels))) for scored in (start, model, context.model)]
        assert distances[2] == pytest.approx(0, abs=1e-5)
        assert distances[1] < 0.5 * distances[0]


def test_plain_names_make_a_smaller_file_of_the_same_model(residual):
    from edgerec.compress.qat import with_fake_quantization

    aware = with_fake_quantization(residual.model(), residual.recipe.normalise)
    content = to_int8(aware)
    plain = plain_names(content)
    before, after = read_graph(content), read_graph(plain)
    names = [tensor.name for tensor in after.tensors]
    layer = next(layer.name for layer in aware.layers[::-1] if "conv2d" in layer.name).removeprefix("quant_")
    assert any(f"/quant_{layer}/" in tensor.name for tensor in before.tensors)
    assert sum(f"/{layer}/" in name for name in names) >= 3  # kernel, bias, output
    assert len(set(names)) == len(names)
    assert not any("quant_" in name or "PerChannel" in name for name in names)
    assert len(plain) < 0.85 * len(content)
    for ours, theirs in zip(before.tensors, after.tensors, strict=True):
        assert (ours.dtype, ours.shape, ours.scales, ours.zero_points) == (
            *(theirs.dtype, theirs.shape, theirs.scales, theirs.zero_points),
        )
        assert (ours.data is None) == (theirs.data is None)
        assert ours.data is None or np.array_equal(ours.data, theirs.data)
    models = [ImageModel(c, residual.recipe.normalise) for c in (content, plain)]
    for image in residual.data()[0].images[:20]:
        assert np.array_equal(*(model.invoke(image) for model in models))


def test_comparison_of_methods(run, here, caplog):
    done = here("quantize", run.path, "--compare", "--method", "ptq,qat,prune+qat,float16", "--epochs", "1", "--json")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
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
    with pytest.raises(RecipeError, match=r"--sparsity has no effect with --method ptq,qat: choose .* --method prune"):
        compare(run, ["ptq", "qat"], sparsity=0.5)
    # Options reach the methods; a variant that was made with others is taken, and that is said.
    with caplog.at_level(logging.INFO, "edgerec"):
        compare(run, ["ptq", "prune+qat"], sparsity=0.7)
    assert "using the existing variant int8-pqat, made with sparsity 0.5 (" in caplog.text
    assert "using the existing variant int8 (" in caplog.text


def test_no_speed_from_zeros_is_said():
    from edgerec.compress.compare import Row, _speed_notes

    dense = Row("qat", "int8-qat", 0.9, 0, 1, 1000, 900, 0, 0.5, 0.6)
    pruned = Row("prune+qat", "int8-pqat", 0.9, 0, 1, 1000, 500, 0.5, 0.49, 0.6)
    faster = Row("cluster+qat", "int8-cqat", 0.9, 0, 1, 1000, 500, 0.5, 0.2, 0.6)
    (note,) = _speed_notes([dense, pruned, faster])
    assert "do not make the model faster" in note
    assert "int8-pqat takes 0.98 of int8-qat's time" in note
    assert "int8-cqat" not in note
