"""The commands in examples/README.md run on a small number of images."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgerec import Recipe, Run
from edgerec.contract.tensors import Normalize
from edgerec.models import build
from edgerec.train.backend import keras
from tests.conftest import REPOSITORY, error_line

EXAMPLES = REPOSITORY / "examples"
ROWS = re.findall(r"^\| [^|]* \| `edgerec ([^`]*)` \|", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.M)
# Options that are appended to a command by the name of its run: small data, few epochs and narrow networks.
SMALL = {
    "mnist": "--data mnist.npz --epochs 1 --width 0.25",
    "dropout": "--data mnist.npz --epochs 1 --width 0.25",
    "augmentation": "--data mnist.npz --epochs 1 --width 0.25",
    "cifar10": "--data signs --epochs 1 --width 0.25 --input-size 16 --batch-size 16",
    "deeper": "--data signs --epochs 1 --width 0.125 --input-size 16",
    "rows": "--data mnist.npz --epochs 1 --width 0.125",
    "again": "--data mnist.npz --epochs 1 --width 0.5",
    "vgg16": "--weights vgg16.keras --epochs 1 --width 0.0625 --input-size 32 --set transfer.frozen=1",
    "resnet50": "--weights resnet50.keras --epochs 1 --width 0.0625 --input-size 32 --set transfer.frozen=1",
    "few": "--epochs 1 --set transfer.frozen=1",
    "signs": "--epochs 1 --input-size 32 --arch simple_cnn --width 0.25",
    "studies/mnist": "--data mnist.npz --epochs 1 --trials 1 --set model.width=0.25",
    "small": "--epochs 1",
    "sheet.png": "--set data.source=mnist.npz",
    "both": "--target desktop",
}
SMALL_OPTIONS = {
    # One of the 50 test images is 2 percentage points, and the network has learned little in one epoch.
    "quantize runs/mnist": "--epochs 1 --max-drop 20",
    "export runs/mnist --novelty runs/again --target desktop": "--novelty-variant float32",
}


def small(command: str) -> list[str]:
    """Return the arguments of a command with the options that make it run quickly."""
    run = re.search(r"--out (?:runs/)?(\S+)$", command)
    words = f"{command} {SMALL[run[1]] if run else SMALL_OPTIONS.get(command, '')}".split()
    return ["mnist.npz" if word == "mnist" else word for word in words]


@pytest.fixture(scope="module")
def folder(real_data, tmp_path_factory):
    """Working directory for the commands, with the examples and some of the real images."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "examples").symlink_to(EXAMPLES)
    with np.load(real_data / "mnist.npz") as arrays:
        subset = {key: arrays[key][:: 300 if "train" in key else 200] for key in arrays.files}
    np.savez(folder / "mnist.npz", **subset)
    # Ten consecutive file numbers belong to one person, who shows the digits 0 to 9.
    with tarfile.open(real_data / "sign-digits.tar") as archive:
        files = {path.name: (path.parent.name, member) for member in archive if (path := Path(member.name)).suffix}
        for number in range(1118, 1118 + 100):
            sign, member = files[f"IMG_{number}.JPG"]
            (folder / "signs" / sign).mkdir(parents=True, exist_ok=True)
            name = f"person_{(number - 1118) // 10:03d}_{number}.jpg"
            (folder / "signs" / sign / name).write_bytes(archive.extractfile(member).read())
    (folder / "photos").symlink_to(folder / "signs")
    (folder / "vww_96.h5").symlink_to(real_data / "vww_96.h5")
    for arch in ("vgg16", "resnet50"):
        # Random weights of a narrow network replace the weights that Keras would download.
        section = Recipe().override({"model.arch": arch, "model.width": 0.0625}).model
        build(keras(), section, (32, 32, 3), 10, Normalize.named("unit")).save(folder / f"{arch}.keras")
    return folder


@pytest.mark.nightly
def test_every_command_runs(folder, monkeypatch, invoke, brief_training):
    monkeypatch.chdir(folder)
    outputs = {}
    for command in ROWS:
        result = invoke(*small(command))
        assert result.returncode == 0, (command, result.stderr)
        outputs[command] = result.stdout + result.stderr
    assert "int8-qat" in outputs["quantize runs/mnist"]
    assert "precision" in outputs["evaluate runs/mnist"]
    assert cv2.imread("sheet.png") is not None
    assert Path("runs/mnist/report.html").is_file()
    assert Path("studies/mnist/best.toml").is_file()
    runs = {path.name: Run.open(path) for path in Path("runs").iterdir() if (path / "recipe.toml").is_file()}
    assert {name: run.recipe.model.arch for name, run in runs.items() if run.recipe.model.arch != "simple_cnn"} == {
        "cifar10": "resnet8",
        "deeper": "vgg_small",
        "rows": "lstm",
        "again": "autoencoder",
        "vgg16": "vgg16",
        "resnet50": "resnet50",
        "few": "backbone",
    }
    assert runs["rows"].variants()["int8"]["precision"] == "int8"
    for run in ("vgg16", "resnet50", "few"):
        output = next(text for command, text in outputs.items() if command.endswith(f"runs/{run}"))
        assert "epoch 1: training 0 of " in output
    record = runs["signs"].split_record
    held_out = {name[:10] for name in (path.rpartition("/")[2] for path in record["test"])}
    assert held_out
    assert not held_out & {path.rpartition("/")[2][:10] for path in record["val"]}


def test_every_recipe_is_valid_and_has_a_command():
    commands = " ".join(ROWS)
    for path in EXAMPLES.glob("*.toml"):
        assert f"examples/{path.name}" in commands
        if path.name != "search.toml":
            Recipe.from_toml(path)


def test_error_of_a_failed_download_says_what_to_do(folder, monkeypatch, invoke):
    def offline(**options):
        raise OSError("URL fetch failure on https://example: None -- [Errno -2] Name or service not known")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(keras().applications, "VGG16", offline)
    command = next(command for command in ROWS if "vgg16.toml" in command).replace("runs/vgg16", "runs/none")
    message = error_line(invoke(*command.split()))
    assert "could not be downloaded" in message
    assert "connect this machine to the Internet once, or set model.weights to 'none'" in message
    assert not Path("runs/none").exists()
