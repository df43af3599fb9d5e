"""Which other programs hold a file or device open."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from edgerec.runtime.video_devices import read_text
from edgerec.utils.text import printable


def programs_using(path: str | Path) -> list[str]:
    """The other programs that hold a file or device open, as ``name (process 123)``, as far as Linux tells us."""
    try:
        wanted = os.stat(path)
    except OSError:
        return []
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        process = link.parts[2]
        with contextlib.suppress(OSError):
            if process != str(os.getpid()) and os.path.samestat(link.stat(), wanted):
                name = printable(read_text(Path("/proc", process, "comm")))
                found.add(f"{name} (process {process})")
    return sorted(found)
