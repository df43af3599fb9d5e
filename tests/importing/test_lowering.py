"""Third-party models are rewritten for int8 training without changing their outputs."""

from __future__ import annotations

import numpy as np
import pytest

from edgerec.compress.convert import to_int8
from edgerec.compress.fake_quantization import with_fake_quantization
from edgerec.contract.tensors import Normalize
from edgerec.errors import ModelError
from edgerec.importing import passes
from edgerec.importing.passes import adapt
from edgerec.runtime.image_model import ImageModel
from edgerec.tflite.edgetpu import diagnose
from edgerec.tflite.flatbuffer import float_tensors, read_graph
from edgerec.train.backend import keras

RAW = Normalize(0.0, 1.0)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)


@pytest.fixture(autouse=True)
def _seed():
    keras().utils.set_random_seed(0)


def with_batch_statistics(model):
    """Give batch normalizations nontrivial values."""
    rng = np.random.default_rng(1)
    for layer in model._flatten_layers(recursive=True, include_self=False):
        if isinstance(layer, keras().layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return model


def model_of(*layers, shape=(8, 8, 3)):
    return with_batch_statistics(keras().Sequential([keras().Input(shape), *layers]))


def kinds(model):
    return [type(layer).__name__ for layer in model.layers]


def adapted_with_same_outputs(model, pixels, purpose="qat"):
    """Adapt a model, and check that the outputs are equal up to float rounding and the original is unchanged."""
    x = pixels.astype(np.float32)
    before, weights = model(x, training=False).numpy(), [w.copy() for w in model.get_weights()]
    adapted = adapt(model, purpose, x)
    after = adapted.model(x, training=False).numpy()
    assert np.abs(after - before).max() == pytest.approx(adapted.max_difference, abs=1e-6)
    assert np.abs(after - before).max() <= 1e-5 * max(1, np.abs(before).max())
    assert adapted.changes
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), weights, strict=True))
    assert adapt(adapted.model, purpose).model is adapted.model  # a second call changes nothing
    return adapted


def hard_sigmoid(x):
    """Return a hard sigmoid as in the graph of Keras' MobileNetV3."""
    return keras().layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)


def model_with_everything():
    """A model with augmentation, scaling, a nested base, hard-swish, squeeze-and-excite and batch normalizations."""
    layers = keras().layers
    inputs = keras().Input((8, 8, 3))
    flip = layers.RandomFlip("horizontal", name="random_flip")
    x = keras().Sequential([flip, layers.Rescaling(1 / 127.5, offset=-1, name="rescaling")])(inputs)
    x = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same", use_bias=False)(x))
    x = layers.Multiply()([x, hard_sigmoid(x)])
    gate = layers.Conv2D(4, 1, activation="relu6")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = x * layers.Conv2D(4, 1, activation="hard_sigmoid")(gate)
    y = layers.Conv2D(4, 1)(layers.ReLU()(layers.BatchNormalization()(x)))
    base = keras().Sequential(
        [layers.Conv2D(4, 3, padding="same", activation="swish"), layers.BatchNormalization(), layers.Dropout(0.2)]
    )
    pooled = [layers.AveragePooling2D()(branch) for branch in (base(y, training=False), x)]
    x = layers.Concatenate()(pooled) * 2 - 0.5
    x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(6)(layers.Flatten()(x))))
    return with_batch_statistics(keras().Model(inputs, layers.Dense(5, activation="softmax")(x)))


def test_model_with_all_unsupported_layers_becomes_int8(pixels):
    adapted = adapted_with_same_outputs(model_with_everything(), pixels)
    changes = {change.layer: change for change in adapted.changes}
    assert "removed" in changes["random_flip"].what
    assert changes["rescaling"].what == "Rescaling → 1×1 depthwise convolution"
    assert {"TFOpLambda", "Sequential", "Rescaling"} & set(kinds(adapted.model)) == set()
    assert kinds(adapted.model).count("BatchNormalization") == 1  # the one that is folded into its convolution
    quantized = with_fake_quantization(adapted.model, RAW)
    x = pixels.astype(np.float32)
    quantized(x, training=True)  # calibrates the ranges
    content = to_int8(quantized)
    graph = read_graph(content)
    assert float_tensors(graph) == []
    assert diagnose(graph).findings == ()
    scores = np.stack([ImageModel(content, RAW).scores(image) for image in pixels])
    assert np.abs(scores - quantized(x, training=False).numpy()).max() < 0.05


