"""List the Linux kernel's video devices: USB cameras, Raspberry Pi camera modules and codecs."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from edgerec.utils.text import printable

ROOT = Path("/")
# Drivers of CSI camera modules, whose raw images only libcamera can process.
_CAMERA_MODULE = re.compile(r"unicam|rp1-cfe")
# The Linux kernel also lists codecs and image signal processors as video devices.
_HELPERS = re.compile(r"codec|(?<![a-z])isp|rkisp|pisp|hevc|rpivid|stateless|decoder|encoder")


@dataclass(frozen=True)
class VideoDevice:
    """A device ``/dev/videoN``.

    Attributes:
        path: device file path.
        name: the device's display name.
        driver: name of the kernel driver, or an empty string if it is unknown.
        capture: whether the device delivers images, or None if it cannot be opened.
        reason: reason why the device cannot be opened.
        users: other programs that have opened the device.
    """

    path: str
    name: str = "camera"
    driver: str = ""
    capture: bool | None = True
    reason: str = ""
    users: tuple[str, ...] = ()

    @property
    def raw(self) -> bool:
        """Whether the device is a CSI camera module, which only libcamera can use."""
        return bool(_CAMERA_MODULE.search(f"{self.driver} {self.name}"))

    @property
    def helper(self) -> bool:
        """Whether the device is not a camera, but e.g. a codec or an image signal processor."""
        return not self.raw and (self.capture is False or bool(_HELPERS.search(f"{self.driver} {self.name}".lower())))


def list_video_devices(root: Path = ROOT) -> tuple[list[VideoDevice], list[str]]:
    """Return the video devices in ``/dev``, and the names of devices without a file in ``/dev``.

    The devices are not opened. ``capture`` is False for a device without an image stream, such as the device for the
    metadata of a USB camera.

    Args:
        root: folder that contains ``sys`` and ``dev``.
    """
    entries = sorted((root / "sys/class/video4linux").glob("video*"), key=_number)
    present = [entry for entry in entries if (root / "dev" / entry.name).exists()]
    return [_device(entry, root) for entry in present], [entry.name for entry in entries if entry not in present]


def _device(entry: Path, root: Path) -> VideoDevice:
    driver = os.path.basename(os.path.realpath(entry / "device" / "driver"))
    name = printable(read_text(entry / "name"))
    main = read_text(entry / "index") in ("", "0")
    return VideoDevice(str(root / "dev" / entry.name), name or "camera", "" if driver == "driver" else driver, main)


def _number(entry: Path) -> int:
    digits = entry.name.removeprefix("video")
    return int(digits) if digits.isdecimal() else 0


def read_text(path: Path) -> str:
    """Return the content of a system file, or an empty string if the file cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \t\r\n")
    except OSError:
        return ""
