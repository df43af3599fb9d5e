"""Parse file sizes such as ``500MB``, and compute the disk space that a file occupies."""

from __future__ import annotations

import re

_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_FILE_SYSTEM_BLOCK = 4096


def parse_size(text: str) -> int:
    """Convert a size such as ``500MB``, ``2GiB``, ``1.5 T`` or ``1000000`` to bytes.

    KB, MB, GB and TB are powers of 1000, and KiB, MiB, GiB and TiB are powers of 1024. The B is optional.

    Raises:
        ValueError: ``text`` is not a size.
    """
    pattern = r"(\d{1,15}(?:\.\d{1,6})?)\s*(?:([KMGT])(i?))?B?"
    match = re.fullmatch(pattern, text.strip(), re.IGNORECASE | re.ASCII)
    if match is None:
        raise ValueError(f"{text!r} is not a valid size: use a number with a unit, such as 500MB, 2GiB or 20G")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[(match[2] or "").upper()])


def disk_space(size: int) -> int:
    """Return the disk space in bytes that a file of ``size`` bytes occupies on most file systems."""
    return -(-size // _FILE_SYSTEM_BLOCK) * _FILE_SYSTEM_BLOCK
