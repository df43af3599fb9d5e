"""Tests of how `train`, `tune` and `data` turn their argument and options into a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgerec import Recipe
from edgerec.cli.app import app
from edgerec.cli.recipe_options import compose_recipe


def error_of(*arguments: object) -> str:
    """Run a command that must fail with exit code 1, and return its error line."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    return " ".join(result.stderr.split())


@pytest.mark.parametrize("command", ["train", "tune"])
@pytest.mark.parametrize("recipe", ["", "[train]\nepochs = 1\n"], ids=["no recipe", "recipe without data"])
def test_command_without_data_fails_and_says_what_to_provide(command, recipe, tmp_path):
    arguments = []
    if recipe:
        (tmp_path / "my.toml").write_text(recipe)
        arguments = [tmp_path / "my.toml"]
    message = error_of(command, *arguments, "--out", tmp_path / "out")
    assert "no data set specified" in message
    assert "--data digits" in message
    assert not (tmp_path / "out").exists()


def test_train_accepts_an_image_folder_as_its_argument(image_folder, tmp_path, monkeypatch, invoke, brief_training):
    monkeypatch.chdir(tmp_path)
    result = invoke("train", image_folder, "--epochs", "1", "--out", "runs/x")
    assert result.returncode == 0, result.stderr
    assert Path(Recipe.from_toml(tmp_path / "runs/x/recipe.toml").data.source) == image_folder.resolve()


@pytest.mark.parametrize("command", ["train", "tune"])
def test_argument_and_data_option_are_merged(command, tmp_path):
    message = error_of(command, tmp_path / "first", "--data", tmp_path / "second", "--out", tmp_path / "out")
    assert f"{tmp_path / 'first'}" in message  # the first data set that is missing is named
    recipe = compose_recipe("first", {"data.source": ["second", "third"]}, [])
    assert recipe.data.source == ("first", "second", "third")


def test_train_on_a_run_says_how_to_resume_it(tmp_path):
    (tmp_path / "recipe.toml").write_text(Recipe().to_toml())
    message = error_of("train", tmp_path, "--out", tmp_path / "out")
    assert f"expected a data set, but {tmp_path} is a run" in message
    assert f"--resume --out {tmp_path}" in message


def test_recipe_key_without_its_section_is_suggested_with_its_section(tmp_path):
    message = error_of("train", "--data", "digits", "--set", "flip=true", "--out", tmp_path / "out")
    assert "unknown recipe key 'flip'; did you mean 'augment.flip'?" in message
    message = error_of("train", "--data", "digits", "--set", "train.schedul=1", "--out", tmp_path / "out")
    assert "did you mean 'train.schedule'?" in message


def test_recipe_key_in_the_wrong_section_is_suggested_in_every_section_that_has_it(tmp_path):
    message = error_of("train", "--data", "digits", "--set", "model.epochs=2", "--out", tmp_path / "out")
    assert "did you mean 'train.epochs' or 'compress.epochs'?" in message


def test_arch_that_names_a_file_without_a_function_says_how_to_name_one(tmp_path):
    message = error_of("train", "--data", "digits", "--arch", "my_net.py", "--out", tmp_path / "out")
    assert "my_net.py:FUNCTION" in message
    (tmp_path / "empty.py").write_text("")
    message = error_of("train", "--data", "digits", "--arch", f"{tmp_path}/empty.py:build", "--out", tmp_path / "out")
    assert "defines no function" in message


@pytest.mark.parametrize("epochs", ["0", "-1"])
@pytest.mark.parametrize("command", ["train", "build", "tune", "distill"])
def test_number_of_epochs_must_be_positive(command, epochs, tmp_path):
    result = CliRunner().invoke(app, [command, "digits", "--out", str(tmp_path / "run"), "--epochs", epochs])
    assert result.exit_code == 2
    assert "--epochs" in result.stderr
    assert not (tmp_path / "run").exists()
