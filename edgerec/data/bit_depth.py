"""Determine the black and white levels of 16-bit images over a whole data set."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edgerec.contract.image_files import Levels, SampleRange, decode_samples, memory_for, read_image_file
from edgerec.contract.image_headers import bits_per_sample
from edgerec.data.readers import Arrays, Files, Source
from edgerec.errors import DataError
from edgerec.utils.progress import Listener, Progress, steps

log = logging.getLogger(__name__)

# Suffixes of formats that always have 8 bits per sample. These files are not opened.
EIGHT_BIT_SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".dib", ".gif", ".webp", ".heic"))
# PNG and PNM files store their bit depth in the first bytes. TIFF files can store it anywhere.
_START_BYTES = 1024
_CHUNK = 64


def determine_levels(source: Source, title: str, listener: Listener) -> Levels:
    """Return the values that become black (0) and white (255) in the files with more than 8 bits per sample.

    Args:
        source: the data set.
        title: name of the data set for log messages.
        listener: called with the progress.

    Raises:
        DataError: the data sets in ``source`` need different levels.
    """
    parts = (source,) if isinstance(source, Arrays | Files) else source.parts
    fixed = {part.levels for part in parts if isinstance(part, Arrays) and part.levels is not None}
    deep = [path for part in parts if isinstance(part, Files) for path in _deep(part.paths)]
    total: SampleRange | None = None
    for done, found in enumerate(_ranges(deep)):
        if found is not None:
            total = found if total is None else total + found
        if done in steps(len(deep)):
            listener(Progress("reading 16-bit values", done + 1, len(deep)))
    if total is not None:
        fixed.add(total.levels)
    if len(fixed) > 1:
        raise DataError(
            f"{title}: the data sets have different ranges of 16-bit values "
            f"({', '.join(f'{one.black} to {one.white}' for one in sorted(fixed, key=lambda one: one.white))}): "
            "set data.black_level and data.white_level"
        )
    levels = fixed.pop() if fixed else Levels()
    if levels != Levels():
        what = f"{len(deep):,} files have" if total is not None else "the arrays have"
        log.info(
            "%s: %s more than 8 bits per sample: the value %d becomes black and %d white "
            "(change it with data.black_level and data.white_level)",
            *(title, what, levels.black, levels.white),
        )
    return levels


def _deep(paths: tuple[Path, ...]) -> list[Path]:
    """Return the files with more than 8 bits per sample."""

    def check(path: Path) -> bool:
        try:
            with path.open("rb") as file:
                start = file.read(_START_BYTES)
                if start[:2] in (b"II", b"MM"):
                    start += file.read()
        except OSError:
            return False
        return bits_per_sample(start) > 8

    some = [path for path in paths if path.suffix.lower() not in EIGHT_BIT_SUFFIXES]
    with ThreadPoolExecutor() as pool:
        return [path for path, deep in zip(some, pool.map(check, some), strict=True) if deep]


def _ranges(paths: list[Path]) -> Iterator[SampleRange | None]:
    def measure(path: Path) -> SampleRange | None:
        content = read_image_file(path)
        with memory_for(content):
            samples = decode_samples(content)
            return None if samples is None else SampleRange.of(content, samples)

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), _CHUNK):
            yield from pool.map(measure, paths[start : start + _CHUNK])
