"""Latency percentiles reported by ``edgerec benchmark``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class StageLatency:
    """Latency percentiles for one stage in milliseconds."""

    name: str
    p50_ms: float
    p95_ms: float
    p99_ms: float

    @classmethod
    def of(cls, name: str, latencies_ms: Sequence[float]) -> StageLatency:
        """Compute percentiles of the measured latencies."""
        return cls(name, *(round(float(p), 4) for p in np.percentile(latencies_ms, (50, 95, 99))))
