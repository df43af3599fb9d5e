"""Read and validate a camera configuration before it is installed on a device."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgerec.camera.config import CameraConfig
from edgerec.camera.config_reader import build, read_values
from edgerec.errors import ConfigError, DeployError
from edgerec.utils.atomic import read_at_most
from edgerec.utils.bounded_parsing import parse_toml

MAX_CONFIG_BYTES = 1 << 20
# Keys that the service overrides with options on its command line, and the reasons, which follow "the service".
_KEYS_OF_SERVICE = {"bundle": "runs the deployed bundle", "status_file": "writes its status to its own file"}
DEFAULT_CONFIG = """\
# Configuration of the camera service. After a change, run: systemctl restart edgerec
# Passwords and tokens belong in /etc/edgerec/secrets.env.

# auto uses the camera module of a Raspberry Pi if there is one, otherwise the first USB camera. For an address with a
# password, write "env:CAMERA" here, and add the line CAMERA=rtsp://USER:PASSWORD@HOST/PATH to secrets.env.
sources = ["auto"]
output = "none"

# The web page shows the predictions. To serve it to the network, use the address "0.0.0.0:8000".
[web]
address = "127.0.0.1:8000"
"""


def uses_first_camera(config: str) -> bool:
    """Return whether a valid configuration contains the source ``auto``, which requires a camera."""
    return "auto" in parse_toml(config).get("sources", ())


def read_config(path: Path | None, bundle: Path) -> str | None:
    """Read and validate a configuration file of the camera.

    Raises:
        ConfigError: the configuration is invalid, contains a password or token or a key that has no effect on a device,
            or requires a display.
        DeployError: the file cannot be read.
    """
    if path is None:
        return None
    text = read_text(path)
    with tempfile.TemporaryDirectory() as folder:
        # All users of a device can read the file, so reject a file with passwords by validating a copy with that mode.
        copy = Path(folder, path.name)
        copy.write_text(text, encoding="utf-8")
        copy.chmod(0o644)
        try:
            values = read_values(CameraConfig, copy)
            for key, reason in _KEYS_OF_SERVICE.items():
                if key in values:
                    raise ConfigError(
                        f"{path}: {key}", f"has no effect on a device, because the service {reason}: delete this key"
                    )
            camera = build(CameraConfig, {**values, "bundle": bundle})
        except ConfigError as error:
            problem = error.problem.partition(", but other users can access")[0]
            if problem != error.problem:
                problem += ", but all users of the device can read this file: use env:NAME or @FILE instead"
            raise ConfigError(error.field.replace(str(copy), str(path)), problem) from None
    if camera.output == "window":
        raise ConfigError(
            f"{path}: output",
            'is "window", which is the default, but the service on a device has no display: add output = "none"',
        )
    return text


def read_text(path: Path) -> str:
    """Return the content of a text file.

    Raises:
        DeployError: the file cannot be read or is not a text file.
    """
    try:
        return read_at_most(path, MAX_CONFIG_BYTES).decode()
    except OSError as error:
        raise DeployError(f"{path} cannot be read ({error.strerror}): check the path") from None
    except UnicodeDecodeError:
        raise DeployError(f"{path} is not a text file: check the path") from None
