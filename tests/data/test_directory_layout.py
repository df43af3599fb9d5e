"""Tests of image folder layouts: split folders, nested folders, and files of operating systems."""

from __future__ import annotations

import logging
from collections import Counter

import cv2
import numpy as np
import pytest

from edgerec import Recipe
from edgerec.camera.sources import find_source
from edgerec.data import load
from edgerec.data.checks import check_data
from edgerec.errors import DataError, SourceError
from edgerec.recipe import DataSection

CLASSES = ("blue", "green", "red")


def fill(folder, classes=CLASSES, count=4):
    """Write images of one color per class."""
    rng = np.random.default_rng(len(str(folder)))
    for number, label in enumerate(classes):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = rng.integers(0, 60, (16, 16, 3), np.uint8)
            image[:, :, number % 3] += 150
            cv2.imwrite(str(folder / label / f"{label}_{i}.png"), image)
    return folder


def read(folder, **options):
    return load(DataSection(source=str(folder), input_size=8), **options)[0]


@pytest.mark.parametrize(
    "names",
    [
        {"train": "Training", "test": "Testing"},
        {"train": "Train", "val": "Val", "test": "Test"},
        {"train": "train", "val": "valid", "test": "test"},
        {"train": "train", "val": "validation"},
        {"train": "training_set", "test": "test_set"},
        {"train": "TRAIN", "val": "DEV", "test": "TEST"},
        {"train": "Training Data", "val": "Validation Data"},
        {"train": "trainset", "test": "testset"},
        {"train": "seg_train/seg_train", "test": "seg_test/seg_test"},
        {"train": "alphabet_train/alphabet_train", "test": "alphabet_test"},
        {"train": "archive/data/train", "test": "archive/data/test"},
        {"train": "TrainImages", "test": "TestImages"},
    ],
    ids=lambda names: " ".join(names.values()),
)
def test_usual_names_of_splits_are_recognized(tmp_path, names):
    for name in names.values():
        fill(tmp_path / name)
    dataset = read(tmp_path)
    assert dataset.labels == CLASSES
    assert Counter(dataset.splits.tolist()) == dict.fromkeys(names, 12)


def test_splits_inside_class_folders_are_recognized(tmp_path):
    for label in CLASSES:
        fill(tmp_path / label, classes=("train", "test"))
    dataset = read(tmp_path)
    assert dataset.labels == CLASSES
    assert Counter(dataset.splits.tolist()) == {"train": 12, "test": 12}


def test_unlabeled_split_is_not_used(tmp_path, caplog):
    fill(tmp_path / "seg_train" / "seg_train")
    fill(tmp_path / "seg_test" / "seg_test")
    fill(tmp_path, classes=("seg_pred",))
    with caplog.at_level(logging.INFO, "edgerec"):
        dataset = read(tmp_path)
    assert dataset.labels == CLASSES
    assert not any("seg_pred" in name for name in dataset.names)
    assert "ignoring the unlabeled images in seg_pred" in caplog.text


@pytest.mark.parametrize(
    ("classes", "error"),
    [
        (("train", "bus", "car"), ""),
        (("valid", "invalid"), ""),
        (("protest", "testament"), ""),
        (("train", "test"), "no class folders in them"),
    ],
)
def test_classes_that_are_named_like_splits_stay_classes(tmp_path, classes, error):
    fill(tmp_path, classes=classes)
    if error:
        with pytest.raises(DataError, match=error):
            read(tmp_path)
    else:
        assert read(tmp_path).labels == tuple(sorted(classes))


def test_unclear_folders_are_refused(tmp_path):
    fill(tmp_path / "a" / "Training")
    fill(tmp_path / "a" / "Test")
    fill(tmp_path / "a" / "test-several_fruits")
    with pytest.raises(DataError, match="also test-several_fruits"):
        read(tmp_path / "a")
    fill(tmp_path / "b" / "val")
    fill(tmp_path / "b" / "valid")
    fill(tmp_path / "b" / "train")
    with pytest.raises(DataError, match=r"2 folders for the split 'val' \(val, valid\)"):
        read(tmp_path / "b")


def test_error_suggests_a_deeper_folder_with_the_classes(tmp_path):
    fill(tmp_path / "download" / "PlantVillage")
    with pytest.raises(DataError, match=r"Did you mean .*download.PlantVillage \(with blue, green, red\)\?"):
        read(tmp_path)