def test_supported_model_is_returned_unchanged():
    layers = keras().layers
    model = model_of(layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(), layers.Flatten(), layers.Dense(5))
    assert adapt(model).model is model
    assert adapt(model).changes == ()


def test_nested_models_keep_their_weights_names_and_modes(pixels):
    layers = keras().layers
    inner = model_of(layers.Conv2D(4, 3, name="conv"), layers.BatchNormalization(name="norm"))
    middle = keras().Sequential([inner, layers.ReLU()])
    inputs = keras().Input((8, 8, 3))
    x = middle(inputs, training=False)
    model = keras().Model(inputs, layers.Dense(5)(layers.Flatten()(layers.Conv2D(2, 3, name="conv")(x))))
    adapted = adapted_with_same_outputs(model, pixels).model
    assert kinds(adapted) == ["InputLayer", "Conv2D", "BatchNormalization", "ReLU", "Conv2D", "Flatten", "Dense"]
    assert [layer.name for layer in adapted.layers if "conv" in layer.name] == ["conv", "conv_1"]
    assert not adapted.get_layer("norm").trainable  # it was called with training=False
    assert np.array_equal(adapted.get_layer("conv").get_weights()[0], inner.get_layer("conv").get_weights()[0])


def test_preprocessing_is_merged_into_one_convolution_or_removed(pixels):
    layers = keras().layers
    norm = layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 5.0, 6.0])
    model = model_of(layers.Rescaling(1 / 255), norm, layers.Rescaling(1.0), layers.Resizing(8, 8), layers.Flatten())
    adapted = adapted_with_same_outputs(model, pixels)
    assert kinds(adapted.model) == ["InputLayer", "DepthwiseConv2D", "Flatten"]
    assert not adapted.model.layers[1].trainable
    assert [change.what for change in adapted.changes if "removed" in change.what] == [
        "Resizing → removed",
        "Rescaling → removed, because it changes nothing",
    ]


def test_lone_batch_normalization_stays_trainable(pixels):
    layers = keras().layers
    model = model_of(layers.Conv2D(4, 3, activation="relu"), layers.BatchNormalization(), layers.Flatten())
    adapted = adapted_with_same_outputs(model, pixels).model
    assert kinds(adapted) == ["InputLayer", "Conv2D", "DepthwiseConv2D", "Flatten"]
    assert len(adapted.layers[2].trainable_weights) == 2


def test_operators_become_layers(pixels):
    import tensorflow as tf

    inputs = keras().Input((8, 8, 3))
    x = tf.nn.relu6(tf.pad(inputs / 50 - 1.0, [[0, 0], [1, 1], [1, 1], [0, 0]]))
    x = tf.concat([2.0 - x, tf.clip_by_value(x, 1.0, 3.0), tf.nn.swish(-x)], -1)
    x = keras().layers.Average()([x + x, tf.maximum(x, 0.0), keras().layers.ReLU(4.0)(x)])
    model = keras().Model(inputs, tf.reduce_mean(tf.sigmoid(x), [1, 2]))
    adapted = adapted_with_same_outputs(model, pixels).model
    assert not any("Lambda" in kind for kind in kinds(adapted))


@pytest.mark.parametrize("name", ["SimpleRNN", "GRU", "LSTM"])
def test_recurrent_models_support_only_post_training_quantization(name, pixels):
    layers = keras().layers
    model = model_of(layers.Rescaling(1 / 255), layers.Reshape((4, 48)), getattr(layers, name)(4), layers.Dense(5))
    with pytest.raises(ModelError, match=rf"\({name}\) processes a sequence step by step.* --method ptq"):
        adapt(model)
    if name != "LSTM":
        both = layers.Bidirectional(getattr(layers, name)(4))
        with pytest.raises(ModelError, match=r"\(Bidirectional\) is a loop.* use an LSTM"):
            adapt(model_of(layers.Reshape((4, 48)), both), "ptq")
    adapted = adapted_with_same_outputs(model, pixels, "ptq").model
    graph = read_graph(to_int8(adapted, pixels.astype(np.float32)))
    assert float_tensors(graph) == []
    assert graph.subgraphs == 1  # no loop


