"""Deploy real bundles to an emulated device with systemd and a virtual camera."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from edgerec import Bundle, DeployOptions, Device, deploy_bundle, device_status, export_bundle, remove, rollback
from edgerec.errors import DeployError

# An emulated device without hardware acceleration is about 20 times slower than a Raspberry Pi.
OPTIONS = DeployOptions(healthy_within_s=600, settle_s=10)
TARGETS = {"amd64": "desktop-linux", "arm64": "rpi"}


@pytest.fixture(scope="module")
def releases(first_run, tmp_path_factory) -> list[Path]:
    """Return two bundles that differ only in their README."""
    target = TARGETS[os.environ.get("EDGEREC_DEVICE_ARCH", "arm64")]
    folder = tmp_path_factory.mktemp("releases")
    report = export_bundle(first_run, target, out=folder / "first")
    bundle = Bundle.open(report.bundle)
    files = {**bundle.files, "README.md": bundle.files["README.md"] + b"\nSecond release.\n"}
    Bundle.write(folder / "second", replace(bundle.manifest, files={}), files)
    return [folder / "first", folder / "second"]


@pytest.fixture(scope="module")
def address(device):
    """Return the emulated device's address for deployments."""
    return Device("device", ssh_config=device.ssh_config, connect_timeout_s=60)


def check_camera(device, address, release):
    """Fail unless the release classifies frames of the camera as a service."""
    status = device_status(address)
    assert (status.release, status.service, status.on_trial) == (release, "active", False)
    assert status.camera["bundle"].startswith(release)
    assert status.camera["frames"] >= 10
    assert status.camera["last"]["label"]
    assert device.run(["systemctl", "is-active", "edgerec"]).stdout.strip() == "active"
    assert device.run(["systemctl", "is-enabled", "edgerec"]).stdout.strip() == "enabled"


def test_release_is_deployed_updated_rolled_back_and_removed(device, address, releases):
    first = deploy_bundle(releases[0], address, OPTIONS, print)
    check_camera(device, address, first.release)
    assert not deploy_bundle(releases[0], address, OPTIONS).changed
    second = deploy_bundle(releases[1], address, OPTIONS, print)
    assert second.previous == first.release
    check_camera(device, address, second.release)
    rollback(address, OPTIONS, print)
    check_camera(device, address, first.release)
    device.shut_down()
    device.start()
    device.run(["sh", "-c", "until grep -q frames /run/edgerec/status.json; do sleep 1; done"], timeout_s=300)
    assert device_status(address).camera["bundle"].startswith(first.release)
    remove(address, OPTIONS, print)
    assert device.run(["systemctl", "cat", "edgerec"]).code != 0
    assert device.run(["ls", "/opt/edgerec/releases"]).code != 0
    with pytest.raises(DeployError, match="no previous release"):
        rollback(address, OPTIONS)
