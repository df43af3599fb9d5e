"""The architectures: what they are, that Keras' weights fit them, and what of a person's own is taken."""

from __future__ import annotations

import numpy as np
import pytest

from edgerec.contract.recipe import ModelSection
from edgerec.contract.tensors import Normalise
from edgerec.errors import ModelError, RecipeError
from edgerec.models import ARCHITECTURES, build, imagenet
from edgerec.train.keras import keras

UNIT = Normalise.named("unit")
PRETRAINED = sorted(name for name, each in ARCHITECTURES.items() if each.imagenet)


def built(arch, width=1.0, weights="none", size=0, classes=5):
    size = size or ARCHITECTURES[arch].least_size_px
    return build(keras(), ModelSection(arch, width, weights=weights), (size, size, 3), classes, UNIT)


@pytest.fixture(autouse=True)
def _fresh():
    keras().backend.clear_session()
    keras().utils.set_random_seed(0)


def expected_by_hand(pixels: str, of_application: str, images: np.ndarray) -> np.ndarray:
    """What Keras' documentation says that the application wants of pixels 0 to 255."""
    name = {"caffe": "resnet50", "torch": "densenet", "tf": "mobilenet_v2"}[pixels]
    made = getattr(keras().applications, name).preprocess_input(images.copy())
    if of_application == "EfficientNetB0":
        return made * 255  # without weights it divides by 255 and leaves out mean and deviation
    return images if of_application.startswith(("MobileNetV3", "EfficientNetV2")) else made


@pytest.mark.parametrize(
    "arch",
    [
        "vgg16",
        "resnet50",
        "densenet121",
        "efficientnet_b0",
        "efficientnet_v2_b0",
        "mobilenet_v1",
        "mobilenet_v3_small",
        "mobilenet_v3_large",
        "mobilenet_v3_small_minimalistic",
    ],
)
def test_keras_weights_give_what_keras_application_gives(arch, monkeypatch):
    """The weights are random ones here, in place of the downloaded; all around them is real."""
    known, made = ARCHITECTURES[arch].imagenet, []
    real = getattr(keras().applications, known.application)

    def application(**options):
        model = real(**options | {"weights": None})
        if options["weights"] == "imagenet":
            rng = np.random.default_rng(0)
            for layer in model.layers:
                if isinstance(layer, keras().layers.BatchNormalization):
                    layer.set_weights([rng.uniform(0.8, 1.2, w.shape) for w in layer.get_weights()])
            made.append(model)
        return model

    monkeypatch.setattr(keras().applications, known.application, application)
    model = built(arch, weights="imagenet")
    pixels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3)).astype(np.float32)
    wanted = made[0](expected_by_hand(known.pixels, known.application, pixels), training=False).numpy().mean((1, 2))
    features = keras().Model(model.input, model.get_layer("logits").input)(pixels / 255, training=False).numpy()
    np.testing.assert_allclose(features, wanted, atol=2e-4 * np.abs(wanted).max())
    assert not model.get_layer(imagenet.RANGE).trainable
