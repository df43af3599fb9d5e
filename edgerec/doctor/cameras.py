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


def look(root: Path = ROOT) -> Cameras:
    """Return the cameras of this machine; none on other systems than Linux.

    Args:
        root: folder that contains ``sys``, ``dev`` and ``usr``.
    """
    devices, hidden = list_video_devices(root)
    replies, failure = ask_python(_QUERY, *(device.path for device in devices)) if devices else ({}, "")
    return Cameras(
        nodes=tuple(_queried(device, (replies or {}).get(device.path, [failure, 0, ""])) for device in devices),
        hidden=tuple(hidden),
        picamera2=_picamera2(),
        system_has_picamera2=(root / _SYSTEM_SITE).is_dir(),
    )


def findings(cameras: Cameras, system: System) -> list[Finding]:
    """Each camera, what is no camera, and picamera2."""
    if system.os != "Linux":
        privacy = "; macOS asks once, then: System Settings, Privacy, Camera" if system.os == "Darwin" else ""
        return [ok("camera", f"not looked for on this system: try --source 0{privacy}")]
    modules = [node for node in cameras.nodes if node.raw and node.capture is not None and not node.users]
    found = [
        finding
        for node in cameras.nodes
        if not node.helper and node not in modules
        for finding in _of_node(node, system)
    ]
    if modules:
        belong = "belongs" if len(modules) == 1 else "belong"
        found.append(
            ok("camera", f"{_range(modules)} {belong} to a camera module (CSI): --source auto, or picamera2:0")
        )
    if helpers := [node for node in cameras.nodes if node.helper]:
        names = ", ".join(dict.fromkeys(node.driver or node.name for node in helpers))
        found.append(ok("camera", f"{_range(helpers)} {'is none' if len(helpers) == 1 else 'are none'}: {names}"))
    if cameras.hidden:
        found.append(
            note("camera", f"{', '.join(cameras.hidden)}: not in this container", "docker run --device /dev/video0 …")
        )
    raw = any(node.raw for node in cameras.nodes)
    if all(node.helper for node in cameras.nodes) and not cameras.hidden:
        look_for = "rpicam-hello --list-cameras" if system.pi else "v4l2-ctl --list-devices"
        found.append(note("camera", "none: plug one in, or use a stream, a video or a folder", look_for))
    return found + _of_picamera2(cameras, system, raw)


def _of_node(node: Node, system: System) -> list[Finding]:
    what = f"{node.path} ({node.name})"
    if node.capture is None and "ermission" in node.reason:
        return [problem("camera", f"{what} is closed to you: it is for the group video", system.join("video"))]
    if node.users:
        process = re.search(r"process (\d+)", node.users[0])
        return [note("camera", f"{what} is in use by {', '.join(node.users)}", f"kill {process[1]}" if process else "")]
    if node.capture is None:
        return [problem("camera", f"{what} does not open: {node.reason}")]
    return [ok("camera", f"{what}: --source {node.path.removeprefix('/dev/video')}")]


def _of_picamera2(cameras: Cameras, system: System, raw: bool) -> list[Finding]:
    again = "/usr/bin/python3 -m venv --clear --system-site-packages .venv"
    if cameras.picamera2 == "":
        return [ok("picamera2", "loads")]
    if cameras.picamera2 is not None:
        if "size changed" in cameras.picamera2 or "numpy" in cameras.picamera2:
            detail = "it does not load: the system's simplejpeg is for another NumPy than this environment has"
            return [
                (problem if raw else note)("picamera2", detail, "pip install --upgrade --force-reinstall simplejpeg")
            ]
        detail = f"it does not load: {cameras.picamera2}"
        return [(problem if raw else note)("picamera2", detail, again)]
    if cameras.system_has_picamera2:
        detail = "the system has it, and this environment does not see the system's packages"
        return [(problem if raw else note)("picamera2", detail, again)]
    if raw:
        detail = "not installed, but the camera module (CSI) needs it"
        install = f"{system.sudo}apt-get install --no-install-recommends python3-picamera2"
        return [problem("picamera2", detail, f"{install} && {again}")]
    return []


def _queried(device: Node, reply: Sequence[Any]) -> Node:
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


def _picamera2() -> str | None:
    if importlib.util.find_spec("picamera2") is None:
        return None
    return ask_python("import picamera2; print(1)")[1]


def _range(nodes: list[Node]) -> str:
    paths = [node.path for node in nodes]
    return paths[0] if len(paths) == 1 else f"{paths[0]} … {paths[-1].removeprefix('/dev/')} ({len(paths)})"
