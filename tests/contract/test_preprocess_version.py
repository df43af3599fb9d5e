"""Versions of the resizing algorithm: less aliasing in version 2, and unchanged pixels in version 1."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest

from edgerec.contract.bundle import Bundle
from edgerec.contract.preprocess import PREPROCESS_VERSION, PreprocessSpec, apply
from edgerec.contract.target import Target
from edgerec.data import load
from edgerec.errors import BundleError, RecipeError
from edgerec.export import app_snippets as apps
from edgerec.recipe import Recipe
from edgerec.runtime.classifier import Classifier
from edgerec.runtime.verification import make_golden, verify
from edgerec.train.run import Run

# SHA-256 of the pixels of version 1, which must never change.
VERSION_1 = "6ee7d417b9048dbda001a304446a1f66215cc3e7d3380a8a6f46a18b0d77290b"


def lines(height: int, width: int, period: int, offset: int, axis: int) -> np.ndarray:
    """Return a black image with one white column (axis 1) or row (axis 0) in ``period``."""
    image = np.zeros((height, width, 3), np.uint8)
    np.moveaxis(image, axis, 0)[offset::period] = 255
    return image


@pytest.mark.parametrize(("size", "axis"), [((64, 1024), 1), ((1024, 64), 0), ((100, 1024), 1), ((20, 1024), 1)])
def test_shrinking_one_axis_does_not_depend_on_a_shift(size, axis):
    spec = PreprocessSpec(64, 64, fit="stretch")
    means = [apply(lines(*size, 16, offset, axis), spec).mean() for offset in range(16)]
    assert max(means) - min(means) < 1
    assert abs(np.mean(means) - 255 / 16) < 1


def test_pad_of_a_thin_image_does_not_depend_on_a_shift():
    # 8 rows become 1 row, so that version 1 stopped halving the 2,048 columns before they were close to 96.
    spec = PreprocessSpec(96, 96, fit="pad")
    fitted = [apply(lines(8, 2048, 16, offset, 1), spec)[47] for offset in range(16)]
    assert all(abs(int(pixel) - 255 / 16) < 4 for row in fitted for pixel in row[:, 0])


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("size", [(64, 1000), (1000, 64), (300, 1000), (50, 1000), (720, 1280), (9, 3000), (97, 192)])
def test_quality_is_close_to_area_interpolation(fit, size):
    noise = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8), (0, 0), 0.7)
    output, reference = (apply(noise, PreprocessSpec(96, 96, fit=fit)), area(noise, fit))
    assert np.sqrt(np.mean((output.astype(float) - reference) ** 2)) < 10


def area(image: np.ndarray, fit: str, side: int = 96) -> np.ndarray:
    """Return ``image`` resized by OpenCV's area interpolation, which needs one call per axis."""
    rows, columns = image.shape[:2]
    if fit == "crop":
        shorter_side = min(rows, columns)
        top, left = (rows - shorter_side) // 2, (columns - shorter_side) // 2
        image = image[top : top + shorter_side, left : left + shorter_side]
    height = max(1, rows * side // columns) if fit == "pad" and columns > rows else side
    width = max(1, columns * side // rows) if fit == "pad" and rows > columns else side
    image = cv2.resize(image, (image.shape[1], height), interpolation=method(image.shape[0], height))
    image = cv2.resize(image, (width, height), interpolation=method(image.shape[1], width))
    padded = np.zeros((side, side, 3), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    padded[top : top + height, left : left + width] = image
    return padded.astype(float)


def method(old: int, new: int) -> int:
    return cv2.INTER_AREA if new < old else cv2.INTER_LINEAR


def test_pixels_of_version_1_are_unchanged():
    digest = hashlib.sha256()
    for number, size in enumerate([(64, 1024), (480, 640), (719, 1279), (9, 700), (300, 190)]):
        image = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        for fit in ("crop", "stretch", "pad"):
            digest.update(apply(image, PreprocessSpec(96, 96, 3, fit, version=1)).tobytes())
    assert digest.hexdigest() == VERSION_1


def test_spec_without_a_version_means_version_1():
    old = {"height": 64, "width": 64, "channels": 3, "fit": "stretch", "interpolation": "linear"}
    assert PreprocessSpec.from_dict(old).version == 1
    assert PreprocessSpec(64, 64).to_dict()["version"] == PREPROCESS_VERSION == 2
    with pytest.raises(ValueError, match="upgrade"):
        PreprocessSpec(64, 64, version=3)


def wide_bundle(bundle, path, version: int):
    """Write a bundle with a wide golden image that is stretched by the given preprocessing version."""
    opened = Bundle.open(bundle)
    spec = replace(opened.manifest.preprocess, fit="stretch", version=version)
    manifest = replace(opened.manifest, preprocess=spec)
    files = {name: content for name, content in opened.files.items() if not name.startswith("golden/")}
    image = np.random.default_rng(0).integers(0, 256, (40, 900, 3), np.uint8)
    classifier = Classifier(Bundle(path, manifest, files), delegate="")
    return Bundle.write(path, manifest, files | make_golden(classifier, [("wide", image)]))


def edit_manifest(path, change):
    values = json.loads((path / "manifest.json").read_text())
    change(values)
    (path / "manifest.json").write_text(json.dumps(values))


def test_old_bundle_verifies_bit_for_bit(bundle, tmp_path):
    wide_bundle(bundle, tmp_path / "old", 1)
    edit_manifest(tmp_path / "old", lambda values: values["preprocess"].pop("version"))
    assert Bundle.open(tmp_path / "old").manifest.preprocess.version == 1
    assert verify(tmp_path / "old").exact


def test_bundle_with_the_wrong_version_does_not_verify(bundle, tmp_path):
    wide_bundle(bundle, tmp_path / "new", 2)
    assert verify(tmp_path / "new").exact
    edit_manifest(tmp_path / "new", lambda values: values["preprocess"].update(version=1))
    with pytest.raises(BundleError, match="preprocessing"):
        verify(tmp_path / "new")
    edit_manifest(tmp_path / "new", lambda values: values["preprocess"].update(version=9))
    with pytest.raises(BundleError, match="upgrade"):
        Bundle.open(tmp_path / "new")


def test_new_run_records_the_version_and_old_run_uses_version_1(run, tmp_path):
    assert run.recipe.preprocess.version == PREPROCESS_VERSION
    text = (run.path / "recipe.toml").read_text()
    assert f"preprocess_version = {PREPROCESS_VERSION}" in text
    shutil.copytree(run.path, tmp_path / "old")
    (tmp_path / "old" / "recipe.toml").write_text(text.replace(f"preprocess_version = {PREPROCESS_VERSION}\n", ""))
    assert Run.open(tmp_path / "old").recipe.preprocess.version == 1


def test_recipe_without_a_version_uses_the_latest_version(tmp_path):
    (tmp_path / "my.toml").write_text("[data]\ninput_size = 32\nchannels = 3\n")
    assert Recipe.from_toml(tmp_path / "my.toml").preprocess.version == PREPROCESS_VERSION
    with pytest.raises(RecipeError, match="preprocess_version"):
        Recipe().override({"data.preprocess_version": PREPROCESS_VERSION + 1})


def test_pixel_cache_has_separate_entries_for_each_version(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEREC_CACHE", str(tmp_path / "cache"))
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(4):
            image = np.random.default_rng(number).integers(0, 256, (40, 900, 3), np.uint8)
            cv2.imwrite(str(tmp_path / "data" / label / f"{number}.png"), image)
    keys = {"data.source": str(tmp_path / "data"), "data.fit": "stretch", "data.input_size": 40}
    recipe = Recipe().override(keys)
    newest, section = load(recipe.data)
    assert section.preprocess_version == PREPROCESS_VERSION
    old, _ = load(recipe.override({"data.preprocess_version": 1}).data)
    for dataset, version in ((newest, PREPROCESS_VERSION), (old, 1)):
        spec = PreprocessSpec(40, 40, 3, "stretch", version=version)
        assert np.array_equal(dataset.images[0], apply(dataset.original(0), spec))
    assert not np.array_equal(newest.images[0], old.images[0])


def test_app_readme_names_the_fit_that_mediapipe_does_not_apply(bundle):
    manifest = Bundle.open(bundle).manifest
    for target in ("android", "web"):
        assert "fit = crop" in "\n".join(apps.usage(manifest, Target.load(target)))
        stretched = replace(manifest, preprocess=replace(manifest.preprocess, fit="stretch"))
        assert "fit = " not in "\n".join(apps.usage(stretched, Target.load(target)))
