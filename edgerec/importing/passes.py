"""Rewrite Keras models for quantization and pruning without changing their outputs.

Each step is a pass of :class:`~edgerec.importing.graph_rewriter.Rebuild`, and its result is compared with the original
model. The steps flatten nested models, remove layers that do nothing during inference, and replace what
tensorflow-model-optimization or int8 does not support with supported layers.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.errors import ModelError
from edgerec.importing.graph_rewriter import Node, Rebuild, calls, flatten, layers_of
from edgerec.importing.lowering import lower
from edgerec.importing.unsupported import Purpose, check_finite, refuse, refuse_code
from edgerec.train.backend import keras
from edgerec.utils.optional import require

log = logging.getLogger(__name__)

# Number of random inputs for comparing models.
SAMPLES = 4
# Maximum difference between two models' outputs, as a fraction of the largest output.
TOLERANCE = 1e-2
# Number of random input perturbations for estimating the original model's rounding error.
# Output differences of up to twice the estimated rounding error are accepted, even if they exceed TOLERANCE.
PERTURBATIONS = 8


@dataclass(frozen=True)
class Change:
    """A replaced layer.

    Attributes:
        layer: name of the layer in the original model.
        what: description of the replacement.
        why: the reason for the replacement.
        max_difference: largest difference between the original model's outputs and the outputs after this step, for the
            sample inputs.
    """

    layer: str
    what: str
    why: str
    max_difference: float

    def to_dict(self) -> dict[str, Any]:
        """Return the change as a JSON-serializable dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class Adapted:
    """A model rewritten for the next compression step, and the list of changes."""

    model: Any
    changes: tuple[Change, ...]

    @property
    def max_difference(self) -> float:
        """Largest difference between this model's outputs and the original model's, or 0 if nothing was changed."""
        return self.changes[-1].max_difference if self.changes else 0.0


def adapt(model: Any, purpose: Purpose = "qat", pixels: npt.NDArray[np.float32] | None = None) -> Adapted:
    """Return an equivalent model that the next compression step supports. The original model is not changed.

    Args:
        model: a tf_keras model, Sequential or functional, with or without nested models.
        purpose: the next step, which determines the supported layers.
        pixels: sample inputs ``(N, H, W, C)``, normalized for the model. By default, random inputs.

    Returns:
        The original model if no change is necessary, otherwise a new model with copied weights.

    Raises:
        ModelError: the next step does not support a layer. The message names the layer and alternatives.
    """
    refuse_code(model)
    check_finite(model, f"model {model.name!r}")
    reference, changes, current = None, [], model
    for applies, step, why in _STEPS:
        if not applies(current, purpose):
            continue
        rebuild = Rebuild(step)
        after = rebuild.run(current)
        if not rebuild.changes:
            continue
        if reference is None:
            pixels = _samples(model) if pixels is None else pixels
            reference = _outputs(model, pixels)
        difference = _max_difference(_outputs(after, pixels), reference)
        allowed = TOLERANCE * max(1.0, *(float(np.abs(r).max()) for r in reference))
        if not (difference <= allowed or difference <= 2 * _sensitivity(model, pixels, reference)):
            raise ModelError(
                f"rewriting {model.name} for compression changed its outputs by up to {difference:.3g} (the first "
                f"rewritten layer is {rebuild.changes[0][0]!r}): use --method ptq"
            )
        changes += [Change(layer, what, why, difference) for layer, what in rebuild.changes]
        current = after
    for layer in current.layers:
        refuse(layer, purpose)
    for change in changes:
        log.info(
            "%s: %s, because %s (outputs differ by at most %.1e)",
            change.layer,
            change.what,
            change.why,
            change.max_difference,
        )
    return Adapted(current, tuple(changes))


# Data augmentation and noise layers, which are active only during training.
INACTIVE = (
    *("RandomFlip", "RandomRotation", "RandomTranslation", "RandomZoom", "RandomContrast", "RandomBrightness"),
    *("RandomHeight", "RandomWidth", "GaussianNoise", "GaussianDropout", "AlphaDropout"),
)
SIZING = ("Resizing", "CenterCrop", "RandomCrop")
LOOPS = ("GRU", "SimpleRNN")
# Loops with more time steps are not unrolled, because each step becomes about six operators.
LONGEST_LOOP = 256


