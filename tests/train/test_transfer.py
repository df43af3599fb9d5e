"""Transfer learning: the layers that each stage trains, and third-party networks with a new head."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgerec import Recipe, fit, quantize
from edgerec.errors import ModelError, RecipeError
from edgerec.train.backend import keras
from edgerec.train.fit import was_begun
from edgerec.train.stages import stages
from edgerec.train.transfer import freeze_for_stage, unfreeze, with_new_head


def recipe(**changes):
    slow = {"transfer.frozen": 0.25, "transfer.unfreeze": 0.25, "transfer.rate": 0.1}
    return Recipe().override({"train.epochs": 8, "train.learning_rate": 0.01, **slow, **changes})


def test_stages_train_the_head_first_and_then_more_and_more_layers():
    (single,) = stages(recipe())
    assert (single.first, single.last, single.trainable_fraction) == (0, 8, 1.0)
    plan = stages(recipe(**{"model.weights": "x.keras"}))
    schedules = ["cosine", "constant", "constant", "cosine"]
    assert [(s.first, s.last, s.schedule) for s in plan] == list(
        zip((0, 2, 3, 4), (2, 3, 4, 8), schedules, strict=True)
    )
    assert [s.trainable_fraction for s in plan] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert [s.rate for s in plan] == pytest.approx([0.01, 0.001, 0.001, 0.001])
    at_once = {"model.weights": "x.keras", "transfer.frozen": 0.0, "transfer.unfreeze": 0.0, "transfer.rate": 1.0}
    assert [(s.first, s.last, s.trainable_fraction, s.rate) for s in stages(recipe(**at_once))] == [(0, 8, 1.0, 0.01)]
    assert [s.trainable_fraction for s in stages(recipe(**{"model.weights": "x.keras", "transfer.frozen": 1.0}))] == [
        0.0
    ]
    plateau = stages(recipe(**{"model.weights": "x.keras", "train.schedule": "plateau"}))
    assert [s.schedule for s in plateau] == ["cosine", "constant", "constant", "plateau"]


def network(size=32, classes=2, scaling=False):
    """A third-party network that contains a frozen model with edgerec's input normalization for ImageNet weights."""
    layers = keras().layers
    inside = keras().Sequential(
        [
            layers.Input((size, size, 3)),
            layers.DepthwiseConv2D(1, trainable=False, name="imagenet_range"),
            layers.Conv2D(8, 3, strides=2, name="first"),
            layers.BatchNormalization(name="norm"),
            layers.Conv2D(8, 3, strides=2, activation="relu", name="second"),
        ],
        name="inside",
    )
    inside.trainable = False
    inputs = keras().Input((size, size, 3))
    x = layers.Rescaling(1 / 255)(inputs) if scaling else inputs
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(inside(x)))
    return keras().Model(inputs, layers.Dense(classes, activation="softmax", name="old")(x))


def trainable_layers(model):
    return {layer.name for layer in model.layers if layer.trainable_weights}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("theirs") / "two.h5"
    network().save(path)
    return path


def test_each_stage_trains_its_layers(file):
    transfer = recipe(**{"model.weights": str(file), "data.channels": 3})
    model, plan = with_new_head(file, 3, transfer), stages(transfer)
    frozen = []
    for stage in plan:
        freeze_for_stage(model, transfer, stage)
        frozen.append(trainable_layers(model))
    every = {"logits", "first", "second"}
    assert frozen == [{"logits"}, {"logits", "second"}, every, every]
    freeze_for_stage(model, transfer.override({"transfer.freeze_bn": False}), plan[-1])
    assert trainable_layers(model) == {"logits", "first", "norm", "second"}
    freeze_for_stage(model, transfer, plan[0])
    unfreeze(model)
    assert trainable_layers(model) == {"logits", "first", "norm", "second"}


