"""Tests of ``edgerec data check`` and ``edgerec data show``."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from edgerec import Recipe, check_data, show_data
from edgerec.cli.app import app
from edgerec.data import readers as sources
from edgerec.data.check_results import KINDS
from edgerec.data.near_duplicates import near_pairs
from edgerec.errors import DataError, OutputExistsError, OutputNameError, RecipeError
from edgerec.recipe import NOT_AUGMENTED


def call(*arguments, code=0):
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def kinds(report):
    """Return the kind of each finding with the file name of its first image."""
    return {(finding.kind, (finding.names or ("",))[0].rpartition("/")[2]) for finding in report.findings}


def recipe_for(folder, **keys):
    return Recipe().override({"data.source": str(folder)} | keys)


@pytest.fixture(scope="module")
def clean_data(tmp_path_factory):
    """Return a folder of 200 real digits of four classes, 40×40 pixels, with train and test splits."""
    folder = tmp_path_factory.mktemp("clean") / "digits"
    digits = sources.find("digits")
    for label in (0, 1, 4, 7):
        for number, i in enumerate(np.flatnonzero(digits.classes == label)[:50]):
            class_folder = folder / ("test" if number % 5 == 0 else "train") / f"d{label}"
            class_folder.mkdir(parents=True, exist_ok=True)
            large = cv2.resize(digits.images[i], (40, 40), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(class_folder / f"{number:02d}.png"), large)
    return folder


@pytest.fixture(scope="module")
def faulty_data(clean_data, tmp_path_factory):
    """Return a copy of the clean data to which one or two problems of every kind were added."""
    folder = tmp_path_factory.mktemp("planted") / "digits"
    shutil.copytree(clean_data, folder)
    train, test = folder / "train", folder / "test"
    shutil.copy(train / "d0" / "01.png", test / "d0" / "again.png")
    shutil.copy(train / "d1" / "01.png", train / "d4" / "two_labels.png")
    shutil.copy(train / "d7" / "01.png", train / "d7" / "twice.png")
    digit = cv2.imread(str(train / "d7" / "02.png"))
    near_duplicate = cv2.convertScaleAbs(cv2.resize(digit, (60, 60)), alpha=0.97, beta=8)
    cv2.imwrite(str(test / "d7" / "stored_anew.jpg"), near_duplicate, [cv2.IMWRITE_JPEG_QUALITY, 70])
    for number in (11, 12):
        (train / "d0" / f"{number}.png").rename(train / "d7" / f"wrong_{number}.png")
    (train / "d0" / "notes.txt").write_text("not an image")
    content = (train / "d1" / "03.png").read_bytes()
    (train / "d1" / "half.png").write_bytes(content[: len(content) // 2])
    cv2.imwrite(str(train / "d1" / "tiny.png"), digit[::5, ::5])
    cv2.imwrite(str(train / "d4" / "long.png"), np.hstack([digit] * 3))
    cv2.imwrite(str(train / "d4" / "blank.png"), digit * 0 + 90)
    (train / "d9").mkdir()
    shutil.copy(clean_data / "train" / "d4" / "09.png", train / "d9" / "alone.png")
    return folder


def test_planted_problems_are_found_and_ranked(faulty_data, tmp_path):
    report = check_data(recipe_for(faulty_data), tmp_path / "report")
    found_kinds = kinds(report)
    for kind, name in (
        ("broken", "notes.txt"),
        ("copy-across-splits", "again.png"),
        ("copy-across-classes", "two_labels.png"),
        ("copy", "twice.png"),
        ("near-across-splits", "stored_anew.jpg"),
        ("label", "wrong_11.png"),
        ("label", "wrong_12.png"),
        ("small", "tiny.png"),
        ("shape", "long.png"),
        ("blank", "blank.png"),
    ):
        assert (kind, name) in found_kinds, (kind, name)
    assert {"half.png"} == {name for kind, name in found_kinds if kind in ("broken", "cut-off")} - {"notes.txt"}
    text = "\n".join(map(str, report.findings))
    assert "class 'd9' has 1 image, expected" in text
    assert "is a copy of train/d0/01.png, and the two images are in different splits (test, train)" in text
    assert "is labeled 'd7'" in text
    assert "a quick classifier predicts 'd0'" in text
    ranks = [KINDS.index(finding.kind) for finding in report.findings]
    assert ranks == sorted(ranks)
    assert not report.ok
    assert len(report.findings) < 25

    folder = tmp_path / "report"
    assert sorted(path.name for path in folder.iterdir()) == ["findings.txt", "report.json", "suspects.png"]
    assert len((folder / "findings.txt").read_text().splitlines()) == len(report.findings)
    assert json.loads((folder / "report.json").read_text())["counts"]["d0"]["test"] == 11
    assert min(cv2.imread(str(folder / "suspects.png")).shape[:2]) > 500
    with pytest.raises(OutputExistsError, match="--overwrite"):
        check_data(recipe_for(faulty_data), folder)


def test_clean_data_has_no_errors(clean_data):
    report = check_data(recipe_for(clean_data))
    assert report.ok
    assert len(report.findings) <= 4  # the quick classifier wrongly reports a few of the 200 labels
    assert {finding.kind for finding in report.findings} <= {"label"}
    assert report.label_accuracy > 0.9
    assert report.counts["d4"] == {"train": 36, "val": 4, "test": 10}


def test_strict_exits_with_1_after_errors(clean_data, faulty_data, tmp_path):
    call("check", clean_data, "--no-labels", "--strict")
    result = call("check", faulty_data, "--no-labels")
    assert result.stdout.splitlines()[0].startswith("error    broken")
    assert "failed: " in result.stdout
    result = call("check", faulty_data, "--no-labels", "--strict", "--json", "--out", tmp_path / "x.png", code=1)
    values = json.loads(result.stdout)
    assert values["ok"] is False
    assert values["findings"][0]["severity"] == "error"
    assert (tmp_path / "x.png").is_file()


def test_checks_use_the_split_of_training(tmp_path, image_folder):
    """Data without splits is checked with the split of the recipe, which never separates copies."""
    for number in range(4):
        for label in ("red", "blue"):
            copied_image = image_folder / label / f"person{number}_{number:02d}.jpg"
            for copy in range(3):
                shutil.copy(copied_image, copied_image.with_name(f"person{number}_copy{copy}.jpg"))
    ungrouped = check_data(recipe_for(image_folder), labels=False)
    assert {finding.kind for finding in ungrouped.findings} == {"copy"}
    grouped = {"data.group_by": r"(person\d)", "data.test_fraction": 0.25, "data.val_fraction": 0.25}
    report = check_data(recipe_for(image_folder, **grouped), labels=False)
    assert report.ok
    assert {finding.kind for finding in report.findings} == {"copy"}


def test_arrays_and_unlabeled_images_are_checked(tmp_path, clean_data):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (30, 12, 12), np.uint8)
    x[7], y = x[3], np.arange(30) % 3
    np.savez(tmp_path / "some.npz", x_train=x, y_train=y)
    report = check_data(recipe_for(tmp_path / "some.npz"))
    (copy,) = (finding for finding in report.findings if finding.kind.startswith("copy"))
    assert copy.names == ("some.npz[7]", "some.npz[3]")
    assert [finding.kind for finding in report.findings].count("few") == 3
    assert report.label_accuracy is None  # a classifier cannot learn from noise
    flat = shutil.copytree(clean_data / "train" / "d0", tmp_path / "flat")
    assert check_data(recipe_for(flat)).images == 40


def test_near_pairs_match_a_comparison_of_all_pairs():
    rng = np.random.default_rng(0)
    some = rng.normal(0, 40, (300, 64)).astype(np.float32)
    some[200:] = some[:100] + rng.normal(0, 2, (100, 64))
    tags = [np.arange(300) % 2]
    pairs = near_pairs(some, tags)
    assert set(zip(pairs.first, pairs.second, strict=True)) == {(i, i + 200) for i in range(100)}
    assert np.allclose(
        pairs.distance_levels, np.sqrt(((some[pairs.first] - some[pairs.second]) ** 2).mean(axis=1)), atol=0.05
    )
    burst = np.repeat(some[:1], 500, axis=0)  # identical frames: the result must not contain all pairs
    found_pairs = near_pairs(burst, [np.arange(500) < 250])
    assert set(found_pairs.first) | set(found_pairs.second) == set(range(500))
    assert 250 <= len(found_pairs.first) <= 1000  # at most one neighbor per image, and one of the other class


@pytest.mark.parametrize("augment", [False, True])
def test_contact_sheet_shows_every_class(clean_data, tmp_path, augment):
    sheet = show_data(recipe_for(clean_data, **{"data.channels": 1}), tmp_path / "sheet.png", augment=augment)
    assert sheet.counts == {"d0": 50, "d1": 50, "d4": 50, "d7": 50}
    assert sheet.shown == 4
    image = cv2.imread(str(tmp_path / "sheet.png"))
    rows = 8 if augment else 4
    assert image.shape[0] == pytest.approx(120 * (rows * 0.95 + 1), abs=80)
    assert bool(sheet.augment) == augment
    assert (image < 100).mean() > 0.1
    if augment:
        gray_recipe = recipe_for(clean_data, **{"data.channels": 1, "augment.mixup": 0.4})
        show_data(gray_recipe, tmp_path / "mixed.png", augment=True)
        assert cv2.imread(str(tmp_path / "mixed.png")).shape[0] > image.shape[0]  # soft labels need more lines


def test_contact_sheet_accepts_a_recipe_and_a_run(clean_data, tmp_path):
    recipe = recipe_for(clean_data, **{"augment.cutout": 0.3})
    run = tmp_path / "run"
    run.mkdir()
    for file in (tmp_path / "mine.toml", run / "recipe.toml"):
        file.write_text(recipe.to_toml())
    values = json.loads(call("show", tmp_path / "mine.toml", "--out", tmp_path / "a.png", "--json").stdout)
    assert values["augment"] == {}
    result = call("show", run, "--out", tmp_path / "b.png", "--set", "data.input_size=30")
    assert "200 images of 4 classes" in result.stdout


def test_error_for_bad_input_is_one_line(clean_data, tmp_path):
    with pytest.raises(RecipeError, match="no augmented images to show"):
        show_data(replace(recipe_for(clean_data), augment=NOT_AUGMENTED), tmp_path / "x.png", augment=True)
    with pytest.raises(OutputNameError, match=r"must end in \.png"):
        show_data(recipe_for(clean_data), tmp_path / "x.jpg")
    (tmp_path / "there.png").write_bytes(b"mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(OutputExistsError):
        show_data(recipe_for(clean_data), tmp_path / "there.png")
    with pytest.raises(OutputExistsError, match="does not replace"):
        check_data(recipe_for(clean_data), tmp_path / "mine", overwrite=True)
    (tmp_path / "texts" / "a").mkdir(parents=True)
    (tmp_path / "texts" / "a" / "x.jpg").write_text("hello")
    with pytest.raises(DataError, match="none of the 1 files is an image"):
        check_data(recipe_for(tmp_path / "texts"))
    for arguments, words in (
        (("show", "nothing"), "unknown data set"),
        (("check", tmp_path / "none.toml"), "does not exist"),
        (("check", clean_data, "--set", "augment.cutot=1"), "did you mean 'augment.cutout'"),
        (("check", clean_data, "--group-by", "("), "is not a regular expression"),
    ):
        result = call(*arguments, code=1)
        assert words in result.stderr
        assert "Traceback" not in result.output
