"""Load Keras files (.keras, .h5) after checking that they cannot execute code.

Even in safe mode, Keras executes code from a file. For example, a Lambda layer may name any Python function. Therefore,
a file is loaded only if every class and function named in it is on an allowlist.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgerec.contract.format_detection import describe_file
from edgerec.errors import ModelError
from edgerec.importing.layer_allowlist import AUGMENTATION, LAYERS, MODELS, OPERATORS, TF_OPERATORS
from edgerec.train.backend import keras, reported_as
from edgerec.utils.bounded_parsing import MAX_TEXT_BYTES, check_zip_file, parse_json
from edgerec.utils.optional import require

log = logging.getLogger(__name__)

SUFFIXES = (".keras", ".h5", ".hdf5")

_ADVICE = "Build the model without it, or convert the model to .tflite and use 'edgerec import'"
_MODULES = re.compile(r"(tf_)?keras(\.\w+)*|builtins|edgerec(\.\w+)*")
_OBJECTS = ("initializers", "regularizers", "constraints")
_COMPILE_OBJECTS = ("optimizers", "optimizers.schedules", "mixed_precision", "losses", "metrics")
_PLAIN = {"Policy", "DTypePolicy", "FloatDTypePolicy", "__keras_tensor__", "__tuple__", "__ellipsis__", "__slice__"}
_PLAIN |= {"__tensor__", "__numpy__"}
_REASONS = {
    "Lambda": "its code is in the file and would be executed",
    "TFSMLayer": "it loads a TensorFlow graph from another file",
    "QuantizedDTypePolicy": "the model is quantized already, so use the float model",
}


@dataclass(frozen=True)
class _Source:
    """A model's serialized configuration, and the major version of Keras that wrote it."""

    config: Any
    major: int


def load_model(path: Path) -> Any:
    """Load an uncompiled tf_keras model from a .keras file written by edgerec.

    Raises:
        ModelError: the file does not exist, is damaged, or names a class or function that is not on the allowlists.
    """
    if not path.exists():
        raise ModelError(f"{path} does not exist")
    with reported_as(f"{path} cannot be read as a Keras model"):
        return _load(path, compiled=False)


def load_checkpoint(path: Path) -> Any:
    """Load a training checkpoint as a compiled model, including the optimizer's state.

    Raises:
        ModelError: the checkpoint names a class or function that is not on the allowlists. A damaged checkpoint raises
            one of the exceptions in :data:`UNREADABLE`.
    """
    return _load(path, compiled=True)


def _load(path: Path, compiled: bool) -> Any:
    if not path.is_dir() and path.exists() and not zipfile.is_zipfile(path):
        raise ValueError(f"it {describe_file(path) or 'has another format, or is damaged'}")
    check_keras_file(path, compiled=compiled)
    return load_keras2(path, compiled=compiled)


