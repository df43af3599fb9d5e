"""Architectures, built flat: no model inside a model, which quantization-aware training refuses.

A builder takes the Keras to build with (``train/keras.py`` picks it), so that nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgerec.contract.recipe import ModelSection
from edgerec.contract.tensors import Normalise
from edgerec.errors import RecipeError, unknown
from edgerec.models.mobilenet import mobilenet_v1, mobilenet_v2
from edgerec.models.resnet import resnet8, resnet14
from edgerec.models.simple import simple_cnn

Builder = Callable[[Any, Any, ModelSection], Any]


@dataclass(frozen=True)
class Architecture:
    """A network, and what one must know before pictures are read.

    Attributes:
        features: ``(keras, input tensor, section) -> tensor (batch, n)``: all layers before the classes.
        least_size_px: smallest input side; smaller pictures are enlarged to it.
        imagenet: whether Keras has ImageNet weights for it.
    """

    features: Builder
    least_size_px: int
    imagenet: bool = False


ARCHITECTURES = {
    "simple_cnn": Architecture(simple_cnn, least_size_px=28),
    "mobilenet_v1": Architecture(mobilenet_v1, least_size_px=32, imagenet=True),
    "mobilenet_v2": Architecture(mobilenet_v2, least_size_px=32, imagenet=True),
    "resnet8": Architecture(resnet8, least_size_px=16),
    "resnet14": Architecture(resnet14, least_size_px=16),
}


# The name in a recipe of a network that is none of these: its run was made of a model that was brought along.
OWN = "own"
# The same of a network that is taken from the file that model.weights names.
BACKBONE = "backbone"


def least_size_px(name: str) -> int:
    """The smallest input side of that network, pixels."""
    return 1 if name in (OWN, BACKBONE) else find(name).least_size_px


def find(name: str) -> Architecture:
    """The architecture of that name; raises :class:`RecipeError` with the nearest one."""
    if name == OWN:
        raise RecipeError(
            "model.arch 'own' stands for a model that was brought along and is trained already: choose another"
        )
    if name not in ARCHITECTURES:
        raise RecipeError(unknown("architecture", name, ARCHITECTURES))
    return ARCHITECTURES[name]


def build(keras: Any, section: ModelSection, shape: tuple[int, int, int], classes: int, normalise: Normalise) -> Any:
    """A model from normalised float32 ``(batch, *shape)`` to softmax scores float32 ``(batch, classes)``."""
    architecture = find(section.arch)
    if section.weights == "imagenet" and not (architecture.imagenet and shape[2] == 3):
        raise RecipeError(
            f"model.weights is 'imagenet', which exists for mobilenet_v1 and mobilenet_v2 on RGB pictures; "
            f"got {section.arch} with {shape[2]} channels: use --weights none"
        )
    inputs = keras.Input(shape, name="pixels")
    x = _as_imagenet_expects(keras, inputs, normalise) if section.weights == "imagenet" else inputs
    x = architecture.features(keras, x, section)
    # Scores stay float32 under mixed precision.
    x = keras.layers.Dense(classes, name="logits", dtype="float32")(x)
    scores = keras.layers.Activation("softmax", name="scores", dtype="float32")(x)
    return keras.Model(inputs, scores, name=section.arch)


def _as_imagenet_expects(keras: Any, x: Any, normalise: Normalise) -> Any:
    """Keras' MobileNet weights want pixel / 127.5 − 1: a fixed 1×1 depthwise convolution, part of the model."""
    scale, offset = normalise.std / 127.5, normalise.mean / 127.5 - 1
    return keras.layers.DepthwiseConv2D(
        1,
        depthwise_initializer=keras.initializers.Constant(scale),
        bias_initializer=keras.initializers.Constant(offset),
        trainable=False,
        name="imagenet_range",
    )(x)
