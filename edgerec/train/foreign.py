"""Whole models that other programs saved, Keras 2 or 3: read without running anything out of the file."""

from __future__ import annotations

import inspect
import json
import logging
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgerec.contract.content import describe_file
from edgerec.errors import ModelError
from edgerec.optional import require
from edgerec.train.image_input import with_image_input
from edgerec.train.indexing import selects_channels, with_indexing_layers
from edgerec.train.keras import UNREADABLE, keras
from edgerec.train.keras3 import cause, from_keras3
from edgerec.train.layers import AUGMENTATION, LAYERS, MODELS, OPERATORS, TF_OPERATORS
from edgerec.train.precision import in_float32

log = logging.getLogger(__name__)

HDF5 = b"\x89HDF\r\n\x1a\n"
SUFFIXES = (".keras", ".h5", ".hdf5")
OTHERWISE = "build it without, or convert it to .tflite yourself and take edgerec import"

_OBJECTS = ("initializers", "regularizers", "constraints")
_PLAIN = {"Policy", "DTypePolicy", "FloatDTypePolicy", "__keras_tensor__", "__tuple__", "__ellipsis__", "__slice__"}
_PLAIN |= {"__tensor__", "__numpy__"}
_REASONS = {
    "Lambda": "its code lies in the file and would be run",
    "TFSMLayer": "it loads another program's graph",
    "QuantizedDTypePolicy": "the model is quantized already; give the float one",
}

# Layers before which pixels are still what they were, but for where they are.
_PASSING = AUGMENTATION | {
    *("InputLayer", "Functional", "Sequential", "Model", "Identity", "Dropout", "SpatialDropout2D", "GaussianNoise"),
    *("ZeroPadding2D", "Resizing", "CenterCrop", "Reshape", "Permute"),
}
# What the model's own scaling leaves of 0…255 at most: a network learns from small numbers.
SMALL = 10


@dataclass(frozen=True)
class _Source:
    """``config`` describes the model as Keras serialises it; ``major`` is the version of Keras that saved it."""

    config: dict[str, Any]
    major: int


