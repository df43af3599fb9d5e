"""Source that reads a folder of images."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from edgerec.camera.sources import CaptureFormat
from edgerec.contract.folders import visible_files, visible_folders
from edgerec.contract.image_files import Levels, decode, read_image_file, why_unreadable
from edgerec.contract.preprocess import Image
from edgerec.errors import DataError, SourceError

log = logging.getLogger(__name__)


class FolderSource:
    """A source that delivers the images of a folder, sorted by name. Other files are skipped with a warning.

    Args:
        folder: the folder with the images.
        levels: the values that become black and white in files with 16 bits per sample.
    """

    format = CaptureFormat()

    def __init__(self, folder: Path, levels: Levels | None = None) -> None:
        self.name, self._levels = str(folder), levels
        try:
            self._files = visible_files(folder)
            if not self._files:
                inner = [path for path in visible_folders(folder) if visible_files(path)]
                hint = f". Did you mean {inner[0]}?" if inner else ""
                raise SourceError(f"the folder {folder} has no images directly in it{hint}")
        except DataError as error:
            raise SourceError(str(error)) from None

    def images(self) -> Iterator[tuple[Image, str]]:
        """Yield each image with its path; raises :class:`SourceError` if no file is an image."""
        shown = 0
        for path in self._files:
            try:
                content = read_image_file(path)
            except OSError as error:  # e.g. permission denied, or deleted since the folder was listed
                log.warning("%s was skipped: %s", path, error.strerror)
                continue
            image = decode(content, self._levels)
            if image is None:
                log.warning("%s was skipped: %s", path, why_unreadable(content))
                continue
            shown += 1
            yield image, str(path)
        if not shown:
            raise SourceError(f"none of the {len(self._files)} files in {self.name} is a readable image")

    def close(self) -> None:
        """Nothing is held open."""
