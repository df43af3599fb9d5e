"""Format commands so that users can paste them into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import PurePath


def command(*words: object) -> str:
    """Return an edgerec command with the given arguments, quoted for a POSIX shell.

    For example, ``command("export", "my run", "--target", "rpi")`` returns ``edgerec export 'my run' --target rpi``.
    Placeholders such as ``FOLDER`` are not changed. A path that begins with a dash is prefixed with ``./``, so that
    the shell command does not interpret the path as an option.
    """
    return shlex.join(["edgerec", *map(_word, words)])


def data_options(data: str | Sequence[str] | None) -> list[str]:
    """Return the arguments ``--data SOURCE`` for each data source, or an empty list if ``data`` is None."""
    sources = [data] if isinstance(data, str) else data or []
    return [word for source in sources for word in ("--data", source)]


def _word(word: object) -> str:
    text = str(word)
    return f"./{text}" if isinstance(word, PurePath) and text.startswith("-") else text
