"""Damaged files of settings: camera.toml, devices.toml, the files of allowed and revoked keys, and signatures."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from edgerec import Bundle, CameraConfig, sign_bundle
from edgerec.deploy.devices_file import read_devices, select_devices
from edgerec.deploy.service_config import read_config
from edgerec.errors import EdgerecError
from fuzzing.mutate import damaged_bytes, damaged_text, damaged_values
from fuzzing.tally import Attempt, Broken

SECRET = "hush4711"
_CAMERA = f"""
sources = ["rtsp://me:{SECRET}@camera.local/1", "0"]
threshold = 0.5
output = "none"
capture = {{ width = 640, height = 480, fps = 30.0, fourcc = "MJPG" }}
timeouts = {{ open_s = 15.0, give_up_s = 60 }}
frames = {{ roi = [0.25, 0, 0.5, 1], rotate = 90, every = 2, motion = 0.1 }}
decision = {{ smoothing = "vote", memory = 9, votes = 5, thresholds = {{ go = 0.75 }} }}
delegate_options = {{ device = "usb:1" }}
csv = {{ path = "log.csv", existing = "append" }}
video = {{ path = "video.mp4" }}
images = {{ folder = "images", max_bytes = "500MB", rule = "changes" }}
mqtt = {{ url = "mqtt://me:{SECRET}@127.0.0.1/home", results_per_s = 1 }}
webhook = {{ url = "https://me:{SECRET}@127.0.0.1/hook", secret = "{SECRET}" }}
metrics = {{ address = "9464" }}
web = {{ address = "127.0.0.1:8000", token = "{SECRET}-token" }}
[[region]]
name = "door"
roi = [0.1, 0.2, 0.25, 0.6]
source = "0"
decision = {{ hysteresis = 0.1 }}
[[action]]
on = ["open", "unknown"]
region = "door"
command = ["/bin/true", "x"]
timeout_s = 5
[[action]]
on = "any"
gpio = 17
pulse_s = 1.5
"""
_DEVICES = """
defaults = { port = 2222, tags = ["all"], prefix = "/srv/edgerec", ssh_config = "config" }
[[device]]
name = "door"
host = "pi@10.0.0.5"
tags = ["canary"]
[[device]]
name = "gate"
host = "gate"
port = 22
config = "gate.toml"
bundle = "bundles/signs"
"""


@contextlib.contextmanager
def settings(bundle: Path, work: Path) -> Iterator[Attempt]:
    """Read a damaged file with the function that reads it in edgerec."""
    devices = tomllib.loads(_DEVICES)
    bundle_key = f"bundle = {str(bundle)!r}\n"
    camera = tomllib.loads(bundle_key + _CAMERA)
    service = tomllib.loads(re.sub(f'"[^"]*{SECRET}[^"]*"', '"env:SECRET"', _CAMERA))
    signed, keys = work / "signed", work / "keys"
    shutil.copytree(bundle, signed, dirs_exist_ok=True)
    key = work / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    sign_bundle(signed, key, serial=3)
    public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
    allowed = f'# devices\nalice@example.com,!bob namespaces="*",valid-after="20200101" {public} a comment\n'
    valid = {"allowed": allowed, "revoked": "# none\n", "signature": (signed / "manifest.json.sig").read_text()}
    paths = {"allowed": keys, "revoked": work / "revoked", "signature": signed / "manifest.json.sig"}

    def attempt(rng: Random) -> None:
        path, kind = work / "damaged.toml", rng.choice(("camera", "service", "devices", "signatures"))
        if kind == "signatures":
            name = rng.choice(list(valid))
            text = damaged_text(rng, valid[name])
            for each in valid:
                paths[each].write_text(valid[each])
            paths[name].write_bytes(_encoded(rng, text))
            Bundle.open(signed, allowed_signers=keys, revoked_keys=rng.choice((None, paths["revoked"])))
            return
        text = to_toml(damaged_values(rng, {"camera": camera, "service": service, "devices": devices}[kind]))
        path.write_bytes(_encoded(rng, text))
        path.chmod(0o600)
        if kind == "devices":
            found = read_devices(path)
            if select_devices(found) != found or select_devices(found, [found[0].name])[0] != found[0]:
                raise Broken("the devices cannot be selected")
            return
        try:
            if kind == "service":
                read_config(path, bundle)
                path.write_text(bundle_key + path.read_text())
            config = CameraConfig.from_file(path)
            if kind == "service":
                path.write_text(config.to_toml(work))
                if CameraConfig.from_file(path) != config:
                    raise Broken(f"to_toml() changes {config!r}")
        except EdgerecError as error:
            if SECRET in str(error):
                raise Broken(f"shows a password: {error}") from None
            raise
        if SECRET in repr(config):
            raise Broken(f"shows a password: {config!r}")

    yield attempt


def _encoded(rng: Random, text: str) -> bytes:
    content = text.encode("utf-8", "surrogatepass")
    return damaged_bytes(rng, content) if rng.random() < 0.15 else content


def to_toml(values: dict[str, Any]) -> str:
    """Convert values to TOML, with inline tables and with ``null``, which is not valid, for None."""
    return "".join(f"{json.dumps(key)} = {_toml(value)}\n" for key, value in values.items())


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{json.dumps(key)} = {_toml(item)}' for key, item in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
