"""The architectures: what they are and cost, that Keras' weights fit them, and what of a person's own is taken."""

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
from edgerec.compress.qat import with_fake_quantization
from edgerec.contract.tensors import Normalise
from edgerec.errors import EdgerecError, ModelError, RecipeError, RunError
from edgerec.importing.keras_files import load_model
from edgerec.importing.passes import adapt
from edgerec.models import ARCHITECTURES, build, imagenet
from edgerec.recipe import ModelSection
from edgerec.runtime.model import ImageModel
from edgerec.train.backend import keras
from tests.conftest import one_line

UNIT = Normalise.named("unit")
FIGURES = {report.name: report for report in architectures()}
# They are built layer by layer; these are compared whole, at width 1.
AS_KERAS = ("vgg16", "resnet50", "efficientnet_b0", "mobilenet_v3_small")


def built(arch, width=1.0, weights="none", size=0, channels=3):
    size = size or ARCHITECTURES[arch].least_size_px
    return build(keras(), ModelSection(arch, width, weights=weights), (size, size, channels), 10, UNIT)


@pytest.fixture(autouse=True)
def _fresh():
    keras().backend.clear_session()
    keras().mixed_precision.set_global_policy("float32")
    keras().utils.set_random_seed(0)


def expected_by_hand(pixels: str, of_application: str, images: np.ndarray) -> np.ndarray:
    """What Keras' documentation says that the application wants of pixels 0 to 255."""
    name = {"caffe": "resnet50", "torch": "densenet", "tf": "mobilenet_v2"}[pixels]
    made = getattr(keras().applications, name).preprocess_input(images.copy())
    if of_application == "EfficientNetB0":
        return made * 255  # without weights it divides by 255 and leaves out mean and deviation
    return images if of_application.startswith(("MobileNetV3", "EfficientNetV2")) else made


@pytest.mark.slow
@pytest.mark.parametrize("arch", AS_KERAS)
def test_keras_weights_give_what_keras_application_gives(arch, monkeypatch):
    """The weights are random ones here, in place of the downloaded; all around them is real."""
    known, made = ARCHITECTURES[arch].imagenet, []
    real = getattr(keras().applications, known.application)

    def application(**options):
        model = real(**options | {"weights": None})
        if options["weights"] == "imagenet":
            rng = np.random.default_rng(0)
            for layer in model.layers:
                if isinstance(layer, keras().layers.BatchNormalization):
                    layer.set_weights([rng.uniform(0.8, 1.2, w.shape) for w in layer.get_weights()])
            made.append(model)
        return model

    monkeypatch.setattr(keras().applications, known.application, application)
    model = built(arch, weights="imagenet")
    pixels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3)).astype(np.float32)
    wanted = made[0](expected_by_hand(known.pixels, known.application, pixels), training=False).numpy().mean((1, 2))
    features = keras().Model(model.input, model.get_layer("logits").input)(pixels / 255, training=False).numpy()
    np.testing.assert_allclose(features, wanted, atol=2e-4 * np.abs(wanted).max())
    assert not model.get_layer(imagenet.RANGE).trainable
    assert model.count_params() - 6 == FIGURES[arch].parameters  # 6 are of the range


@pytest.mark.parametrize("arch", sorted(set(ARCHITECTURES) - {*AS_KERAS}))
def test_every_architecture_is_flat_and_has_a_width(arch):
    model = built(arch, width=0.25, channels=1)
    assert model.output_shape == (model.input_shape if ARCHITECTURES[arch].reconstructs else (None, 10))
    assert not [layer.name for layer in model.layers if hasattr(layer, "layers")]
    assert model.count_params() < 0.4 * FIGURES[arch].parameters
    assert all("/" not in layer.name for layer in model.layers)  # which Keras 3 does not take


def test_a_new_family_trains_as_int8():
    model = built("ds_cnn", width=0.25)
    pixels = np.random.default_rng(0).integers(0, 256, (8, *model.input_shape[1:]), np.uint8)
    aware = with_fake_quantization(adapt(model).model, UNIT)
    aware.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    aware.fit(UNIT.apply(pixels.astype(np.float32)), np.arange(8), batch_size=4, verbose=0)
    content = to_int8(aware)
    check_int8(content, UNIT)
    scores = ImageModel(content, UNIT).scores(pixels[0])
    assert np.abs(scores - aware(pixels[:1] / 255, training=False).numpy()).max() < 0.05


# --- ImageNet's weights -----------------------------------------------------------------------------------------


def test_imagenet_weights_that_do_not_exist():
    for arguments, said in (
        ({"arch": "simple_cnn"}, r"exists for vgg16, .*; got simple_cnn with 3 channels"),
        ({"arch": "vgg16", "channels": 1}, "on RGB pictures; got vgg16 with 1 channels"),
        ({"arch": "vgg16", "width": 0.5}, "for vgg16 of width 1; got 0.5"),
        ({"arch": "mobilenet_v1", "width": 0.3}, "of width 0.25, 0.5, 0.75, 1; got 0.3: use one of them"),
    ):
        with pytest.raises(RecipeError, match=said):
            built(**arguments, weights="imagenet")


