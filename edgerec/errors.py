"""Exceptions raised by edgerec.

* EdgerecError
    * AddressError (ValueError)
    * BundleError (ValueError)
        * SignatureError
    * ConfigError (ValueError)
    * DataError (ValueError)
    * DelegateError (OSError)
    * DeployError (RuntimeError)
    * GateError (RuntimeError)
    * InUseError (BlockingIOError)
    * MissingExtraError (ImportError)
    * ModelError (ValueError)
    * NoHomeError (OSError)
    * OutputExistsError (FileExistsError)
    * OutputIsInputError (ValueError)
    * OutputNameError (ValueError)
    * RecipeError (ValueError)
    * RunError (ValueError)
    * SourceError (OSError)
    * StudyError (ValueError)
    * TargetError (ValueError)
    * TrainError (RuntimeError)

Each exception is also a subclass of the built-in exception in parentheses. They are caused by user input, files or
devices. The command line prints an :class:`EdgerecError` as one line and exits with code 1. All other exceptions are
bugs in edgerec, for which the command line prints a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from edgerec.utils.text import printable, shortened

# Maximum length of an error message. Longer messages are shortened in the middle.
MAX_MESSAGE_CHARACTERS = 1000


class EdgerecError(Exception):
    """Base class of all edgerec exceptions. The message states what failed, why, and what to do next."""

    def __str__(self) -> str:
        """Return the message as a single line of at most about 1000 characters, escaping unprintable characters."""
        return shortened(printable(super().__str__().strip()), MAX_MESSAGE_CHARACTERS)


class RecipeError(EdgerecError, ValueError):
    """Raised when a recipe contains an unknown key or an invalid value."""


class DataError(EdgerecError, ValueError):
    """Raised when a data set cannot be used because its images, labels or splits are invalid or unreadable."""


class ModelError(EdgerecError, ValueError):
    """Raised when a model is damaged or does not meet the operation's requirements."""


class RunError(EdgerecError, ValueError):
    """Raised when a run folder is damaged, incomplete or unsuitable for the operation."""


class StudyError(EdgerecError, ValueError):
    """Raised when a hyperparameter study is damaged or unavailable, or was created with different settings."""


class TrainError(EdgerecError, RuntimeError):
    """Raised when training cannot continue."""


class GateError(EdgerecError, RuntimeError):
    """Raised when compression reduces the accuracy by more than the allowed maximum.

    Attributes:
        report: the measured accuracies, or None if they were not measured in this call.
    """

    report: Any = None


class TargetError(EdgerecError, ValueError):
    """Raised when a target does not exist, is invalid, or cannot run the model."""


class BundleError(EdgerecError, ValueError):
    """Raised when a file is not a bundle, or a bundle is damaged or incomplete."""


class SignatureError(BundleError):
    """Raised when a bundle is not signed by an allowed signer, or its signature cannot be created or checked.

    Attributes:
        problem: short name of the reason; see :class:`edgerec.contract.signature.RefusedSignatureError`. It is ``key``
            if a key cannot be used to sign the bundle.
    """

    def __init__(self, problem: str, message: str) -> None:
        super().__init__(message)
        self.problem = problem


class DelegateError(EdgerecError, OSError):
    """Raised when a delegate's library cannot be loaded."""


class DeployError(EdgerecError, RuntimeError):
    """Raised when a device cannot be reached or cannot run a bundle, or when a deployment fails.

    Attributes:
        step: name of the step that failed, e.g. ``verify``, or an empty string.
        restored: whether the previous release was restored.
        log: last lines that the service on the device logged.
    """

    def __init__(self, message: str, *, step: str = "", restored: bool = False, log: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.step, self.restored, self.log = step, restored, tuple(log)


class NoHomeError(EdgerecError, OSError):
    """Raised when a default folder is needed, but the user has no home folder."""


class SourceError(EdgerecError, OSError):
    """Raised when a camera, video, stream or folder cannot be opened or delivers no frames."""


class AddressError(EdgerecError, ValueError):
    """Raised when a URL or a secret reference is invalid. The message never contains secrets."""


class ConfigError(EdgerecError, ValueError):
    """Raised when a configuration field has an invalid value.

    Attributes:
        field: names of the class and field, such as ``FrameOptions.rotate``.
        problem: what is wrong with the value.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field, self.problem = field, problem


class OutputExistsError(EdgerecError, FileExistsError):
    """Raised when the output path already exists and must not be overwritten."""


class InUseError(EdgerecError, BlockingIOError):
    """Raised when another process is writing to the file or folder."""


class OutputIsInputError(EdgerecError, ValueError):
    """Raised when the output would overwrite an input or become part of the input data."""


class OutputNameError(EdgerecError, ValueError):
    """Raised when the output path's suffix does not match the output format."""


class MissingExtraError(EdgerecError, ImportError):
    """Raised when an optional package required by the operation is not installed."""


def unknown(kind: str, name: object, choices: Iterable[str]) -> str:
    """Return an error message for an unknown name, listing all choices and suggesting the most similar one.

    Args:
        kind: kind of the named object, e.g. ``target``.
        name: the unknown name.
        choices: all valid names.
    """
    known = sorted(choices)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {str(name)!r}{hint} (choices: {', '.join(known)})"
