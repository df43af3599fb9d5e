"""Third-party .tflite models: activation of the outputs, preprocessing, metadata, and errors."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest

from edgerec import Bundle, Classifier, evaluate, import_tflite, inspect, verify
from edgerec.contract.tensors import Normalize
from edgerec.errors import ModelError
from edgerec.runtime.interpreter import open_interpreter
from edgerec.tflite.metadata import read_metadata
from tests import tflite_models
from tests.conftest import error_line
from tests.tflite_models import SIZE, Model, logits, softmax

COLORS = ("red", "green", "blue")
RED = np.zeros((SIZE, SIZE, 3), np.uint8)
RED[:, :, 0] = 200


@pytest.fixture
def write_model(tmp_path):
    """Return a function that writes a model and a file with its labels."""

    def call(content: bytes, labels: tuple[str, ...] = COLORS):
        (tmp_path / "model.tflite").write_bytes(content)
        (tmp_path / "labels.txt").write_text("\n".join(labels))
        return tmp_path / "model.tflite"

    return call


def import_model(path, **options):
    options = {"labels": path.with_name("labels.txt"), "normalize": "pixels", "overwrite": True} | options
    return import_tflite(path, path.with_name("bundle"), **options)


def scores(report, image=RED) -> list[float]:
    return Classifier.open(report.bundle).classify(image).scores.tolist()


def expanded_softmax(model: Model) -> Model:
    exponents = model.add("EXP", (1, 3)).last
    model.add("SUM", (1, 1), np.array([1], np.int32), keepDims=True)
    return model.add("DIV", (1, 3), exponents, first=False)


def expanded_sigmoid(model: Model) -> Model:
    model.add("NEG", (1, 3)).add("EXP", (1, 3)).add("ADD", (1, 3), np.ones((1, 3)))
    return model.add("DIV", (1, 3), np.ones((1, 3)), first=False)


def with_background_class(model: Model) -> Model:
    """Add a background class with a low logit before the other classes, as in TF-Slim's models."""
    return model.add("PAD", (1, 4), np.array([[0, 0], [1, 0]], np.int32)).add("SOFTMAX", (1, 4), beta=1.0)


ALREADY_SCORES = {
    "slice": lambda: with_background_class(logits()).add(
        "SLICE", (1, 3), np.array([0, 1], np.int32), np.array([1, 3], np.int32)
    ),
    "transpose": lambda: (
        softmax()
        .add("TRANSPOSE", (3, 1), np.array([1, 0], np.int32))
        .add("RESHAPE", (1, 3), np.array([1, 3], np.int32))
    ),
    "mean": lambda: (
        softmax().add("RESHAPE", (1, 1, 3), np.array([1, 1, 3], np.int32)).add("MEAN", (1, 3), np.array([1], np.int32))
    ),
    "average": lambda: softmax().add("MUL", (1, 3), np.full((1, 3), 1.0)),
    "expanded softmax": lambda: expanded_softmax(logits()),
    "expanded sigmoid": lambda: expanded_sigmoid(logits()),
    "sigmoid": lambda: logits().add("LOGISTIC", (1, 3)).add("RESHAPE", (1, 3), np.array([1, 3], np.int32)),
}


ALREADY_SCORES["hard sigmoid"] = lambda: (
    logits()
    .add("ADD", (1, 3), np.full((1, 3), 3.0), fusedActivationFunction=3)
    .add("MUL", (1, 3), np.full((1, 3), 1 / 6))
)


@pytest.mark.parametrize("name", ALREADY_SCORES)
def test_scores_are_not_passed_through_softmax_again(write_model, name):
    content = ALREADY_SCORES[name]().to_bytes()
    interpreter = open_interpreter(content)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], RED[np.newaxis].astype(np.float32))
    interpreter.invoke()
    expected = interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).reshape(-1)
    report = import_model(write_model(content))
    assert scores(report) == pytest.approx(expected.tolist(), abs=1e-6)
    assert report.activation == "none"
    assert report.sums_to_one == (name not in ("slice", "expanded sigmoid", "sigmoid", "hard sigmoid"))


