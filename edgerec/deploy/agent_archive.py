"""Pack the agent and the modules that it imports into a zip application for Python 3.9 or newer."""

from __future__ import annotations

import io
import zipfile
from functools import cache
from importlib.resources import files

# The archive contains an empty __init__.py for each of these packages.
_EMPTY_PACKAGES = ("edgerec", "edgerec/contract", "edgerec/deploy")
_MAIN = b"from edgerec.deploy.agent.command import main\n\nmain()\n"
# This program reads the archive from stdin, so that a dry run does not write files to the device. The archive is stored
# in an unnamed file in memory, which is deleted when the program ends. os.memfd_create() is not used, because some
# builds of Python lack it. Child processes do not inherit the file. The program has one line, because the login shell
# may be csh, which does not support line breaks in quotes.
RUN_ARCHIVE = (
    "import runpy, sys, tempfile; file = tempfile.TemporaryFile(dir='/dev/shm'); "
    "file.write(sys.stdin.buffer.read(int(sys.argv.pop(1)))); file.flush(); "
    "runpy.run_path('/proc/self/fd/%d' % file.fileno(), run_name='__main__')"
)


@cache
def agent_archive() -> bytes:
    """Return the zip application. The content is reproducible, because its digest identifies the agent's version."""
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
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Otherwise, the archive would depend on the host's operating system.
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, contents[name], compresslevel=9)
    return buffer.getvalue()
