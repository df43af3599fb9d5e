"""The reasons why a target cannot run a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """A reason why a target cannot run a model.

    Attributes:
        index: index of the operator; −1 if the finding is about the whole model.
        op: name of the operator, or of the part of the model, such as ``input``.
        layer: name of the operator's first output; empty if there is none.
        reason: why the target cannot run the operator.
        way_out: how to solve the problem.
    """

    index: int
    op: str
    layer: str
    reason: str
    way_out: str

    def __str__(self) -> str:
        """Return operator, layer, reason and solution as one line."""
        where = f"{self.op} {self.layer[-60:]!r}: " if self.layer else f"{self.op}: "
        return f"{where}{self.reason}; {self.way_out}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dict(vars(self))
