"""Fine-tuning follows the run's training settings, calibrates ranges, and restores a state completely."""

from __future__ import annotations

import logging
from dataclasses import fields, replace

import numpy as np
import pytest

from edgerec import Recipe, fit
from edgerec.compress.channels import shrink
from edgerec.compress.cluster import cluster
from edgerec.compress.context import CompressionContext
from edgerec.compress.convert import to_int8
from edgerec.compress.finetune import fine_tune
from edgerec.compress.prune import prune
from edgerec.compress.qat import quantization_aware
from edgerec.errors import ModelError
from edgerec.importing.graph_rewriter import copied
from edgerec.recipe import TrainSection
from edgerec.tflite.flatbuffer import read_graph
from edgerec.train.backend import keras
from edgerec.utils.progress import ignore
from tests.conftest import REPOSITORY, write_red_and_blue_images

SIZE = 28
STAGES = {
    "prune": lambda model, recipe, tune: prune(model, recipe.compress, tune),
    "cluster": lambda model, recipe, tune: cluster(model, recipe.compress, tune, preserve_sparsity=False),
    "channels": lambda model, recipe, tune: shrink(model, 0.0, tune),
}


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    """A run on 40 images."""
    folder = tmp_path_factory.mktemp("quick")
    recipe = Recipe.from_dict(
        {
            "data": {"source": str(write_red_and_blue_images(folder / "images")), "input_size": SIZE},
            "model": {"width": 0.25},
            "train": {"epochs": 1, "batch_size": 8},
            "compress": {"epochs": 1, "max_drop": 100.0},
        }
    )
    return fit(recipe, folder / "run")


def open_context(run, **changes):
    """The run's context, with keys of its recipe changed: ``transfer__freeze_bn=False``."""
    recipe = run.recipe.override({key.replace("__", "."): value for key, value in changes.items()})
    return CompressionContext.open(run, recipe, None, ignore)


def batch_normalization(model):
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    return {v.name: v.numpy() for v in model.variables if v.name.rpartition("/")[2].partition(":")[0] in names}


@pytest.mark.parametrize(
    ("stage", "weights", "freeze_bn", "frozen"),
    [
        ("prune", "imagenet", True, True),
        ("cluster", "imagenet", True, True),
        ("channels", "imagenet", True, True),
        ("channels", "imagenet", False, False),
        ("channels", "none", True, False),  # random initial weights have no pretrained statistics
    ],
)
def test_retraining_follows_freeze_bn(quick_run, tmp_path, stage, weights, freeze_bn, frozen):
    changes = {"model__weights": weights, "transfer__freeze_bn": freeze_bn, "compress__learning_rate": 0.01}
    with open_context(quick_run, **changes) as context:
        model = small_classifier(normalized=True)
        before = batch_normalization(model)
        model = STAGES[stage](model, context.recipe, context.fine_tune(tmp_path))
    after = batch_normalization(model)
    assert len(before) == len(after) == 4
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert len(changed) == (0 if frozen else 4)
    # The next stage can train all layers again.
    assert all(layer.trainable for layer in model.layers if layer.weights)


def batch_recorder(sizes: list[int]):
    """Return an identity layer that records the batch size of each traced training step."""

    class Recorder(keras().layers.Layer):
        def call(self, inputs, training=None):
            if training:
                sizes.append(inputs.shape[0])
            return inputs

    return Recorder()


def small_classifier(rate: float = 0.0, recorder=None, kind="Dropout", normalized: bool = False):
    """Build a classifier of two classes with seeded weights, optionally with dropout or batch normalization."""
    layers = keras().layers
    keras().utils.set_random_seed(0)
    inputs = x = keras().Input((SIZE, SIZE, 3))
    x = recorder(x) if recorder else x
    x = layers.Conv2D(8, 3, strides=4, activation="relu")(x)
    x = layers.BatchNormalization()(x) if normalized else x
    if rate and kind != "Dropout":
        x = getattr(layers, kind)(rate)(x)
    x = layers.Flatten()(x)
    if rate and kind == "Dropout":
        x = layers.Dropout(rate)(x)
    return keras().Model(inputs, layers.Softmax()(layers.Dense(2, name="logits")(x)))


@pytest.mark.parametrize(("accumulate", "size"), [(1, 8), (4, 2)])
def test_fine_tuning_accumulates_gradients(quick_run, tmp_path, accumulate, size):
    sizes: list[int] = []
    with open_context(quick_run, train__accumulate=accumulate) as context:
        model = small_classifier(recorder=batch_recorder(sizes))
        fine_tune(lambda: model, context.fine_tune(tmp_path), "fine-tuning")
    assert set(sizes) == {size}


@pytest.mark.parametrize("xla", [True, False])
def test_fine_tuning_uses_xla_if_training_does(quick_run, tmp_path, xla):
    with open_context(quick_run, train__xla=xla) as context:
        model = fine_tune(small_classifier, context.fine_tune(tmp_path), "fine-tuning")
    assert model.jit_compile is xla


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_fine_tuning_uses_optimizer_of_training(quick_run, tmp_path, name):
    with open_context(quick_run, train__optimizer=name) as context:
        model = fine_tune(small_classifier, context.fine_tune(tmp_path), "fine-tuning")
    assert model.optimizer.name.lower() == name


@pytest.mark.parametrize("size", [4, 8])
def test_fine_tuning_uses_batch_size_of_training(quick_run, tmp_path, size):
    sizes: list[int] = []
    with open_context(quick_run, train__batch_size=size) as context:
        model = small_classifier(recorder=batch_recorder(sizes))
        fine_tune(lambda: model, context.fine_tune(tmp_path), "fine-tuning")
    assert set(sizes) == {size}


