"""Third-party models are read without executing code and become runs; edgerec's models open in Keras 3."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import zipfile

import cv2
import h5py
import numpy as np
import pytest

from edgerec import Run, adopt, evaluate, export_bundle, fit, quantize
from edgerec.contract.tensors import Normalize
from edgerec.errors import DataError, EdgerecError, ModelError, OutputExistsError, RecipeError
from edgerec.importing.adopt import open_or_adopt
from edgerec.importing.saved_model import check_operators, load_saved_model
from edgerec.importing.third_party_keras import read_third_party
from edgerec.importing.to_keras3 import write_keras3
from edgerec.models import build
from edgerec.recipe import ModelSection
from edgerec.train.backend import keras
from edgerec.train.run import KERAS3
from tests.compress.test_quantize import is_full_int8
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def keras3_models(tmp_path_factory):
    """A folder with models that Keras 3 saved, and with their outputs in ``outputs.npz``."""
    folder = tmp_path_factory.mktemp("keras3")
    command = [sys.executable, "-m", "tests.keras3_models", str(folder)]
    subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY)
    return folder


def classifier(inputs=1, size=16, classes=2):
    """A small Keras 2 model."""
    layers = keras().layers
    inputs_list = [keras().Input((size, size, 3)) for _ in range(inputs)]
    x = layers.Conv2D(2, 3)(layers.Add()(inputs_list) if inputs > 1 else inputs_list[0])
    return keras().Model(inputs_list, layers.Dense(classes, "softmax")(layers.GlobalAveragePooling2D()(x)))


# Reading


@pytest.mark.parametrize("name", ["sequential.keras", "sequential.h5", "residual.keras", "nested.keras", "nested.h5"])
def test_keras_3_models_keep_their_outputs(keras3_models, name):
    outputs = np.load(keras3_models / "outputs.npz")
    model = read_third_party(keras3_models / name)
    assert type(model).__module__.startswith("tf_keras")
    expected = outputs[name.partition(".")[0]]
    assert np.ptp(expected, axis=0).min() > 1e-3  # the outputs depend on the images
    np.testing.assert_allclose(model(outputs["images"], training=False), expected, atol=1e-5)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_keras_2_models_keep_their_outputs(tmp_path, suffix):
    model = classifier()
    model.save(tmp_path / f"m{suffix}")
    images = np.random.default_rng(0).uniform(0, 1, (3, 16, 16, 3)).astype(np.float32)
    np.testing.assert_array_equal(read_third_party(tmp_path / f"m{suffix}")(images), model(images))


def test_mixed_precision_is_read_as_float32(tmp_path):
    keras().mixed_precision.set_global_policy("mixed_float16")
    try:
        classifier().save(tmp_path / "m.h5")
    finally:
        keras().mixed_precision.set_global_policy("float32")
    model = read_third_party(tmp_path / "m.h5")
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_lambda_in_a_file_is_not_executed(keras3_models, tmp_path, suffix):
    with pytest.raises(
        ModelError, match="layer 'innocent' is a Lambda, which is not allowed because its code is in the file"
    ):
        read_third_party(keras3_models / f"harmful{suffix}")
    assert not (keras3_models / "marker").exists()
    layers = keras().layers
    model = keras().Sequential([layers.Flatten(input_shape=(4, 4, 3)), layers.Lambda(lambda x: x, name="innocent")])
    model.save(tmp_path / f"keras2{suffix}")
    with pytest.raises(ModelError, match="'innocent' is a Lambda"):
        read_third_party(tmp_path / f"keras2{suffix}")


def with_changed_config(path, target, change):
    """Write a copy of a .keras file with a changed configuration."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                config = json.loads(content)
                change(config["config"]["layers"])
                content = json.dumps(config).encode()
            new.writestr(name, content)
    return target


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"module": "os", "class_name": "system"}, "a system of the package os"),
        (
            {"class_name": "MyLayer", "registered_name": "mine>MyLayer"},
            r"layer 'conv2d_\d' is a MyLayer, which is not allowed",
        ),
        ({"class_name": "TFSMLayer"}, "a TFSMLayer, which is not allowed"),
        ({"module": "keras.utils", "class_name": "get_file"}, "a get_file, which is not allowed"),
        ({"module": "keras.src.ops.core", "class_name": "Map"}, "a Map, which is not allowed"),
        ({"config": {"name": "c", "activation": {"class_name": "function", "config": "popen"}}}, "is a function"),
        ({"class_name": "TFOpLambda", "config": {"name": "c", "function": "io.write_file"}}, "io.write_file"),
    ],
)
def test_unknown_classes_and_functions_are_refused(keras3_models, tmp_path, change, reason):
    path = with_changed_config(
        keras3_models / "red_or_blue.keras", tmp_path / "m.keras", lambda layers: layers[1].update(change)
    )
    with pytest.raises(ModelError, match=reason):
        read_third_party(path)