def test_logits_get_a_softmax_and_the_report_says_why(write_model, tmp_path, edgerec):
    path = write_model(logits().to_bytes())
    report = import_model(path)
    assert report.activation == "softmax"
    assert sum(scores(report)) == pytest.approx(1)
    command = ("import", path, "--labels", tmp_path / "labels.txt", "--normalize", "pixels", "--out", tmp_path / "c")
    result = edgerec(*command)
    assert "activation softmax: the outputs of FULLY_CONNECTED were not probabilities" in result.stdout
    result = edgerec(*command, "--activation", "sigmoid", "--overwrite")
    assert "activation sigmoid: chosen with --activation" in result.stdout
    assert "need not add up to 1" in result.stdout
    assert "--activation" in edgerec(*command, "--activation", "sofmax").stderr


@pytest.mark.parametrize("choice", ["none", "softmax", "sigmoid"])
def test_activation_can_be_chosen(write_model, choice):
    report = import_model(write_model(logits().to_bytes()), activation=choice)
    raw = np.array([7.0, -3.0, -3.0])
    expected = {"none": raw, "softmax": np.exp(raw) / np.exp(raw).sum(), "sigmoid": 1 / (1 + np.exp(-raw))}
    assert scores(report) == pytest.approx(expected[choice].tolist(), rel=1e-4)
    assert verify(report.bundle).exact


def test_one_logit_becomes_a_binary_classifier_with_sigmoid(write_model):
    path = write_model(
        Model()
        .add("MEAN", (1, 3), np.array((1, 2), np.int32))
        .add("FULLY_CONNECTED", (1, 1), np.full((1, 3), 0.01))
        .to_bytes(),
        ("dark", "bright"),
    )
    with pytest.raises(ModelError, match="add --activation sigmoid"):
        import_model(path)
    bright = scores(import_model(path, activation="sigmoid"), np.full_like(RED, 200))
    assert bright == pytest.approx([1 - 1 / (1 + np.exp(-6)), 1 / (1 + np.exp(-6))], abs=1e-5)


def test_scores_in_percent_are_refused(write_model):
    with pytest.raises(ModelError, match="add up to 100, expected 1"):
        import_model(write_model(softmax().add("MUL", (1, 3), np.full((1, 3), 100.0)).to_bytes()))


@pytest.mark.parametrize("command", [import_model, lambda path: evaluate(path, "digits", normalize="unit")])
def test_model_that_cannot_be_loaded_is_refused_in_one_sentence(write_model, command):
    with pytest.raises(ModelError, match="cannot be run") as raised:
        command(write_model(tflite_models.unloadable()))
    assert str(raised.value).count("quantized_dimension") == 1


def test_inspect_reports_errors_of_the_interpreter(write_model, edgerec):
    path = write_model(tflite_models.unloadable())
    report = inspect(path)
    assert "quantized_dimension" in report.interpreter_error
    assert all("cannot load" in report.targets[name] for name in ("desktop", "rpi"))
    result = edgerec("inspect", path, "--json")
    assert json.loads(result.stdout)["targets"]["desktop"].count("quantized_dimension") == 1
    write_model(softmax().to_bytes())
    assert inspect(path).interpreter_error == inspect(path).targets["desktop"] == ""


@pytest.mark.parametrize("shape", [(1, SIZE, SIZE), (SIZE, SIZE), (SIZE, SIZE, 1)])
def test_input_without_channel_axis_accepts_gray_images(write_model, shape):
    content = tflite_models.without_channel_axis(shape)
    report = import_model(write_model(content, ("top", "bottom")))
    assert report.input.shape == (1, SIZE, SIZE, 1)
    assert report.layout
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), np.uint8)
    interpreter = open_interpreter(content)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image.reshape(shape).astype(np.float32))
    interpreter.invoke()
    expected = interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).reshape(-1)
    assert scores(report, image[:, :, np.newaxis].repeat(3, axis=2)) == expected.tolist()


