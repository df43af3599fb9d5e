"""Initialize a model from a Keras file, loading weights wherever the shapes match."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgerec.errors import ModelError
from edgerec.importing.keras_files import refuse_links_in_weights
from edgerec.train.backend import reported_as

log = logging.getLogger(__name__)


def load_weights(model: Any, path: Path) -> tuple[int, int]:
    """Initialize ``model`` from a .keras or .h5 file, loading weights wherever the shapes match.

    Returns:
        The number of variables that were initialized, and the number of all variables.

    Raises:
        ModelError: the file does not exist, cannot be read, or has no weights that match.
    """
    if not path.is_file():
        raise ModelError(f"model.weights is {str(path)!r}, which does not exist; expected none, imagenet or a file")
    before = model.get_weights()
    options = {"skip_mismatch": True} | ({} if path.suffix == ".keras" else {"by_name": True})
    with reported_as(f"{path} has no weights that Keras can read"):
        refuse_links_in_weights(path)
        with _captured_warnings() as messages:
            model.load_weights(str(path), **options)
    # The last layer's bias shape depends only on the number of classes, so it does not identify the network.
    names = [variable.name.partition("/")[0] for variable in model.weights]
    changed = [bool((old != new).any()) for old, new in zip(before, model.get_weights(), strict=True)]
    initialized = sum(changed) if any(new and name != "logits" for new, name in zip(changed, names, strict=True)) else 0
    others = list(dict.fromkeys(mismatch for message in messages if (mismatch := _mismatch(message))))
    if not initialized:
        shapes = f" ({'; '.join(others[:3])})" if others else ""
        raise ModelError(
            f"none of the weights in {path} fit {model.name}{shapes}: use the same architecture, width and number of "
            "channels, or keep the file's architecture with --arch backbone"
        )
    if others:
        log.warning("%s: weights with other shapes were not loaded: %s", path, "; ".join(others[:5]))
    return initialized, len(before)


@contextmanager
def _captured_warnings() -> Iterator[list[str]]:
    """Keras reports mismatches in .keras files as Python warnings, and in .h5 files as TensorFlow log messages."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger = logging.getLogger("tensorflow")
    level, handlers = logger.level, logger.handlers[:]
    logger.handlers[:] = [Collector()]
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield messages
        messages += [str(warning.message) for warning in caught]
    finally:
        logger.handlers[:] = handlers
        logger.setLevel(level)


# Patterns for Keras' shape mismatch warnings about .keras and .h5 files.
# Each pattern captures the variable's name, its shape in the model, and its shape in the file.
_OTHER_SHAPES = (
    re.compile(r"variable ' ?([^':]+)[^']*': Shape mismatch\.\D*\(([^)]*)\)[^(]*\(([^)]*)\)"),
    re.compile(r"\(named ([^)]+)\) due to mismatch in shape[^(]*\(([^)]*)\)[^(]*\(([^)]*)\)"),
)


def _mismatch(warning: str) -> str:
    """Summarize a warning about a shape mismatch, or return an empty string for any other warning."""
    shapes = next((match for pattern in _OTHER_SHAPES if (match := pattern.search(warning))), None)
    return f"{shapes[1]} has shape ({shapes[2]}) in the model but ({shapes[3]}) in the file" if shapes else ""