def test_damaged_files_are_refused_in_one_line(keras3_models, tmp_path):
    content = (keras3_models / "red_or_blue.keras").read_bytes()
    middle = content.index(b"model.weights.h5") + 2000
    linked = tmp_path / "linked.h5"
    shutil.copy(keras3_models / "sequential.h5", linked)
    with h5py.File(linked, "a") as file:
        file["model_weights/other"] = h5py.ExternalLink("/etc/passwd", "/")
    cases = {
        "cut.keras": content[: len(content) // 2],
        "spoilt.keras": content[:middle] + bytes(200) + content[middle + 200 :],
        "text.keras": b"no model",
        "cut.h5": (keras3_models / "sequential.h5").read_bytes()[:6000],
        "linked.h5": linked.read_bytes(),
        "only.h5": (keras3_models / "only.weights.h5").read_bytes(),
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError) as excinfo:
            read_third_party(tmp_path / name)
        assert name in str(excinfo.value), str(excinfo.value)
        assert "\n" not in str(excinfo.value)
    with pytest.raises(ModelError, match="does not exist"):
        read_third_party(tmp_path / "none.keras")


# Checks of the classifier


def test_models_that_are_not_image_classifiers_are_refused(image_folder, tmp_path):
    with_nan = classifier()
    with_nan.set_weights([np.full_like(w, np.nan) for w in with_nan.get_weights()])
    layers = keras().layers
    inputs = keras().Input((16, 16, 3))
    cases = {
        "has 2 inputs, but an image classifier must have one input": classifier(inputs=2),
        "the dynamic input shape": classifier(size=None),
        "NaN or infinite weights": with_nan,
        "is not an image classifier": keras().Model(inputs, layers.Conv2D(2, 3)(inputs)),
        "only square images are supported": keras().Sequential(
            [layers.Flatten(input_shape=(16, 12, 3)), layers.Dense(2, "softmax")]
        ),
    }
    for reason, model in cases.items():
        model.save(tmp_path / "m.keras", overwrite=True)
        with pytest.raises(ModelError, match=reason):
            adopt(tmp_path / "m.keras", str(image_folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_error_about_class_count_has_both_numbers(image_folder, tmp_path):
    classifier(classes=5).save(tmp_path / "m.keras")
    with pytest.raises(DataError, match=r"m\.keras has 5 classes, .* has 2 labels \(blue, red\): .*--labels FILE"):
        adopt(tmp_path / "m.keras", str(image_folder), tmp_path / "run")


# Adopting


@pytest.fixture
def adopted_run(keras3_models, image_folder, tmp_path):
    return adopt(keras3_models / "red_or_blue.keras", str(image_folder), tmp_path / "mine")


def test_adopted_model_can_be_used_like_a_run(keras3_models, adopted_run, tmp_path):
    run = adopted_run
    assert run.labels == ("blue", "red")
    assert run.recipe.model.arch == "own"
    assert run.metrics["accuracy"] == 1.0
    # Only one normalization makes this model right, and its logits got a softmax.
    record = run.metrics["adopted"]
    assert (record["normalize"], record["file"], record["truth"]) == ("unit", "red_or_blue.keras", "labels")
    assert record["tried"]["unit"] == 1.0 > max(record["tried"]["signed"], record["tried"]["pixels"])
    assert run.model().layers[-1].get_config()["activation"] == "softmax"
    for method in ("ptq", "qat"):
        report = quantize(run, method, epochs=1 if "qat" in method else None, max_drop=20)
        assert report.forms[-1].agreement > 0.9
        is_full_int8((run.variant(report.variant) / "model.tflite").read_bytes())
    assert evaluate(run.path).accuracy == 1.0
    bundle = export_bundle(run, out=tmp_path / "bundle").bundle
    assert "red_or_blue.keras, trained with another tool" in (tmp_path / "bundle" / "README.md").read_text()
    assert evaluate(bundle, run.recipe.data.source).accuracy > 0.9


def test_second_call_reuses_the_run(keras3_models, adopted_run, image_folder, tmp_path):
    model = keras3_models / "red_or_blue.keras"
    before = (adopted_run.path / "metrics.json").stat().st_mtime_ns
    assert open_or_adopt(model, str(image_folder), adopted_run.path).path == adopted_run.path
    assert (adopted_run.path / "metrics.json").stat().st_mtime_ns == before
    with pytest.raises(EdgerecError, match="another value for --normalize"):
        open_or_adopt(model, str(image_folder), adopted_run.path, normalize="signed")
    with pytest.raises(OutputExistsError):
        open_or_adopt(keras3_models / "nested.keras", str(image_folder), adopted_run.path)
    with pytest.raises(EdgerecError, match="add --data"):
        open_or_adopt(model, None)
    with pytest.raises(RecipeError, match="imported model, which cannot be trained"):
        fit(adopted_run.recipe, tmp_path / "again")


def test_quantize_command_accepts_a_model(keras3_models, image_folder, tmp_path):
    from typer.testing import CliRunner

    from edgerec.cli.app import app

    call = [
        "quantize",
        str(keras3_models / "red_or_blue.keras"),
        "--data",
        str(image_folder),
        "--method",
        "ptq",
        "--json",
    ]
    result = CliRunner().invoke(app, [*call, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["variant"] == "int8"
    assert (tmp_path / "run" / "int8" / "model.tflite").is_file()


def test_one_output_becomes_two_classes_and_input_stays_pixels(keras3_models, image_folder, tmp_path):
    run = adopt(keras3_models / "nested.keras", str(image_folder), tmp_path / "run")
    assert run.recipe.data.normalize == "pixels"  # the first layer of the model normalizes pixels
    outputs = np.load(keras3_models / "outputs.npz")
    scores = run.model()(outputs["images"], training=False)
    np.testing.assert_allclose(scores, np.hstack([1 - outputs["nested"], outputs["nested"]]), atol=1e-5)
    report = quantize(run, "ptq", max_drop=100)
    is_full_int8((run.variant("int8") / "model.tflite").read_bytes(), "pixels")
    assert report.forms[1].agreement == 1.0


def test_classes_without_images_are_accepted(keras3_models, image_folder, tmp_path):
    classifier(classes=4).save(tmp_path / "m.keras")
    labels = tmp_path / "labels.txt"
    labels.write_text("green\nred\nyellow\nblue\n")
    run = adopt(tmp_path / "m.keras", str(image_folder), tmp_path / "run", normalize="unit", labels=labels)
    assert run.labels == ("green", "red", "yellow", "blue")
    dataset, split = run.data()
    assert set(dataset.classes[split.test]) == {1, 3}
    assert evaluate(run.path).per_class["green"]["support"] == 0
    labels.write_text("green\nred\nyellow\nviolet\n")
    with pytest.raises(DataError, match="'blue', but the model does not"):
        adopt(tmp_path / "m.keras", str(image_folder), tmp_path / "run2", normalize="unit", labels=labels)
    labels.write_text("green\nred\nred\nblue\n")
    with pytest.raises(DataError, match="duplicate label 'red'"):
        adopt(tmp_path / "m.keras", str(image_folder), tmp_path / "run2", normalize="unit", labels=labels)


def test_unlabeled_images_get_predictions_as_labels(keras3_models, image_folder, tmp_path, caplog):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in image_folder.rglob("*.jpg"):
        shutil.copy(path, flat / f"{path.parent.name}_{path.name}")
    model = keras3_models / "red_or_blue.keras"
    with pytest.raises(DataError, match="add --normalize"):
        adopt(model, str(flat), tmp_path / "run")
    with caplog.at_level(logging.WARNING, "edgerec"):
        run = adopt(model, str(flat), tmp_path / "run", normalize="unit")
        report = quantize(run, "ptq", max_drop=20)
    assert "agreement with the predictions of the float model" in caplog.text
    assert run.labels == ("0", "1")
    # Red images have the model's class 1.
    assert {name.partition("_")[0] for name, label in run.pseudo_labels().items() if label == "1"} == {"red"}
    assert report.forms[0].top1 == 1.0
    assert evaluate(run.path).accuracy == 1.0
    bundle = export_bundle(run, out=tmp_path / "bundle").bundle
    assert "top-1 is the agreement with the model's own predictions" in (tmp_path / "bundle" / "README.md").read_text()
    with pytest.raises(DataError, match="no class folders"):
        evaluate(bundle, str(flat))
    cv2.imwrite(str(flat / "new.jpg"), np.zeros((30, 40, 3), np.uint8))
    with pytest.raises(DataError, match="digest differs"):
        run.data()


# SavedModel


def test_saved_model_is_quantized_but_not_trained(keras3_models, image_folder, tmp_path):
    run = adopt(keras3_models / "red_or_blue", str(image_folder), tmp_path / "run")
    assert (run.recipe.data.normalize, run.metrics["accuracy"]) == ("unit", 1.0)
    report = quantize(run, "ptq", max_drop=20)
    is_full_int8((run.variant("int8") / "model.tflite").read_bytes())
    assert report.forms[1].agreement == 1.0
    with pytest.raises(ModelError, match=r"cannot be trained or pruned: use --method ptq, or use the Keras model"):
        quantize(run, "qat")


def test_saved_model_in_training_mode_is_refused(keras3_models):
    with pytest.raises(ModelError, match="exported in training mode"):
        load_saved_model(keras3_models / "augmented")


def test_function_that_a_saved_model_calls_by_name_is_checked(tmp_path):
    """A node can have the name of a function as its operator. The function may then not use files either."""
    import tensorflow as tf
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((1, 8, 8, 3), tf.float32)])
        def serve(self, images):
            return tf.reduce_mean(images, axis=(1, 2))

    module = Module()
    tf.saved_model.save(module, str(tmp_path / "model"), signatures=module.serve)
    check_operators(tmp_path / "model")
    path = tmp_path / "model" / "saved_model.pb"
    saved = SavedModel.FromString(path.read_bytes())
    (meta,) = saved.meta_graphs
    saver = meta.graph_def.library.function.add()
    saver.signature.name = "saver"
    saver.node_def.add(name="save", op="SaveV2")
    called = next(
        f for f in meta.graph_def.library.function if f.signature.name in meta.object_graph_def.concrete_functions
    )
    called.node_def.add(name="call", op="saver")
    path.write_bytes(saved.SerializeToString())
    with pytest.raises(ModelError, match="contains the operator SaveV2"):
        check_operators(tmp_path / "model")


@pytest.mark.parametrize(
    "operator",
    ["WriteFile", "ReadFile", "EagerPyFunc", "SaveV2", "DebugIdentity", "DebugIdentityV2", "ImmutableConst", "PrintV2"],
)
def test_saved_model_with_harmful_operator_is_refused(tmp_path, operator):
    import tensorflow as tf

    marker = str(tmp_path / "marker")
    harmful_calls = {
        "WriteFile": lambda: tf.io.write_file(marker, "run"),
        "ReadFile": lambda: tf.io.read_file(marker),
        "EagerPyFunc": lambda: tf.py_function(lambda: open(marker, "w").close(), [], []),
        "SaveV2": lambda: tf.raw_ops.SaveV2(
            prefix=marker, tensor_names=["a"], shape_and_slices=[""], tensors=[tf.zeros(2)]
        ),
    }

    debugging = {"input": tf.zeros(3), "tensor_name": "a:0", "debug_urls": [f"file://{marker}"]}
    harmful_calls |= {
        "DebugIdentity": lambda: tf.raw_ops.DebugIdentity(device_name="", **debugging),
        "DebugIdentityV2": lambda: tf.raw_ops.DebugIdentityV2(
            input=tf.zeros(3), tensor_debug_mode=2, debug_urls=[f"file://{marker}"]
        ),
        "ImmutableConst": lambda: tf.raw_ops.ImmutableConst(
            dtype=tf.uint8, shape=[4], memory_region_name="/etc/hostname"
        ),
        "PrintV2": lambda: tf.print("run", output_stream=f"file://{marker}"),
    }

    class Harmful(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3])])
        def predict(self, pixels):
            with tf.control_dependencies([harmful_calls[operator]()] if operator != "EagerPyFunc" else []):
                if operator == "EagerPyFunc":
                    harmful_calls[operator]()
                return tf.reduce_mean(pixels, [1, 2])

    model = Harmful()
    tf.saved_model.save(model, str(tmp_path / "model"), signatures=model.predict)
    with pytest.raises(ModelError, match=f"contains the operator {operator}, which is not allowed"):
        load_saved_model(tmp_path / "model")
    assert not list(tmp_path.glob("marker*"))


