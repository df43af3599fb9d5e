"""Frame sources (cameras, streams and files) and a parser for their URIs."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from pathlib import Path

from edgerec.camera.sources.base import Address, CaptureFormat, Source
from edgerec.contract.image_decoding import Levels
from edgerec.contract.reduced_decoding import ReductionChooser
from edgerec.errors import AddressError, SourceError
from edgerec.utils.secret_references import read_secret
from edgerec.utils.url_redaction import Url, redacted

__all__ = ["Address", "CaptureFormat", "Source", "find_source"]

_URL_SCHEMES = ("rtsp", "rtsps", "http", "https")
_SCHEMES = (*_URL_SCHEMES, "synthetic", "picamera2")
_EXAMPLE = "synthetic:640x480@30"
_SYNTHETIC = re.compile(r"synthetic:(\d{1,4})x(\d{1,4})(?:@(\d{1,4}(?:\.\d+)?))?")


def find_source(
    uri: str,
    requested: CaptureFormat | None = None,
    levels: Levels | None = None,
    *,
    loop: bool = False,
    choose_reduction: ReductionChooser | None = None,
) -> Address:
    """Parse a URI into a source address without opening the source.

    Args:
        uri: ``auto`` (a camera module, otherwise the first USB camera), ``0``, ``/dev/video0``, ``picamera2:0``,
            ``rtsp://…``, ``http://…`` (MJPEG or single images), a video file, a folder of images, or
            ``synthetic:640x480@30``. ``env:NAME`` and ``@FILE`` read the URI from an environment variable or from a
            file with mode 0600.
        requested: size, rate and format to request from a camera.
        levels: the two sample values of 16-bit images that map to black and to white. None determines them for each
            file separately.
        loop: whether to restart a video file or folder when it ends.
        choose_reduction: function that returns the factor by which to reduce a JPEG image of an HTTP source or a folder
            when decoding it. None decodes at full size.

    Raises:
        SourceError: the URI is not recognized, or the file does not exist. The message contains no secrets.
    """
    from edgerec.camera.sources.files import FolderSource
    from edgerec.camera.sources.opencv_capture import OpenCVSource
    from edgerec.camera.sources.picamera import PicameraSource
    from edgerec.camera.sources.synthetic import SyntheticSource

    requested, original_uri = requested or CaptureFormat(), uri
    if not os.path.exists(uri):
        try:
            uri = read_secret(uri)
        except AddressError as error:
            raise SourceError(f"the source cannot be used: {error}") from None
    scheme, colon, rest = uri.partition(":")
    if uri == "auto":
        return Address(uri, True, False, lambda: _open_automatic(requested), requested)
    if uri.isascii() and uri.isdigit() and len(uri) < 5:
        return Address(uri, True, False, lambda: OpenCVSource.camera(int(uri), requested), requested)
    if match := _SYNTHETIC.fullmatch(uri):
        width, height, fps = int(match[1]), int(match[2]), float(match[3] or 30)
        if not (width and height):
            raise SourceError(f"the source {uri!r} has a width or height of 0: both must be above 0, e.g. {_EXAMPLE}")
        return Address(uri, fps > 0, False, lambda: SyntheticSource(width, height, fps))
    if scheme == "synthetic":
        raise SourceError(f"the source {uri!r} is not valid: expected synthetic:WIDTHxHEIGHT@FPS, e.g. {_EXAMPLE}")
    if scheme == "picamera2" and rest.isdigit():
        return Address(uri, True, False, lambda: PicameraSource(int(rest), requested), requested)
    if scheme.lower() in _URL_SCHEMES and rest.startswith("//"):
        try:
            url = Url.parse(uri, *_URL_SCHEMES)
        except AddressError as error:
            raise SourceError(f"the source {redacted(uri)} cannot be used: {error}") from None
        is_http = url.scheme in ("http", "https")
        opener = (
            (lambda: _open_http(url, requested.fps, choose_reduction))
            if is_http
            else (lambda: OpenCVSource.stream(url))
        )
        return Address(str(url), True, True, opener, identity=url.identity)
    # Unlike Path.exists, os.path.exists returns False for names that are too long instead of raising an error.
    path, exists = Path(uri), os.path.exists(uri)
    if os.path.isdir(uri):
        return Address(
            uri, False, False, _looping(lambda: FolderSource(path, levels, choose_reduction), loop), stream=False
        )
    if path.is_char_device() if exists else uri.startswith("/dev/video"):
        return Address(uri, True, False, lambda: OpenCVSource.camera(uri, requested), requested)
    if os.path.isfile(uri):
        return Address(uri, False, False, _looping(lambda: OpenCVSource.video(path), loop))
    similar = difflib.get_close_matches(scheme, _SCHEMES, 1) if colon else []
    # The content of an environment variable or file may be secret and is not shown.
    shown = redacted(uri) if uri == original_uri else original_uri
    hint = f", did you mean {similar[0]}:?" if similar else ""
    raise SourceError(
        f"the source {shown!r} does not exist{hint}: "
        "expected a camera (auto, 0, /dev/video0), a stream (rtsp://…, http://…), a video file, a folder of "
        f"images, or {_EXAMPLE}"
    )


def _looping(open_file: Callable[[], Source], loop: bool) -> Callable[[], Source]:
    from edgerec.camera.sources.files import LoopingSource

    return (lambda: LoopingSource(open_file)) if loop else open_file


def _open_automatic(requested: CaptureFormat) -> Source:
    from edgerec.camera.sources.camera_selection import open_automatic

    return open_automatic(requested)


def _open_http(url: Url, fps: float, choose_reduction: ReductionChooser | None) -> Source:
    from edgerec.camera.sources.mjpeg import open_web

    return open_web(url, fps, choose_reduction)
