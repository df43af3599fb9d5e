"""The commands and the Python code in the README work."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


@pytest.mark.slow
def test_commands_and_python_code_run(tmp_path, golden_images, monkeypatch, invoke, capsys):
    """Run the four commands with a folder instead of a camera, and then the Python code.

    All commands except camera run in this process, because TensorFlow is already loaded here.
    test_demo_trains_and_classifies_a_video starts a process for each command.
    """
    monkeypatch.chdir(tmp_path)
    commands = [line for line in blocks("sh")[1].splitlines() if line.startswith("edgerec ")]
    assert [line.split()[1] for line in commands] == ["train", "quantize", "export", "camera"]
    commands[0] = commands[0].replace("--epochs 12", "--epochs 4")
    commands[-1] = commands[-1].replace("--source 0", f"--source {golden_images[0].parent} --headless")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in commands[:-1]:
        result = invoke(*shlex.split(command)[1:])
        assert result.returncode == 0, (command, result.stderr)
    result = subprocess.run(commands[-1], shell=True, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for example in blocks("python"):
        capsys.readouterr()
        exec(example.replace('"epochs": 12', '"epochs": 1'), {})
        assert capsys.readouterr().out.strip()


@pytest.mark.nightly
def test_demo_trains_and_classifies_a_video(tmp_path):
    script = REPOSITORY / "examples" / "demo.py"
    command = [sys.executable, str(script), "--epochs", "3", "--out", str(tmp_path / "demo")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "int8 chosen because ptq loses so little" in result.stdout
    assert "120 frames" in result.stdout
    (tmp_path / "demo" / "digits" / "recipe.toml").unlink()
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "is not an earlier demo" in result.stderr


def test_commands_for_the_pi_are_those_in_the_bundle(bundle):
    pi_commands = next(block for block in blocks("sh") if "requirements.txt" in block)
    assert pi_commands in (bundle / "README.md").read_text()


def test_readme_is_short():
    assert len(README.splitlines()) <= 150
