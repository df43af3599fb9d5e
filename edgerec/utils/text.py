"""Escape untrusted text from files, servers and devices before it is displayed."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable
from typing import Any

# Joiners and non-breaking spaces are considered printable, because many scripts need them.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
# Spreadsheets evaluate a cell as a formula if it begins with one of these characters and is not a number.
_FORMULA = re.compile(r"[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|[+-]?(?:inf|nan)", re.IGNORECASE)


def is_printable(text: str) -> bool:
    """Return True if ``text`` contains no control characters, line breaks, bidi controls or unpaired surrogates."""
    return not _UNPRINTABLE.search(text)


def printable(text: str) -> str:
    r"""Replace line breaks and unprintable characters with escapes such as ``\x1b``, for a terminal or log."""
    return _UNPRINTABLE.sub(lambda match: repr(match[0])[1:-1], text)


def shortened(text: str, max_characters: int) -> str:
    """Replace the middle of a long text with an ellipsis."""
    half = max_characters // 2
    return text if len(text) <= max_characters else f"{text[:half]} … {text[-half:]}"


def counted(number: int, noun: str) -> str:
    """Return a number with a noun in the singular or plural, e.g. ``1 file`` or ``1,200 files``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def to_json(value: Any, indent: int | None = None) -> str:
    """Convert a value to strict JSON. NaN and infinity become null, and unprintable characters are escaped."""
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), indent=indent, ensure_ascii=False)
    if text.isascii() and "\x7f" not in text:  # json.dumps has escaped the other control characters.
        return text
    # json.dumps escapes line breaks in strings, so all line breaks in the text are indentation.
    return _UNPRINTABLE.sub(lambda match: "\n" if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def csv_line(values: Iterable[object]) -> str:
    """Return a CSV line. Strings that spreadsheets would evaluate as formulas are prefixed with an apostrophe."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow([_cell(v) if isinstance(v, str) else v for v in values])
    return line.getvalue()


def _cell(text: str) -> str:
    formula = _FORMULA.match(text) and not _NUMBER.fullmatch(text)
    return printable(f"'{text}" if formula else text)
