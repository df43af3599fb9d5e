"""Mixed precision: the dtype policy, and the layers that stay in float32."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import tensorflow as tf

from edgerec import Recipe
from edgerec.contract.tensors import Normalize
from edgerec.models import build
from edgerec.recipe import ModelSection, TrainSection
from edgerec.train import backend as module
from edgerec.train.backend import has_bfloat16_units, keras, prepare
from edgerec.train.distillation_loss import distillation_loss
from edgerec.train.precision import in_float32, in_training_precision

MIXED = TrainSection(mixed_precision=True)


@pytest.fixture(autouse=True)
def _float32_again():
    yield
    keras().mixed_precision.set_global_policy("float32")


def set_bfloat16_units(monkeypatch, available):
    monkeypatch.setattr(module, "has_bfloat16_units", lambda: available)


def chosen(section):
    prepare(section, 0)
    return keras().mixed_precision.global_policy().name


def network(arch, width=1.0):
    return build(keras(), ModelSection(arch, width), (32, 32, 3), 10, Normalize.named("unit"))


def test_policy_depends_on_the_device(monkeypatch, caplog):
    assert isinstance(has_bfloat16_units(), bool)
    set_bfloat16_units(monkeypatch, True)
    assert chosen(TrainSection()) == "float32"
    assert chosen(MIXED) == "mixed_bfloat16"
    set_bfloat16_units(monkeypatch, False)
    with caplog.at_level(logging.WARNING, "edgerec"):
        assert chosen(MIXED) == "float32"
    assert (
        "has no effect, because this machine has no GPU, no CPU with AMX and no AMD CPU with AVX512_BF16" in caplog.text
    )
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["one"])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda *_: None)
    assert chosen(MIXED) == "mixed_float16"


@pytest.mark.parametrize(
    ("cpuinfo", "faster"),
    [
        ("vendor_id : GenuineIntel\nflags : avx512_bf16 amx_bf16 amx_tile\n", True),
        ("vendor_id : GenuineIntel\nflags : avx512f avx512_bf16\n", False),
        ("vendor_id : AuthenticAMD\nflags : avx512f avx512_bf16\n", True),
        ("vendor_id : AuthenticAMD\nflags : avx2\n", False),
    ],
)
def test_bfloat16_units_are_detected_by_cpuinfo(monkeypatch, tmp_path, cpuinfo, faster):
    monkeypatch.setattr(module, "CPU", tmp_path / "cpuinfo")
    assert not has_bfloat16_units()
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert has_bfloat16_units() == faster


def test_layers_that_bfloat16_makes_slower_stay_in_float32(monkeypatch, caplog):
    set_bfloat16_units(monkeypatch, True)
    prepare(MIXED, 0)
    model = in_training_precision(network("resnet14", 1.5))
    slow = {layer.name for layer in model.layers if layer.compute_dtype == "float32"}
    few = {layer.name for layer in model.layers if "batch" in layer.name and layer.output_shape[-1] == 24}
    assert len(few) == 5
    assert slow == few | {"pixels", "logits", "scores"}
    assert model(np.zeros((1, 32, 32, 3), np.float32)).dtype == tf.float32
    with caplog.at_level(logging.INFO, "edgerec"):
        model = in_training_precision(network("mobilenet_v1", 0.25))
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    assert "mobilenet_v1 has depthwise convolutions" in caplog.text
    keras().mixed_precision.set_global_policy("mixed_float16")  # on a GPU, depthwise convolutions are not slower
    model = in_training_precision(network("mobilenet_v1", 0.25))
    assert {layer.name for layer in model.layers if layer.compute_dtype == "float32"} == {"pixels", "logits", "scores"}


def test_recurrent_cell_has_the_precision_of_its_layer(monkeypatch):
    set_bfloat16_units(monkeypatch, True)
    prepare(MIXED, 0)
    layers = keras().layers
    rows = layers.Input((8, 8))
    x = layers.Dense(3, dtype="float32")(layers.RNN(layers.LSTMCell(8))(rows))
    model = in_training_precision(keras().Model(rows, layers.Activation("softmax", dtype="float32")(x)))
    assert model.layers[1].cell.compute_dtype == model.layers[1].compute_dtype == "bfloat16"
    assert model(np.zeros((2, 8, 8), np.float32)).dtype == tf.float32


def test_outputs_in_float32_and_bfloat16_are_similar(monkeypatch):
    set_bfloat16_units(monkeypatch, True)
    prepare(MIXED, 0)
    full = in_float32(network("resnet8"))
    assert {layer.dtype_policy.name for layer in full.layers} == {"float32"}
    pixels = np.random.default_rng(0).random((16, 32, 32, 3), np.float32)
    half = in_training_precision(full)
    assert {layer.compute_dtype for layer in half.layers} == {"float32", "bfloat16"}
    assert 0 < np.abs(np.asarray(half(pixels)) - np.asarray(full(pixels))).max() < 0.02


def test_teacher_computes_in_the_training_precision(monkeypatch, run):
    recipe = run.recipe.override({"distill.teachers": str(run.path)})
    dataset, parts = run.data()
    pixels = recipe.normalize.apply(dataset.images[parts.val[:8]].astype(np.float32))
    scores = run.model()(pixels, training=False)
    assert float(distillation_loss(recipe, run.labels)(pixels, scores)) == pytest.approx(0, abs=1e-6)
    set_bfloat16_units(monkeypatch, True)
    prepare(MIXED, 0)
    assert 1e-6 < float(distillation_loss(recipe, run.labels)(pixels, scores)) < 0.1


def test_finished_model_and_evaluation_are_float32(monkeypatch, tmp_path, image_folder):
    from edgerec import evaluate, fit

    set_bfloat16_units(monkeypatch, True)
    changes = {"data.source": str(image_folder), "data.input_size": 32, "model.arch": "resnet8", "train.epochs": 1}
    finished = fit(Recipe().override(changes | {"train.mixed_precision": True}), tmp_path / "run")
    checkpoint = keras().models.load_model(next((finished.path / "checkpoints").glob("*.keras")), compile=False)
    assert "mixed_bfloat16" in {layer.dtype_policy.name for layer in checkpoint.layers}
    assert {layer.dtype_policy.name for layer in finished.model().layers} == {"float32"}
    assert evaluate(finished.path).accuracy == finished.metrics["accuracy"]
