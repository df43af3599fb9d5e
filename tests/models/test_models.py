"""Architectures: their structure and cost, the ImageNet weights of Keras, and architectures in user code."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from typer.testing import CliRunner

from edgerec import Recipe, Run, architecture, architectures, evaluate, fit, quantize
from edgerec.catalog.architectures import measured
from edgerec.cli.app import app
from edgerec.compress.convert import check_int8, to_int8
from edgerec.compress.fake_quantization import with_fake_quantization
from edgerec.contract.tensors import Normalize
from edgerec.errors import EdgerecError, ModelError, RecipeError, RunError
from edgerec.importing.keras_files import load_model
from edgerec.importing.passes import adapt
from edgerec.models import ARCHITECTURES, build, imagenet
from edgerec.recipe import ModelSection
from edgerec.runtime.image_model import ImageModel
from edgerec.train.backend import keras
from tests.conftest import error_line

UNIT = Normalize.named("unit")
REPORTS = {report.name: report for report in architectures()}
# Architectures that edgerec builds itself, and that are compared with the Keras application of the same name.
KERAS_ARCHITECTURES = ("vgg16", "resnet50", "efficientnet_b0", "mobilenet_v3_small")


def built(arch, width=1.0, weights="none", size=0, channels=3):
    size = size or ARCHITECTURES[arch].least_size_px
    return build(keras(), ModelSection(arch, width, weights=weights), (size, size, channels), 10, UNIT)


@pytest.fixture(autouse=True)
def _fresh():
    keras().backend.clear_session()
    keras().mixed_precision.set_global_policy("float32")
    keras().utils.set_random_seed(0)


def preprocessed(pixels: str, of_application: str, images: np.ndarray) -> np.ndarray:
    """Return pixels in [0, 255] with the preprocessing that the documentation of the Keras application describes."""
    name = {"caffe": "resnet50", "torch": "densenet", "tf": "mobilenet_v2"}[pixels]
    output = getattr(keras().applications, name).preprocess_input(images.copy())
    if of_application == "EfficientNetB0":
        return output * 255  # without weights, the application divides by 255 and does not normalize
    return images if of_application.startswith(("MobileNetV3", "EfficientNetV2")) else output


@pytest.mark.slow
@pytest.mark.parametrize("arch", KERAS_ARCHITECTURES)
def test_features_with_imagenet_weights_equal_the_keras_application(arch, monkeypatch):
    """Random weights replace the downloaded weights."""
    known, applications = ARCHITECTURES[arch].imagenet, []
    real = getattr(keras().applications, known.application)

    def application(**options):
        model = real(**options | {"weights": None})
        if options["weights"] == "imagenet":
            rng = np.random.default_rng(0)
            for layer in model.layers:
                if isinstance(layer, keras().layers.BatchNormalization):
                    layer.set_weights([rng.uniform(0.8, 1.2, w.shape) for w in layer.get_weights()])
            applications.append(model)
        return model

    monkeypatch.setattr(keras().applications, known.application, application)
    model = built(arch, weights="imagenet")
    pixels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3)).astype(np.float32)
    inputs = preprocessed(known.pixels, known.application, pixels)
    expected = applications[0](inputs, training=False).numpy().mean((1, 2))
    features = keras().Model(model.input, model.get_layer("logits").input)(pixels / 255, training=False).numpy()
    np.testing.assert_allclose(features, expected, atol=2e-4 * np.abs(expected).max())
    assert not model.get_layer(imagenet.RANGE).trainable
    assert model.count_params() - 6 == REPORTS[arch].parameters  # the layer that converts the range has 6


@pytest.mark.parametrize("arch", sorted(set(ARCHITECTURES) - {*KERAS_ARCHITECTURES}))
def test_architectures_have_no_nested_models_and_scale_with_the_width(arch):
    model = built(arch, width=0.25, channels=1)
    assert model.output_shape == (model.input_shape if ARCHITECTURES[arch].reconstructs else (None, 10))
    assert not [layer.name for layer in model.layers if hasattr(layer, "layers")]
    assert model.count_params() < 0.4 * REPORTS[arch].parameters
    assert all("/" not in layer.name for layer in model.layers)  # Keras 3 does not allow them


def test_ds_cnn_can_be_trained_with_qat_and_converted():
    model = built("ds_cnn", width=0.25)
    pixels = np.random.default_rng(0).integers(0, 256, (8, *model.input_shape[1:]), np.uint8)
    quantized = with_fake_quantization(adapt(model).model, UNIT)
    quantized.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    quantized.fit(UNIT.apply(pixels.astype(np.float32)), np.arange(8), batch_size=4, verbose=0)
    content = to_int8(quantized)
    check_int8(content, UNIT)
    scores = ImageModel(content, UNIT).scores(pixels[0])
    assert np.abs(scores - quantized(pixels[:1] / 255, training=False).numpy()).max() < 0.05


# --- ImageNet weights -------------------------------------------------------------------------------------------


def test_imagenet_weights_that_do_not_exist_are_refused():
    for arguments, message in (
        ({"arch": "simple_cnn"}, "with simple_cnn and 3 channels: Keras provides .* vgg16, "),
        ({"arch": "vgg16", "channels": 1}, "with vgg16 and 1 channels: .* for RGB images"),
        ({"arch": "vgg16", "width": 0.5}, "vgg16 and width 0.5: Keras provides weights only for width 1. Choose"),
        (
            {"arch": "mobilenet_v1", "width": 0.3},
            "width 0.3: .* for width 0.25, 0.5, 0.75, 1. Choose",
        ),
    ):
        with pytest.raises(RecipeError, match=message):
            built(**arguments, weights="imagenet")


def test_imagenet_weights_with_other_layers_are_refused(monkeypatch):
    other = keras().Sequential([keras().Input((32, 32, 3)), keras().layers.Dense(2, name="other")])
    monkeypatch.setattr(keras().applications, "MobileNetV3Small", lambda **options: other)
    with pytest.raises(ModelError, match=r"MobileNetV3Small differ .*: set model.weights='none'"):
        built("mobilenet_v3_small_minimalistic", weights="imagenet")


@pytest.mark.parametrize("pixels", imagenet.PIXELS)
def test_input_normalization_for_imagenet_weights_survives_int8(pixels):
    """Up to a tenth of the pixel values coincide, because the channels share a scale; none coincide with ``tf``."""
    inputs = keras().Input((1, 256, 3))
    x = imagenet.match_normalization(keras(), inputs, UNIT, pixels)
    head = keras().Model(inputs, keras().layers.Flatten()(x))
    all_values = np.tile(np.arange(256, dtype=np.float32)[None, None, :, None], (1, 1, 1, 3)) / 255
    expected, (_, deviation) = head(all_values).numpy().reshape(256, 3), imagenet.PIXELS[pixels]
    model = ImageModel(to_int8(head, all_values), UNIT)
    actual = model.scores(np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (1, 1, 3))).reshape(256, 3)
    assert np.abs((actual - expected) * np.asarray(deviation)).max() <= 0.6  # pixel values
    distinct = min(len(np.unique(actual[:, channel])) for channel in range(3))
    assert distinct == 256 if pixels == "tf" else distinct > 225


# --- edgerec models ---------------------------------------------------------------------------------------------


def test_included_costs_equal_a_new_measurement():
    assert list(REPORTS) == list(ARCHITECTURES)
    for name in ("ds_cnn", "lstm"):
        here, shipped = measured(name).to_dict(), REPORTS[name].to_dict()
        # The size of the file differs slightly between versions of TensorFlow.
        assert here.pop("int8_bytes") == pytest.approx(shipped.pop("int8_bytes"), rel=0.02)
        assert here == shipped


def test_listing_architectures_does_not_import_tensorflow():
    code = "import sys\nimport edgerec\nprint(len(edgerec.architectures()), 'tensorflow' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [str(len(ARCHITECTURES)), "False"]


def call(*arguments):
    result = CliRunner().invoke(app, ["models", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr.strip()


def test_models_command_lists_and_describes_architectures(tmp_path):
    code, stdout, _ = call()
    assert code == 0
    rows = stdout.splitlines()
    assert [row.split()[0] for row in rows[1 : len(ARCHITECTURES) + 1]] == list(ARCHITECTURES)
    assert "only ptq" in next(row for row in rows if row.startswith("lstm "))
    _, stdout, _ = call("resnet8")
    assert f"{REPORTS['resnet8'].parameters:,}" in stdout
    assert "rpi  " in stdout
    assert "yes" in stdout
    _, stdout, _ = call("--plot", tmp_path / "all.png", "--json")
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
    assert "--overwrite" in call("--plot", tmp_path / "all.png")[2]
    assert [row["name"] for row in json.loads(stdout)] == list(ARCHITECTURES)


def test_architecture_with_other_input_size_is_measured():
    code, stdout, _ = call("simple_cnn", "--input-size", 28, "--width", 0.125, "--classes", 4, "--json")
    assert code == 0
    row = json.loads(stdout)
    assert (row["input_size"], row["width"], row["classes"]) == (28, 0.125, 4)
    # The sides of the feature maps are 26, 13, 11 and 5, and the convolutions have 4 and 8 channels.
    assert row["macs"] == 26 * 26 * 27 * 4 + 11 * 11 * 36 * 8 + 200 * 8 + 8 * 4
    assert row["methods"] == ["ptq", "qat", "prune+qat"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["resnet_8"], 1, "unknown architecture 'resnet_8'; did you mean 'resnet8'"),
        (["resnet8", "--input-size", 8], 1, "--input-size must be at least 16 pixels for resnet8, got 8"),
        (["resnet8", "--width", 9], 1, "model.width is 9.0, expected 0 or 0.05 to 4"),
        (["resnet8", "--width", 0], 1, "--width must be from 0.05 to 4, got 0"),
        (["auto"], 1, "is only supported by 'edgerec train'"),
        (["resnet8", "--classes", 1], 1, "--classes must be from 2 to"),
        (["--width", 0.5], 2, "require the name of an architecture: add NAME"),
        (["nothing.py:build"], 1, "the file nothing.py does not exist"),
    ],
)
def test_models_command_refuses_invalid_arguments(arguments, code, message):
    actual_code, _, error = call(*arguments)
    assert (actual_code, message in error) == (code, True), error


# --- Architectures in user code -----------------------------------------------------------------------------------

USER_ARCHITECTURE = """
def build(keras, inputs, section):
    'Mine.'
    x = keras.layers.Conv2D(max(1, round(8 * section.width)), 3, activation="relu")(inputs * 2 - 1)
    return keras.layers.GlobalAveragePooling2D()(x)
