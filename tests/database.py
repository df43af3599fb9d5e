"""A temporary PostgreSQL server on the loopback interface for a single test."""

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
# Folders with the server's programs, which Debian does not include in PATH.
_FOLDERS = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), Path("/usr/local/bin"), Path("/usr/bin")]


def unavailable_reason() -> str:
    """Return the reason why this machine cannot run a server; an empty string if it can."""
    if _programs() is None:
        return "no PostgreSQL server (apt install postgresql)"
    if os.geteuid() == 0 and _user() is None:
        return "PostgreSQL cannot be run by root, and there is no user postgres or nobody"
    return ""


@dataclass(frozen=True)
class Server:
    """A server with an empty database.

    Attributes:
        address: URL of the database.
        process: process of the server.
    """

    address: str
    process: subprocess.Popen

    def kill(self) -> None:
        """End the server without a shutdown, like a machine that loses power."""
        self.process.send_signal(signal.SIGQUIT)  # SIGKILL would not end the child processes of the server
        self.process.wait(10)


@contextmanager
def postgresql() -> Iterator[Server]:
    """Run a server during a ``with`` block, and delete its data afterwards."""
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
        data = folder / "data"
        initdb = [programs / "initdb", "-D", data, "-U", "tuner", "-A", "trust", "--no-sync", "-E", "UTF8"]
        subprocess.run([*initdb, "--locale=C"], check=True, capture_output=True, timeout=120, **options)
        settings = [f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={folder}", "fsync=off"]
        command = [programs / "postgres", "-D", data, *(word for setting in settings for word in ("-c", setting))]
        with open(folder / "log", "wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, **options)
        _wait(server, [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)], folder / "log")
        yield Server(f"postgresql://tuner:{PASSWORD}@127.0.0.1:{port}/postgres", server)
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)  # fast shutdown, which also ends open connections
            server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path | None:
    """Return the folder that contains the server's programs; None if PostgreSQL is not installed."""
    programs = ("initdb", "postgres")
    return next((folder for folder in _FOLDERS if all((folder / name).is_file() for name in programs)), None)


def _user() -> pwd.struct_passwd | None:
    """Return an unprivileged user that can run the server if the tests are run by root."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


def _wait(server: subprocess.Popen, ready: list, log: Path) -> None:
    """Wait until the command ``ready`` succeeds; fail if the server ends or does not start within 60 s."""
    deadline = time.monotonic() + 60
    while subprocess.run(ready, check=False).returncode:
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline, "PostgreSQL did not start within 60 s"
        time.sleep(0.05)
