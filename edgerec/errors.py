"""Everything that can go wrong because of what a person, a file or a device gave.

The command line turns an :class:`EdgerecError` into one line and exit code 1. Any other exception is a bug
and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from edgerec.utils.text import printable

# The middle of what is longer is left out, as of a value that a file holds.
LONGEST = 1000


class EdgerecError(Exception):
    """One line: what is wrong, where, what was expected, and what to do next."""

    def __str__(self) -> str:
        """The message as one line that a terminal can show, whatever was quoted in it."""
        text = printable(super().__str__().strip())
        return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"


class RecipeError(EdgerecError, ValueError):
    """A recipe with an unknown key or a value out of range."""


class DataError(EdgerecError, ValueError):
    """Pictures, labels or splits that cannot be trained on."""


class ModelError(EdgerecError, ValueError):
    """A model that is not what the step needs."""


class RunError(EdgerecError, ValueError):
    """A run's folder that is damaged."""


class StudyError(EdgerecError, ValueError):
    """A study that is damaged, out of reach, or was made for something else."""


class TrainError(EdgerecError, RuntimeError):
    """A training that cannot go on."""


class GateError(EdgerecError, RuntimeError):
    """Compression cost more accuracy than was allowed; ``report`` has the figures where they were just measured."""

    report: Any = None


class TargetError(EdgerecError, ValueError):
    """A target that does not exist or cannot run the model."""


class BundleError(EdgerecError, ValueError):
    """A bundle that is damaged, incomplete, or not a bundle."""


class DelegateError(EdgerecError, OSError):
    """A delegate's library that does not load."""


class NoHomeError(EdgerecError, OSError):
    """A default folder is needed, but the user has no home folder."""


class SourceError(EdgerecError, OSError):
    """A camera, video, stream or folder that gives no frames."""


class AddressError(EdgerecError, ValueError):
    """An address, or a reference to a secret, is not valid. The message never contains a secret."""


class OutputExistsError(EdgerecError, FileExistsError):
    """Something already stands where the result would go."""


class InUseError(EdgerecError, BlockingIOError):
    """Another process is writing to the file or folder."""


class OutputIsInputError(EdgerecError, ValueError):
    """An output path that is also an input, which writing would destroy."""


class OutputNameError(EdgerecError, ValueError):
    """An output path whose suffix does not fit the format."""


class MissingExtraError(EdgerecError, ImportError):
    """An optional package that this step needs is not installed."""


def unknown(kind: str, name: object, choices: Iterable[str]) -> str:
    """The message for a name that is not in a registry: the nearest one, and all of them."""
    known = sorted(choices)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {str(name)!r}{hint} (choices: {', '.join(known)})"
