"""Tests of the cache of wheels for devices."""

from __future__ import annotations

import io
import zipfile

import pytest

from edgerec import Bundle
from edgerec.contract.target import Target
from edgerec.deploy.device import DeviceFacts
from edgerec.deploy.wheels import find_wheels
from tests.deploy.conftest import SMALL_VERSION, small_wheel


@pytest.fixture
def facts():
    """Return the properties of a PC with Debian 12."""
    return DeviceFacts(
        kernel="Linux",
        machine="x86_64",
        system="Debian 12",
        glibc="2.36",
        free_bytes=1 << 30,
        clock_s=1_700_000_000,
        pythons={"3.11": "/usr/bin/python3"},
        venv_pythons=("3.11",),
        cameras=(),
        camera_module=False,
        picamera2=False,
        systemd=True,
        root="root",
        agent_digest="",
    )


def changed_wheel():
    """Return a wheel with the same version as that of the bundle and another file."""
    content = io.BytesIO(small_wheel()[1])
    with zipfile.ZipFile(content, "a") as archive:
        archive.writestr(zipfile.ZipInfo("added.py"), "")
    return content.getvalue()


def test_new_wheel_in_the_folder_of_find_links_is_used(tmp_path, make_bundle, facts):
    bundle = Bundle.open(make_bundle())
    target = Target.load("desktop-linux")

    def found():
        (path,) = find_wheels(bundle, target, facts, "3.11", str(tmp_path)).paths
        return path

    first = found()
    assert found() == first
    # pip prefers a wheel with a build number to another wheel of the same version.
    wheel = tmp_path / f"edgerec-{SMALL_VERSION}-1-py3-none-any.whl"
    wheel.write_bytes(small_wheel()[1])
    assert found().name == wheel.name
    wheel.with_name("deleted-1-py3-none-any.whl").symlink_to("missing")
    wheel.write_bytes(changed_wheel())
    assert found().read_bytes() == changed_wheel()
    assert found() == found()
