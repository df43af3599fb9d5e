"""Tests of merged data sets, and of file names that are not UTF-8."""

from __future__ import annotations

import json
import os
from collections import Counter

import cv2
import numpy as np
import pytest

from edgerec import Recipe, fit
from edgerec.compress.calibration.check import check
from edgerec.data import load, split_dataset
from edgerec.data.checks import check_data
from edgerec.data.tfrecord_writer import pack_data
from edgerec.errors import DataError, RecipeError
from edgerec.recipe import DataSection
from edgerec.train.fit import was_begun


def fill(folder, classes, count=10, seed=0):
    rng = np.random.default_rng(seed)
    for label in classes:
        (folder / label).mkdir(parents=True)
        for number in range(count):
            cv2.imwrite(str(folder / label / f"{number}.png"), rng.integers(0, 256, (12, 12, 3), np.uint8))
    return folder


@pytest.fixture
def old_and_new(tmp_path):
    return fill(tmp_path / "old", ("cat", "dog"), seed=1), fill(tmp_path / "new", ("dog", "elk"), count=6, seed=2)


def read(*folders):
    return load(DataSection(source=tuple(map(str, folders)), input_size=12))[0]


def test_merged_labels_are_the_union_and_images_are_unchanged(old_and_new):
    old, new = old_and_new
    dataset = read(old, new)
    assert dataset.labels == ("cat", "dog", "elk")
    assert np.bincount(dataset.classes).tolist() == [10, 16, 6]
    for i in (0, 7, 20, 31):
        path = (old if dataset.names[i].startswith("old/") else new).parent / dataset.names[i]
        expected = cv2.imread(str(path))[:, :, ::-1]
        assert np.array_equal(dataset.images[i], expected)
        assert np.array_equal(dataset.original(i), expected)
        assert dataset.labels[dataset.classes[i]] == path.parent.name


def test_order_of_the_folders_does_not_matter(old_and_new):
    in_order, reversed_order = read(*old_and_new), read(*reversed(old_and_new))
    assert in_order.names == reversed_order.names
    assert in_order.digest == reversed_order.digest
    assert np.array_equal(in_order.images[:], reversed_order.images[:])


def test_merged_images_are_indexed_like_an_array(old_and_new):
    images = read(*old_and_new).images
    everything = np.asarray(images)
    assert images[[]].shape == (0, 12, 12, 3)
    for index in (-1, np.array([3, -2]), slice(25, None), np.arange(32) % 5 == 0):
        assert np.array_equal(images[index], everything[index])
    for outside in (32, -33, (0, 1)):
        with pytest.raises(IndexError):
            images[outside]
    assert sum(1 for _ in images) == 32


def test_path_below_the_class_folder_is_found_in_merged_data(tmp_path):
    named_like_class = fill(tmp_path / "cat", ("cat", "dog"))  # a data set with the name of a class
    with_splits = fill(
        tmp_path / "shared", ("cat/train/anna", "cat/test/anna", "dog/train/bob", "dog/test/bob"), count=2
    )
    for dataset in (read(named_like_class, with_splits), read(with_splits)):
        paths = {dataset.names[i]: dataset.below_class_folder(i) for i in range(len(dataset.names))}
        for name, path in paths.items():
            assert path == (f"{name.split('/')[-2]}/{name[-5:]}" if "anna" in name or "bob" in name else name[-5:])


def test_own_test_split_of_merged_data_is_kept(old_and_new, tmp_path):
    official = tmp_path / "official"
    fill(official / "train", ("cat", "dog", "elk"), seed=3)
    fill(official / "test", ("cat", "dog", "elk"), count=4, seed=4)
    dataset = read(official, old_and_new[1])
    parts = split_dataset(dataset, DataSection(), 0)
    assert all(dataset.names[i].startswith("official/test/") for i in parts.test)
    assert len(parts.test) == 12
    assert len(parts.train) + len(parts.val) == 42


def test_arrays_and_folders_can_be_merged(tmp_path):
    folder = fill(tmp_path / "corrections", ("0", "12"))
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", x_train=rng.integers(0, 256, (30, 12, 12), np.uint8), y_train=np.arange(30) % 3)
    dataset = read(tmp_path / "a.npz", folder)
    assert Counter(dataset.labels[i] for i in dataset.classes) == {"0": 20, "1": 10, "2": 10, "12": 10}
    assert dataset.images.shape == (50, 12, 12, 3)


