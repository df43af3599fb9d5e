"""Import of third-party .tflite models: the bundle predicts the same as the model alone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from edgerec import Bundle, Classifier, evaluate, import_tflite, read_image, verify
from edgerec.contract.labels import distinct, read_labels
from edgerec.contract.preprocess import apply
from edgerec.contract.tensors import ACTIVATIONS, Normalize, TensorSpec, identity_normalize, parse_normalize, quantize
from edgerec.errors import BundleError, DataError, EdgerecError, ModelError, OutputExistsError, TargetError
from edgerec.runtime.interpreter import open_interpreter
from edgerec.runtime.verification import GOLDEN
from edgerec.tflite.metadata import with_metadata
from tests.conftest import error_line

SHAPE = (14, 10, 3)  # height and width differ
LABELS = ("heron", "crane", "digger")


class Factory:
    """Creates tiny .tflite models as other tools convert them. Each model is created only once."""

    def __init__(self) -> None:
        import tf_keras

        tf_keras.utils.set_random_seed(5)
        self.keras = tf_keras
        self.inputs = tf_keras.Input(SHAPE)
        x = tf_keras.layers.Conv2D(6, 3, strides=2, activation="relu")(self.inputs)
        self.features = tf_keras.layers.Flatten()(x)
        self.logits = tf_keras.layers.Dense(3)(self.features)
        self.models: dict[str, bytes] = {}

    def __call__(self, name: str) -> bytes:
        if name not in self.models:
            self.models[name] = getattr(self, name)()
        return self.models[name]

    def keras_model(self, *outputs):
        return self.keras.Model(self.inputs, outputs[0] if len(outputs) == 1 else outputs)

    def converted(self, model, dtypes=None, calibration=None) -> bytes:
        import tensorflow as tf

        converter = tf.lite.TFLiteConverter.from_keras_model(model)  # the batch size is dynamic
        if dtypes:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.representative_dataset = lambda: ([image[np.newaxis]] for image in calibration)
            converter.inference_input_type, converter.inference_output_type = dtypes
        return converter.convert()

    def ranging(self, low, high):
        images = np.random.default_rng(1).uniform(low, high, (20, *SHAPE)).astype(np.float32)
        images[0].reshape(-1)[:2] = low, high
        return images

    def float_softmax(self) -> bytes:
        return self.converted(self.keras_model(self.keras.layers.Softmax()(self.logits)))

    def float_logits(self) -> bytes:
        return self.converted(self.keras_model(self.logits))

    def uint8_softmax(self) -> bytes:
        import tensorflow as tf

        model = self.keras_model(self.keras.layers.Softmax()(self.logits))
        return self.converted(model, (tf.uint8, tf.uint8), self.ranging(-1.0, 1.0))

    def int8_odd_logits(self) -> bytes:
        import tensorflow as tf

        return self.converted(self.keras_model(self.logits), (tf.int8, tf.int8), self.ranging(-1.3, 3.9))

    def uint8_in_float_out(self) -> bytes:
        import tensorflow as tf

        return self.converted(self.keras_model(self.logits), (tf.uint8, tf.float32), self.ranging(0.0, 1.0))

    def uint8_cast(self) -> bytes:
        """A model with a uint8 input that is not quantized: the graph casts it to float."""
        inputs = self.keras.Input(SHAPE, dtype="uint8")
        x = self.keras.layers.Flatten()(self.keras.layers.Rescaling(1 / 255)(inputs))
        return self.converted(self.keras.Model(inputs, self.keras.layers.Dense(3, activation="softmax")(x)))

    def int8_sigmoid(self) -> bytes:
        import tensorflow as tf

        one = self.keras.layers.Dense(1, activation="sigmoid")(self.features)
        return self.converted(self.keras_model(one), (tf.int8, tf.uint8), self.ranging(0.0, 1.0))

    def four_dimensions(self) -> bytes:
        soft = self.keras.layers.Softmax()(self.logits)
        return self.converted(self.keras_model(self.keras.layers.Reshape((1, 1, 3))(soft)))

    def one_number(self) -> bytes:
        return self.converted(self.keras_model(self.keras.layers.Dense(1)(self.features)))

    def two_outputs(self) -> bytes:
        return self.converted(self.keras_model(self.logits, self.keras.layers.Softmax()(self.logits)))

    def any_size(self) -> bytes:
        inputs = self.keras.Input((None, None, 3))
        x = self.keras.layers.Conv2D(3, 3)(inputs)
        return self.converted(self.keras.Model(inputs, self.keras.layers.GlobalAveragePooling2D()(x)))

    def image_output(self) -> bytes:
        return self.converted(self.keras.Model(self.inputs, self.keras.layers.Conv2D(1, 3)(self.inputs)))


@pytest.fixture(scope="module")
def models():
    return Factory()


@pytest.fixture
def write_model(models, tmp_path):
    """Return a function that writes a model file and a file with three labels, and returns the model's path."""

    def write(name: str):
        path = tmp_path / f"{name}.tflite"
        path.write_bytes(models(name))
        (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n")
        return path

    return write


@pytest.fixture(scope="module")
def noise_image(tmp_path_factory):
    import cv2

    path = tmp_path_factory.mktemp("picture") / "noise.png"
    cv2.imwrite(str(path), np.random.default_rng(2).integers(0, 256, (40, 30, 3), np.uint8))
    return path


def run_interpreter(content: bytes, stored: np.ndarray) -> np.ndarray:
    """Run the TFLite interpreter directly on an input tensor, and return the dequantized output."""
    interpreter = open_interpreter(content)
    (before,), (after,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.set_tensor(before["index"], stored[np.newaxis].astype(before["dtype"]))
    interpreter.invoke()
    output = interpreter.get_tensor(after["index"]).reshape(-1)
    scale, zero_point = after["quantization"]
    return (output.astype(np.float64) - zero_point) * scale if scale else output.astype(np.float64)


def softmax(real: np.ndarray) -> np.ndarray:
    return np.exp(real) / np.exp(real).sum()


@pytest.mark.parametrize(
    ("name", "normalize", "stored", "activation"),
    [
        ("float_softmax", "unit", lambda p: p / 255, lambda y: y),
        ("float_softmax", "127.5,127.5", lambda p: p / 127.5 - 1, lambda y: y),
        ("float_softmax", "pixels", lambda p: p, lambda y: y),
        ("float_logits", "signed", lambda p: p / 128 - 1, softmax),
        ("uint8_softmax", None, lambda p: p, lambda y: y),
        ("int8_odd_logits", None, lambda p: p - 128.0, softmax),
        ("uint8_in_float_out", None, lambda p: p, softmax),
        ("uint8_cast", None, lambda p: p, lambda y: y),
        ("int8_sigmoid", None, lambda p: p - 128.0, lambda y: np.array([1 - y[0], y[0]])),
        ("four_dimensions", "unit", lambda p: p / 255, lambda y: y),
    ],
)
def test_bundle_predicts_the_same_as_the_model_alone(
    write_model, tmp_path, noise_image, name, normalize, stored, activation
):
    path = write_model(name)
    labels = tmp_path / "labels.txt"
    if name == "int8_sigmoid":
        labels.write_text("cat\ndog\n")
    report = import_tflite(path, tmp_path / "b", labels=labels, normalize=normalize)
    classifier = Classifier.open(report.bundle)
    image = read_image(noise_image)
    pixels = apply(image, classifier.manifest.preprocess)
    assert pixels.shape == SHAPE
    expected = activation(run_interpreter(path.read_bytes(), stored(pixels)))
    result = classifier.classify(image)
    np.testing.assert_allclose(result.scores, expected, atol=1e-5)
    assert result.label == classifier.manifest.labels[int(expected.argmax())]
    assert result.scores.min() >= 0
    assert result.scores.sum() == pytest.approx(1, abs=0.02)
    assert verify(report.bundle).exact
    assert (tmp_path / "b" / "model.tflite").read_bytes() == path.read_bytes()


def test_model_with_odd_scales_has_no_standard_normalization(models):
    spec = import_spec(models("int8_odd_logits"))
    assert spec.dtype == "int8"
    assert identity_normalize(spec) not in (Normalize(0.0, 255.0), Normalize(128.0, 128.0))


def import_spec(content: bytes) -> TensorSpec:
    from edgerec.runtime.interpreter import input_spec

    return input_spec(open_interpreter(content))


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_pixels_are_unchanged_for_every_scale_and_zero_point(dtype):
    pixels = np.arange(256)
    expected = pixels if dtype == "uint8" else pixels - 128
    limits = np.iinfo(dtype)
    rng = np.random.default_rng(0)
    for scale in [1e-38, 1 / 255, 1.0, 3e38, *rng.lognormal(0, 9, 200).astype(np.float32)]:
        zero_point = int(rng.integers(limits.min, limits.max + 1))
        spec = TensorSpec(dtype, (1, 8, 8, 3), float(scale), zero_point)
        assert np.array_equal(quantize(identity_normalize(spec).apply(pixels), spec), expected), spec


def test_activations_handle_extreme_values():
    huge = np.array([3e38, -3e38, 0], np.float32)
    assert ACTIVATIONS["softmax"](huge).tolist() == [1, 0, 0]
    assert ACTIVATIONS["binary"](np.array([0.25], np.float32)).tolist() == [0.75, 0.25]


def test_float_model_needs_a_normalization(write_model, models, tmp_path):
    path = write_model("float_softmax")
    with pytest.raises(ModelError, match=r"has a float32 input, but does not specify .* --normalize unit .*MEAN,STD"):
        import_tflite(path, tmp_path / "b", labels=tmp_path / "labels.txt")
    assert not (tmp_path / "b").exists()
    path.write_bytes(with_metadata(models("float_softmax"), LABELS, Normalize(100.0, 50.0), "birds"))
    report = import_tflite(path, tmp_path / "b")
    manifest = Bundle.open(report.bundle).manifest
    assert (manifest.labels, manifest.normalize) == (LABELS, Normalize(100.0, 50.0))


def test_normalization_options_are_parsed():
    assert parse_normalize("127.5, 127.5") == Normalize(127.5, 127.5)
    for text, message in (
        ("sign", "did you mean 'signed'"),
        ("1,x", "cannot parse normalization"),
        ("0,0", "positive, finite standard deviations"),
        ("nan,1", "finite"),
    ):
        with pytest.raises(EdgerecError, match=message):
            parse_normalize(text)


def test_label_files_of_different_formats_are_read(tmp_path):
    path = tmp_path / "labels.txt"
    for text, expected in (
        ("\ufeffa\r\nb b\r\n\r\n", ("a", "b b")),
        ("0  background\n1  tench, Tinca tinca\n", ("background", "tench, Tinca tinca")),
        ("1: dog\n0: cat\n", ("cat", "dog")),
        ("7\n8\n", ("7", "8")),  # numbers without names are labels themselves
        ("2 apples\n3 pears\n", ("2 apples", "3 pears")),
    ):
        path.write_bytes(text.encode())
        assert read_labels(path) == expected
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_labels(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_labels(tmp_path / "none.txt")


def test_repeated_labels_are_numbered(caplog):
    with caplog.at_level("WARNING"):
        assert distinct(["crane", "crane (2)", "crane", "crane"], "f") == (
            "crane",
            "crane (2)",
            "crane (3)",
            "crane (4)",
        )
    assert "f has a duplicate label 'crane': output 2 is renamed to 'crane (3)'" in caplog.text


def test_number_of_labels_must_equal_number_of_scores(write_model, tmp_path):
    path = write_model("uint8_softmax")
    with pytest.raises(DataError, match=r"contains no labels: add --labels with a text file that lists 3 labels"):
        import_tflite(path, tmp_path / "b")
    (tmp_path / "labels.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"labels.txt has 2 labels, .* needs 3"):
        import_tflite(path, tmp_path / "b", labels=tmp_path / "labels.txt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two_outputs", "has 2 outputs"),
        ("any_size", "dynamic shape"),
        ("one_number", "not by a sigmoid"),
        ("image_output", "is not an image classifier"),
    ],
)
def test_models_that_are_not_image_classifiers_are_refused(write_model, tmp_path, name, message):
    with pytest.raises(ModelError, match=message):
        import_tflite(write_model(name), tmp_path / "b", labels=tmp_path / "labels.txt", normalize="unit")
    assert not (tmp_path / "b").exists()


def test_damaged_and_missing_model_files_are_refused(write_model, tmp_path, edgerec):
    path = write_model("uint8_softmax")
    content = path.read_bytes()
    for damaged in (b"", b"hello", content[:1000], content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ModelError):
            import_tflite(path, tmp_path / "b", labels=tmp_path / "labels.txt")
    message = error_line(edgerec("import", tmp_path / "none.tflite", "--out", tmp_path / "b"))
    assert "none.tflite cannot be read: No such file" in message


def test_target_refuses_models_that_it_cannot_run(write_model, tmp_path):
    labels = write_model("float_logits").parent / "labels.txt"
    with pytest.raises(TargetError, match=r"coral cannot run .*float_logits.tflite: .*FLOAT32.*quantize it"):
        import_tflite(write_model("float_logits"), tmp_path / "b", labels=labels, target="coral", normalize="unit")
    # The interpreter uses 1 for a dynamic batch size, but the Edge TPU compiler needs a fixed batch size.
    with pytest.raises(TargetError, match="dynamic shape"):
        import_tflite(write_model("uint8_softmax"), tmp_path / "b", labels=labels, target="coral")
    report = import_tflite(write_model("uint8_softmax"), tmp_path / "b", labels=labels, target="rpi")
    assert "requirements.txt" in report.files


def test_import_writes_a_complete_bundle_atomically(write_model, tmp_path, noise_image):
    path = write_model("int8_odd_logits")
    options = {"labels": tmp_path / "labels.txt", "images": [noise_image]}
    report = import_tflite(path, tmp_path / "birds.zip", **options)
    assert report.golden == 1
    opened = Bundle.open(tmp_path / "birds.zip")
    assert opened.manifest.name == "birds"
    assert json.loads(opened.files[GOLDEN])["vectors"][0]["from"] == "noise.png"
    readme = opened.files["README.md"].decode()
    assert "imported from another tool" in readme
    assert "Scores: softmax of the output" in readme
    with pytest.raises(OutputExistsError):
        import_tflite(path, tmp_path / "birds.zip", **options)
    assert import_tflite(path, tmp_path / "birds.zip", overwrite=True, **options) == report


def test_tolerance_of_golden_scores_after_a_softmax_is_in_score_units(write_model, tmp_path):
    """On another machine, the output may differ by 16 quantization steps, and the score by the same amount."""
    bundle = Bundle.open(
        import_tflite(write_model("int8_odd_logits"), tmp_path / "b", labels=tmp_path / "labels.txt").bundle
    )
    values = json.loads(bundle.files[GOLDEN])
    values["made_on"]["cpu"] = "another"
    scale = bundle.manifest.output.scale
    for steps, accepted in ((15.9, True), (16.1, False)):
        moved = json.loads(json.dumps(values))
        moved["vectors"][0]["scores"][0][0] += steps * scale
        files = bundle.files | {GOLDEN: json.dumps(moved).encode()}
        Bundle.write(tmp_path / "moved", bundle.manifest, files, overwrite=True)
        if accepted:
            assert verify(tmp_path / "moved").max_difference == pytest.approx(15.9 * scale, rel=1e-3)
        else:
            with pytest.raises(BundleError, match=r"scores of model\.tflite differ by"):
                verify(tmp_path / "moved")


def test_manifest_validates_the_activation(bundle, tmp_path):
    opened = Bundle.open(bundle)
    values = json.loads((bundle / "manifest.json").read_text())
    assert values.pop("activation") == "none"
    before = type(opened.manifest).from_json(json.dumps(values))  # older manifests have no activation
    assert before.activation == "none"
    for change, message in (
        ({"activation": "sofmax"}, "did you mean 'softmax'"),
        ({"activation": "binary"}, "has 10 labels, but the model's output"),
        ({"activation": 3}, "expected a string"),
    ):
        with pytest.raises(BundleError, match=message):
            type(opened.manifest).from_json(json.dumps(values | change))
    binary = replace(opened.manifest, activation="binary", output=replace(opened.manifest.output, shape=(1, 1)))
    with pytest.raises(BundleError, match="a binary classifier requires 2"):
        binary.check("here")


def test_evaluate_accepts_imported_bundles_and_tflite_files(run, tmp_path, edgerec):
    """The int8 file of a run serves as a third-party model, both in a bundle without a recipe and as a bare file."""
    model = run.variant("int8-qat") / "model.tflite"
    imported = import_tflite(model, tmp_path / "b").bundle
    of_bundle, of_file = evaluate(imported, "digits"), evaluate(model, "digits")
    assert of_bundle == of_file
    assert of_bundle.accuracy > 0.9
    assert of_bundle.labels == run.labels
    assert "only runs record their location" in error_line(edgerec("evaluate", imported))


def test_evaluate_refuses_an_input_that_is_not_square(write_model, tmp_path, image_folder):
    imported = import_tflite(write_model("uint8_softmax"), tmp_path / "b", labels=tmp_path / "labels.txt").bundle
    for model in (imported, write_model("uint8_softmax")):
        with pytest.raises(ModelError, match=r"its input of 10×14 pixels is not square"):
            evaluate(model, str(image_folder))


def test_import_does_not_load_tensorflow(write_model, tmp_path):
    code = (
        "import sys\nfrom edgerec import import_tflite\n"
        f"import_tflite({str(write_model('uint8_softmax'))!r}, 'b', labels='labels.txt')\n"
        "print([m for m in ('tensorflow', 'tf_keras', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_import_command_writes_a_bundle_and_prints_json(write_model, tmp_path, noise_image, edgerec):
    path = write_model("float_logits")
    labels = ("--labels", tmp_path / "labels.txt")
    assert "--normalize unit" in error_line(edgerec("import", path, *labels, "--out", tmp_path / "b"))
    command = ("import", path, *labels, "--out", tmp_path / "b", "--normalize", "unit", "--image", noise_image)
    result = edgerec(*command, "--json")
    assert result.returncode == 0, result.stderr
    value = json.loads(result.stdout)
    assert (value["activation"], value["last_operator"]) == ("softmax", "FULLY_CONNECTED")
    assert value["input"]["shape"] == [1, *SHAPE]
    assert "already exists" in error_line(edgerec(*command))
    result = edgerec(*command, "--overwrite")
    assert "activation softmax: the outputs of FULLY_CONNECTED were not probabilities" in result.stdout
    assert "verified 1 golden images" in result.stdout


def test_coral_mobilenet_predicts_the_correct_label(real_data, tmp_path, edgerec):
    """Google's uint8 model with 1001 labels, one of which is repeated, works with predict, camera and verify."""
    import cv2

    model = real_data / "edgetpu" / "mobilenet_v1_0.25_128_quant.tflite"
    command = ("import", model, "--labels", real_data / "imagenet_labels.txt", "--out", tmp_path / "b")
    result = edgerec(*command)
    assert result.returncode == 0, result.stderr
    assert "has a duplicate label 'crane': output 518 is renamed to 'crane (2)'" in result.stderr
    # Coral's tools give a score of 54/256. They use bilinear interpolation, so the image is resized that way here.
    cat = cv2.imread(str(real_data / "cat_720p.jpg"))
    (tmp_path / "cats").mkdir()
    cv2.imwrite(str(tmp_path / "cats" / "small.png"), cv2.resize(cat, (128, 128), interpolation=cv2.INTER_LINEAR))
    value = json.loads(edgerec("predict", tmp_path / "b", tmp_path / "cats" / "small.png", "--json").stdout)
    assert (value["label"], round(value["score"] * 256)) == ("tiger cat", 54)
    # edgerec averages while it shrinks the 720p image, which then looks almost as much like an Egyptian cat.
    assert "tiger cat" in edgerec("predict", tmp_path / "b", real_data / "cat_720p.jpg").stdout
    assert "tiger cat" in edgerec("camera", tmp_path / "b", "--source", tmp_path / "cats", "--headless").stdout
    assert "bit for bit" in edgerec("verify", tmp_path / "b").stdout


def test_model_compiled_for_the_edge_tpu_is_refused(real_data, tmp_path):
    model = real_data / "edgetpu" / "mobilenet_v1_0.25_128_quant_edgetpu.tflite"
    with pytest.raises(ModelError, match="compiled for the Edge TPU"):
        import_tflite(model, tmp_path / "b")


def test_loss_of_logits_equals_loss_of_their_softmax(tmp_path):
    import tensorflow as tf
    import tf_keras

    inputs = tf_keras.Input((8, 8, 1))
    logits = tf_keras.layers.Dense(10)(tf_keras.layers.Flatten()(inputs))
    results = {}
    for name, end in (("logits", logits), ("softmax", tf_keras.layers.Softmax()(logits))):
        path = tmp_path / f"{name}.tflite"
        path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(tf_keras.Model(inputs, end)).convert())
        results[name] = evaluate(path, "digits", normalize="unit", labels="folders")
    assert results["logits"].loss == pytest.approx(results["softmax"].loss, rel=1e-5)
    assert results["logits"].accuracy == results["softmax"].accuracy
