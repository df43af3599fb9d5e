"""Class weights and weight decay in fine-tuning."""

from __future__ import annotations

import pytest

from edgerec import Recipe, fit
from edgerec.compress.context import CompressionContext
from edgerec.compress.finetune import fine_tune
from edgerec.train.backend import keras
from edgerec.train.distillation_loss import teacher_loss
from edgerec.utils.progress import ignore
from tests.conftest import write_red_and_blue_images

SIZE = 28


@pytest.fixture(scope="module")
def unbalanced(tmp_path_factory):
    """A run on 20 red images and 8 blue ones."""
    folder = tmp_path_factory.mktemp("unbalanced")
    images = write_red_and_blue_images(folder / "images")
    for path in sorted((images / "blue").iterdir())[8:]:
        path.unlink()
    values = {
        "data": {"source": str(images), "input_size": SIZE},
        "model": {"width": 0.25},
        "train": {"epochs": 1, "batch_size": 8},
        "compress": {"epochs": 1, "max_drop": 100.0},
    }
    return fit(Recipe.from_dict(values), folder / "run")


def biased():
    """A classifier whose inputs are multiplied by zero: only its biases can learn."""
    layers = keras().layers
    inputs = keras().Input((SIZE, SIZE, 3))
    x = layers.GlobalAveragePooling2D()(layers.Rescaling(0.0)(inputs))
    return keras().Model(inputs, layers.Softmax()(layers.Dense(2, kernel_initializer="ones")(x)))


def fine_tuned(run, folder, build, **changes):
    recipe = run.recipe.override({key.replace("__", "."): value for key, value in changes.items()})
    with CompressionContext.open(run, recipe, None, ignore) as context:
        return fine_tune(build, context.fine_tune(folder), "fine-tuning")


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_fine_tuning_applies_class_weights_to_label_loss(unbalanced, tmp_path, weights):
    changes = {"train__class_weights": weights, "compress__teacher_weight": 0.0}
    changes |= {"compress__learning_rate": 0.02, "compress__epochs": 40, "train__optimizer": "sgd"}
    model = fine_tuned(unbalanced, tmp_path, biased, **changes)
    red, blue = (float(model.layers[-2].get_weights()[1][index]) for index in (1, 0))
    # 5 of 7 images are red: without weights, red becomes more likely.
    assert red - blue > 0.2 if weights == "none" else abs(red - blue) < 0.1


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_fine_tuning_applies_weight_decay(unbalanced, tmp_path, decay):
    changes = {"train__weight_decay": decay, "compress__learning_rate": 0.1, "compress__epochs": 2}
    kernel = fine_tuned(unbalanced, tmp_path, biased, **changes).layers[-2].get_weights()[0]
    # The inputs are zero, so that the kernel has no gradient: only weight decay can change it.
    assert (kernel == 1).all() if decay == 0 else (kernel < 0.97).all()


def test_distillation_loss_applies_image_weights():
    tf = keras().backend  # the loss is a function of plain tensors
    teacher = keras().Sequential([keras().Input((1,)), keras().layers.Dense(2, "softmax", kernel_initializer="zeros")])
    loss = teacher_loss([teacher])
    pixels = tf.constant([[0.0], [0.0]])
    correct, incorrect = [0.5, 0.5], [0.9, 0.1]
    scores = tf.constant([correct, incorrect])
    unweighted = float(loss(pixels, scores))
    assert unweighted > 0.1
    assert float(loss(pixels, scores, tf.constant([1.5, 0.5]))) == pytest.approx(unweighted / 2, rel=1e-5)
    assert float(loss(pixels, scores, tf.constant([2.0, 0.0]))) == pytest.approx(0, abs=1e-6)
