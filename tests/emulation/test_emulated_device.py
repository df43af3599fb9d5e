"""Emulated devices whose emulator is not started. tests/device contains the tests that boot a device."""

from __future__ import annotations

import pytest

from edgerec.emulation.device_image import DeviceImage
from edgerec.emulation.emulated_device import EmulatedDevice
from edgerec.errors import TargetError


def test_disk_that_cannot_be_created_is_reported(tmp_path, monkeypatch):
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, script in {"qemu-system-aarch64": "exit 0", "qemu-img": "echo no space left >&2; exit 1"}.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    image = DeviceImage(tmp_path, "arm64", "bookworm")
    image.key.touch()
    with pytest.raises(TargetError, match=r"cannot create the disk of the emulated device \(no space left\)"):
        EmulatedDevice(image, tmp_path / "device")
