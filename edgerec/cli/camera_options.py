"""Combine the command-line options of ``edgerec camera`` with a configuration file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgerec.cli.options import parse_delegate_options, parse_key_values
from edgerec.errors import ConfigError

if TYPE_CHECKING:
    from edgerec.camera.config import CameraConfig

# Dictionary that maps the parameters of ``edgerec camera`` to the configuration keys that they set.
KEYS = {
    "bundle": "bundle",
    "allowed_signers": "allowed_signers",
    "revoked_keys": "revoked_keys",
    "source": "sources",
    "loop": "loop",
    "reduced_decoding": "reduced_decoding",
    "max_frames": "max_frames",
    "threads": "threads",
    "delegate": "delegate",
    "fallback": "fallback",
    "threshold": "threshold",
    "rate": "capture.fps",
    "pixel_format": "capture.fourcc",
    "give_up_after": "timeouts.give_up_s",
    "rotate": "frames.rotate",
    "mirror": "frames.mirror",
    "every": "frames.every",
    "max_fps": "frames.max_fps",
    "max_age": "frames.max_age_s",
    "motion": "frames.motion",
    "status_file": "status_file",
    "csv": "csv.path",
    "video": "video.path",
    "save": "images.rule",
    "save_dir": "images.folder",
    "save_max": "images.max_bytes",
    "save_below": "images.below",
    "save_every": "images.min_interval_s",
    "mqtt": "mqtt.url",
    "mqtt_results": "mqtt.results_per_s",
    "mqtt_discovery": "mqtt.discovery_prefix",
    "queue_dir": "mqtt.queue_dir",
    "webhook": "webhook.url",
    "metrics": "metrics.address",
    "web": "web.address",
    "web_token": "web.token",
    "web_save": "web.save_dir",
    "web_save_max": "web.save_max_bytes",
}
# Configuration keys, grouped by table, that are required for the other options of the same table.
_REQUIRED = {
    "csv": {"path": "--csv FILE"},
    "images": {"rule": "--save low-confidence|changes|all", "folder": "--save-dir FOLDER"},
    "mqtt": {"url": "--mqtt URL"},
    "web": {"address": "--web"},
}


def camera_config(context: typer.Context, path: Path | None) -> CameraConfig:
    """Read the configuration of the camera from a file, and apply the command-line options.

    Args:
        context: context of the command. Options that are not on the command line do not change the configuration.
        path: path of the configuration file, or None to use the default configuration.

    Raises:
        ConfigError: the file cannot be read or is invalid.
        typer.BadParameter: the value of an option is invalid.
    """
    from edgerec.camera.config import CameraConfig
    from edgerec.camera.config_reader import build, in_file, merged, read_values, typed_values

    file_values = read_values(CameraConfig, path) if path else {}
    arguments, flags = _arguments(context)
    changes, options = _changes(arguments, flags, file_values)
    try:
        values = merged(file_values, typed_values(CameraConfig, changes))
        # An option with an empty value, e.g. --mqtt "", disables a sink in the configuration file.
        for name in ("mqtt", "webhook", "metrics", "web"):
            if arguments.get(name) == "":
                values.pop(name, None)
        _check_required(options, file_values, values)
        return build(CameraConfig, values)
    except ConfigError as error:
        if option := options.get(error.field) or options.get(error.field.partition("[")[0]):
            raise typer.BadParameter(f"{option} {error.problem}") from None
        if error.field == "bundle":
            raise typer.BadParameter(
                "BUNDLE is missing: pass a bundle, or a configuration file with the key bundle to --config"
            ) from None
        if path is None:
            raise
        with in_file(path):
            raise


def write_camera_config(config: CameraConfig, path: Path, overwrite: bool) -> None:
    """Write a camera configuration to a TOML file, and print the path of the file.

    Raises:
        EdgerecError: the file exists and ``overwrite`` is false, its name does not end in .toml, or the configuration
            contains a password or token.
    """
    from edgerec.utils.atomic import checked_output, refuse_existing, write_file

    out = checked_output(path, suffixes=(".toml",))
    refuse_existing(out, overwrite)
    write_file(out, config.to_toml(out.parent))
    typer.echo(path)


def _arguments(context: typer.Context) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the options that were given on the command line.

    Returns:
        The values and the long option names, e.g. ``--csv``, both keyed by parameter name.
    """
    arguments, flags = {}, {}
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            arguments[name], flags[name] = context.params[name], max(parameter.opts, key=len)
    return arguments, flags


def _changes(
    arguments: Mapping[str, Any], flags: Mapping[str, str], file_values: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Convert command-line options into changes to the configuration.

    Returns:
        The changes as nested dictionaries, and the options keyed by dotted configuration key, e.g. ``csv.path``.
    """
    changes: dict[str, Any] = {}
    options: dict[str, str] = {}

    def change(table: str, name: str, value: Any, option: str) -> None:
        (changes.setdefault(table, {}) if table else changes)[name] = value
        options[f"{table}.{name}" if table else name] = option

    for name, value in arguments.items():
        flag = flags[name]
        if name in KEYS:
            table, _, key = KEYS[name].rpartition(".")
            change(table, key, value, flag)
        elif name == "size":
            width, height = _size(value)
            change("capture", "width", width, flag)
            change("capture", "height", height, flag)
        elif name == "roi":
            change("frames", "roi", _roi(value), flag)
        elif name == "delegate_option":
            for key, text in parse_delegate_options(value).items():
                change("delegate_options", key, text, f"{flag} {key}")
        elif name == "decision":
            for key, setting in _decision(value).items():
                change("decision", key, setting, f"{flag} {key}")
    if arguments.get("json") or arguments.get("headless"):
        is_json = bool(arguments.get("json"))
        change("", "output", "json" if is_json else "text", "--json" if is_json else "--headless")
    if arguments.get("csv_append"):
        change("csv", "existing", "append", "--csv-append")
    elif arguments.get("overwrite") and ("csv" in arguments or "csv" in file_values):
        change("csv", "existing", "overwrite", "--overwrite")
    if arguments.get("overwrite") and ("video" in arguments or "video" in file_values):
        change("video", "overwrite", True, "--overwrite")
    return changes, options


def _check_required(options: Mapping[str, str], file_values: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raise an error for options that have no effect without another option."""
    if "revoked_keys" in options and "allowed_signers" not in values:
        raise typer.BadParameter(f"{options['revoked_keys']} has no effect without --allowed-signers FILE")
    for key, option in options.items():
        table, _, name = key.partition(".")
        for required, needed in _REQUIRED.get(table, {}).items():
            if required != name and table not in file_values and required not in values.get(table, {}):
                raise typer.BadParameter(f"{option} has no effect without {needed}")


def _decision(texts: Sequence[str]) -> dict[str, Any]:
    """Parse the values of ``--decision``, in which numbers and booleans use TOML syntax."""
    if not parse_key_values(texts, "smoothing=vote"):
        return {}
    from edgerec.recipe import parse_assignment  # Importing this module at the top would slow down the start.

    return dict(map(parse_assignment, texts))


def _size(text: str) -> tuple[int, int]:
    numbers = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text or "0x0", re.IGNORECASE)
    if not numbers:
        raise typer.BadParameter(f"--size must have the form WxH, such as 1280x720, got {text!r}")
    return int(numbers[1]), int(numbers[2])


def _roi(text: str) -> tuple[float, float, float, float] | None:
    from edgerec.camera.frame_filters import parse_roi

    try:
        return parse_roi(text) if text else None
    except ConfigError as error:
        raise typer.BadParameter(f"--roi {error.problem}") from None
