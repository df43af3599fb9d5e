"""Fixtures for the tests on an emulated device, which ``make test-device`` runs."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from edgerec import Bundle, Device, export_bundle
from edgerec.emulation.device_image import find_device_image
from edgerec.emulation.emulated_device import EmulatedDevice

TARGETS = {"amd64": "desktop-linux", "arm64": "rpi"}


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.device)


@pytest.fixture(scope="session")
def device_image(tmp_path_factory):
    """Return a disk image for the architecture in ``EDGEREC_DEVICE_ARCH``, which is arm64 by default.

    The image is cached in the folder ``EDGEREC_DEVICE_CACHE`` if this environment variable is set.
    """
    cache = os.environ.get("EDGEREC_DEVICE_CACHE")
    folder = Path(cache) if cache else tmp_path_factory.mktemp("devices")
    return find_device_image(os.environ.get("EDGEREC_DEVICE_ARCH", "arm64"), cache=folder)


@pytest.fixture(scope="module")
def device(device_image, tmp_path_factory):
    """Yield a booted device that the tests in a module share."""
    with EmulatedDevice(device_image, tmp_path_factory.mktemp("device")) as device:
        yield device


@pytest.fixture(scope="module")
def releases(first_run, tmp_path_factory) -> list[Path]:
    """Return the paths of two bundles that differ only in their README.md."""
    target = TARGETS[os.environ.get("EDGEREC_DEVICE_ARCH", "arm64")]
    folder = tmp_path_factory.mktemp("releases")
    report = export_bundle(first_run, target, out=folder / "first")
    bundle = Bundle.open(report.bundle)
    files = {**bundle.files, "README.md": bundle.files["README.md"] + b"\nSecond release.\n"}
    Bundle.write(folder / "second", replace(bundle.manifest, files={}), files)
    return [folder / "first", folder / "second"]


@pytest.fixture(scope="module")
def address(device):
    """Return the address of the emulated device for deployments."""
    return Device("device", ssh_config=device.ssh_config, connect_timeout_s=60)
