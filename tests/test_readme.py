"""What the README shows is what happens."""

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
def test_the_commands_and_the_python_run(tmp_path, pictures, monkeypatch, here, capsys):
    """The four commands on the digits, a folder in the camera's place; then both Python examples.

    All but the camera in this process, where TensorFlow is loaded already: test_demo_runs gives each its own.
    """
    monkeypatch.chdir(tmp_path)
    commands = [line for line in blocks("sh")[1].splitlines() if line.startswith("edgerec ")]
    assert [line.split()[1] for line in commands] == ["train", "quantize", "export", "camera"]
    commands[0] = commands[0].replace("--epochs 12", "--epochs 4")
    commands[-1] = commands[-1].replace("--source 0", f"--source {pictures[0].parent} --headless")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in commands[:-1]:
        done = here(*shlex.split(command)[1:])
        assert done.returncode == 0, (command, done.stderr)
    done = subprocess.run(commands[-1], shell=True, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for example in blocks("python"):
        capsys.readouterr()
        exec(example.replace('"epochs": 12', '"epochs": 1'), {})
        assert capsys.readouterr().out.strip()


@pytest.mark.slow
def test_demo_runs(tmp_path):
    script = REPOSITORY / "examples" / "demo.py"
    command = [sys.executable, str(script), "--epochs", "3", "--out", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "int8 chosen because ptq loses so little" in done.stdout
    assert "120 frames" in done.stdout
    (tmp_path / "demo" / "digits" / "recipe.toml").unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is no earlier demo" in done.stderr


def test_the_commands_for_the_pi_are_the_bundle_s(bundle):
    on_the_pi = next(block for block in blocks("sh") if "requirements.txt" in block)
    assert on_the_pi in (bundle / "README.md").read_text()


def test_it_is_short():
    assert len(README.splitlines()) <= 150
