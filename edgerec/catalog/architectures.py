"""Report the cost of each architecture, and the compression methods and targets that support it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgerec.contract.tensors import Normalize
from edgerec.errors import ModelError, RecipeError
from edgerec.models import ARCHITECTURES, build, find, user_defined
from edgerec.tflite.cost import macs
from edgerec.tflite.flatbuffer import read_graph
from edgerec.tflite.inspection import target_problems
from edgerec.tflite.pi_latency import pi4_ms
from edgerec.utils.progress import Listener, Progress, ignore

# Input size in pixels, width multiplier and number of classes of the measured models.
INPUT_SIZE, WIDTH, CLASSES = 96, 1.0, 10
# The script benchmarks/models.py writes the measured cost of each architecture to this file.
COSTS = Path(__file__).resolve().parent.parent / "models" / "costs.json"
# Number of random images for calibration.
CALIBRATION = 2


@dataclass(frozen=True)
class ArchitectureReport:
    """Cost, compression methods and targets of an architecture.

    The values are measured on a full-int8 model with random weights.

    Attributes:
        name, about: name for ``--arch``, and a one-line description.
        input_size, width, classes: measured configuration; the images are RGB.
        parameters: number of parameters of the float model.
        macs: multiply-accumulates of the .tflite file for one image.
        int8_bytes: size of the int8 .tflite file.
        least_size_px: minimum input size.
        imagenet_widths: widths for which Keras has ImageNet weights.
        methods: the methods among ``ptq``, ``qat`` and ``prune+qat`` that support the architecture.
        targets: a dictionary that maps each target to the reason why it cannot run the model. The reason is an empty
            string if the target can run the model.
        pi4_ms: estimated latency on a Raspberry Pi 4 in milliseconds (see :mod:`edgerec.tflite.pi_latency`).
    """

    name: str
    about: str
    input_size: int
    width: float
    classes: int
    parameters: int
    macs: int
    int8_bytes: int
    least_size_px: int
    imagenet_widths: tuple[float, ...]
    methods: tuple[str, ...]
    targets: dict[str, str]
    pi4_ms: float

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-serializable dictionary."""
        return asdict(self) | {"imagenet_widths": list(self.imagenet_widths), "methods": list(self.methods)}


def architectures() -> tuple[ArchitectureReport, ...]:
    """Return reports on all built-in architectures from stored measurements.

    No model is built, and TensorFlow is not required.
    """
    costs = json.loads(COSTS.read_text(encoding="utf-8"))
    return tuple(_report(name, INPUT_SIZE, WIDTH, CLASSES, costs[name]) for name in ARCHITECTURES if name in costs)


def architecture(
    name: str,
    *,
    input_size: int = INPUT_SIZE,
    width: float = WIDTH,
    classes: int = CLASSES,
    listener: Listener = ignore,
) -> ArchitectureReport:
    """Return a report on one architecture.

    The default configuration of a built-in architecture is not measured again. For any other configuration, the model
    is built and converted, which takes a few seconds.

    Args:
        name: name of the architecture, as in ``model.arch`` of a recipe. If the name refers to a function in a Python
            file, the file is executed.
        input_size: side of the RGB images, in pixels.
        width: width multiplier, a factor for the number of channels.
        classes: number of classes.
        listener: receives the progress.

    Raises:
        RecipeError: the architecture does not exist, or an argument is out of range.
        ModelError: the model cannot be built or converted with these arguments.
    """
    least = find(name).least_size_px
    if input_size < least:
        raise RecipeError(f"--input-size must be at least {least} pixels for {name}, got {input_size}")
    if not width:
        raise RecipeError(f"--width must be from 0.05 to 4, got {width:g}")
    if not 2 <= classes <= 100_000:
        raise RecipeError(f"--classes must be from 2 to 100000, got {classes}")
    shipped = {report.name: report for report in architectures()}
    if name in shipped and (input_size, width, classes) == (INPUT_SIZE, WIDTH, CLASSES):
        return shipped[name]
    return measured(name, input_size=input_size, width=width, classes=classes, listener=listener)


def measured(
    name: str,
    *,
    input_size: int = INPUT_SIZE,
    width: float = WIDTH,
    classes: int = CLASSES,
    listener: Listener = ignore,
) -> ArchitectureReport:
    """Build and convert a model, and return the report on its architecture.

    The arguments are those of :func:`architecture`.
    """
    import numpy as np

    from edgerec.compress.calibration import pin_range
    from edgerec.compress.convert import check_int8, plain_names, to_int8
    from edgerec.recipe import Recipe
    from edgerec.train.backend import keras

    recipe = Recipe().override({"data.input_size": input_size, "model.arch": name, "model.width": width})
    listener(Progress("building", 0, 2))
    # An earlier training run in this process may have enabled mixed precision.
    keras().mixed_precision.set_global_policy("float32")
    normalize = Normalize.named("unit")
    model = build(keras(), recipe.model, (input_size, input_size, 3), classes, normalize)
    methods, adapted = _supported_methods(model)
    listener(Progress("converting", 1, 2))
    pixels = np.random.default_rng(0).integers(0, 256, (CALIBRATION, input_size, input_size, 3), np.uint8)
    content = plain_names(to_int8(adapted, normalize.apply(pin_range(pixels).astype(np.float32))))
    check_int8(content, normalize)
    graph = read_graph(content)
    cost = {
        "parameters": int(model.count_params()),
        "macs": sum(macs(operator) for operator in graph.operators),
        "int8_bytes": len(content),
        "methods": methods,
        "targets": target_problems(graph, content),
        "pi4_ms": float(f"{pi4_ms(graph):.4g}"),
    }
    listener(Progress("converting", 2, 2))
    return _report(name, input_size, width, classes, cost)


def _supported_methods(model: Any) -> tuple[list[str], Any]:
    from edgerec.importing.passes import adapt
    from edgerec.importing.unsupported import refuse

    try:
        adapted = adapt(model, "qat").model
    except ModelError:
        return ["ptq"], adapt(model, "ptq").model
    try:
        for layer in adapted.layers:
            refuse(layer, "pqat")
    except ModelError:
        return ["ptq", "qat"], adapted
    return ["ptq", "qat", "prune+qat"], adapted


def _report(name: str, input_size: int, width: float, classes: int, cost: dict[str, Any]) -> ArchitectureReport:
    known = find(name)
    about = (
        (user_defined.find_function(name).__doc__ or "").strip().partition("\n")[0]
        if user_defined.is_user_defined(name)
        else known.about
    )
    return ArchitectureReport(
        name=name,
        about=about,
        input_size=input_size,
        width=width,
        classes=classes,
        parameters=cost["parameters"],
        macs=cost["macs"],
        int8_bytes=cost["int8_bytes"],
        least_size_px=known.least_size_px,
        imagenet_widths=known.imagenet.widths or (1.0,) if known.imagenet else (),
        methods=tuple(cost["methods"]),
        targets=dict(cost["targets"]),
        pi4_ms=cost["pi4_ms"],
    )