@pytest.mark.parametrize("gray", [False, True])
def test_channels_first_is_transposed_exactly(write_model, gray):
    content = tflite_models.channels_first(gray)
    report = import_model(write_model(content))
    channels = 1 if gray else 3
    assert report.layout == "channels first"
    assert report.input.shape == (1, SIZE, SIZE + 4, channels)
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE + 4, channels), np.uint8)
    interpreter = open_interpreter(content)
    interpreter.set_tensor(
        interpreter.get_input_details()[0]["index"], image.transpose(2, 0, 1)[np.newaxis].astype("f4")
    )
    interpreter.invoke()
    expected = interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).reshape(-1)
    assert scores(report, image.repeat(4 - channels if gray else 1, axis=2)) == expected.tolist()


def test_integer_channels_first_input_keeps_its_quantization(write_model):
    model = Model((1, 3, SIZE, SIZE))
    image = model.graph.tensors[0]
    image.type = model.schema.TensorType.INT8
    image.quantization = model.schema.QuantizationParametersT()
    image.quantization.scale, image.quantization.zeroPoint = np.array([1.0], np.float32), np.array([-128], np.int64)
    model.add("DEQUANTIZE", (1, 3, SIZE, SIZE))
    report = import_model(write_model(softmax(model, axes=(2, 3)).to_bytes()), normalize=None)
    assert (report.input.dtype, report.input.scale, report.input.zero_point) == ("int8", 1.0, -128)
    assert Classifier.open(report.bundle).classify(RED).label == "red"


def test_teachable_machine_models_are_recognized(write_model):
    content = softmax(Model(name="serving_default_sequential_5_input:0")).to_bytes()
    plain = import_model(write_model(content))
    assert (plain.family, plain.fit) == ("", "stretch")
    model = Model(name="serving_default_sequential_5_input:0")
    model.add("MEAN", (1, 3), np.array((1, 2), np.int32))
    model.add("FULLY_CONNECTED", (1, 3), np.eye(3), np.zeros(3), name="dense_Dense2/bias").add(
        "SOFTMAX", (1, 3), beta=1.0
    )
    report = import_model(write_model(model.to_bytes()), normalize=None)
    assert (report.family, report.fit, report.normalize) == ("Teachable Machine", "crop", (127.5, 127.5))
    assert "sequential_5_input" in report.fit_reason
    wide = np.zeros((SIZE, 3 * SIZE, 3), np.uint8)
    wide[:, :, 2] = 255
    wide[:, SIZE : 2 * SIZE] = RED
    assert Classifier.open(report.bundle).classify(wide).label == "red"
    assert import_model(write_model(model.to_bytes()), fit="stretch").fit_reason == "chosen with --fit"


IDS = "/m/01\n/m/02\n/m/03\n"
FILES = {"ids.txt": (IDS, ""), "de.txt": ("rot\ngrün\nblau\n", "de-DE"), "en.txt": ("red\ngreen\nblue\n", "en")}


@pytest.mark.parametrize(
    ("files", "language", "first"),
    [
        (FILES, "en_US.UTF-8", "red"),
        (FILES, "de_AT.UTF-8", "rot"),
        (FILES, "fr_FR.UTF-8", "red"),
        (FILES, "C", "red"),
        ({"ids.txt": FILES["ids.txt"], "de.txt": FILES["de.txt"]}, "fr_FR.UTF-8", "rot"),
        ({"de.txt": FILES["de.txt"], "names.txt": ("red\ngreen\nblue", "")}, "fr_FR.UTF-8", "red"),
        ({"ids.txt": FILES["ids.txt"]}, "en_US.UTF-8", "/m/01"),
    ],
)
def test_labels_have_the_users_language_or_english(write_model, monkeypatch, files, language, first):
    for name in ("LANGUAGE", "LC_ALL", "LC_MESSAGES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", language)
    path = write_model(tflite_models.with_label_files(softmax().to_bytes(), files))
    report = import_model(path, labels=None, normalize=None)
    assert Classifier.open(report.bundle).manifest.labels[0] == first
    assert report.label_source.split()[0] in files