def test_layers_in_nested_models_and_wrappers_are_frozen_and_unfrozen(file):
    layers = keras().layers
    inside = keras().Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.DepthwiseConv2D(1, name="imagenet_range"),
            layers.Conv2D(4, 3, name="first"),
            layers.BatchNormalization(name="norm"),
            layers.Conv2D(4, 3, name="second"),
        ],
        name="inside",
    )
    inputs = keras().Input((8, 8, 3))
    x = layers.TimeDistributed(layers.BatchNormalization(name="wrapped"))(inside(inputs))
    x = layers.Dense(2, name="logits")(layers.Flatten()(x))
    model = keras().Model(inputs, layers.Softmax(name="scores")(x))

    def trained():
        return {weight.name.split("/")[-2].split(":")[0] for weight in model.trainable_weights}

    transfer = recipe(**{"model.weights": str(file)})
    learned = []
    for stage in stages(transfer):
        freeze_for_stage(model, transfer, stage)
        learned.append({name for name in trained() if name != "time_distributed"})
        # In training mode, batch normalization changes its statistics unless the layer is frozen.
        before = [weight.numpy() for weight in model.non_trainable_weights]
        model(np.random.default_rng(0).random((4, 8, 8, 3), np.float32), training=True)
        for old, new in zip(before, model.non_trainable_weights, strict=True):
            assert np.array_equal(old, new)
    assert learned == [{"logits"}, {"logits", "second"}, {"logits", "second"}, {"logits", "first", "second"}]
    freeze_for_stage(model, transfer.override({"transfer.freeze_bn": False}), stages(transfer)[-1])
    assert {"first", "norm", "second", "logits"} <= trained()
    assert not model.get_layer("inside").get_layer("imagenet_range").trainable


def test_network_with_new_head_can_be_trained_resumed_and_quantized(file, image_folder, tmp_path, monkeypatch):
    weights = Path(shutil.copy(file, tmp_path))
    changes = {"model.arch": "backbone", "model.weights": str(weights), "data.source": str(image_folder)}
    finished = fit(recipe(**changes, **{"train.epochs": 4}), tmp_path / "run")
    assert finished.recipe.data.input_size == 32
    model, keras_model = finished.model(), keras().models.load_model(file, compile=False)
    assert model.output_shape == (None, len(finished.labels))
    assert trainable_layers(model) == {"first", "norm", "second", "logits"}
    keras_model = keras_model.get_layer("inside").get_layer("norm").moving_mean.numpy()
    assert np.array_equal(model.get_layer("norm").moving_mean.numpy(), keras_model)

    class Stop(Exception):
        pass

    def stop(epoch, _):
        if epoch == 3:
            raise Stop

    with pytest.raises(Stop):
        fit(finished.recipe, tmp_path / "cut", on_epoch=stop)
    moved = image_folder.rename(tmp_path / "moved")
    with monkeypatch.context() as patched:  # workers cannot connect after TensorFlow has loaded the network
        patched.delattr("edgerec.train.automatic_recipe.input_size_px")
        assert was_begun(finished.recipe.override({"data.source": str(moved)}), tmp_path / "cut")
    moved.rename(image_folder)
    weights.unlink()  # the checkpoint contains the network
    resumed = fit(finished.recipe, tmp_path / "cut", resume=True)
    assert [row["loss"] for row in resumed.history()] == pytest.approx(
        [row["loss"] for row in finished.history()], abs=1e-5
    )
    quantize(finished, "ptq", max_drop=100)
    assert finished.variants()["int8"]["precision"] == "int8"


def test_unsuitable_backbones_are_refused(file, image_folder, tmp_path):
    def refused(expected, **changes):
        data = {"model.arch": "backbone", "model.weights": str(file), "data.source": str(image_folder)}
        with pytest.raises((ModelError, RecipeError), match=expected):
            fit(recipe(**data | changes), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    refused("must be the .keras or .h5 file of a complete model", **{"model.weights": "none"})
    refused("does not exist", **{"model.weights": str(tmp_path / "no.h5")})
    refused("data.input_size is 64, .* requires images of 32×32 pixels", **{"data.input_size": 64})
    refused("requires images with 3 channels, but the data has 1", **{"data.channels": 1})
    network(scaling=True).save(tmp_path / "scaling.keras")
    refused("already normalizes pixels from 0 to 255", **{"model.weights": str(tmp_path / "scaling.keras")})


def test_message_names_weights_with_other_shapes(run, tmp_path, caplog):
    weights = str(run.path / "model.keras")
    half = {"model.arch": "simple_cnn", "model.width": 0.5}
    with pytest.raises(
        ModelError, match=r"conv2d/kernel has shape \(3, 3, 1, 16\) in the model but \(3, 3, 1, 32\) in the file"
    ):
        fit(recipe(**{"model.weights": weights} | half), tmp_path / "a")
    keras().models.load_model(weights, compile=False).save(tmp_path / "w.h5")
    with pytest.raises(ModelError, match=r"conv2d has shape \(3, 3, 1, 16\) in the model"):
        fit(recipe(**{"model.weights": str(tmp_path / "w.h5")} | half), tmp_path / "a")
