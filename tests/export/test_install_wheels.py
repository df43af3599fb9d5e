"""install.sh installs wheels and other files of the bundle only if their digests are those in the manifest."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgerec import verify_emulated
from edgerec.contract.target import Target
from edgerec.errors import BundleError
from edgerec.export.install_and_service_files import install_files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="install.sh is for Linux")

PYTHON = f"3.{sys.version_info[1]}"
# Runs the real Python, but creates no virtual environment, and records the calls of pip instead of executing them.
STAND_IN = f"""#!/bin/sh
case $* in
  '-m venv'*) for folder; do :; done; mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python"
    ln -s /bin/true "$folder/bin/edgerec" ;;
  *' pip '*) echo "$*" >>"$RECORD" ;;
  *) exec {sys.executable} "$@" ;;
esac
"""


@pytest.fixture
def install(bundle, tmp_path):
    """Return a function that runs install.sh of a copy of the bundle, and returns the process and the calls of pip."""
    copy, tools = tmp_path / "bundle", tmp_path / "tools"
    shutil.copytree(bundle, copy)
    script = install_files(Target.load("rpi"))["install.sh"].decode()
    for old, new in {
        "ARCH=aarch64": "ARCH=''",
        "PYTHONS='3.11 3.13'": f"PYTHONS={PYTHON}",
        "PACKAGES='python3 python3-venv'": "PACKAGES=''",
    }.items():
        assert old in script
        script = script.replace(old, new)
    (copy / "install.sh").write_text(script)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["install.sh"] = hashlib.sha256(script.encode()).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    tools.mkdir()
    (tools / "python3").write_text(STAND_IN)
    (tools / "python3").chmod(0o755)

    def call():
        environment = {"PATH": f"{tools}:{os.environ['PATH']}", "RECORD": str(tmp_path / "pip")}
        command = ["sh", copy / "install.sh", "--prefix", tmp_path / "prefix"]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
        return result, (tmp_path / "pip").read_text().splitlines() if (tmp_path / "pip").exists() else []

    call.bundle = copy
    (call.wheel,) = (copy / "wheels").glob("edgerec-*.whl")
    return call


def edit(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def refusal(install) -> str:
    result, calls = install()
    assert result.returncode == 1, result.stdout
    assert calls == []
    (line,) = result.stderr.splitlines()
    return line


def test_unchanged_wheel_and_added_wheels_are_installed(install):
    (install.bundle / "wheels" / "numpy-2.0-py3-none-any.whl").write_bytes(b"added by the user")
    result, calls = install()
    assert result.returncode == 0, result.stderr
    assert any("requirements.txt" in call for call in calls)


def test_changed_wheel_is_not_installed(install):
    edit(install.wheel)
    assert f"wheels/{install.wheel.name} differs from manifest.json" in refusal(install)


def test_error_names_the_damaged_file_of_a_bundle(install):
    edit(install.bundle / "model.tflite")
    result, _ = install()
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {install.bundle}: model.tflite was changed or damaged")


def test_another_edgerec_beside_the_listed_one_is_not_installed(install):
    other_wheel = install.wheel.with_name(install.wheel.name.replace("-py3", "-9-py3"))
    shutil.copy(install.wheel, other_wheel)
    assert other_wheel.name in refusal(install)


@pytest.mark.parametrize("content", [None, "", "{}", json.dumps({"files": 5})])
def test_wheels_are_not_installed_without_a_manifest(install, content):
    if content is None:
        (install.bundle / "manifest.json").unlink()
    else:
        (install.bundle / "manifest.json").write_text(content)
    assert "manifest.json cannot be read" in refusal(install)


def test_emulated_device_does_not_install_a_changed_wheel(install):
    edit(install.wheel)
    with pytest.raises(BundleError, match="was not installed"):
        verify_emulated(install.bundle, "rpi")
