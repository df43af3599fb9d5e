"""What a model will cost on the device, found out before it is trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from edgerec.compress.calibration import pin_range
from edgerec.compress.convert import plain_names, to_int8
from edgerec.errors import EdgerecError
from edgerec.importing.passes import adapt
from edgerec.recipe import Recipe
from edgerec.runtime.model import ImageModel
from edgerec.runtime.timing import time_models
from edgerec.tflite.cost import macs
from edgerec.tflite.flatbuffer import Graph, read_graph
from edgerec.tflite.memory import plan_bytes
from edgerec.tflite.metadata import with_metadata
from edgerec.tflite.pi_latency import CONDITIONS, pi4_ms
from edgerec.train.backend import prepare
from edgerec.train.transfer import network

# Where milliseconds are of, and how they are known.
PLACES = {
    "this": "measured on this machine, 1 thread",
    "rpi": CONDITIONS,
}
THREADS, BUDGET_S = 1, 0.5
# Random pictures set the ranges: which ones changes neither size nor time.
CALIBRATION_IMAGES = 4


class TooCostlyError(EdgerecError):
    """A model whose weights alone are past the limit on bytes, by ``excess`` of it at least."""

    excess: float = 0.0


@dataclass(frozen=True)
class Cost:
    """What the int8 model costs, whatever its weights are.

    Attributes:
        ms: of one picture; :data:`PLACES` says where.
        bytes: of the .tflite file that ``edgerec quantize --method ptq`` will write, but for a few.
        memory: bytes that its tensors need at their peak, beside the file (see ``export/memory.py``).
        macs: multiply-accumulates of one picture.
        parameters: of the Keras model.
    """

    ms: float
    bytes: int
    memory: int
    macs: int
    parameters: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Limits:
    """What a model may cost at most; None: no limit."""

    ms: float | None = None
    bytes: int | None = None
    memory: int | None = None

    def given(self) -> dict[str, float]:
        """The limits that there are."""
        return {name: limit for name, limit in asdict(self).items() if limit is not None}

    def excess(self, cost: Cost) -> dict[str, float]:
        """How far each limit is passed, as a part of it; 0 or less: it is kept."""
        return {name: getattr(cost, name) / limit - 1 for name, limit in self.given().items()}

    def broken(self, cost: Cost) -> str:
        """The limits that are passed, in words; empty when all are kept."""
        passed = [name for name, part in self.excess(cost).items() if part > 0]
        return ", ".join(f"{shown(name, getattr(cost, name))} (limit {self.given()[name]:,g})" for name in passed)


def shown(name: str, value: float) -> str:
    """A figure with its unit, for people."""
    match name:
        case "accuracy":
            return f"{value:.2%}"
        case "ms":
            return f"{value:.3g} ms" if value < 100 else f"{value:,.0f} ms"
        case "memory":
            return f"{value:,.0f} bytes of memory"
    return f"{value:,.0f} bytes"


def measure(recipe: Recipe, labels: tuple[str, ...], on: str, limits: Limits) -> Cost:
    """Build the recipe's model untrained, convert it to int8, and measure it.

    Args:
        recipe: complete: no key of ``data`` is left to be chosen.
        labels: one per class.
        on: a name of :data:`PLACES`.
        limits: a model whose weights alone are past ``bytes`` is not converted.

    Raises:
        TooCostlyError: its weights alone are past ``limits.bytes``.
        EdgerecError: it cannot be built or converted.
    """
    prepare(replace(recipe.train, mixed_precision=False), recipe.seed)
    model = network(recipe, len(labels))
    least = sum(int(np.prod(weight.shape)) for weight in model.weights if len(weight.shape) > 1)
    if limits.bytes is not None and least > limits.bytes:
        error = TooCostlyError(f"{shown('bytes', least)} of weights alone (limit {limits.bytes:,})")
        error.excess = least / limits.bytes - 1
        raise error
    rng = np.random.default_rng(0)
    # Biases that are all zero would be one tensor in the file: a trained model's are not.
    model.set_weights([w + rng.uniform(0, 0.1, w.shape) if w.ndim == 1 else w for w in model.get_weights()])
    pixels = rng.integers(0, 256, (CALIBRATION_IMAGES, *model.input_shape[1:]), np.uint8)
    samples = recipe.normalise.apply(pin_range(pixels).astype(np.float32))
    content = plain_names(to_int8(adapt(model, "ptq").model, samples))
    content = with_metadata(content, labels, recipe.normalise, recipe.model.arch)
    graph = read_graph(content, "the converted model")
    ms = pi4_ms(graph) if on == "rpi" else _measured_ms(content, recipe, pixels[0])
    return Cost(
        ms=float(f"{ms:.4g}"),
        bytes=len(content),
        memory=plan_bytes(graph),
        macs=_macs(graph),
        parameters=int(model.count_params()),
    )


def _measured_ms(content: bytes, recipe: Recipe, pixels: Any) -> float:
    model = ImageModel(content, recipe.normalise, threads=THREADS)
    return time_models({"": (model, pixels)}, budget_s=BUDGET_S)[""].median_ms


def _macs(graph: Graph) -> int:
    return sum(macs(operator) for operator in graph.operators)
