"""Lock files and folders so that two processes cannot write to them at the same time.

The operating system releases a lock when its process ends. A killed process therefore never blocks other processes.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from edgerec.errors import InUseError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

log = logging.getLogger(__name__)

POLL_S = 0.1
MAX_NAME_BYTES = 200
# The locked byte does not overlap the process ID, because other processes cannot read a locked byte on Windows.
_LOCKED_BYTE = 1 << 20
_NOT_SUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


class Lock:
    """An exclusive lock on a file or folder, held until :meth:`close` is called or the process ends.

    The lock is a hidden file that contains the ID of the process that holds the lock. It excludes other processes on
    the same machine, and other threads and :class:`Lock` objects of the same process. Whether it excludes processes on
    other machines depends on the network file system.
    """

    def __init__(self, path: Path, *, wait: bool = False) -> None:
        """Lock ``path``, which need not exist, with the lock file ``.NAME.edgerec-lock`` in the same folder.

        If the folder is not writable, the path is not locked, and a warning is logged.

        Args:
            path: the file or folder to lock. If the parent folder may be read-only, pass a path inside the folder.
            wait: whether to wait until the lock is released instead of raising :class:`InUseError`.

        Raises:
            InUseError: another process, or another lock of this process, holds the lock.
            OSError: the lock file cannot be created, for example because a file has the name of its folder.
        """
        self.path = path
        real = Path(os.path.realpath(path))
        encoded = os.fsencode(real.name)
        name = real.name if len(encoded) <= MAX_NAME_BYTES else hashlib.sha256(encoded).hexdigest()
        self._file = real.with_name(f".{name}.edgerec-lock")
        self._descriptor: int | None = None
        # Folders that were created for the lock file are deleted together with the lock file.
        self._new_folders = [folder for folder in self._file.parents if not folder.exists()]
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = self._acquire(wait)
        except InUseError:
            raise
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
            log.warning("cannot lock %s (%s): do not write to it from two processes", path, error.strerror)

    def _acquire(self, wait: bool) -> int:
        waiting = False
        while (descriptor := try_lock(self._file)) is None:
            if not wait:
                raise InUseError(
                    f"{self.path} is in use by another edgerec process{self._owner()}: wait until the process has "
                    "finished, or choose another path"
                )
            if not waiting:
                log.info("waiting for another edgerec process%s, which is writing to %s", self._owner(), self.path)
            waiting = True
            time.sleep(POLL_S)
        return descriptor

    def close(self) -> None:
        """Release the lock. Calling this method again has no effect."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        unlock(self._file, descriptor)
        for folder in self._new_folders:
            with suppress(OSError):  # rmdir() fails if the folder contains other files.
                folder.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _owner(self) -> str:
        """Return a space and the ID of the process that holds the lock, or an empty string if it is unknown."""
        try:
            with self._file.open("rb") as file:
                text = file.read(20).strip().decode("ascii", "replace")
        except OSError:
            return ""
        return f" {text}" if text.isdigit() else ""


def try_lock(file: Path, *, certain: bool = False) -> int | None:
    """Create a lock file, lock it, and write the process ID to it.

    Args:
        file: the lock file.
        certain: whether to return None if the file system does not support locks. Otherwise, assume that no other
            process holds the lock.

    Returns:
        The file descriptor that holds the lock, or None if another process holds the lock.
    """
    while True:
        descriptor = _open_lock_file(file)
        try:
            locked = lock_descriptor(descriptor, certain=certain)
            # A lock has no effect if the previous owner has deleted the lock file in the meantime.
            if locked and os.path.samestat(os.fstat(descriptor), file.stat()):
                with suppress(OSError):  # Writing fails if the disk is full or another user owns the file.
                    os.truncate(descriptor, 0)
                    os.write(descriptor, f"{os.getpid()}\n".encode())
                return descriptor
        except FileNotFoundError:
            locked = True
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if not locked:
            return None


def _open_lock_file(file: Path) -> int:
    flags = getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | flags, 0o666)
    except PermissionError:
        if not file.exists():
            raise
        # A lock file that another user's killed process has left can only be opened for reading.
        return os.open(file, os.O_RDONLY | flags)


def unlock(file: Path, descriptor: int) -> None:
    """Delete a lock file and release its lock."""
    if sys.platform == "win32":  # Windows cannot delete open files.
        os.close(descriptor)
    with suppress(OSError):
        file.unlink()
    if sys.platform != "win32":
        os.close(descriptor)


def lock_descriptor(descriptor: int, *, shared: bool = False, certain: bool = False) -> bool:
    """Lock an open file without waiting. Return False if a conflicting lock exists.

    Closing the descriptor releases the lock. On Windows, shared locks have no effect. They are not needed there,
    because Windows cannot delete open files.

    Args:
        descriptor: the open file.
        shared: whether to request a shared lock. Several processes can hold a shared lock, but not while a process
            holds an exclusive lock.
        certain: whether to return False if the file system does not support locks. Otherwise, return True.
    """
    try:
        if sys.platform != "win32":
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        elif not shared:
            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            return False
        log.debug("the file system does not support locks: %s", error)
        return not certain
    return True
