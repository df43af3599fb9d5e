"""Determine the black and white levels of a data set's 16-bit images."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edgerec.contract.image_decoding import Levels, SampleRange, decode_samples, memory_for, read_image_file
from edgerec.contract.image_headers import bits_per_sample
from edgerec.data.raw_dataset import Arrays, Files, RawDataset
from edgerec.errors import DataError
from edgerec.utils.parallel import map_in_threads
from edgerec.utils.progress import Listener, track

log = logging.getLogger(__name__)

# Suffixes of image formats that always have 8 bits per sample.
EIGHT_BIT_SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".dib", ".gif", ".webp", ".heic"))
# PNG and PNM files store the bit depth in the first bytes, but TIFF files can store it anywhere.
_START_BYTES = 1024
_CHUNK = 64


def determine_levels(source: RawDataset, title: str, listener: Listener) -> Levels:
    """Return the sample values that are mapped to black and white in images with more than 8 bits per sample.

    Args:
        source: the images.
        title: name of the data set for log messages.
        listener: called with the progress.

    Raises:
        DataError: the data sets in ``source`` need different levels.
    """
    parts = (source,) if isinstance(source, Arrays | Files) else source.parts
    fixed = {part.levels for part in parts if isinstance(part, Arrays) and part.levels is not None}
    deep_paths = [path for part in parts if isinstance(part, Files) for path in _paths_above_8_bits(part.paths)]
    total: SampleRange | None = None
    for sample_range in track(_sample_ranges(deep_paths), "reading 16-bit values", len(deep_paths), listener):
        if sample_range is not None:
            total = sample_range if total is None else total + sample_range
    if total is not None:
        fixed.add(total.levels)
    if len(fixed) > 1:
        ranges = (f"{levels.black} to {levels.white}" for levels in sorted(fixed, key=lambda levels: levels.white))
        raise DataError(
            f"{title}: the data sets have different ranges of 16-bit values ({', '.join(ranges)}): "
            "set data.black_level and data.white_level"
        )
    levels = fixed.pop() if fixed else Levels()
    if levels != Levels():
        subject = f"{len(deep_paths):,} files have" if total is not None else "the arrays have"
        log.info(
            "%s: %s more than 8 bits per sample: the value %d is mapped to black and %d to white "
            "(to change these levels, set data.black_level and data.white_level)",
            *(title, subject, levels.black, levels.white),
        )
    return levels


def _paths_above_8_bits(paths: tuple[Path, ...]) -> list[Path]:
    def is_above_8_bits(path: Path) -> bool:
        try:
            with path.open("rb") as file:
                start = file.read(_START_BYTES)
                if start[:2] in (b"II", b"MM"):
                    start += file.read()
        except OSError:
            return False
        return bits_per_sample(start) > 8

    candidates = [path for path in paths if path.suffix.lower() not in EIGHT_BIT_SUFFIXES]
    with ThreadPoolExecutor() as pool:
        selected = pool.map(is_above_8_bits, candidates)
        return [path for path, above in zip(candidates, selected, strict=True) if above]


def _sample_ranges(paths: list[Path]) -> Iterator[SampleRange | None]:
    def measure(path: Path) -> SampleRange | None:
        content = read_image_file(path)
        with memory_for(content):
            samples = decode_samples(content)
            return None if samples is None else SampleRange.of(content, samples)

    return map_in_threads(measure, paths, _CHUNK)
