"""Check the cameras and, if there is a CSI camera module, picamera2."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgerec.doctor.check_result import CheckResult, note, ok, problem
from edgerec.doctor.check_system import System
from edgerec.runtime.device_users import programs_using
from edgerec.runtime.video_devices import ROOT, VideoDevice, list_video_devices
from edgerec.utils.child_process import ask_python
from edgerec.utils.text import printable

_SYSTEM_SITE = "usr/lib/python3/dist-packages/picamera2"
# This code runs in a child process, because a faulty camera driver may hang.
_QUERY = """
import fcntl, json, os, struct, sys
replies = {}
for path in sys.argv[1:]:
    try:
        device = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except OSError as error:
        replies[path] = [error.strerror, 0, ""]
        continue
    try:
        reply = fcntl.ioctl(device, 0x80685600, bytes(104))
        everything, own = struct.unpack("84x2I12x", reply)
        card = reply[16:48].split(bytes(1))[0].decode("utf-8", "replace")
        replies[path] = ["", own if everything & 0x80000000 else everything, card]
    except OSError as error:
        replies[path] = [error.strerror, 0, ""]
    finally:
        os.close(device)
print(json.dumps(replies))
"""
_CAPTURE, _MEMORY_TO_MEMORY = 0x1 | 0x1000, 0x8000 | 0x4000


@dataclass(frozen=True)
class Cameras:
    """A machine's cameras.

    Attributes:
        devices: video devices, sorted by number.
        hidden: names of devices listed by the kernel but missing from /dev, e.g. in a container.
        picamera2: error if picamera2 cannot be imported, an empty string if it can, or None if it is not installed.
        system_has_picamera2: whether picamera2 is installed for the system's Python.
    """

    devices: tuple[VideoDevice, ...] = ()
    hidden: tuple[str, ...] = ()
    picamera2: str | None = None
    system_has_picamera2: bool = False


def collect(root: Path = ROOT) -> Cameras:
    """Return this machine's cameras. Cameras can be listed only on Linux.

    Args:
        root: folder that contains ``sys``, ``dev`` and ``usr``.
    """
    devices, hidden = list_video_devices(root)
    replies, failure = ask_python(_QUERY, *(device.path for device in devices)) if devices else ({}, "")
    return Cameras(
        devices=tuple(_with_reply(device, (replies or {}).get(device.path, [failure, 0, ""])) for device in devices),
        hidden=tuple(hidden),
        picamera2=_import_error(),
        system_has_picamera2=(root / _SYSTEM_SITE).is_dir(),
    )


def check(cameras: Cameras, system: System) -> list[CheckResult]:
    """Check the cameras and, if required, picamera2."""
    if system.os != "Linux":
        detail = "edgerec doctor cannot list cameras on this system: try --source 0"
        if system.os == "Darwin":
            detail += (
                ". macOS asks for permission once. To change it, open System Settings > Privacy & Security > Camera"
            )
        return [ok("camera", detail)]
    modules = [device for device in cameras.devices if device.raw and device.capture is not None and not device.users]
    others = [device for device in cameras.devices if not device.helper and device not in modules]
    results = [_check_camera(device, system) for device in others]
    if modules:
        belong = "belongs" if len(modules) == 1 else "belong"
        detail = f"{_range(modules)} {belong} to a camera module (CSI): use --source auto or --source picamera2:0"
        results.append(ok("camera", detail))
    if helpers := [device for device in cameras.devices if device.helper]:
        names = ", ".join(dict.fromkeys(device.driver or device.name for device in helpers))
        kind = "is not a camera" if len(helpers) == 1 else "are not cameras"
        results.append(ok("camera", f"{_range(helpers)} {kind}: {names}"))
    if cameras.hidden:
        detail = f"{', '.join(cameras.hidden)} not available in this container"
        results.append(note("camera", detail, "docker run --device /dev/video0 …"))
    has_module = any(device.raw for device in cameras.devices)
    if all(device.helper for device in cameras.devices) and not cameras.hidden:
        command = "rpicam-hello --list-cameras" if system.pi else "v4l2-ctl --list-devices"
        detail = "no camera found: connect one, or use a stream, a video or a folder as the source"
        results.append(note("camera", detail, command))
    return [*results, *_check_picamera2(cameras, system, has_module)]


def _check_camera(device: VideoDevice, system: System) -> CheckResult:
    camera = f"{device.path} ({device.name})"
    if device.capture is None and "ermission" in device.reason:
        detail = f"permission denied for {camera}, which is only accessible to the group video"
        return problem("camera", detail, system.join("video"))
    if device.users:
        process = re.search(r"process (\d+)", device.users[0])
        return note(
            "camera", f"{camera} is in use by {', '.join(device.users)}", f"kill {process[1]}" if process else ""
        )
    if device.capture is None:
        return problem("camera", f"{camera} cannot be opened: {device.reason}")
    return ok("camera", f"{camera}: use --source {device.path.removeprefix('/dev/video')}")


def _check_picamera2(cameras: Cameras, system: System, has_module: bool) -> list[CheckResult]:
    report = problem if has_module else note  # Only camera modules (CSI) require picamera2.
    new_environment = "/usr/bin/python3 -m venv --clear --system-site-packages .venv"
    if cameras.picamera2 == "":
        return [ok("picamera2", "picamera2 can be imported")]
    if cameras.picamera2 is not None:
        if "size changed" in cameras.picamera2 or "numpy" in cameras.picamera2:
            detail = (
                "picamera2 cannot be imported, because the system's simplejpeg was built for a different NumPy version"
            )
            return [report("picamera2", detail, "pip install --upgrade --force-reinstall simplejpeg")]
        return [report("picamera2", f"picamera2 cannot be imported: {cameras.picamera2}", new_environment)]
    if cameras.system_has_picamera2:
        detail = "picamera2 is installed for the system's Python, but this environment does not include system packages"
        return [report("picamera2", detail, new_environment)]
    if has_module:
        detail = "picamera2, which is required for the camera module (CSI), is not installed"
        install = f"{system.sudo}apt-get install --no-install-recommends python3-picamera2"
        return [problem("picamera2", detail, f"{install} && {new_environment}")]
    return []


def _with_reply(device: VideoDevice, reply: Sequence[Any]) -> VideoDevice:
    """Return a copy of a device with the name and capabilities, or the error, that VIDIOC_QUERYCAP returned."""
    reason, flags, card = reply
    if reason == os.strerror(errno.ENOTTY):  # A regular file does not support ioctl().
        return device
    if reason:
        return replace(device, capture=None, reason=str(reason))
    capture = bool(int(flags) & _CAPTURE and not int(flags) & _MEMORY_TO_MEMORY)
    return replace(
        device,
        name=printable(card) or device.name,
        capture=capture,
        users=tuple(programs_using(device.path)) if capture else (),
    )


def _import_error() -> str | None:
    """Return the error if picamera2 cannot be imported, an empty string if it can, or None if it is not installed."""
    if importlib.util.find_spec("picamera2") is None:
        return None
    return ask_python("import picamera2; print(1)")[1]


def _range(devices: list[VideoDevice]) -> str:
    paths = [device.path for device in devices]
    return paths[0] if len(paths) == 1 else f"{paths[0]} … {paths[-1].removeprefix('/dev/')} ({len(paths)})"
