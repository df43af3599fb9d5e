"""Check the cameras, and picamera2, which a camera module (CSI) needs."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgerec.doctor.finding import Finding, note, ok, problem
from edgerec.doctor.system import System
from edgerec.runtime.device_users import programs_using
from edgerec.runtime.video_devices import ROOT, list_video_devices
from edgerec.runtime.video_devices import VideoDevice as Node
from edgerec.utils.child_process import ask_python
from edgerec.utils.text import printable

_SYSTEM_SITE = "usr/lib/python3/dist-packages/picamera2"
# Run VIDIOC_QUERYCAP (linux/videodev2.h) for each device, in a child process because a stuck driver may hang.
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
    """The cameras of a machine.

    Attributes:
        nodes: video devices, in the order of their numbers.
        hidden: names of devices that the kernel lists but that are missing in /dev, e.g. in a container.
        picamera2: reason why picamera2 cannot be imported; empty if it can, None if it is not installed.
        system_has_picamera2: whether picamera2 is installed for the system's Python.
    """

    nodes: tuple[Node, ...] = ()
    hidden: tuple[str, ...] = ()
    picamera2: str | None = None
    system_has_picamera2: bool = False


def collect(root: Path = ROOT) -> Cameras:
    """Return the cameras of this machine; none on other systems than Linux.

    Args:
        root: folder that contains ``sys``, ``dev`` and ``usr``.
    """
    devices, hidden = list_video_devices(root)
    replies, failure = ask_python(_QUERY, *(device.path for device in devices)) if devices else ({}, "")
    return Cameras(
        nodes=tuple(_with_reply(device, (replies or {}).get(device.path, [failure, 0, ""])) for device in devices),
        hidden=tuple(hidden),
        picamera2=_import_error(),
        system_has_picamera2=(root / _SYSTEM_SITE).is_dir(),
    )


def findings(cameras: Cameras, system: System) -> list[Finding]:
    """Return the findings about each camera, other video devices, and picamera2."""
    if system.os != "Linux":
        detail = "edgerec doctor does not search for cameras on this system: try --source 0"
        if system.os == "Darwin":
            detail += ". macOS asks for permission once; change it in System Settings > Privacy & Security > Camera"
        return [ok("camera", detail)]
    modules = [node for node in cameras.nodes if node.raw and node.capture is not None and not node.users]
    result = [
        finding
        for node in cameras.nodes
        if not node.helper and node not in modules
        for finding in _camera_findings(node, system)
    ]
    if modules:
        belong = "belongs" if len(modules) == 1 else "belong"
        detail = f"{_range(modules)} {belong} to a camera module (CSI): use --source auto or --source picamera2:0"
        result.append(ok("camera", detail))
    if helpers := [node for node in cameras.nodes if node.helper]:
        names = ", ".join(dict.fromkeys(node.driver or node.name for node in helpers))
        kind = "is not a camera" if len(helpers) == 1 else "are not cameras"
        result.append(ok("camera", f"{_range(helpers)} {kind}: {names}"))
    if cameras.hidden:
        detail = f"{', '.join(cameras.hidden)}: not available in this container"
        result.append(note("camera", detail, "docker run --device /dev/video0 …"))
    has_module = any(node.raw for node in cameras.nodes)
    if all(node.helper for node in cameras.nodes) and not cameras.hidden:
        command = "rpicam-hello --list-cameras" if system.pi else "v4l2-ctl --list-devices"
        detail = "no camera was found: connect one, or use a stream, a video or a folder as the source"
        result.append(note("camera", detail, command))
    return result + _picamera2_findings(cameras, system, has_module)


def _camera_findings(node: Node, system: System) -> list[Finding]:
    camera = f"{node.path} ({node.name})"
    if node.capture is None and "ermission" in node.reason:
        return [
            problem("camera", f"permission denied for {camera}: only the group video may use it", system.join("video"))
        ]
    if node.users:
        process = re.search(r"process (\d+)", node.users[0])
        return [
            note("camera", f"{camera} is in use by {', '.join(node.users)}", f"kill {process[1]}" if process else "")
        ]
    if node.capture is None:
        return [problem("camera", f"{camera} cannot be opened: {node.reason}")]
    return [ok("camera", f"{camera}: use --source {node.path.removeprefix('/dev/video')}")]


def _picamera2_findings(cameras: Cameras, system: System, has_module: bool) -> list[Finding]:
    report = problem if has_module else note  # only a camera module needs picamera2
    new_environment = "/usr/bin/python3 -m venv --clear --system-site-packages .venv"
    if cameras.picamera2 == "":
        return [ok("picamera2", "it can be imported")]
    if cameras.picamera2 is not None:
        if "size changed" in cameras.picamera2 or "numpy" in cameras.picamera2:
            detail = (
                "it cannot be imported, because the system's simplejpeg was built for another NumPy than the one in "
                "this environment"
            )
            return [report("picamera2", detail, "pip install --upgrade --force-reinstall simplejpeg")]
        return [report("picamera2", f"it cannot be imported: {cameras.picamera2}", new_environment)]
    if cameras.system_has_picamera2:
        detail = "it is installed for the system's Python, but this environment does not see the system's packages"
        return [report("picamera2", detail, new_environment)]
    if has_module:
        detail = "it is not installed, but the camera module (CSI) needs it"
        install = f"{system.sudo}apt-get install --no-install-recommends python3-picamera2"
        return [problem("picamera2", detail, f"{install} && {new_environment}")]
    return []


def _with_reply(device: Node, reply: Sequence[Any]) -> Node:
    """Return the device with the reply of the kernel to VIDIOC_QUERYCAP: an error, the capabilities and the name."""
    reason, flags, card = reply
    if reason == os.strerror(errno.ENOTTY):  # not a device file, e.g. if root is a copy from another machine
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
    """Return why picamera2 cannot be imported; empty if it can, None if it is not installed."""
    if importlib.util.find_spec("picamera2") is None:
        return None
    return ask_python("import picamera2; print(1)")[1]


def _range(nodes: list[Node]) -> str:
    paths = [node.path for node in nodes]
    return paths[0] if len(paths) == 1 else f"{paths[0]} … {paths[-1].removeprefix('/dev/')} ({len(paths)})"
