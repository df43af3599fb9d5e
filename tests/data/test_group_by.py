"""Tests that the group expression is applied to the path below the class folder in every layout and in merged data."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edgerec.data import load, split_dataset
from edgerec.errors import DataError
from edgerec.recipe import DataSection


def write_images(folder, names):
    """Write a random image for each name. Images with the same name in different folders differ."""
    rng = np.random.default_rng(list(folder.name.encode()))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), rng.integers(0, 256, (10, 10, 3), np.uint8))
    return folder


def read(*folders, **values):
    source = str(folders[0]) if len(folders) == 1 else tuple(map(str, folders))
    return load(DataSection(source=source, input_size=8, **values))


@pytest.mark.parametrize(
    "layout", ["{label}", "{split}/{label}", "{label}/{split}", "data/{split}/{label}", "archive/train/{label}/{split}"]
)
def test_path_below_the_class_folder_does_not_depend_on_the_layout(tmp_path, layout):
    names = [
        f"{layout.format(label=label, split=split)}/anna/train/{split}{number}.png"
        for label in ("cat", "dog")
        for split in ("train", "test")
        for number in range(3)
    ]
    root = tmp_path / "pets"
    write_images(root, names)
    if layout.startswith("archive"):
        root /= "archive/train"
    dataset, _ = read(root)
    assert dataset.labels == ("cat", "dog")
    below = {dataset.names[i]: dataset.below_class_folder(i) for i in range(len(dataset.names))}
    assert len(below) == 12
    for name, path in below.items():
        assert path == f"anna/train/{name.rpartition('/')[2]}"


def test_a_group_in_two_splits_inside_class_folders_is_refused(tmp_path):
    names = [f"{label}/{split}/anna/{split}.png" for label in ("cat", "dog") for split in ("train", "test")]
    names += [f"{label}/train/ben/{number}.png" for label in ("cat", "dog") for number in range(4)]
    dataset, section = read(write_images(tmp_path / "pets", names), group_by="^[a-z]+(?=/)")
    with pytest.raises(DataError, match="the data's own split is invalid"):
        split_dataset(dataset, section, 0)


def test_groups_of_merged_data_are_kept_together(tmp_path):
    """One of the merged data sets has the name of a class, and both of them contain the same people."""
    parts = []
    for part, labels in (("cat", ("cat", "dog")), ("new", ("dog", "elk", "new"))):
        names = [f"{label}/anna{person}/{n}.png" for label in labels for person in range(40) for n in range(2)]
        parts.append(write_images(tmp_path / part, names))
    # 40 groups meet the requested fractions with this seed.
    dataset, section = read(*parts, group_by="^anna[0-9]+", test_fraction=0.25, val_fraction=0.25)
    split = split_dataset(dataset, section, seed=1)
    subsets = {}
    for subset in ("train", "val", "test"):
        for index in split.part(subset):
            subsets.setdefault(dataset.names[index].split("/")[2], set()).add(subset)
    assert len(subsets) == 40
    assert all(len(values) == 1 for values in subsets.values())
