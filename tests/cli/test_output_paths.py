"""Outputs that are also inputs, suffixes of another file type, and ``~`` in paths."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from edgerec import Bundle, Camera, Recipe, ensemble, export_bundle, fit, import_tflite, show_data, write_report
from edgerec.camera.sinks.csv import CsvFile
from edgerec.camera.sinks.video import VideoFile
from edgerec.cli.app import app
from edgerec.errors import EdgerecError, OutputExistsError, OutputIsInputError, OutputNameError
from edgerec.utils.atomic import checked_output
from edgerec.utils.atomic import sha256 as digest


def error_of(*arguments) -> str:
    """Run a command that must fail with one line on stderr, and return this line."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.strip().splitlines()
    return line


@pytest.fixture
def video_copy(video, tmp_path) -> Path:
    """Copy of the video, which a test may try to overwrite."""
    return Path(shutil.copy(video, tmp_path / "clip.avi"))


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Home folder. The working directory must stay empty, so that no folder named ``~`` is created in it."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "home"
    assert list((tmp_path / "here").iterdir()) == []


# checked_output decides whether an output is accepted.


@pytest.mark.parametrize("link", ["same", "relative", "symlink", "hard link", "through a linked folder"])
def test_input_is_recognized_by_every_name(tmp_path, monkeypatch, link):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    image = tmp_path / "photos" / "a.png"
    image.write_bytes(b"image")
    names = {"same": image, "relative": Path("photos/../photos/a.png")}
    if link == "symlink":
        (tmp_path / "b.png").symlink_to(image)
    elif link == "hard link":
        os.link(image, tmp_path / "b.png")
    elif link == "through a linked folder":
        (tmp_path / "c").symlink_to(tmp_path / "photos")
        names[link] = tmp_path / "c" / "a.png"
    with pytest.raises(OutputIsInputError, match="choose another output"):
        checked_output(names.get(link, tmp_path / "b.png"), [image], suffixes=(".png",))


def test_output_folder_that_contains_an_input_is_refused(tmp_path):
    (tmp_path / "run" / "photos").mkdir(parents=True)
    with pytest.raises(OutputIsInputError):
        checked_output(tmp_path / "run", [tmp_path / "run" / "photos"], folder=True)
    assert checked_output(tmp_path / "new", ["digits", "", None, "gs://bucket/x"], folder=True) == tmp_path / "new"


@pytest.mark.parametrize("command", ["train", "tune", "data check", "data pack"])
def test_folders_inside_the_data_are_refused(tmp_path, monkeypatch, command):
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "photos" / label / "a.png"), np.zeros((30, 30, 3), np.uint8))
    monkeypatch.chdir(tmp_path / "photos")
    result = CliRunner().invoke(app, [*command.split(), ".", "--out", "runs/first"])
    assert result.exit_code == 1, result.output
    message = result.stderr.strip().splitlines()[-1]
    assert "runs/first is inside the image folder" in message
    assert "choose another folder" in message
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.jpg", {"suffixes": (".png",)}), ("a", {"suffixes": (".png",)}), ("a.tflite", {"folder": True})],
)
def test_suffix_of_another_file_type_is_refused(tmp_path, name, options):
    with pytest.raises(OutputNameError, match=r"choose (another name|a name without a suffix)"):
        checked_output(tmp_path / name, **options)


@pytest.mark.parametrize("name", ["a.png", "a.PNG"])
def test_case_of_the_suffix_does_not_matter(tmp_path, name):
    checked_output(tmp_path / name, suffixes=(".png",))


def test_version_number_is_not_a_suffix(tmp_path):
    checked_output(tmp_path / "signs-1.2", folder=True)


# Outputs of the camera.


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
@pytest.mark.parametrize("option", ["--csv", "--video"])
@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_camera_does_not_write_over_its_source(bundle, video_copy, tmp_path, option, options, link):
    before, out = digest(video_copy.read_bytes()), video_copy
    if link:
        out = tmp_path / ("other.csv" if option == "--csv" else "other.avi")
        link(video_copy, out)
    error_of("camera", bundle, "--source", video_copy, "--headless", option, out, *options)
    assert digest(video_copy.read_bytes()) == before


