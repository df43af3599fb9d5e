"""Keras files never execute code: models of runs, checkpoints, teachers, initial weights and third-party files."""

from __future__ import annotations

import json
import shutil
import zipfile

import pytest

from edgerec import Recipe, adopt, distill, evaluate, fit, quantize, tune, write_report
from edgerec.errors import EdgerecError, ModelError, StudyError
from edgerec.importing.third_party_keras import read_third_party

CODE = "open('executed', 'w').close()"
EVAL = {"class_name": "function", "module": "builtins", "config": "exec", "registered_name": "exec"}


def lambda_layer(constant=CODE):
    config = {"name": "x", "trainable": True, "dtype": "float32", "function": EVAL, "function_type": "function"}
    config |= {"output_shape": None, "output_shape_type": "raw", "arguments": {}}
    inbound = [[["_CONSTANT_VALUE", -1, constant, {}]]]
    layer = {"module": "keras.layers", "class_name": "Lambda", "registered_name": None, "name": "x", "config": config}
    return layer | {"inbound_nodes": inbound}


def rewrite(path, change):
    """Change the configuration in a .keras file."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    change(config)
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def add_lambda(path):
    rewrite(path, lambda config: config["config"]["layers"].append(lambda_layer()))


@pytest.fixture
def copy(run, tmp_path, monkeypatch):
    """A copy of the run. The current folder is empty, so that files that executed code writes are found."""
    shutil.copytree(run.path, tmp_path / "copy", ignore=shutil.ignore_patterns("exports.json"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "copy"


def test_lambda_layer_in_a_run_is_not_executed(copy, tmp_path):
    add_lambda(copy / "model.keras")
    functions = [
        lambda: evaluate(copy),
        lambda: quantize(copy, "ptq"),
        lambda: distill([copy], "simple_cnn", tmp_path / "student"),
        lambda: fit(
            Recipe.from_dict({"model": {"arch": "backbone", "weights": str(copy / "model.keras")}}), tmp_path / "new"
        ),
        lambda: adopt(copy / "model.keras", "digits", out=tmp_path / "adopted"),
    ]
    for function in functions:
        with pytest.raises(EdgerecError, match="'x' is a Lambda, which is not allowed because its code"):
            function()
    assert list((tmp_path / "here").iterdir()) == []


def test_report_does_not_execute_a_lambda_layer(copy, tmp_path):
    add_lambda(copy / "model.keras")
    write_report(copy, tmp_path / "report.html")
    assert list((tmp_path / "here").iterdir()) == []


def test_lambda_layer_in_a_checkpoint_is_not_executed(copy, tmp_path, caplog):
    (copy / "metrics.json").unlink()
    for checkpoint in (copy / "checkpoints").glob("*.keras"):
        add_lambda(checkpoint)
    fit(Recipe(), copy, resume=True)  # starts at the first epoch, because no checkpoint can be used
    assert "'x' is a Lambda, which is not allowed" in caplog.text
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("name", ["loss", "metrics", "optimizer"])
def test_compile_config_of_a_checkpoint_is_checked(copy, tmp_path, name):
    from edgerec.importing.keras_files import load_checkpoint

    checkpoint = sorted((copy / "checkpoints").glob("*.keras"))[-1]
    assert load_checkpoint(checkpoint).optimizer.variables

    def change(config):
        config["compile_config"][name] = [EVAL] if name == "metrics" else EVAL

    rewrite(checkpoint, change)
    with pytest.raises(ModelError, match=r"function \(exec\), which is not allowed"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("major", [2, 3])
def test_nested_compile_config_is_checked(tmp_path, major):
    import keras
    import tf_keras

    module = keras if major == 3 else tf_keras
    inner = module.Sequential([module.layers.Input((28, 28, 1)), module.layers.Flatten(), module.layers.Dense(10)])
    inputs = module.Input((28, 28, 1))
    model = module.Model(inputs, module.layers.Softmax()(inner(inputs)))
    model.save(tmp_path / "net.keras")

    def change(loss):
        def apply(config):
            for layer in config["config"]["layers"]:
                if layer["class_name"] == "Sequential":
                    layer["compile_config"] = {"optimizer": "adam", "loss": loss, "metrics": None}

        return apply

    rewrite(tmp_path / "net.keras", change("mse"))
    assert read_third_party(tmp_path / "net.keras").output_shape == (None, 10)
    rewrite(tmp_path / "net.keras", change(EVAL))
    with pytest.raises(ModelError, match=r"function \(exec\), which is not allowed"):
        read_third_party(tmp_path / "net.keras")


def test_saved_model_folder_in_place_of_keras_file_is_not_loaded(copy, tmp_path):
    """TensorFlow would load a SavedModel folder at a .keras path without a check of its operators."""
    import tensorflow as tf

    (copy / "model.keras").unlink()
    tf.saved_model.save(tf.Module(), str(copy / "model.keras"))
    with pytest.raises(ModelError, match=r"is not a Keras model .* it is the folder of a SavedModel"):
        evaluate(copy)


def test_initial_weights_with_links_to_other_files_are_refused(run, tmp_path):
    import h5py

    model = run.model()
    model.save_weights(tmp_path / "secret.h5")
    with h5py.File(tmp_path / "links.h5", "w") as file, h5py.File(tmp_path / "secret.h5") as secret:
        for key, value in secret.attrs.items():
            file.attrs[key] = value
        for name in secret:
            file[name] = h5py.ExternalLink(str(tmp_path / "secret.h5"), name)
    recipe = run.recipe.override({"model.weights": str(tmp_path / "links.h5")}, "test")
    with pytest.raises(ModelError, match="is a link to another file"):
        fit(recipe, tmp_path / "run")


def test_archive_with_implausible_unpacked_size_is_refused(copy):
    with zipfile.ZipFile(copy / "model.keras", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("filler", bytes(200 << 20))
    with pytest.raises(ModelError, match="the archive unpacks from"):
        evaluate(copy)


@pytest.mark.parametrize("section", ["recipe", "search"])
def test_resuming_a_study_does_not_execute_code_that_the_study_names(tmp_path, monkeypatch, section):
    pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    code = "def build(keras, inputs, section):\n    return keras.layers.Flatten()(inputs)\n"
    (tmp_path / "net.py").write_text(code)
    arch = "net.py:build" if section == "recipe" else "simple_cnn"
    recipe = Recipe.from_dict({"train": {"epochs": 1, "batch_size": 512}, "model": {"arch": arch}})
    search = {"train.learning_rate": [1e-3]} if section == "recipe" else {"model.arch": ["net.py:build"]}
    tune(recipe, tmp_path / "study", trials=1, search=search, keep="none")
    (tmp_path / "net.py").write_text(f"{CODE}\n{code}")
    with pytest.raises(StudyError, match=r"defined in net\.py:build, a Python file"):
        tune(None, tmp_path / "study", resume=True, trials=2)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(("suffix", "hdf5_first"), [(".keras", True), (".h5", False)])
def test_file_with_two_formats_is_refused(copy, tmp_path, suffix, hdf5_first):
    """Otherwise, one format could be checked and the other one loaded."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path / f"model{suffix}"
    with h5py.File(path, "w", userblock_size=0 if hdf5_first else 512) as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"name": "x", "layers": []}})
    add_lambda(copy / "model.keras")
    path.write_bytes(path.read_bytes() + (copy / "model.keras").read_bytes())
    assert zipfile.is_zipfile(path)
    assert h5py.is_hdf5(path)
    with pytest.raises(ModelError, match="is both a zip archive and an HDF5 file"):
        read_third_party(path)
    weights = Recipe().override({"data.source": "digits", "model.weights": str(path)})
    with pytest.raises(EdgerecError, match="is both a zip archive and an HDF5 file"):
        fit(weights, tmp_path / "new")
