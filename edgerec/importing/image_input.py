"""Convert models with other input layouts to channels last, ``(batch, height, width, channels)``.

The supported layouts are ``(batch, height, width)``, as in TensorFlow's first tutorial, ``(batch, height · width)``,
and channels first, ``(batch, channels, height, width)``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgerec.importing.equivalence import check_same_outputs
from edgerec.importing.graph_rewriter import ChannelsFirst, Node, Rebuild, calls, flatten
from edgerec.train.backend import keras
from edgerec.utils.optional import require

log = logging.getLogger(__name__)

# Minimum side length in pixels for treating a vector input as a flattened square image.
MIN_SIDE = 8
# Elementwise layers, which support both channels-first and channels-last tensors.
_ANY_LAYOUT = (
    *("Activation", "ActivityRegularization", "Add", "AlphaDropout", "Average", "Dropout", "ELU", "GaussianDropout"),
    *(
        "GaussianNoise",
        "Identity",
        "LeakyReLU",
        "Maximum",
        "Minimum",
        "Multiply",
        "ReLU",
        "Subtract",
        "ThresholdedReLU",
    ),
)
# Maps the axes of (batch, channels, height, width) to those of (batch, height, width, channels).
_FROM_FIRST = {0: 0, 1: 3, 2: 1, 3: 2}


def with_image_input(model: Any, where: str) -> Any:
    """Return an equivalent model with the input shape ``(batch, height, width, 1 or 3)``.

    A model with another layout, e.g. channels first, is rebuilt, and its outputs for random images are compared with
    the original's. A model whose input is not an image in one of the supported layouts is returned unchanged.

    Args:
        model: a tf_keras model.
        where: path to the file, for messages.

    Raises:
        ModelError: the rebuilt model's outputs differ from the original's.
    """
    shape = model.input_shape if isinstance(model.input_shape, tuple) else ()
    if not shape or None in shape[1:]:
        return model
    if len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3) and shape[2] == shape[3]:
        log.info("%s has the input shape %s (channels first): converting it to channels last", where, shape)
        rebuilt = _channels_last(model)
        check_same_outputs(
            model,
            rebuilt,
            f"cannot convert {where} from channels first to channels last",
            lambda images: images.transpose(0, 3, 1, 2),
        )
        return rebuilt
    side = math.isqrt(shape[1]) if len(shape) == 2 else shape[1]
    is_row = len(shape) == 2 and side**2 == shape[1] and side >= MIN_SIDE
    if not is_row and not (len(shape) == 3 and shape[1] == shape[2]):
        return model
    log.info("%s has the input shape %s: using it for grayscale images of %d×%d pixels", where, shape, side, side)
    rebuild = Rebuild(flatten)
    inputs = keras().Input((side, side, 1), name=rebuild.name("image"))
    values = [keras().layers.Reshape(shape[1:], name=rebuild.name("without_channels"))(inputs)]
    rebuilt = rebuild.run(model, [inputs], values)
    failure = f"cannot convert {where} to the input shape (batch, {side}, {side}, 1)"
    check_same_outputs(model, rebuilt, failure, lambda images: images.reshape(-1, *shape[1:]))
    return rebuilt


def _channels_last(model: Any) -> Any:
    if any(isinstance(node.layer, keras().Model) for node in calls(model)):
        model = Rebuild(flatten).run(model)
    _, channels, height, width = model.input_shape
    rebuild = Rebuild(_with_channels_last)
    inputs = keras().Input((height, width, channels), name=rebuild.name("image"))
    return rebuild.run(model, [inputs], [ChannelsFirst(inputs)])


def _with_channels_last(rebuild: Rebuild, node: Node) -> Any:
    """Return a layer's channels-last equivalent, or None to copy the layer unchanged."""
    nest = require("tensorflow").nest
    values = nest.flatten((node.args, node.kwargs))
    if node.kind == "Permute" and isinstance(node.args[0], ChannelsFirst) and tuple(node.layer.dims) == (2, 3, 1):
        return node.args[0].tensor
    config = node.layer.get_config()
    changes = _changed(node.kind, config)
    first = config.get("data_format") == "channels_first"
    if changes is None or not (first or any(isinstance(value, ChannelsFirst) for value in values)):
        return None

    def inner(value: Any) -> Any:
        if isinstance(value, ChannelsFirst):
            return value.tensor
        if len(getattr(value, "shape", ())) == 4:
            return keras().layers.Permute((2, 3, 1), name=rebuild.name(f"{node.layer.name}_channels_last"))(value)
        return value

    args, kwargs = nest.map_structure(inner, (node.args, node.kwargs))
    rebuild.record_change(node, "channels first → channels last")
    result = rebuild.copy(replace(node, args=args, kwargs=kwargs), **changes)
    return ChannelsFirst(result) if len(result.shape) == 4 else result


def _changed(kind: str, config: dict[str, Any]) -> dict[str, Any] | None:
    """Return the configuration changes that convert a layer to channels last, or None if it cannot be converted."""
    if config.get("data_format") == "channels_first":
        return {"data_format": "channels_last"}
    if kind in ("BatchNormalization", "Concatenate", "Softmax"):
        axes = config["axis"]
        moved = [_FROM_FIRST[axis % 4] for axis in (axes if isinstance(axes, Sequence) else [axes])]
        return {"axis": moved if isinstance(axes, Sequence) else moved[0]}
    scalar = kind == "Rescaling" and np.size(config["scale"]) == np.size(config["offset"]) == 1
    softmax = kind == "Activation" and config["activation"] == "softmax"  # over the last axis
    return {} if scalar or (kind in _ANY_LAYOUT and not softmax) else None
