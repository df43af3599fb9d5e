"""Making any Keras model fit for quantization-aware training and pruning, without changing what it answers.

Three steps, each of them a pass of :class:`~edgerec.compress.rebuild.Rebuild`, and each compared with the model that
was given: nested models are flattened, layers that do nothing at inference are left out, and what
tensorflow-model-optimization or int8 does not know is expressed in layers that it knows (``express.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgerec.compress.annotate import prunable, trainable_in_int8
from edgerec.compress.express import ALONE, INSIDE, activation_name, express
from edgerec.compress.rebuild import Node, Rebuild, calls
from edgerec.errors import ModelError
from edgerec.train.keras import keras

log = logging.getLogger(__name__)

# What the model will be used for next: quantization-aware training (``pqat``: with its zeros preserved), pruning,
# post-training quantization. It decides what is refused, not what is changed.
Purpose = Literal["qat", "pqat", "prune", "ptq"]

WAYS_ON = "build the model without it, or use --method ptq or float16"
# How many random inputs, and how far their outputs may move, as a part of the largest.
SAMPLES, TOLERANCE = 4, 1e-2


@dataclass(frozen=True)
class Change:
    """One layer that became something else.

    Attributes:
        layer: its name in the model that was given.
        what: what became of it.
        why: why it could not stay.
        max_difference: largest difference, over all outputs for the sample inputs, between the model after this
            step and the one that was given.
    """

    layer: str
    what: str
    why: str
    max_difference: float

    def to_dict(self) -> dict[str, Any]:
        """The change as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Adapted:
    """A model that the next stage takes, and how it differs from the one that was given."""

    model: Any
    changes: tuple[Change, ...]

    @property
    def max_difference(self) -> float:
        """Between the outputs of this model and of the given one; 0 when nothing was changed."""
        return self.changes[-1].max_difference if self.changes else 0.0


def adapt(model: Any, purpose: Purpose = "qat", pixels: npt.NDArray[np.float32] | None = None) -> Adapted:
    """A model with the same answers that the next stage takes. The given one is never changed; weights are copied.

    Args:
        model: a tf_keras model, Sequential or functional, nested or flat.
        purpose: what comes next, which decides what is refused.
        pixels: sample inputs ``(N, H, W, C)``, normalised as the model wants them; None takes random ones.

    Returns:
        The given model itself when nothing has to change.

    Raises:
        ModelError: a layer that the next stage cannot take, by its name, with the ways on.
    """
    _refuse_code(model)
    reference, changes, current = None, [], model
    for applies, step, why in _STEPS:
        if not applies(current):
            continue
        rebuild = Rebuild(step)
        after = rebuild.run(current)
        if not rebuild.done:
            continue
        if reference is None:
            pixels = _samples(model) if pixels is None else pixels
            reference = _answers(model, pixels)
        difference = max(float(np.abs(a - b).max()) for a, b in zip(_answers(after, pixels), reference, strict=True))
        if not difference <= TOLERANCE * max(1.0, *(float(np.abs(r).max()) for r in reference)):
            raise ModelError(
                f"adapting {model.name} changed its answers by {difference:.3g} (beginning with "
                f"{rebuild.done[0][0]!r}): use --method ptq"
            )
        changes += [Change(layer, what, why, difference) for layer, what in rebuild.done]
        current = after
    for layer in current.layers:
        _refuse(layer, purpose)
    for change in changes:
        log.info("%s: %s, since %s (outputs within %.1e)", change.layer, change.what, change.why, change.max_difference)
    return Adapted(current, tuple(changes))


def check_classifier(model: Any, classes: int | None = None) -> None:
    """Refuse what is no image classifier, whatever else it may be good for.

    Args:
        model: a tf_keras model.
        classes: how many labels there are, if that is known.

    Raises:
        ModelError: several inputs or outputs, an input other than ``(batch, height, width, 1 or 3)`` of a fixed
            size, an output other than ``(batch, classes)``, or weights that are no finite numbers.
    """
    where = f"model {getattr(model, 'name', '')!r}"
    if not getattr(model, "inputs", None):
        raise ModelError(f"{where} has no fixed inputs: build it as a functional or Sequential model with an Input")
    for what, tensors in (("inputs", model.inputs), ("outputs", model.outputs)):
        if len(tensors) != 1:
            raise ModelError(f"{where} has {len(tensors)} {what}, expected one: a picture in, a row of scores out")
    shape, answer = tuple(model.inputs[0].shape), tuple(model.outputs[0].shape)
    if len(shape) != 4 or shape[3] not in (1, 3):
        raise ModelError(f"{where} takes {shape}, expected pictures (batch, height, width, 1 or 3)")
    if None in shape[1:]:
        raise ModelError(
            f"{where} takes {shape}: its size is dynamic; build it with a fixed one, as Input((96, 96, 3))"
        )
    if len(answer) != 2 or answer[1] is None:
        raise ModelError(f"{where} gives {answer}, expected (batch, classes)")
    if classes is not None and answer[1] != classes:
        raise ModelError(
            f"{where} has {answer[1]} classes, there are {classes} labels: give the labels that it was trained with"
        )
    for layer in _layers(model):
        for weight in layer.weights:
            if not np.isfinite(np.asarray(weight)).all():
                raise ModelError(
                    f"layer {layer.name!r} of {where} has weights that are NaN or infinite: "
                    "train it again, at a lower learning rate"
                )


# --- The steps: whether one applies, its rule, and why it is taken ---------------------------------------------------

