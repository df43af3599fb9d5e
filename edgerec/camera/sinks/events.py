"""What network sinks share: names that are safe anywhere, and decisions when they change."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from edgerec.camera.frame import Result
from edgerec.utils.urls import redacted

_LONGEST = 64


def safe_name(text: str) -> str:
    """``text`` of ASCII letters, digits, ``_`` and ``-`` only, 1 to 64 of them: a level of a topic, a label, a file.

    Secrets in an address are left out. Texts that differ only in punctuation get the same name.
    """
    plain = unicodedata.normalize("NFKD", redacted(text) if "://" in text else text).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9_]+", "-", plain).strip("-")
    return name[-_LONGEST:].strip("-") or "source"  # of a long path the end tells more


def source_of(result: Result) -> str:
    """The camera's source that a result comes from, as its state changes name it."""
    return result.frame.feed or result.frame.source


def decision_event(result: Result) -> dict[str, Any]:
    """A decision as JSON values; ``since_s`` and ``captured_s`` are Unix time. The result must have one."""
    whole = result.to_dict()
    said = {key: value for key, value in whole["decision"].items() if key != "changed"}
    return {"event": "decision", "source": source_of(result), **said} | {
        key: whole[key] for key in ("frame", "captured_s", "age_ms", "novelty") if key in whole
    }


class Changes:
    """Tells each source's new decisions, even when the result that brought one was lost on the way."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, float]] = {}

    def new(self, result: Result) -> bool:
        """Whether the result's decision is another one than its source's last."""
        if result.decision is None:
            return False
        now = (result.decision.label, result.decision.since_s)
        if self._last.get(source_of(result)) == now:
            return False
        self._last[source_of(result)] = now
        return True
