"""Messages about images that were moved or cannot be read name the folder and the solution."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from edgerec import Recipe, Run, fit
from edgerec.data.readers import find
from edgerec.errors import DataError, EdgerecError, RecipeError
from edgerec.train.fit import was_begun
from tests.conftest import error_line, write_red_and_blue_images


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """A run whose images were moved, the old folder of the images, and the new one."""
    folder = tmp_path_factory.mktemp("moved")
    images = write_red_and_blue_images(folder / "my photos" / "signs")
    recipe = {
        "data": {"source": str(images), "input_size": 28},
        "model": {"arch": "simple_cnn", "width": 0.25},
        "train": {"epochs": 1},
    }
    fit(Recipe.from_dict(recipe), folder / "run")
    (folder / "my photos").rename(folder / "archive")
    return folder / "run", images, folder / "archive" / "signs"


@pytest.mark.parametrize("command", ["quantize", "evaluate", "calibration make"])
def test_message_about_moved_images_names_the_data_option(moved, invoke, tmp_path, command):
    run, images, _ = moved
    options = {"quantize": ("--method", "ptq"), "calibration make": ("--out", tmp_path / "set")}.get(command, ())
    error = error_line(invoke(*command.split(), run, *options))
    assert str(images) in error
    assert f"the folder {images.parent.parent} has no 'my photos'" in error
    assert "--data" in error


def test_quantize_accepts_the_new_folder_of_moved_images(moved, invoke):
    run, _, new = moved
    copy = run.with_name("copy")
    shutil.copytree(run, copy)
    result = invoke("quantize", copy, "--method", "ptq", "--max-drop", 100, "--data", new)
    assert result.returncode == 0, result.stderr
    assert (copy / "int8" / "model.tflite").is_file()


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that was interrupted after one of two epochs, and the same run without interruption."""
    folder = tmp_path_factory.mktemp("interrupted")
    recipe = Recipe.from_dict(
        {
            "data": {"source": str(write_red_and_blue_images(folder / "old" / "signs")), "input_size": 28},
            "model": {"arch": "simple_cnn", "width": 0.25},
            "train": {"epochs": 2},
        }
    )

    def stop(epoch, model):
        raise KeyboardInterrupt

    uninterrupted = fit(recipe, folder / "uninterrupted")
    with pytest.raises(KeyboardInterrupt):
        fit(recipe, folder / "run", on_epoch=stop)
    (folder / "old").rename(folder / "new")
    write_red_and_blue_images(folder / "other" / "signs")
    (folder / "other" / "signs" / "red" / "person0_00.jpg").unlink()
    return folder, recipe, uninterrupted


@pytest.fixture
def interrupted_copy(interrupted, tmp_path):
    shutil.copytree(interrupted[0] / "run", tmp_path / "run")
    return Run.at(tmp_path / "run")


def assert_equal_results(run, expected):
    """Check that two runs have the same weights, test results and split."""
    for weight, expected_weight in zip(run.model().get_weights(), expected.model().get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected_weight)
    changing = ("seconds", "versions")
    assert {key: value for key, value in run.metrics.items() if key not in changing} == {
        key: value for key, value in expected.metrics.items() if key not in changing
    }
    assert run.split_record == expected.split_record


def test_message_about_moved_images_names_an_option_that_resumes_the_run(interrupted, interrupted_copy, invoke):
    folder, _, uninterrupted = interrupted
    assert "set --data to their new location" in error_line(invoke("train", "--resume", "--out", interrupted_copy.path))
    result = invoke("train", "--resume", "--data", folder / "new" / "signs", "--out", interrupted_copy.path)
    assert result.returncode == 0, result.stderr
    assert "resuming after epoch 1" in result.stderr
    assert_equal_results(interrupted_copy, uninterrupted)
    assert interrupted_copy.recipe.data.source == str(folder / "new" / "signs")
    extended = invoke("train", "--resume", "--epochs", "+1", "--out", interrupted_copy.path)
    assert extended.returncode == 0, extended.stderr


