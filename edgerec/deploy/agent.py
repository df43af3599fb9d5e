"""A program that installs, starts and monitors releases on a device, and does not depend on the edgerec package.

The program requires Python 3.9 and only uses the standard library. The host copies this file to
``/opt/edgerec/agent.py``, and runs the file as root with one of these commands:

* ``session`` responds to a host's requests on stdin, and receives files.
* ``job`` executes the request in ``job.json``, even if the SSH connection is lost.
* ``follow`` prints the progress of a job.
* ``boot-check`` restores the previous release if the device restarted while a new release was being monitored.

The agent never runs code of a bundle or of a wheel as root: pip and ``edgerec verify`` run as the user ``nobody``.

Each new release has a trial period, which ends when the agent accepts the release or restores the previous one.
``trial.json`` exists during the trial period. The agent writes ``trial.json`` before it replaces the symbolic link
``current``, so that the device always has a working release after a power failure.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import errno
import fcntl
import glob
import grp
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import IO, Any

UNIT = "edgerec.service"
UNIT_FOLDER = "/etc/systemd/system"
CONFIG_FOLDER = "/etc/edgerec"
STATUS_FILE = "/run/edgerec/status.json"
SIGNATURE = "manifest.json.sig"
# Number of bytes between two progress reports of a transfer.
REPORT_BYTES = 2 << 20
PART_AGE_S = 7 * 86400
MAX_FILE_BYTES = 2 << 30
MAX_LINE_BYTES = 16 << 20
CHUNK_BYTES = 1 << 18
MIN_FRAMES = 10
LOG_LINES = 30
# Minimum free disk space in bytes that a job needs for its log file.
MIN_LOG_BYTES = 1 << 16
POLL_S = 0.5
COMMAND_TIMEOUT_S = 120
INSTALL_TIMEOUT_S = 1800
# Idle timeout in seconds of a session that has locked the installation.
IDLE_S = 120
# Number of seconds after which a job that has not locked the installation is treated as failed.
START_S = 20
# Maximum time in seconds that a session waits for the lock of the installation.
LOCK_S = 1.0
# ID of the user and of the group "nobody", which may only read files that all users may read.
NOBODY = 65534
# Option of prctl(2) for a child subreaper, a process that becomes the parent of its orphaned descendants.
PR_SET_CHILD_SUBREAPER = 36
# Maximum time in seconds for ending the processes that a program has left running.
KILL_S = 10.0
# File name suffix of backups that are restored if a new release fails.
PREVIOUS = ".previous"
# Suffix that is added to the name of a folder before the folder is deleted.
REMOVED = ".removed"
DIGEST = re.compile(r"[0-9a-f]{64}")
RELEASE = re.compile(r"[0-9a-f]{16}")
WHEEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]*\.whl")


class AgentError(Exception):
    """Raised when an operation on the device fails."""

    def __init__(self, message: str, step: str = "", restored: bool = False, log: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.step, self.restored, self.log = step, restored, list(log)

    def to_dict(self) -> dict[str, Any]:
        return {"error": str(self), "step": self.step, "restored": self.restored, "log": self.log}


def fsync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: str, content: bytes, mode: int = 0o644) -> None:
    """Write a file atomically, so that a power failure leaves either the old or the new content."""
    partial = path + ".new"
    remove_path(partial)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    fsync_folder(os.path.dirname(path))


def write_json(path: str, value: Any, mode: int = 0o644) -> None:
    write_file(path, json.dumps(value, indent=1).encode(), mode)


def read_json(path: str) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty dictionary if the file is missing or invalid."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read(MAX_LINE_BYTES))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_bytes(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_LINE_BYTES)
    except OSError:
        return None


def remove_path(path: str) -> None:
    if os.path.islink(path) or os.path.isfile(path):
        os.unlink(path)
    elif os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)


def remove_folder(path: str) -> None:
    """Rename a folder and then delete it, so that an interruption does not leave an incomplete folder at ``path``."""
    removed = path + REMOVED
    remove_path(removed)
    if os.path.isdir(path):
        os.rename(path, removed)
        fsync_folder(os.path.dirname(path))
        remove_path(removed)


def file_digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(CHUNK_BYTES), b""):
            digest.update(chunk)
    return digest.hexdigest()


def content_digest(content: bytes | None) -> str:
    return "" if content is None else hashlib.sha256(content).hexdigest()


def is_same_file(file: IO[str], path: str) -> bool:
    """Return whether ``path`` refers to the open file ``file``."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def safe_name(name: str) -> str:
    """Check that a relative path stays inside the bundle's folder, and return the path.

    Raises:
        AgentError: the path could refer to a file outside the bundle's folder.
    """
    parts = name.split("/")
    if not name or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise AgentError(f"the path {name!r} leaves the bundle's folder: do not use this bundle", "install")
    return name


def uses_first_camera(config: str) -> bool:
    """Return whether a camera's TOML configuration contains the source ``auto``, which selects the first camera.

    The configuration is searched with a regular expression, because ``tomllib`` requires Python 3.11.
    """
    sources = re.search(r"^\s*sources\s*=\s*(\[[^\]]*\]|.*)", config, re.MULTILINE)
    return bool(sources and re.search(r"""^[^#]*["']auto["']""", sources[1], re.MULTILINE))


def boot_id() -> str:
    """Return an ID that changes when the device restarts."""
    # read_bytes() cannot be used, because the kernel does not accept a large buffer for this file.
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read(64).strip()


