"""Define the address, the image format and the protocol of frame sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from edgerec.contract.preprocess import Image
from edgerec.errors import ConfigError

# Assumed frame rate of files that do not specify a frame rate.
NOMINAL_FPS = 25.0


@dataclass(frozen=True)
class CaptureFormat:
    """A source's image format. When requesting a format, leave a field at 0 or ``""`` to use the camera's default.

    Attributes:
        width, height: image size in pixels.
        fps: frames per second.
        fourcc: four-character code of the pixel format, such as ``MJPG`` or ``YUYV``.
    """

    width: int = 0
    height: int = 0
    fps: float = 0.0
    fourcc: str = ""

    def __post_init__(self) -> None:
        if self.fourcc and not (len(self.fourcc) == 4 and self.fourcc.isascii() and self.fourcc.isprintable()):
            raise ConfigError(
                "CaptureFormat.fourcc", f"is {self.fourcc!r}; expected four characters, such as MJPG or YUYV"
            )

    def __str__(self) -> str:
        size = f"{self.width}x{self.height}" if self.width else ""
        rate = f"{self.fps:g} frames/s" if self.fps else ""
        return ", ".join(part for part in (size, rate, self.fourcc) if part)


class Source(Protocol):
    """Protocol for opened sources. ``format`` is the actual image format, which may be unknown before the first image.

    A source may have these optional members:

    - ``interrupt()`` ends the iteration over ``images`` from another thread, even while it waits for data.
    - ``overtaken`` is the number of images dropped because a newer image had arrived.
    - ``captured_s`` is the monotonic time in seconds at which the last image was captured. Without it, the time at
      which the image arrived is used.
    - ``period_s`` is the interval between images in seconds, for sources with a low, fixed rate.
    - ``position_s`` is the timestamp of the current image in a file, in seconds from the start. Without it, timestamps
      are computed from ``format.fps``.
    - ``full_size`` is the width and height of the current image before its reduction, or None if it was not reduced.
    """

    @property
    def format(self) -> CaptureFormat: ...

    def images(self) -> Iterator[tuple[Image, str]]:
        """Yield each image as a uint8 RGB array of shape ``(H, W, 3)``, with its source's name or its file's path."""
        ...

    def close(self) -> None:
        """Release the device, file or connection."""
        ...


@dataclass(frozen=True)
class Address:
    """The address of a source that has not been opened yet.

    Attributes:
        name: the URI without secrets, for display.
        live: whether the source delivers images in real time, e.g. a camera. Old frames of such a source may be
            dropped.
        remote: whether the source is a server. If a server does not respond at the start, the connection is retried. If
            a local camera cannot be opened at the start, this is an error.
        open: function that opens the source, or raises :class:`SourceError`.
        requested: size, rate and format to request from a camera.
        stream: True if the images form a continuous video, False for images from a folder.
        identity: the URI without user name and password, which is the same for all addresses of a source.
    """

    name: str
    live: bool
    remote: bool
    open: Callable[[], Source]
    requested: CaptureFormat = CaptureFormat()
    stream: bool = True
    identity: str = field(default="", repr=False)
