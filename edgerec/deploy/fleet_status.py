"""Query the status of several devices at the same time."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgerec.contract.status import CameraStatus, check_status
from edgerec.deploy.device import Device, DeviceStatus
from edgerec.deploy.devices_file import FleetDevice
from edgerec.deploy.release import device_status
from edgerec.deploy.worker_threads import start_worker
from edgerec.errors import EdgerecError
from edgerec.utils.atomic import cache_folder, sha256, write_file
from edgerec.utils.bounded_parsing import read_json
from edgerec.utils.text import to_json

DEFAULT_TIMEOUT_S = 20.0
MAX_PARALLEL = 32
# Age of the status file in seconds above which the camera is considered hanging.
HANGING_S = 15.0
_POLL_S = 0.1


@dataclass(frozen=True)
class DeviceReport:
    """Status of a device, or the reason why the device is unreachable.

    Attributes:
        name: name of the device.
        address: address of the device.
        tags: tags of the device.
        state: ``running``, ``on trial``, ``no frames`` (no source delivers frames), ``hanging``, ``starting``,
            ``stopped``, ``failed``, ``not installed`` or ``unreachable``.
        status: installed releases and status of the camera. None if the device is unreachable.
        error: reason why the device is unreachable or delivers no frames, or an empty string.
        seen_s: time of the last response from the device, as Unix time in seconds, or None if it is unknown.
    """

    name: str
    address: str
    tags: tuple[str, ...]
    state: str
    status: DeviceStatus | None = None
    error: str = ""
    seen_s: float | None = None

    @property
    def camera(self) -> CameraStatus | None:
        """Status of the camera, or None if the camera is not running or its status file is invalid."""
        try:
            return check_status(self.status.camera) if self.status and self.status.camera else None
        except ValueError:
            return None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-serializable dictionary."""
        return {**vars(self), "tags": list(self.tags), "status": self.status and self.status.to_dict()}


def fleet_status(
    devices: Sequence[FleetDevice],
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    parallel: int = MAX_PARALLEL,
    query: Callable[[Device], DeviceStatus] = device_status,
) -> list[DeviceReport]:
    """Query the status of several devices in parallel.

    Args:
        devices: the devices.
        timeout_s: time in seconds after which a device is reported as unreachable.
        parallel: maximum number of simultaneous connections.
        query: function that returns the status of a device.

    Returns:
        A report for each device, in the order of ``devices``.
    """
    reports: dict[int, DeviceReport] = {}
    waiting = list(reversed(range(len(devices))))
    results = queue.SimpleQueue[tuple[int, DeviceReport | BaseException]]()
    deadlines_s: dict[int, float] = {}

    def report(index: int) -> DeviceReport:
        return _report(devices[index], timeout_s, query)

    while len(reports) < len(devices):
        while waiting and len(deadlines_s) < parallel:
            deadlines_s[index := waiting.pop()] = time.monotonic() + timeout_s
            start_worker(report, index, results, "edgerec-device-status")
        try:
            index, result = results.get(timeout=_POLL_S)
        except queue.Empty:
            now_s = time.monotonic()
            for index in [index for index, deadline_s in deadlines_s.items() if now_s >= deadline_s]:
                # A thread that waits for a device cannot be stopped, so the device is reported as unreachable.
                del deadlines_s[index]
                reports[index] = _unreachable(devices[index], f"no response within {timeout_s:g} s")
            continue
        if isinstance(result, BaseException):
            raise result
        deadlines_s.pop(index, None)
        reports.setdefault(index, result)
    return [reports[index] for index in range(len(devices))]


def _report(entry: FleetDevice, timeout_s: float, query: Callable[[Device], DeviceStatus]) -> DeviceReport:
    device = replace(
        entry.device, interactive=False, connect_timeout_s=min(entry.device.connect_timeout_s, max(1.0, timeout_s))
    )
    try:
        status = query(device)
    except (EdgerecError, OSError) as error:
        return _unreachable(entry, str(error))
    now_s = round(time.time(), 3)
    _remember(entry, now_s)
    report = DeviceReport(entry.name, device.address, entry.tags, "", status, seen_s=now_s)
    state, reason = _state(report)
    return replace(report, state=state, error=reason)


def _unreachable(entry: FleetDevice, reason: str) -> DeviceReport:
    prefix = f"cannot connect to {entry.name}: "
    return DeviceReport(
        entry.name,
        entry.device.address,
        entry.tags,
        "unreachable",
        error=reason.removeprefix(prefix),
        seen_s=_last_seen(entry),
    )


def _state(report: DeviceReport) -> tuple[str, str]:
    """Return the state of a device and, if the camera does not work, the reason."""
    status, camera = report.status, report.camera
    assert status is not None
    if not status.release:
        return "not installed", ""
    if status.service == "failed":
        return "failed", "the service failed: run journalctl -u edgerec on the device"
    if status.service in ("inactive", "deactivating"):
        return "stopped", ""
    if not status.camera:
        return "starting", ""
    if camera is None:
        return "running", "the status of the camera has an unknown format: deploy a bundle of this version of edgerec"
    if status.age_s is not None and status.age_s > HANGING_S:
        return "hanging", f"the camera has not updated its status for {status.age_s:.0f} s"
    sources = camera["sources"]
    if sources and not any(source["state"] == "live" for source in sources):
        source = sources[0]
        reason = f" ({source['reason']})" if source["reason"] else ""
        return "no frames", f"{source['name']} is {source['state']}{reason}"
    return ("on trial" if status.on_trial else "running"), ""


def _memory_file(entry: FleetDevice) -> Any:
    """Return the path of the cache file that stores the time of a device's last response on the host."""
    device = entry.device
    key = sha256(f"{device.address} {device.port} {device.ssh_config}".encode())[:16]
    return cache_folder() / "devices" / f"{key}.json"


def _remember(entry: FleetDevice, seen_s: float) -> None:
    try:
        write_file(_memory_file(entry), to_json({"name": entry.name, "seen_s": seen_s}))
    except (EdgerecError, OSError):  # The status is still shown if the cache cannot be written.
        return


def _last_seen(entry: FleetDevice) -> float | None:
    try:
        seen_s = read_json(_memory_file(entry))["seen_s"]
    except (EdgerecError, OSError, ValueError, KeyError, TypeError):
        return None
    return seen_s if isinstance(seen_s, float) else None
