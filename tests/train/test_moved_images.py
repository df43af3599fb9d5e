"""Images that were moved or cannot be read: the message names the folder and the fix."""

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
    """A run whose images were moved, and the place where they are now."""
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
def test_moved_images_are_named_with_the_option_that_finds_them(moved, here, tmp_path, command):
    run, images, _ = moved
    options = {"quantize": ("--method", "ptq"), "calibration make": ("--out", tmp_path / "set")}.get(command, ())
    error = one_line(here(*command.split(), run, *options))
    assert str(images) in error
    assert f"because {images.parent.parent} has no 'my photos'" in error
    assert "--data" in error


def test_quantize_continues_with_the_new_place(moved, here):
    run, _, new = moved
    copy = run.with_name("copy")
    shutil.copytree(run, copy)
    done = here("quantize", copy, "--method", "ptq", "--max-drop", 100, "--data", new)
    assert done.returncode == 0, done.stderr
    assert (copy / "int8" / "model.tflite").is_file()


@pytest.fixture
def other_user():
    """Run as a user who may not read what the tests write, and become root again."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield
        os.seteuid(0)
    else:
        yield


@pytest.fixture
def closed_folder():
    """An image folder outside pytest's own, which other users cannot enter; the class ``blue`` cannot be read."""
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
    assert f"The folder {closed_folder / 'blue'} cannot be read (Permission denied)" in message
    assert "permissions" in message
