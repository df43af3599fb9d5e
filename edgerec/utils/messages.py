"""Shorten the error messages of TFLite runtimes."""

from __future__ import annotations

import re

LONGEST_REASON = 300


def first_sentence(error: BaseException) -> str:
    """Return the first sentence of an error message. The full message may repeat this sentence for each tensor."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    # TFLite puts no space between sentences, e.g. "Was 3.Tensor 33 has …".
    sentence = re.split(r"(?<=[.!?])(?=\s|[A-Z])", lines[0].strip(), maxsplit=1)[0].rstrip(". ")
    return sentence if len(sentence) <= LONGEST_REASON else f"{sentence[:LONGEST_REASON]} …"
