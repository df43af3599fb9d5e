"""Find the programs that have a file or device open."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from edgerec.runtime.video_devices import read_text
from edgerec.utils.text import printable


def programs_using(path: str | Path) -> list[str]:
    """Return the names of other programs that have a file or device open, e.g. ``ffmpeg (process 123)``.

    The result does not contain processes that this user may not inspect, and is empty on systems other than Linux.
    """
    try:
        target = os.stat(path)
    except OSError:
        return []
    programs = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        process = link.parts[2]
        with contextlib.suppress(OSError):
            if process != str(os.getpid()) and os.path.samestat(link.stat(), target):
                name = printable(read_text(Path("/proc", process, "comm")))
                programs.add(f"{name} (process {process})")
    return sorted(programs)
