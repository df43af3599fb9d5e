"""Architectures of image classifiers and autoencoders.

The models contain no nested models, because quantization-aware training does not support them. Each function takes the
Keras module as an argument (``train/backend.py`` chooses it), so that this package does not import Keras.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from edgerec.contract.tensors import Normalize
from edgerec.errors import RecipeError, unknown
from edgerec.models import imagenet, user_defined
from edgerec.models.families.autoencoder import autoencoder
from edgerec.models.families.densenet import densenet121
from edgerec.models.families.ds_cnn import ds_cnn
from edgerec.models.families.efficientnet import efficientnet_b0, efficientnet_v2_b0
from edgerec.models.families.mobilenet import mobilenet_v1, mobilenet_v2
from edgerec.models.families.mobilenet_v3 import (
    mobilenet_v3_large,
    mobilenet_v3_large_minimalistic,
    mobilenet_v3_small,
    mobilenet_v3_small_minimalistic,
)
from edgerec.models.families.recurrent import gru, lstm
from edgerec.models.families.resnet import (
    ds_resnet,
    resnet8,
    resnet14,
    resnet14_wide,
    resnet20,
    resnet50,
    se_resnet16,
)
from edgerec.models.families.simple import simple_cnn
from edgerec.models.families.vgg import vgg16, vgg_small
from edgerec.models.imagenet import ImageNet
from edgerec.recipe import AUTO, ModelSection

Builder = Callable[[Any, Any, ModelSection], Any]


@dataclass(frozen=True)
class Architecture:
    """An architecture and its properties, such as the minimum input size.

    Attributes:
        features: function ``(keras, input tensor, section) -> tensor (batch, n)`` that builds all layers before the
            classification layer. If ``reconstructs``, it builds all layers, and the tensor has the shape of the input.
        least_size_px: minimum side of the input in pixels. Smaller images are enlarged to this size.
        imagenet: description of the ImageNet weights that Keras provides, or None if there are none.
        recurrent: whether the network is recurrent. Quantization-aware training does not support recurrent networks, so
            the only quantization method is ``ptq``.
        reconstructs: whether the network is an autoencoder, which reconstructs its input instead of classifying it.
    """

    features: Builder
    least_size_px: int
    imagenet: ImageNet | None = None
    recurrent: bool = False
    reconstructs: bool = False

    @property
    def about(self) -> str:
        """Short description of the architecture, from the docstring of ``features``."""
        return (self.features.__doc__ or "").partition("\n")[0].replace("``", "")


_MINIMALISTIC = {"minimalistic": True}

ARCHITECTURES = {
    "simple_cnn": Architecture(simple_cnn, 28),
    "vgg_small": Architecture(vgg_small, 8),
    "vgg16": Architecture(vgg16, 32, ImageNet("VGG16", "caffe")),
    "resnet8": Architecture(resnet8, 16),
    "resnet14": Architecture(resnet14, 16),
    "resnet14_wide": Architecture(resnet14_wide, 16),
    "resnet20": Architecture(resnet20, 16),
    "se_resnet16": Architecture(se_resnet16, 16),
    "ds_resnet": Architecture(ds_resnet, 16),
    "resnet50": Architecture(resnet50, 32, ImageNet("ResNet50", "caffe")),
    "mobilenet_v1": Architecture(mobilenet_v1, 32, ImageNet("MobileNet", "tf", (0.25, 0.5, 0.75, 1.0))),
    "mobilenet_v2": Architecture(mobilenet_v2, 32, ImageNet("MobileNetV2", "tf", (0.35, 0.5, 0.75, 1.0, 1.3, 1.4))),
    "mobilenet_v3_small": Architecture(mobilenet_v3_small, 32, ImageNet("MobileNetV3Small", "tf", (0.75, 1.0))),
    "mobilenet_v3_large": Architecture(mobilenet_v3_large, 32, ImageNet("MobileNetV3Large", "tf", (0.75, 1.0))),
    "mobilenet_v3_small_minimalistic": Architecture(
        mobilenet_v3_small_minimalistic, 32, ImageNet("MobileNetV3Small", "tf", (1.0,), _MINIMALISTIC)
    ),
    "mobilenet_v3_large_minimalistic": Architecture(
        mobilenet_v3_large_minimalistic, 32, ImageNet("MobileNetV3Large", "tf", (1.0,), _MINIMALISTIC)
    ),
    "efficientnet_b0": Architecture(efficientnet_b0, 32, ImageNet("EfficientNetB0", "torch")),
    "efficientnet_v2_b0": Architecture(efficientnet_v2_b0, 32, ImageNet("EfficientNetV2B0", "torch")),
    "densenet121": Architecture(densenet121, 32, ImageNet("DenseNet121", "torch")),
    "ds_cnn": Architecture(ds_cnn, 16),
    "lstm": Architecture(lstm, 8, recurrent=True),
    "gru": Architecture(gru, 8, recurrent=True),
    "autoencoder": Architecture(autoencoder, 8, reconstructs=True),
}


# Value of model.arch in the runs of imported models, whose architectures are not in ARCHITECTURES.
IMPORTED = "own"
# Value of model.arch for a network that is loaded from the file in model.weights.
BACKBONE = "backbone"


def least_size_px(name: str) -> int:
    """Return the minimum input height and width of an architecture, in pixels."""
    return 1 if name in (IMPORTED, BACKBONE, AUTO) else find(name).least_size_px


def reconstructs(name: str) -> bool:
    """Return whether the architecture called ``name`` is an autoencoder."""
    return name in ARCHITECTURES and ARCHITECTURES[name].reconstructs


def find(name: str) -> Architecture:
    """Return the architecture with this name. If ``name`` refers to a user's Python file, the file is not executed.

    Raises:
        RecipeError: the architecture does not exist. The message suggests the nearest name.
    """
    if name == IMPORTED:
        raise RecipeError(
            "model.arch='own' denotes an imported model, which cannot be trained: set model.arch to an "
            "architecture that 'edgerec models' lists"
        )
    if name == AUTO:
        raise RecipeError(
            "model.arch='auto' is only supported by 'edgerec train': set model.arch to an architecture that "
            "'edgerec models' lists"
        )
    if user_defined.is_user_defined(name):
        return Architecture(user_defined.features, 1)
    if name not in ARCHITECTURES:
        if name.endswith(".py"):
            raise RecipeError(
                f"model.arch is {name!r}, which names a file but no function in it: use {name}:FUNCTION, e.g. "
                f"{name}:build"
            )
        raise RecipeError(
            f"{unknown('architecture', name, ARCHITECTURES)}: run 'edgerec models' to list all architectures"
        )
    return ARCHITECTURES[name]


def find_classifier(name: str) -> Architecture:
    """Return the classifier architecture with this name.

    Raises:
        RecipeError: the architecture does not exist, or it is an autoencoder.
    """
    architecture = find(name)
    if architecture.reconstructs:
        raise RecipeError(f"{name!r} is an autoencoder, not a classifier: choose another architecture")
    return architecture


def build(keras: Any, section: ModelSection, shape: tuple[int, int, int], classes: int, normalize: Normalize) -> Any:
    """Build a Keras model with random weights or ImageNet weights.

    The model maps normalized images, float32 ``(batch, *shape)``, to softmax scores, float32 ``(batch, classes)``. An
    autoencoder maps them to reconstructed images, normalized float32 ``(batch, *shape)``. If ``section.arch`` names a
    function in a user's Python file, the file is executed.
    """
    architecture, pretrained = find(section.arch), None
    section = replace(section, width=section.width or 1.0)
    if section.weights == "imagenet":
        pretrained_names = [name for name, each in ARCHITECTURES.items() if each.imagenet]
        pretrained = imagenet.require_weights(section, architecture.imagenet, shape[2], pretrained_names)
    inputs = keras.Input(shape, name="pixels")
    x = imagenet.match_normalization(keras, inputs, normalize, pretrained.pixels) if pretrained else inputs
    x = architecture.features(keras, x, section)
    if architecture.reconstructs:
        return keras.Model(inputs, x, name=section.arch)
    # The scores are float32 even with mixed precision.
    x = keras.layers.Dense(classes, name="logits", dtype="float32")(x)
    scores = keras.layers.Activation("softmax", name="scores", dtype="float32")(x)
    name = user_defined.plain_name(section.arch) if user_defined.is_user_defined(section.arch) else section.arch
    model = keras.Model(inputs, scores, name=name)
    if pretrained:
        imagenet.load_weights(keras, model, section, pretrained)
    return model
