"""Convert monotonic times to Unix times."""

from __future__ import annotations

import time

# The system clock may be corrected gradually by this many seconds before conversions follow it.
TOLERANCE_S = 0.1
_offset_s = 0.0


def unix_s(monotonic_s: float) -> float:
    """Return the Unix time in seconds, rounded to microseconds, of a time of ``time.monotonic()``.

    Equal arguments give equal results, so that a decision has the same start time in every output. The results change
    only if the system clock was set, or has drifted by more than ``TOLERANCE_S`` from the monotonic clock.
    """
    global _offset_s
    offset_s = time.time() - time.monotonic()
    if abs(offset_s - _offset_s) > TOLERANCE_S:
        _offset_s = offset_s
    return round(monotonic_s + _offset_s, 6)
