"""TensorFlow's SavedModel folders: a graph without layers, which can be converted but not trained."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgerec.contract.tensors import AnyNormalise, input_convolution
from edgerec.errors import ModelError
from edgerec.optional import require
from edgerec.train.keras import UNREADABLE, first_line, keras

SIGNATURE = "serving_default"
FOLDER = "saved_model"

# Operators that touch nothing outside the model, though TensorFlow calls them stateful.
_STATE = re.compile(
    r"VarHandleOp|VariableV2|ReadVariableOp|VarIsInitializedOp|Assign\w*VariableOp|DisableCopyOnRead|Placeholder"
    r"|(Stateful)?PartitionedCall|If|While|Case|Assert|Rng(ReadAndSkip|Skip)|(Stateful|Stateless)?Random\w+"
    r"|TruncatedNormal|Multinomial"
)
# What a model does in training only.
_TRAINING = re.compile(r"Assign\w*VariableOp|Rng\w+|\w*Random\w+")
# Operators that read files, though TensorFlow calls them stateless, as an expression.
_FILES = re.compile(r"\w*(File|Dataset|Record|Reader|Lmdb|PyFunc)\w*")
# What saving and restoring needs. It is never called by the model.
_CHECKPOINT = {"SaveV2", "RestoreV2", "MergeV2Checkpoints", "ShardedFilename"}


class SavedModel:
    """A SavedModel's serving function as the converter and the scorer take a model.

    Attributes:
        input_shape: ``(None, H, W, C)``, float32.
        output_shape: ``(None, classes)``, scores in [0, 1].
        variables: what the function reads.
    """

    def __init__(self, folder: Path, loaded: Any) -> None:
        """Of what ``tf.saved_model.load`` gave; see :func:`load_saved_model`."""
        self.name = folder.name
        self._loaded = loaded  # its variables live as long as it does
        self._function = loaded.signatures[SIGNATURE]
        (self._input, given), *more_inputs = self._function.structured_input_signature[1].items()
        (self._output, answer), *more_outputs = self._function.structured_outputs.items()
        if more_inputs or more_outputs:
            raise ModelError(f"{folder}: an image classifier has one input and one output, {SIGNATURE} has more")
        if given.dtype.name != "float32" or given.shape.rank not in (3, 4) or answer.shape.rank != 2:
            raise ModelError(
                f"{folder}: {SIGNATURE} takes {given.dtype.name} {given.shape} and gives {answer.shape}; "
                "an image classifier takes float32 (batch, height, width, channels) and gives (batch, classes)"
            )
        _refuse_training(folder, self._function.graph.as_graph_def())
        self._batch = given.shape[0]
        self._has_channels = given.shape.rank == 4
        self.input_shape = (None, *given.shape[1:]) if self._has_channels else (None, *given.shape[1:], 1)
        self.output_shape = (None, answer.shape[1])
        self.variables = tuple(self._function.variables)
        self._softmax = False
        self._normalise: AnyNormalise | None = None

    def __call__(self, pixels: Any, training: bool = False) -> Any:
        """Scores float32 ``(batch, classes)`` of normalised pixels float32 ``(batch, H, W, C)``."""
        if training:
            raise ModelError(UNTRAINABLE)
        tf = require("tensorflow")
        pixels = tf.convert_to_tensor(pixels, tf.float32)
        if self._normalise is not None:
            kernel, bias = input_convolution(self._normalise, self.input_shape[-1])
            pixels = tf.nn.bias_add(tf.nn.conv2d(pixels, kernel[None, None], 1, "VALID"), bias)
        pixels = pixels if self._has_channels else pixels[..., 0]
        if self._batch is None or self._batch == pixels.shape[0]:
            scores = self._function(**{self._input: pixels})[self._output]
        else:
            rows = [tf.repeat(pixels[i : i + 1], self._batch, 0) for i in range(pixels.shape[0])]
            scores = tf.concat([self._function(**{self._input: row})[self._output][:1] for row in rows], 0)
        return tf.nn.softmax(scores) if self._softmax else scores

    def count_params(self) -> int:
        """How many numbers its variables hold."""
        return sum(int(np.prod(variable.shape)) for variable in self.variables)

    def get_weights(self) -> list[Any]:
        """The variables' values."""
        return [variable.numpy() for variable in self.variables]

    def normalise(self, normalise: AnyNormalise) -> None:
        """Add a normalization before the model, so that its input is RGB pixels 0 to 255."""
        self._normalise = normalise

    def add_softmax(self) -> None:
        """Make scores of what are logits."""
        self._softmax = True


