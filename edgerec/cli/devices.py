"""Implement the ``edgerec devices`` command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgerec.cli.output import JsonOption, parse_duration_s, say, show_json, table
from edgerec.utils.text import shortened

if TYPE_CHECKING:
    from edgerec.deploy.fleet_status import DeviceReport

DEVICES_HELP = "TOML file that lists the devices."
TAG_HELP = "Show only devices with this tag. May be repeated."
_COLUMNS = ("device", "state", "bundle", "release", "fps", "last decision", "temperature", "free", "last seen")
_OPTIONAL = ("last seen", "temperature", "free", "release", "bundle")
# Maximum length, in characters, of a name, release digest or label in the table. A faulty device may send longer
# values.
_MAX_CHARACTERS = 60
_UNITS_S = ((86400, "d"), (3600, "h"), (60, "min"))


def devices(
    names: list[str] | None = typer.Argument(
        None, metavar="NAME", show_default=False, help="Names of the devices. [default: all devices in the file]"
    ),
    tag: list[str] = typer.Option([], metavar="TAG", help=TAG_HELP),
    devices_file: Path = typer.Option(Path("devices.toml"), "--devices", metavar="FILE", help=DEVICES_HELP),
    timeout: str = typer.Option("20s", metavar="DURATION", help="Maximum time to wait for a device."),
    json: bool = JsonOption,
) -> None:
    """Show the bundle and the state of the camera on each device.

    The exit code is 1 if a device is unreachable.
    """
    from edgerec.deploy.devices_file import read_devices, select_devices
    from edgerec.deploy.fleet_status import fleet_status
    from edgerec.errors import MAX_MESSAGE_CHARACTERS

    timeout_s = parse_duration_s(timeout, "--timeout")
    selected = select_devices(read_devices(devices_file), names or (), tag)
    reports = fleet_status(selected, timeout_s=timeout_s)
    if json:
        show_json([report.to_dict() for report in reports])
    else:
        table(_COLUMNS, [_row(report) for report in reports], optional=_OPTIONAL)
        for report in reports:
            if report.error:
                say(f"{report.name}: {shortened(report.error, MAX_MESSAGE_CHARACTERS)}")
    if any(report.status is None for report in reports):
        raise typer.Exit(1)


def _row(report: DeviceReport) -> tuple[str, ...]:
    status, camera = report.status, report.camera
    last = camera and camera["last"]
    temperature_c = camera and camera["temperature_c"]
    return (
        report.name,
        report.state,
        shortened(status.name, _MAX_CHARACTERS) if status and status.name else "–",
        shortened(status.release, _MAX_CHARACTERS) if status and status.release else "–",
        f"{camera['fps']:.1f}" if camera else "–",
        f"{shortened(last['label'], _MAX_CHARACTERS)} {last['score']:.2f}" if last else "–",
        "–" if temperature_c is None else f"{temperature_c:.0f} °C",
        _size(status.free_bytes) if status else "–",
        "now" if status else _ago(report.seen_s),
    )


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"


def _ago(seen_s: float | None) -> str:
    """Return how long ago an unreachable device last responded."""
    if seen_s is None:
        return "never"
    passed_s = max(0.0, time.time() - seen_s)
    for unit_s, unit in _UNITS_S:
        if passed_s >= unit_s:
            return f"{passed_s / unit_s:.0f} {unit} ago"
    return "< 1 min ago"
