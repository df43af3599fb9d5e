"""Deploy bundles to devices over SSH: releases, health checks, rollback and signatures."""

from __future__ import annotations

from edgerec.deploy.device import Device, DeviceStatus
from edgerec.deploy.release import (
    DeployOptions,
    DeployResult,
    Step,
    deploy_bundle,
    device_status,
    remove,
    rollback,
)

__all__ = [
    "DeployOptions",
    "DeployResult",
    "Device",
    "DeviceStatus",
    "Step",
    "deploy_bundle",
    "device_status",
    "remove",
    "rollback",
]
