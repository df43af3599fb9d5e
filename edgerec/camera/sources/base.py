"""Types of the sources: the capture format, the protocol of an open source, and the address of a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from edgerec.contract.preprocess import Image

# Frame rate that is assumed if a file does not state one.
NOMINAL_FPS = 25.0


@dataclass(frozen=True)
class CaptureFormat:
    """What a camera is asked for, or gives. 0 and an empty text leave it to the camera.

    Attributes:
        width, height: pixels.
        fps: frames a second.
        fourcc: the pixel format by its four letters, such as ``MJPG`` or ``YUYV``.
    """

    width: int = 0
    height: int = 0
    fps: float = 0.0
    fourcc: str = ""

    def __str__(self) -> str:
        size = f"{self.width}x{self.height}" if self.width else ""
        rate = f"{self.fps:g} frames/s" if self.fps else ""
        return ", ".join(part for part in (size, rate, self.fourcc) if part)


class Source(Protocol):
    """Protocol of an open source. ``format`` is the actual format of the images, complete after the first image.

    A source can have these optional members:

    - ``interrupt()`` ends ``images`` from another thread, even while it waits for data.
    - ``overtaken`` is the number of images that were dropped because a newer image had arrived.
    - ``captured_s`` is the monotonic time in seconds at which the last image was captured; without it, frames get the
      time at which the image arrived.
    - ``period_s`` is the number of seconds between two images, for sources with a slow, regular rate.
    - ``position_s`` is the media time of the current image in seconds from the start of a file. Without it, media time
      is computed from ``format.fps``.
    """

    @property
    def format(self) -> CaptureFormat: ...

    def images(self) -> Iterator[tuple[Image, str]]:
        """Each picture, uint8 ``(H, W, 3)`` RGB, with the name of where it comes from."""
        ...

    def close(self) -> None:
        """Let go of the device or file."""
        ...


@dataclass(frozen=True)
class Address:
    """The address of a source that has not been opened yet.

    Attributes:
        name: the URI without secrets, for display.
        live: whether the source delivers images in real time, such as a camera, so that old frames are useless.
        remote: whether the source is a server. A server that does not respond at the start is tried again; a local
            camera that does not exist is an error.
        open: function that opens the source; raises :class:`SourceError` if this fails.
        requested: size, rate and format to request from a camera.
        stream: True if the images form a continuous video; False for the images of a folder.
        identity: the URI without user and password; two addresses of the same source have the same identity.
    """

    name: str
    live: bool
    remote: bool
    open: Callable[[], Source]
    requested: CaptureFormat = CaptureFormat()
    stream: bool = True
    identity: str = field(default="", repr=False)
