"""Commands that messages suggest, written so that a shell takes them as they are."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import PurePath


def command(*words: object) -> str:
    """Return the edgerec command with these words, quoted for a POSIX shell: ``edgerec export 'my run' --target rpi``.

    Placeholders such as ``FOLDER`` stay as they are. A path that begins with a dash gets ``./`` in front, so that it is
    not taken for an option.
    """
    return shlex.join(["edgerec", *map(_word, words)])


def data_options(data: str | Sequence[str] | None) -> list[str]:
    """Return the words ``--data SOURCE`` for each source of images that a command needs again; none without data."""
    sources = [data] if isinstance(data, str) else data or []
    return [word for source in sources for word in ("--data", source)]


def _word(word: object) -> str:
    text = str(word)
    return f"./{text}" if isinstance(word, PurePath) and text.startswith("-") else text
