"""Long steps report progress from their first image on, and loading TensorFlow is announced."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from edgerec import Recipe, evaluate, fit, quantize
from edgerec.data import load
from edgerec.data.checks import check_data
from edgerec.data.tfrecord_writer import pack_data
from edgerec.recipe import DataSection

IMAGES = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """More images than are read at once."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (folder / label).mkdir()
        for number in range(IMAGES // 2):
            cv2.imwrite(str(folder / label / f"{number}.png"), rng.integers(0, 256, (8, 8, 3), np.uint8))
    return folder


def check_reports(reports, stage):
    """A stage reports its first image, many others and its last one."""
    result = [step.done for step in reports if step.stage == stage]
    assert result[0] <= 1
    assert max(np.diff(result)) <= 2
    assert result[-1] == IMAGES


def test_reading_reports_the_first_image(folder):
    reports = []
    load(DataSection(source=str(folder), input_size=8), listener=reports.append)
    check_reports(reports, "reading images")


def test_reading_16_bit_images_reports_the_first_image(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(IMAGES // 2):
            samples = np.full((8, 8), 300 + number, np.uint16)
            cv2.imwrite(str(tmp_path / label / f"{number}.png"), samples)
    reports = []
    load(DataSection(source=str(tmp_path), input_size=8), listener=reports.append)
    check_reports(reports, "reading 16-bit values")


def test_data_check_reports_the_first_image(folder):
    reports = []
    check_data(Recipe.from_dict({"data": {"source": str(folder)}}), labels=False, listener=reports.append)
    check_reports(reports, "reading images")


def test_packing_reports_the_first_image(folder, tmp_path):
    reports = []
    recipe = Recipe.from_dict({"data": {"source": str(folder), "input_size": 8}})
    pack_data(recipe, tmp_path / "pack", listener=reports.append)
    for stage in ("identifying images", "packing"):
        check_reports(reports, stage)


def test_evaluating_a_bundle_reports_the_first_image(bundle):
    reports = []
    evaluate(bundle, "digits", split="test", listener=reports.append)
    steps = [step for step in reports if step.stage == "evaluating"]
    assert steps[0].done <= 1
    assert steps[-1].done == steps[-1].total


def test_training_and_quantizing_report_every_evaluation(tmp_path):
    reports = []
    recipe = {"data": {"source": "digits"}, "model": {"arch": "simple_cnn", "width": 0.25}, "train": {"epochs": 1}}
    run = fit(Recipe.from_dict(recipe), tmp_path / "run", listener=reports.append)
    counts = run.split_record
    assert counts["test_images"] in {step.total for step in reports if step.stage == "evaluating"}
    reports.clear()
    quantize(run, "ptq", max_drop=100, listener=reports.append)
    # The float model and the variant, on the validation and the test images.
    evaluated = [step.total for step in reports if step.stage == "evaluating" and step.done == step.total]
    for images in (counts["val_images"], counts["test_images"]):
        assert evaluated.count(images) >= 2


def test_loading_tensorflow_is_announced_before_training(tmp_path, edgerec):
    options = ("--arch", "simple_cnn", "--epochs", 1, "--set", "model.width=0.25", "--json")
    result = edgerec("train", "digits", *options, "--out", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines().count("starting TensorFlow …") == 1
    json.loads(result.stdout)  # the message is not on stdout
