"""Models of other people's making, adapted: the same answers, and int8 training takes them."""

from __future__ import annotations

import numpy as np
import pytest

from edgerec.compress.convert import to_int8
from edgerec.compress.qat import with_fake_quantization
from edgerec.contract.tensors import Normalise
from edgerec.errors import ModelError
from edgerec.importing import passes
from edgerec.importing.passes import adapt
from edgerec.runtime.model import ImageModel
from edgerec.tflite.edgetpu import check
from edgerec.tflite.flatbuffer import float_tensors, read_graph
from edgerec.train.backend import keras

RAW = Normalise(0.0, 1.0)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)


@pytest.fixture(autouse=True)
def _seed():
    keras().utils.set_random_seed(0)


def settled(model):
    """Batch normalisations that do something."""
    rng = np.random.default_rng(1)
    for layer in model._flatten_layers(recursive=True, include_self=False):
        if isinstance(layer, keras().layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return model


def model_of(*layers, shape=(8, 8, 3)):
    return settled(keras().Sequential([keras().Input(shape), *layers]))


def kinds(model):
    return [type(layer).__name__ for layer in model.layers]


def same(model, pixels, purpose="qat"):
    """Adapted, with the same answers to within float rounding; the model given is untouched."""
    x = pixels.astype(np.float32)
    before, weights = model(x, training=False).numpy(), [w.copy() for w in model.get_weights()]
    adapted = adapt(model, purpose, x)
    after = adapted.model(x, training=False).numpy()
    assert np.abs(after - before).max() == pytest.approx(adapted.max_difference, abs=1e-6)
    assert np.abs(after - before).max() <= 1e-5 * max(1, np.abs(before).max())
    assert adapted.changes
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), weights, strict=True))
    assert adapt(adapted.model, purpose).model is adapted.model  # nothing is left to do
    return adapted


def hard_sigmoid(x):
    """As Keras' MobileNetV3 writes it into the graph."""
    return keras().layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)


def everything():
    """What people build: augmentation and scaling inside, a nested base, hard-swish, squeeze-and-excite, lone BNs."""
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
    return settled(keras().Model(inputs, layers.Dense(5, activation="softmax")(x)))


def test_everything_at_once_trains_as_int8(pixels):
    adapted = same(everything(), pixels)
    told = {change.layer: change for change in adapted.changes}
    assert "removed" in told["random_flip"].what
    assert told["rescaling"].what == "Rescaling → 1×1 depthwise convolution"
    assert {"TFOpLambda", "Sequential", "Rescaling"} & set(kinds(adapted.model)) == set()
    assert kinds(adapted.model).count("BatchNormalization") == 1  # the one that its convolution takes in
    aware = with_fake_quantization(adapted.model, RAW)
    x = pixels.astype(np.float32)
    aware(x, training=True)  # ranges are learned
    content = to_int8(aware)
    graph = read_graph(content)
    assert float_tensors(graph) == []
    assert check(graph) == []
    said = np.stack([ImageModel(content, RAW).scores(picture) for picture in pixels])
    assert np.abs(said - aware(x, training=False).numpy()).max() < 0.05


def test_a_model_that_needs_nothing_stays_itself():
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
    adapted = same(model, pixels).model
    assert kinds(adapted) == ["InputLayer", "Conv2D", "BatchNormalization", "ReLU", "Conv2D", "Flatten", "Dense"]
    assert [layer.name for layer in adapted.layers if "conv" in layer.name] == ["conv", "conv_1"]
    assert not adapted.get_layer("norm").trainable  # it was called with training=False
    assert np.array_equal(adapted.get_layer("conv").get_weights()[0], inner.get_layer("conv").get_weights()[0])


def test_preprocessing_joins_into_one_convolution_or_is_left_out(pixels):
    layers = keras().layers
    norm = layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 5.0, 6.0])
    model = model_of(layers.Rescaling(1 / 255), norm, layers.Rescaling(1.0), layers.Resizing(8, 8), layers.Flatten())
    adapted = same(model, pixels)
    assert kinds(adapted.model) == ["InputLayer", "DepthwiseConv2D", "Flatten"]
    assert not adapted.model.layers[1].trainable
    assert [change.what for change in adapted.changes if "removed" in change.what] == [
        "Resizing → removed",
        "Rescaling → removed, because it changes nothing",
    ]


def test_lone_batch_normalization_learns_on(pixels):
    layers = keras().layers
    model = model_of(layers.Conv2D(4, 3, activation="relu"), layers.BatchNormalization(), layers.Flatten())
    adapted = same(model, pixels).model
    assert kinds(adapted) == ["InputLayer", "Conv2D", "DepthwiseConv2D", "Flatten"]
    assert len(adapted.layers[2].trainable_weights) == 2


