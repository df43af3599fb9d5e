"""Where frames come from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from edgerec.contract.preprocess import Image
from edgerec.errors import SourceError


class Source(Protocol):
    """An opened source.

    Attributes:
        name: what the user called it.
        live: whether time passes without us, so that old frames are worth nothing.
    """

    @property
    def name(self) -> str: ...

    @property
    def live(self) -> bool: ...

    def images(self) -> Iterator[tuple[Image, str]]:
        """Each picture, uint8 ``(H, W, 3)`` RGB, with the name of where it comes from."""
        ...

    def close(self) -> None:
        """Let go of the device or file."""
        ...


def open_source(uri: str) -> Source:
    """Open a camera's index, a video file, an RTSP or HTTP address, or a folder of pictures.

    Raises:
        SourceError: it does not exist, or does not open.
    """
    from edgerec.camera.sources.files import FolderSource
    from edgerec.camera.sources.opencv import OpenCVSource

    if uri.isascii() and uri.isdigit() and len(uri) < 5:
        return OpenCVSource.camera(int(uri))
    if "://" in uri:
        return OpenCVSource.stream(uri)
    path = Path(uri)
    if path.is_dir():
        return FolderSource(path)
    if path.is_char_device():
        return OpenCVSource.camera(uri)
    if path.is_file():
        return OpenCVSource.video(path)
    raise SourceError(
        f"the source {uri!r} does not exist: expected a camera's number (0), a video file, "
        "an rtsp:// or http:// address, or a folder of pictures"
    )