def load_keras2(path: Path, *, compiled: bool = False) -> Any:
    """Load a model with tf_keras, after :func:`check_keras_file` has checked the file.

    tf_keras loops forever if a functional model's layer refers to a node that does not exist, so the number of
    iterations is limited.
    """
    functional: Any = importlib.import_module(f"{keras().__name__}.src.engine.functional")
    original = functional.reconstruct_from_config

    def reconstruct(config: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        return original(config | {"layers": _FiniteLayers(config["layers"])}, *arguments, **options)

    functional.reconstruct_from_config = reconstruct
    try:
        return keras().models.load_model(path, compile=compiled, safe_mode=True)
    finally:
        functional.reconstruct_from_config = original


class _FiniteLayers(list[Any]):
    """A list of layers that can be iterated only a limited number of times, to prevent infinite loops.

    Keras creates all layers in the first iteration, and connects their nodes in further iterations. In a valid model,
    each iteration connects at least one node, so the number of nodes is the limit.
    """

    def __init__(self, layers: list[Any]) -> None:
        super().__init__(layers)
        self.iterations = 1 + sum(len(layer["inbound_nodes"]) for layer in layers)

    def __iter__(self) -> Iterator[Any]:
        if not self.iterations:
            raise ValueError("the model's layers form a cycle, or refer to an output that does not exist")
        self.iterations -= 1
        return super().__iter__()


def check_keras_file(path: Path, *, compiled: bool = False) -> int:
    """Check the classes and functions named in a .keras or .h5 file, without loading the model.

    Args:
        path: path of the file.
        compiled: whether the model will be compiled with its ``compile_config``. Otherwise this configuration is not
            checked, because it is not used.

    Returns:
        The major version of Keras that wrote the file.

    Raises:
        ModelError: the file contains only weights, refers to other files, or names a class or function that is not on
            the allowlists. A damaged file raises one of the exceptions in :data:`UNREADABLE`.
    """
    source = _read_source(path)
    config = source.config
    if not compiled and isinstance(config, dict):
        config = {key: value for key, value in config.items() if key != "compile_config"}
    check_config(config, path, "the model")
    return source.major


def check_opens(model: Any, where: str) -> None:
    """Raise :class:`ModelError` if loading the saved model would require the Python code that built it."""
    config = keras().saving.serialize_keras_object(model)
    check_config(config, where, "the model")
    with reported_as(f"{where}: the model could not be opened again without this code"):
        keras().saving.deserialize_keras_object(config, safe_mode=True)


def check_config(value: Any, where: str | Path, inside: str, compiling: bool = False) -> None:
    """Raise :class:`ModelError` if a configuration names a class or function that is not on an allowlist.

    Args:
        value: configuration of a model, a layer or any other object, as Keras serializes it.
        where: file name, for error messages.
        inside: name of the layer that contains ``value``, for error messages.
        compiling: whether ``value`` is part of a ``compile_config``, in which Keras' optimizers, losses and metrics are
            allowed as well.
    """
    if isinstance(value, list):
        for item in value:
            check_config(item, where, inside, compiling)
    elif isinstance(value, dict):
        if "class_name" in value:
            inside = _check_object(value, where, inside, compiling)
        for key, item in value.items():
            check_config(item, where, inside, compiling or key == "compile_config")


def _check_object(value: dict[str, Any], where: str | Path, inside: str, compiling: bool) -> str:
    """Check a serialized Keras object. Return the name of its layer, for error messages.

    The layer is the object itself if it has a name, otherwise the containing layer, ``inside``.
    """
    kind, config = str(value["class_name"]), value.get("config")
    module, registered = str(value.get("module") or "keras"), str(value.get("registered_name") or "")
    name = config.get("name") if isinstance(config, dict) else None
    layer = f"layer {name!r}" if name else inside
    if not _MODULES.fullmatch(module):
        raise ModelError(f"{where}: {layer} is a {kind} of the package {module}, whose code is not executed. {_ADVICE}")
    if kind == "function":
        known = isinstance(config, str) and config in _functions(compiling)
        kind = f"function ({config})"
    elif kind in ("TFOpLambda", "SlicingOpLambda"):
        # Keras 2 refers to TensorFlow operators by name, and some of them read or write files.
        operator = str(config.get("function")) if isinstance(config, dict) else "?"
        known, kind = operator in TF_OPERATORS, f"{kind} ({operator})"
    elif ".ops." in module:
        known = kind in OPERATORS
    elif ">" in registered or module.startswith("edgerec"):
        known = registered.startswith("edgerec>") and keras().saving.get_registered_object(registered) is not None
    else:
        known = kind in LAYERS or kind in MODELS or kind in AUGMENTATION or kind in _PLAIN
        known = known or kind in _classes(_OBJECTS) or (compiling and kind in _classes(_COMPILE_OBJECTS))
    if not known and kind in OPERATORS:  # Keras 3 does not record an operator's module in .h5 files
        raise ModelError(f"{where}: operator {name!r} ({kind}) cannot be loaded from .h5: save the model as .keras")
    if not known:
        reason = _REASONS.get(kind, "only common Keras layers and activations are accepted, and no code from a file")
        raise ModelError(f"{where}: {layer} is a {kind}, which is not allowed because {reason}. {_ADVICE}")
    return layer


def _classes(names: tuple[str, ...]) -> set[str]:
    return {name for module in _modules(names) for name, value in vars(module).items() if inspect.isclass(value)}


def _functions(compiling: bool) -> set[str]:
    modules = _modules(("activations", *(("losses", "metrics") if compiling else ())))
    names = {name for module in modules for name, value in vars(module).items() if inspect.isfunction(value)}
    return names - {"get", "serialize", "deserialize"}


def _modules(names: tuple[str, ...]) -> Iterator[Any]:
    for package in (keras(), require("keras")):
        for name in names:
            module = package
            for part in name.split("."):
                module = getattr(module, part, None)
            if module is not None:
                yield module


def _read_source(path: Path) -> _Source:
    if not _is_archive(path):
        if require("h5py").is_hdf5(path):
            return _read_h5(path)
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
                f"{path} is not a complete Keras model: it has no {min(missing)}; save the model with model.save()"
            )
        _check_archive(archive, path)
        config, metadata = (_read_json(archive, name) for name in ("config.json", "metadata.json"))
        return _Source(config, int(metadata["keras_version"].partition(".")[0]))


