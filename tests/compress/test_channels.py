"""Channel pruning: the smaller model computes the same as the original model with masked channels."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from edgerec.compress.channel_graph import trace
from edgerec.compress.channel_importance import taylor_importance, weight_importance
from edgerec.compress.channel_selection import choose_channels, cost, macs, removable_groups
from edgerec.compress.channels import shrink, without_channels
from edgerec.compress.context import CompressionContext
from edgerec.compress.convert import check_int8, to_int8
from edgerec.contract.tensors import Normalize
from edgerec.errors import ModelError
from edgerec.models import build
from edgerec.recipe import ModelSection
from edgerec.train.backend import keras
from edgerec.train.scorers import keras_scorer
from edgerec.utils.progress import ignore

UNIT = Normalize.named("unit")


def pixels(model, count=4):
    return np.random.default_rng(1).random((count, *model.input_shape[1:]), np.float32)


def with_batch_statistics(model):
    """Give batch normalizations nontrivial values, so that a wrong slice of their weights changes the outputs."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras().layers.BatchNormalization):
            layer.momentum = 0.0  # the next batch's statistics become its own
            layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(rng.uniform(-0.5, 0.5, layer.beta.shape))
    model(pixels(model, 16), training=True)
    return model


def edgerec_model(arch, width=1.0, size=16):
    section = ModelSection(arch=arch, width=width)
    return with_batch_statistics(build(keras(), section, (size, size, 3), 5, UNIT))


def built(features, size=8):
    """Build a model with five classes around ``features(layers, tensor)``."""
    layers = keras().layers
    inputs = keras().Input((size, size, 3))
    x = layers.Dense(5)(features(layers, inputs))
    return with_batch_statistics(keras().Model(inputs, layers.Softmax()(x)))


def concatenated(layers, x):
    """A concatenation followed by an addition, so that channels of two layers depend on one layer."""
    a = layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same", use_bias=False)(x))
    b = layers.PReLU(shared_axes=(1, 2))(layers.SeparableConv2D(24, 3, padding="same", depth_multiplier=2)(x))
    joined = layers.Concatenate()([a, b])
    joined = layers.Add()([joined, layers.Conv2D(40, 1)(joined)])
    y = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same")(joined)
    y = layers.Conv2DTranspose(16, 3, strides=2, padding="same", activation="relu")(y)
    y = layers.Dense(24, activation="relu")(layers.Flatten()(layers.MaxPooling2D(4)(y)))
    return layers.Dropout(0.1)(y)


def squeezed(layers, x):
    """Squeeze and excitation, in which the channels of the factors depend on the channels that they scale."""
    x = layers.Conv2D(32, 3, activation="relu")(x)
    s = layers.Dense(16, activation="relu")(layers.GlobalAveragePooling2D()(x))
    s = layers.Reshape((1, 1, 32))(layers.Dense(32, activation="sigmoid")(s))
    return layers.GlobalAveragePooling2D()(layers.Multiply()([x, s]))


MODELS = {
    "plain, flattened": lambda: edgerec_model("simple_cnn", size=28),
    "residual": lambda: edgerec_model("resnet8"),
    "residual, squeezed and excited": lambda: edgerec_model("se_resnet16", 0.5),
    "depthwise-separable": lambda: edgerec_model("mobilenet_v1", 0.25, 32),
    "inverted residual": lambda: edgerec_model("mobilenet_v2", 0.35, 32),
    "concatenated": lambda: built(concatenated),
    "squeeze and excitation": lambda: built(squeezed),
}


@pytest.mark.parametrize("name", MODELS)
def test_smaller_model_equals_model_with_masked_channels(name):
    model = MODELS[name]()
    before = [weight.copy() for weight in model.get_weights()]
    graph = trace(model)
    keep = choose_channels(graph, removable_groups(graph), weight_importance(graph), 0.5 * cost(model), 0)
    smaller = without_channels(model, graph, keep)
    assert cost(smaller) <= 0.5 * cost(model)
    assert smaller.count_params() < model.count_params()
    assert (smaller.input_shape, smaller.output_shape) == (model.input_shape, model.output_shape)
    assert [type(layer) for layer in smaller.layers] == [type(layer) for layer in model.layers]
    images = pixels(model)
    expected = with_masked_channels(model, graph, keep)(images).numpy()
    np.testing.assert_allclose(smaller(images).numpy(), expected, atol=1e-5)
    np.testing.assert_array_equal(shrink(model, 0.5, None)(images).numpy(), smaller(images).numpy())
    assert np.abs(expected - model(images).numpy()).max() > 1e-4  # the removed channels had an effect
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def with_masked_channels(model, graph, keep):
    """Return a copy with zeros in all weights that read a removed channel."""
    copy = keras().models.clone_model(model)
    copy.set_weights(model.get_weights())
    for name, entry in graph.layers.items():
        kernel_axis = {"Conv2D": 2, "Conv2DTranspose": 3, "SeparableConv2D": 2, "Dense": 0}.get(
            type(entry.layer).__name__
        )
        if kernel_axis is not None:
            kernel, *rest = copy.get_layer(name).get_weights()
            np.moveaxis(kernel, kernel_axis, 0)[~keep[entry.inputs]] = 0
            copy.get_layer(name).set_weights([kernel, *rest])
    return copy