def run(command: list[str], timeout_s: float = COMMAND_TIMEOUT_S, **options: Any) -> tuple[int, str, str]:
    """Run a program, and return its exit code, standard output and standard error."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False, **options
        )
    except subprocess.TimeoutExpired:
        return 124, "", f"{os.path.basename(command[0])} did not finish within {timeout_s:g} s"
    except OSError as error:
        return 127, "", f"{os.path.basename(command[0])} cannot be started ({error.strerror})"
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


def run_as_nobody(command: list[str], groups: Sequence[int] = ()) -> tuple[int, str, str]:
    """Run a program like :func:`run`, but as the user ``nobody`` with an empty home folder.

    Processes that the program has left running are killed.

    Raises:
        AgentError: the program has left processes that cannot be killed.
    """
    import ctypes  # Some builds of Python lack this module, but boot-check must work there.

    home = tempfile.mkdtemp(prefix="edgerec-")
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        os.chown(home, NOBODY, NOBODY)
        path = os.environ.get("PATH", "/usr/bin:/bin")
        environment = {"PATH": path, "LANG": "C.UTF-8", "HOME": home, "EDGEREC_CACHE": home}
        user: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": list(groups)}
        return run(command, INSTALL_TIMEOUT_S, env=environment, cwd=home, **user)
    finally:
        kill_children(command[0])
        shutil.rmtree(home, ignore_errors=True)


def kill_children(program: str) -> None:
    """Kill all child processes of the user ``nobody``. Their own children become children of this process.

    Raises:
        AgentError: new processes were started faster than they were killed.
    """
    deadline_s = time.monotonic() + KILL_S
    while True:
        children = [process for process in os.listdir("/proc") if process.isdecimal() and is_child_of_nobody(process)]
        if not children:
            return
        if time.monotonic() > deadline_s:
            raise AgentError(
                f"{os.path.basename(program)} has started processes that cannot be ended: restart the device, and do "
                "not use this bundle",
                "install",
            )
        for process in children:
            os.kill(int(process), signal.SIGKILL)
        for process in children:
            os.waitpid(int(process), 0)


def is_child_of_nobody(process: str) -> bool:
    """Return whether a process is a child of this process, and runs as the user ``nobody``."""
    status = (read_bytes(f"/proc/{process}/status") or b"").decode("utf-8", "replace")
    return f"\nPPid:\t{os.getpid()}\n" in status and f"\nUid:\t{NOBODY}\t" in status


def give_to_nobody(folder: str) -> None:
    """Make the user ``nobody`` the owner of a folder and its content, but not of the targets of symbolic links."""
    # Change a folder after its content, so that a process of the user nobody cannot replace entries meanwhile.
    for _, folders, files, descriptor in os.fwalk(folder, topdown=False, onerror=raise_error):
        for name in folders + files:
            os.chown(name, NOBODY, NOBODY, dir_fd=descriptor, follow_symlinks=False)
        os.chown(descriptor, NOBODY, NOBODY)


def return_to_root(folder: str) -> None:
    """Make root the owner of a folder and its content, and the only user who can change them."""
    for _, folders, _, descriptor in os.fwalk(folder, onerror=raise_error):
        # Change a folder before its content, so that a process of the user nobody cannot replace entries meanwhile.
        # chmod also limits access control lists, because the group bits of the mode are their mask.
        os.chown(descriptor, 0, 0)
        os.chmod(descriptor, 0o755)
        folders.clear()
        for name in os.listdir(descriptor):
            os.chown(name, 0, 0, dir_fd=descriptor, follow_symlinks=False)
            mode = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                folders.append(name)
            elif not stat.S_ISLNK(mode):
                os.chmod(name, mode & 0o755, dir_fd=descriptor)


def is_complete_venv(path: str) -> bool:
    """Return whether a virtual environment is completely installed. Only root can mark an environment as complete."""
    try:
        return os.lstat(os.path.join(path, ".complete")).st_uid == os.geteuid()
    except OSError:
        return False


def raise_error(error: OSError) -> None:
    raise error


def service_groups(unit: str) -> list[int]:
    """Return the IDs of the groups that systemd adds to the camera service, e.g. to access an accelerator.

    Args:
        unit: content of the service's unit file. Drop-in files of ``systemctl edit`` are read from the device.
    """
    names: list[str] = []
    drop_ins = sorted(glob.glob(os.path.join(UNIT_FOLDER, UNIT + ".d", "*.conf")))
    for text in [unit, *((read_bytes(path) or b"").decode("utf-8", "replace") for path in drop_ins)]:
        for value in re.findall(r"^SupplementaryGroups=(.*)$", text, re.MULTILINE):
            names = names + value.split() if value.strip() else []
    groups = []
    for name in names:
        # Ignore a missing group, because systemd reports it when it starts the service.
        with contextlib.suppress(KeyError):
            groups.append(int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid)
    return groups


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or ["no message"])[-1][:400]


def systemctl(*arguments: str, step: str = "switch") -> None:
    code, _, errors = run(["systemctl", *arguments])
    if code:
        raise AgentError("systemctl {} failed: {}".format(" ".join(arguments), last_line(errors)), step)


def unit_state() -> dict[str, str]:
    """Return the properties that systemd reports for the camera service, keyed by name."""
    names = "ActiveState,SubState,MainPID,NRestarts,Result,InvocationID,ExecMainStatus"
    _, output, _ = run(["systemctl", "show", UNIT, "--property=" + names])
    return dict(line.split("=", 1) for line in output.splitlines() if "=" in line)


def service_log() -> list[str]:
    """Return the last lines that the camera service wrote to the systemd journal."""
    _, output, _ = run(["journalctl", "--unit", UNIT, "--lines", str(LOG_LINES), "--output", "cat", "--no-pager"])
    return [line[:500] for line in output.splitlines()][-LOG_LINES:]


class Installation:
    """The installation folder on a device, with its releases, virtual environments and state files."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.store, self.releases, self.venvs = (os.path.join(prefix, name) for name in ("store", "releases", "venvs"))
        self.current_link = os.path.join(prefix, "current")
        self.trial_file = os.path.join(prefix, "trial.json")
        self.state_file = os.path.join(prefix, "state.json")
        self.job_file = os.path.join(prefix, "job.json")
        self.agent_file = os.path.join(prefix, "agent.py")
        self.secrets_file = os.path.join(CONFIG_FOLDER, "secrets.env")
        self.log_file = os.path.join(prefix, "deploy.log")
        self.unit_file = os.path.join(UNIT_FOLDER, UNIT)
        self.config_file = os.path.join(CONFIG_FOLDER, "camera.toml")
        self.signers_file = os.path.join(CONFIG_FOLDER, "allowed_signers")
        self.new_signers_file = os.path.join(prefix, "allowed_signers.next")
        self.old_config_file = self.config_file + PREVIOUS

    def create_folders(self) -> None:
        for folder in (self.prefix, self.store, self.releases, self.venvs, CONFIG_FOLDER):
            os.makedirs(folder, mode=0o755, exist_ok=True)

    def lock(self, host: str, wait_s: float, name: str = "lock") -> IO[str]:
        """Acquire an exclusive lock on the installation, and return the open lock file.

        A session first acquires ``session.lock`` and then ``lock``. Before a session starts its job, the session
        releases ``lock``, so that the job can acquire ``lock``. Meanwhile, ``session.lock`` blocks other sessions.

        Raises:
            AgentError: another deployment holds the lock.
        """
        path = os.path.join(self.prefix, name)
        deadline_s = time.monotonic() + wait_s
        file = open(path, "a+")  # noqa: SIM115 (The file is open as long as the lock.)
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_same_file(file, path):
                    break
                # The previous lock holder deleted the lock file, so the new file at the same path must be locked.
                file.close()
                os.makedirs(self.prefix, mode=0o755, exist_ok=True)
                file = open(path, "a+")  # noqa: SIM115
                continue
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    file.seek(0)
                    holder = file.read(1000).strip() or "an unknown host"
                    file.close()
                    raise AgentError(
                        f"another deployment is in progress (started by {holder}): wait until it has finished. If its "
                        f"connection was lost during the transfer, the device ends it within {IDLE_S // 60} minutes",
                        "plan",
                    ) from None
                time.sleep(0.1)
        file.seek(0)
        file.truncate()
        started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        file.write(f"{host[:100]} at {started}")
        file.flush()
        return file

    def lock_session(self, host: str) -> tuple[IO[str], IO[str]]:
        """Create the installation's folders, and return the open files ``session.lock`` and ``lock``.

        Raises:
            AgentError: another deployment holds one of the locks.
        """
        self.create_folders()
        session_lock = self.lock(host, LOCK_S, "session.lock")
        lock = self.lock(host, LOCK_S)
        # The folders are created again, because the previous lock holder may have deleted them.
        self.create_folders()
        if not os.path.exists(self.trial_file):
            # Incomplete files are deleted before the host checks the free disk space.
            self.clean_up()
        return session_lock, lock

    def remove_agent(self, host: str) -> bool:
        """Delete the agent's own files unless a release is installed or another deployment is in progress.

        Returns:
            Whether the files were deleted.
        """
        try:
            locks = [self.lock(host, LOCK_S, name) for name in ("session.lock", "lock")]
        except (AgentError, FileNotFoundError):
            return False
        if os.path.lexists(self.current_link) or os.path.exists(self.releases):
            return False
        for name in ("agent.py", "signature.py", "allowed_signers.next", "deploy.log", "lock", "session.lock"):
            remove_path(os.path.join(self.prefix, name))
        # The folder is kept if it contains other files or is a mount point.
        with contextlib.suppress(OSError):
            os.rmdir(self.prefix)
        for lock in locks:
            lock.close()
        return True

    def release_path(self, release: str, *names: str) -> str:
        if not RELEASE.fullmatch(release or ""):
            raise AgentError(
                f"the host requested the release {release!r}, which is not a release ID of 16 hexadecimal digits: "
                "update edgerec on the host",
                "plan",
            )
        return os.path.join(self.releases, release, *names)

    def is_complete(self, release: str) -> bool:
        return bool(release) and bool(read_json(self.release_path(release, "release.json")))

    def current(self) -> str:
        """Return the digest of the current release, or an empty string if there is none."""
        try:
            release = os.path.basename(os.readlink(self.current_link))
        except OSError:
            return ""
        return release if RELEASE.fullmatch(release) else ""

    def complete_releases(self) -> list[str]:
        """Return the digests of all completely installed releases, newest first."""
        names = os.listdir(self.releases) if os.path.isdir(self.releases) else []
        complete = [name for name in names if RELEASE.fullmatch(name) and self.is_complete(name)]
        installed = {
            name: read_json(self.release_path(name, "release.json")).get("installed_s", 0) for name in complete
        }
        return sorted(complete, key=lambda name: (-installed[name], name))

    def state(self) -> dict[str, Any]:
        return read_json(self.state_file)

    def previous(self) -> str:
        """Return the digest of the release to which a rollback switches, or an empty string if there is none."""
        previous = self.state().get("previous") or ""
        return previous if previous != self.current() and self.is_complete(previous) else ""

    def free_bytes(self) -> int:
        space = os.statvfs(self.prefix if os.path.isdir(self.prefix) else "/")
        return space.f_bavail * space.f_frsize

    def status(self) -> dict[str, Any]:
        """Return the status of the device as a JSON-serializable dictionary."""
        current, state = self.current(), self.state()
        release = read_json(self.release_path(current, "release.json")) if current else {}
        unit = unit_state()
        camera = read_json(STATUS_FILE) or None
        running = camera is not None and str(camera.get("pid")) == unit.get("MainPID")
        config, unit_content = read_bytes(self.config_file), read_bytes(self.unit_file)
        unit_prefix = re.search(rb"agent\.py boot-check --prefix (\S+)", unit_content or b"")
        return {
            "release": current,
            "previous": self.previous(),
            "releases": self.complete_releases(),
            "name": release.get("name", ""),
            "target": release.get("target", ""),
            "on_trial": os.path.exists(self.trial_file),
            "service": unit.get("ActiveState", "unknown"),
            "free_bytes": self.free_bytes(),
            "camera": camera if running else None,
            "age_s": max(0.0, time.time() - camera.get("updated_s", 0)) if running and camera else None,
            "require_signature": bool(state.get("require_signature")),
            "serial": state.get("serial", 0),
            "config": content_digest(config),
            "auto_source": uses_first_camera((config or b"").decode("utf-8", "replace")),
            "signers": content_digest(read_bytes(self.signers_file)),
            "unit": content_digest(unit_content),
            "agent": content_digest(read_bytes(self.agent_file)),
            # The unit of install.sh does not run the agent, so it contains no --prefix.
            "unit_prefix": unit_prefix[1].decode("ascii", "replace") if unit_prefix else "",
            "foreign_unit": unit_content is not None and self.agent_file.encode() not in unit_content,
        }

    def missing(self, sizes: dict[str, int]) -> dict[str, int]:
        """Find the files that are missing in the content store.

        Args:
            sizes: dictionary that maps the digests of files to their sizes in bytes.

        Returns:
            A dictionary that maps the digest of each missing file to the number of bytes already received.
        """
        missing = {}
        for digest, size in sizes.items():
            path = self.store_path(digest)
            if size_of(path) != size or not os.path.exists(path):
                part_bytes = size_of(path + ".part")
                missing[digest] = part_bytes if part_bytes <= size else 0
        return missing

    def store_path(self, digest: str) -> str:
        if not DIGEST.fullmatch(digest):
            raise AgentError(
                f"the host sent the file digest {digest!r}, which is not a SHA-256 digest: update edgerec on the host",
                "send",
            )
        return os.path.join(self.store, digest)

    def receive(self, digest: str, size: int, offset: int, read: Callable[[int], bytes]) -> None:
        """Receive the bytes of a file from ``offset`` to the end, and store the file if its digest matches.

        If the transfer is interrupted, the received bytes remain in a file with the suffix ``.part``.
        """
        path = self.store_path(digest)
        part = path + ".part"
        if not 0 <= size <= MAX_FILE_BYTES:
            raise AgentError(
                f"a file of the deployment has {size:,} bytes, but the agent accepts at most {MAX_FILE_BYTES:,} bytes: "
                "deploy a smaller bundle or smaller packages",
                "send",
            )
        if not 0 <= offset <= size:
            raise AgentError(
                f"the transfer of a file with {size:,} bytes cannot be resumed at byte {offset:,}: deploy the bundle "
                "again",
                "send",
            )
        with open(part, "r+b" if os.path.exists(part) else "w+b") as file:
            file.truncate(offset)
            file.seek(offset)
            left = size - offset
            while left:
                signal.alarm(IDLE_S)
                chunk = read(min(left, CHUNK_BYTES))
                if not chunk:
                    file.flush()
                    os.fsync(file.fileno())
                    raise EOFError
                file.write(chunk)
                left -= len(chunk)
                if (size - left) // REPORT_BYTES > (size - left - len(chunk)) // REPORT_BYTES:
                    reply({"received": size - offset - left})
            # Writing and checking a file has no time limit, because slow SD cards may need minutes for a large file.
            signal.alarm(0)
            file.flush()
            os.fsync(file.fileno())
        if file_digest(part) != digest:
            os.unlink(part)
            raise AgentError("a file was damaged during the transfer: deploy the bundle again", "send")
        os.replace(part, path)
        fsync_folder(self.store)

    def clean_up(self, keep_release: str = "", keep_venv: str = "") -> None:
        """Delete incomplete files and folders of interrupted deployments."""
        now = time.time()
        for name in os.listdir(self.store):
            path = os.path.join(self.store, name)
            if name.endswith(".part") and now - os.stat(path).st_mtime > PART_AGE_S:
                os.unlink(path)
        for name in os.listdir(self.releases):
            if name != self.current() and name != keep_release and not self.complete_name(name):
                remove_path(os.path.join(self.releases, name))
        for name in os.listdir(self.venvs):
            complete = is_complete_venv(os.path.join(self.venvs, name)) and not name.endswith(REMOVED)
            if name != keep_venv and not complete:
                remove_path(os.path.join(self.venvs, name))
        for folder in (self.store, self.releases, self.venvs):
            remove_path(folder + REMOVED)
        remove_path(self.old_config_file)

    def complete_name(self, name: str) -> bool:
        return bool(RELEASE.fullmatch(name)) and self.is_complete(name)

    def install(self, job: dict[str, Any], log: Log) -> None:
        """Install a job's release and its virtual environment unless both are already installed."""
        release, venv = job["release"], os.path.join(self.venvs, job["venv"])
        if self.is_complete(release) and is_complete_venv(venv):
            log.step("install", "skipped", "the release is already installed")
            return
        log.step("install", "running", "creating the virtual environment")
        self.create_venv(venv, job, log)
        folder = self.release_path(release)
        # The folder of the current release is kept, because the running camera may still use its files.
        if release != self.current():
            remove_path(folder)
        partial = os.path.join(folder, ".new")
        for name, digest in job["files"].items():
            path = os.path.join(folder, "bundle", safe_name(name))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            remove_path(partial)
            os.link(self.store_path(digest), partial)
            os.replace(partial, path)
        # os.replace() does not remove a hard link if the destination is a hard link to the same file.
        remove_path(partial)
        os.symlink(os.path.join("..", "..", "venvs", job["venv"]), partial)
        os.replace(partial, os.path.join(folder, "venv"))
        if not os.path.exists(os.path.join(folder, UNIT)):
            write_file(os.path.join(folder, UNIT), job["unit"].encode())
        os.sync()
        log.step("install", "done", f"release {release}")

    def create_venv(self, venv: str, job: dict[str, Any], log: Log) -> None:
        if is_complete_venv(venv):
            return
        remove_path(venv)
        options = ["--system-site-packages"] if job["system_packages"] else []
        code, output, errors = run([job["python"], "-m", "venv", *options, venv], INSTALL_TIMEOUT_S)
        if code:
            reason = last_line(errors + output)
            raise AgentError(
                f"Python cannot create a virtual environment ({reason}): run sudo apt-get install python3-venv",
                "install",
            )
        # A wheel can replace modules that pip imports after the wheel was unpacked, so pip must not run as root.
        give_to_nobody(venv)
        # The wheels are hard links to files in the store, so the owner of these files must remain root.
        links = venv + "/wheels"
        os.mkdir(links)
        for name, digest in job["wheels"].items():
            if not WHEEL.fullmatch(name):
                raise AgentError(
                    f"the host sent a list of wheels with {name!r}, which is not the name of a wheel: update edgerec "
                    "on the host",
                    "install",
                )
            os.link(self.store_path(digest), os.path.join(links, name))
        wheels = [os.path.join(links, name) for name in sorted(job["wheels"])]
        log.step("install", "running", f"installing {len(wheels)} packages")
        pip = [venv + "/bin/python", "-m", "pip", "--disable-pip-version-check", "--no-input", "--no-cache-dir"]
        code, output, errors = run_as_nobody([*pip, "install", "--quiet", "--no-index", "--no-deps", *wheels])
        if code:
            reason = last_line(errors + output)
            raise AgentError(f"pip cannot install the packages: {reason}", "install")
        # A wheel may contain a file with the name .complete.
        for path in (links, os.path.join(venv, ".complete")):
            remove_path(path)
        return_to_root(venv)
        write_json(os.path.join(venv, "wheels.json"), job["wheels"])
        os.sync()
        write_file(os.path.join(venv, ".complete"), b"")

    def requires_signature(self, job: dict[str, Any]) -> bool:
        """Return whether a signature is required. The setting in the job overrides the setting on the device."""
        required = job["require_signature"]
        return bool(self.state().get("require_signature") if required is None else required)

    def signature_module(self) -> Any:
        """Import edgerec/contract/signature.py, which the host has copied into the installation folder."""
        sys.path.insert(0, self.prefix)
        sys.dont_write_bytecode = True
        return importlib.import_module("signature")

    def check_installed_signature(self, job: dict[str, Any], release: str) -> None:
        """Check the signature and the file digests of an installed release if a signature is required.

        Raises:
            AgentError: the release was modified, or was not signed by an allowed signer.
        """
        if not self.requires_signature(job):
            return
        signature = self.signature_module()
        folder = self.release_path(release, "bundle")
        manifest = read_bytes(os.path.join(folder, "manifest.json")) or b""
        try:
            signature.check_signature(
                manifest,
                read_bytes(os.path.join(folder, SIGNATURE)),
                self.signers_file,
                where=f"the previous release {release}",
            )
        except signature.RefusedSignatureError as error:
            raise AgentError(str(error), "verify") from None
        for name, digest in json.loads(manifest)["files"].items():
            path = os.path.join(folder, safe_name(name))
            if not os.path.isfile(path) or file_digest(path) != digest:
                raise AgentError(
                    f"{name} of the previous release {release} differs from the signed manifest: deploy a bundle "
                    "instead",
                    "verify",
                )

    def add_signature(self, job: dict[str, Any]) -> None:
        """Store a bundle's signature in the installed release. An existing signature is replaced."""
        digest = job["files"].get(SIGNATURE)
        if digest is None or not self.is_complete(job["release"]):
            return
        signature = read_bytes(self.store_path(digest))
        path = self.release_path(job["release"], "bundle", SIGNATURE)
        if signature is not None and signature != read_bytes(path):
            write_file(path, signature)

    def check_signature(self, job: dict[str, Any]) -> tuple[str, int]:
        """Check the signature of a bundle if a signature is required.

        Returns:
            The signer and serial number of the bundle, or ``("", 0)`` if no signature is required.

        Raises:
            AgentError: the bundle was modified, was not signed by an allowed signer, or is too old.
        """
        if not self.requires_signature(job):
            return "", 0
        state, signature = self.state(), self.signature_module()
        manifest = read_bytes(self.store_path(job["files"]["manifest.json"]))
        signed = job["files"].get(SIGNATURE)
        signers = self.signers_file
        if job["signers"] is not None:
            signers = self.new_signers_file
            write_file(signers, job["signers"].encode())
        try:
            signer = signature.check_signature(
                manifest, read_bytes(self.store_path(signed)) if signed else None, signers
            )
            if not job["allow_downgrade"]:
                signature.refuse_downgrade(signer.serial, state.get("serial", 0))
        except signature.RefusedSignatureError as error:
            raise AgentError(str(error), "verify") from None
        # Only the manifest is signed, so the digest of each file must match its digest in the manifest.
        listed = json.loads(manifest or b"")["files"]
        for name, digest in job["files"].items():
            if name not in ("manifest.json", SIGNATURE) and listed.get(name) != digest:
                raise AgentError(f"{name} differs from the signed manifest: copy the signed bundle again", "verify")
        return str(signer), signer.serial

    def verify(self, job: dict[str, Any], log: Log) -> None:
        """Verify a bundle's scores with the delegate that the camera will use, and mark the release as complete."""
        folder = self.release_path(job["release"])
        log.step("verify", "running", "computing the scores of the golden images")
        config = read_bytes(self.config_file) if job["config"] is None else job["config"].encode()
        configured = re.search(rb'^\s*delegate\s*=\s*"([^"\\]*)"', config or b"", re.MULTILINE)
        delegate = ["--delegate", configured[1].decode() or "none"] if configured else []
        command = [folder + "/venv/bin/edgerec", "verify", folder + "/bundle", "--json", *delegate]
        code, output, errors = run_as_nobody(command, service_groups(job["unit"]))
        try:
            report = json.loads(output)
        except ValueError:
            report = {}
        if not isinstance(report, dict):
            report = {}
        if code or not report:
            reason = report.get("reason") or last_line(errors)
            raise AgentError(f"the bundle failed its verification on the device: {reason}", "verify")
        release = {
            "installed_s": time.time(),
            "name": job["name"],
            "target": job["target"],
            "venv": job["venv"],
            "signer": job["signer"],
            "verification": report,
        }
        write_json(os.path.join(folder, "release.json"), release)
        log.step("verify", "done", "the scores of the golden images are as expected")

    def discard(self, job: dict[str, Any]) -> None:
        """Mark a damaged release as incomplete, so that the next deployment reinstalls the release.

        Each file of a release is a hard link to a file in the store, so damaged files are also deleted from the store.
        The virtual environment may be damaged too, and is deleted unless another release uses the environment.
        """
        release = job["release"]
        for digest in job["files"].values():
            path = self.store_path(digest)
            if os.path.exists(path) and file_digest(path) != digest:
                os.unlink(path)
        remove_path(self.release_path(release, "release.json"))
        if release != self.current():
            remove_path(self.release_path(release))
        if job["venv"] not in self.used_venvs():
            remove_folder(os.path.join(self.venvs, job["venv"]))

    def used_venvs(self) -> set[str]:
        """Return the names of the virtual environments of all complete releases and of the current release."""
        releases = [read_json(self.release_path(name, "release.json")) for name in self.complete_releases()]
        venvs = {release.get("venv", "") for release in releases}
        # The current release may be marked as incomplete.
        if self.current():
            venvs.add(os.path.basename(os.path.realpath(os.path.join(self.current_link, "venv"))))
        return venvs

    def point_to(self, release: str) -> None:
        """Atomically point the symbolic link ``current`` to a release. Delete the link if ``release`` is empty."""
        if not release:
            remove_path(self.current_link)
        else:
            partial = self.current_link + ".new"
            remove_path(partial)
            os.symlink(os.path.join("releases", release), partial)
            os.replace(partial, self.current_link)
        fsync_folder(self.prefix)

    def write_unit(self, release: str) -> bool:
        """Install a release's systemd unit, and return whether the installed unit has changed."""
        unit = read_bytes(self.release_path(release, UNIT))
        if unit is None or unit == read_bytes(self.unit_file):
            return False
        write_file(self.unit_file, unit)
        return True

    def switch(self, job: dict[str, Any]) -> dict[str, Any]:
        """Replace the symbolic link ``current``, camera.toml and the systemd unit to start a release's trial period.

        Returns:
            The content of trial.json, from which :meth:`undo_switch` restores the previous state.
        """
        trial = {
            "release": job["release"],
            "previous": self.current(),
            "boot_id": boot_id(),
            "old_config": job.get("config") is not None and os.path.exists(self.config_file),
            "new_config": job.get("config") is not None and not os.path.exists(self.config_file),
        }
        # The unit is also stored in the release's folder, so that a rollback to this release can reinstall the unit.
        unit_file = self.release_path(job["release"], UNIT)
        unit = job["unit"].encode() if "unit" in job else read_bytes(unit_file)
        trial["old_unit"] = unit != read_bytes(unit_file) and os.path.exists(unit_file)
        if trial["old_unit"]:
            remove_path(unit_file + PREVIOUS)
            os.link(unit_file, unit_file + PREVIOUS)
            fsync_folder(os.path.dirname(unit_file))
        # The backup is a hard link, because a hard link can be restored even if the disk is full.
        if trial["old_config"]:
            remove_path(self.old_config_file)
            os.link(self.config_file, self.old_config_file)
            fsync_folder(CONFIG_FOLDER)
        write_json(self.trial_file, trial)
        if job.get("config") is not None:
            write_file(self.config_file, job["config"].encode(), 0o644)
        if unit is not None and unit != read_bytes(unit_file):
            write_file(unit_file, unit)
        if not os.path.exists(self.secrets_file):
            token = base64.urlsafe_b64encode(os.urandom(18)).decode()
            write_file(
                self.secrets_file, f"# The web page asks for this token.\nEDGEREC_WEB_TOKEN={token}\n".encode(), 0o600
            )
        self.point_to(job["release"])
        if self.write_unit(job["release"]):
            systemctl("daemon-reload")
        systemctl("enable", "--quiet", UNIT)
        return trial

    def undo_switch(self, trial: dict[str, Any]) -> bool:
        """Restore the symbolic link ``current``, camera.toml and the systemd unit that :meth:`switch` has replaced.

        Returns:
            Whether the installed systemd unit has changed.
        """
        changed = False
        if self.current() == trial.get("release") and trial.get("previous") != trial.get("release"):
            self.point_to(trial.get("previous") or "")
        if trial.get("old_config") and os.path.exists(self.old_config_file):
            os.replace(self.old_config_file, self.config_file)
            fsync_folder(CONFIG_FOLDER)
        elif trial.get("new_config"):
            remove_path(self.config_file)
        if trial.get("old_unit"):
            unit_file = self.release_path(trial["release"], UNIT)
            if os.path.exists(unit_file + PREVIOUS):
                os.replace(unit_file + PREVIOUS, unit_file)
                fsync_folder(os.path.dirname(unit_file))
                # os.replace() keeps both paths if they are hard links to the same file.
                remove_path(unit_file + PREVIOUS)
        if trial.get("previous"):
            changed = self.write_unit(trial["previous"])
        remove_path(self.trial_file)
        fsync_folder(self.prefix)
        remove_path(self.old_config_file)
        return changed

    def restore(self, trial: dict[str, Any]) -> None:
        """Restore and start the previous release. If there is no previous release, stop the service."""
        if self.undo_switch(trial):
            systemctl("daemon-reload", step="restore")
        if not trial.get("previous"):
            run(["systemctl", "disable", "--now", "--quiet", UNIT])
            remove_path(self.unit_file)
            run(["systemctl", "daemon-reload"])
            return
        systemctl("restart", "--no-block", UNIT, step="restore")

    def accept(self, release: str, previous: str, serial: int, job: dict[str, Any]) -> None:
        """Record in trial.json that a release is healthy, so that :meth:`finish_commit` can end its trial period.

        If the power fails before trial.json is replaced, the previous release is restored at the next boot. If the
        power fails later, the trial period is ended at the next boot.
        """
        state = self.state()
        if previous != release:
            state["previous"] = previous
        state["good"] = release
        state["serial"] = max(serial, 0 if job.get("allow_downgrade") and serial else state.get("serial", 0))
        if job.get("require_signature") is not None:
            state["require_signature"] = job["require_signature"]
        write_json(self.trial_file, {**read_json(self.trial_file), "state": state, "signers": job.get("signers")})

    def finish_commit(self) -> bool:
        """End the trial period of an accepted release.

        Returns:
            False if no release is in its trial period, or if the release has not been accepted.
        """
        trial = read_json(self.trial_file)
        if not trial.get("state"):
            return False
        if trial.get("signers") is not None:
            write_file(self.signers_file, trial["signers"].encode())
        write_json(self.state_file, trial["state"])
        remove_path(self.trial_file)
        fsync_folder(self.prefix)
        remove_path(self.old_config_file)
        remove_path(self.release_path(trial["release"], UNIT) + PREVIOUS)
        return True

    def prune(self, keep: int) -> int:
        """Delete old releases, and the virtual environments and files that no remaining release uses.

        Returns:
            The number of deleted releases.
        """
        state = self.state()
        protected = {self.current(), state.get("good"), state.get("previous")}
        others = [name for name in self.complete_releases() if name not in protected]
        kept = len([name for name in self.complete_releases() if name in protected])
        removed = others[max(0, keep - kept) :]
        for name in removed:
            remove_folder(self.release_path(name))
        venvs = self.used_venvs()
        used: set[str] = set()
        for name in os.listdir(self.venvs):
            if name not in venvs:
                remove_folder(os.path.join(self.venvs, name))
            used.update(read_json(os.path.join(self.venvs, name, "wheels.json")).values())
        for name in os.listdir(self.store):
            path = os.path.join(self.store, name)
            # Each file of a release is a hard link to a file in the store, so an unused file has a link count of 1.
            if not name.endswith(".part") and name not in used and os.stat(path).st_nlink == 1:
                os.unlink(path)
        return len(removed)


