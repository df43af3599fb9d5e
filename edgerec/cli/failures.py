"""Explain user, file and system errors in one line. All other exceptions are bugs."""

from __future__ import annotations

import errno
import logging
import os

from edgerec.errors import EdgerecError

log = logging.getLogger(__name__)

OUT_OF_MEMORY = "out of memory: close other programs, or reduce train.batch_size, data.input_size or model.width"
_ADVICE = {
    errno.ENOSPC: "free some space, or choose another disk with --out or EDGEREC_CACHE; no data was lost",
    errno.EDQUOT: "free some space, or choose another disk; no data was lost",
    errno.EFBIG: "the file exceeds the size limit of edgerec, the file system or ulimit -f",
    errno.EACCES: "check the permissions of the path, or choose another path",
    errno.EPERM: "check the permissions of the path, or choose another path",
    errno.EROFS: "choose a path on a writable disk",
    errno.ENOENT: "the file was removed, or its folder does not exist",
    errno.EIO: "the disk or device reports errors: check it, or choose another path",
    errno.EBUSY: "the file or device is in use: choose another path",
    errno.ENOTDIR: "part of the path is a file, not a folder: choose another path",
    errno.EISDIR: "expected a file, but the path is a folder: choose another path",
    errno.ENOTEMPTY: "the folder is not empty: choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EEXIST: "a file or a broken link has this name: choose another path",
    errno.ELOOP: "the path is a symbolic link to itself: remove the link, or choose another path",
    errno.EMFILE: "raise the limit on open files with ulimit -n",
    errno.ENFILE: "close other programs",
    errno.ESTALE: "mount the network drive again",
    errno.EXDEV: "choose a path on the same disk",
}


def explain(error: Exception) -> str | None:
    """Return a message for an expected exception, or None if the exception indicates a bug."""
    if isinstance(error, EdgerecError):
        return str(error)
    from edgerec.utils.atomic import system_error  # Imported only on errors to keep the startup fast.

    system = error if isinstance(error, OSError) and error.errno is not None else system_error(error)
    if system is not None:
        assert system.errno is not None
        where = f" ({system.filename})" if system.filename else ""
        advice = _ADVICE.get(system.errno, "check the file or device, or choose another path")
        return f"{os.strerror(system.errno)}{where}: {advice}"
    # Compare the exception by name, because importing TensorFlow is slow.
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return f"{OUT_OF_MEMORY}; results saved so far are complete"
    if type(error).__module__.startswith("tensorflow."):
        from edgerec.train.backend import cause

        log.debug("TensorFlow failed", exc_info=error)
        return (
            f"TensorFlow cannot run the model: {cause(error)}; use other layers, or convert the model to .tflite and "
            "import it with edgerec import"
        )
    if isinstance(error, OSError):  # a library raised the error
        return f"{_first_line(error)}: check the file or device, or choose another path"
    if isinstance(error, RecursionError):
        return "a file or value is nested too deeply: use a file written by edgerec"
    if isinstance(error, UnicodeError):
        return f"a file name or text is not valid UTF-8: {_first_line(error)}; rename the file, or save it as UTF-8"
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
