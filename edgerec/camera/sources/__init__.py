"""Sources of frames: cameras, streams, files, and the URIs that name them."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from pathlib import Path

from edgerec.camera.sources.base import Address, CaptureFormat, Source
from edgerec.contract.image_files import Levels
from edgerec.errors import AddressError, SourceError
from edgerec.utils.secrets import read_secret
from edgerec.utils.urls import Url, redacted

__all__ = ["Address", "CaptureFormat", "Source", "find_source"]

_URL_SCHEMES = ("rtsp", "rtsps", "http", "https")
_SCHEMES = (*_URL_SCHEMES, "synthetic", "picamera2")
_EXAMPLE = "synthetic:640x480@30"
_SYNTHETIC = re.compile(r"synthetic:(\d{1,4})x(\d{1,4})(?:@(\d{1,4}(?:\.\d+)?))?")


def find_source(
    uri: str, requested: CaptureFormat | None = None, levels: Levels | None = None, *, loop: bool = False
) -> Address:
    """Return the address that ``uri`` names, without opening it.

    Args:
        uri: ``auto`` (a camera module, otherwise the first USB camera), ``0``, ``/dev/video0``, ``picamera2:0``,
            ``rtsp://…``, ``http://…`` (MJPEG or single images), a video file,
            a folder of images, or ``synthetic:640x480@30``; ``env:NAME`` or ``@FILE`` if an environment variable or a
            file with mode 0600 contains the URI.
        requested: size, rate and format to request from a camera.
        levels: the values that become black and white in 16-bit files of a folder; None uses the bit depth of each
            file.
        loop: whether a video file or a folder starts again when it ends.

    Raises:
        SourceError: the URI is not recognized, or the file does not exist. The message contains no secrets.
    """
    from edgerec.camera.sources.files import FolderSource
    from edgerec.camera.sources.opencv import OpenCVSource
    from edgerec.camera.sources.picamera import PicameraSource
    from edgerec.camera.sources.synthetic import SyntheticSource

    requested, typed = requested or CaptureFormat(), uri
    if not os.path.exists(uri):
        try:
            uri = read_secret(uri)
        except AddressError as error:
            raise SourceError(f"the source cannot be used: {error}") from None
    scheme, colon, rest = uri.partition(":")
    if uri == "auto":
        return Address(uri, True, False, lambda: _automatic(requested), requested)
    if uri.isascii() and uri.isdigit() and len(uri) < 5:
        return Address(uri, True, False, lambda: OpenCVSource.camera(int(uri), requested), requested)
    if made := _SYNTHETIC.fullmatch(uri):
        width, height, fps = int(made[1]), int(made[2]), float(made[3] or 30)
        if not (width and height):
            raise SourceError(f"the source {uri!r} has no pixels: expected one as {_EXAMPLE}")
        return Address(uri, fps > 0, False, lambda: SyntheticSource(width, height, fps))
    if scheme == "synthetic":
        raise SourceError(f"the source {uri!r} has no size: expected synthetic:WIDTHxHEIGHT@FPS, as {_EXAMPLE}")
    if scheme == "picamera2" and rest.isdigit():
        return Address(uri, True, False, lambda: PicameraSource(int(rest), requested), requested)
    if scheme.lower() in _URL_SCHEMES and rest.startswith("//"):
        try:
            url = Url.parse(uri, *_URL_SCHEMES)
        except AddressError as error:
            raise SourceError(f"the source {redacted(uri)} cannot be used: {error}") from None
        web = url.scheme in ("http", "https")
        opener = (lambda: _web(url, requested.fps)) if web else (lambda: OpenCVSource.stream(url))
        return Address(str(url), True, True, opener, identity=url.identity)
    # Not as Path asks: a name that is too long, or none at all, is just not there.
    path, there = Path(uri), os.path.exists(uri)
    if os.path.isdir(uri):
        return Address(uri, False, False, _looping(lambda: FolderSource(path, levels), loop), stream=False)
    if path.is_char_device() if there else uri.startswith("/dev/video"):
        return Address(uri, True, False, lambda: OpenCVSource.camera(uri, requested), requested)
    if os.path.isfile(uri):
        return Address(uri, False, False, _looping(lambda: OpenCVSource.video(path), loop))
    near = difflib.get_close_matches(scheme, _SCHEMES, 1) if colon else []
    # A variable or file that contains no address may contain a secret in any form, so its content is not shown.
    shown, hint = redacted(uri) if uri == typed else typed, f", did you mean {near[0]}:?" if near else ""
    raise SourceError(
        f"the source {shown!r} is nothing that exists{hint}: "
        "expected a camera (auto, 0, /dev/video0), a stream (rtsp://…, http://…), a video file, a folder of "
        f"pictures, or {_EXAMPLE}"
    )


def _looping(open_file: Callable[[], Source], loop: bool) -> Callable[[], Source]:
    from edgerec.camera.sources.files import LoopingSource

    return (lambda: LoopingSource(open_file)) if loop else open_file


def _automatic(requested: CaptureFormat) -> Source:
    from edgerec.camera.sources.automatic import open_automatic

    return open_automatic(requested)


def _web(url: Url, fps: float = 0.0) -> Source:
    from edgerec.camera.sources.mjpeg import open_web

    return open_web(url, fps)
