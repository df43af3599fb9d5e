"""Create safe source names and decision events for several sinks."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection
from functools import lru_cache
from typing import Any

from edgerec.camera.frame import Result
from edgerec.utils.url_redaction import redacted

_MAX_LENGTH = 64


@lru_cache(maxsize=256)
def safe_name(text: str) -> str:
    """Convert text to a topic level, metric label or file name of 1 to 64 ASCII letters, digits, ``_`` or ``-``.

    Unlike :func:`~edgerec.utils.names.file_name`, the name is ASCII, as is usual for MQTT topics and metric labels.
    Secrets in an address are removed. If the text is too long or has characters without an ASCII form, the name ends
    with a digest, so that different texts have different names. Texts that differ only in punctuation have the same
    name; see :func:`source_name`.
    """
    text = redacted(text) if "://" in text else text
    ascii_text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    name = re.sub(r"[^A-Za-z0-9_]+", "-", ascii_text).strip("-") or "source"
    if len(name) <= _MAX_LENGTH and all(c.isascii() or not c.isalnum() for c in ascii_text):
        return name
    return _with_digest(name, text)


def _with_digest(name: str, text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    # Keep the end of a long path or URL, which is more specific than the start.
    return f"{name[-(_MAX_LENGTH - 9) :].strip('-')}-{digest}".strip("-")


def source_name(source: str, sources: Collection[str]) -> str:
    """Return a safe source name that is unique among ``sources``."""
    name = safe_name(source)
    if any(other != source and safe_name(other) == name for other in sources):
        return _with_digest(name, source)
    return name


def source_of(result: Result) -> str:
    """Return the display name of the result's source or region, e.g. ``camera/door``."""
    return result.frame.display_name


def decision_event(result: Result) -> dict[str, Any]:
    """Return a result's decision as a JSON-serializable dictionary.

    The result must have a decision. ``since_s`` and ``captured_s`` are Unix time in seconds.
    """
    fields = result.to_dict()
    decision = {key: value for key, value in fields["decision"].items() if key != "changed"}
    source = {"source": result.frame.source or result.frame.origin}
    if result.frame.region is not None:
        source["region"] = result.frame.region.name
    return {"event": "decision", **source, **decision} | {
        key: fields[key] for key in ("frame", "captured_s", "age_ms", "novelty") if key in fields
    }


class DecisionChanges:
    """Detects new decisions, even if the first result after a change was dropped."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, float]] = {}

    def is_new(self, result: Result) -> bool:
        """Return True if the decision differs from the previous decision of the same source or region."""
        if result.decision is None:
            return False
        decision = (result.decision.label, result.decision.since_s)
        if self._last.get(source_of(result)) == decision:
            return False
        self._last[source_of(result)] = decision
        return True
