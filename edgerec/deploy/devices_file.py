"""Read ``devices.toml``, which lists the devices of a fleet."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgerec.contract.toml_settings import from_settings, read_settings
from edgerec.deploy.device import PREFIX, PREFIX_RULE, Device, is_valid_prefix
from edgerec.errors import DeployError, unknown
from edgerec.utils.atomic import user_path

DEVICES_FILE = "devices.toml"
MAX_DEVICES = 1000
# The name of a device must not start with "-" or contain "@", so that it differs from an option and an address.
_NAME = re.compile(r"\w[\w.-]{0,63}")
_ADDRESS = re.compile(r"(?:(?!-)[^\s@/]+@)?(?!-)[^\s@/]+")
_TAG = re.compile(r"\w[\w.-]{0,63}")


@dataclass(frozen=True)
class FleetDevice:
    """A device in ``devices.toml``.

    Attributes:
        device: address of the device.
        tags: tags by which devices are selected.
        config: configuration file of the camera, or None to keep the device's configuration.
        bundle: bundle to deploy to this device, or None to use the bundle on the command line.
    """

    device: Device
    tags: tuple[str, ...] = ()
    config: Path | None = None
    bundle: Path | None = None

    @property
    def name(self) -> str:
        """Display name of the device, or its address if it has no name."""
        return self.device.label


def _text(pattern: re.Pattern[str], expected: str) -> dict[str, Any]:
    return {"is_valid": lambda value: value is None or bool(pattern.fullmatch(value)), "expected": expected}


def _tags() -> dict[str, Any]:
    return {
        "is_valid": lambda tags: all(_TAG.fullmatch(tag) for tag in tags),
        "expected": "a list of tags, each with up to 64 letters, digits, '_', '-' and '.'",
    }


_PORT = {"is_valid": lambda port: port is None or 1 <= port <= 65535, "expected": "1 to 65535"}
_PREFIX = {"is_valid": is_valid_prefix, "expected": PREFIX_RULE}


@dataclass(frozen=True)
class _Defaults:
    """Keys that the table ``[defaults]`` in ``devices.toml`` can contain."""

    port: int | None = field(default=None, metadata=_PORT)
    tags: tuple[str, ...] = field(default=(), metadata=_tags())
    config: str | None = None
    bundle: str | None = None
    prefix: str = field(default=PREFIX, metadata=_PREFIX)
    ssh_config: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Settings(_Defaults):
    """Keys that a table ``[[device]]`` in ``devices.toml`` can contain."""

    name: str = field(metadata=_text(_NAME, "up to 64 letters, digits, '_', '-' and '.'"))
    host: str = field(metadata=_text(_ADDRESS, "user@host, or a host in the SSH configuration"))


def read_devices(path: str | Path = DEVICES_FILE) -> tuple[FleetDevice, ...]:
    """Read ``devices.toml``. Relative paths in the file are resolved against the file's folder.

    Args:
        path: TOML file with a table ``[[device]]`` for each device, and an optional table ``[defaults]``.

    Raises:
        DeployError: the file does not exist, is not valid TOML, or contains an unknown key or an invalid value.
    """
    path = user_path(path)
    values = read_settings(path, DeployError, "create it, or choose another file with --devices")
    for key in values:
        if key not in ("defaults", "device"):
            raise DeployError(f"{path}: {unknown('table', key, ('defaults', 'device'))}")
    defaults, tables = values.get("defaults", {}), values.get("device", [])
    if not isinstance(defaults, Mapping):
        raise DeployError(f"{path}: write the defaults as a table [defaults]")
    if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in tables):
        raise DeployError(f"{path}: write each device as a table [[device]]")
    if not tables:
        raise DeployError(f"{path} lists no devices: add a table [[device]] with the keys name and host")
    if len(tables) > MAX_DEVICES:
        raise DeployError(f"{path} lists {len(tables)} devices, but at most {MAX_DEVICES} are allowed: split the file")
    from_settings(_Defaults, defaults, f"{path}: [defaults]", "device", DeployError)
    devices = tuple(
        _device(path, number, {**defaults, **table}, where=_place(path, number, table))
        for number, table in enumerate(tables, 1)
    )
    _refuse_duplicates(path, "name", [device.name for device in devices])
    places = [(d.device.address, d.device.port, d.device.ssh_config, d.device.prefix) for d in devices]
    _refuse_duplicates(path, "host", places)
    return devices


def select_devices(
    devices: Sequence[FleetDevice], names: Iterable[str] = (), tags: Iterable[str] = ()
) -> tuple[FleetDevice, ...]:
    """Select the devices that match any of the names or tags. Without names and tags, select all devices.

    Returns:
        The selected devices, in the order of ``devices``.

    Raises:
        DeployError: no device has one of the names or tags.
    """
    names, tags = set(names), set(tags)
    for name in sorted(names - {device.name for device in devices}):
        raise DeployError(unknown("device", name, (device.name for device in devices)))
    known_tags = {tag for device in devices for tag in device.tags}
    for tag in sorted(tags - known_tags):
        raise DeployError(unknown("tag", tag, known_tags))
    if not names and not tags:
        return tuple(devices)
    return tuple(device for device in devices if device.name in names or not tags.isdisjoint(device.tags))


def _place(path: Path, number: int, table: Mapping[str, Any]) -> str:
    name = table.get("name")
    return f"{path}: [[device]] {number}{f' ({name})' if isinstance(name, str) and _NAME.fullmatch(name) else ''}"


def _device(path: Path, number: int, values: Mapping[str, Any], where: str) -> FleetDevice:
    settings = from_settings(_Settings, values, where, "device", DeployError)

    def relocated(name: str | None) -> Path | None:
        return path.parent / user_path(name) if name else None

    device = Device(
        settings.host,
        settings.name,
        port=settings.port,
        ssh_config=relocated(settings.ssh_config),
        prefix=settings.prefix,
    )
    return FleetDevice(device, settings.tags, relocated(settings.config), relocated(settings.bundle))


def _refuse_duplicates(path: Path, key: str, values: Sequence[Any]) -> None:
    for number, value in enumerate(values, 1):
        if (first := values.index(value) + 1) != number:
            shown = value[0] if isinstance(value, tuple) else value
            raise DeployError(
                f"{path}: [[device]] {first} and {number} have the same {key} {shown!r}: list each device only once"
            )