def gives_scores(model: Any) -> bool:
    """Whether random pictures get scores that are at least 0 and sum to 1, as after a softmax."""
    rng = np.random.default_rng(0)
    for high in (1, 255):
        scores = np.asarray(model(rng.uniform(0, high, (4, *model.input_shape[1:])).astype(np.float32), training=False))
        if not ((scores >= 0).all() and np.abs(scores.sum(axis=1) - 1).max() < 1e-3):
            return False
    return True


UNTRAINABLE = (
    "the model is a SavedModel, a graph without layers, which cannot be trained or pruned: use --method ptq, "
    "or save the Keras model itself as .keras and give that"
)


def refuse_untrainable(model: Any) -> None:
    """Raise :class:`ModelError` for a :class:`SavedModel`, which has no layers to prune or train."""
    if isinstance(model, SavedModel):
        raise ModelError(UNTRAINABLE)


def load_saved_model(folder: str | Path) -> SavedModel:
    """The serving function of a SavedModel of TensorFlow 2.

    Its graph is a program of TensorFlow's own operators, and TensorFlow runs it: more than the data that a .keras
    file is. So the graph is read before it is loaded, and refused where an operator could call Python, read or
    write files, or reach anything else outside the model.

    Raises:
        ModelError: no such folder, a damaged one, such an operator by its name, or no image classifier.
    """
    folder = Path(folder)
    if not (folder / "saved_model.pb").is_file():
        raise ModelError(f"{folder} is no SavedModel: it has no saved_model.pb")
    keras()  # loads TensorFlow quietly
    try:
        check_operators(folder)
        loaded = require("tensorflow").saved_model.load(str(folder))
        if SIGNATURE not in loaded.signatures:
            raise ModelError(f"{folder} has no signature {SIGNATURE}: save it with model.export()")
        model = SavedModel(folder, loaded)
        if None not in model.input_shape[1:] and not gives_scores(model):
            model.add_softmax()
    except ModelError:
        raise
    except (*UNREADABLE, AttributeError, IndexError) as error:
        raise ModelError(f"{folder} cannot be read as a SavedModel: {first_line(error)}") from None
    except Exception as error:
        if "tensorflow" not in type(error).__module__ and "google.protobuf" not in type(error).__module__:
            raise
        raise ModelError(f"{folder} cannot be read as a SavedModel: {first_line(error)[:300]}") from None
    return model


def check_operators(folder: Path) -> None:
    """Refuse a SavedModel with an operator that reaches outside the model; nothing is loaded."""
    module = require("tensorflow.core.protobuf.saved_model_pb2")
    registry = require("tensorflow.python.framework.op_def_registry")
    saved = module.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    for meta in saved.meta_graphs:
        if not meta.HasField("object_graph_def"):
            raise ModelError(f"{folder} is a SavedModel of TensorFlow 1: save it again with TensorFlow 2")
        called = set(meta.object_graph_def.concrete_functions) | set(_called(meta.graph_def.library.function))
        for name, nodes in _graphs(meta.graph_def):
            # The main graph names the functions that save and restore; the model itself must never reach them.
            allowed = _CHECKPOINT if name not in called else set()
            for operator in sorted({node.op for node in nodes} - allowed):
                known = registry.get(operator)
                inert = known is not None and (not known.is_stateful or _STATE.fullmatch(operator))
                if not inert or _FILES.fullmatch(operator):
                    raise ModelError(
                        f"{folder}: its graph has the operator {operator}, which could run code or use files, and is "
                        "refused: save the model without it"
                    )


def _refuse_training(folder: Path, graph: Any) -> None:
    """Keras 3 exports a model with augmentation layers inside as it trains: random, and changing its own weights."""
    operators = {node.op for _, nodes in _graphs(graph) for node in nodes}
    if training := sorted(filter(_TRAINING.fullmatch, operators)):
        raise ModelError(
            f"{folder} was exported as it trains, not as it answers ({training[0]}): take the augmentation layers out "
            "and export again, or give the model as .keras"
        )


def _graphs(graph: Any) -> Iterator[tuple[str, Any]]:
    yield "", graph.node
    library = {function.signature.name: function for function in graph.library.function}
    for name, function in library.items():
        yield name, function.node_def


def _called(functions: Any) -> Iterator[str]:
    """The functions that other functions call."""
    for function in functions:
        for node in function.node_def:
            for value in node.attr.values():
                yield from (value.func.name, *(item.name for item in value.list.func))