class Log:
    """The log file of a job, with one JSON object per line."""

    def __init__(self, path: str, job: str) -> None:
        remove_path(path)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (The log is open as long as the process.)
        self.write({"job": job, "boot_id": boot_id()})

    def write(self, value: Any) -> None:
        # A full disk must not prevent the agent from restoring the previous release.
        with contextlib.suppress(OSError):
            self._file.write(json.dumps(value) + "\n")
            self._file.flush()

    def step(self, name: str, state: str, text: str = "", done: int = 0, total: int = 0) -> None:
        self.write({"step": name, "state": state, "text": text, "done": done, "total": total})


def monitor(release: str, old_invocation: str | None, healthy_within_s: float, settle_s: float, log: Log) -> int:
    """Wait until the camera service is healthy and has stayed healthy for ``settle_s`` seconds.

    The service is healthy if it is active, has classified frames with the new release, and has not restarted. Frames
    that settings such as ``motion`` or ``max_fps`` skip are also counted towards the required number of frames.

    Returns:
        The number of classified frames.

    Raises:
        AgentError: the service did not become healthy in time, or did not stay healthy.
    """
    start_s = time.monotonic()
    invocation, healthy_s, healthy_frames, reason = "", None, 0, "the service did not start"
    while True:
        passed_s = time.monotonic() - start_s
        unit, camera = unit_state(), read_json(STATUS_FILE)
        # While systemd stops the service, its process may be the old one, even if the invocation ID is new.
        is_stopping = unit.get("ActiveState") == "deactivating"
        if unit.get("InvocationID") not in ("", None, old_invocation) and not is_stopping:
            invocation = invocation or unit["InvocationID"]
            # systemd assigns a new invocation ID to each automatic restart.
            if unit["InvocationID"] != invocation or unit.get("SubState") in ("auto-restart", "failed"):
                raise AgentError(f"the service {crash_reason(unit)}")
        elif unit.get("ActiveState") == "failed":
            raise AgentError(f"the service {crash_reason(unit)}")
        frames = skipped = 0
        own = str(camera.get("pid")) == unit.get("MainPID") and str(camera.get("bundle", "")).startswith(release)
        if invocation and own:
            frames, skipped = camera.get("frames", 0), camera.get("skipped", 0)
        log.step("monitor", "running", f"{frames} frames classified", int(passed_s), int(healthy_within_s))
        healthy = unit.get("ActiveState") == "active" and frames > 0 and frames + skipped >= MIN_FRAMES
        if healthy and healthy_s is None:
            healthy_s, healthy_frames = passed_s, frames + skipped
        if healthy_s is not None and passed_s >= healthy_s + settle_s:
            if healthy and frames + skipped > healthy_frames:
                return frames
            reason = f"the service processed {healthy_frames} frames, but then stopped"
        elif healthy_s is None:
            reason = waiting_reason(unit, camera if own else {}, frames, invocation)
        if passed_s > healthy_within_s + (settle_s if healthy_s is not None else 0):
            raise AgentError(f"{reason} within {healthy_within_s:g} s")
        time.sleep(POLL_S)


