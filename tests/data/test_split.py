"""Tests of the split: it depends only on the content of each image, never separates copies, and meets the fractions."""

from __future__ import annotations

import logging
import shutil

import cv2
import numpy as np
import pytest

from edgerec import Recipe, Run, fit
from edgerec.data import load, split_dataset
from edgerec.errors import DataError, RecipeError
from edgerec.recipe import DataSection


def write_images(folder, names, seed=0):
    """Write a random image for each name, and return the folder."""
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), rng.integers(0, 256, (10, 10, 3), np.uint8))
    return folder


def subsets(folder, seed=0, **values):
    """Return ``train``, ``val`` or ``test`` for each image, by the image's name."""
    dataset, section = load(DataSection(source=str(folder), input_size=8, **values))
    parts = split_dataset(dataset, section, seed)
    return {dataset.names[i]: name for name in ("train", "val", "test") for i in parts.part(name)}


def fraction(result, subset):
    return sum(value == subset for value in result.values()) / len(result)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    names = [f"{label}/{number:03d}.png" for label in ("cat", "dog") for number in range(150)]
    return write_images(tmp_path_factory.mktemp("data") / "pets", names)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Return a data set of 100 people, each of whom has a folder with three images in each class folder."""
    names = [f"{label}/anna{p}/{n}.png" for label in ("cat", "dog") for p in range(100) for n in range(3)]
    return write_images(tmp_path_factory.mktemp("data") / "people", names)


def test_adding_images_does_not_move_other_images(folder, tmp_path):
    before = subsets(folder)
    grown = shutil.copytree(folder, tmp_path / "grown")
    for number in range(10):
        write_images(grown, [f"cat/{number:03d}_new.png"], seed=number + 1)
        after = subsets(grown)
        assert {name: after[name] for name in before} == before


def test_renamed_and_moved_images_stay_in_their_subset(folder, tmp_path):
    before = subsets(folder)
    for name in before:
        (tmp_path / "other" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, tmp_path / "other" / name.replace(".png", "_renamed.png"))
    after = subsets(tmp_path / "other")
    assert {name.replace("_renamed", ""): subset for name, subset in after.items()} == before


def test_adding_an_image_or_a_group_does_not_move_other_groups(people, tmp_path):
    grouping = {"group_by": "anna[0-9]+", "test_fraction": 0.2, "val_fraction": 0.2}
    before = subsets(people, seed=1, **grouping)
    grown = shutil.copytree(people, tmp_path / "grown")
    write_images(grown, ["cat/anna7/new.png", "dog/anna500/0.png", "dog/anna501/0.png"], seed=1)
    after = subsets(grown, seed=1, **grouping)
    assert {name: after[name] for name in before} == before


def test_input_size_and_file_order_do_not_change_the_split(folder):
    dataset, section = load(DataSection(source=str(folder), input_size=16))
    parts = split_dataset(dataset, section, 0)
    expected = {name for name, subset in subsets(folder).items() if subset == "test"}
    assert {dataset.names[i] for i in parts.test} == expected


@pytest.mark.parametrize(("test", "val"), [(0.15, 0.1), (0.4, 0.1), (0.3, 0.3), (0.5, 0.4)])
def test_requested_fractions_are_used(test, val):
    dataset, section = load(DataSection(source="digits", test_fraction=test, val_fraction=val))
    parts = split_dataset(dataset, section, 0)
    assert len(parts.test) / 1797 == pytest.approx(test, abs=0.03)
    assert len(parts.val) / 1797 == pytest.approx(val, abs=0.03)


@pytest.mark.parametrize(("test", "val"), [(0.4, 0.1), (0.3, 0.1), (0.5, 0.4)])
def test_requested_fractions_of_groups_are_used_or_refused(people, test, val):
    used = 0
    for seed in range(5):
        try:
            result = subsets(people, seed, group_by="anna[0-9]+", test_fraction=test, val_fraction=val)
        except DataError:
            continue
        used += 1
        assert fraction(result, "test") == pytest.approx(test, abs=0.051)
        assert fraction(result, "val") == pytest.approx(val, abs=0.051)
    assert used


def test_advised_seed_meets_the_requested_fractions(people):
    values = {"group_by": "anna[0-9]+", "test_fraction": 0.5, "val_fraction": 0.4}
    for seed in range(50):
        try:
            subsets(people, seed, **values)
        except DataError as error:
            advised = int(str(error).partition("set seed to ")[2].split()[0])
            assert fraction(subsets(people, advised, **values), "test") == pytest.approx(0.5, abs=0.051)
            return
    pytest.fail("no seed was refused")


def test_fractions_that_leave_no_training_images_are_refused(folder):
    with pytest.raises(RecipeError, match="leave no images for training"):
        subsets(folder, test_fraction=0.5, val_fraction=0.5)


def test_actual_fractions_are_logged(folder, tmp_path, caplog):
    recipe = Recipe().override({"data.source": str(folder), "train.epochs": 1, "data.input_size": 28})
    with caplog.at_level(logging.INFO, "edgerec"):
        fit(recipe, tmp_path / "run", finish=False)
    assert f"{fraction(subsets(folder), 'test'):.1%} test (requested 15.0%)" in caplog.text


def test_group_expression_matches_the_path_below_the_class_folder(people):
    result = subsets(people, group_by="^(anna[0-9]+)/", test_fraction=0.2, val_fraction=0.2, seed=1)
    by_person: dict[str, set[str]] = {}
    for name, subset in result.items():
        by_person.setdefault(name.split("/")[1], set()).add(subset)
    assert len(by_person) == 100
    assert all(len(values) == 1 for values in by_person.values())


@pytest.mark.parametrize("group_by", ["", "anna[0-9]+"])
def test_exact_copies_are_in_the_same_subset(people, tmp_path, group_by):
    data = shutil.copytree(people, tmp_path / "data")
    for person in range(0, 50, 5):
        shutil.copy(data / f"cat/anna{person}/0.png", data / f"dog/anna{person + 1}/copy{person}.png")
    result = subsets(data, 5, group_by=group_by, test_fraction=0.2, val_fraction=0.2)
    for person in range(0, 50, 5):
        assert result[f"cat/anna{person}/0.png"] == result[f"dog/anna{person + 1}/copy{person}.png"]
    if group_by:
        assert result["cat/anna0/1.png"] == result["dog/anna1/1.png"]  # linked by the copy


def test_copies_of_the_own_test_images_are_excluded(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data" / "train")
    for label in ("cat", "dog"):
        write_images(tmp_path / "data" / "test", [f"{label}/{number}.png" for number in range(5)], seed=ord(label[0]))
        shutil.copy(folder / label / "000.png", tmp_path / "data" / "test" / label / "copy.png")
    result = subsets(tmp_path / "data")
    assert result["test/cat/copy.png"] == "test"
    assert "train/cat/000.png" not in result
    dataset, section = load(DataSection(source=str(tmp_path / "data"), input_size=8))
    assert "2 images are not used" in split_dataset(dataset, section, 0).notes[0]


@pytest.mark.parametrize("images", [3, 4, 6])
def test_each_class_is_in_each_subset(tmp_path, images):
    names = [f"{label}/{number}.png" for label in "abcdefgh" for number in range(images)]
    data = write_images(tmp_path / "few", names)
    for seed in range(3):
        result = subsets(data, seed)
        for label in "abcdefgh":
            own = {subset for name, subset in result.items() if name.startswith(label)}
            assert own == {"train", "val", "test"}


def test_a_run_keeps_the_split_that_it_recorded(run):
    """The split.json of older versions differs from the split that the current version would choose."""
    record = run.split_record
    record["val"], record["test"] = record["test"][:100], record["val"]
    del record["contents"]
    run.write_json("split.json", record)
    dataset, parts = Run.open(run.path).data()
    assert [dataset.names[i] for i in parts.test] == record["test"]
    assert [dataset.names[i] for i in parts.val] == record["val"]
    assert len(parts.train) == 1797 - len(record["test"]) - 100


def test_resumed_training_keeps_its_original_split(tmp_path):
    recipe = Recipe().override({"train.epochs": 1, "model.width": 0.25})
    interrupted = fit(recipe, tmp_path / "run", finish=False)
    record = interrupted.split_record
    record["val"], record["test"] = record["val"][:-5], record["test"][:50]
    interrupted.write_json("split.json", record)
    finished = fit(recipe, tmp_path / "run", resume=True)
    assert finished.metrics["images"] == 50
    assert finished.metrics["train_images"] == 1797 - 50 - len(record["val"])