def test_error_names_unsupported_layer():
    layers = keras().layers
    for purpose, layer, message in (
        ("qat", layers.Lambda(lambda x: x), r"'lambda.* is a Lambda, whose code edgerec never executes"),
        ("ptq", layers.Lambda(lambda x: x), r"'lambda.* is a Lambda, whose code edgerec never executes"),
        ("qat", layers.LayerNormalization(), r"\(LayerNormalization\) is not supported .* --method ptq"),
        ("qat", layers.Conv2D(4, 3, activation="elu"), r"has the activation elu.* --method ptq"),
        ("qat", layers.TimeDistributed(layers.Dense(2)), r"\(TimeDistributed\) processes a sequence step by step"),
        (
            "pqat",
            layers.Conv2DTranspose(4, 3),
            r"\(Conv2DTranspose\) would lose its pruned \(zero\) weights.*UpSampling2D",
        ),
        ("prune", layers.TimeDistributed(layers.Dense(2)), r"\(TimeDistributed\) is not supported by pruning"),
        ("ptq", layers.Resizing(4, 4), r"\(Resizing\) resizes images from 8×8 to 4×4.* without the layer"),
    ):
        with pytest.raises(ModelError, match=message):
            adapt(model_of(layer, layers.Flatten()), purpose)


def test_layers_are_refused_only_for_purposes_that_do_not_support_them():
    layers = keras().layers
    transposed = model_of(layers.Conv2DTranspose(4, 3), layers.Flatten(), layers.Dense(5))
    assert adapt(transposed, "qat").model is transposed
    normed = model_of(layers.LayerNormalization(), layers.Flatten(), layers.Dense(5))
    assert adapt(normed, "ptq").model is normed


def test_nan_weights_are_refused():
    inputs = keras().Input((8, 8, 3))
    model = keras().Model(inputs, keras().layers.Dense(5, name="scores")(keras().layers.Flatten()(inputs)))
    model.get_layer("scores").kernel.assign(np.full((192, 5), np.nan))
    with pytest.raises(ModelError, match=r"NaN or infinite weights in 'scores/kernel:0'"):
        adapt(model)


def test_model_that_amplifies_rounding_errors_is_accepted():
    """A normalization as a convolution has other rounding errors, which this model amplifies beyond TOLERANCE.

    The CPU decides which weights cause rounding errors, so several random weights are tried.
    """
    layers = keras().layers
    x = np.random.default_rng(0).uniform(0, 1, (4, 8, 8, 3)).astype(np.float32)

    def max_difference(seed):
        keras().utils.set_random_seed(seed)
        normalization = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[0.05, 0.06, 0.07])
        logits = layers.Dense(3, kernel_initializer=keras().initializers.RandomNormal(stddev=1e7))
        model = model_of(normalization, layers.Conv2D(4, 3, activation="relu"), layers.GlobalAveragePooling2D(), logits)
        # The scores of the first image are equal.
        logits.set_weights([logits.get_weights()[0], -model(x[:1]).numpy()[0]])
        return adapt(keras().Model(model.input, layers.Softmax()(model.output)), "qat", x).max_difference

    assert any(max_difference(seed) > passes.TOLERANCE for seed in range(20))


def test_rewriting_that_changes_outputs_is_refused(monkeypatch, pixels):
    layers = keras().layers
    model = model_of(layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(3))
    monkeypatch.setattr(passes, "INACTIVE", ("Rescaling",))  # removed as if it did nothing
    with pytest.raises(ModelError, match=r"changed its outputs by .* \(the first rewritten layer is 'rescaling"):
        adapt(model, "qat", pixels.astype(np.float32))
