"""Read all images of a data set once to compute their digests, sizes and thumbnails."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgerec.contract.image_decoding import Levels, decode, memory_for, read_image_file, why_unreadable
from edgerec.contract.preprocess import Image, PreprocessSpec, apply
from edgerec.data.raw_dataset import Arrays, RawDataset
from edgerec.utils.atomic import sha256
from edgerec.utils.parallel import map_in_threads
from edgerec.utils.progress import Listener, track

THUMBNAIL_PX = 32


@dataclass(frozen=True)
class Scan:
    """Digests, sizes, faults and thumbnails of all images in a data set.

    Attributes:
        digests: SHA-256 of each file, or of each array row's pixels.
        sizes_px: ``(N, 2)``, height and width. 0 for files that are not readable images.
        faults: reason why a file is damaged or unreadable. An empty string for intact images.
        thumbnails: uint8 ``(N, 32, 32, C)``, stretched to a square, stored on disk to save memory.
    """

    digests: tuple[str, ...]
    sizes_px: npt.NDArray[np.int64]
    faults: tuple[str, ...]
    thumbnails: npt.NDArray[np.uint8]

    @property
    def valid(self) -> npt.NDArray[np.bool_]:
        """Boolean mask of the readable images, including truncated images."""
        return self.sizes_px[:, 0] > 0


def scan(source: RawDataset, levels: Levels, listener: Listener) -> Scan:
    """Compute the digest, size and thumbnail of every image in a data set.

    Args:
        source: the data set.
        levels: sample values that are mapped to black (0) and white (255) in 16-bit files.
        listener: called with the progress.
    """
    count = len(source.classes)
    channels = source.shape[2] if isinstance(source, Arrays) else 3
    spec = PreprocessSpec(
        THUMBNAIL_PX, THUMBNAIL_PX, channels, "stretch", black_level=levels.black, white_level=levels.white
    )
    with tempfile.TemporaryFile() as file:
        thumbnails = np.memmap(file, np.uint8, "w+", shape=(count, *spec.shape))
        digests, faults, sizes_px = [], [], np.zeros((count, 2), np.int64)
        results = track(_read_images(source, spec, sizes_px), "reading images", count, listener)
        for position, (digest, fault, thumbnail) in enumerate(results):
            digests.append(digest)
            faults.append(fault)
            if thumbnail is not None:
                thumbnails[position] = thumbnail
        return Scan(tuple(digests), sizes_px, tuple(faults), thumbnails)


def _read_images(
    source: RawDataset, spec: PreprocessSpec, sizes_px: npt.NDArray[np.int64]
) -> Iterator[tuple[str, str, Image | None]]:
    """Yield the digest, fault and thumbnail of each image, and store the image size in ``sizes_px``."""

    def read(position: int) -> tuple[str, str, Image | None]:
        part, index = source.locate(position)
        if isinstance(part, Arrays):
            image = part.images[index]
            sizes_px[position] = image.shape[:2]
            return sha256(np.ascontiguousarray(image).tobytes()), "", apply(image, spec)
        try:
            content = read_image_file(part.paths[index])
        except OSError as error:
            return "", f"cannot be read ({error.strerror})", None
        with memory_for(content):
            image = decode(content, spec.levels)
            if image is None:
                return sha256(content), why_unreadable(content), None
            sizes_px[position] = image.shape[:2]
            return sha256(content), truncation(content), apply(image, spec)

    return map_in_threads(read, range(len(source.classes)))


def truncation(content: bytes) -> str:
    """Return a message if a JPEG or PNG file is truncated, otherwise an empty string.

    OpenCV can decode many truncated files without an error.
    """
    jpeg = content[:2] == b"\xff\xd8" and content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda")
    png = content[:4] == b"\x89PNG" and b"IEND" not in content
    return "is truncated: the end of the file is missing" if jpeg or png else ""