def _read_json(archive: zipfile.ZipFile, name: str) -> Any:
    with archive.open(name) as file:
        return parse_json(file.read(MAX_TEXT_BYTES + 1))


def _is_archive(path: Path) -> bool:
    """Return whether a file is a zip archive.

    Raises:
        ModelError: the file is both a zip archive and an HDF5 file. Keras might load the part that is not checked.
    """
    archive = zipfile.is_zipfile(path)
    if archive and require("h5py").is_hdf5(path):
        raise ModelError(f"{path} is both a zip archive and an HDF5 file, so it may be malicious: do not use it")
    return archive


def _check_archive(archive: zipfile.ZipFile, path: Path) -> None:
    """Raise an error if a .keras archive's unpacked size is implausible, or its weights file links to other files."""
    check_zip_file(path, sys.maxsize)
    if "model.weights.h5" in archive.namelist():
        with archive.open("model.weights.h5") as weights:
            _refuse_links(weights, path)


def refuse_links_in_weights(path: Path) -> None:
    """Raise :class:`ModelError` if a weights file links to other files."""
    if _is_archive(path):
        with zipfile.ZipFile(path) as archive:
            _check_archive(archive, path)
    else:
        _refuse_links(path, path)


def _read_h5(path: Path) -> _Source:
    _refuse_links(path, path)
    with require("h5py").File(path, "r") as file:
        config = file.attrs.get("model_config")
        if config is None:
            raise ModelError(f"{path} contains only weights: save the complete model with model.save()")
        version = file.attrs.get("keras_version") or "2"
        text = [value.decode() if isinstance(value, bytes) else str(value) for value in (config, version)]
        return _Source(parse_json(text[0]), int(text[1].partition(".")[0]))


def _refuse_links(file: Any, where: Path) -> None:
    """Raise :class:`ModelError` if an HDF5 file links to other files, which HDF5 would read as weights."""
    h5py = require("h5py")

    def check(group: Any) -> None:
        for name in group:
            link = group.get(name, getlink=True)
            item = None if isinstance(link, h5py.ExternalLink) else group[name]
            if item is None or (isinstance(item, h5py.Dataset) and (item.external or item.is_virtual)):
                raise ModelError(
                    f"{where}: {group.name}/{name} is a link to another file, which is not allowed: save the model "
                    "with all weights in one file"
                )
            if isinstance(item, h5py.Group) and isinstance(link, h5py.HardLink):
                check(item)

    with h5py.File(file, "r") as root:
        check(root)
