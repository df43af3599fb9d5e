"""One look at every picture as it came: its bytes, its size, and a small copy."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgerec.contract.image_files import Levels, decode, memory_for, read_image_file, why_unreadable
from edgerec.contract.preprocess import Image, PreprocessSpec, apply
from edgerec.data.readers import Arrays, Source
from edgerec.utils.atomic import sha256
from edgerec.utils.progress import Listener, Progress, steps

SMALL_PX = 32
CHUNK = 256


@dataclass(frozen=True)
class Scan:
    """Digest, size and thumbnail of every image of a source, in the order of the source.

    Attributes:
        digests: SHA-256 of each file, or of each array row's pixels.
        sizes_px: ``(N, 2)``, height and width; 0 for files that are not readable images.
        faults: reason why a file is damaged or unreadable; an empty string for intact images.
        small: uint8 ``(N, 32, 32, C)``, stretched thumbnails, stored on disk to save memory.
    """

    digests: tuple[str, ...]
    sizes_px: npt.NDArray[np.int64]
    faults: tuple[str, ...]
    small: npt.NDArray[np.uint8]

    @property
    def valid(self) -> npt.NDArray[np.bool_]:
        """Mask of the readable images, including truncated ones, ``(N,)``."""
        return self.sizes_px[:, 0] > 0


def scan(source: Source, levels: Levels, listener: Listener) -> Scan:
    """Read every image of a source once. ``levels`` are the values that become black and white in 16-bit files."""
    count = len(source.classes)
    gray = isinstance(source, Arrays) and (source.images.ndim == 3 or source.images.shape[3] == 1)
    spec = PreprocessSpec(
        SMALL_PX, SMALL_PX, 1 if gray else 3, "stretch", black_level=levels.black, white_level=levels.white
    )
    reported = steps(count)
    with tempfile.TemporaryFile() as file:
        small = np.memmap(file, np.uint8, "w+", shape=(count, *spec.shape))
        digests, faults, sizes_px = [], [], np.zeros((count, 2), np.int64)
        for position, (digest, fault, image) in enumerate(_seen(source, spec, sizes_px)):
            digests.append(digest)
            faults.append(fault)
            if image is not None:
                small[position] = image
            if position in reported:
                listener(Progress("reading images", position + 1, count))
        return Scan(tuple(digests), sizes_px, tuple(faults), small)


def _seen(
    source: Source, spec: PreprocessSpec, sizes_px: npt.NDArray[np.int64]
) -> Iterator[tuple[str, str, Image | None]]:
    def look(position: int) -> tuple[str, str, Image | None]:
        part, place = source.locate(position)
        if isinstance(part, Arrays):
            image = part.images[place]
            digest, fault = sha256(np.ascontiguousarray(image).tobytes()), ""
        else:
            try:
                content = read_image_file(part.paths[place])
            except OSError as error:
                return "", f"cannot be read ({error.strerror})", None
            with memory_for(content):
                image = decode(content, spec.levels)
                if image is None:
                    return sha256(content), why_unreadable(content), None
                sizes_px[position] = image.shape[:2]
                return sha256(content), cut_off(content), apply(image, spec)
        sizes_px[position] = image.shape[:2]
        return digest, fault, apply(image, spec)

    count = len(source.classes)
    with ThreadPoolExecutor() as pool:  # OpenCV lets go of the interpreter while it decodes
        for start in range(0, count, CHUNK):
            yield from pool.map(look, range(start, min(start + CHUNK, count)))


def cut_off(content: bytes) -> str:
    """What is missing at the end of a JPEG or PNG file that decodes all the same, or nothing."""
    if content[:2] == b"\xff\xd8" and content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda"):
        return "is cut off: a part of the picture is missing"
    if content[:4] == b"\x89PNG" and b"IEND" not in content:
        return "is cut off: a part of the picture is missing"
    return ""