def test_recipe_with_the_new_location_resumes_the_run(interrupted, interrupted_copy, monkeypatch):
    folder, recipe, uninterrupted = interrupted
    moved = recipe.override({"data.source": str(folder / "new" / "signs")})
    loads = []
    monkeypatch.setattr(
        "edgerec.data.readers.find", lambda *args, **kwargs: loads.append(args) or find(*args, **kwargs)
    )
    assert was_begun(moved, interrupted_copy.path)
    fit(moved, interrupted_copy.path, resume=True, data=moved.data.source)
    assert len(loads) == 1  # the images are loaded only once
    assert_equal_results(interrupted_copy, uninterrupted)


def test_resume_refuses_other_images(interrupted, interrupted_copy, invoke):
    folder, recipe, uninterrupted = interrupted
    other = folder / "other" / "signs"
    before = (interrupted_copy.path / "recipe.toml").read_bytes()
    for run in (interrupted_copy, uninterrupted):
        error = error_line(invoke("train", "--resume", "--data", other, "--out", run.path))
        assert f"was started with other images than those in {other}" in error
    assert (interrupted_copy.path / "recipe.toml").read_bytes() == before
    error = error_line(invoke("train", "--resume", "--epochs", "+1", "--data", other, "--out", folder / "no run"))
    assert "because it is not a run" in error
    with pytest.raises(RecipeError, match="requires resume=True"):
        fit(recipe, folder / "no run", data=str(other))
    with pytest.raises(RecipeError, match="was started with other images"):
        fit(recipe, interrupted_copy.path, resume=True, data=str(other))


def test_build_continues_with_moved_images_and_refuses_other_images(interrupted, interrupted_copy, invoke):
    folder, recipe, uninterrupted = interrupted
    file = interrupted_copy.path.parent / "signs.toml"
    file.write_text(recipe.to_toml())
    options = ("--method", "ptq", "--max-drop", 100, "--no-open", "--out", interrupted_copy.path)
    other = folder / "other" / "signs"
    error = error_line(invoke("build", file, "--data", other, *options))
    assert f"was started with other images than those in {other}" in error
    result = invoke("build", file, "--data", folder / "new" / "signs", *options)
    assert result.returncode == 0, result.stderr
    assert_equal_results(interrupted_copy, uninterrupted)
    # The images are moved again after the training, but before the other steps.
    shutil.rmtree(interrupted_copy.path / "int8")
    shutil.copytree(folder / "new" / "signs", interrupted_copy.path.parent / "signs")
    second = invoke("build", file, "--data", interrupted_copy.path.parent / "signs", *options)
    assert second.returncode == 0, second.stderr
    assert "result of train" in second.stdout


@pytest.fixture
def other_user():
    """Run the test as a user without access to the files of the tests; switch back to root afterwards."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield
        os.seteuid(0)
    else:
        yield


@pytest.fixture
def closed_folder():
    """An image folder in which the class folder ``blue`` cannot be read.

    It is not in pytest's temporary folder, because other users have no access to this folder.
    """
    folder = Path(tempfile.mkdtemp())
    write_red_and_blue_images(folder / "images")
    folder.chmod(0o755)
    (folder / "images" / "blue").chmod(0o000)
    yield folder / "images"
    (folder / "images" / "blue").chmod(0o755)
    shutil.rmtree(folder)


def test_unreadable_class_folder_is_named(closed_folder, other_user):
    with pytest.raises(DataError) as raised:
        find(str(closed_folder))
    message = str(raised.value)
    assert f"the folder {closed_folder / 'blue'} cannot be read (Permission denied)" in message
    assert "permissions" in message


def test_renamed_npz_file_is_refused_before_the_recipe_changes(tmp_path):
    rng, old = np.random.default_rng(0), tmp_path / "old.npz"
    np.savez(old, x_train=rng.integers(0, 256, (60, 28, 28), np.uint8), y_train=np.arange(60) % 2)
    recipe = Recipe.from_dict(
        {"data": {"source": str(old)}, "model": {"arch": "simple_cnn", "width": 0.25}, "train": {"epochs": 2}}
    )

    def stop(epoch, model):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(recipe, tmp_path / "run", on_epoch=stop)
    before = (tmp_path / "run" / "recipe.toml").read_text()
    new = old.rename(tmp_path / "new.npz")
    with pytest.raises(EdgerecError, match=r"split.json lists the image 'old.npz"):
        fit(recipe.override({"data.source": str(new)}, "--data"), tmp_path / "run", resume=True, data=str(new))
    assert (tmp_path / "run" / "recipe.toml").read_text() == before
