"""Making any Keras model fit for quantization-aware training and pruning, without changing what it answers.

Each step is a pass of :class:`~edgerec.importing.graph_rewriter.Rebuild`, and
its result is compared with the original model. The steps flatten nested models, remove layers that do nothing at
inference, and replace what tensorflow-model-optimization or int8 does not support by supported layers.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.errors import ModelError
from edgerec.importing.graph_rewriter import Node, Rebuild, calls, flatten
from edgerec.importing.lowering import express
from edgerec.importing.unsupported import Purpose, check_finite, layers_of, refuse, refuse_code
from edgerec.train.backend import keras
from edgerec.utils.optional import require

log = logging.getLogger(__name__)

# How many random inputs, and how far their outputs may move, as a part of the largest; further where rounding moves the
# given model's own: twice what stirring the inputs' last bits does, so many times.
SAMPLES, TOLERANCE, STIRRINGS = 4, 1e-2, 8


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
    refuse_code(model)
    check_finite(model)
    reference, changes, current = None, [], model
    for applies, step, why in _STEPS:
        if not applies(current, purpose):
            continue
        rebuild = Rebuild(step)
        after = rebuild.run(current)
        if not rebuild.done:
            continue
        if reference is None:
            pixels = _samples(model) if pixels is None else pixels
            reference = _answers(model, pixels)
        difference = _apart(_answers(after, pixels), reference)
        allowed = TOLERANCE * max(1.0, *(float(np.abs(r).max()) for r in reference))
        if not (difference <= allowed or difference <= 2 * _unsteadiness(model, pixels, reference)):
            raise ModelError(
                f"adapting {model.name} changed its answers by {difference:.3g} (beginning with "
                f"{rebuild.done[0][0]!r}): use --method ptq"
            )
        changes += [Change(layer, what, why, difference) for layer, what in rebuild.done]
        current = after
    for layer in current.layers:
        refuse(layer, purpose)
    for change in changes:
        log.info("%s: %s, since %s (outputs within %.1e)", change.layer, change.what, change.why, change.max_difference)
    return Adapted(current, tuple(changes))


# --- The steps: whether one applies, its rule, and why it is taken -----------------------------------------------

# Random at training, nothing at inference.
INACTIVE = (
    *("RandomFlip", "RandomRotation", "RandomTranslation", "RandomZoom", "RandomContrast", "RandomBrightness"),
    *("RandomHeight", "RandomWidth", "GaussianNoise", "GaussianDropout", "AlphaDropout"),
)
SIZING = ("Resizing", "CenterCrop", "RandomCrop")
LOOPS = ("GRU", "SimpleRNN")
# An unrolled step is about six operators.
LONGEST_LOOP = 256


def _is_nested(model: Any, purpose: Purpose) -> bool:
    return any(isinstance(node.layer, keras().Model) or "training" in node.call_kwargs for node in calls(model))


def _has_inactive(model: Any, purpose: Purpose) -> bool:
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


def _has_loops(model: Any, purpose: Purpose) -> bool:
    return purpose == "ptq" and any(type(layer).__name__ in LOOPS for layer in model.layers)


def _unroll(rebuild: Rebuild, node: Node) -> Any:
    """A GRU or SimpleRNN becomes its steps, one after the other. An LSTM is an operator of its own in TFLite."""
    if node.kind not in LOOPS or len(node.inputs) > 1 or node.layer.stateful:
        return None
    if node.layer.unroll and node.kind == "SimpleRNN":
        return None
    steps, channels = node.inputs[0].shape[1:]
    if steps is None or channels is None or steps > LONGEST_LOOP:
        return None
    kwargs = dict(node.kwargs)
    if node.kind == "GRU":
        # From a constant zero state the converter would compute the first step itself, in float.
        zeros = keras().layers.Dense(node.layer.units, use_bias=False, kernel_initializer="zeros", trainable=False)
        kwargs["initial_state"] = zeros(keras().layers.GlobalAveragePooling1D()(node.args[0]))
    rebuild.tell(node, f"the loop of a {node.kind} → its {steps} steps")
    return rebuild.copy(replace(node, kwargs=kwargs), unroll=True)


_STEPS = (
    (_is_nested, flatten, "tensorflow-model-optimization takes flat models only"),
    (_has_inactive, _leave_out, "it does nothing at inference"),
    (lambda model, purpose: True, express, "int8 training does not take it as it stands"),
    (_has_loops, _unroll, "the converter makes no int8 loops"),
)


def _samples(model: Any) -> Any:
    """Random inputs: pixels where the model scales them itself, else normalised ones."""
    rng = np.random.default_rng(0)
    raw = any(type(layer).__name__ in ("Rescaling", "Normalization") for layer in layers_of(model))
    low, high = (0, 255) if raw else (-1, 1)
    made = [rng.uniform(low, high, (SAMPLES, *(n or 32 for n in t.shape[1:]))).astype(np.float32) for t in model.inputs]
    return made if len(made) > 1 else made[0]


def _unsteadiness(model: Any, inputs: Any, reference: list[npt.NDArray[np.float32]]) -> float:
    """How far the answers move, at most of ``STIRRINGS``, when each input's last bit does."""
    rng = np.random.default_rng(0)

    def stirred(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.nextafter(x, np.copysign(np.inf, rng.standard_normal(x.shape, np.float32)))

    nest = require("tensorflow").nest
    return max(_apart(_answers(model, nest.map_structure(stirred, inputs)), reference) for _ in range(STIRRINGS))


def _apart(answers: list[npt.NDArray[np.float32]], others: list[npt.NDArray[np.float32]]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(answers, others, strict=True))


def _answers(model: Any, inputs: Any) -> list[npt.NDArray[np.float32]]:
    answers = model(inputs, training=False)
    return [np.asarray(a, np.float32) for a in (answers if isinstance(answers, (list, tuple)) else [answers])]