def test_data_that_contains_itself_is_refused(tmp_path):
    fill(tmp_path / "PlantVillage")
    fill(tmp_path / "PlantVillage" / "PlantVillage")
    with pytest.raises(DataError, match="contains a second copy of its class folders in PlantVillage"):
        read(tmp_path / "PlantVillage")
    with pytest.raises(DataError, match="contains a second copy of its class folders"):
        check_data(Recipe().override({"data.source": str(tmp_path / "PlantVillage")}), labels=False)


@pytest.mark.parametrize(
    ("folders", "warning"),
    [
        ({"zero": ("anna", "bob"), "one": ("anna", "bob")}, "contain the same folders"),
        ({"Cat": (), "cat": (), "dog": ()}, "differ only in spelling"),
        ({"hot_dog": (), "Hot dog": ()}, "differ only in spelling"),
        ({"first": ("monday", "tuesday"), "second": ()}, "contains only folders"),
        ({"train": (), "test": (), "car": ()}, "look like splits"),
    ],
)
def test_doubtful_folders_are_reported_by_training_and_data_check(tmp_path, caplog, folders, warning):
    for name, inner in folders.items():
        fill(tmp_path / name if inner else tmp_path, classes=inner or (name,))
    dataset = read(tmp_path)
    assert dataset.labels == tuple(sorted(folders))
    assert warning in caplog.text
    report = check_data(Recipe().override({"data.source": str(tmp_path)}), labels=False)
    (finding,) = (finding for finding in report.findings if finding.kind == "layout")
    assert warning in finding.what


def test_images_beside_class_folders_are_reported(tmp_path, caplog):
    fill(tmp_path)
    cv2.imwrite(str(tmp_path / "cover.png"), np.zeros((8, 8, 3), np.uint8))
    assert len(read(tmp_path).classes) == 12
    assert "directly in this folder are not used" in caplog.text


HIDDEN = (
    *(".ipynb_checkpoints/red_0-checkpoint.png", "@eaDir/red_0.png/SYNOPHOTO_THUMB_M.png", "#recycle/old.png"),
    *(".AppleDouble/red_0.png", ".thumbnails/normal/1.png", "__MACOSX/red_0.png", "$RECYCLE.BIN/1.png"),
    *("lost+found/1.png", "System Volume Information/1.png", "._red_0.png", ".Trash-1000/files/1.png"),
    *("monday/@eaDir/1.png", "monday/.ipynb_checkpoints/1.png", "@Recycle/1.png", "#snapshot/daily/1.png"),
)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_hidden_and_system_folders_are_ignored(tmp_path, hidden):
    fill(tmp_path)
    expected_folders = (tmp_path / "red",) if hidden.startswith("monday") else (tmp_path, tmp_path / "red")
    for folder in expected_folders:
        path = folder / hidden
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((24, 24, 3), 9, np.uint8))
        (folder / "Thumbs.db").write_bytes(b"no image")
        (folder / "desktop.ini").write_bytes(b"no image")
    dataset = read(tmp_path)
    assert dataset.labels == CLASSES
    assert len(dataset.names) == 12
    assert not dataset.skipped


def test_camera_source_and_unlabeled_images_ignore_system_files(tmp_path):
    fill(tmp_path, classes=("red",))
    (tmp_path / "red" / "Thumbs.db").write_bytes(b"no image")
    (tmp_path / "red" / "._red_0.png").write_bytes(b"no image")
    assert len(list(find_source(str(tmp_path / "red")).open().images())) == 4
    dataset = read(tmp_path / "red", flat=True)
    assert len(dataset.names) == 4
    assert not dataset.skipped
    with pytest.raises(SourceError, match=r"no images \(subfolders are not searched\). Did you mean .*red\?"):
        find_source(str(tmp_path)).open()


@pytest.mark.parametrize("names", [("TRAIN", "Test"), ("train", "eval"), ("Training", "EVALUATION")])
def test_splits_are_recognized_beside_other_folders_and_files(tmp_path, names, caplog):
    for name in names:
        fill(tmp_path / "data" / name)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "boxes.csv").write_text("a,b\n")
    cv2.imwrite(str(tmp_path / "sample.jpg"), np.zeros((8, 8, 3), np.uint8))
    dataset = read(tmp_path)
    assert dataset.labels == CLASSES
    assert Counter(dataset.splits.tolist()) == {"train": 12, "test": 12}
    assert f"{tmp_path}: the images directly in this folder are not used" in caplog.text


def test_error_suggests_a_deeper_folder_beside_a_folder_without_images(tmp_path):
    fill(tmp_path / "photos")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "boxes.csv").write_text("a,b\n")
    with pytest.raises(DataError, match=rf"Did you mean {tmp_path / 'photos'} "):
        read(tmp_path)