def crash_reason(unit: dict[str, str]) -> str:
    reasons = {
        "watchdog": "hung, so that its watchdog restarted it",
        "oom-kill": "needed too much memory",
        "timeout": "did not start in time",
        "exit-code": "crashed with exit code {}".format(unit.get("ExecMainStatus", "unknown")),
    }
    return reasons.get(unit.get("Result", ""), "crashed ({})".format(unit.get("Result", "unknown")))


def waiting_reason(unit: dict[str, str], camera: dict[str, Any], frames: int, invocation: str) -> str:
    """Return the reason why the camera service is not healthy yet."""
    if not invocation or unit.get("ActiveState") != "active":
        return "the service did not start ({})".format(unit.get("ActiveState", "unknown"))
    sources = camera.get("sources")
    for source in sources if isinstance(sources, list) else []:
        if isinstance(source, dict) and source.get("reason"):
            return f"the camera classified only {frames} frames ({source.get('name')}: {source['reason']})"
    return f"the camera classified only {frames} frames, but at least {MIN_FRAMES} are required"


def do_deploy(installation: Installation, job: dict[str, Any], log: Log) -> dict[str, Any]:
    """Install, verify and start a release. If the new release is not healthy, restore the previous one."""
    if installation.is_complete(job["release"]):
        job["venv"] = read_json(installation.release_path(job["release"], "release.json"))["venv"]
    installation.clean_up(job["release"], job["venv"])
    job["signer"], serial = installation.check_signature(job)
    installation.add_signature(job)
    installation.install(job, log)
    # Even an installed release is verified again, because e.g. a system update may have damaged the release.
    try:
        installation.verify(job, log)
    except AgentError:
        installation.discard(job)
        raise
    return try_release(installation, job, serial, log)