def test_documentation_covers_every_training_setting():
    text = (REPOSITORY / "docs" / "concepts" / "compression.md").read_text(encoding="utf-8")
    table = text.partition("## Fine-tuning")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(key.strip(" `") for row in rows for key in row.split(",")) == sorted(
        item.name for item in fields(TrainSection)
    )


def logits_scale(quantized) -> float:
    """Return the scale of the logits in the converted model, which is the width of their range / 255."""
    (dense,) = (op for op in read_graph(to_int8(quantized)).operators if op.name == "FULLY_CONNECTED")
    return float(dense.outputs[0].scales[0])


@pytest.mark.parametrize("kind", ["Dropout", "SpatialDropout2D"])
def test_dropout_does_not_widen_ranges(quick_run, tmp_path, kind):
    # This learning rate changes nothing, so both models have the same activations.
    plain, dropping = small_classifier(), small_classifier(0.7, kind=kind)
    dropping.set_weights(plain.get_weights())
    with open_context(quick_run, compress__learning_rate=1e-8) as context:
        scales = []
        for number, model in enumerate((plain, dropping)):
            tune = context.fine_tune(tmp_path / str(number))
            scales.append(logits_scale(quantization_aware(model, context.recipe.normalize, tune)))
    assert scales[1] == pytest.approx(scales[0], rel=0.01)


@pytest.mark.parametrize("epochs", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_final_ranges_are_those_of_images_without_augmentation(quick_run, tmp_path, epochs):
    with open_context(quick_run, compress__learning_rate=1e-8, compress__epochs=epochs) as context:
        model = small_classifier()
        tune = context.fine_tune(tmp_path / "plain")
        expected = logits_scale(quantization_aware(model, context.recipe.normalize, tune))

        def white_images(epoch, indices):
            return tune.feed(epoch, indices).map(lambda pixels, *rest: (0 * pixels + 1, *rest))

        # If the ranges followed the training batches, they would change by a third after 400 steps with white images.
        white_tune = replace(tune, feed=white_images, steps=400, checkpoints=tmp_path / "white")
        scale = logits_scale(quantization_aware(model, context.recipe.normalize, white_tune))
    assert scale == pytest.approx(expected, rel=0.02)


class Interrupted(Exception):
    """Replaces KeyboardInterrupt, which pytest would handle itself."""


def damage_missing_optimizer(arrays):
    last_array = max((name for name in arrays if name.startswith("optimizer")), key=lambda name: int(name[9:]))
    del arrays[last_array]


def damage_optimizer_shape(arrays):
    arrays["optimizer2"] = np.zeros((3, 3), np.float32)


def damage_best(arrays):
    del arrays["best1"]


def damage_weights_shape(arrays):
    arrays["weights1"] = np.zeros(999, np.float32)


def damage_values(arrays):
    arrays["optimizer2"] = np.full_like(arrays["optimizer2"], np.nan)


@pytest.mark.parametrize(
    "damage",
    [damage_missing_optimizer, damage_optimizer_shape, damage_best, damage_weights_shape, damage_values],
    ids=lambda function: function.__name__,
)
def test_damaged_state_is_ignored_completely(quick_run, tmp_path, caplog, damage):
    def interrupt(progress):
        if progress.text.startswith("epoch 2"):
            raise Interrupted

    with open_context(quick_run, compress__learning_rate=1e-8, compress__epochs=2) as context:
        tune = context.fine_tune(tmp_path)
        model = small_classifier()
        start = [weight.copy() for weight in model.get_weights()]
        with pytest.raises(Interrupted):
            fine_tune(lambda: copied(model), replace(tune, listener=interrupt), "fine-tuning")
        (path,) = tmp_path.glob("*.npz")
        with np.load(path) as file:
            arrays = dict(file)
        # These weights would change the result if they were restored before the damage is detected.
        arrays |= {name: np.ones_like(array) for name, array in arrays.items() if name.startswith("weights")}
        damage(arrays)
        np.savez(path, **arrays)
        with caplog.at_level(logging.WARNING, "edgerec"):
            model = fine_tune(lambda: copied(model), tune, "fine-tuning")
    assert "cannot be used" in caplog.text
    assert "starting fine-tuning again" in caplog.text
    for before, after in zip(start, model.get_weights(), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-4)


def test_intact_state_is_restored_with_optimizer(quick_run, tmp_path, caplog):
    steps = []

    def interrupt(progress):
        steps.append(progress.done)
        if progress.text.startswith("epoch 2"):
            raise Interrupted

    with open_context(quick_run, compress__epochs=2) as context:
        tune = context.fine_tune(tmp_path)
        with pytest.raises(Interrupted):
            fine_tune(small_classifier, replace(tune, listener=interrupt), "fine-tuning")
        with caplog.at_level(logging.INFO, "edgerec"):
            model = fine_tune(small_classifier, tune, "fine-tuning")
    assert "fine-tuning: resuming after epoch 1/2" in caplog.text
    assert int(model.optimizer.iterations) == 2 * tune.steps


def test_loss_that_becomes_nan_ends_fine_tuning(quick_run, tmp_path):
    """Otherwise, a model with NaN weights is converted, and the error message describes a faulty .tflite file."""
    with open_context(quick_run, compress__teacher_weight=0.0) as context:
        model = small_classifier()
        model.set_weights([weight * np.nan for weight in model.get_weights()])
        message = r"the loss became nan in epoch 1 of fine-tuning: lower compress.learning_rate \(now .*--learning-rate"
        with pytest.raises(ModelError, match=message):
            fine_tune(lambda: copied(model), context.fine_tune(tmp_path), "fine-tuning")
    assert not list(tmp_path.iterdir())
