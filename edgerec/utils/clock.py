"""Convert monotonic timestamps to Unix timestamps."""

from __future__ import annotations

import time

# Small adjustments of the system clock, e.g. by NTP, are ignored.
TOLERANCE_S = 0.1
_offset_s = 0.0


def unix_s(monotonic_s: float) -> float:
    """Convert a ``time.monotonic()`` timestamp to a Unix timestamp in seconds, rounded to microseconds.

    Equal arguments give equal results, so that a decision has the same start time in every output. The results only
    change if the system clock deviates from the monotonic clock by more than ``TOLERANCE_S``.
    """
    global _offset_s
    offset_s = time.time() - time.monotonic()
    if abs(offset_s - _offset_s) > TOLERANCE_S:
        _offset_s = offset_s
    return round(monotonic_s + _offset_s, 6)
