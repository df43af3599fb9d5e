"""Load TensorFlow SavedModels, which can be converted but not trained, because they have no layers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgerec.contract.tensors import AnyNormalize, input_convolution
from edgerec.errors import ModelError
from edgerec.importing.graph_operators import CHECKPOINT, OPERATORS, RANDOM
from edgerec.train.backend import keras, reported_as
from edgerec.utils.optional import require

SIGNATURE = "serving_default"
FOLDER = "saved_model"


class SavedModel:
    """A SavedModel's serving function, with the Keras model methods needed for conversion and evaluation.

    Attributes:
        input_shape: ``(None, H, W, C)``, float32.
        output_shape: ``(None, classes)``, scores in [0, 1].
        variables: the variables that the function reads.
    """

    def __init__(self, folder: Path, loaded: Any) -> None:
        """Wrap the result of ``tf.saved_model.load``. Call :func:`load_saved_model` instead of this constructor."""
        self.name = folder.name
        self._loaded = loaded  # keeps the variables alive
        self._function = loaded.signatures[SIGNATURE]
        (self._input, input_spec), *more_inputs = self._function.structured_input_signature[1].items()
        (self._output, output_spec), *more_outputs = self._function.structured_outputs.items()
        if more_inputs or more_outputs:
            raise ModelError(
                f"{folder}: the signature {SIGNATURE} has several inputs or outputs, but an image classifier must have "
                "one of each"
            )
        if input_spec.dtype.name != "float32" or input_spec.shape.rank not in (3, 4) or output_spec.shape.rank != 2:
            raise ModelError(
                f"{folder}: the signature {SIGNATURE} takes {input_spec.dtype.name} {input_spec.shape} and returns "
                f"{output_spec.shape}; expected float32 (batch, height, width, channels) and (batch, classes)"
            )
        _refuse_training(folder, self._function.graph.as_graph_def())
        self._batch = input_spec.shape[0]
        self._has_channels = input_spec.shape.rank == 4
        self.input_shape = (None, *input_spec.shape[1:]) if self._has_channels else (None, *input_spec.shape[1:], 1)
        self.output_shape = (None, output_spec.shape[1])
        self.variables = tuple(self._function.variables)
        self._softmax = False
        self._normalize: AnyNormalize | None = None

    def __call__(self, pixels: Any, training: bool = False) -> Any:
        """Return float32 class scores ``(batch, classes)`` for float32 normalized pixels ``(batch, H, W, C)``."""
        if training:
            raise ModelError(UNTRAINABLE)
        tf = require("tensorflow")
        pixels = tf.convert_to_tensor(pixels, tf.float32)
        if self._normalize is not None:
            kernel, bias = input_convolution(self._normalize, self.input_shape[-1])
            pixels = tf.nn.bias_add(tf.nn.conv2d(pixels, kernel[None, None], 1, "VALID"), bias)
        pixels = pixels if self._has_channels else pixels[..., 0]
        if self._batch is None or self._batch == pixels.shape[0]:
            scores = self._function(**{self._input: pixels})[self._output]
        else:
            rows = [tf.repeat(pixels[i : i + 1], self._batch, 0) for i in range(pixels.shape[0])]
            scores = tf.concat([self._function(**{self._input: row})[self._output][:1] for row in rows], 0)
        return tf.nn.softmax(scores) if self._softmax else scores

    def count_params(self) -> int:
        """Return the model's number of parameters."""
        return sum(int(np.prod(variable.shape)) for variable in self.variables)

    def normalize(self, normalize: AnyNormalize) -> None:
        """Normalize inputs before running the model, so that it accepts RGB pixels from 0 to 255."""
        self._normalize = normalize

    def add_softmax(self) -> None:
        """Convert the model's logits to scores with a softmax."""
        self._softmax = True


def outputs_scores(model: Any) -> bool:
    """Return whether the outputs for random images are nonnegative and sum to 1, as after a softmax."""
    rng = np.random.default_rng(0)
    for high in (1, 255):
        scores = np.asarray(model(rng.uniform(0, high, (4, *model.input_shape[1:])).astype(np.float32), training=False))
        if not ((scores >= 0).all() and np.abs(scores.sum(axis=1) - 1).max() < 1e-3):
            return False
    return True


