"""Emulated devices whose emulator is not started. tests/device contains the tests that boot a device."""

from __future__ import annotations

import pytest

from edgerec.emulation.device_image import DeviceImage
from edgerec.emulation.emulated_device import EmulatedDevice
from edgerec.errors import TargetError


@pytest.fixture
def make_device(tmp_path, monkeypatch):
    """Return a function that creates a device with shell scripts in place of QEMU's and OpenSSH's programs."""
    image = DeviceImage(tmp_path, "arm64", "bookworm")
    image.key.touch()

    def make(**scripts):
        programs = tmp_path / "programs"
        programs.mkdir()
        for name, script in {"qemu-system-aarch64": "exit 0", "qemu-img": "exit 0", **scripts}.items():
            (programs / name).write_text(f"#!/bin/sh\n{script}\n")
            (programs / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(programs), prepend=":")
        return EmulatedDevice(image, tmp_path / "device")

    return make


def test_disk_that_cannot_be_created_is_reported(make_device):
    with pytest.raises(TargetError, match=r"cannot create the disk of the emulated device \(no space left\)"):
        make_device(**{"qemu-img": "echo no space left >&2; exit 1"})


def test_port_of_a_hanging_device_is_not_forwarded(make_device):
    device = make_device(ssh="exec sleep 600")
    with (
        pytest.raises(TargetError, match=r"did not forward port 1883 within 0\.1 s"),
        device.forwarded_port(1883, 1884, timeout_s=0.1),
    ):
        pytest.fail("the port was forwarded")


def test_port_that_is_in_use_on_the_device_is_not_forwarded(make_device):
    device = make_device(ssh="exit 255")
    with (
        pytest.raises(TargetError, match="cannot forward port 1883: the port is in use"),
        device.forwarded_port(1883, 1884),
    ):
        pytest.fail("the port was forwarded")
