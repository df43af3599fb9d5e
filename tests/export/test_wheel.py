"""The wheel in an empty environment, with what a device has: no TensorFlow."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests.conftest import REPOSITORY

CONSTRAINTS = REPOSITORY / "constraints.txt"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(out), str(REPOSITORY)],
        check=True,
        capture_output=True,
        env=os.environ | {"PIP_CONSTRAINT": str(CONSTRAINTS)},
    )
    assert len(list(out.glob("*.tar.gz"))) == 1
    return next(out.glob("*.whl"))


def installed(wheel, bundle, folder, interpreter=sys.executable):
    """An environment made with the bundle's own requirements, as on a Pi; gives what calls its Python."""
    subprocess.run([interpreter, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--find-links", wheel.parent,
         "-c", CONSTRAINTS, "-r", bundle / "requirements.txt"],
        check=True,
    )  # fmt: skip

    def call(*arguments):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "EDGEREC"))}
        return subprocess.run(
            [python, *map(str, arguments)], capture_output=True, text=True, cwd=folder, env=environment, check=False
        )

    return call


@pytest.fixture(scope="module")
def device(wheel, bundle, tmp_path_factory):
    return installed(wheel, bundle, tmp_path_factory.mktemp("device"))


def test_source_distribution_has_what_the_wheel_is_built_of(wheel):
    """``python -m build`` made the wheel from it and not from the checkout."""
    with tarfile.open(next(wheel.parent.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "edgerec/__init__.py", "targets/rpi.toml"} <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_wheel_runs_under_every_python_at_hand(wheel, bundle, tmp_path, version):
    """The one that runs these tests has its own, and the userland's another (test_userland.py)."""
    if sys.version.startswith(f"{version}."):
        pytest.skip(f"Python {version} runs these tests: the device above has it")
    interpreter = shutil.which(f"python{version}")
    if interpreter is None or subprocess.run([interpreter, "-c", "import ensurepip"], capture_output=True).returncode:
        pytest.skip(f"no Python {version} with ensurepip at hand")
    call = installed(wheel, bundle, tmp_path, interpreter)
    done = call("-m", "edgerec", "verify", bundle, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["exact"] is True


def test_wheel_ships_targets_and_calibration(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "edgerec/_shipped/targets/rpi.toml" in names
    assert "edgerec/_shipped/calibration/stratified.toml" in names
    assert "edgerec/_shipped/calibration/digits/calibration.json" in names
    assert "edgerec/py.typed" in names
    assert {f"edgerec/report/template/report.{kind}" for kind in ("html", "css", "js")} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


@pytest.mark.slow
def test_device_has_no_tensorflow_and_finds_its_data(device):
    code = (
        "import importlib.util as u, edgerec\n"
        "from edgerec.contract.target import Target\n"
        "from edgerec.utils.package_data import shipped\n"
        "print([n for n in ('tensorflow', 'tf_keras', 'sklearn', 'matplotlib') if u.find_spec(n)],"
        " Target.load('rpi').name, '_shipped' in str(shipped('calibration')))"
    )
    assert device("-c", code).stdout.strip() == "[] rpi True"


@pytest.mark.slow
def test_device_classifies_a_video_bit_for_bit(device, bundle, video):
    done = device("-m", "edgerec", "verify", bundle, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["exact"] is True
    done = device("-m", "edgerec", "camera", bundle, "--source", video, "--headless", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count('"event": "result"') == 30


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["train", "--data", "digits", "--out", "x"],
        ["quantize", "{run}", "--method", "prune", "--sparsity", "0.9", "--overwrite"],
        ["export", "{run}", "--out", "x"],
        ["evaluate", "{bundle}", "--data", "digits"],
        ["report", "{run}"],
    ],
)
def test_device_says_what_training_needs(device, bundle, run, command):
    done = device("-m", "edgerec", *(part.format(bundle=bundle, run=run.path) for part in command))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert 'pip install "edgerec[train]"' in done.stderr
    assert device("-m", "edgerec", command[0], "--help").returncode == 0


@pytest.mark.slow
def test_window_without_window_support_says_headless(device, bundle, video):
    done = device("-m", "edgerec", "camera", bundle, "--source", video)
    assert done.returncode == 1
    assert "--headless" in done.stderr
