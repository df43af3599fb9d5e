"""What the window would show, as a video file."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edgerec.camera.frame import Result
from edgerec.camera.sinks.window import FrameRate, overlay
from edgerec.camera.sources.opencv import prepare
from edgerec.camera.states import StateChange
from edgerec.contract.files import checked_output
from edgerec.contract.preprocess import Image
from edgerec.errors import EdgerecError, OutputExistsError
from edgerec.optional import require

CODECS = {".mp4": "mp4v", ".avi": "MJPG"}
# A source that was away longer than this is not shown as a still for all the time.
MOST_GAP_S = 5.0
# The writer does not tell of a full disk: the file is finished while there still is room for its index.
RESERVE_BYTES = 50_000_000


class VideoFile:
    """Writes each frame with its label and score into a video file, under the picture as the window does.

    A file has one rate and one size. Of a live source, a frame is repeated, or left out, so that the video lasts as
    long as what it shows; a gap is cut to ``MOST_GAP_S``. Pictures of another size than the first are scaled
    to it, with bars. The file of a second source is called ``NAME-2``. Each stands under its name when it is
    finished, before that as ``.NAME.part``.
    """

    closed = False
    name = "video"

    def __init__(self, path: str | Path, *, fps: float = 25.0, live: bool = True, overwrite: bool = False) -> None:
        """Try the codec; the file begins with the first frame.

        Args:
            path: ends with ``.mp4`` (MPEG-4) or ``.avi`` (motion JPEG).
            fps: the file's frames per second.
            live: keep to the frames' times; otherwise each frame is one of the video.
            overwrite: an existing file may be replaced.

        Raises:
            OutputExistsError: a file is there.
            EdgerecError: an unknown ending, a codec that does not open, or a folder that cannot be written.
        """
        self._path = checked_output(path, suffixes=tuple(CODECS))
        self.outputs = (self._path,)
        self._fps, self._live, self._overwrite = fps, live, overwrite
        if not 0 < fps <= 240:
            raise EdgerecError(f"a video of {fps:g} frames per second: expected more than 0, up to 240")
        self._recordings: dict[str, _Recording] = {}
        self._refuse(self._path)
        try:
            with tempfile.TemporaryDirectory(prefix=".edgerec-", dir=self._path.parent) as folder:
                _open(Path(folder) / f"try{self._path.suffix}", fps, (64, 48)).release()
        except OSError as error:
            raise EdgerecError(
                f"{path} cannot be written ({error.strerror}): expected a file in a folder that exists"
            ) from None

    def write(self, result: Result) -> None:
        """Write one frame; raises :class:`EdgerecError` when the disk is full, and the file is finished."""
        feed = result.frame.feed
        if feed not in self._recordings:
            number = len(self._recordings) + 1
            path = self._path if number == 1 else self._path.with_stem(f"{self._path.stem}-{number}")
            self._refuse(path)
            self._recordings[feed] = _Recording(path, self._fps, self._live)
        self._recordings[feed].write(result)

    def state(self, change: StateChange) -> None:
        """A source that is away shows nothing."""

    def close(self) -> None:
        """Finish every file."""
        for recording in self._recordings.values():
            recording.close()

    def _refuse(self, path: Path) -> None:
        if path.exists() and not self._overwrite:
            raise OutputExistsError(f"{path} exists: give another name, or --overwrite it")


class _Recording:
    """One source's file."""

    def __init__(self, path: Path, fps: float, live: bool) -> None:
        self._path, self._fps, self._live = path, fps, live
        self._part = path.with_name(f".{path.stem}.part{path.suffix}")
        self._rate = FrameRate()
        self._writer: Any = None
        self._size = (0, 0)
        self._count, self._began_s = 0, 0.0
        self._last: Image | None = None
        self._full = False

    def write(self, result: Result) -> None:
        if self._full:
            raise EdgerecError(f"{self._path} was ended when the disk was full")
        picture = overlay(result, self._rate.tick(), hint="")
        if self._writer is None:
            self._size = picture.shape[1] // 2 * 2, picture.shape[0] // 2 * 2  # codecs want even sides
            self._writer = _open(self._part, self._fps, self._size)
            self._began_s = result.frame.grabbed_s
        at = self._place(result.frame.grabbed_s) if self._live else self._count
        if at < self._count:  # more frames than the video has
            return
        if self._count % max(1, round(self._fps)) == 0 and _free_bytes(self._path) < RESERVE_BYTES:
            self._full = True
            self.close()
            raise EdgerecError(f"{self._path}: the disk is full; the video ends here")
        picture = np.ascontiguousarray(fitted(picture, self._size)[:, :, ::-1])
        while self._last is not None and self._count < at:
            self._put(self._last)
        self._put(picture)
        self._last = picture

    def close(self) -> None:
        if self._writer is None:
            return
        self._writer.release()
        self._writer, self._last = None, None
        self._part.replace(self._path)

    def _place(self, grabbed_s: float) -> int:
        """Which frame of the video shows what was grabbed then."""
        due_s = self._began_s + self._count / self._fps
        if grabbed_s - due_s > MOST_GAP_S:
            self._began_s += grabbed_s - due_s - MOST_GAP_S
        return round((grabbed_s - self._began_s) * self._fps)

    def _put(self, picture: Image) -> None:
        self._writer.write(picture)
        self._count += 1


def fitted(image: Image, size: tuple[int, int]) -> Image:
    """``image``, uint8 ``(H, W, 3)``, in a picture of ``size`` (width, height): scaled as a whole, with black bars."""
    width, height = size
    rows, columns = image.shape[:2]
    if 0 <= rows - height <= 1 and 0 <= columns - width <= 1:
        return image[:height, :width]
    cv2 = require("cv2")
    factor = min(width / columns, height / rows)
    inner = max(1, min(width, round(columns * factor))), max(1, min(height, round(rows * factor)))
    whole = np.zeros((height, width, 3), np.uint8)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    whole[top : top + inner[1], left : left + inner[0]] = cv2.resize(image, inner, interpolation=cv2.INTER_AREA)
    return whole


def _open(path: Path, fps: float, size: tuple[int, int]) -> Any:
    cv2 = require("cv2")
    prepare(cv2)
    codec = CODECS[path.suffix.lower()]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, size)
    if not writer.isOpened():
        writer.release()
        other = next(suffix for suffix in CODECS if suffix != path.suffix.lower())
        raise EdgerecError(f"this OpenCV cannot write {path.suffix} ({codec}, {size[0]}x{size[1]}): try {other}")
    return writer


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(path.parent).free