def test_same_folder_twice_is_refused_and_equal_folder_names_are_accepted(old_and_new, tmp_path):
    with pytest.raises(DataError, match="listed twice"):
        read(old_and_new[0], old_and_new[0])
    fill(tmp_path / "other" / "old", ("cat", "dog"), seed=5)
    names = read(old_and_new[0], tmp_path / "other" / "old").names
    assert len(set(names)) == 40


def test_recipe_keeps_the_list_of_sources(old_and_new, tmp_path):
    recipe = Recipe().override({"data.source": [str(path) for path in old_and_new]})
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    assert Recipe.from_toml(tmp_path / "recipe.toml") == recipe
    with pytest.raises(RecipeError, match=r"data\.source"):
        Recipe().override({"data.source": ["a", 3]})


def test_data_check_and_pack_accept_several_folders(old_and_new, tmp_path):
    recipe = Recipe().override({"data.source": [str(path) for path in old_and_new], "data.input_size": 12})
    cv2.imwrite(str(old_and_new[1] / "elk" / "copy.png"), cv2.imread(str(old_and_new[0] / "cat" / "0.png")))
    report = check_data(recipe, labels=False)
    assert any({"old/cat/0.png", "new/elk/copy.png"} == set(finding.names) for finding in report.findings)
    packed = pack_data(recipe, tmp_path / "pack")
    assert sum(packed.counts.values()) + len(packed.skipped) >= 32


def test_training_is_resumed_with_another_order_of_the_folders(old_and_new, tmp_path):
    recipes = [
        Recipe().override({"data.source": [str(folder) for folder in folders], "train.epochs": 1, "model.width": 0.25})
        for folders in (old_and_new, reversed(old_and_new))
    ]
    fit(recipes[0], tmp_path / "run", finish=False)
    assert was_begun(recipes[1], tmp_path / "run")


def test_automatic_values_are_recorded_for_merged_data(old_and_new):
    _, section = load(DataSection(source=tuple(map(str, old_and_new))))
    resolved = Recipe(data=section).unresolved
    assert [key for key in resolved if key.startswith("data.")] == []
    assert section.source == tuple(map(str, old_and_new))


def test_calibration_check_finds_test_images_of_merged_data(old_and_new, tmp_path):
    source = [str(path) for path in old_and_new]
    settings = {"data.source": source, "data.input_size": 28, "model.width": 0.25, "model.arch": "simple_cnn"}
    run = fit(Recipe().override(settings | {"train.epochs": 1}), tmp_path / "run")
    dataset, split = run.data()
    for position in split.test:
        image = dataset.images[position][:, :, ::-1]
        folder = tmp_path / "calibration" / dataset.labels[dataset.classes[position]]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{position}.png"), image)
    findings = check(tmp_path / "calibration", run).findings
    assert "test-overlap" in {finding.kind for finding in findings}


def test_command_line_merges_repeated_data(old_and_new, tmp_path, invoke):
    old, new = old_and_new
    options = ("--epochs", 1, "--input-size", 28, "--json", "--set", "model.width=0.25", "--out", tmp_path / "run")
    result = invoke("train", "--data", old, "--data", new, "--arch", "simple_cnn", *options)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "labels.txt").read_text().split() == ["cat", "dog", "elk"]
    result = invoke("evaluate", tmp_path / "run", "--data", new, "--data", old, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["split"] == "test"


def test_file_names_that_are_not_utf8_are_accepted(tmp_path, invoke):
    folder = fill(tmp_path / "d", ("red", "green"), count=20)
    for label in ("red", "green"):
        for path in sorted((folder / label).iterdir()):
            os.rename(path, os.fsencode(path.parent) + b"/foto_\xe9t\xe9_" + os.fsencode(path.name))
    run = tmp_path / "run"
    options = ("--epochs", 1, "--input-size", 28, "--set", "model.width=0.25", "--arch", "simple_cnn")
    for command in (
        ("train", "--data", folder, "--out", run, *options),
        ("report", run),
        ("calibration", "make", run, "--out", tmp_path / "set"),
        ("calibration", "show", tmp_path / "set", "--out", tmp_path / "set.png"),
        ("data", "check", folder, "--out", tmp_path / "findings"),
        ("data", "show", folder, "--out", tmp_path / "sheet.png"),
    ):
        result = invoke(*command)
        assert result.returncode == 0, (command, result.stderr, result.stdout)
    about = json.loads((tmp_path / "set" / "calibration.json").read_text(encoding="utf-8"))
    originals = {os.fsencode(path.relative_to(folder)) for path in folder.rglob("*.png")}
    assert {os.fsencode(entry["from"]) for entry in about["images"]} <= originals
