"""Options and checks for deployments to an emulated device whose camera runs as a service."""

from __future__ import annotations

import time
from pathlib import Path

from edgerec import DeployOptions, device_status

# The time limit is long, because an emulated device can be 20 times slower than a Raspberry Pi.
OPTIONS = DeployOptions(config=Path(__file__).with_name("camera.toml"), healthy_within_s=600, settle_s=10)
CAMERA_TIMEOUT_S = 400.0


def classifying_release(device, address, frames=10):
    """Wait until the camera has classified ``frames`` frames, and return the digest of the running release."""
    deadline_s = time.monotonic() + CAMERA_TIMEOUT_S
    while True:
        status = device_status(address)
        if status.camera is not None and status.camera["frames"] >= frames:
            assert status.camera["bundle"].startswith(status.release)
            return status.release
        assert time.monotonic() < deadline_s, (status, device.run(["journalctl", "-u", "edgerec", "-n", "30"]).stdout)
        time.sleep(2)
