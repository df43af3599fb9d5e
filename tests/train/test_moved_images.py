"""Messages about images that were moved or cannot be read name the folder and the solution."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from edgerec import Recipe, fit
from edgerec.data.readers import find
from edgerec.errors import DataError
from tests.conftest import one_line, red_and_blue


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """A run whose images were moved, the old folder of the images, and the new one."""
    folder = tmp_path_factory.mktemp("moved")
    images = red_and_blue(folder / "my photos" / "signs")
    recipe = {
        "data": {"source": str(images), "input_size": 28},
        "model": {"arch": "simple_cnn", "width": 0.25},
        "train": {"epochs": 1},
    }
    fit(Recipe.from_dict(recipe), folder / "run")
    (folder / "my photos").rename(folder / "archive")
    return folder / "run", images, folder / "archive" / "signs"


@pytest.mark.parametrize("command", ["quantize", "evaluate", "calibration make"])
def test_message_about_moved_images_names_the_data_option(moved, here, tmp_path, command):
    run, images, _ = moved
    options = {"quantize": ("--method", "ptq"), "calibration make": ("--out", tmp_path / "set")}.get(command, ())
    error = one_line(here(*command.split(), run, *options))
    assert str(images) in error
    assert f"the folder {images.parent.parent} has no 'my photos'" in error
    assert "--data" in error


def test_quantize_accepts_the_new_folder_of_moved_images(moved, here):
    run, _, new = moved
    copy = run.with_name("copy")
    shutil.copytree(run, copy)
    done = here("quantize", copy, "--method", "ptq", "--max-drop", 100, "--data", new)
    assert done.returncode == 0, done.stderr
    assert (copy / "int8" / "model.tflite").is_file()


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
    red_and_blue(folder / "images")
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
