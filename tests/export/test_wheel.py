"""The wheel in a new virtual environment without TensorFlow, as on a device."""

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
    """Create a virtual environment with the bundle's requirements, and return a function that runs its Python."""
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


def test_source_distribution_contains_everything_that_the_wheel_needs(wheel):
    """``python -m build`` builds the wheel from the source distribution, not from the checkout."""
    with tarfile.open(next(wheel.parent.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "edgerec/__init__.py", "targets/rpi.toml"} <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_wheel_works_with_every_supported_python_that_is_installed(wheel, bundle, tmp_path, version):
    """The Python version that runs the tests is covered by the fixture ``device``."""
    if sys.version.startswith(f"{version}."):
        pytest.skip(f"Python {version} runs these tests and is covered by the other tests")
    interpreter = shutil.which(f"python{version}")
    if interpreter is None or subprocess.run([interpreter, "-c", "import ensurepip"], capture_output=True).returncode:
        pytest.skip(f"Python {version} with ensurepip is not installed")
    call = installed(wheel, bundle, tmp_path, interpreter)
    result = call("-m", "edgerec", "verify", bundle, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["exact"] is True


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
def test_device_verifies_exactly_and_classifies_a_video(device, bundle, video):
    result = device("-m", "edgerec", "verify", bundle, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["exact"] is True
    result = device("-m", "edgerec", "camera", bundle, "--source", video, "--headless", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count('"event": "result"') == 30


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
def test_training_commands_name_the_missing_extra_on_a_device(device, bundle, run, command):
    result = device("-m", "edgerec", *(part.format(bundle=bundle, run=run.path) for part in command))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert 'pip install "edgerec[train]"' in result.stderr
    assert device("-m", "edgerec", command[0], "--help").returncode == 0


@pytest.mark.slow
def test_window_error_suggests_headless_if_opencv_has_no_windows(device, bundle, video):
    result = device("-m", "edgerec", "camera", bundle, "--source", video)
    assert result.returncode == 1
    assert "--headless" in result.stderr