# Export to Keras 3


def test_edgerec_architectures_open_in_keras_3(tmp_path):
    images = np.random.default_rng(0).uniform(0, 1, (3, 32, 32, 3)).astype(np.float32)
    outputs = {"images": images}
    for arch in ("simple_cnn", "resnet8", "mobilenet_v1", "mobilenet_v2", "lstm", "gru", "vgg_small", "ds_cnn"):
        section = ModelSection(arch, 0.25 if "mobilenet" in arch else 0.5, 0.1)
        model = build(keras(), section, (32, 32, 3), 3, Normalize.named("unit"))
        outputs[arch] = np.asarray(model(images, training=False))
        write_keras3(model, tmp_path / f"{arch}.keras")
    np.savez(tmp_path / "outputs.npz", **outputs)
    code = (
        "import sys, keras, numpy as np\n"
        "outputs = np.load('outputs.npz')\n"
        "for name in outputs.files[1:]:\n"
        "    model = keras.models.load_model(f'{name}.keras')\n"
        "    print(np.abs(model(outputs['images']) - outputs[name]).max())\n"
        "assert 'tf_keras' not in sys.modules\n"
    )
    # tensorflow-model-optimization sets a variable that makes TensorFlow load tf_keras.
    clean = {key: value for key, value in os.environ.items() if key != "TF_USE_LEGACY_KERAS"}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    differences = [float(line) for line in result.stdout.split()]
    assert len(differences) == 8
    assert max(differences) <= 1e-6


def test_run_contains_model_for_keras_3(run):
    keras3_model = read_third_party(run.path / KERAS3)
    images = np.random.default_rng(0).uniform(0, 1, (5, *keras3_model.input_shape[1:])).astype(np.float32)
    np.testing.assert_allclose(keras3_model(images), run.model()(images), atol=1e-6)


# Real data


@pytest.mark.nightly
def test_visual_wake_words_model_becomes_full_int8(real_data, image_folder, tmp_path):
    run = adopt(real_data / "vww_96.h5", str(image_folder), tmp_path / "run", normalize="unit")
    assert Run.open(run.path).recipe.data.input_size == 96
    quantize(run, "ptq", max_drop=100)
    content = (run.variant("int8") / "model.tflite").read_bytes()
    is_full_int8(content)
    assert len(content) < 333_288  # MLPerf Tiny's own int8 file
