"""`edgerec evaluate` of a .tflite file accepts the same options as `edgerec import`."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from edgerec import evaluate
from edgerec.errors import EdgerecError, ModelError
from tests import tflite_models
from tests.conftest import error_line


@pytest.fixture
def wide_images(tmp_path):
    """Wide images whose center has the color of their class, and whose sides have the color of the next class."""
    for index, label in enumerate(("a", "b", "c")):
        (tmp_path / "d" / label).mkdir(parents=True)
        for number in range(4):
            image = np.full((16, 64, 3), number, np.uint8)
            image[:, :, (index + 1) % 3] = 250
            image[:, 24:40] = number
            image[:, 24:40, index] = 250
            cv2.imwrite(str(tmp_path / "d" / label / f"{number}.png"), image[:, :, ::-1])
    return tmp_path / "d"


@pytest.fixture
def model(tmp_path):
    """Model whose logits are proportional to the mean of each color."""
    path = tmp_path / "model.tflite"
    path.write_bytes(tflite_models.logits().to_bytes())
    return path


def test_evaluate_uses_the_given_fit(model, wide_images):
    options = {"normalize": "pixels", "labels": "folders"}
    assert evaluate(model, str(wide_images), fit="crop", **options).accuracy == 1.0
    assert evaluate(model, str(wide_images), fit="stretch", **options).accuracy == 0.0


def test_evaluate_uses_the_given_activation(model, wide_images):
    options = {"normalize": "pixels", "labels": "folders", "fit": "crop"}
    losses = {name: evaluate(model, str(wide_images), activation=name, **options).loss for name in ("softmax", "none")}
    assert losses["none"] == 0.0  # the logits themselves, which are larger than 1
    assert losses["softmax"] > 0.0


def test_command_line_accepts_fit_and_activation(model, wide_images, invoke, tmp_path):
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    options = ("--normalize", "pixels", "--labels", tmp_path / "labels.txt")
    result = invoke(
        "evaluate", model, "--data", wide_images, *options, "--fit", "crop", "--activation", "softmax", "--json"
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["accuracy"] == 1.0
    for option in ("--fit", "--activation"):
        failed = invoke("evaluate", model, "--data", wide_images, *options, option, "squeeze")
        assert failed.returncode == 2
        assert "got 'squeeze'" in failed.stderr


def test_options_for_tflite_files_are_refused_for_bundles(bundle, invoke):
    for option, value in (("--fit", "crop"), ("--activation", "none"), ("--normalize", "unit"), ("--labels", "x.txt")):
        error = error_line(invoke("evaluate", bundle, "--data", "digits", option, value))
        assert f"{option} requires a .tflite file" in error
    with pytest.raises(EdgerecError, match="contains its own fit"):
        evaluate(bundle, "digits", fit="crop")


def test_unknown_activation_is_refused(model, wide_images):
    with pytest.raises(ModelError, match="sigmoid"):
        evaluate(model, str(wide_images), normalize="pixels", activation="sigmoidal")
