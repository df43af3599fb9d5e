"""Shorten the error messages of TFLite runtimes."""

from __future__ import annotations

import re

MAX_REASON_CHARACTERS = 300


def first_sentence(error: BaseException) -> str:
    """Return the first sentence of an error message, because TFLite may append a similar sentence for every tensor."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    # TFLite error messages have no space between sentences, e.g. "Was 3.Tensor 33 has …".
    sentence = re.split(r"(?<=[.!?])(?=\s|[A-Z])", lines[0].strip(), maxsplit=1)[0].rstrip(". ")
    return sentence if len(sentence) <= MAX_REASON_CHARACTERS else f"{sentence[:MAX_REASON_CHARACTERS]} …"
