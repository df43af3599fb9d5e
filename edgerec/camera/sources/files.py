"""Sources that read image folders, and sources that repeat video files or image folders endlessly."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from edgerec.camera.sources.base import NOMINAL_FPS, CaptureFormat, Source
from edgerec.contract.image_decoding import Levels, decode, read_image_file, why_unreadable
from edgerec.contract.preprocess import Image
from edgerec.contract.reduced_decoding import ReductionChooser, jpeg_reduction
from edgerec.errors import DataError, SourceError
from edgerec.utils.folders import may_be_image, visible_files, visible_folders

log = logging.getLogger(__name__)


class FolderSource:
    """A source that delivers a folder's images, sorted by name.

    Files that cannot be decoded are skipped, with a warning if they have the suffix of an image format or no suffix.

    Args:
        folder: the folder with the images.
        levels: the two sample values of 16-bit images that map to black and to white. None determines them for each
            file separately.
        choose_reduction: function that returns the factor by which to reduce a JPEG file when decoding it. None decodes
            at full size.

    Attributes:
        full_size: width and height of the current image before its reduction, or None if it was not reduced.

    Raises:
        SourceError: the folder cannot be read or contains no files.
    """

    format = CaptureFormat()

    def __init__(
        self, folder: Path, levels: Levels | None = None, choose_reduction: ReductionChooser | None = None
    ) -> None:
        self.name, self._levels, self._choose_reduction = str(folder), levels, choose_reduction
        self.full_size: tuple[int, int] | None = None
        try:
            self._files = visible_files(folder)
            if not self._files:
                subfolders_with_files = [path for path in visible_folders(folder) if visible_files(path)]
                hint = f". Did you mean {subfolders_with_files[0]}?" if subfolders_with_files else ""
                raise SourceError(f"the folder {folder} has no images (subfolders are not searched){hint}")
        except DataError as error:
            raise SourceError(str(error)) from None

    def images(self) -> Iterator[tuple[Image, str]]:
        """Yield each image with its path.

        Raises:
            SourceError: none of the files is an image.
        """
        count = 0
        for path in self._files:
            try:
                content = read_image_file(path)
            except OSError as error:  # The file may be unreadable, or may have been deleted.
                log.warning("%s was skipped: %s", path, error.strerror)
                continue
            reduction, self.full_size = jpeg_reduction(content, self._choose_reduction)
            image = decode(content, self._levels, reduction=reduction)
            if image is None:
                if may_be_image(path):
                    log.warning("%s was skipped: %s", path, why_unreadable(content))
                continue
            count += 1
            yield image, str(path)
        if not count:
            raise SourceError(f"none of the {len(self._files)} files in {self.name} is a readable image")

    def close(self) -> None:
        """Do nothing, because the source keeps no file open."""


class LoopingSource:
    """A source that loops a video file or an image folder endlessly.

    Attributes:
        position_s: timestamp of the current image in seconds from the start of the first repetition, or None for a
            folder.
    """

    def __init__(self, open_file: Callable[[], Source]) -> None:
        self._open = open_file
        self._source = open_file()
        self.position_s: float | None = None

    @property
    def format(self) -> CaptureFormat:
        return self._source.format

    @property
    def full_size(self) -> tuple[int, int] | None:
        """Width and height of the current image before its reduction, or None if it was not reduced."""
        return getattr(self._source, "full_size", None)

    def images(self) -> Iterator[tuple[Image, str]]:
        """Yield the images in an endless loop.

        Raises:
            SourceError: there are no images.
        """
        start_s = 0.0
        while True:
            for image, name in self._source.images():
                position_s = getattr(self._source, "position_s", None)
                self.position_s = None if position_s is None else start_s + position_s
                yield image, name
            start_s = (self.position_s or 0.0) + 1 / (self.format.fps or NOMINAL_FPS)
            self._source.close()
            self._source = self._open()

    def close(self) -> None:
        """Close the file."""
        self._source.close()