def read_foreign(path: str | Path) -> Any:
    """Read a complete ``.keras`` or ``.h5`` model of Keras 2 or 3 as a tf_keras model in float32, not compiled.

    If the model's input has another layout than ``(batch, height, width, channels)``, the model is rebuilt for this
    layout (:func:`edgerec.train.image_input.with_image_input`).

    No code from the file is executed. Before Keras reads the file, every class name in the file is compared with a list
    of supported names: the layers, initializers, regularizers and constraints of Keras, common arithmetic operators,
    and edgerec's own layers. A file with any other name is an error. A Keras 3 model is rebuilt with tf_keras layers
    (:func:`edgerec.train.keras3.from_keras3`), and its outputs are compared with those of the original.

    Raises:
        ModelError: the file does not exist, is damaged or has weights only, or a layer is not supported.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path} does not exist; expected a whole .keras or .h5 model, or a SavedModel's folder")
    try:
        source = _read_source(path)
        check_config(source.config, path, "the model")
        if source.major >= 3:
            model = from_keras3(require("keras").models.load_model(path, compile=False, safe_mode=True), str(path))
        else:
            model = in_float32(keras().models.load_model(path, compile=False, safe_mode=True))
            model = with_indexing_layers(model, str(path))
        return with_image_input(model, str(path))
    except ModelError:
        raise
    except (*UNREADABLE, AttributeError, IndexError, NotImplementedError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as a Keras model: {cause(error)}") from None


def expects_pixels(model: Any) -> bool:
    """Return whether the model itself normalizes pixels 0 to 255; False if this is unknown."""
    for layer in model._flatten_layers(include_self=False, recursive=True):
        kind = type(layer).__name__
        if kind in _PASSING or selects_channels(layer):
            continue
        scale, offset = _first_scaling(layer, kind)
        return bool(255 * np.abs(scale).max() <= SMALL or np.abs(offset).max() > SMALL)
    return False


def _first_scaling(layer: Any, kind: str) -> tuple[Any, Any]:
    """Return the scale and offset of a layer that scales its input; the scale is infinite for any other layer."""
    if kind == "Rescaling":
        return np.asarray(layer.scale), np.asarray(layer.offset)
    if kind == "Normalization" and not layer.invert:
        scale = 1 / np.sqrt(np.asarray(layer.variance))
        return scale, -np.asarray(layer.mean) * scale
    if kind == "DepthwiseConv2D" and tuple(layer.kernel_size) == (1, 1):
        kernel, *bias = layer.get_weights()
        # A learned bias does not tell the range of the input.
        return kernel, bias[0] if bias and not layer.trainable else np.zeros(1)
    return np.array(np.inf), np.zeros(1)


def _read_source(path: Path) -> _Source:
    with path.open("rb") as file:
        head = file.read(len(HDF5))
    if head == HDF5:
        return _read_h5(path)
    if not zipfile.is_zipfile(path):
        kind = describe_file(path)
        advice = " (edgerec import can read it)" if "TFLite" in kind else ""
        raise ModelError(
            f"{path} is not a Keras model (.keras or .h5): it {kind or 'has another format, or is damaged'}{advice}"
        )
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if missing := {"config.json", "metadata.json", "model.weights.h5"} - set(names):
            kind = describe_file(path)
            if kind and "Keras" not in kind:
                raise ModelError(f"{path} is not a Keras model (.keras or .h5): it {kind}")
            raise ModelError(
                f"{path} is not a complete Keras model: it lacks {min(missing)}; save it with model.save()"
            )
        with archive.open("model.weights.h5") as weights:
            _refuse_links(weights, path)
        version = json.loads(archive.read("metadata.json"))["keras_version"]
        return _Source(json.loads(archive.read("config.json")), int(version.partition(".")[0]))


def _read_h5(path: Path) -> _Source:
    _refuse_links(path, path)
    with require("h5py").File(path, "r") as file:
        config = file.attrs.get("model_config")
        if config is None:
            raise ModelError(f"{path} holds weights only: save the whole model, with model.save()")
        version = file.attrs.get("keras_version") or "2"
        text = [value.decode() if isinstance(value, bytes) else str(value) for value in (config, version)]
        return _Source(json.loads(text[0]), int(text[1].partition(".")[0]))


def _refuse_links(file: Any, where: Path) -> None:
    """HDF5 can point to other files, which would be read as weights."""
    h5py = require("h5py")

    def check(group: Any) -> None:
        for name in group:
            link = group.get(name, getlink=True)
            item = None if isinstance(link, h5py.ExternalLink) else group[name]
            if item is None or (isinstance(item, h5py.Dataset) and (item.external or item.is_virtual)):
                raise ModelError(f"{where}: {group.name}/{name} points to another file, which is refused")
            if isinstance(item, h5py.Group) and isinstance(link, h5py.HardLink):
                check(item)

    with h5py.File(file, "r") as root:
        check(root)


def check_opens(model: Any, where: str) -> None:
    """Refuse a model that could not be opened again without the code that built it; raises :class:`ModelError`."""
    config = keras().saving.serialize_keras_object(model)
    check_config(config, where, "the model")
    try:
        keras().saving.deserialize_keras_object(config, safe_mode=True)
    except UNREADABLE as error:
        raise ModelError(f"{where}: the model could not be opened again without this code: {cause(error)}") from None


def check_config(value: Any, where: str | Path, inside: str) -> None:
    """Refuse whatever names a class or function that is not on the lists; raises :class:`ModelError`.

    Args:
        value: a model as Keras serialises it, or a part.
        where: the file, for people.
        inside: what the part stands in, likewise.
    """
    if isinstance(value, list):
        for item in value:
            check_config(item, where, inside)
    elif isinstance(value, dict):
        if "class_name" in value:
            inside = _check_object(value, where, inside)
        for key, item in value.items():
            if key != "compile_config":  # never looked at: models are loaded with compile=False
                check_config(item, where, inside)


def _check_object(value: dict[str, Any], where: str | Path, inside: str) -> str:
    """Check one serialised object, and give its own name if it is a layer's."""
    kind, config = str(value["class_name"]), value.get("config")
    module, registered = str(value.get("module") or "keras"), str(value.get("registered_name") or "")
    named = config.get("name") if isinstance(config, dict) else None
    layer = f"layer {named!r}" if named else inside
    if not re.fullmatch(r"(tf_)?keras(\.\w+)*|builtins|edgerec(\.\w+)*", module):
        raise ModelError(f"{where}: {layer} is a {kind} of {module}, whose code edgerec does not run: {OTHERWISE}")
    if kind == "function":
        known = isinstance(config, str) and hasattr(require("keras").activations, config)
    elif kind in ("TFOpLambda", "SlicingOpLambda"):
        known, kind = _is_taken_operator(config), f"{kind} ({_operator(config)})"
    elif ".ops." in module:
        known = kind in OPERATORS
    elif ">" in registered or module.startswith("edgerec"):
        known = registered.startswith("edgerec>") and keras().saving.get_registered_object(registered) is not None
    else:
        known = kind in LAYERS or kind in MODELS or kind in AUGMENTATION or kind in _PLAIN or kind in _objects()
    if not known and kind in OPERATORS:  # without its module, as Keras 3 writes it to .h5
        raise ModelError(f"{where}: operator {named!r} ({kind}) is lost in an .h5 file: save the model as .keras")
    if not known:
        reason = _REASONS.get(kind, "edgerec takes Keras' own common layers and activations, and no code out of a file")
        raise ModelError(f"{where}: {layer} is a {kind}, which is refused: {reason}; {OTHERWISE}")
    return layer


def _operator(config: Any) -> str:
    return str(config.get("function")) if isinstance(config, dict) else "?"


def _is_taken_operator(config: Any) -> bool:
    """Keras 2 writes operators as names in TensorFlow, among which are some that read and write files."""
    return _operator(config) in TF_OPERATORS


def _objects() -> set[str]:
    """The classes of initializers, regularizers and constraints of both Keras."""
    modules = [getattr(module, name) for module in (keras(), require("keras")) for name in _OBJECTS]
    return {name for module in modules for name, value in vars(module).items() if inspect.isclass(value)}