def test_weights_of_other_layers_are_refused(monkeypatch):
    other = keras().Sequential([keras().Input((32, 32, 3)), keras().layers.Dense(2, name="other")])
    monkeypatch.setattr(keras().applications, "MobileNetV3Small", lambda **options: other)
    with pytest.raises(ModelError, match=r"tf_keras' MobileNetV3Small have not the same layers .*: use --weights none"):
        built("mobilenet_v3_small_minimalistic", weights="imagenet")


@pytest.mark.parametrize("pixels", imagenet.PIXELS)
def test_int8_keeps_what_the_weights_expect(pixels):
    """One scale for three channels: a tenth of the pixel values fall together but for tf."""
    inputs = keras().Input((1, 256, 3))
    x = imagenet.as_expected(keras(), inputs, UNIT, pixels)
    head = keras().Model(inputs, keras().layers.Flatten()(x))
    every = np.tile(np.arange(256, dtype=np.float32)[None, None, :, None], (1, 1, 1, 3)) / 255
    wanted, (_, deviation) = head(every).numpy().reshape(256, 3), imagenet.PIXELS[pixels]
    model = ImageModel(to_int8(head, every), UNIT)
    given = model.scores(np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (1, 1, 3))).reshape(256, 3)
    assert np.abs((given - wanted) * np.asarray(deviation)).max() <= 0.6  # pixel values
    kept = min(len(np.unique(given[:, channel])) for channel in range(3))
    assert kept == 256 if pixels == "tf" else kept > 225


# --- edgerec models ---------------------------------------------------------------------------------------------


def test_shipped_figures_are_what_is_measured():
    assert list(FIGURES) == list(ARCHITECTURES)
    for name in ("ds_cnn", "lstm"):
        here, shipped = measured(name).to_dict(), FIGURES[name].to_dict()
        # Another TensorFlow packs a file a little otherwise.
        assert here.pop("int8_bytes") == pytest.approx(shipped.pop("int8_bytes"), rel=0.02)
        assert here == shipped


def test_the_list_needs_no_tensorflow():
    code = "import sys\nimport edgerec\nprint(len(edgerec.architectures()), 'tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(ARCHITECTURES)), "False"]


def call(*arguments):
    done = CliRunner().invoke(app, ["models", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr.strip()


def test_the_command_lists_and_describes(tmp_path):
    code, said, _ = call()
    assert code == 0
    rows = said.splitlines()
    assert [row.split()[0] for row in rows[1 : len(ARCHITECTURES) + 1]] == list(ARCHITECTURES)
    assert "only ptq" in next(row for row in rows if row.startswith("lstm "))
    _, said, _ = call("resnet8")
    assert f"{FIGURES['resnet8'].parameters:,}" in said
    assert "rpi  " in said
    assert "yes" in said
    _, said, _ = call("--plot", tmp_path / "all.png", "--json")
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
    assert "--overwrite" in call("--plot", tmp_path / "all.png")[2]
    assert [row["name"] for row in json.loads(said)] == list(ARCHITECTURES)


def test_another_size_is_measured_here():
    code, said, _ = call("simple_cnn", "--input-size", 28, "--width", 0.125, "--classes", 4, "--json")
    assert code == 0
    row = json.loads(said)
    assert (row["input_size"], row["width"], row["classes"]) == (28, 0.125, 4)
    # Of 28 pixels 26 are left, 13, 11 and 5, with 4 and 8 channels.
    assert row["macs"] == 26 * 26 * 27 * 4 + 11 * 11 * 36 * 8 + 200 * 8 + 8 * 4
    assert row["methods"] == ["ptq", "qat", "prune+qat"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["resnet_8"], 1, "unknown architecture 'resnet_8'; did you mean 'resnet8'"),
        (["resnet8", "--input-size", 8], 1, "--input-size is 8, but resnet8 needs at least 16"),
        (["resnet8", "--width", 9], 1, "model.width is 9.0, expected 0 or 0.05 to 4"),
        (["resnet8", "--width", 0], 1, "--width is 0, expected 0.05 to 4"),
        (["auto"], 1, "'auto' works only with edgerec train"),
        (["resnet8", "--classes", 1], 1, "--classes is 1, expected 2 to"),
        (["--width", 0.5], 2, "apply to one architecture: add its name"),
        (["nothing.py:build"], 1, "the file nothing.py does not exist"),
    ],
)
def test_the_command_refuses(arguments, code, said):
    got, _, error = call(*arguments)
    assert (got, said in error) == (code, True), error


# --- A network of one's own --------------------------------------------------------------------------------------

MINE = """
def build(keras, inputs, section):
    'Mine.'
    x = keras.layers.Conv2D(max(1, round(8 * section.width)), 3, activation="relu")(inputs * 2 - 1)
    return keras.layers.GlobalAveragePooling2D()(x)
"""


