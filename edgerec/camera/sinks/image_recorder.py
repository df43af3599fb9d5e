"""Save selected images as future training data, deleting the oldest ones when a size limit is reached."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import heapq
import os
import re
import shutil
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from edgerec.camera.config import ImageRecorderConfig
from edgerec.camera.frame import Result
from edgerec.camera.sinks.events import safe_name, source_of
from edgerec.camera.source_state import StateChange
from edgerec.contract.decision import UNKNOWN
from edgerec.contract.preprocess import Image, encode_png
from edgerec.contract.smoothing import TIME_TOLERANCE_S
from edgerec.errors import EdgerecError
from edgerec.utils.atomic import checked_output
from edgerec.utils.byte_sizes import disk_space
from edgerec.utils.clock import unix_s
from edgerec.utils.lock import Lock
from edgerec.utils.names import file_name, file_names
from edgerec.utils.optional import require

JPEG_QUALITY = 95
# Maximum number of image paths in memory. The folder is scanned again when all of these images are deleted.
MAX_LISTED = 4096
# Minimum time in seconds between two scans of the image folder.
RESCAN_S = 10.0
# File names contain a digest of the folder's path, which identifies images that a user has moved.
_SAVED = re.compile(r"edgerec_\d{8}T\d{6}\.\d{6}Z_[\w-]{1,64}?_(?:([0-9a-f]{8})_)?s\d{3}\.(?:jpg|png)", re.ASCII)
_PART = re.compile(r"\.edgerec_\d{8}T\S{1,160}\.part")


class ImageRecorder:
    """Saves frames as ``FOLDER/LABEL/edgerec_TIME_SOURCE_SCORE.jpg``, a layout that ``edgerec train`` can use.

    Each image shows the region that was classified. SOURCE includes the name of a named region. LABEL is the predicted
    label, which a user can correct by moving the file to another subfolder.

    If the total size would exceed the limit, the oldest images are deleted, including images from earlier runs. Images
    that a user has moved within the folder are never deleted, but count toward the limit.

    Attributes:
        saved: number of saved files.
    """

    closed = False
    name = "save"

    def __init__(self, config: ImageRecorderConfig, labels: Iterable[str] = ()) -> None:
        """Create and lock the folder, and find the images saved by earlier runs.

        Args:
            config: the image folder, which images to save, and size limits.
            labels: the bundle's labels. Labels that differ only in case get different folder names.

        Raises:
            InUseError: another process saves images in the folder.
            EdgerecError: the folder cannot be written.
        """
        self.saved = 0
        self._folder, self._config = checked_output(config.folder, folder=True), config
        self.outputs = (self._folder,)
        self._names = file_names((*labels, UNKNOWN))
        self._last_saved: dict[str, tuple[float, str]] = {}
        self._oldest: deque[tuple[Path, int]] = deque()
        self._lists_all = True  # True if ``_oldest`` lists all images that may be deleted.
        self._total_bytes = self._moved_bytes = 0
        self._scanned_s = 0.0
        lock = None
        try:
            lock = Lock(self._folder)
            self._folder.mkdir(parents=True, exist_ok=True)
            self._scan()
            if not os.access(self._folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            if lock:
                lock.close()
            if isinstance(error, EdgerecError):
                raise
            raise EdgerecError(
                f"cannot save images in {self._folder} ({error.strerror}): choose another folder"
            ) from None
        self._lock = lock

    def write(self, result: Result) -> None:
        """Save the frame if it meets the selection criteria.

        Raises:
            EdgerecError: the disk is full, or the size limit is reached.
        """
        label = self._selected_label(result)
        if label is None:
            return
        content = self._encode(result.frame.image)
        path = self._path(result, label)
        try:
            if not self._make_room(disk_space(len(content))):
                moved = (
                    f"; images that were moved within the folder use {self._moved_bytes / 1e6:.1f} MB"
                    if self._moved_bytes
                    else ""
                )
                raise EdgerecError(
                    f"cannot save an image in {self._folder}: the disk is full, or --save-max is too small{moved}. "
                    "Free some disk space, move images out of the folder, or increase --save-max"
                )
            self._write(path, content)
        except OSError as error:
            raise EdgerecError(f"cannot save an image in {self._folder} ({error.strerror}): check the disk") from None
        self._last_saved[source_of(result)] = result.frame.captured_s, label
        self.saved += 1

    def state(self, change: StateChange) -> None:
        """Do nothing, because state changes have no image."""

    def close(self) -> None:
        """Release the folder lock."""
        self._lock.close()

    def _selected_label(self, result: Result) -> str | None:
        """Return the label of the folder for the frame, or None if the frame is not selected."""
        config, prediction, decision = self._config, result.classification, result.decision
        last_s, last_label = self._last_saved.get(source_of(result), (float("-inf"), None))
        if result.frame.stream and result.frame.captured_s - last_s < config.min_interval_s - TIME_TOLERANCE_S:
            return None
        if config.rule == "all":
            return prediction.label
        if config.rule == "changes":
            label = decision.label if decision else prediction.label
            changed = decision.changed if decision else label != last_label
            return label if changed else None
        scores = [category.score for category in prediction.categories[:2]]
        best, second = scores + [0.0] * (2 - len(scores))
        is_confident = prediction.label != UNKNOWN and best >= config.below and best - second > config.margin
        return None if is_confident else prediction.label

    def _encode(self, image: Image) -> bytes:
        if self._config.png:
            return encode_png(image)
        cv2 = require("cv2")
        ok, content = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        if not ok:
            raise EdgerecError(f"OpenCV cannot encode an image of shape {image.shape} as JPEG")
        return content.tobytes()

    def _path(self, result: Result, label: str) -> Path:
        seconds = unix_s(result.frame.captured_s)
        source = safe_name(source_of(result))
        score, kind = round(result.classification.score * 100), "png" if self._config.png else "jpg"
        while True:
            when = datetime.fromtimestamp(seconds, UTC).strftime("%Y%m%dT%H%M%S.%fZ")
            folder = self._folder / (self._names.get(label) or file_name(label))
            path = folder / f"edgerec_{when}_{source}_{_digest(folder)}_s{score:03d}.{kind}"
            if not path.exists():
                return path
            seconds += 1e-6

    def _write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        part = path.parent / f".{path.name}.part"
        try:
            part.write_bytes(content)
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        self._lists_all = self._lists_all and len(self._oldest) < MAX_LISTED
        if self._lists_all:
            self._oldest.append((path, disk_space(len(content))))
        self._total_bytes += disk_space(len(content))

    def _make_room(self, size: int) -> bool:
        """Delete the oldest images until there is room for ``size`` bytes. Return False if that is not possible."""
        config = self._config
        # Delete nothing if deleting all images would not free enough space.
        if not self._can_fit(size):
            if time.monotonic() - self._scanned_s < RESCAN_S:
                return False
            self._scan()  # A user may have moved images out of the folder.
            if not self._can_fit(size):
                return False
        while self._total_bytes + size > config.max_bytes or self._free() < config.reserve_bytes + size:
            if not self._oldest:
                if self._lists_all:
                    return False
                self._scan()
                return self._make_room(size)
            path, freed_bytes = self._oldest.popleft()
            try:
                path.unlink()
            except FileNotFoundError:  # A user has moved or deleted the image.
                self._scan()
                return self._make_room(size)
            self._total_bytes -= freed_bytes
            with contextlib.suppress(OSError):  # Empty folders would become classes in training.
                path.parent.rmdir()
        return True

    def _can_fit(self, size: int) -> bool:
        deletable_bytes = self._total_bytes - self._moved_bytes
        enough_space = self._free() + deletable_bytes >= self._config.reserve_bytes + size
        return size + self._moved_bytes <= self._config.max_bytes and enough_space

    def _free(self) -> int:
        return shutil.disk_usage(self._folder).free

    def _scan(self) -> None:
        """Compute the total size of all saved images, find the oldest ones, and delete incomplete files."""
        for attempts_left in (2, 1, 0):
            totals = Counter[str]()
            try:
                oldest = heapq.nsmallest(MAX_LISTED + 1, self._own_images(totals), key=lambda image: image[0].name)
                break
            except FileNotFoundError:  # A folder was removed during the scan.
                if not attempts_left:
                    raise
        self._total_bytes, self._moved_bytes, self._scanned_s = totals["all"], totals["moved"], time.monotonic()
        self._lists_all = len(oldest) <= MAX_LISTED
        self._oldest = deque(oldest[:MAX_LISTED])

    def _own_images(self, totals: Counter[str]) -> Iterator[tuple[Path, int]]:
        """Yield the path and size of each image that may be deleted, and add the sizes of all images to ``totals``."""
        for path in self._folder.rglob("*edgerec_*"):
            if path.is_symlink() or not path.is_file():
                continue
            try:
                size, name = path.stat().st_size, _SAVED.fullmatch(path.name)
            except FileNotFoundError:  # removed during the scan
                continue
            own = name is not None and name[1] == _digest(path.parent)
            if _PART.fullmatch(path.name) or (own and not size):  # A crash or power failure left an incomplete file.
                path.unlink(missing_ok=True)
            elif name is not None:
                totals["all"] += disk_space(size)
                if own:
                    yield path, disk_space(size)
                else:
                    totals["moved"] += disk_space(size)


def _digest(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:8]
