"""What a target has against a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """An operator (index −1: the whole model) that a target refuses, why, and the way out."""

    index: int
    op: str
    layer: str
    reason: str
    way_out: str

    def __str__(self) -> str:
        """One line."""
        where = f"{self.op} {self.layer[-60:]!r}: " if self.layer else f"{self.op}: "
        return f"{where}{self.reason}; {self.way_out}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return dict(vars(self))