def test_a_network_of_ones_own_trains_and_opens_without_its_code(image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = tmp_path / "my_net.py"
    code.write_text(MINE)
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
    made = fit(recipe, tmp_path / "run")
    code.write_text("raise SystemExit('this code is run')")
    sys.modules.pop("my_net")
    run = Run.open(tmp_path / "run")
    assert run.model().name == "my_net"
    assert {layer.dtype_policy.name for layer in run.model().layers} == {"float32"}
    assert evaluate(run.path).accuracy == made.metrics["accuracy"]
    quantize(run, "ptq")
    check_int8((run.variant("int8") / "model.tflite").read_bytes(), UNIT)
    # Nor is it run to go on with what somebody else began.
    (tmp_path / "run" / "metrics.json").unlink()
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        checkpoint.unlink()
    with pytest.raises(RunError, match=r"its network is code \(my_net:build\), which --resume does not run"):
        fit(recipe, tmp_path / "run", resume=True)


def test_a_network_of_ones_own_is_measured(tmp_path):
    (tmp_path / "net.py").write_text(MINE)
    report = architecture(f"{tmp_path}/net.py:build", input_size=16, classes=2)
    assert (report.about, report.parameters) == ("Mine.", 27 * 8 + 8 + 18)
    assert 0 <= report.macs - (14 * 14 * 27 * 8 + 16) <= 2 * 16 * 16 * 3  # and its arithmetic on the pixels


def test_a_slip_in_its_name_shows_before_pictures_are_read(edgerec, tmp_path):
    (tmp_path / "net.py").write_text(MINE)
    message = one_line(edgerec("train", "--data", "x", "--arch", "net.py:biuld", "--out", "run", cwd=tmp_path))
    assert "unknown function of net.py 'biuld'; did you mean 'build'" in message


WRONG = {
    "returned": ("return 3", "gives a int, expected a function build"),
    "model": ("return keras.Model(inputs, keras.layers.Flatten()(inputs))", "gives a whole model"),
    "picture": ("return keras.layers.Conv2D(2, 3)(inputs)", r"shape \(None, 14, 14, 2\), expected \(batch, n\)"),
    "failing": ("return keras.layers.Conv2D(2, 99)(inputs)", r"failed \(.*net\.py, line 2\): ValueError"),
    "elsewhere": ("return keras.layers.Flatten()(keras.Input((4, 4, 3)))", "does not come from its inputs"),
    "nested": ("return keras.layers.Flatten()(keras.Sequential([keras.layers.ReLU()])(inputs))", "has a model inside"),
    "keras 3": (
        "import keras as k3; return k3.layers.Flatten()(k3.layers.Conv2D(2, 3)(inputs))",
        "take the keras that",
    ),
    "ending": ("raise SystemExit(3)", r"failed \(.*net\.py, line 2\): SystemExit: 3"),
}


@pytest.mark.parametrize("body", WRONG)
def test_what_a_network_of_ones_own_must_not_be(body, tmp_path):
    text, said = WRONG[body]
    (tmp_path / "net.py").write_text(f"def build(keras, inputs, section):\n    {text}\n")
    with pytest.raises(ModelError, match=said):
        build(keras(), ModelSection(f"{tmp_path}/net.py:build"), (16, 16, 3), 2, UNIT)


@pytest.mark.parametrize(
    ("arch", "text", "said"),
    [
        ("net.py:other", MINE, "unknown function of net.py 'other'"),
        ("net.py:build", "build = 3", "is a int, expected a function"),
        ("net.py:build", "def build(:", "cannot be imported: SyntaxError"),
        ("net.py:build", "import nothing_such", r"cannot be imported \(.*net\.py, line 1\): ModuleNotFoundError"),
        ("nothing:build", "", "there is no module 'nothing'"),
        (":build", "", "expected module:function or path/to/file.py:function"),
    ],
)
def test_code_that_cannot_be_found(arch, text, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(text)
    with pytest.raises(EdgerecError, match=said):
        build(keras(), ModelSection(arch), (16, 16, 3), 2, UNIT)


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_layers_that_would_need_the_code_again_are_refused_before_training(image_folder, tmp_path):
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
    for name, said in (
        ("unnamed", "could not be opened again without this code"),
        ("named", r"layer 'mine' is a function \(twice\), which is refused"),
        ("layer", r"layer 'mine' is a Mine of net, whose code edgerec does not run"),
    ):
        recipe = Recipe().override({"data.source": str(image_folder), "model.arch": f"{tmp_path}/net.py:{name}"})
        with pytest.raises(ModelError, match=said):
            fit(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _empty_h5() -> bytes:
    import h5py

    content = io.BytesIO()
    h5py.File(content, "w").close()
    return content.getvalue()


def test_a_run_that_names_somebody_s_module_does_not_import_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "planted.py").write_text("raise SystemExit('this code is run')")
    config = {"module": "planted", "class_name": "Model", "config": {}, "registered_name": None}
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("metadata.json", '{"keras_version": "2.21.0"}')
        archive.writestr("model.weights.h5", _empty_h5())
    with pytest.raises(ModelError, match="is a Model of planted, whose code edgerec does not run"):
        load_model(tmp_path / "model.keras")
