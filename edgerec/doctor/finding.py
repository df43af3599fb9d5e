"""What the doctor says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """``ok``; ``note``: good to know, or worse than it could be; ``problem``: something does not work."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: the thing, in a word or two.
        state: how it is.
        detail: what was found.
        mend: the command that mends it; empty where there is nothing to mend, or no command for it.
    """

    what: str
    state: State
    detail: str
    mend: str = ""

    def to_dict(self) -> dict[str, str]:
        """The finding as JSON values."""
        return {"what": self.what, "state": str(self.state), "detail": self.detail, "mend": self.mend}


@dataclass(frozen=True)
class DoctorReport:
    """All findings, in the order in which things build on each other."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is a problem."""
        return not self.of(State.PROBLEM)

    def of(self, state: State) -> list[Finding]:
        """The findings with that state."""
        return [finding for finding in self.findings if finding.state is state]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {"ok": self.ok, "findings": [finding.to_dict() for finding in self.findings]}


def ok(what: str, detail: str) -> Finding:
    """A finding that is fine."""
    return Finding(what, State.OK, detail)


def note(what: str, detail: str, mend: str = "") -> Finding:
    """A finding that is good to know."""
    return Finding(what, State.NOTE, detail, mend)


def problem(what: str, detail: str, mend: str = "") -> Finding:
    """A finding of something that does not work."""
    return Finding(what, State.PROBLEM, detail, mend)