def do_rollback(installation: Installation, job: dict[str, Any], log: Log) -> dict[str, Any]:
    """Roll back to the previous release, and check its health like that of a new release."""
    release = installation.previous()
    if not release:
        raise AgentError("there is no previous release on the device: deploy a bundle instead", "plan")
    installation.check_installed_signature(job, release)
    return try_release(installation, {**job, "release": release}, 0, log)


def try_release(installation: Installation, job: dict[str, Any], serial: int, log: Log) -> dict[str, Any]:
    """Start a release and monitor its health. If the release is not healthy, restore the previous one."""
    release = job["release"]
    log.step("switch", "running", f"restarting the service with release {release}")
    trial: dict[str, Any] = {}
    try:
        trial = {"release": release, "previous": installation.current()}
        trial = installation.switch(job)
        unit = unit_state()
        systemctl("restart", "--no-block", UNIT)
        log.step("switch", "done", f"release {release}")
        frames = monitor(
            release,
            unit.get("InvocationID"),
            job["healthy_within_s"],
            job["settle_s"],
            log,
        )
        installation.accept(release, trial["previous"], serial, job)
    except (AgentError, OSError) as error:
        lines = service_log()
        trial.update(read_json(installation.trial_file))
        installation.restore(trial)
        previous = trial["previous"]
        outcome = f"release {previous} was restored" if previous else "the service was stopped"
        log.step("restore", "done", outcome)
        # An error while deleting old releases must not hide the reason why the new release failed.
        with contextlib.suppress(OSError):
            installation.prune(job["keep"])
        raise AgentError(f"{describe(error)}; {outcome}", "monitor", bool(previous), lines) from None
    installation.finish_commit()
    log.step("monitor", "done", f"the service is healthy: {frames} frames classified")
    removed = installation.prune(job["keep"])
    log.step("prune", "done", f"{removed} old releases removed")
    return {"release": release, "previous": trial["previous"], "changed": True}


