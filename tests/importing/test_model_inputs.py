"""Third-party Keras models with preprocessing, nested models, precisions and layouts that edgerec does not create."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from edgerec import Classifier, adopt, export_bundle, quantize, verify
from edgerec.contract.bundle import Bundle
from edgerec.contract.tensors import Normalize
from edgerec.errors import ModelError
from edgerec.importing.equivalence import compute_outputs
from edgerec.importing.passes import adapt
from edgerec.importing.third_party_keras import expects_pixels, read_third_party
from edgerec.train.backend import keras
from edgerec.train.run import KERAS3
from tests.compress.test_quantize import is_full_int8
from tests.conftest import REPOSITORY

SIZE = 16
SHAPE = (SIZE, SIZE, 3)


@pytest.fixture(scope="module")
def keras3_models(tmp_path_factory):
    """A folder with models that Keras 3 saved, and with their outputs in ``outputs.npz``."""
    folder = tmp_path_factory.mktemp("keras3")
    command = [sys.executable, "-m", "tests.keras3_inputs", str(folder)]
    subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY)
    return folder


@pytest.fixture
def pixels():
    return np.random.default_rng(0).uniform(0, 255, (6, *SHAPE)).astype(np.float32)


def spread(model):
    """Set weights that make the outputs depend on the image."""
    rng = np.random.default_rng(5)
    model.set_weights([rng.uniform(0.05, 0.5, w.shape) - 0.2 * (w.ndim > 1) for w in model.get_weights()])
    return model


def outputs_of(folder, name):
    with np.load(folder / "outputs.npz") as arrays:
        return arrays[name]


# Precision


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"])
def test_keras_3_models_in_half_precision_are_read_in_float32(keras3_models, policy, pixels):
    model = read_third_party(keras3_models / f"{policy}.keras")
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    # The original rounds to 8 (bfloat16) or 11 bits in every layer.
    np.testing.assert_allclose(model(pixels), outputs_of(keras3_models, policy), atol=0.05)


# Preprocessing in the graph


@pytest.mark.parametrize("name", ["caffe", "torch", "reversed", "cropped"])
def test_preprocessing_in_a_keras_3_graph_is_kept(keras3_models, name, pixels):
    model = read_third_party(keras3_models / f"{name}.keras")
    np.testing.assert_allclose(model(pixels), outputs_of(keras3_models, name), atol=1e-4)
    for purpose in ("qat", "ptq", "prune"):
        adapted = adapt(model, purpose, pixels).model
        np.testing.assert_allclose(adapted(pixels), outputs_of(keras3_models, name), atol=1e-4)
    assert expects_pixels(model)


def test_unsupported_indexing_is_named(keras3_models):
    with pytest.raises(ModelError, match=r"operator 'get_item\w*' \(GetItem\) is not supported, because it neither"):
        read_third_party(keras3_models / "strided.keras")


# Keras 2 cannot write the ellipsis of "caffe" to .keras.
@pytest.mark.parametrize(
    ("mode", "suffix"), [("caffe", ".h5"), ("torch", ".h5"), ("torch", ".keras"), ("tf", ".h5"), ("tf", ".keras")]
)
def test_preprocessing_in_a_keras_2_graph_is_kept(tmp_path, mode, suffix, pixels):
    layers, inputs = keras().layers, keras().Input(SHAPE)
    x = keras().applications.imagenet_utils.preprocess_input(inputs, mode=mode)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(x))
    model = spread(keras().Model(inputs, layers.Dense(3, "softmax")(x)))
    model.save(tmp_path / f"m{suffix}")
    read = read_third_party(tmp_path / f"m{suffix}")
    for same in (read, adapt(read, "qat", pixels).model):
        np.testing.assert_allclose(same(pixels), model(pixels), atol=1e-4)


# Normalization outside of the graph


def color_folder(folder):
    """Write images of three colors, in one folder per color."""
    rng = np.random.default_rng(0)
    for index, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            image = rng.integers(0, 60, SHAPE).astype(np.uint8)
            image[..., index] += 150
            cv2.imwrite(str(folder / name / f"{number}.png"), image[:, :, ::-1])
    return folder


def caffe_model():
    """A model that is right only on BGR images minus Keras' means. The class is the strongest channel of the image.

    The biases undo the means, which the softmax would otherwise turn into other classes.
    """
    layers = keras().layers
    model = keras().Sequential(
        [keras().Input(SHAPE), layers.GlobalAveragePooling2D(), layers.Dense(3, activation="softmax")]
    )
    model.layers[-1].set_weights([np.eye(3) * 0.2, np.array([103.939, 116.779, 123.68]) * 0.2])
    return model


@pytest.mark.parametrize("normalize", [None, "caffe", "bgr:103.939,116.779,123.68/1"])
def test_caffe_preprocessing_outside_the_model_is_measured_or_set(tmp_path, normalize):
    folder = color_folder(tmp_path / "images")
    caffe_model().save(tmp_path / "m.keras")
    run = adopt(tmp_path / "m.keras", str(folder), tmp_path / "run", normalize=normalize)
    assert run.metrics["accuracy"] == 1.0
    if normalize:
        assert run.metrics["adopted"]["normalize"] == normalize
    images = np.random.default_rng(2).integers(0, 256, (8, *SHAPE)).astype(np.uint8)
    expected = caffe_model()(
        keras().applications.imagenet_utils.preprocess_input(images.astype(np.float32), mode="caffe")
    )
    if normalize:
        np.testing.assert_allclose(
            run.model()(run.recipe.normalize.apply(images.astype(np.float32))), expected, atol=1e-4
        )


def test_normalization_becomes_a_layer_and_pixels_pass_through(tmp_path):
    folder = color_folder(tmp_path / "images")
    caffe_model().save(tmp_path / "m.keras")
    run = adopt(tmp_path / "m.keras", str(folder), tmp_path / "run", normalize="caffe")
    assert run.recipe.normalize == Normalize.named("pixels")
    for method in ("ptq", "qat", "prune+qat"):
        report = quantize(run, method, epochs=1 if "qat" in method else None, max_drop=100)
        content = (run.variant(report.variant) / "model.tflite").read_bytes()
        is_full_int8(content, "pixels")
        assert report.forms[-1].top1 == 1.0
    bundle = export_bundle(run, out=tmp_path / "bundle").bundle
    verify(bundle)
    classifier = Classifier(Bundle.open(bundle))
    for name in ("red", "green", "blue"):
        image = cv2.imread(str(folder / name / "0.png"))[:, :, ::-1]
        assert classifier.classify(np.ascontiguousarray(image)).label == name


@pytest.mark.parametrize("normalize", ["caffe", "torch", "tf"])
def test_saved_model_keeps_its_normalization_when_opened_again(keras3_models, tmp_path, normalize):
    folder = color_folder(tmp_path / "images")
    run = adopt(keras3_models / "plain", str(folder), tmp_path / "run", normalize=normalize, labels="folders")
    images = np.random.default_rng(2).integers(0, 256, (4, *SHAPE)).astype(np.float32)
    real = keras().applications.imagenet_utils.preprocess_input(images.copy(), mode=normalize)
    expected = read_third_party(keras3_models / "plain.keras")(real)
    np.testing.assert_allclose(run.model()(run.recipe.normalize.apply(images)), expected, atol=1e-4)


# Nested models


def nested_head(last_layer):
    layers, inputs = keras().layers, keras().Input(SHAPE)
    head = keras().Sequential([keras().Input((4,)), layers.Dense(4, "relu"), *last_layer], name="head")
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(layers.Rescaling(1 / 255)(inputs)))
    return spread(keras().Model(inputs, head(x)))


def test_one_output_inside_a_nested_model_becomes_two(tmp_path, pixels):
    layers = keras().layers
    folder = color_folder(tmp_path / "images")
    for child in (folder / "blue").iterdir():
        child.unlink()
    (folder / "blue").rmdir()
    heads = {
        "sigmoid": [layers.Dense(1, "sigmoid")],
        "logit": [layers.Dense(1)],
        "activation": [layers.Dense(1), layers.Activation("sigmoid")],
        "reshaped": [layers.Dense(1, "sigmoid"), layers.Reshape((1,)), layers.Dropout(0.5)],
        "not dense": [
            layers.Reshape((2, 2)),
            layers.GlobalAveragePooling1D(),
            layers.Dense(1),
            layers.ReLU(),
            layers.Dense(1),
        ],
    }
    for name, last in heads.items():
        model = nested_head(last)
        model.save(tmp_path / "m.keras")
        run = adopt(tmp_path / "m.keras", str(folder), tmp_path / name, labels="folders")
        score = np.asarray(model(pixels))
        score = score if name not in ("logit", "not dense") else 1 / (1 + np.exp(-score))
        np.testing.assert_allclose(run.model()(pixels), np.hstack([1 - score, score]), atol=1e-5)


def test_one_output_that_is_not_dense_becomes_two(tmp_path, pixels):
    layers, inputs = keras().layers, keras().Input(SHAPE)
    folder = color_folder(tmp_path / "images")
    for child in (folder / "blue").iterdir():
        child.unlink()
    (folder / "blue").rmdir()
    features = layers.Conv2D(4, 3, activation="relu")(layers.Rescaling(1 / 255)(inputs))
    logit = layers.GlobalAveragePooling2D()(layers.Conv2D(1, 1)(features))
    for name, output in (("logit", logit), ("sigmoid", layers.Activation("sigmoid")(logit))):
        model = spread(keras().Model(inputs, output))
        model.save(tmp_path / "m.keras")
        run = adopt(tmp_path / "m.keras", str(folder), tmp_path / name, labels="folders")
        score = np.asarray(model(pixels))
        score = score if name == "sigmoid" else 1 / (1 + np.exp(-score))
        np.testing.assert_allclose(run.model()(pixels), np.hstack([1 - score, score]), atol=1e-5)


def test_unsupported_single_output_gets_one_message(tmp_path, caplog):
    model = nested_head([keras().layers.Dense(1, "tanh")])
    model.save(tmp_path / "m.keras")
    with (
        caplog.at_level(logging.INFO, "edgerec"),
        pytest.raises(ModelError, match="a single output with activation tanh"),
    ):
        adopt(tmp_path / "m.keras", "digits", tmp_path / "run")
    assert "adding the score" not in caplog.text


@pytest.mark.parametrize("name", ["transfer", "twice"])
def test_nested_models_are_written_for_keras_3(keras3_models, tmp_path, name, pixels):
    folder = color_folder(tmp_path / "images")
    run = adopt(keras3_models / f"{name}.keras", str(folder), tmp_path / "run", labels="folders")
    code = (
        "import json, sys, keras, numpy as np\n"
        "x = np.random.default_rng(0).uniform(0, 255, (6, 16, 16, 3)).astype('float32')\n"
        "print(json.dumps(keras.models.load_model(sys.argv[1]).predict(x, verbose=0).tolist()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(run.path / KERAS3)], check=True, capture_output=True, text=True
    )
    np.testing.assert_allclose(json.loads(result.stdout.splitlines()[-1]), outputs_of(keras3_models, name), atol=1e-5)


# Other layouts of the input


@pytest.mark.parametrize("shape", [(8, 8), (64,)])
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_input_without_channel_axis_is_accepted(tmp_path, shape, suffix):
    layers = keras().layers
    model = keras().Sequential(
        [keras().Input(shape), layers.Reshape((8, 8, 1)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(10)]
    )
    spread(model).save(tmp_path / f"m{suffix}")
    run = adopt(tmp_path / f"m{suffix}", "digits", tmp_path / "run", normalize="unit", labels="folders")
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1)).astype(np.float32)
    logits = np.asarray(model(images.reshape(4, *shape) / 255), np.float64)
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = run.model()(run.recipe.normalize.apply(images))
    np.testing.assert_allclose(scores, expected / expected.sum(axis=1, keepdims=True), atol=1e-5)
    if suffix == ".h5":
        report = quantize(run, "ptq", max_drop=100)
        is_full_int8((run.variant(report.variant) / "model.tflite").read_bytes())


def channels_first():
    layers, first = keras().layers, {"data_format": "channels_first"}
    inputs = keras().Input((3, SIZE, SIZE))
    x = layers.BatchNormalization(axis=1)(layers.Conv2D(4, 3, padding="same", **first)(inputs))
    x = y = layers.MaxPooling2D(**first)(layers.ReLU()(x))
    x = layers.Concatenate(axis=1)([x, layers.Conv2D(4, 1, activation="relu", **first)(y)])
    gate = layers.Reshape((8, 1, 1))(layers.Dense(8, "sigmoid")(layers.GlobalAveragePooling2D(**first)(x)))
    x = layers.Multiply()([x, gate])
    flat = layers.Concatenate()([layers.Flatten()(x), layers.Flatten(**first)(x)])
    return spread(keras().Model(inputs, layers.Dense(3, "softmax")(flat)))


def test_channels_first_is_transposed_exactly(tmp_path, pixels):
    model = channels_first()
    model.save(tmp_path / "m.keras")
    read = read_third_party(tmp_path / "m.keras")
    assert read.input_shape == (None, *SHAPE)
    expected = compute_outputs(model, pixels.transpose(0, 3, 1, 2) / 255)
    np.testing.assert_allclose(read(pixels / 255), expected, atol=1e-4)
    formats = {layer.get_config().get("data_format") for layer in read.layers}
    assert formats == {None, "channels_last"}


def channels_first_pooling(pooling):
    inputs = keras().Input((3, SIZE, SIZE))
    x = keras().layers.Flatten()(getattr(keras().layers, pooling)(data_format="channels_first")(inputs))
    return spread(keras().Model(inputs, keras().layers.Dense(3, "softmax")(x)))


@pytest.mark.parametrize("model", ["keras 2", "keras 3", "MaxPooling2D", "AveragePooling2D"])
def test_channels_first_does_not_require_onednn(tmp_path, keras3_models, model):
    """Without oneDNN, as on CPUs without AVX-512, TensorFlow has no channels-first convolution and pooling."""
    path = keras3_models / "channels_first.keras"
    if model != "keras 3":
        path = tmp_path / "m.keras"
        (channels_first() if model == "keras 2" else channels_first_pooling(model)).save(path)
    code = "import sys; from edgerec.importing.third_party_keras import read_third_party; read_third_party(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, path], check=True, env=os.environ | {"TF_ENABLE_ONEDNN_OPTS": "0"})


def test_keras_3_channels_first_is_transposed_exactly(keras3_models, pixels):
    read = read_third_party(keras3_models / "channels_first.keras")
    np.testing.assert_allclose(read(pixels), outputs_of(keras3_models, "channels_first"), atol=1e-4)
