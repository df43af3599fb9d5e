"""Target files, their validation, and the command that shows them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgerec.contract.target import Target, target_names
from edgerec.errors import TargetError
from tests.conftest import error_line

MINIMAL = 'title = "Mine"\narch = ["aarch64"]\ntypes = ["int8"]\n'


def write_target(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def test_shipped_targets_are_complete():
    devices = "desktop-linux desktop-macos desktop-windows rpi rpi-32bit coral-usb coral-dev-board android web"
    assert set(target_names()) == {*devices.split(), "microcontroller", "desktop", "coral"}
    targets = {name: Target.load(name) for name in target_names()}
    assert all(target.title and target.systems for target in targets.values())
    assert {name for name, target in targets.items() if target.kind == "model"} == {"android", "web", "coral-dev-board"}
    assert "float32" not in targets["coral"].types
    assert targets["coral"].rules == targets["coral-usb"].rules == "edgetpu"
    assert "CONV_2D" in targets["microcontroller"].operators


def test_own_target_inherits_missing_values_from_like(tmp_path):
    own_target = Target.load(
        write_target(tmp_path, 'like = "rpi"\ntitle = "Gate"\nthreads = 2\n[operators]\nADD = 4\n')
    )
    rpi = Target.load("rpi")
    assert (own_target.name, own_target.title, own_target.threads, own_target.operators) == (
        "mine",
        "Gate",
        2,
        {"ADD": 4},
    )
    assert (own_target.arch, own_target.requirements, own_target.service) == (rpi.arch, rpi.requirements, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('title = "Mine"\nthread = 2\n', "did you mean 'threads'"),
        ("title = 3\n", "title is 3, expected a string"),
        ('title = "Mine"\n', "the key 'arch' is missing"),
        ("title = \n", "not TOML"),
        ('like = "rpy"\n', "did you mean 'rpi'"),
        ('like = "other.toml"\n', "unknown target"),
        ("like = 3\n", "unknown target '3'"),
        (MINIMAL + "threads = -1\n", "threads is -1, expected 0 or more"),
        (MINIMAL + "service = 1\n", "service is 1, expected true or false"),
        (MINIMAL + 'systems = "Linux"\n', "expected a list of strings"),
        (MINIMAL + "[operators]\nADD = true\n", "operators to their highest supported version"),
        # Values that contradict each other or are not known.
        (MINIMAL.replace("int8", "int4"), "types is ['int4'], expected a list of values from int8, float32"),
        (MINIMAL.replace('"int8"', ""), "types is empty"),
        (MINIMAL + 'inputs = ["float32"]\n', "inputs contains no 8-bit integer"),
        (MINIMAL + 'kind = "zip"\n', "kind is 'zip', expected one of bundle, model, c"),
        (MINIMAL + 'rules = "tpu"\n', "rules is 'tpu', expected one of '', edgetpu"),
        (MINIMAL + 'sources = ["webcam"]\n', "sources is ['webcam'], expected a list of values from opencv"),
        (MINIMAL + 'compiler = "edgetpu_compiler"\n', "but delegate is empty"),
        (MINIMAL + 'kind = "c"\ncommands = ["pip install edgerec"]\n', "are only for kind 'bundle'"),
        (MINIMAL + "service = true\n", "service is true, but requirements is empty"),
        (MINIMAL + 'python = ["3"]\n', "python contains '3'"),
        (MINIMAL.replace("aarch64", "armv7l") + 'runtimes = ["ai-edge-litert>=2"]\n', "has a wheel for armv7l"),
        (
            MINIMAL + 'python = ["3.13"]\nruntimes = ["tflite-runtime"]\n',
            "Python 3.13: the latest is for 3.11",
        ),
    ],
)
def test_error_for_invalid_target_is_one_line(tmp_path, text, message):
    path = write_target(tmp_path, text)
    with pytest.raises(TargetError) as error:
        Target.load(path)
    assert message in str(error.value)
    assert str(error.value).startswith(path)
    assert "\n" not in str(error.value)


def test_error_for_unknown_target_suggests_the_most_similar_one():
    with pytest.raises(TargetError, match="did you mean 'rpi'"):
        Target.load("rpi4")


def test_targets_command_lists_targets_and_shows_one(edgerec, tmp_path):
    listed = edgerec("targets")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == target_names()
    shown = edgerec("targets", "coral")
    assert "8 MiB on the chip" in shown.stdout
    assert "edgerec camera . --source auto" in shown.stdout
    every = json.loads(edgerec("targets", "--json").stdout)
    assert [target["name"] for target in every] == target_names()
    own_target = json.loads(edgerec("targets", write_target(tmp_path, 'like = "rpi"\nthreads = 4\n'), "--json").stdout)
    assert (own_target["threads"], own_target["arch"]) == (4, ["aarch64"])
    assert "did you mean 'rpi'" in error_line(edgerec("targets", "rpy"))
