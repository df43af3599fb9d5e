"""Timeouts after which a live source is treated as stale or lost, and delays between reconnection attempts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgerec.errors import ConfigError


@dataclass(frozen=True)
class Timeouts:
    """Timeouts for live sources, in seconds.

    Attributes:
        open_s: time after which a connection attempt is aborted and repeated if no frame has arrived.
        stale_s: time without a frame after which a source is stale.
        lost_s: time without a frame after which a source is lost and a new connection is made.
        first_wait_s: delay before the first attempt to reconnect. The delay doubles with each further attempt.
        longest_wait_s: maximum delay between two attempts.
        give_up_s: time without a frame after which the source ends with an error. None never gives up, and 0 gives up
            when the source is lost for the first time.
    """

    open_s: float = 15.0
    stale_s: float = 2.0
    lost_s: float = 10.0
    first_wait_s: float = 0.25
    longest_wait_s: float = 2.0
    give_up_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("open_s", "stale_s", "lost_s", "first_wait_s", "longest_wait_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"Timeouts.{name}", f"is {getattr(self, name)}; expected a number above 0")
        if self.give_up_s is not None and not self.give_up_s >= 0:
            raise ConfigError("Timeouts.give_up_s", f"is {self.give_up_s}; expected at least 0")
        if self.stale_s > self.lost_s:
            raise ConfigError("Timeouts.stale_s", f"is {self.stale_s:g}, but must not exceed lost_s ({self.lost_s:g})")

    def pauses(self) -> Iterator[float]:
        """Yield the delays between reconnection attempts, in seconds."""
        pause_s = self.first_wait_s
        while True:
            yield pause_s
            pause_s = min(2 * pause_s, self.longest_wait_s)
