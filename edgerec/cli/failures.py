"""One-line messages for expected exceptions: user, file and system errors. All other exceptions are bugs."""

from __future__ import annotations

import errno
import logging
import os

from edgerec.errors import EdgerecError

log = logging.getLogger(__name__)

OUT_OF_MEMORY = "out of memory: close other programs, or use a smaller --batch-size, --input-size or --width"
_ADVICE = {
    errno.ENOSPC: "free some space, or choose another disk with --out or EDGEREC_CACHE; nothing was lost",
    errno.EDQUOT: "your disk quota is used up: free some space, or choose another disk; nothing was lost",
    errno.EFBIG: "the file exceeds a size limit of edgerec, of this disk or of ulimit -f",
    errno.EACCES: "check the permissions of the path, or choose another path",
    errno.EPERM: "check the permissions of the path, or choose another path",
    errno.EROFS: "choose a path that is writable",
    errno.ENOENT: "the file was removed, or its folder does not exist",
    errno.EIO: "the disk or device reports errors: check it, or choose another path",
    errno.EBUSY: "the file or device is in use: choose another path",
    errno.ENOTDIR: "a part of the path is a file: choose another path",
    errno.EISDIR: "the path is a folder, but a file is expected: choose another path",
    errno.ENOTEMPTY: "the folder is not empty: choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EEXIST: "a file or a broken link has this name: choose another path",
    errno.ELOOP: "the path is a symbolic link to itself: remove the link, or choose another path",
    errno.EMFILE: "raise the limit of open files with ulimit -n",
    errno.ENFILE: "close other programs",
    errno.ESTALE: "mount the network drive again",
    errno.EXDEV: "choose a path on the same disk",
}


def explain(error: Exception) -> str | None:
    """Return the message of an expected exception, or None for an exception that indicates a bug."""
    if isinstance(error, EdgerecError):
        return str(error)
    from edgerec.utils.atomic import system_error  # imported only on errors, to keep commands fast to start

    system = error if isinstance(error, OSError) and error.errno is not None else system_error(error)
    if system is not None:
        assert system.errno is not None
        where = f" ({system.filename})" if system.filename else ""
        advice = _ADVICE.get(system.errno, "check the file or device, or choose another path")
        return f"{os.strerror(system.errno)}{where}: {advice}"
    # Compare TensorFlow's exception class by name, because importing TensorFlow is slow.
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return f"{OUT_OF_MEMORY}; finished results are complete"
    if type(error).__module__.startswith("tensorflow."):
        from edgerec.train.backend import cause

        log.debug("TensorFlow failed", exc_info=error)
        return (
            f"TensorFlow cannot run the model: {cause(error)}; use other layers, or convert the model to .tflite and "
            "use edgerec import"
        )
    if isinstance(error, OSError):  # a library raised the error
        return f"{_first_line(error)}: check the file or device, or choose another path"
    if isinstance(error, RecursionError):
        return "a file or value is nested too deeply: use a file that edgerec has written"
    if isinstance(error, UnicodeError):
        return f"a name or text is not valid: {_first_line(error)}; rename the file, or save it as UTF-8"
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