def test_camera_class_refuses_a_sink_that_writes_its_source(bundle, video_copy):
    before = digest(video_copy.read_bytes())
    with Camera.open(bundle, str(video_copy)) as camera, pytest.raises(OutputIsInputError):
        camera.run([VideoFile(video_copy, live=False, overwrite=True)])
    assert digest(video_copy.read_bytes()) == before


@pytest.mark.parametrize("content", [b"\x00\x01video", b"name,price\nanvil,12\n"])
def test_csv_sink_overwrites_only_its_own_tables(tmp_path, content):
    path = tmp_path / "mine.csv"
    path.write_bytes(content)
    with pytest.raises(OutputExistsError, match="was not written by edgerec camera"):
        CsvFile(path, "overwrite")
    assert path.read_bytes() == content
    with pytest.raises(EdgerecError):
        CsvFile(tmp_path / "table.mp4")
    for _ in range(2):
        CsvFile(tmp_path / "table.csv", "overwrite").close()


def test_camera_does_not_save_into_its_source_or_bundle(bundle, golden_images, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(golden_images[0], source)
    options = ["--source", source, "--headless", "--save", "all", "--save-dir"]
    assert "input" in error_of("camera", bundle, *options, source)
    assert "input" in error_of("camera", bundle, *options, bundle)
    assert len(list(source.iterdir())) == 1


# Commands that write one file.


@pytest.fixture
def photo(tmp_path) -> Path:
    cv2.imwrite(str(tmp_path / "photo.jpg"), np.zeros((8, 8, 3), np.uint8))
    return tmp_path / "photo.jpg"


def test_commands_do_not_overwrite_files_of_another_kind(run, bundle, photo, image_folder):
    before = photo.read_bytes()
    for command in (
        ["report", run.path, "--out", photo],
        ["inspect", bundle, "--plot", photo],
        ["benchmark", bundle, "--seconds", "0.1", "--plot", photo],
        ["models", "--plot", photo],
        ["parity", run.path, "--out", photo],
        ["data", "show", image_folder, "--out", photo],
        ["data", "check", image_folder, "--out", photo],
        ["export", run.path, "--out", photo],
        ["import", bundle / "model.tflite", "--labels", bundle / "labels.txt", "--out", photo],
        ["train", image_folder, "--out", photo],
        ["calibration", "make", "--data", image_folder, "--out", photo],
        ["data", "pack", image_folder, "--out", photo],
    ):
        assert "suffix" in error_of(*command, "--overwrite") or "end in" in error_of(*command, "--overwrite")
    assert photo.read_bytes() == before


def test_benchmark_plot_does_not_replace_an_image_without_overwrite(bundle, tmp_path):
    (tmp_path / "mine.png").write_bytes(b"mine")
    assert "--overwrite" in error_of("benchmark", bundle, "--seconds", "0.1", "--plot", tmp_path / "mine.png")


def test_images_of_the_input_folder_are_not_overwritten(bundle, image_folder):
    cv2.imwrite(str(image_folder / "red" / "mine.png"), np.zeros((30, 40, 3), np.uint8))
    golden = bundle / "golden" / "000.png"
    for out, command in (
        (image_folder / "red" / "mine.png", ["data", "show", image_folder, "--out"]),
        (image_folder / "red" / "mine.png", ["data", "check", image_folder, "--out"]),
        (golden, ["inspect", bundle, "--plot"]),
        (golden, ["benchmark", bundle, "--plot"]),
    ):
        before = out.read_bytes()
        message = error_of(*command, out, "--overwrite")
        assert "is an image in the input folder" in message or "is inside the image folder" in message
        assert out.read_bytes() == before


# Commands that write a folder.


def test_ensemble_export_and_import_do_not_write_over_their_inputs(run, bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "a")
    with pytest.raises(OutputIsInputError):
        ensemble([tmp_path / "a", bundle], tmp_path / "a", overwrite=True)
    Bundle.open(tmp_path / "a")
    with pytest.raises(OutputIsInputError):
        export_bundle(run, out=run.path, overwrite=True)
    model = Path(shutil.copy(bundle / "model.tflite", tmp_path / "model.zip"))
    with pytest.raises(OutputIsInputError):
        import_tflite(model, model, labels=bundle / "labels.txt", overwrite=True)
    with pytest.raises(OutputIsInputError):
        Bundle.open(tmp_path / "a").copy(tmp_path / "a", overwrite=True)


def test_training_does_not_replace_a_run_that_contains_its_data_or_weights(run, image_folder, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    shutil.copytree(image_folder, tmp_path / "run" / "photos")
    for keys in (
        {"data.source": str(tmp_path / "run" / "photos")},
        {"data.source": str(image_folder), "model.weights": str(tmp_path / "run" / "model.keras")},
    ):
        with pytest.raises(OutputIsInputError):
            fit(Recipe().override(keys), tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "model.keras").is_file()


# ~ means the home folder.


def commands() -> Iterator[tuple[str, Any]]:
    """Yield the name and the Click command of every command and subcommand."""
    root = typer.main.get_command(app)
    for name in root.list_commands(None):
        command = root.get_command(None, name)
        subcommands = getattr(command, "commands", None)
        if subcommands is None:
            yield name, command
        else:
            yield from ((f"{name} {subname}", subcommand) for subname, subcommand in subcommands.items())


def test_every_path_option_of_every_command_expands_the_home_folder(home):
    count = 0
    for name, command in commands():
        for parameter in command.params:
            if getattr(parameter, "is_flag", False):
                continue
            option = [f"{parameter.opts[0]}=~/x"] if parameter.opts[0].startswith("-") else ["~/x"]
            value = command.make_context(name, option, resilient_parsing=True).params.get(parameter.name)
            values = value if isinstance(value, list | tuple) else [value]
            if any(isinstance(item, Path) for item in values):
                assert home / "x" in values, f"{name}: {parameter.name} is {value}"
                count += 1
    assert count > 30


def test_names_of_data_and_assignments_expand_the_home_folder(home, image_folder):
    shutil.copytree(image_folder, home / "photos")
    for command in (
        ["data", "show", "~/photos", "--out=~/a.png"],
        ["data", "show", "digits", "--set", "data.source=~/photos", "--out=~/b.png"],
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    assert {"a.png", "b.png"} <= {path.name for path in home.iterdir()}
    (home / "my.toml").write_text('[data]\nsource = "~/photos"\n[model]\nweights = "~/old.keras"\n')
    recipe = Recipe.from_toml("~/my.toml")
    assert (recipe.data.source, recipe.model.weights) == (str(home / "photos"), str(home / "old.keras"))


def test_python_interface_expands_the_home_folder(home, run, bundle):
    import_tflite(bundle / "model.tflite", "~/imported", labels=bundle / "labels.txt")
    Bundle.open("~/imported").copy("~/copied.zip")
    CsvFile("~/table.csv").close()
    show_data(Recipe(), "~/sheet.png")
    write_report(run, "~/page.html", images=False)
    names = {"imported", "copied.zip", "table.csv", "sheet.png", "page.html"}
    assert names <= {path.name for path in home.iterdir()}


def test_tilde_that_is_not_a_home_folder_is_part_of_the_name(home, tmp_path):
    assert checked_output("~no-such-user/x") == Path("~no-such-user/x")
    assert checked_output(tmp_path / "a~b") == tmp_path / "a~b"


@pytest.mark.parametrize(("out", "message"), [("loop/run", "broken link"), ("loop", "was not written by this command")])
def test_link_to_itself_is_refused_without_traceback(tmp_path, video_copy, out, message):
    (tmp_path / "loop").symlink_to("loop")
    assert checked_output(tmp_path / "loop", [video_copy]) == tmp_path / "loop"
    result = CliRunner().invoke(app, ["train", "digits", "--out", str(tmp_path / out), "--epochs", "1"])
    assert result.exit_code == 1
    assert message in result.stderr.splitlines()[-1]


def test_tilde_in_the_query_of_a_url_is_not_a_path(home):
    address = "http://host/?user=~/me"
    command = dict(commands())["camera"]
    params = command.make_context("camera", [f"--webhook={address}"], resilient_parsing=True).params
    assert params["webhook"] == address
