"""Save images with user-assigned labels in a folder that ``edgerec train`` can use."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from edgerec.camera.frame import Frame
from edgerec.contract.decision import UNKNOWN
from edgerec.contract.preprocess import encode_png
from edgerec.errors import EdgerecError
from edgerec.utils.atomic import write_file
from edgerec.utils.byte_sizes import disk_space
from edgerec.utils.names import file_names

# Minimum free disk space in bytes after an image is saved.
MIN_FREE_BYTES = 100_000_000
# Default limit for the total size of the labeled images in bytes.
MAX_BYTES = 2_000_000_000


class LabelStore:
    """Saves labeled images as ``DIR/LABEL/TIME-FRAME.png``, a layout that can be used for training.

    The name of an image of a region is ``TIME-FRAME-REGION.png``.

    Attributes:
        saved: number of saved images.
    """

    def __init__(self, root: Path, labels: Sequence[str], max_bytes: int = MAX_BYTES) -> None:
        """Create the folder.

        Args:
            root: image folder.
            labels: the bundle's labels.
            max_bytes: maximum total size of the files in the folder.

        Raises:
            EdgerecError: the folder cannot be created or written.
        """
        self.saved = 0
        self._folder, self._max_bytes = root, max_bytes
        self._labels, self._names = tuple(labels), file_names((*labels, UNKNOWN))
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EdgerecError(f"cannot save images in {root} ({error.strerror}): choose another folder") from None
        if not os.access(root, os.W_OK | os.X_OK):
            raise EdgerecError(
                f"cannot save images in {root} because the folder is not writable: choose another folder"
            )
        self._used_bytes = _size_of(root)

    def save(self, frame: Frame, index: int) -> Path:
        """Save a frame's image as PNG in a label's folder, and return the file's path.

        Args:
            frame: the frame.
            index: label index.

        Raises:
            LookupError: there is no label with this index.
            EdgerecError: the disk is full, the folder has reached its maximum size, or the folder cannot be written.
        """
        if not 0 <= index < len(self._labels):
            raise LookupError(f"label index {index} is out of range: expected 0 to {len(self._labels) - 1}")
        folder = self._folder / self._names[self._labels[index]]
        png = encode_png(frame.image)
        now = time.time()
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now)) + f"-{int(now * 1000) % 1000:03d}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._check_quota(len(png))
            free = shutil.disk_usage(folder).free
            if free < MIN_FREE_BYTES + len(png):
                raise EdgerecError(
                    f"the disk that contains {self._folder} is nearly full ({free // 10**6} MB free): free some space"
                )
            stem = f"{stamp}-{frame.index}" + (f"-{frame.region.name}" if frame.region else "")
            path = folder / f"{stem}.png"
            number = 1
            while path.exists():
                number += 1
                path = folder / f"{stem}-{number}.png"
            write_file(path, png)
            self._used_bytes += disk_space(len(png))
        except OSError as error:
            raise EdgerecError(f"cannot write to {folder} ({error.strerror}): check the disk") from None
        self.saved += 1
        return path

    def _check_quota(self, size: int) -> None:
        if self._used_bytes + disk_space(size) > self._max_bytes:
            self._used_bytes = _size_of(self._folder)  # Files may have been moved or deleted since the last scan.
        if self._used_bytes + disk_space(size) > self._max_bytes:
            raise EdgerecError(
                f"{self._folder} has reached its size limit of {self._max_bytes // 10**6} MB: move images to another "
                "folder, or restart with a larger --web-save-max"
            )


def _size_of(root: Path) -> int:
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            with suppress(OSError):
                total += disk_space(os.lstat(os.path.join(folder, name)).st_size)
    return total
