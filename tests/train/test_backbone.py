"""Find the features of third-party classifiers, to which ``--arch backbone`` adds a new head."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from edgerec import Recipe
from edgerec.errors import ModelError
from edgerec.train import transfer
from edgerec.train.backend import keras

# Networks in Keras' applications, and the width of the features before their head.
APPLICATIONS = {
    "MobileNet": 1024,
    "MobileNetV2": 1280,
    "MobileNetV3Small": 1024,
    "MobileNetV3Large": 1280,
    "VGG16": 4096,
}
LARGE_APPLICATIONS = {"VGG19": 4096, "Xception": 2048, "InceptionV3": 2048, "InceptionResNetV2": 1536}
# Deep families, each with as few blocks as its module builds: module, function, arguments and width of the features.
DEEP_FAMILIES = [
    ("resnet", "ResNet", {"stack_fn": lambda x: x, "preact": False, "use_bias": True}, 64),
    ("resnet", "ResNet", {"stack_fn": lambda x: x, "preact": True, "use_bias": True}, 64),
    ("resnet_rs", "ResNetRS", {"depth": 50, "block_args": [{"input_filters": 8, "num_repeats": 1}] * 4}, 32),
    ("densenet", "DenseNet", {"blocks": [1, 1, 1, 1]}, 68),
    ("nasnet", "NASNet", {"penultimate_filters": 96, "num_blocks": 1, "default_size": 32}, 96),
    ("efficientnet", "EfficientNet", dict.fromkeys(("width_coefficient", "depth_coefficient"), 0.25), 320),
    ("efficientnet_v2", "EfficientNetV2", dict.fromkeys(("width_coefficient", "depth_coefficient"), 0.25), 320),
    ("convnext", "ConvNeXt", {"depths": [1, 1, 1, 1], "projection_dims": [8, 16, 24, 32]}, 32),
    ("regnet", "RegNet", {"depths": [1, 1, 1, 1], "widths": [8, 16, 24, 32], "group_width": 8, "block_type": "X"}, 32),
    ("regnet", "RegNet", {"depths": [1, 1, 1, 1], "widths": [8, 16, 24, 32], "group_width": 8, "block_type": "Y"}, 32),
]


def check_features(model, width):
    tensor = transfer.features(model)
    assert tensor.shape[-1] == width
    inner = keras().Model(model.inputs, tensor)
    before = {layer.name for layer in inner.layers}
    weighted = [layer for layer in model.layers if layer.weights and layer.name not in before]
    assert len(weighted) == 1  # only the head is left out
    assert weighted[0].output.shape[-1] == model.output_shape[-1]


@pytest.mark.parametrize(
    ("name", "width"),
    [*APPLICATIONS.items(), *(pytest.param(*item, marks=pytest.mark.nightly) for item in LARGE_APPLICATIONS.items())],
)
def test_features_of_keras_applications_are_found(name, width):
    size = 75 if "nception" in name or name == "Xception" else 32
    build = getattr(keras().applications, name)
    check_features(build(weights=None, input_shape=(size, size, 3), classes=7), width)


@pytest.mark.parametrize(("module", "function", "options", "width"), DEEP_FAMILIES)
def test_features_of_deep_families_are_found(module, function, options, width):
    keras()
    build = getattr(importlib.import_module(f"tf_keras.src.applications.{module}"), function)
    if module in ("efficientnet", "efficientnet_v2", "regnet"):
        options = options | {"default_size": 32}
    if module == "efficientnet_v2":
        options = options | {"model_name": "efficientnetv2-b0"}
    check_features(build(weights=None, input_shape=(64, 64, 3), classes=7, **options), width)


SMALL = ("simple_cnn", "resnet8", "mobilenet_v3_small_minimalistic", "ds_cnn", "lstm")


def test_features_of_edgerec_architectures_are_found():
    from edgerec.contract.tensors import Normalize
    from edgerec.models import build

    for arch in SMALL:
        section = Recipe().override({"model.arch": arch, "model.width": 0.25, "model.dropout": 0.2}).model
        model = build(keras(), section, (32, 32, 3), 7, Normalize.named("unit"))
        check_features(model, model.get_layer("logits").input.shape[-1])


@pytest.mark.parametrize("name", ["MobileNet", "MobileNetV3Small"])
def test_convolutional_head_is_replaced(name, tmp_path):
    options = {"alpha": 0.25} if name == "MobileNet" else {"alpha": 0.75, "minimalistic": True}
    if name == "MobileNetV3Small":
        options["include_preprocessing"] = False
    keras_model = getattr(keras().applications, name)(weights=None, input_shape=(32, 32, 3), classes=7, **options)
    keras_model.save(tmp_path / "theirs.keras")
    recipe = Recipe().override({"model.weights": str(tmp_path / "theirs.keras"), "data.channels": 3})
    model = transfer.with_new_head(tmp_path / "theirs.keras", 3, recipe)
    names = [layer.name for layer in model.layers]
    softmaxes = [layer for layer in model.layers if getattr(layer, "activation", None) is keras().activations.softmax]
    assert [layer.name for layer in softmaxes] == ["scores"]
    assert model.get_layer("logits").input.shape[-1] == keras_model.layers[-4].input.shape[-1]
    assert not {"conv_preds", "Logits", "predictions"} & set(names)


def conv_net(*head):
    layers = keras().layers
    return keras().Sequential([layers.Input((16, 16, 3)), layers.Conv2D(5, 3, name="body"), *head])


def test_features_before_other_kinds_of_heads_are_found():
    layers = keras().layers
    squeeze = conv_net(layers.Conv2D(4, 1), layers.GlobalAveragePooling2D(), layers.Softmax())
    normalized = conv_net(layers.Flatten(), layers.Dense(4), layers.BatchNormalization(), layers.Activation("softmax"))
    binary = conv_net(layers.Conv2D(1, 14, activation="sigmoid"), layers.Flatten())
    for model in (squeeze, binary):
        assert transfer.features(model).shape == (None, 14, 14, 5)
    assert transfer.features(normalized).shape == (None, 14 * 14 * 5)
    headless = conv_net(layers.Activation("relu"))
    assert transfer.features(headless) is headless.outputs[0]
    pooled = conv_net(layers.GlobalAveragePooling2D())
    assert transfer.features(pooled) is pooled.outputs[0]


def test_model_without_a_layer_that_computes_the_scores_is_refused():
    layers = keras().layers
    inputs = keras().Input((8, 8, 4))
    means = layers.GlobalAveragePooling2D()(inputs)
    model = keras().Model(inputs, layers.Softmax()(layers.Add()([means, means])))
    with pytest.raises(ModelError, match=r"Cannot find the classification layer of .* found 'add\w*' \(Add\)"):
        transfer.features(model)
    assert np.prod(model.output_shape[1:]) == 4
