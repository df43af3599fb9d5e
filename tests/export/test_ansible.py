"""The Ansible role and the Dockerfile of a bundle."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from edgerec import import_tflite
from edgerec.contract.bundle import Bundle
from edgerec.contract.target import Target
from edgerec.export.install_and_service_files import install_files

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON = "{}.{}".format(*sys.version_info)
RUNS_SYSTEMD = Path("/run/systemd/system").exists()


def test_bundle_contains_the_role(bundle):
    names = {name for name in Bundle.open(bundle).manifest.files if name.startswith("ansible/")}
    assert {"ansible/playbook.yml", "ansible/roles/edgerec/tasks/main.yml"} <= names
    for name in names:
        if name.endswith(".yml"):
            assert yaml.safe_load((bundle / name).read_text())
    assert "ansible/playbook.yml" in (bundle / "README.md").read_text()


def test_role_does_not_depend_on_the_target():
    first, second = (
        {name: content for name, content in install_files(Target.load(target)).items() if name.startswith("ansible/")}
        for target in ("rpi", "desktop-linux")
    )
    assert first
    assert first == second


def test_service_folder_contains_only_files_that_are_exported():
    folder = REPOSITORY / "targets" / "service"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == set(install_files(Target.load("rpi")))


def test_dockerfile_is_for_two_platforms():
    for name in ("rpi", "desktop-linux"):
        text = install_files(Target.load(name))["Dockerfile"].decode()
        assert "docker buildx build --platform linux/arm64,linux/amd64 " in text
        assert "install.sh --yes --any-arch" in text
        assert re.search(r"^USER [1-9]\d*$", text, re.MULTILINE)  # otherwise Kubernetes refuses runAsNonRoot


@pytest.mark.parametrize("code", [0, 3])
def test_image_build_succeeds_only_if_install_sh_does_and_leaves_no_caches(code, tmp_path):
    """Execute the RUN instruction with stand-ins for apt-get and install.sh."""
    text = install_files(Target.load("rpi"))["Dockerfile"].decode()
    command = re.search(r"^RUN --mount=type=bind,target=/bundle (.*?[^\\])\n", text, re.MULTILINE | re.DOTALL)[1]
    command = command.replace("/bundle/", f"{tmp_path}/").replace("/var/lib/apt/", f"{tmp_path}/")
    assert "/var/" not in command
    lists, apt_get = tmp_path / "lists", tmp_path / "apt-get"
    lists.mkdir()
    apt_get.write_text(f"#!/bin/sh\ntouch {lists}/packages\n")
    apt_get.chmod(0o755)
    (tmp_path / "install.sh").write_text(f'echo "$* PIP_NO_CACHE_DIR=$PIP_NO_CACHE_DIR"\nexit {code}\n')
    result = subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
    )
    assert (result.returncode, result.stderr) == (code, "")
    assert result.stdout == "--yes --any-arch PIP_NO_CACHE_DIR=1\n"
    assert bool(list(lists.iterdir())) == bool(code)


def test_other_architecture_is_accepted_only_with_the_option(tmp_path):
    for name, content in install_files(Target.load("rpi")).items():
        if name == "install.sh":
            other = "aarch64" if platform.machine() != "aarch64" else "x86_64"
            (tmp_path / name).write_text(re.sub(r"(?m)^ARCH=.*", f"ARCH={other}", content.decode()))

    def dry_run(*options: str) -> str:
        command = ["sh", tmp_path / "install.sh", "--dry-run", "--prefix", tmp_path / "prefix", *options]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stderr

    assert "but this system is" in dry_run()
    assert "but this system is" not in dry_run("--any-arch")


@pytest.fixture(scope="module")
def ansible(tmp_path_factory) -> Path:
    """Install ansible-core in an environment, and return the path of ansible-playbook."""
    folder = tmp_path_factory.mktemp("ansible")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    result = subprocess.run([*pip, "ansible-core"], capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip("ansible-core cannot be installed")
    return folder / "bin" / "ansible-playbook"


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="needs root on Linux")
@pytest.mark.skipif(RUNS_SYSTEMD, reason="would restart a service of this machine")
def test_role_installs_once_and_then_changes_nothing(ansible, bundle, tmp_path):
    """The paths in /etc are replaced with paths in a private folder."""
    wheels, copy, root = tmp_path / "wheels", tmp_path / "copy", tmp_path / "root"
    toml = tmp_path / "mine.toml"
    toml.write_text(f'like = "rpi"\narch = ["{platform.machine()}"]\npython = ["{PYTHON}"]\nsystem_packages = []\n')
    import_tflite(bundle / "model.tflite", copy, labels=bundle / "labels.txt", target=str(toml))
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", wheels, REPOSITORY]
    subprocess.run(build, check=True, capture_output=True)
    for path in (copy / "install.sh", *copy.glob("ansible/**/*.yml")):
        path.write_text(path.read_text().replace("/etc/", f"{root}/etc/"))
    (root / "etc" / "systemd" / "system").mkdir(parents=True)
    inventory = tmp_path / "inventory.ini"
    inventory.write_text(
        f"[cameras]\nlocalhost ansible_connection=local ansible_python_interpreter={sys.executable} "
        "ansible_become=false\n"
    )
    variables = {
        "edgerec_prefix": str(tmp_path / "prefix"),
        "edgerec_bundles_dir": str(tmp_path / "bundles"),
        "edgerec_install_options": ["--find-links", str(wheels)],
        "edgerec_sources": ["env:CAMERA", 'folder "with quotes"'],
        "edgerec_camera_toml": "[frames]\nmirror = true",
        "edgerec_secrets": {"CAMERA": "rtsp://user:hunter2@camera.local/"},
    }
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "EDGEREC"))}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PIP_CONSTRAINT": str(REPOSITORY / "constraints.txt"),
        "ANSIBLE_HOME": str(tmp_path / "ansible"),
        "ANSIBLE_NOCOLOR": "1",
    }

    def play(*options: str, **changes) -> str:
        command = [ansible, "-i", inventory, copy / "ansible" / "playbook.yml", "--diff", *options]
        command += ["--extra-vars", json.dumps(variables | changes)]
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path, timeout=600
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert "hunter2" not in result.stdout + result.stderr
        return result.stdout

    def changes(output: str) -> int:
        return int(re.search(r"changed=(\d+)", output)[1])

    play("--syntax-check")
    assert changes(play("--check")) > 0
    assert not (tmp_path / "prefix").exists()
    assert not (tmp_path / "bundles").exists()
    assert not (root / "etc" / "edgerec").exists()
    assert changes(play()) > 0
    unit = root / "etc" / "systemd" / "system" / "edgerec.service"
    assert f"{tmp_path}/prefix/venv/bin/edgerec camera" in unit.read_text()
    secrets = root / "etc" / "edgerec" / "secrets.env"
    assert "CAMERA=rtsp://user:hunter2@camera.local/\n" in secrets.read_text()
    assert secrets.stat().st_mode & 0o777 == 0o600
    program = (
        "import sys; from edgerec import CameraConfig; c = CameraConfig.from_file(sys.argv[1]); "
        "print(c.sources, c.frames.mirror, c.web.address)"
    )
    config = root / "etc" / "edgerec" / "camera.toml"
    complete = tmp_path / "complete.toml"
    complete.write_text(f"bundle = '{copy}'\n{config.read_text()}")
    shown = subprocess.run(
        [sys.executable, "-c", program, complete], capture_output=True, text=True, check=True, cwd=REPOSITORY
    ).stdout
    assert "env:CAMERA" in shown
    assert 'folder "with quotes"' in shown
    assert shown.endswith("True 127.0.0.1:8000\n")
    assert changes(play()) == 0
    assert changes(play("--check")) == 0
    assert changes(play(edgerec_web_address="0.0.0.0:9000")) == 1
    assert 'address = "0.0.0.0:9000"' in config.read_text()
