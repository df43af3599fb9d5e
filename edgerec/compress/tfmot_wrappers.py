"""Putting a wrapper of tensorflow-model-optimization around a model's layers, but for those that a person names."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from edgerec.errors import ModelError, unknown
from edgerec.importing.indexing import selects_channels
from edgerec.train.backend import cause, copied, keras, without_autograph


def wrap(model: Any, wrapper: Callable[[Any], Any], skip: str) -> Any:
    """``model`` with ``wrapper`` around every layer that has weights, but for those that ``skip`` names.

    The layers are copies.

    Args:
        model: flat, functional or Sequential.
        wrapper: layer to layer.
        skip: names or patterns, separated by commas.

    Raises:
        ModelError: ``skip`` names no layer, or a layer cannot be wrapped.
    """
    left_alone = named_layers(model, skip, "compress.skip")

    def wrapped(layer: Any) -> Any:
        unweighted = not layer.weights or isinstance(layer, keras().layers.BatchNormalization)
        if unweighted or layer.name in left_alone or selects_channels(layer):
            return layer
        try:
            return wrapper(layer)
        except ValueError as error:
            raise ModelError(
                f"layer {layer.name} ({type(layer).__name__}) cannot be compressed: {cause(error)}; "
                f"leave it alone with --skip {layer.name}"
            ) from None

    return without_autograph(keras().models.clone_model)(copied(model), clone_function=wrapped)


def named_layers(model: Any, names: str, key: str) -> set[str]:
    """The layers that ``names`` means: names or patterns, separated by commas.

    Raises:
        ModelError: a name or pattern that fits no layer; ``key`` is where it was written.
    """
    layers = [layer.name for layer in model.layers]
    found: set[str] = set()
    for pattern in filter(None, map(str.strip, names.split(","))):
        fitting = {name for name in layers if fnmatchcase(name, pattern)}
        if not fitting:
            raise ModelError(f"{key}: {unknown('layer', pattern, layers)}")
        found |= fitting
    return found
