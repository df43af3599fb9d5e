"""Deploy bundles to devices over SSH, with health checks, rollback and signature verification."""

from __future__ import annotations

from edgerec.deploy.device import Device, DeviceStatus
from edgerec.deploy.devices_file import FleetDevice, read_devices, select_devices
from edgerec.deploy.fleet import DeviceOutcome, deploy_to_fleet, run_on_fleet
from edgerec.deploy.fleet_status import DeviceReport, fleet_status
from edgerec.deploy.operation import DeployOptions, DeployResult, Step
from edgerec.deploy.release import deploy_bundle, device_status, remove, rollback

__all__ = [
    "DeployOptions",
    "DeployResult",
    "Device",
    "DeviceOutcome",
    "DeviceReport",
    "DeviceStatus",
    "FleetDevice",
    "Step",
    "deploy_bundle",
    "deploy_to_fleet",
    "device_status",
    "fleet_status",
    "read_devices",
    "remove",
    "rollback",
    "run_on_fleet",
    "select_devices",
]
