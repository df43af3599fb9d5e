"""Fine-tuning returns the weights of the best permitted epoch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgerec import Recipe, fit
from edgerec.compress.context import CompressionContext
from edgerec.compress.finetune import fine_tune
from edgerec.compress.prune import prune
from edgerec.train.backend import keras
from edgerec.utils.progress import ignore
from tests.conftest import write_red_and_blue_images

SIZE = 28


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    """A run on 40 images."""
    folder = tmp_path_factory.mktemp("quick")
    recipe = Recipe.from_dict(
        {
            "data": {"source": str(write_red_and_blue_images(folder / "images")), "input_size": SIZE},
            "model": {"width": 0.25},
            "train": {"epochs": 1, "batch_size": 8},
            "compress": {"max_drop": 100.0, "learning_rate": 1e-4},
        }
    )
    return fit(recipe, folder / "run")


def always_first_class():
    """A classifier that predicts the first class for every image, and whose kernel learns."""
    layers = keras().layers
    keras().utils.set_random_seed(0)
    inputs = keras().Input((SIZE, SIZE, 3))
    dense = layers.Dense(2, bias_initializer=keras().initializers.Constant([9.0, 0.0]))
    return keras().Model(inputs, layers.Softmax()(dense(layers.Flatten()(inputs))))


class Validation:
    """Validation batches whose labels are the first class in one epoch, and the second class in all others."""

    def __init__(self, plain, best_epoch):
        self.plain, self.best_epoch, self.epoch = plain, best_epoch, 0

    def __call__(self, indices):
        """Return batches whose labels depend on the epoch in which they are read."""
        import tensorflow as tf

        spec = self.plain(indices).element_spec
        return tf.data.Dataset.from_generator(lambda: self.batches(indices), output_signature=spec)

    def batches(self, indices):
        self.epoch += 1
        for pixels, classes in self.plain(indices):
            yield pixels, 0 * classes + (self.epoch != self.best_epoch)


def best_and_recorded_weights(run, folder, best_epoch, epochs, **options):
    """Fine-tune; return the resulting weights, and the weights after each epoch."""
    recorded = []

    class Recorder(keras().callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            recorded.append(self.model.get_weights()[0].copy())

    with CompressionContext.open(run, run.recipe.override({"compress.epochs": epochs}), None, ignore) as context:
        tune = context.fine_tune(folder)
        tune = replace(tune, validation=Validation(tune.validation, best_epoch))
        model = fine_tune(always_first_class, tune, "fine-tuning", callbacks=[Recorder()], **options)
    assert len(recorded) == epochs
    return model.get_weights()[0], recorded


@pytest.mark.parametrize("best_epoch", [1, 2])
def test_weights_of_best_epoch_are_returned(quick_run, tmp_path, best_epoch):
    weights, recorded = best_and_recorded_weights(quick_run, tmp_path, best_epoch, 3)
    assert np.array_equal(weights, recorded[best_epoch - 1])
    assert not np.array_equal(recorded[0], recorded[1])


def test_weights_before_frozen_ranges_are_not_returned(quick_run, tmp_path):
    weights, recorded = best_and_recorded_weights(quick_run, tmp_path, 1, 2, freeze=lambda model: None)
    assert np.array_equal(weights, recorded[1])


def test_weights_before_keep_from_are_not_returned(quick_run, tmp_path):
    weights, recorded = best_and_recorded_weights(quick_run, tmp_path, 1, 3, keep_from=1)
    assert np.array_equal(weights, recorded[2])  # the last one of two equal ones


def test_pruning_reaches_sparsity_although_early_epoch_is_better(quick_run, tmp_path):
    changes = {"compress.epochs": 4, "compress.sparsity": 0.8}
    with CompressionContext.open(quick_run, quick_run.recipe.override(changes), None, ignore) as context:
        tune = context.fine_tune(tmp_path)
        tune = replace(tune, validation=Validation(tune.validation, 1))
        model = prune(always_first_class(), context.recipe.compress, tune)
    kernel = next(weight for weight in model.get_weights() if weight.ndim == 2)
    assert float((kernel == 0).mean()) == pytest.approx(0.8, abs=0.01)