def test_operators_become_layers(pixels):
    import tensorflow as tf

    inputs = keras().Input((8, 8, 3))
    x = tf.nn.relu6(tf.pad(inputs / 50 - 1.0, [[0, 0], [1, 1], [1, 1], [0, 0]]))
    x = tf.concat([2.0 - x, tf.clip_by_value(x, 1.0, 3.0), tf.nn.swish(-x)], -1)
    x = keras().layers.Average()([x + x, tf.maximum(x, 0.0), keras().layers.ReLU(4.0)(x)])
    model = keras().Model(inputs, tf.reduce_mean(tf.sigmoid(x), [1, 2]))
    adapted = same(model, pixels).model
    assert not any("Lambda" in kind for kind in kinds(adapted))


@pytest.mark.parametrize("name", ["SimpleRNN", "GRU", "LSTM"])
def test_recurrent_models_are_for_post_training_quantization(name, pixels):
    layers = keras().layers
    model = model_of(layers.Rescaling(1 / 255), layers.Reshape((4, 48)), getattr(layers, name)(4), layers.Dense(5))
    with pytest.raises(ModelError, match=rf"\({name}\) is recurrent.* --method ptq"):
        adapt(model)
    if name != "LSTM":
        both = layers.Bidirectional(getattr(layers, name)(4))
        with pytest.raises(ModelError, match=r"\(Bidirectional\) is a loop.* use an LSTM"):
            adapt(model_of(layers.Reshape((4, 48)), both), "ptq")
    adapted = same(model, pixels, "ptq").model
    graph = read_graph(to_int8(adapted, pixels.astype(np.float32)))
    assert float_tensors(graph) == []
    assert graph.subgraphs == 1  # no loop


def test_what_cannot_be_taken_is_named():
    layers = keras().layers
    for purpose, layer, message in (
        ("qat", layers.Lambda(lambda x: x), r"'lambda.* is a Lambda, whose code is never run"),
        ("ptq", layers.Lambda(lambda x: x), r"'lambda.* is a Lambda, whose code is never run"),
        ("qat", layers.LayerNormalization(), r"\(LayerNormalization\) is not supported .* --method ptq"),
        ("qat", layers.Conv2D(4, 3, activation="elu"), r"has the activation elu.* --method ptq"),
        ("qat", layers.TimeDistributed(layers.Dense(2)), r"\(TimeDistributed\) is recurrent"),
        ("pqat", layers.Conv2DTranspose(4, 3), r"\(Conv2DTranspose\) cannot keep its zero weights.*UpSampling2D"),
        ("prune", layers.TimeDistributed(layers.Dense(2)), r"\(TimeDistributed\) is not supported by pruning"),
        ("ptq", layers.Resizing(4, 4), r"\(Resizing\) resizes images from \(8, 8\) to 4×4.* without the layer"),
    ):
        with pytest.raises(ModelError, match=message):
            adapt(model_of(layer, layers.Flatten()), purpose)


def test_a_layer_that_may_stay_for_one_purpose_is_no_obstacle_for_another():
    layers = keras().layers
    transposed = model_of(layers.Conv2DTranspose(4, 3), layers.Flatten(), layers.Dense(5))
    assert adapt(transposed, "qat").model is transposed
    normed = model_of(layers.LayerNormalization(), layers.Flatten(), layers.Dense(5))
    assert adapt(normed, "ptq").model is normed


def test_weights_that_are_no_numbers_are_refused():
    inputs = keras().Input((8, 8, 3))
    model = keras().Model(inputs, keras().layers.Dense(5, name="scores")(keras().layers.Flatten()(inputs)))
    model.get_layer("scores").kernel.assign(np.full((192, 5), np.nan))
    with pytest.raises(ModelError, match=r"'scores' .* NaN or infinite"):
        adapt(model)


def test_a_network_that_amplifies_rounding_is_taken():
    """Normalisation as a convolution rounds otherwise, which this one's gain makes more than TOLERANCE."""
    layers = keras().layers
    x = np.random.default_rng(0).uniform(0, 1, (4, 8, 8, 3)).astype(np.float32)
    normalised = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[0.05, 0.06, 0.07])
    logits = layers.Dense(3, kernel_initializer=keras().initializers.RandomNormal(stddev=1e7))
    model = model_of(normalised, layers.Conv2D(4, 3, activation="relu"), layers.GlobalAveragePooling2D(), logits)
    logits.set_weights([logits.get_weights()[0], -model(x[:1]).numpy()[0]])  # the first picture's scores are alike
    whole = keras().Model(model.input, layers.Softmax()(model.output))
    assert adapt(whole, "qat", x).max_difference > passes.TOLERANCE


def test_a_change_that_is_wrong_is_refused(monkeypatch, pixels):
    layers = keras().layers
    model = model_of(layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(3))
    monkeypatch.setattr(passes, "INACTIVE", ("Rescaling",))  # left out, as if it did nothing
    with pytest.raises(ModelError, match=r"changed its outputs by .* \(the first rewritten layer is 'rescaling"):
        adapt(model, "qat", pixels.astype(np.float32))
