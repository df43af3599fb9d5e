"""Label files that others wrote."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from edgerec.errors import DataError

log = logging.getLogger(__name__)

# Coral's and Teachable Machine's way: the index, then the label.
_INDEXED = re.compile(r"(\d+)[\s:,]+(\S.*)")


def read_labels(path: Path) -> tuple[str, ...]:
    """The labels of a text file with one a line, :func:`in_order`; raises :class:`DataError` when it is none."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text ({error.reason}): a label file has one label a line") from None
    return in_order([line.strip() for line in text.split("\n") if line.strip()])


def in_order(lines: Sequence[str]) -> tuple[str, ...]:
    """The labels of ``lines`` in the order of the outputs.

    Where every line is ``index label``, and the indices are 0, 1, 2 … in any order, they give the order.
    """
    indexed = {int(match[1]): match[2] for line in lines if (match := _INDEXED.fullmatch(line))}
    if sorted(indexed) == list(range(len(lines))):
        return tuple(indexed[i] for i in range(len(lines)))
    return tuple(lines)


def distinct(labels: Sequence[str], where: str) -> tuple[str, ...]:
    """The labels, of which a later one that was there before gets a number: ``crane``, ``crane (2)``."""
    known = set(labels)
    seen: set[str] = set()
    result: list[str] = []
    for label in labels:
        name, number = label, 2
        while name in seen or (name != label and name in known):
            name, number = f"{label} ({number})", number + 1
        if name != label:
            log.warning("%s has the label %r twice: output %d is called %r", where, label, len(result), name)
        seen.add(name)
        result.append(name)
    return tuple(result)