def test_unusable_metadata_can_be_overridden(write_model, edgerec):
    path = write_model(tflite_models.with_label_files(softmax().to_bytes(), FILES, std=0.0))
    with pytest.raises(ModelError, match=r"positive standard deviations, got .*\[0\.0\].* --normalize"):
        import_model(path, labels=None, normalize=None)
    assert scores(import_model(path, labels=None))[0] > 0.9
    damaged = path.read_bytes().replace(b"PK\x01\x02", b"PK\x01\x03")
    path.write_bytes(damaged)
    with pytest.raises(ModelError, match="with --labels"):
        import_model(path, labels=None)
    assert scores(import_model(path))[0] > 0.9
    faults = json.loads(edgerec("inspect", path, "--json").stdout)["metadata_faults"]
    assert [fault.split(":")[0] for fault in faults] == ["labels", "normalize"]


def test_layout_is_found_without_normalization_metadata(write_model):
    """The label files are kept if an operator is added to the model."""
    content = tflite_models.with_label_files(tflite_models.channels_first(), FILES)
    report = import_model(write_model(content), labels=None, normalize=None)
    assert (report.layout, report.labels) == ("channels first", 3)
    assert inspect(report.bundle).labels


def test_edge_tpu_file_is_refused_with_advice(write_model, tmp_path, edgerec):
    model = softmax()
    code = model.model.operatorCodes[0]
    code.builtinCode = code.deprecatedBuiltinCode = model.schema.BuiltinOperator.CUSTOM
    code.customCode = "edgetpu-custom-op"
    path = write_model(model.to_bytes()).rename(tmp_path / "birds_edgetpu.tflite")
    message = error_line(edgerec("import", path, "--out", tmp_path / "b"))
    assert "compiled for the Edge TPU" in message
    assert "birds.tflite with --target coral" in message


def test_probabilities_that_overflow_outside_the_input_range_get_no_second_softmax(write_model):
    report = import_model(write_model(expanded_softmax(logits(scale=5.0)).to_bytes()), normalize="unit")
    assert report.activation == "none"
    assert report.sums_to_one


@pytest.mark.parametrize("damage", ["compressed data", "size"])
def test_damaged_files_appended_to_a_model_are_removed(write_model, damage):
    files = io.BytesIO(tflite_models.channels_first())
    with zipfile.ZipFile(files, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.txt", "label\n" * 1000 if damage == "compressed data" else bytes(40 << 20))
    content = bytearray(files.getvalue())
    if damage == "compressed data":
        start = content.rindex(b"PK\x03\x04") + 30 + len("labels.txt")
        content[start : start + 4] = b"\xff\xff\xff\xff"
    report = import_model(write_model(bytes(content)))
    assert report.layout == "channels first"
    assert report.size_bytes < 10_000


@pytest.mark.parametrize("target", ["android", "web"])
def test_app_reads_the_chosen_labels_and_normalization_from_the_model(write_model, target):
    content = tflite_models.with_label_files(softmax().to_bytes(), {"old.txt": ("a\nb\nc\n", "")}, std=2.0)
    path = write_model(content)
    report = import_model(path, normalize="unit", target=target)
    bundle = Bundle.open(report.bundle)
    metadata = read_metadata(bundle.files[bundle.manifest.model])
    assert metadata.labels == COLORS
    assert metadata.normalize == (Normalize.named("unit"),)
    unchanged = import_model(path, labels=None, normalize=None, target=target)
    bundle = Bundle.open(unchanged.bundle)
    assert bundle.files[bundle.manifest.model] == content


def small_logits() -> Model:
    """Build a model whose logits happen to be in [0, 1] for all pixels."""
    model = Model().add("MEAN", (1, 3), np.array((1, 2), np.int32))
    return model.add("FULLY_CONNECTED", (1, 3), np.eye(3) * 0.001, np.full(3, 0.3))


@pytest.mark.parametrize("last_operator", ["RELU", "SQUARE", "MUL", "SUB"])
def test_small_logits_are_not_taken_for_probabilities(write_model, last_operator):
    constants = [np.full((1, 3), 0.5)] if last_operator in ("MUL", "SUB") else []
    assert (
        import_model(write_model(small_logits().add(last_operator, (1, 3), *constants).to_bytes())).activation
        == "softmax"
    )
