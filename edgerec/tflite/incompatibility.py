"""Reasons why a target cannot run a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Incompatibility:
    """A reason why a target cannot run a model.

    Attributes:
        index: the operator's index, or −1 if the reason concerns the whole model.
        op: name of the operator, or of the part of the model, such as ``input``.
        layer: name of the operator's first output, or an empty string if there is none.
        reason: why the target cannot run the operator.
        way_out: suggested solution.
    """

    index: int
    op: str
    layer: str
    reason: str
    way_out: str

    def __str__(self) -> str:
        """Format the incompatibility as one line that names the operator, the reason and a solution."""
        where = f"{self.op} {self.layer[-60:]!r}: " if self.layer else f"{self.op}: "
        return f"{where}{self.reason}; {self.way_out}"
