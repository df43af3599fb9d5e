"""Write videos that show each frame with its prediction."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from edgerec.camera.frame import Result
from edgerec.camera.sinks.window import FrameRate, RegionOverlay, overlay
from edgerec.camera.source_state import StateChange
from edgerec.camera.sources.opencv_capture import prepare
from edgerec.contract.preprocess import Image
from edgerec.errors import EdgerecError, OutputExistsError
from edgerec.utils.atomic import checked_output
from edgerec.utils.lock import Lock
from edgerec.utils.optional import require

CODECS = {".mp4": "mp4v", ".avi": "MJPG"}
# File suffix that makes FFmpeg write fragmented MP4, which stays playable if the process is killed.
_FRAGMENTED = ".ismv"
# This MP4 brand (file type) replaces FFmpeg's Smooth Streaming brand, which few video players support.
_BRAND = b"isom\0\0\2\0isomiso6"
# Maximum gap in seconds between two frames of a live source. Longer gaps are shortened.
MAX_GAP_S = 5.0
# Minimum free disk space in bytes while recording, because the encoder does not report a full disk.
RESERVE_BYTES = 50_000_000


class VideoFile:
    """Writes each frame and its prediction to a video file.

    If a source has named regions, each of its frames is written once, with the boxes and labels of all regions.

    Each file has a constant frame rate and size. Frames of a live source are repeated or skipped, so that the video is
    as long as the stream. Gaps are shortened to :data:`MAX_GAP_S`. If the frame size changes, later frames are scaled
    to the size of the first frame and padded with black bars. The second source is written to ``NAME-2``, the third to
    ``NAME-3``, and so on.

    A file is created or replaced when the first frame arrives. The file is playable even if the process is killed.
    """

    closed = False
    name = "video"

    def __init__(self, path: str | Path, *, fps: float = 25.0, live: bool = True, overwrite: bool = False) -> None:
        """Check that the video can be written.

        Args:
            path: the file, with the suffix ``.mp4`` (MPEG-4) or ``.avi`` (motion JPEG).
            fps: frames per second of the file.
            live: whether to place frames by their capture time. Otherwise, each result becomes one frame of the video.
            overwrite: replace existing files.

        Raises:
            OutputExistsError: the file exists.
            InUseError: another process writes this video.
            EdgerecError: the suffix is unknown, the codec is not available, or the folder cannot be written.
        """
        self._path = checked_output(path, suffixes=tuple(CODECS))
        self.outputs = (self._path,)
        self._fps, self._live, self._overwrite = fps, live, overwrite
        if not 0 < fps <= 240:
            raise EdgerecError(f"the video's frame rate must be above 0 and at most 240, got {fps:g}")
        self._recordings: dict[str, _Recording] = {}
        self._refuse_existing(self._path)
        try:
            with tempfile.TemporaryDirectory(prefix=".edgerec-", dir=self._path.parent) as folder:
                _Encoder(Path(folder) / f"try{self._path.suffix}", fps, (64, 48)).close()
        except OSError as error:
            raise EdgerecError(
                f"{path} cannot be written ({error.strerror}): choose a file in an existing, writable folder"
            ) from None
        self._locks = [Lock(self._path)]

    def write(self, result: Result) -> None:
        """Write one frame. If the disk is full, end the video and raise :class:`EdgerecError`."""
        source = result.frame.source
        if source not in self._recordings:
            number = len(self._recordings) + 1
            path = self._path if number == 1 else self._path.with_stem(f"{self._path.stem}-{number}")
            if number > 1:
                self._refuse_existing(path)
                self._locks.append(Lock(path))
            self._recordings[source] = _Recording(path, self._fps, self._live)
        self._recordings[source].write(result)

    def state(self, change: StateChange) -> None:
        """Do nothing, because videos do not show state changes."""

    def close(self) -> None:
        """Finalize all video files.

        Raises:
            EdgerecError: a file is missing frames.
        """
        with ExitStack() as stack:
            for lock in self._locks:
                stack.callback(lock.close)
            for recording in self._recordings.values():
                stack.callback(recording.close)
                stack.callback(recording.flush)

    def _refuse_existing(self, path: Path) -> None:
        if path.exists() and not self._overwrite:
            raise OutputExistsError(f"{path} exists: choose another name, or use --overwrite")


class _Recording:
    """Writes the video file of one source."""

    def __init__(self, path: Path, fps: float, live: bool) -> None:
        self._path, self._fps, self._live = path, fps, live
        self._rate = FrameRate()
        self._encoder: _Encoder | None = None
        self._size = (0, 0)
        self._count, self._start_s = 0, 0.0
        self._last: Image | None = None
        self._disk_full = False
        self._regions = RegionOverlay()
        self._unwritten: Result | None = None

    def write(self, result: Result) -> None:
        region = result.frame.region
        if region is None:
            self._write_image(overlay(result, self._rate.tick(), hint=""), result)
            return
        # If the result of the previous frame's last region was dropped, the previous frame has not been written yet.
        if self._unwritten is not None and self._unwritten.frame.index != result.frame.index:
            self.flush()
        self._regions.add(result)
        self._unwritten = result
        if region.is_last:
            self.flush()

    def flush(self) -> None:
        """Write the newest frame if it has not been written yet."""
        result, self._unwritten = self._unwritten, None
        if result is not None:
            self._write_image(self._regions.draw(self._rate.tick(), hint=""), result)

    def _write_image(self, image: Image, result: Result) -> None:
        if self._disk_full:
            raise EdgerecError(f"{self._path} is incomplete because the disk is full: free some space and start again")
        if self._encoder is None:
            self._size = image.shape[1] // 2 * 2, image.shape[0] // 2 * 2  # Codecs require an even width and height.
            self._check_space()
            self._encoder = _Encoder(self._path, self._fps, self._size)
            self._start_s = result.frame.grabbed_s
        index = self._frame_index(result.frame.grabbed_s) if self._live else self._count
        if index < self._count:  # Skip frames if the source is faster than the video.
            return
        image = np.ascontiguousarray(fit_with_bars(image, self._size)[:, :, ::-1])
        while self._last is not None and self._count < index:
            self._encode_frame(self._last)
        self._encode_frame(image)
        self._last = image

    def close(self) -> None:
        if self._encoder is None:
            return
        encoder, self._encoder, self._last = self._encoder, None, None
        encoder.close()
        if (written := _count_frames(self._path)) < self._count:
            reason = encoder.error.strerror if encoder.error else "the encoder failed"
            raise EdgerecError(
                f"{self._path} contains only {written} of {self._count} frames ({reason}): check the disk and its "
                "limits on file sizes"
            )

    def _check_space(self) -> None:
        """Raise :class:`EdgerecError` if the disk is nearly full."""
        if free_bytes(self._path) < RESERVE_BYTES:
            self._disk_full = True
            self.close()
            raise EdgerecError(
                f"the disk is full, so recording to {self._path} was stopped: free some space and start again"
            )

    def _frame_index(self, grabbed_s: float) -> int:
        due_s = self._start_s + self._count / self._fps
        if grabbed_s - due_s > MAX_GAP_S:
            self._start_s += grabbed_s - due_s - MAX_GAP_S
        return round((grabbed_s - self._start_s) * self._fps)

    def _encode_frame(self, image: Image) -> None:
        self._check_space()
        assert self._encoder is not None
        if self._encoder.error:
            raise EdgerecError(
                f"{self._path} cannot be written after {self._count} frames ({self._encoder.error.strerror}): check "
                "the disk"
            )
        self._encoder.write(image)
        self._count += 1


def fit_with_bars(image: Image, size: tuple[int, int]) -> Image:
    """Scale a uint8 image of shape ``(H, W, 3)`` to fit ``size`` (width, height), and pad it with black bars."""
    width, height = size
    rows, columns = image.shape[:2]
    if 0 <= rows - height <= 1 and 0 <= columns - width <= 1:
        return image[:height, :width]
    cv2 = require("cv2")
    factor = min(width / columns, height / rows)
    scaled = max(1, min(width, round(columns * factor))), max(1, min(height, round(rows * factor)))
    result = np.zeros((height, width, 3), np.uint8)
    left, top = (width - scaled[0]) // 2, (height - scaled[1]) // 2
    result[top : top + scaled[1], left : left + scaled[0]] = cv2.resize(image, scaled, interpolation=cv2.INTER_AREA)
    return result


class _Encoder:
    """Encodes images to a video file.

    FFmpeg writes a fragmented MP4 to a named pipe, and a thread copies the data from the pipe to the file. If FFmpeg
    wrote the file directly, it would buffer up to 256 KiB, which may be many seconds of video and would be lost if the
    process were killed. FFmpeg would also ignore write errors.

    Attributes:
        error: exception of a failed write to the file, or None if all writes succeeded.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        """Create or replace the video file.

        Raises:
            EdgerecError: the codec is not available.
        """
        cv2 = require("cv2")
        prepare(cv2)
        suffix = path.suffix.lower()
        codec = cv2.VideoWriter_fourcc(*CODECS[suffix])
        self.error: OSError | None = None
        self._thread: threading.Thread | None = None
        self._writer: Any = None
        if suffix == ".mp4" and hasattr(os, "mkfifo"):
            with tempfile.TemporaryDirectory(prefix="edgerec-") as folder, ExitStack() as stack:
                pipe = Path(folder) / f"pipe{_FRAGMENTED}"
                os.mkfifo(pipe)
                # Open the reader first, because opening a named pipe for writing blocks until the pipe has a reader.
                reader = stack.enter_context(open(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0))
                file = stack.enter_context(path.open("wb", buffering=0))
                self._writer = cv2.VideoWriter(str(pipe), codec, fps, size)
                if self._writer.isOpened():
                    os.set_blocking(reader.fileno(), True)
                    stack.pop_all()
                    self._thread = threading.Thread(
                        target=self._copy, args=(reader, file), name="edgerec-video-file", daemon=True
                    )
                    self._thread.start()
                    return
        self._writer = cv2.VideoWriter(str(path), codec, fps, size)
        if not self._writer.isOpened():
            self._writer.release()
            other = next(name for name in CODECS if name != suffix)
            raise EdgerecError(
                f"the installed OpenCV cannot write {path.suffix} files ({CODECS[suffix]}, {size[0]}x{size[1]}): use "
                f"{other} instead"
            )

    def write(self, image: Image) -> None:
        """Encode a uint8 BGR image of shape ``(H, W, 3)``."""
        self._writer.write(image)

    def close(self) -> None:
        """Finalize the file."""
        self._writer.release()
        if self._thread:
            self._thread.join()

    def _copy(self, reader: io.FileIO, file: io.FileIO) -> None:
        with reader, file:
            while data := reader.read(1 << 16):
                if data[4:12] == b"ftypisml":
                    data = data[:8] + _BRAND + data[8 + len(_BRAND) :]
                try:
                    while data and not self.error:
                        data = data[file.write(data) :]
                except OSError as error:  # Keep reading, because FFmpeg would block on a full pipe.
                    self.error = error


def _count_frames(path: Path) -> int:
    cv2 = require("cv2")
    capture = cv2.VideoCapture(str(path))
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    return count


def free_bytes(path: Path) -> int:
    return shutil.disk_usage(path.parent).free
