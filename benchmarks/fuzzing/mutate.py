"""Random, reproducible damage to bytes, strings and JSON values."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

_BYTES = (0x00, 0x01, 0x0A, 0x0D, 0x20, 0x7F, 0x80, 0xD8, 0xD9, 0xFF)
_WORDS = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF, 0x10000)
_TEXTS = (
    "", " ", "0", "-1", "nan", "inf", "1e999", "9" * 400, "٣", "½", "\0", "\n", "\r\n\r\n", "\x1b[2J", "\ud800",
    "\u202e", "é" * 300, "../..", "/etc/passwd", "%00", "%s%n", "{}", "[" * 2000, "a" * 5000, "//", "@", ":", "::1",
    "[", "]", "?", "#", ",", "=", "x=y", "true",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 1.5, -0.0, 2**31, 2**63, 2**64, 10**400, -(10**30), 1e308, float("nan"),
    float("inf"), "", "x", "\0", "a\nb", "\ud800", "é" * 300, "../../x", "/etc/passwd", "model.tflite", [], {}, [[]],
    [None], {"": None}, [1] * 3000,
)  # fmt: skip


def damaged_bytes(rng: Random, data: bytes, within: Sequence[tuple[int, int]] = ()) -> bytes:
    """Return ``data`` after one to eight changes; ``within`` are the preferred ranges, (start, end)."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        low, high = rng.choice(within) if within and rng.random() < 0.8 else (0, len(changed))
        at = rng.randrange(min(low, len(changed)), min(high, len(changed)) + 1)
        rng.choice(_BYTE_CHANGES)(rng, changed, at)
    return bytes(changed)


def _flip(rng: Random, data: bytearray, at: int) -> None:
    data[at : at + 1] = bytes([data[at] ^ 1 << rng.randrange(8)]) if at < len(data) else b""


def _write_number(rng: Random, data: bytearray, at: int) -> None:
    data[at : at + 1] = bytes([rng.choice(_BYTES)])


def _write_word(rng: Random, data: bytearray, at: int) -> None:
    at &= ~3
    data[at : at + 4] = rng.choice((*_WORDS, rng.randrange(1 << 32))).to_bytes(4, rng.choice(("little", "big")))


def _insert(rng: Random, data: bytearray, at: int) -> None:
    data[at:at] = rng.choice((rng.randbytes(rng.randrange(1, 40)), bytes([rng.choice(_BYTES)]) * 300, b"\r\n"))


def _delete_bytes(rng: Random, data: bytearray, at: int) -> None:
    del data[at : at + rng.choice((1, 4, 100, len(data)))]


def _repeat_bytes(rng: Random, data: bytearray, at: int) -> None:
    data[at:at] = data[at : at + rng.choice((1, 10, 500))] * rng.choice((1, 3))


_BYTE_CHANGES: tuple[Callable[[Random, bytearray, int], None], ...] = (
    _flip,
    _flip,
    _write_number,
    _write_word,
    _insert,
    _delete_bytes,
    _repeat_bytes,
)


def damaged_text(rng: Random, text: str) -> str:
    """Return ``text`` after one to three changes, or sometimes another text."""
    if rng.random() < 0.05:
        return rng.choice(_TEXTS)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(text) + 1)
        end = rng.choice((at, at + 1, at + rng.randrange(6), len(text)))
        new = rng.choice((rng.choice(_TEXTS), chr(rng.randrange(32, 127)), "", text[at:end] * 2))
        text = text[:at] + new + text[end:]
    return text


def damaged_values(rng: Random, values: Any) -> Any:
    """Return a copy of ``values`` with missing, wrong or renamed values."""
    values = copy.deepcopy(values)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        holder, key = rng.choice(list(_keys_of_containers(values)))
        draw = rng.random()
        if draw < 0.25:
            del holder[key]
        elif draw < 0.65:
            holder[key] = copy.deepcopy(rng.choice(_VALUES))
        elif draw < 0.8 and isinstance(holder, dict):
            holder[damaged_text(rng, str(key))] = holder.pop(key)
        elif isinstance(holder[key], str):
            holder[key] = damaged_text(rng, holder[key])
        elif isinstance(holder[key], int | float):
            holder[key] = rng.choice(
                (holder[key] + 1, -holder[key], holder[key] * 1000, str(holder[key]), [holder[key]])
            )
        elif isinstance(holder[key], list) and holder[key]:
            holder[key] = rng.choice((holder[key][:-1], holder[key] * 2, holder[key][::-1], holder[key][0]))
    return values


def damaged_json(rng: Random, values: Any) -> bytes:
    """Return ``values`` as JSON with missing, repeated, wrong or deeply nested values, or as damaged text."""
    values = damaged_values(rng, values)
    text = json.dumps(values)
    draw = rng.random()
    if draw < 0.05:
        text = text.replace(": ", ": " + "[" * rng.choice((10, 100_000)), 1)
    elif draw < 0.1 and isinstance(values, dict) and values:
        text = text[:-1] + f", {json.dumps(rng.choice(list(values)))}: {json.dumps(rng.choice(_VALUES))}}}"
    content = text.encode()
    return damaged_bytes(rng, content) if rng.random() < 0.15 else content


def _keys_of_containers(values: Any) -> Any:
    """Yield all lists and dictionaries in ``values`` with each of their keys; of long lists, only some."""
    keys = list(values) if isinstance(values, dict) else list(range(min(3, len(values))))
    for key in keys:
        yield values, key
        if isinstance(values[key], dict | list):
            yield from _keys_of_containers(values[key])
    if not keys:
        yield {"": 0}, ""