def _is_nested(model: Any, purpose: Purpose) -> bool:
    return any(isinstance(node.layer, keras().Model) or "training" in node.call_kwargs for node in calls(model))


def _has_inactive(model: Any, purpose: Purpose) -> bool:
    return any(type(layer).__name__ in (*INACTIVE, *SIZING) for layer in model.layers)


def _remove_inactive(rebuild: Rebuild, node: Node) -> Any:
    """Remove augmentation and noise layers, and resizing layers that do not change the size."""
    if node.kind not in (*INACTIVE, *SIZING):
        return None
    size = tuple(node.inputs[0].shape[1:3])
    if node.kind in SIZING and size != (node.layer.height, node.layer.width):
        raise ModelError(
            f"layer {node.layer.name!r} ({node.kind}) resizes images from {size[0]}×{size[1]} to "
            f"{node.layer.height}×{node.layer.width}, but edgerec already resizes images before inference: build the "
            f"model without the layer, and with an input of {node.layer.height}×{node.layer.width}"
        )
    rebuild.record_change(node, f"{node.kind} → removed")
    return node.args[0]


def _has_loops(model: Any, purpose: Purpose) -> bool:
    return purpose == "ptq" and any(type(layer).__name__ in LOOPS for layer in model.layers)


def _unroll(rebuild: Rebuild, node: Node) -> Any:
    """Unroll a GRU or SimpleRNN into time steps, because TFLite has no operator for it."""
    if node.kind not in LOOPS or len(node.inputs) > 1 or node.layer.stateful:
        return None
    if node.layer.unroll and node.kind == "SimpleRNN":
        return None
    steps, channels = node.inputs[0].shape[1:]
    if steps is None or channels is None or steps > LONGEST_LOOP:
        return None
    kwargs = dict(node.kwargs)
    if node.kind == "GRU":
        # If the initial state were constant, the converter would precompute the first time step in float.
        zeros = keras().layers.Dense(node.layer.units, use_bias=False, kernel_initializer="zeros", trainable=False)
        kwargs["initial_state"] = zeros(keras().layers.GlobalAveragePooling1D()(node.args[0]))
    rebuild.record_change(node, f"loop of a {node.kind} → its {steps} steps")
    return rebuild.copy(replace(node, kwargs=kwargs), unroll=True)


# Each rewriting step has a condition, a callback, and a reason for its changes.
_STEPS = (
    (_is_nested, flatten, "tensorflow-model-optimization supports only models without nested models"),
    (_has_inactive, _remove_inactive, "it does nothing during inference"),
    (lambda model, purpose: True, lower, "quantization-aware training does not support it"),
    (_has_loops, _unroll, "the converter does not support int8 loops"),
)


def _samples(model: Any) -> Any:
    """Return random inputs: raw pixels from 0 to 255 if the model normalizes them, otherwise values from -1 to 1."""
    rng = np.random.default_rng(0)
    raw = any(type(layer).__name__ in ("Rescaling", "Normalization") for layer in layers_of(model))
    low, high = (0, 255) if raw else (-1, 1)
    inputs = [
        rng.uniform(low, high, (SAMPLES, *(n or 32 for n in t.shape[1:]))).astype(np.float32) for t in model.inputs
    ]
    return inputs if len(inputs) > 1 else inputs[0]


def _sensitivity(model: Any, inputs: Any, reference: list[npt.NDArray[np.float32]]) -> float:
    """Estimate the rounding error by randomly changing the last bit of each input value."""
    rng = np.random.default_rng(0)

    def perturbed(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.nextafter(x, np.copysign(np.inf, rng.standard_normal(x.shape, np.float32)))

    nest = require("tensorflow").nest
    return max(
        _max_difference(_outputs(model, nest.map_structure(perturbed, inputs)), reference) for _ in range(PERTURBATIONS)
    )


def _max_difference(outputs: list[npt.NDArray[np.float32]], others: list[npt.NDArray[np.float32]]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(outputs, others, strict=True))


def _outputs(model: Any, inputs: Any) -> list[npt.NDArray[np.float32]]:
    outputs = model(inputs, training=False)
    return [np.asarray(a, np.float32) for a in (outputs if isinstance(outputs, (list, tuple)) else [outputs])]
