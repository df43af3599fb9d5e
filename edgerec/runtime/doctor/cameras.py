"""Cameras: the files in /dev that are some, and picamera2 for a Raspberry Pi's own."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

from edgerec.runtime.doctor.child import ask
from edgerec.runtime.doctor.finding import Finding, note, ok, problem
from edgerec.runtime.doctor.system import System
from edgerec.runtime.programs import programs_using

_CLASS, _DEV = Path("/sys/class/video4linux"), Path("/dev")
_SYSTEM_SITE = Path("/usr/lib/python3/dist-packages/picamera2")
# What takes raw pictures from a ribbon cable; only libcamera makes something of them.
_RAW = re.compile(r"unicam|rp1-cfe")
# Codecs and image processors of a Raspberry Pi and others, which look like cameras.
_HELPERS = re.compile(r"codec|isp|pispbe|hevc|rpivid|stateless|decoder|encoder")
# VIDIOC_QUERYCAP of each (linux/videodev2.h): opening a camera whose driver is stuck may hang.
_QUERY = """
import fcntl, json, os, struct, sys
said = {}
for path in sys.argv[1:]:
    try:
        device = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except OSError as error:
        said[path] = [error.strerror, 0, ""]
        continue
    try:
        reply = fcntl.ioctl(device, 0x80685600, bytes(104))
        everything, own = struct.unpack("84x2I12x", reply)
        card = reply[16:48].split(bytes(1))[0].decode("utf-8", "replace")
        said[path] = ["", own if everything & 0x80000000 else everything, card]
    except OSError as error:
        said[path] = [error.strerror, 0, ""]
    finally:
        os.close(device)
print(json.dumps(said))
"""
_CAPTURE, _MEMORY_TO_MEMORY = 0x1 | 0x1000, 0x8000 | 0x4000


@dataclass(frozen=True)
class Node:
    """A file ``/dev/videoN``.

    Attributes:
        path: the file.
        name: the device's, for people.
        driver: the kernel's, where it tells.
        capture: whether it gives pictures; None where it did not open.
        reason: why it did not open.
        users: other programs that hold it open.
    """

    path: str
    name: str = "camera"
    driver: str = ""
    capture: bool | None = True
    reason: str = ""
    users: tuple[str, ...] = ()

    @property
    def raw(self) -> bool:
        """Whether it is a Raspberry Pi's own camera, which libcamera opens."""
        return bool(_RAW.search(f"{self.driver} {self.name}"))

    @property
    def helper(self) -> bool:
        """Whether it is no camera, but a codec or the like."""
        return not self.raw and (self.capture is False or bool(_HELPERS.search(f"{self.driver} {self.name}".lower())))


@dataclass(frozen=True)
class Cameras:
    """What there is.

    Attributes:
        nodes: in the order of their numbers.
        hidden: that the kernel has and /dev lacks, as in a container.
        picamera2: why it does not load here, empty when it does; None where there is none.
        system_has_picamera2: whether the system's own Python has it.
    """

    nodes: tuple[Node, ...] = ()
    hidden: tuple[str, ...] = ()
    picamera2: str | None = None
    system_has_picamera2: bool = False


def look() -> Cameras:
    """Those of this machine; only Linux tells."""
    names = sorted((path.name for path in _CLASS.glob("video*")), key=lambda name: int(name[5:] or 0))
    there = [name for name in names if (_DEV / name).exists()]
    answer = ask(_QUERY, *(str(_DEV / name) for name in there)) if there else None
    return Cameras(
        nodes=tuple(_node(name, answer.said if answer else {}, answer.reason if answer else "") for name in there),
        hidden=tuple(name for name in names if name not in there),
        picamera2=_picamera2(),
        system_has_picamera2=_SYSTEM_SITE.is_dir(),
    )


def findings(cameras: Cameras, system: System) -> list[Finding]:
    """Each camera, what is no camera, and picamera2."""
    if system.os != "Linux":
        privacy = "; macOS asks once, then: System Settings, Privacy, Camera" if system.os == "Darwin" else ""
        return [ok("camera", f"not looked for on this system: try --source 0{privacy}")]
    found = [finding for node in cameras.nodes if not node.helper for finding in _of_node(node, system)]
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
    if node.raw:
        return [ok("camera", f"{what} is a Raspberry Pi's own: --source picamera2:0")]
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
        detail = "not installed: only it opens a Raspberry Pi's own camera"
        return [problem("picamera2", detail, f"{system.sudo}apt install python3-picamera2 && {again}")]
    return []


def _node(name: str, said: dict[str, list[object]] | None, failed: str) -> Node:
    path = str(_DEV / name)
    reason, capabilities, card = (said or {}).get(path, [failed or "it says nothing", 0, ""])
    sysfs = _CLASS / name
    driver = os.path.basename(os.path.realpath(sysfs / "device" / "driver"))
    flags = int(str(capabilities))
    capture = None if reason else bool(flags & _CAPTURE and not flags & _MEMORY_TO_MEMORY)
    try:
        title = str(card) or (sysfs / "name").read_text(errors="replace").strip()
    except OSError:
        title = str(card)
    title = "".join(c if c.isprintable() else "?" for c in title)
    users = programs_using(path) if capture else []
    return Node(path, title, "" if driver == "driver" else driver, capture, str(reason), tuple(users))


def _picamera2() -> str | None:
    if importlib.util.find_spec("picamera2") is None:
        return None
    return ask("import picamera2; print(1)").reason


def _range(nodes: list[Node]) -> str:
    paths = [node.path for node in nodes]
    return paths[0] if len(paths) == 1 else f"{paths[0]} … {paths[-1].removeprefix('/dev/')} ({len(paths)})"
