"""Keras files that are nested too deeply, that unpack to too many bytes, or that TensorFlow cannot run."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile

import pytest

from edgerec import Recipe, adopt, evaluate, fit
from edgerec.errors import ModelError
from edgerec.importing.third_party_keras import read_third_party
from edgerec.train.backend import keras
from tests.importing.test_code_in_keras_files import rewrite


def save_unusable_model(path, shape):
    """Save a classifier of Keras 2 with a layer that TensorFlow can add to a graph but not run."""
    layers = keras().layers
    inputs = keras().Input(shape)
    outputs = layers.Dense(10, activation="softmax")(layers.Flatten()(layers.Rescaling(scale="x")(inputs)))
    keras().Model(inputs, outputs).save(path)
    return path


def error(process) -> str:
    """Return the error, which must be the last line on stderr and the only error."""
    assert process.returncode == 1
    lines = process.stderr.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]


def test_model_that_tensorflow_cannot_run_is_reported_in_one_line(run, tmp_path, invoke):
    model = save_unusable_model(tmp_path / "model.keras", (8, 8, 3))
    command = ["quantize", model, "--data", "digits", "--normalize", "pixels", "--out", tmp_path / "run"]
    assert "TensorFlow cannot run the model: Cast string to float is not supported;" in error(invoke(*command))
    shutil.copytree(run.path, tmp_path / "copy")
    save_unusable_model(tmp_path / "copy" / "model.keras", (28, 28, 1))
    for command in ("evaluate", tmp_path / "copy"), ("quantize", tmp_path / "copy", "--method", "qat", "--overwrite"):
        assert "Cast string to float is not supported" in error(invoke(*command))


def test_model_with_another_shape_than_the_run_is_refused(run, tmp_path, invoke):
    shutil.copytree(run.path, tmp_path / "copy")
    save_unusable_model(tmp_path / "copy" / "model.keras", (8, 8, 3))
    for command in ("evaluate", tmp_path / "copy"), ("quantize", tmp_path / "copy", "--method", "ptq"):
        assert "is not this run's model" in error(invoke(*command))


# Evaluate a copy of a run with each model in a folder, and pass the model to quantize.
USE_EACH_MODEL = """
import shutil, sys
from pathlib import Path
from edgerec import adopt, evaluate
from edgerec.errors import ModelError

folder = Path(sys.argv[1])
for model in sorted(folder.glob("*.keras")):
    shutil.copy(model, folder / "run" / "model.keras")
    for use in (
        lambda: evaluate(folder / "run"),
        lambda: adopt(model, "digits", normalize="pixels", out=folder / "adopted"),
    ):
        try:
            use()
        except ModelError as error:
            print(error)
        else:
            print(f"{model.name} was accepted")
"""


def test_layers_that_cannot_be_connected_are_refused(run, tmp_path):
    """Keras would search forever for an output that does not exist, so a separate process reads the models."""
    shutil.copytree(run.path, tmp_path / "run")
    connections = [(1, 1.5), (1, 7), (-1, 0)]
    for number, (layer, output) in enumerate(connections):

        def change(config, layer=layer, output=output):
            layers = config["config"]["layers"]
            layers[2]["inbound_nodes"][0][0][:2] = [layers[layer]["name"], output]

        rewrite(shutil.copy(run.path / "model.keras", tmp_path / f"{number}.keras"), change)
    command = [sys.executable, "-c", USE_EACH_MODEL, tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    lines = result.stdout.splitlines()
    assert len(lines) == 2 * len(connections), result.stderr
    for line in lines:
        assert "the model's layers form a cycle, or refer to an output that does not exist" in line


def test_sizes_that_overflow_are_refused(tmp_path):
    """Keras 3 raises an ArithmeticError."""
    keras3 = pytest.importorskip("keras")
    layers = keras3.layers
    inputs = keras3.Input((8, 8, 3))
    outputs = layers.Dense(2)(layers.Flatten()(layers.Conv2D(2, 3)(inputs)))
    keras3.Model(inputs, outputs).save(tmp_path / "model.keras")
    rewrite(
        tmp_path / "model.keras",
        lambda config: config["config"]["layers"][0]["config"].update(batch_shape=[None, 8, 10**400, 3]),
    )
    with pytest.raises(ModelError, match="cannot be read as a Keras model"):
        read_third_party(tmp_path / "model.keras")


def test_deeply_nested_configuration_is_refused(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "copy")
    path = tmp_path / "copy" / "model.keras"
    deep = []
    for _ in range(100):
        deep = [deep]
    rewrite(path, lambda config: config.update(unused=deep))
    backbone = Recipe.from_dict({"model": {"arch": "backbone", "weights": str(path)}})
    for function in (
        lambda: evaluate(tmp_path / "copy"),
        lambda: adopt(path, "digits", out=tmp_path / "adopted"),
        lambda: fit(backbone, tmp_path / "new"),
    ):
        with pytest.raises(ModelError, match="the values are nested more than 64 levels deep"):
            function()


def test_long_configuration_is_refused(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "copy")
    rewrite(tmp_path / "copy" / "model.keras", lambda config: config.update(unused="x" * (17 << 20)))
    with pytest.raises(ModelError, match="the text is longer than 16,777,216 bytes"):
        evaluate(tmp_path / "copy")


def test_archive_with_too_many_files_is_refused(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "copy")
    with zipfile.ZipFile(tmp_path / "copy" / "model.keras", "a") as archive:
        for number in range(10_001):
            archive.writestr(f"{number}", b"")
    with pytest.raises(ModelError, match="the archive has more than 10,000 files"):
        evaluate(tmp_path / "copy")


def test_deeply_nested_cluster_configuration_is_refused(monkeypatch):
    from edgerec.errors import TrainError
    from edgerec.train.worker_handshake import Cluster

    monkeypatch.setenv("TF_CONFIG", "[" * 100_000)
    with pytest.raises(TrainError, match="nested more than 64 levels deep"):
        Cluster.from_environment()
