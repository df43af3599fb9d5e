"""Training warns about problems in the data, and about models that are hardly better than the majority class."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from edgerec import Recipe, check_data, fit
from edgerec.train.baseline import is_near, majority_level
from tests.data.test_split import write_images

QUICK = {"train.epochs": 1, "model.width": 0.25, "data.input_size": 28}


def recipe(folder, **changes):
    return Recipe().override({"data.source": str(folder)} | QUICK | changes)


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Images of noise, from which nothing can be learned."""
    names = [f"{label}/{number:03d}.png" for label in ("cat", "dog") for number in range(60)]
    return write_images(tmp_path_factory.mktemp("data") / "pets", names)


def test_few_images_and_imbalance_cause_warnings(tmp_path, caplog):
    names = [f"cat/{number}.png" for number in range(80)] + [f"dog/{number}.png" for number in range(9)]
    fit(recipe(write_images(tmp_path / "data", names)), tmp_path / "run")
    assert "too few images: dog 9, expected at least 20 per class" in caplog.text
    assert "imbalance: class 'dog' has 9 images, 'cat' has 80" in caplog.text


def test_likely_duplicates_across_splits_cause_a_warning(tmp_path, caplog):
    """The frames of each video scene are distributed over the training, validation and test set."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for scene in range(4):
            image = cv2.resize(rng.integers(0, 256, (4, 4, 3), np.uint8), (32, 32))
            for frame in range(15):
                noisy = np.clip(image + rng.integers(-2, 3, image.shape), 0, 255).astype(np.uint8)
                cv2.imwrite(str(tmp_path / "data" / label / f"scene{scene}_{frame}.png"), noisy)
    fit(recipe(tmp_path / "data"), tmp_path / "run")
    assert "likely duplicates across splits" in caplog.text
    assert "data.group_by" in caplog.text


def test_good_data_causes_no_warning(caplog, tmp_path):
    fit(recipe("digits", **{"train.epochs": 4}), tmp_path / "run")
    assert "WARNING" not in caplog.text


def test_result_near_the_majority_baseline_is_reported(noise, tmp_path, invoke):
    result = invoke("train", "--data", noise, "--epochs", "1", "--width", "0.25", "--out", tmp_path / "run")
    assert result.returncode == 0
    assert "not clearly better than always predicting the most frequent class" in result.stderr
    assert "edgerec quantize" not in result.stdout
    assert "next     run 'edgerec data check'" in result.stdout
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["majority_level"] == majority_level(metrics) >= 0.5
    result = invoke("quantize", tmp_path / "run", "--method", "ptq", "--max-drop", "100")
    assert "warning  the accuracy of" in result.stdout
    assert "edgerec export" not in result.stdout
    result = invoke("report", tmp_path / "run")
    assert "hardly better than random guessing" in result.stdout
    assert "edgerec export" not in result.stdout


def test_good_result_suggests_export_as_the_next_step(run, invoke):
    assert "WARNING" not in invoke("evaluate", run.path).stderr
    assert "next     edgerec export" in invoke("quantize", run.path, "--method", "ptq", "--overwrite").stdout


@pytest.mark.parametrize(
    ("accuracy", "level", "images", "expected"),
    [
        (0.5, 0.5, 100, True),
        (0.59, 0.5, 100, True),
        (0.65, 0.5, 100, False),
        (0.55, 0.5, 10_000, False),
        (0.955, 0.95, 400, True),
        (1.0, 0.5, 3, False),
        (0.1, 0.11, 250, True),
    ],
)
def test_is_near_compares_accuracy_with_the_majority_baseline(accuracy, level, images, expected):
    assert is_near(accuracy, level, images) is expected


def test_near_duplicates_are_at_most_one_per_image_and_tag(tmp_path):
    """A burst of 2,500 similar frames is larger than a block of the comparison."""
    frames = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 12, 12), np.uint8), 2500, axis=0)
    frames[:, 0, 0] = np.arange(2500) % 251
    frames[:, 0, 1] = np.arange(2500) // 251
    np.savez(tmp_path / "burst.npz", x_train=frames, y_train=np.arange(2500) % 2)
    report = check_data(Recipe().override({"data.source": str(tmp_path / "burst.npz")}), labels=False)
    duplicates = [finding for finding in report.findings if finding.kind.startswith("near")]
    assert 1250 <= len(duplicates) <= 3 * 2500
    assert len({name for finding in duplicates for name in finding.names}) == 2500