"""


def test_run_with_user_architecture_opens_without_its_code(image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = tmp_path / "my_net.py"
    code.write_text(USER_ARCHITECTURE)
    recipe = Recipe().override(
        {
            "data.source": str(image_folder),
            "data.input_size": 16,
            "model.arch": "my_net:build",
            "train.epochs": 1,
            "train.mixed_precision": True,
            "compress.epochs": 1,
            "compress.max_drop": 100.0,
        }
    )
    trained = fit(recipe, tmp_path / "run")
    code.write_text("raise SystemExit('this code is run')")
    sys.modules.pop("my_net")
    run = Run.open(tmp_path / "run")
    assert run.model().name == "my_net"
    assert {layer.dtype_policy.name for layer in run.model().layers} == {"float32"}
    assert evaluate(run.path).accuracy == trained.metrics["accuracy"]
    quantize(run, "ptq")
    check_int8((run.variant("int8") / "model.tflite").read_bytes(), UNIT)
    # Resuming a run does not execute the code either, because somebody else may have started the run.
    (tmp_path / "run" / "metrics.json").unlink()
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        checkpoint.unlink()
    with pytest.raises(RunError, match=r"resuming does not execute its network's code \(my_net:build\)"):
        fit(recipe, tmp_path / "run", resume=True)


def test_user_architecture_is_measured(tmp_path):
    (tmp_path / "net.py").write_text(USER_ARCHITECTURE)
    report = architecture(f"{tmp_path}/net.py:build", input_size=16, classes=2)
    assert (report.about, report.parameters) == ("Mine.", 27 * 8 + 8 + 18)
    assert 0 <= report.macs - (14 * 14 * 27 * 8 + 16) <= 2 * 16 * 16 * 3  # the operations on the pixels also count


def test_misspelled_function_is_reported_before_images_are_read(edgerec, tmp_path):
    (tmp_path / "net.py").write_text(USER_ARCHITECTURE)
    message = error_line(edgerec("train", "--data", "x", "--arch", "net.py:biuld", "--out", "run", cwd=tmp_path))
    assert "unknown function of net.py 'biuld'; did you mean 'build'" in message


INVALID_ARCHITECTURES = {
    "returned": ("return 3", "returns an object of type int: expected a function build"),
    "model": ("return keras.Model(inputs, keras.layers.Flatten()(inputs))", "returns a model, but"),
    "image": ("return keras.layers.Conv2D(2, 3)(inputs)", r"shape \(None, 14, 14, 2\), expected \(batch, n\)"),
    "failing": ("return keras.layers.Conv2D(2, 99)(inputs)", r"failed \(.*net\.py, line 2\): ValueError"),
    "elsewhere": ("return keras.layers.Flatten()(keras.Input((4, 4, 3)))", "is not computed from its inputs"),
    "nested": (
        "return keras.layers.Flatten()(keras.Sequential([keras.layers.ReLU()])(inputs))",
        "nested model",
    ),
    "keras 3": (
        "import keras as k3; return k3.layers.Flatten()(k3.layers.Conv2D(2, 3)(inputs))",
        "use the Keras module that the function gets as its first argument",
    ),
    "ending": ("raise SystemExit(3)", r"failed \(.*net\.py, line 2\): SystemExit: 3"),
}


@pytest.mark.parametrize("body", INVALID_ARCHITECTURES)
def test_invalid_user_architecture_is_refused(body, tmp_path):
    text, message = INVALID_ARCHITECTURES[body]
    (tmp_path / "net.py").write_text(f"def build(keras, inputs, section):\n    {text}\n")
    with pytest.raises(ModelError, match=message):
        build(keras(), ModelSection(f"{tmp_path}/net.py:build"), (16, 16, 3), 2, UNIT)


@pytest.mark.parametrize(
    ("arch", "text", "message"),
    [
        ("net.py:other", USER_ARCHITECTURE, "unknown function of net.py 'other'"),
        ("net.py:build", "build = 3", "is an object of type int: expected a function"),
        ("net.py:build", "def build(:", "cannot be imported: SyntaxError"),
        ("net.py:build", "import nothing_such", r"cannot be imported \(.*net\.py, line 1\): ModuleNotFoundError"),
        ("nothing:build", "", "there is no module 'nothing'"),
        (":build", "", "expected module:function or path/to/file.py:function"),
    ],
)
def test_user_code_that_cannot_be_imported_is_refused(arch, text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(text)
    with pytest.raises(EdgerecError, match=message):
        build(keras(), ModelSection(arch), (16, 16, 3), 2, UNIT)


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_layers_that_cannot_be_loaded_without_user_code_are_refused_before_training(image_folder, tmp_path):
    (tmp_path / "net.py").write_text(
        "def twice(x):\n"
        "    return x * 2\n"
        "def unnamed(keras, inputs, section, act=lambda x: x * 2):\n"
        "    return keras.layers.Flatten()(keras.layers.Conv2D(2, 3, activation=act, name='mine')(inputs))\n"
        "def named(keras, inputs, section):\n"
        "    return unnamed(keras, inputs, section, twice)\n"
        "def layer(keras, inputs, section):\n"
        "    class Mine(keras.layers.Flatten): pass\n"
        "    return Mine(name='mine')(inputs)\n"
    )
    for name, message in (
        ("unnamed", "could not be opened again without this code"),
        ("named", r"layer 'mine' is a function \(twice\), which is not allowed"),
        ("layer", r"layer 'mine' is a Mine of the package net, whose code is not executed"),
    ):
        recipe = Recipe().override({"data.source": str(image_folder), "model.arch": f"{tmp_path}/net.py:{name}"})
        with pytest.raises(ModelError, match=message):
            fit(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _empty_h5() -> bytes:
    import h5py

    content = io.BytesIO()
    h5py.File(content, "w").close()
    return content.getvalue()


def test_loading_a_model_does_not_import_the_module_that_it_names(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "planted.py").write_text("raise SystemExit('this code is run')")
    config = {"module": "planted", "class_name": "Model", "config": {}, "registered_name": None}
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("metadata.json", '{"keras_version": "2.21.0"}')
        archive.writestr("model.weights.h5", _empty_h5())
    with pytest.raises(ModelError, match="is a Model of the package planted, whose code is not executed"):
        load_model(tmp_path / "model.keras")