def do_remove(installation: Installation, job: dict[str, Any], log: Log) -> dict[str, Any]:
    """Stop the service and delete all releases, but keep the configuration in ``/etc/edgerec``."""
    current = installation.current()
    log.step("switch", "running", "stopping the service")
    if os.path.exists(installation.unit_file):
        run(["systemctl", "disable", "--now", "--quiet", UNIT])
        os.unlink(installation.unit_file)
        run(["systemctl", "daemon-reload"])
    log.step("switch", "done", "the service was stopped and removed")
    # Delete the symbolic link first, so that it never points to a partially deleted release.
    for path in (installation.current_link, installation.trial_file, installation.state_file):
        remove_path(path)
    for folder in (installation.releases, installation.venvs, installation.store):
        remove_folder(folder)
    remove_path(installation.old_config_file)
    log.step("prune", "done", "all releases were removed")
    return {"release": "", "previous": current, "changed": bool(current)}


JOBS = {"deploy": do_deploy, "rollback": do_rollback, "remove": do_remove}


def describe(error: AgentError | OSError) -> str:
    """Convert an exception into an error message for the user."""
    if isinstance(error, AgentError):
        return str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk of the device is full: delete files, or deploy with a smaller --keep"
    return f"{os.strerror(error.errno or 0)} ({error.filename}): check the disk of the device"


