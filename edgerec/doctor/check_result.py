"""Result types of the checks performed by ``edgerec doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class CheckState(StrEnum):
    """Outcome of a check: ``ok`` (success), ``note`` (a restriction) or ``problem`` (a failure)."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        what: what was checked, in one or two words, e.g. ``camera``.
        state: outcome of the check.
        detail: details in one sentence.
        fix: shell command that fixes the problem; empty if there is no problem or no such command.
    """

    what: str
    state: CheckState
    detail: str
    fix: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return the result as a JSON-serializable dictionary."""
        return {"what": self.what, "state": str(self.state), "detail": self.detail, "fix": self.fix}


@dataclass(frozen=True)
class DoctorReport:
    """The results of all checks, in the order in which problems should be fixed."""

    results: tuple[CheckResult, ...]

    @property
    def ok(self) -> bool:
        """True if no check found a problem."""
        return not self.of(CheckState.PROBLEM)

    def of(self, state: CheckState) -> list[CheckResult]:
        """Return the check results with the given state."""
        return [result for result in self.results if result.state is state]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-serializable dictionary."""
        return {"ok": self.ok, "findings": [result.to_dict() for result in self.results]}


def ok(what: str, detail: str) -> CheckResult:
    """Return a result with the state ``ok``."""
    return CheckResult(what, CheckState.OK, detail)


def note(what: str, detail: str, fix: str = "") -> CheckResult:
    """Return a result with the state ``note``."""
    return CheckResult(what, CheckState.NOTE, detail, fix)


def problem(what: str, detail: str, fix: str = "") -> CheckResult:
    """Return a result with the state ``problem``."""
    return CheckResult(what, CheckState.PROBLEM, detail, fix)
