"""Measure the latency, size and memory use of a model before training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from edgerec.compress.calibration import pin_range
from edgerec.compress.convert import plain_names, to_int8
from edgerec.errors import EdgerecError
from edgerec.importing.passes import adapt
from edgerec.recipe import Recipe
from edgerec.runtime.image_model import ImageModel
from edgerec.runtime.latency_comparison import time_models
from edgerec.tflite.cost import macs
from edgerec.tflite.flatbuffer import read_graph
from edgerec.tflite.memory import plan_bytes
from edgerec.tflite.metadata import with_metadata
from edgerec.tflite.pi_latency import CONDITIONS, pi4_ms
from edgerec.train.backend import prepare
from edgerec.train.transfer import network

# Conditions under which the latency of each device is measured or estimated.
TIMING_CONDITIONS = {
    "this": "measured on this machine, 1 thread",
    "rpi": CONDITIONS,
}
# Number of threads and duration in seconds of a latency measurement.
THREADS, BUDGET_S = 1, 0.5
# Number of random images for calibration.
CALIBRATION_IMAGES = 4


class TooCostlyError(EdgerecError):
    """Raised when a model's weights alone exceed the file size limit.

    Attributes:
        excess: lower bound of the excess, as a fraction of the limit.
    """

    excess: float = 0.0


@dataclass(frozen=True)
class Cost:
    """Latency, size and memory use of an int8 model.

    Attributes:
        ms: latency for one image in milliseconds, on a device of :data:`TIMING_CONDITIONS`.
        bytes: approximate size of the .tflite file that ``edgerec quantize --method ptq`` will write.
        memory: peak memory of the tensors in bytes, without the file (see :mod:`edgerec.tflite.memory`).
        macs: multiply-accumulates for one image.
        parameters: number of parameters of the Keras model.
    """

    ms: float
    bytes: int
    memory: int
    macs: int
    parameters: int

    def to_dict(self) -> dict[str, Any]:
        """Return the cost as a JSON-serializable dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class Limits:
    """Maximum cost of a model, in the units of :class:`Cost`.

    None means no limit.
    """

    ms: float | None = None
    bytes: int | None = None
    memory: int | None = None

    def to_dict(self) -> dict[str, float]:
        """Return a dictionary of all limits that are not None."""
        return {name: limit for name, limit in asdict(self).items() if limit is not None}

    def excess(self, cost: Cost) -> dict[str, float]:
        """Return the fraction by which the cost exceeds each limit, negative if it is below the limit."""
        return {name: getattr(cost, name) / limit - 1 for name, limit in self.to_dict().items()}

    def exceeded(self, cost: Cost) -> str:
        """Describe the limits that the cost exceeds, or return an empty string if there are none."""
        limits = self.to_dict()
        names = [name for name, excess in self.excess(cost).items() if excess > 0]
        return ", ".join(f"{format_value(name, getattr(cost, name))} (limit {limits[name]:,g})" for name in names)


def format_value(name: str, value: float) -> str:
    """Format the value of an objective with its unit."""
    match name:
        case "accuracy":
            return f"{value:.2%}"
        case "ms":
            return f"{value:.3g} ms" if value < 100 else f"{value:,.0f} ms"
        case "memory":
            return f"{value:,.0f} bytes of memory"
    return f"{value:,.0f} bytes"


def measure(recipe: Recipe, labels: tuple[str, ...], on: str, limits: Limits) -> Cost:
    """Build the recipe's model with random weights, convert it to int8, and measure its cost.

    Args:
        recipe: the recipe, with all automatic values of its ``data`` section resolved.
        labels: label of each class.
        on: name of a device in :data:`TIMING_CONDITIONS`.
        limits: limits of the study. A model whose weights alone exceed ``limits.bytes`` is not converted.

    Raises:
        TooCostlyError: the weights alone exceed ``limits.bytes``.
        EdgerecError: the model cannot be built or converted.
    """
    prepare(replace(recipe.train, mixed_precision=False), recipe.seed)
    model = network(recipe, len(labels))
    least = sum(int(np.prod(weight.shape)) for weight in model.weights if len(weight.shape) > 1)
    if limits.bytes is not None and least > limits.bytes:
        error = TooCostlyError(f"the weights alone need {format_value('bytes', least)} (limit {limits.bytes:,})")
        error.excess = least / limits.bytes - 1
        raise error
    rng = np.random.default_rng(0)
    # The biases are random, because the converter would merge biases of zero into one tensor.
    model.set_weights([w + rng.uniform(0, 0.1, w.shape) if w.ndim == 1 else w for w in model.get_weights()])
    pixels = rng.integers(0, 256, (CALIBRATION_IMAGES, *model.input_shape[1:]), np.uint8)
    samples = recipe.normalize.apply(pin_range(pixels).astype(np.float32))
    content = plain_names(to_int8(adapt(model, "ptq").model, samples))
    content = with_metadata(content, labels, recipe.normalize, recipe.model.arch)
    graph = read_graph(content, "the converted model")
    ms = pi4_ms(graph) if on == "rpi" else _measured_ms(content, recipe, pixels[0])
    return Cost(
        ms=float(f"{ms:.4g}"),
        bytes=len(content),
        memory=plan_bytes(graph),
        macs=sum(macs(operator) for operator in graph.operators),
        parameters=int(model.count_params()),
    )


def _measured_ms(content: bytes, recipe: Recipe, pixels: Any) -> float:
    model = ImageModel(content, recipe.normalize, threads=THREADS)
    return time_models({"": (model, pixels)}, budget_s=BUDGET_S)[""].median_ms
