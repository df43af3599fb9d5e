"""Normalization per channel and in BGR order: notation, and exact computation in imported models."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from edgerec import Classifier, evaluate, import_tflite, verify
from edgerec.cli.app import app
from edgerec.contract.bundle import Bundle
from edgerec.contract.tensors import Normalize, parse_normalize
from edgerec.errors import EdgerecError, ModelError
from edgerec.runtime.interpreter import open_interpreter
from edgerec.tflite.metadata import read_metadata, with_metadata
from edgerec.train.backend import keras

MODES = ("caffe", "torch", "tf")


def keras_preprocessed(pixels, mode):
    """Normalize RGB pixels with preprocess_input of Keras."""
    return keras().applications.imagenet_utils.preprocess_input(pixels.astype(np.float32), mode=mode)


def network(size=12, classes=3):
    """Build a classifier whose scores depend on each channel in a different way."""
    keras().utils.set_random_seed(3)
    layers = keras().layers
    return keras().Sequential(
        [
            keras().Input((size, size, 3)),
            layers.Conv2D(6, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(classes, activation="softmax"),
        ]
    )


def converted(model, samples=None):
    """Return .tflite bytes: float32, or int8 with ranges that are calibrated with ``samples``."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if samples is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([sample[None]] for sample in samples)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (24, 12, 12, 3)).astype(np.uint8)


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("a\nb\nc\n")
    return path


@pytest.mark.parametrize("mode", MODES)
def test_named_normalizations_are_those_of_keras(images, mode):
    normalize = parse_normalize(mode)
    if isinstance(normalize, Normalize):
        real = normalize.apply(images.astype(np.float32))
    else:
        kernel, bias = normalize.convolution()
        real = images.astype(np.float32) @ kernel + bias
    np.testing.assert_allclose(real, keras_preprocessed(images, mode), atol=1e-4)


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("bgr:103.939,116.779,123.68/1", "caffe"),
        ("bgr:103.939,116.779,123.68/1,1,1", "caffe"),
        ("123.675,116.28,103.53/58.395,57.12,57.375", "torch"),
        ("rgb:torch", "torch"),
        ("bgr:caffe", "caffe"),
        ("127.5,127.5,127.5/127.5", "tf"),
        ("127.5/127.5", "tf"),
        ("128,128", "signed"),
    ],
)
def test_names_and_values_give_the_same_normalization(text, same_as):
    assert parse_normalize(text) == parse_normalize(same_as)
    assert parse_normalize(parse_normalize(text).to_text()) == parse_normalize(same_as)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("coffee", "did you mean"),
        ("grb:torch", "expected rgb or bgr"),
        ("1,2/3,4", "one mean and one standard deviation per channel"),
        ("1,2,3,4", "one mean and one standard deviation per channel"),
        ("1,2,3/0,1,1", "positive, finite standard deviations"),
        ("nan,2,3/1", "finite means"),
        ("0.485,0.456,0.406/0.229,0.224,0.225", "use 123.675,116.28,103.53/58.395,57.12,57.375"),
    ],
)
def test_invalid_normalization_is_refused_with_a_reason(text, reason):
    with pytest.raises(EdgerecError, match=reason):
        parse_normalize(text)


@pytest.mark.parametrize("mode", MODES)
def test_imported_float_model_computes_the_normalization(images, labels, tmp_path, mode):
    model = network()
    (tmp_path / "m.tflite").write_bytes(converted(model))
    out = tmp_path / "bundle"
    call = ["import", str(tmp_path / "m.tflite"), "--labels", str(labels), "--normalize", mode, "--out", str(out)]
    result = CliRunner().invoke(app, [*call, "--json"])
    assert result.exit_code == 0, result.output
    classifier = Classifier(Bundle.open(out))
    scores = np.stack([classifier.classify(image).scores for image in images])
    np.testing.assert_allclose(scores, model(keras_preprocessed(images, mode)), atol=1e-5)
    verify(out)
    if mode != "tf":
        assert json.loads(result.stdout)["normalize"] == [0.0, 1.0]
        content = (out / "model.tflite").read_bytes()
        assert read_metadata(content).normalize == (Normalize.named("pixels"),)
        assert read_metadata(content).labels == ("a", "b", "c")


@pytest.mark.parametrize("mode", ["caffe", "torch"])
def test_imported_int8_model_computes_the_normalization(images, labels, tmp_path, mode):
    real = keras_preprocessed(images, mode)
    content = converted(network(), real)
    (tmp_path / "m.tflite").write_bytes(content)
    import_tflite(tmp_path / "m.tflite", tmp_path / "bundle", labels=labels, normalize=mode)
    interpreter = open_interpreter(content)
    input_details, output_details = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    scale, zero_point = input_details["quantization"]
    classifier = Classifier(Bundle.open(tmp_path / "bundle"))
    for image, value in zip(images, real, strict=True):
        stored = np.clip(np.rint(value / scale) + zero_point, -128, 127).astype(np.int8)
        interpreter.set_tensor(input_details["index"], stored[None])
        interpreter.invoke()
        expected = (interpreter.get_tensor(output_details["index"])[0].astype(int) + 128) / 256
        np.testing.assert_allclose(classifier.classify(image).scores, expected, atol=1.5 / 256)


def test_grayscale_model_refuses_a_normalization_per_channel(labels, tmp_path):
    layers = keras().layers
    gray = keras().Sequential([keras().Input((8, 8, 1)), layers.Flatten(), layers.Dense(3, activation="softmax")])
    (tmp_path / "m.tflite").write_bytes(converted(gray))
    with pytest.raises(ModelError, match=r"requires 3 channels: use .*MEAN,STD"):
        import_tflite(tmp_path / "m.tflite", tmp_path / "bundle", labels=labels, normalize="torch")


def test_evaluate_of_a_file_without_metadata_computes_the_normalization(images, tmp_path):
    model, real = network(), keras_preprocessed(images, "caffe")
    kernel, bias = model.layers[-1].get_weights()
    logits = np.log(model(real))
    model.layers[-1].set_weights([kernel, bias - logits.mean(axis=0)])  # every class is predicted for some image
    best = np.argmax(model(real), axis=1)
    for index, (image, label) in enumerate(zip(images, best, strict=True)):
        folder = tmp_path / "data" / "abc"[label]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{index}.png"), image[:, :, ::-1])
    (tmp_path / "m.tflite").write_bytes(with_metadata(converted(model), "abc", parse_normalize("unit"), "m"))
    figures = evaluate(tmp_path / "m.tflite", str(tmp_path / "data"), normalize="caffe")
    assert figures.accuracy == 1.0
