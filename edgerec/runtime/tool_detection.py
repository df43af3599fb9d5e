"""Recognize the tool that created a .tflite file, because tools resize and normalize images differently."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgerec.contract.preprocess import Fit
from edgerec.tflite.flatbuffer import Graph
from edgerec.tflite.metadata import Metadata

_TEACHABLE_INPUT = re.compile(r"(serving_default_)?sequential_\d+_input(:0)?")
_TFJS_DENSE = re.compile(r"(.*/)?dense_Dense\d+(/.*)?")


@dataclass(frozen=True)
class Family:
    """The preprocessing that a tool, e.g. Teachable Machine, uses for its models.

    Attributes:
        name: name of the tool, or an empty string if the tool was not recognized.
        reason: how the tool was recognized, or why ``fit`` is assumed.
        fit: how images are converted to the input's aspect ratio: ``crop``, ``stretch`` or ``pad``.
        normalize: normalization of float models in the format of :func:`~edgerec.contract.tensors.parse_normalize`, or
            an empty string if the tool does not define it.
    """

    name: str
    reason: str
    fit: Fit
    normalize: str = ""


def recognize(graph: Graph, metadata: Metadata | None) -> Family:
    """Recognize the tool that created a model from the model's tensor names and metadata."""
    names = [tensor.name for tensor in graph.tensors]
    if _TEACHABLE_INPUT.fullmatch(graph.inputs[0].name) and any(map(_TFJS_DENSE.fullmatch, names)):
        # Teachable Machine's image library center-crops to a square and maps pixels to [-1, 1].
        reason = f"its tensors are named as in Teachable Machine's exports ({graph.inputs[0].name})"
        return Family("Teachable Machine", reason, "crop", "127.5,127.5")
    if metadata is not None:
        return Family("", "TFLite's task library and ML Kit stretch images for models with metadata", "stretch")
    return Family("", "the file does not state it, and most TFLite apps stretch images", "stretch")