def command_job(installation: Installation) -> None:
    """Execute the request in job.json, and write the progress to deploy.log."""
    job = read_json(installation.job_file)
    lock = installation.lock(job["host"], START_S)
    log = Log(installation.log_file, job["id"])
    try:
        trial = read_json(installation.trial_file)
        # If trial.json exists, an earlier job was killed during a trial period.
        if trial and not installation.finish_commit():
            installation.restore(trial)
        log.write({"result": JOBS[job["do"]](installation, job, log)})
    except AgentError as error:
        log.write(error.to_dict())
    except OSError as error:
        log.write(AgentError(describe(error), "install").to_dict())
    except Exception as error:
        log.write(AgentError(f"the agent failed: {error!r}").to_dict())
        raise
    finally:
        remove_path(installation.job_file)
        lock.close()


def start_job(installation: Installation, job: dict[str, Any]) -> None:
    """Start a job that continues to run after the SSH session has ended."""
    write_json(installation.job_file, job, 0o600)  # Only root may read the job, because it may contain passwords.
    command = [sys.executable, installation.agent_file, "job", "--prefix", installation.prefix]
    systemd_run = ["systemd-run", "--quiet", "--collect", "--unit", "edgerec-deploy-{}".format(job["id"])]
    code, _, _ = run([*systemd_run, *command])
    if code == 0:
        return
    subprocess.Popen(  # If systemd-run failed, the job is started without systemd.
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )


