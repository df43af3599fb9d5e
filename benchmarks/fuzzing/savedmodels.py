"""Damaged SavedModels: changed operators, attributes and functions in the graph, or changed bytes."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from fuzzing.isolation import FORBIDDEN_FOLDER, Target, in_child
from fuzzing.mutate import damaged_bytes

_OPERATORS = (
    *("WriteFile", "ReadFile", "DebugIdentity", "DebugIdentityV2", "ImmutableConst", "EagerPyFunc", "PyFunc"),
    *("TFRecordDataset", "SaveV2", "RestoreV2", "PrintV2", "Send", "Recv", "Relu", "Identity", "MatMul", "NoOp"),
    *("LoadAndRemapMatrix", "HashTableV2", "InitializeTableFromTextFileV2", "Reshape", "Transpose", "StridedSlice"),
)


def start(work: Path) -> Path:
    """Return a small SavedModel."""
    in_child(partial(_create, work))
    from edgerec.importing.saved_model import load_saved_model  # noqa: F401
    from edgerec.train.backend import keras

    keras()
    return work


def _create(work: Path) -> None:
    import tensorflow as tf

    weights = tf.constant([[0.1 * row * column for column in range(3)] for row in range(12)])

    class Model(tf.Module):
        def __init__(self) -> None:
            self.scale = tf.Variable(1.0)

        @tf.function(input_signature=[tf.TensorSpec((None, 2, 2, 3), tf.float32)])
        def serve(self, pixels: Any) -> Any:
            return {"scores": tf.nn.softmax(tf.reshape(pixels * self.scale, [-1, 12]) @ weights)}

    model = Model()
    tf.saved_model.save(model, str(work), signatures={"serving_default": model.serve})


def make(rng: Random, seed: Path, folder: Path) -> Path:
    """Write a damaged copy of the SavedModel."""
    from tensorflow.core.protobuf import saved_model_pb2

    path = folder / "model"
    shutil.copytree(seed, path)
    if rng.random() < 0.3:
        file = rng.choice((path / "saved_model.pb", path / "variables" / "variables.index"))
        file.write_bytes(damaged_bytes(rng, file.read_bytes()))
        return path
    saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0].graph_def
    for _ in range(rng.choice((1, 1, 2, 3))):
        function = rng.choice(list(graph.library.function))
        node = rng.choice([*function.node_def, *graph.node])
        kind = rng.randrange(5)
        if kind == 0:
            node.op = rng.choice(_OPERATORS)
        elif kind == 1:
            added = function.node_def.add(name=f"added{rng.randrange(99)}", op=rng.choice(_OPERATORS))
            added.input.extend(rng.sample(list(node.input), rng.randrange(len(node.input) + 1)))
            added.attr["debug_urls"].list.s.append(f"file://{folder.parent / FORBIDDEN_FOLDER}/written".encode())
        elif kind == 2 and node.attr:
            del node.attr[rng.choice(sorted(node.attr))]
        elif kind == 3 and node.input:
            del node.input[rng.randrange(len(node.input))]
        else:
            node.op = function.signature.name  # calls a function, possibly the one that contains the node
    (path / "saved_model.pb").write_bytes(saved.SerializeToString())
    return path


def use(path: Path, out: Path) -> None:
    """Load the SavedModel. Loading also runs the model."""
    from edgerec.importing.saved_model import load_saved_model

    load_saved_model(path)


TARGET = Target(start, make, use, timeout_s=120)