# Random at training, nothing at inference.
INACTIVE = (
    *("RandomFlip", "RandomRotation", "RandomTranslation", "RandomZoom", "RandomContrast", "RandomBrightness"),
    *("RandomHeight", "RandomWidth", "GaussianNoise", "GaussianDropout", "AlphaDropout"),
)
SIZING = ("Resizing", "CenterCrop", "RandomCrop")


def _is_nested(model: Any) -> bool:
    return any(isinstance(node.layer, keras().Model) or "training" in node.call_kwargs for node in calls(model))


def _flatten(rebuild: Rebuild, node: Node) -> Any:
    """A model inside a model becomes its layers; ``training=False``, said at a call, becomes the layers' own."""
    if isinstance(node.layer, keras().Model):
        rebuild.tell(node, f"a model inside the model → its {len(node.layer.layers)} layers")
        return rebuild.inline(node)
    training = node.kwargs.pop("training", None)
    if training is None:
        return None
    rebuild.tell(node, f"called with training={training} → the layer's own")
    if training:
        raise ModelError(f"layer {node.layer.name!r} is called with training=True: it answers differently each time")
    if node.kind == "BatchNormalization":
        return rebuild.copy(node, trainable=False)  # says the same in Keras 2: statistics as they are
    return node.args[0] if "Dropout" in node.kind else None


def _has_inactive(model: Any) -> bool:
    return any(type(layer).__name__ in (*INACTIVE, *SIZING) for layer in model.layers)


def _leave_out(rebuild: Rebuild, node: Node) -> Any:
    """Augmentation, noise, and sizing to the size that the picture has."""
    if node.kind not in (*INACTIVE, *SIZING):
        return None
    size = tuple(node.inputs[0].shape[1:3])
    if node.kind in SIZING and size != (node.layer.height, node.layer.width):
        raise ModelError(
            f"layer {node.layer.name!r} ({node.kind}) makes {node.layer.height}×{node.layer.width} of {size}, which "
            "the device does before the model: build the model for that size, without the layer"
        )
    rebuild.tell(node, f"{node.kind} → left out")
    return node.args[0]


_STEPS = (
    (_is_nested, _flatten, "tensorflow-model-optimization refuses a model inside a model"),
    (_has_inactive, _leave_out, "it does nothing at inference"),
    (lambda model: True, express, "int8 training does not know it"),
)


# --- What is refused -------------------------------------------------------------------------------------------------


def _refuse_code(model: Any) -> None:
    """Refuse models whose code is not in their graph: it could not be copied, and a Lambda's is never run."""
    models = [model, *(layer for layer in _layers(model) if isinstance(layer, keras().Model))]
    if loose := [m for m in models if not getattr(m, "_is_graph_network", False)]:
        raise ModelError(
            f"model {loose[0].name!r} has no known graph: build it as a functional or Sequential model with an Input"
        )
    for layer in _layers(model):
        if isinstance(layer, keras().layers.Lambda):
            raise ModelError(f"layer {layer.name!r} is a Lambda, whose code is never run: write it as Keras layers")


def _refuse(layer: Any, purpose: Purpose) -> None:
    """Refuse a layer of the adapted model that ``purpose`` cannot take."""
    layers = keras().layers
    if purpose == "ptq" or isinstance(layer, layers.InputLayer):
        return
    what = getattr(layer, "symbol", None)
    name = f"layer {layer.name!r} ({'operator ' + what if what else type(layer).__name__})"
    if purpose == "prune":
        if not prunable(layer):
            raise ModelError(f"{name} is unknown to pruning: {WAYS_ON}")
        return
    if isinstance(layer, (layers.RNN, layers.Bidirectional, layers.TimeDistributed)):
        raise ModelError(
            f"{name} runs along a sequence, and quantization-aware training cannot round its state from step to step: "
            "use --method ptq, which converts an LSTM to one int8 operator"
        )
    if not trainable_in_int8(layer):
        raise ModelError(f"{name} is unknown to quantization-aware training: {WAYS_ON}")
    activation, taken = activation_name(layer), ALONE if isinstance(layer, layers.Activation) else INSIDE
    if activation not in taken:
        raise ModelError(
            f"{name} has the activation {activation}, unknown to quantization-aware training "
            f"(known: {', '.join(ALONE)}): {WAYS_ON}"
        )
    if purpose == "pqat" and isinstance(layer, layers.Conv2DTranspose):
        raise ModelError(
            f"{name} cannot keep its zeros in quantization-aware training: "
            "use UpSampling2D and Conv2D in its place, or leave pruning out"
        )


def _layers(model: Any) -> Iterator[Any]:
    """Every layer, those of nested models and wrappers too."""
    yield from model._flatten_layers(include_self=False, recursive=True)


def _samples(model: Any) -> Any:
    """Random inputs: pixels where the model scales them itself, else normalised ones."""
    rng = np.random.default_rng(0)
    raw = any(type(layer).__name__ in ("Rescaling", "Normalization") for layer in _layers(model))
    low, high = (0, 255) if raw else (-1, 1)
    made = [rng.uniform(low, high, (SAMPLES, *(n or 32 for n in t.shape[1:]))).astype(np.float32) for t in model.inputs]
    return made if len(made) > 1 else made[0]


def _answers(model: Any, inputs: Any) -> list[npt.NDArray[np.float32]]:
    answers = model(inputs, training=False)
    return [np.asarray(a, np.float32) for a in (answers if isinstance(answers, (list, tuple)) else [answers])]