def follow(installation: Installation, job: str, skip: int, reply: Callable[[Any], None]) -> None:
    """Print the lines of a job's log until the job ends, but skip the first ``skip`` lines."""
    start_s, printed, free_s = time.monotonic(), 0, None
    while True:
        lines = (read_bytes(installation.log_file) or b"").decode("utf-8", "replace").split("\n")[:-1]
        first = json.loads(lines[0]) if lines else {}
        if first.get("job") == job:
            for line in lines[1:][max(printed, skip) :]:
                reply(json.loads(line))
            printed = max(printed, len(lines) - 1)
            last = json.loads(lines[-1])
            if "result" in last or "error" in last:
                return
            if first["boot_id"] != boot_id():
                release = installation.current() or "none"
                raise AgentError(
                    f"the device restarted during the deployment; release {release} is current: deploy the bundle "
                    "again",
                    "monitor",
                )
        # A running job always holds the lock, so the job was killed if the lock stays free.
        if installation_is_locked(installation):
            free_s = None
        else:
            free_s = free_s or time.monotonic()
            if time.monotonic() - free_s > (5 if printed else START_S):
                space = os.statvfs(installation.prefix)
                if space.f_bavail * space.f_frsize < MIN_LOG_BYTES:
                    raise AgentError(describe(OSError(errno.ENOSPC, "")), "install")
                raise AgentError("the job on the device was interrupted: deploy the bundle again", "install")
        if time.monotonic() - start_s > 2 * INSTALL_TIMEOUT_S:
            raise AgentError(
                "the agent on the device stopped before the installation was complete: run edgerec devices, and deploy "
                "again",
                "install",
            )
        time.sleep(0.1)


def installation_is_locked(installation: Installation) -> bool:
    try:
        with open(os.path.join(installation.prefix, "lock"), "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def command_session(installation: Installation) -> None:
    """Read requests from stdin as one JSON object per line, and write the replies to stdout."""
    session_lock = lock = None
    while True:
        # Limit the waiting time only if the session holds the lock, because only the lock blocks other sessions.
        signal.alarm(0 if lock is None else IDLE_S)
        line = sys.stdin.buffer.readline(MAX_LINE_BYTES)
        if not line:
            return
        request = json.loads(line)
        kind = request["do"]
        if kind == "status":
            reply(installation.status())
        elif kind == "lock":
            session_lock, lock = installation.lock_session(request["host"])
            reply({"locked": True})
        elif kind == "plan":
            venv = os.path.join(installation.venvs, request["venv"])
            complete = installation.is_complete(request["release"])
            reply(
                {
                    "missing": installation.missing(request["files"]),
                    "venv": is_complete_venv(venv),
                    "complete": complete,
                    "free_bytes": installation.free_bytes(),
                }
            )
        elif kind == "receive":
            installation.receive(request["digest"], request["size"], request["offset"], sys.stdin.buffer.read)
            reply({"stored": request["digest"]})
        elif kind == "write":
            paths = {
                "signature.py": os.path.join(installation.prefix, "signature.py"),
                "agent.py": installation.agent_file,
            }
            if lock is None:
                raise AgentError("a session must lock the installation before it writes files", "send")
            write_file(paths[request["name"]], request["content"].encode())
            reply({"written": request["name"]})
        elif kind == "remove-agent":
            reply({"removed": installation.remove_agent(request["host"])})
        elif kind in JOBS:
            if lock is None or session_lock is None:
                session_lock, lock = installation.lock_session(request["host"])
            lock.close()
            signal.alarm(0)
            start_job(installation, request)
            follow(installation, request["id"], 0, reply)
            session_lock.close()
            return


def reply(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def command_boot_check(installation: Installation) -> None:
    """Restore the previous release if the device was restarted during the trial period of a new release."""
    trial = read_json(installation.trial_file)
    if not trial or trial.get("boot_id") == boot_id() or installation.finish_commit():
        return
    if trial.get("previous") or installation.current() != trial.get("release"):
        unit_changed = installation.undo_switch(trial)
        sys.stderr.write(f"The device was restarted during a deployment: release {installation.current()} is used\n")
        # systemd has already loaded the unit of the new release, so the restored unit must be loaded again.
        if unit_changed:
            run(["systemctl", "daemon-reload"])
            run(["systemctl", "restart", "--no-block", UNIT])
    else:
        # If the first release is on trial, keep it, because there is no previous release to restore.
        remove_path(installation.trial_file)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["session", "job", "follow", "boot-check"])
    parser.add_argument("--prefix", default="/opt/edgerec")
    parser.add_argument("--job", default="")
    parser.add_argument("--skip", type=int, default=0)
    arguments = parser.parse_args()
    installation = Installation(arguments.prefix)
    os.umask(0o022)
    try:
        if arguments.command == "session":
            command_session(installation)
        elif arguments.command == "job":
            command_job(installation)
        elif arguments.command == "follow":
            follow(installation, arguments.job, arguments.skip, reply)
        else:
            command_boot_check(installation)
    except AgentError as error:
        reply(error.to_dict())
    except (BrokenPipeError, EOFError):
        pass  # No error is reported if the host has closed the connection.
    except OSError as error:
        reply(AgentError(describe(error), "send").to_dict())


if __name__ == "__main__":
    main()
