"""Pictures with the label that a person gave them: a folder that ``edgerec train`` takes."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from edgerec.camera.frame import Frame
from edgerec.contract.files import write_file
from edgerec.contract.preprocess import encode_png
from edgerec.errors import EdgerecError

# What a person labelled is never deleted, so saving ends while the rest of the system still has room.
LEAST_FREE_BYTES = 100_000_000
# Not in every file system, or not at every place in a name.
_ODD = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]|^[. ]|[. ]$')


class Album:
    """Writes ``DIR/LABEL/TIME-FRAME.png``; ``DIR/train/LABEL/…`` where a label is called as a split is."""

    def __init__(self, root: Path, labels: Sequence[str]) -> None:
        """Make the folder, so that one that cannot be written is noticed now; raises :class:`EdgerecError`."""
        self.saved = 0
        self._labels = tuple(labels)
        # Or the class "train" of a data set of vehicles would be taken for the training split.
        self._root = root / "train" if {"train", "val", "test"} & set(labels) else root
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EdgerecError(f"pictures cannot be saved in {root}: {error.strerror}") from None
        if not os.access(root, os.W_OK | os.X_OK):
            raise EdgerecError(f"pictures cannot be saved in {root}: it cannot be written")

    def save(self, frame: Frame, index: int) -> Path:
        """Write the frame's picture as PNG, with no loss, under the label of that index; where it is.

        Raises:
            LookupError: no label has that index.
            EdgerecError: the disk is full, or the folder cannot be written.
        """
        if not 0 <= index < len(self._labels):
            raise LookupError(f"there is no label {index}: expected 0 to {len(self._labels) - 1}")
        folder = self._root / folder_name(self._labels[index])
        png = encode_png(frame.image)
        now = time.time()
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now)) + f"-{int(now * 1000) % 1000:03d}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
            if free < LEAST_FREE_BYTES + len(png):
                raise EdgerecError(
                    f"the disk of {self._root} is nearly full ({free // 10**6} MB free): make room first"
                )
            path = folder / f"{stamp}-{frame.index}.png"
            number = 1
            while path.exists():
                number += 1
                path = folder / f"{stamp}-{frame.index}-{number}.png"
            write_file(path, png)
        except OSError as error:
            raise EdgerecError(f"{folder} cannot be written: {error.strerror}") from None
        self.saved += 1
        return path


def folder_name(label: str) -> str:
    """The label as a folder's name: what no file system takes becomes ``%XX``."""
    if not _ODD.search(label) and len(label.encode()) <= 200:
        return label
    safe = _ODD.sub(lambda match: f"%{ord(match[0]):02X}", label.replace("%", "%25"))
    return safe.encode()[:200].decode(errors="ignore")
