"""Tests of `edgerec predict` with folders."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from edgerec import predict
from edgerec.errors import DataError


@pytest.fixture
def folder(bundle, tmp_path):
    images = sorted((bundle / "golden").glob("*.png"))[:3]
    (tmp_path / "images" / "deeper").mkdir(parents=True)
    (tmp_path / "images" / ".hidden").mkdir()
    shutil.copy(images[0], tmp_path / "images" / "a.png")
    shutil.copy(images[1], tmp_path / "images" / "deeper" / "b.png")
    shutil.copy(images[2], tmp_path / "images" / ".hidden" / "c.png")
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    (tmp_path / "images" / "damaged.jpg").write_text("not an image")
    return tmp_path / "images"


def test_folder_is_classified_file_by_file(bundle, folder, invoke):
    single = list(predict(bundle, [folder / "a.png", folder / "deeper" / "b.png"]))
    results = list(predict(bundle, [folder]))
    assert [result.frame.origin for result in results] == [result.frame.origin for result in single]
    for result, expected in zip(results, single, strict=True):
        assert np.array_equal(result.classification.scores, expected.classification.scores)
    process = invoke("predict", bundle, folder, "--json")
    assert process.returncode == 0
    assert [json.loads(line)["frame"] for line in process.stdout.splitlines()] == [0, 1]
    assert "damaged.jpg" in process.stderr
    assert "notes.txt" not in process.stderr


def test_folder_without_images_and_file_that_is_not_an_image_are_refused(bundle, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="contains no image"):
        list(predict(bundle, [tmp_path / "empty"]))
    with pytest.raises(DataError, match=r"notes\.txt"):
        list(predict(bundle, [folder / "notes.txt"]))
