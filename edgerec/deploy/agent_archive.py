"""Pack the agent and the modules that it imports into a zip application for Python 3.9 or newer."""

from __future__ import annotations

import io
import zipfile
from functools import cache
from importlib.resources import files

# The archive contains an empty __init__.py for each of these packages.
_EMPTY_PACKAGES = ("edgerec", "edgerec/contract", "edgerec/deploy")
# A new version may replace the archive while Python is still importing from it, and Python reopens the path in sys.path
# for every module. Therefore, this program opens the archive once, and puts the path of the open file into sys.path.
# Child processes do not inherit this file. The program is the first entry of the archive, so it has the same offset in
# every version, and Python finds it even if the archive was replaced after Python had read the list of entries.
_MAIN = b"""\
import os
import sys

sys.path[0] = "/proc/self/fd/%d" % os.open(sys.path[0], os.O_RDONLY)
from edgerec.deploy.agent.command import main

main()
"""
# This program reads the compressed archive from stdin, so that a dry run does not write files to the device. The
# archive is stored in an unnamed file in memory, or on disk if this build of Python lacks os.memfd_create(). The file
# is deleted when the program ends, and child processes do not inherit it. The program is a single line, because the
# login shell may be csh, which does not support line breaks in quotes.
RUN_ARCHIVE = (
    "import os, runpy, sys, tempfile, zlib; "
    "file = open(os.memfd_create('agent'), 'wb') if hasattr(os, 'memfd_create') else tempfile.TemporaryFile(); "
    "file.write(zlib.decompress(sys.stdin.buffer.read(int(sys.argv.pop(1))))); file.flush(); "
    "runpy.run_path('/proc/self/fd/%d' % file.fileno(), run_name='__main__')"
)


@cache
def agent_archive() -> bytes:
    """Return the zip application. The content is reproducible, because its digest identifies the agent's version.

    The files are not compressed, because the result of the compression would depend on the host's version of zlib.
    """
    contents = {f"{package}/__init__.py": b"" for package in _EMPTY_PACKAGES}
    contents["__main__.py"] = _MAIN
    contents["edgerec/contract/signature.py"] = files("edgerec.contract").joinpath("signature.py").read_bytes()
    for file in files("edgerec.deploy.agent").iterdir():
        if file.name.endswith(".py"):
            contents[f"edgerec/deploy/agent/{file.name}"] = file.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(contents):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            # Set fixed attributes, so that the archive does not depend on the host's operating system.
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, contents[name])
    return buffer.getvalue()
