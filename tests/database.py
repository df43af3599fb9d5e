"""A PostgreSQL of a test's own, on loopback, with a data folder that goes with it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers import free_port

PASSWORD = "not-to-be-shown"
# Debian keeps the server's programs off the path.
_PLACES = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), Path("/usr/local/bin"), Path("/usr/bin")]


def missing() -> str:
    """Why there can be no server here; empty when there can."""
    if _programs() is None:
        return "no PostgreSQL server (apt install postgresql)"
    if os.geteuid() == 0 and _user() is None:
        return "PostgreSQL does not run as root, and there is no user postgres or nobody"
    return ""


@dataclass(frozen=True)
class Server:
    """An empty database: its address, and the process that serves it."""

    address: str
    process: subprocess.Popen

    def kill(self) -> None:
        """As a machine that loses its power."""
        self.process.send_signal(signal.SIGQUIT)  # SIGKILL would leave its children
        self.process.wait(10)


@contextmanager
def postgresql() -> Iterator[Server]:
    """A server, while the block runs."""
    programs, port = _programs(), free_port()
    folder = Path(tempfile.mkdtemp(prefix="edgerec-postgresql-"))
    identity = {}
    if os.geteuid() == 0:
        user = _user()
        os.chown(folder, user.pw_uid, user.pw_gid)
        identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    options = {"cwd": folder, **identity}
    server = None
    try:
        make = [programs / "initdb", "-D", folder / "data", "-U", "tuner", "-A", "trust", "--no-sync", "-E", "UTF8"]
        subprocess.run([*make, "--locale=C"], check=True, capture_output=True, timeout=120, **options)
        settings = [f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={folder}", "fsync=off"]
        command = [programs / "postgres", "-D", folder / "data", *(part for one in settings for part in ("-c", one))]
        with open(folder / "log", "wb") as told:
            server = subprocess.Popen(command, stdout=told, stderr=told, **options)
        _wait(server, [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)], folder / "log")
        yield Server(f"postgresql://tuner:{PASSWORD}@127.0.0.1:{port}/postgres", server)
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)  # ends connections too
            server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path | None:
    return next((place for place in _PLACES if all((place / name).is_file() for name in ("initdb", "postgres"))), None)


def _user() -> pwd.struct_passwd | None:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


def _wait(server: subprocess.Popen, ready: list, log: Path) -> None:
    until = time.monotonic() + 60
    while subprocess.run(ready, check=False).returncode:
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < until, "PostgreSQL does not start"
        time.sleep(0.05)