def test_dead_channels_are_removed_first_without_changing_outputs():
    model = edgerec_model("resnet8")
    graph = trace(model)
    dead = {}
    rng = np.random.default_rng(0)
    for name in ("conv2d", "conv2d_1", "conv2d_3", "conv2d_4", "conv2d_6", "conv2d_7"):
        # Set half of the channels of each group to zero, in the layers that create and that use them.
        name = next(layer for layer in graph.layers if layer.removeprefix("conv2d") == suffix(graph, name))
        outputs = graph.layers[name].outputs
        dead |= dict.fromkeys(outputs[rng.permutation(len(outputs))[: len(outputs) // 2]].tolist())
    for entry in graph.layers.values():
        weights = entry.layer.get_weights()
        out = np.isin(entry.outputs, list(dead))
        if entry.axes == ("hwio", "o") and out.any():
            weights[0][..., out], weights[1][out] = 0, 0
        if len(entry.axes) == 4:
            weights[0][out], weights[1][out] = 0, 0
        entry.layer.set_weights(weights)
    smaller = shrink(model, 0.6, None)
    images = pixels(model)
    np.testing.assert_allclose(smaller(images).numpy(), model(images).numpy(), atol=1e-5)
    assert cost(smaller) <= 0.4 * cost(model)


def suffix(graph, name):
    """Return the number in the name of the n-th convolution, because Keras numbers layers per process."""
    convolutions = [layer for layer in graph.layers if layer.startswith("conv2d")]
    convolutions.sort(key=lambda layer: int(layer.partition("_")[2] or 0))
    return convolutions[int(name.partition("_")[2] or 0)].removeprefix("conv2d")


def test_macs_and_cost_match_a_manual_calculation():
    def features(layers, x):
        x = layers.Conv2D(16, 3, padding="same", strides=2)(x)
        x = layers.DepthwiseConv2D(3, padding="same")(x)
        return layers.GlobalAveragePooling2D()(layers.Conv2D(24, 1)(layers.Add()([x, x])))

    model = built(features, size=8)
    stem, depthwise, pointwise, classes = 16 * 9 * 3 * 16, 16 * 9 * 16, 16 * 16 * 24, 24 * 5
    assert macs(model) == stem + depthwise + pointwise + classes
    written = 16 * 16 * 3 + 16 * 24 + 5
    assert cost(model) == macs(model) + 3 * depthwise + 20 * written


def test_residual_channels_match_and_are_multiples_of_the_block_size():
    model = edgerec_model("resnet8")
    smaller = shrink(model, 0.6, None)
    filters = {layer.name: layer.filters for layer in smaller.layers if hasattr(layer, "filters")}
    assert all(count % 8 == 0 for count in filters.values())
    # Kernels compute 16 channels at once, so layers with at least 32 channels keep a multiple of 16.
    original = {layer.name: layer.filters for layer in model.layers if hasattr(layer, "filters")}
    assert {filters[name] % 16 for name, count in original.items() if count >= 32} == {0}
    assert any(filters[name] % 16 for name, count in original.items() if count < 32)
    for layer in smaller.layers:
        if isinstance(layer, keras().layers.Add):
            assert len({tensor.shape[-1] for tensor in layer.input}) == 1
    fine = shrink(model, 0.6, None, multiple=1)
    assert any(layer.filters % 8 for layer in fine.layers if hasattr(layer, "filters"))
    # With smaller blocks, the cost is closer to the target.
    assert cost(smaller) <= cost(fine) <= 0.4 * cost(model) < 1.05 * cost(fine)


def test_int8_file_of_smaller_model_is_smaller():
    model = edgerec_model("resnet8")
    calibration = pixels(model, 8)
    calibration[0, 0, 0, :2] = 0, 1
    content = to_int8(shrink(model, 0.8, None), calibration)
    check_int8(content, UNIT)
    assert len(content) < 0.6 * len(to_int8(model, calibration))


def test_channels_around_unknown_layers_are_not_removed(caplog):
    class Mixing(keras().layers.Layer):
        def call(self, x):
            return x - keras().backend.mean(x, axis=-1, keepdims=True)

    def features(layers, x):
        x = layers.Conv2D(24, 3, activation="relu", name="free")(x)
        x = Mixing(name="mixing")(layers.Conv2D(24, 3, activation="relu", name="held")(x))
        x = layers.Conv2D(24, 1, name="after")(x)
        return layers.GlobalAveragePooling2D()(layers.Conv2D(24, 1, groups=2, name="grouped")(x))

    with caplog.at_level(logging.WARNING):
        smaller = shrink(built(features), 0.9, None)
    assert "mixing (Mixing), grouped (Conv2D)" in caplog.text
    assert "no more channels can be removed" in caplog.text
    widths = {name: smaller.get_layer(name).filters for name in ("free", "held", "after", "grouped")}
    assert widths == {"free": 8, "held": 24, "after": 24, "grouped": 24}


def test_layer_that_mixes_channels_under_a_known_name_is_refused():
    class Dropout(keras().layers.Layer):
        def call(self, x):
            return x - keras().backend.mean(x, axis=-1, keepdims=True)

    def features(layers, x):
        return layers.GlobalAveragePooling2D()(Dropout()(layers.Conv2D(24, 3, activation="relu")(x)))

    with pytest.raises(ModelError, match="custom layer with the same name as a Keras layer"):
        shrink(built(features), 0.5, None)


def test_error_explains_why_no_channels_can_be_removed():
    layers = keras().layers
    classes_only = keras().Sequential([layers.Flatten(input_shape=(8, 8, 3)), layers.Dense(5, activation="softmax")])
    with pytest.raises(ModelError, match="the only channels are the classes"):
        shrink(classes_only, 0.5, None)
    with pytest.raises(ModelError, match=r"no layer of .* has more than 8 removable channels"):
        shrink(built(lambda layers, x: layers.Flatten()(layers.Conv2D(8, 3)(x))), 0.5, None)
    with pytest.raises(ModelError, match=r"grouped \(Conv2D\) may need all of their channels"):
        shrink(built(lambda layers, x: layers.Flatten()(layers.Conv2D(9, 3, groups=3, name="grouped")(x))), 0.5, None)
    with pytest.raises(ModelError, match=r"by 0\.95: expected a fraction from 0 to 0\.9"):
        shrink(classes_only, 0.95, None)


def test_fine_tuning_restores_accuracy(run, tmp_path):
    recipe, (dataset, split) = run.recipe, run.data()
    model = run.model()
    quick = recipe.override({"compress.epochs": 2, "compress.learning_rate": 1e-3})
    with CompressionContext.open(run, quick, None, ignore) as context:
        tune = context.fine_tune(tmp_path)

    def scored(model, subset):
        return keras_scorer(model, recipe.normalize)(dataset.images[subset], ignore), dataset.classes[subset]

    def top1(model):
        scores, classes = scored(model, split.val)
        return np.mean(scores.argmax(axis=1) == classes)

    def loss(model):  # more precise than top-1 accuracy of few images
        scores, classes = scored(model, split.train)
        return -np.mean(np.log(np.maximum(scores[np.arange(len(classes)), classes], 1e-7)))

    smaller = shrink(model, 0.6, tune)
    assert cost(smaller) <= 0.4 * cost(model)
    assert top1(smaller) > top1(model) - 0.03
    # Without fine-tuning, removing the least important channels costs less than removing the most important ones.
    graph = trace(model)
    scores = taylor_importance(model, graph, tune)
    groups, target = removable_groups(graph), 0.5 * cost(model)
    least_important, most_important = (
        choose_channels(graph, groups, s, target, 0) for s in (scores, scores.max() - scores)
    )
    small_loss, large_loss = (without_channels(model, graph, keep) for keep in (least_important, most_important))
    assert loss(small_loss) < 0.5 * loss(large_loss)
    without_fine_tuning = shrink(model, 0.5, replace(tune, epochs=0))
    assert loss(without_fine_tuning) == loss(small_loss)
