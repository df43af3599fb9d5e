"""Wrap the layers of a model for pruning or clustering with tensorflow-model-optimization."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from edgerec.errors import ModelError, unknown
from edgerec.importing.graph_rewriter import copied, with_layers
from edgerec.importing.indexing import selects_channels
from edgerec.train.backend import cause, keras


def wrap(model: Any, wrapper: Callable[[Any], Any], skip: str) -> Any:
    """Return a copy of ``model`` with ``wrapper`` around every layer that has weights.

    Args:
        model: a functional or Sequential model without nested models.
        wrapper: function that takes a layer and returns the wrapped layer.
        skip: names or patterns of layers not to wrap, separated by commas.

    Raises:
        ModelError: a name in ``skip`` matches no layer, or a layer cannot be wrapped.
    """
    skipped = named_layers(model, skip, "compress.skip")

    def wrapped(layer: Any) -> Any:
        has_no_weights = not layer.weights or isinstance(layer, keras().layers.BatchNormalization)
        if has_no_weights or layer.name in skipped or selects_channels(layer):
            return layer
        try:
            return wrapper(layer)
        except ValueError as error:
            raise ModelError(
                f"layer {layer.name} ({type(layer).__name__}) cannot be compressed: {cause(error)}; "
                f"add {layer.name} to compress.skip (--skip of edgerec quantize)"
            ) from None

    return with_layers(copied(model), wrapped)


def named_layers(model: Any, names: str, key: str) -> set[str]:
    """Return the names of the model's layers that match any of the given names and patterns.

    Args:
        model: the model.
        names: names or patterns such as ``conv2d*``, separated by commas.
        key: recipe key that contains these names, for the error message.

    Raises:
        ModelError: a name or pattern matches no layer.
    """
    layers = [layer.name for layer in model.layers]
    matched: set[str] = set()
    for pattern in filter(None, map(str.strip, names.split(","))):
        matches = {name for name in layers if fnmatchcase(name, pattern)}
        if not matches:
            raise ModelError(f"{key}: {unknown('layer', pattern, layers)}")
        matched |= matches
    return matched
