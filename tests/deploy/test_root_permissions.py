"""Tests that code from a bundle never runs as root on the device."""

from __future__ import annotations

import grp
import json
import os
import stat
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgerec import DeployOptions, deploy_bundle
from edgerec.deploy.agent.environments import create_venv as create_virtual_environment
from edgerec.deploy.agent.errors import AgentError
from edgerec.deploy.agent.files import write_file
from edgerec.deploy.agent.installation import Installation
from tests.deploy.conftest import HAS_DEVICES, REASON

NOBODY = 65534
# This script stands in for Python. It creates an environment whose pip reports its user ID, tries to change a wheel,
# and creates files and a process that could change the environment later.
PYTHON = """#!/bin/sh
mkdir -p "$3/bin"
cat >"$3/bin/python" <<'END'
#!/bin/sh
environment=$(dirname "$(dirname "$0")")
id -u >"$environment/uid"
for wheel in "$environment"/wheels/*; do echo changed >>"$wheel"; done 2>/dev/null
ln -s /etc/passwd "$environment/link"
mkdir -m 777 "$environment/open" && echo open >"$environment/open/file" && chmod 4777 "$environment/open/file"
echo nobody >"$environment/.complete"
(setsid sleep 1000 >/dev/null 2>&1 & echo $! >"$environment/process")
END
chmod 755 "$3/bin/python"
"""


def test_verification_runs_as_nobody_with_the_groups_of_the_service(device, make_bundle):
    device.run(
        "mkdir -p /etc/systemd/system/edgerec.service.d && "
        "echo 'SupplementaryGroups=audio no-such-group' >/etc/systemd/system/edgerec.service.d/override.conf"
    )
    result = deploy_bundle(make_bundle(), device.device, DeployOptions(settle_s=0))
    report = json.loads(device.run(f"cat /opt/edgerec/releases/{result.release}/release.json"))["verification"]
    assert (report["uid"], report["gid"]) == (NOBODY, NOBODY)
    groups = {grp.getgrgid(group).gr_name for group in report["groups"]}
    assert groups - {"nogroup"} == {"video", "audio"}
    assert report["writable"] == [report["home"]]
    assert report["home"] != "/root"
    assert not os.path.exists(report["home"])


def test_agent_does_not_import_modules_from_the_home_folder(make_device, make_bundle):
    device = make_device()
    device.run(
        "mkdir -m 755 /run/pi && echo 'raise ImportError' | tee /run/pi/tempfile.py >/run/pi/glob.py && "
        "sed -i 's|:/tmp:/bin/sh|:/run/pi:/bin/sh|' /etc/passwd"
    )
    pi = replace(device.device, address="pi@test-device")
    assert deploy_bundle(make_bundle(), pi, DeployOptions(settle_s=0)).changed


def test_virtual_environment_belongs_to_root(device, make_bundle):
    deploy_bundle(make_bundle(), device.device, DeployOptions(settle_s=0))
    assert device.run("find /opt/edgerec ! -user root -o ! -group root -o -perm /022 ! -type l") == ""


@pytest.fixture
def create_venv():
    """Return a function that creates a virtual environment with a fake Python, and returns its path."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        installation = Installation(f"{folder}/opt")
        for path in (installation.prefix, installation.store, installation.venvs, installation.releases):
            os.mkdir(path, 0o755)
        python = Path(folder, "python")
        digest = "0" * 64
        write_file(installation.store_path(digest), b"wheel")
        venv = Path(installation.venvs, "venv")
        job = {"python": str(python), "system_packages": False, "wheels": {"small-1-py3-none-any.whl": digest}}

        def create(script=PYTHON):
            python.write_text(script)
            python.chmod(0o755)
            create_virtual_environment(installation, str(venv), job, SimpleNamespace(step=lambda *arguments: None))
            assert Path(installation.store_path(digest)).read_bytes() == b"wheel"
            return venv

        yield create


@pytest.mark.skipif(not HAS_DEVICES, reason=REASON)
def test_pip_does_not_run_as_root(create_venv):
    venv = create_venv()
    assert (venv / "uid").read_text() == f"{NOBODY}\n"
    assert (venv / ".complete").read_bytes() == b""
    owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in [venv, *venv.rglob("*")]}
    assert owners == {(0, 0)}
    assert stat.S_ISLNK((venv / "link").lstat().st_mode)
    assert Path("/etc/passwd").stat().st_uid == 0


@pytest.mark.skipif(not HAS_DEVICES, reason=REASON)
def test_only_root_can_change_the_virtual_environment(create_venv):
    venv = create_venv()
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in venv.rglob("*") if not path.is_symlink()}
    assert (modes["open"], modes["file"]) == (0o755, 0o755)
    assert not any(mode & 0o7022 for mode in modes.values())


@pytest.mark.skipif(not HAS_DEVICES, reason=REASON)
def test_processes_that_pip_leaves_running_are_killed(create_venv):
    process = int((create_venv() / "process").read_text())
    assert not Path(f"/proc/{process}").exists()


@pytest.mark.skipif(not HAS_DEVICES, reason=REASON)
def test_wheel_cannot_mark_a_virtual_environment_as_complete(create_venv):
    with pytest.raises(AgentError, match="pip cannot install"):
        create_venv(PYTHON.replace("END\nchmod", "exit 1\nEND\nchmod"))
    venv = create_venv()
    assert (venv / ".complete").read_bytes() == b""
    assert (venv / "wheels.json").exists()
