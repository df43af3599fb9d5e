"""Damaged Keras files: changed names, modules and values in the configuration, or changed bytes in the file."""

from __future__ import annotations

import copy
import json
import shutil
import zipfile
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from fuzzing.isolation import FORBIDDEN_FOLDER, Target, in_child
from fuzzing.mutate import damaged_bytes, damaged_json

_CLASSES = ("Lambda", "TFSMLayer", "function", "Dense", "Functional", "StringLookup", "RNN", "Map", "get_file", "eval")
_MODULES = ("builtins", "os", "keras.layers", "keras.utils", "keras.src.ops.core", "edgerec.train", "subprocess", None)
_FUNCTIONS = ("eval", "exec", "system", "open", "relu", "get_file", "load_model", "enable_unsafe_deserialization")


def start(work: Path) -> list[Path]:
    """Return small models of Keras 2 and 3 in both file formats."""
    work.mkdir(parents=True)
    in_child(partial(_create, work))
    import tf_keras  # noqa: F401

    from edgerec.importing.third_party_keras import read_third_party  # noqa: F401

    return sorted(work.iterdir())


def _create(work: Path) -> None:
    import keras
    import tf_keras

    for name, module in (("keras2", tf_keras), ("keras3", keras)):
        inner = module.Sequential([module.layers.Input((8, 8, 3)), module.layers.Conv2D(2, 3, activation="relu")])
        inputs = module.Input((8, 8, 3))
        x = module.layers.Flatten()(inner(module.layers.Rescaling(1 / 255)(inputs)))
        model = module.Model(inputs, module.layers.Dense(3, activation="softmax")(x))
        model.compile("adam", "categorical_crossentropy")
        for suffix in (".keras", ".h5"):
            model.save(work / f"{name}{suffix}")


def make(rng: Random, seeds: list[Path], folder: Path) -> Path:
    """Write a damaged copy of a model."""
    import h5py

    seed = rng.choice(seeds)
    path = folder / seed.name
    if rng.random() < 0.15:
        path.write_bytes(damaged_bytes(rng, seed.read_bytes()))
    elif seed.suffix == ".h5":
        shutil.copy(seed, path)
        with h5py.File(path, "a") as file:
            file.attrs["model_config"] = _damaged_config(rng, json.loads(file.attrs["model_config"]), folder).replace(
                b"\0", b"0"
            )
            if rng.random() < 0.1:
                file["model_weights"]["link"] = h5py.ExternalLink("/etc/passwd", "/")
    else:
        with zipfile.ZipFile(seed) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        name = rng.choice(("config.json", "config.json", "config.json", "metadata.json", "model.weights.h5"))
        if name == "model.weights.h5":
            parts[name] = damaged_bytes(rng, parts[name])
        else:
            parts[name] = _damaged_config(rng, json.loads(parts[name]), folder)
        with zipfile.ZipFile(path, "w") as archive:
            for part, content in parts.items():
                archive.writestr(part, content)
    return path


def _damaged_config(rng: Random, config: Any, folder: Path) -> bytes:
    config = copy.deepcopy(config)
    containers = list(_dictionaries(config))
    for _ in range(rng.choice((1, 1, 2))):
        container, kind = rng.choice(containers), rng.randrange(6)
        if kind == 0:
            container["class_name"] = rng.choice(_CLASSES)
        elif kind == 1:
            container["module"] = rng.choice(_MODULES)
        elif kind == 2:
            container["compile_config"] = {"optimizer": "adam", "loss": _function(rng), "metrics": [_function(rng)]}
        elif kind == 3 and container:
            container[rng.choice(list(container))] = rng.choice((_function(rng), _lambda(rng, folder)))
        elif kind == 4 and isinstance(container.get("layers"), list):
            container["layers"].append(_lambda(rng, folder))
        else:
            return damaged_json(rng, config)
    return json.dumps(config).encode()


def _dictionaries(value: Any) -> Any:
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _dictionaries(item)


def _function(rng: Random) -> dict[str, Any]:
    name = rng.choice(_FUNCTIONS)
    return {"class_name": "function", "module": rng.choice(_MODULES), "config": name, "registered_name": name}


def _lambda(rng: Random, folder: Path) -> dict[str, Any]:
    """Return the configuration of a Lambda layer that writes a file when it is called."""
    code = f"open({str(folder.parent / FORBIDDEN_FOLDER / 'executed')!r}, 'w')"
    config = {"name": "x", "function": _function(rng), "arguments": {}, "output_shape": None}
    layer = {"module": "keras.layers", "class_name": "Lambda", "registered_name": None, "name": "x", "config": config}
    return layer | {"inbound_nodes": [[["_CONSTANT_VALUE", -1, code, {}]]]}


def use(path: Path, out: Path) -> None:
    """Read and run the model both as a third-party file and as a file of a run, as the commands do."""
    from edgerec.cli.failures import explain
    from edgerec.errors import EdgerecError
    from edgerec.importing.keras_files import load_model
    from edgerec.importing.third_party_keras import read_third_party

    refused = None
    for read in (read_third_party, load_model):
        try:
            read(path)(np.zeros((1, 8, 8, 3), np.float32))
        except Exception as error:
            message = explain(error)
            if message is None:
                raise
            refused = refused or EdgerecError(message)
    if refused is not None:
        raise refused


TARGET = Target(start, make, use, timeout_s=120)