UNTRAINABLE = (
    "the model is a SavedModel, a graph without layers, which cannot be trained or pruned: use --method ptq, "
    "or use the Keras model (.keras)"
)


def refuse_untrainable(model: Any) -> None:
    """Raise :class:`ModelError` for a :class:`SavedModel`, which has no layers to prune or train."""
    if isinstance(model, SavedModel):
        raise ModelError(UNTRAINABLE)


def load_saved_model(folder: str | Path) -> SavedModel:
    """Load the serving function of a TensorFlow 2 SavedModel.

    Because TensorFlow executes a SavedModel's graph, the graph is checked before it is loaded. Only operators that
    compute with tensors are accepted (:mod:`edgerec.importing.graph_operators`).

    Raises:
        ModelError: the folder does not exist, the SavedModel is damaged or has another operator, or the model is not an
            image classifier.
    """
    folder = Path(folder)
    if not (folder / "saved_model.pb").is_file():
        raise ModelError(f"{folder} is not a SavedModel: it has no saved_model.pb")
    keras()  # loads TensorFlow quietly
    with reported_as(f"{folder} cannot be read as a SavedModel"):
        check_operators(folder)
        loaded = require("tensorflow").saved_model.load(str(folder))
        if SIGNATURE not in loaded.signatures:
            raise ModelError(f"{folder} has no signature {SIGNATURE}: save the model with model.export()")
        model = SavedModel(folder, loaded)
        if None not in model.input_shape[1:] and not outputs_scores(model):
            model.add_softmax()
    return model


def check_operators(folder: Path) -> None:
    """Raise :class:`ModelError` if the graph contains an operator that is not in :data:`OPERATORS`.

    The file is only parsed. TensorFlow does not load the model.
    """
    module = require("tensorflow.core.protobuf.saved_model_pb2")
    saved = module.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    for meta in saved.meta_graphs:
        if not meta.HasField("object_graph_def"):
            raise ModelError(f"{folder} is a TensorFlow 1 SavedModel: save the model again with TensorFlow 2")
        called = set(meta.object_graph_def.concrete_functions) | set(_called(meta.graph_def.library.function))
        for name, nodes in _graphs(meta.graph_def):
            # Checkpoint operators are allowed only in the main graph and in functions that save or restore weights.
            allowed = OPERATORS if name in called else OPERATORS | CHECKPOINT
            if refused := sorted({node.op for node in nodes} - allowed - _functions(meta.graph_def)):
                raise ModelError(
                    f"{folder}: its graph contains the operator {refused[0]}, which is not allowed because it could "
                    "execute code or access files or the network: save the model without it"
                )


def _functions(graph: Any) -> set[str]:
    """A node calls a function by using the function's name as its operator."""
    return {function.signature.name for function in graph.library.function}


def _refuse_training(folder: Path, graph: Any) -> None:
    """Raise :class:`ModelError` if the graph contains random operators or operators that change weights.

    Keras 3 exports augmentation layers in training mode, so that every prediction would be random.
    """
    changing = {"AssignAddVariableOp", "AssignSubVariableOp", "AssignVariableOp"}
    operators = {node.op for _, nodes in _graphs(graph) for node in nodes}
    if training := sorted(operators & (RANDOM | changing)):
        raise ModelError(
            f"{folder} was exported in training mode (operator {training[0]}): remove the augmentation layers and "
            "export the model again, or use the .keras file"
        )


def _graphs(graph: Any) -> Iterator[tuple[str, Any]]:
    yield "", graph.node
    library = {function.signature.name: function for function in graph.library.function}
    for name, function in library.items():
        yield name, function.node_def


def _called(functions: Any) -> Iterator[str]:
    """Yield the names of the operators and functions that are called by ``functions``."""
    for function in functions:
        for node in function.node_def:
            yield node.op
            for value in node.attr.values():
                yield from (value.func.name, *(item.name for item in value.list.func))
