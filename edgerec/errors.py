"""All exceptions of edgerec.

* EdgerecError
    * AddressError (ValueError)
    * BundleError (ValueError)
    * ConfigError (ValueError)
    * DataError (ValueError)
    * DelegateError (OSError)
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

Each exception is also a subclass of the built-in exception in parentheses. All of them are caused by user input, files
or devices. The command line prints an :class:`EdgerecError` as one line and exits with code 1. Any other exception is a
bug in edgerec, and the command line shows its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from edgerec.utils.text import printable

# Longer messages are shortened in the middle, because they may quote a long value from a file.
MAX_MESSAGE_CHARACTERS = 1000


class EdgerecError(Exception):
    """Base class of all edgerec exceptions; the message states what failed, why, and what to do next."""

    def __str__(self) -> str:
        """Return the message as one line, with unprintable characters escaped and at most about 1000 characters."""
        text = printable(super().__str__().strip())
        half = MAX_MESSAGE_CHARACTERS // 2
        return text if len(text) <= MAX_MESSAGE_CHARACTERS else f"{text[:half]} … {text[-half:]}"


class RecipeError(EdgerecError, ValueError):
    """A recipe contains an unknown key or an invalid value."""


class DataError(EdgerecError, ValueError):
    """A data set cannot be used because its images, labels or splits are invalid or cannot be read."""


class ModelError(EdgerecError, ValueError):
    """A model is damaged, or does not meet the requirements of the operation."""


class RunError(EdgerecError, ValueError):
    """A run folder is damaged, incomplete, or unsuitable for the operation."""


class StudyError(EdgerecError, ValueError):
    """A hyperparameter study is damaged, cannot be reached, or has other settings than the requested search."""


class TrainError(EdgerecError, RuntimeError):
    """Training cannot continue."""


class GateError(EdgerecError, RuntimeError):
    """Compression reduced the accuracy by more than the allowed maximum.

    Attributes:
        report: the measured accuracies; None if the accuracies were not measured in this call.
    """

    report: Any = None


class TargetError(EdgerecError, ValueError):
    """A target does not exist, is invalid, or cannot run the model."""


class BundleError(EdgerecError, ValueError):
    """A bundle is damaged, incomplete, or not a bundle at all."""


class DelegateError(EdgerecError, OSError):
    """The library of a delegate cannot be loaded."""


class NoHomeError(EdgerecError, OSError):
    """A default folder is needed, but the user has no home folder."""


class SourceError(EdgerecError, OSError):
    """A camera, video, stream or folder cannot be opened, or delivers no frames."""


class AddressError(EdgerecError, ValueError):
    """A URL, or a reference to a secret, is invalid; the message never contains a secret."""


class ConfigError(EdgerecError, ValueError):
    """Raised when a field of a configuration class has an invalid value.

    Attributes:
        field: name of the class and the field, such as ``FrameOptions.rotate``.
        problem: what is wrong with the value.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field, self.problem = field, problem


class OutputExistsError(EdgerecError, FileExistsError):
    """The output path already exists and must not be overwritten."""


class InUseError(EdgerecError, BlockingIOError):
    """Another process is writing to the file or folder."""


class OutputIsInputError(EdgerecError, ValueError):
    """The output would overwrite an input or become part of the input data."""


class OutputNameError(EdgerecError, ValueError):
    """The suffix of the output path does not match the output format."""


class MissingExtraError(EdgerecError, ImportError):
    """An optional package that the operation needs is not installed."""


def unknown(kind: str, name: object, choices: Iterable[str]) -> str:
    """Return the error message for an unknown name. It suggests the most similar choice and lists all choices.

    Args:
        kind: what is named, e.g. ``target``.
        name: the unknown name.
        choices: all valid names.
    """
    known = sorted(choices)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {str(name)!r}{hint} (choices: {', '.join(known)})"
