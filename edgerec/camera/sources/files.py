"""A folder of pictures as a source."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from edgerec.camera.sources import CaptureFormat
from edgerec.contract.preprocess import Image, decode
from edgerec.errors import SourceError

log = logging.getLogger(__name__)


class FolderSource:
    """The pictures of a folder in the order of their names; other files are skipped with a word."""

    format = CaptureFormat()

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self._files = sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
        if not self._files:
            raise SourceError(f"the folder {folder} has no pictures in it")

    def images(self) -> Iterator[tuple[Image, str]]:
        """Each picture with its path; raises :class:`SourceError` when no file is one."""
        shown = 0
        for path in self._files:
            image = decode(path.read_bytes())
            if image is None:
                log.warning("%s is no picture: skipped", path)
                continue
            shown += 1
            yield image, str(path)
        if not shown:
            raise SourceError(f"none of the {len(self._files)} files in {self.name} is a picture")

    def close(self) -> None:
        """Nothing is held open."""
