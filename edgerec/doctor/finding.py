"""Findings of edgerec doctor."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """The state of a finding.

    ``ok``: it works. ``note``: it works, but the finding is worth knowing. ``problem``: it does not work.
    """

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        what: subject of the check in one or two words, e.g. ``camera``.
        state: whether the subject works.
        detail: result of the check in one sentence.
        fix: shell command that fixes a problem; empty if there is no problem, or no command that fixes it.
    """

    what: str
    state: State
    detail: str
    fix: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return the finding as JSON values."""
        return {"what": self.what, "state": str(self.state), "detail": self.detail, "mend": self.fix}


@dataclass(frozen=True)
class DoctorReport:
    """All findings. A finding depends only on findings before it."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.of(State.PROBLEM)

    def of(self, state: State) -> list[Finding]:
        """Return the findings with this state."""
        return [finding for finding in self.findings if finding.state is state]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {"ok": self.ok, "findings": [finding.to_dict() for finding in self.findings]}


def ok(what: str, detail: str) -> Finding:
    """Return a finding with the state ``ok``."""
    return Finding(what, State.OK, detail)


def note(what: str, detail: str, fix: str = "") -> Finding:
    """Return a finding with the state ``note``."""
    return Finding(what, State.NOTE, detail, fix)


def problem(what: str, detail: str, fix: str = "") -> Finding:
    """Return a finding with the state ``problem``."""
    return Finding(what, State.PROBLEM, detail, fix)
