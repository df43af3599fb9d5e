"""Shorten the error messages of TFLite runtimes."""

from __future__ import annotations

import re

LONGEST_REASON = 300


def first_sentence(error: BaseException) -> str:
    """Return the first sentence of a runtime's message, which may repeat itself for each tensor."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    # "Was 3.Tensor 33 has …": the runtime puts no space between its sentences.
    sentence = re.split(r"(?<=[.!?])(?=\s|[A-Z])", lines[0].strip(), maxsplit=1)[0].rstrip(". ")
    return sentence if len(sentence) <= LONGEST_REASON else f"{sentence[:LONGEST_REASON]} …"
