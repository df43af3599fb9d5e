"""Replace indexing operations in a Keras model's graph, such as ``x[..., ::-1]``, with Keras layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgerec.errors import ModelError
from edgerec.importing.graph_rewriter import Node, Rebuild, calls, flatten, layers_of
from edgerec.train.backend import keras


@dataclass(frozen=True)
class Channel:
    """A single channel of a tensor, such as ``x[..., 0]``. Use :func:`stacked` to combine channels."""

    tensor: Any
    index: int


def indexed(x: Any, items: Any, name: Callable[[], str]) -> Any:
    """Compute ``x[items]`` with Keras layers, or return None if the index is not supported.

    An index may select and reorder channels, and crop rows and columns at the edges of the image. An index
    that selects a single channel returns a :class:`Channel`.

    Args:
        x: a Keras tensor ``(batch, …, channels)``.
        items: slices, integers and ellipses. A slice or an ellipsis may be a dictionary, as in saved Keras models.
        name: function that returns an unused layer name.
    """
    index = _full_index(items, len(x.shape))
    if index is None or index[0] != slice(None) or any(isinstance(item, int) for item in index[:-1]):
        return None
    spatial, last = index[1:-1], index[-1]
    if any(item != slice(None) for item in spatial):
        x = _cropped(x, spatial, name)
        if x is None:
            return None
    if isinstance(last, int):
        return Channel(x, last % x.shape[-1])
    return selected(x, list(range(x.shape[-1]))[last], name)


def stacked(channels: Sequence[Any], axis: int, name: Callable[[], str]) -> Any:
    """Stack :class:`Channel` objects of the same tensor along the last axis.

    Return None if ``channels`` contains anything else, or ``axis`` is not the last axis.
    """
    if not channels or not all(isinstance(channel, Channel) for channel in channels):
        return None
    tensor = channels[0].tensor
    if axis not in (-1, len(tensor.shape) - 1) or any(channel.tensor is not tensor for channel in channels):
        return None
    return selected(tensor, [channel.index for channel in channels], name)


def selected(x: Any, channels: Sequence[int], name: Callable[[], str]) -> Any:
    """Select and reorder the channels of ``x`` with a fixed 1x1 convolution, or a dense layer if ``x`` is a vector."""
    count, layers = x.shape[-1], keras().layers
    if list(channels) == list(range(count)):
        return x
    if not channels or len(x.shape) not in (2, 4):
        return None
    kernel = np.eye(count, dtype=np.float32)[:, list(channels)]
    options = {"use_bias": False, "trainable": False, "name": name()}
    if len(x.shape) == 2:
        fixed = keras().initializers.Constant(kernel.tolist())
        return layers.Dense(len(channels), kernel_initializer=fixed, **options)(x)
    fixed = keras().initializers.Constant(kernel[None, None].tolist())
    return layers.Conv2D(len(channels), 1, kernel_initializer=fixed, **options)(x)


def with_indexing_layers(model: Any, where: str) -> Any:
    """Return a flattened copy of a tf_keras model, with layers instead of indexing operations.

    This is necessary because Keras 2 cannot save a loaded model that has indexing operations.

    Raises:
        ModelError: an index is neither a selection of channels nor a crop.
    """
    kinds = {type(layer).__name__ for layer in layers_of(model)}
    if "SlicingOpLambda" not in kinds:
        return model
    if any(isinstance(node.layer, keras().Model) for node in calls(model)):
        model = Rebuild(flatten).run(model)

    def rule(rebuild: Rebuild, node: Node) -> Any:
        if type(node.layer).__name__ != "SlicingOpLambda":
            return None
        result = indexed(node.args[0], node.kwargs.get("slice_spec"), lambda: rebuild.name(node.layer.name))
        if result is None or isinstance(result, Channel):
            raise ModelError(
                f"{where}: the indexing operation {node.layer.name!r} is not supported, because it neither selects "
                "channels nor crops the image: replace it with Keras layers and save the model again"
            )
        return result

    return Rebuild(rule).run(model)


def selects_channels(layer: Any) -> bool:
    """Return whether a layer is a frozen 1x1 convolution that only scales and reorders channels."""
    if layer.trainable or type(layer).__name__ != "Conv2D" or tuple(layer.kernel_size) != (1, 1):
        return False
    return bool((np.count_nonzero(layer.get_weights()[0], axis=2) <= 1).all())


def _cropped(x: Any, spatial: Sequence[Any], name: Callable[[], str]) -> Any:
    if len(spatial) != 2 or None in x.shape[1:3]:
        return None
    ranges = [range(size)[item] for size, item in zip(x.shape[1:3], spatial, strict=True)]
    if any(not positions or positions.step != 1 for positions in ranges):
        return None
    edges = [(r.start, size - r.stop) for r, size in zip(ranges, x.shape[1:3], strict=True)]
    return keras().layers.Cropping2D(edges, name=name())(x)


def _full_index(items: Any, rank: int) -> list[Any] | None:
    """Expand an index to one slice or integer per axis. Return None if it contains any other type."""
    parts = [_part(item) for item in (items if isinstance(items, list | tuple) else [items])]
    if any(not isinstance(part, int | slice) and part is not Ellipsis for part in parts):
        return None
    if Ellipsis not in parts:
        parts.append(Ellipsis)
    at = parts.index(Ellipsis)
    missing = rank - (len(parts) - 1)
    if parts.count(Ellipsis) > 1 or missing < 0:
        return None
    return [*parts[:at], *[slice(None)] * missing, *parts[at + 1 :]]


def _part(item: Any) -> Any:
    if not isinstance(item, dict):
        return item if not isinstance(item, bool) else None
    if item.get("class_name") == "__ellipsis__":
        return Ellipsis
    bounds = item["config"] if item.get("class_name") == "__slice__" else item
    values = [bounds.get(key) for key in ("start", "stop", "step")]
    return slice(*values) if all(value is None or isinstance(value, int) for value in values) else None
