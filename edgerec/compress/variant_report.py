"""Report on the accuracy, size and origin of a compressed model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from edgerec.compress.accuracy_drop import ParityRow
from edgerec.train.metrics import EvaluationReport

T = TypeVar("T")


@dataclass(frozen=True)
class QuantizeReport:
    """Accuracy, size and origin of a compressed model.

    Attributes:
        run: the run's folder.
        variant: name of the variant.
        path: path of the .tflite file.
        method: the recipe's ``compress.method``; ``none`` for float32.
        precision: ``float32``, ``float16``, ``dynamic``, ``int16x8``, ``mixed`` or ``int8``.
        forms: accuracy and size of all forms of the model on the test images: float Keras, float32 TFLite, the
            intermediate Keras models, and the variant. The intermediate models are the pruned, clustered or smaller
            float model (such as ``keras prune``), and the model with fake quantization (``keras qat``), if the method
            has these stages.
        val_top1: top-1 accuracy on the validation images, 0 to 1. It may be used to choose between variants.
        val_drop_points: loss of top-1 accuracy compared with float Keras on the validation images, in percentage
            points.
        drop_points: loss of top-1 accuracy compared with float Keras on the test images, in percentage points.
        max_drop: maximum accepted ``drop_points``.
        sparsity: fraction of zeros among the weights.
        model_sha256: SHA-256 of the .tflite file, to detect changes after the measurement.
        figures: accuracy and per-class metrics of the variant on the test images.
        calibration: recipe, number of images and digest of the calibration set, for post-training quantization.
        adapted: the layers that were replaced before the compression: ``layer``, ``what``, ``why`` and
            ``max_difference`` of the outputs.
        why: reason why the method ``auto`` chose this variant, or an empty string for other methods.
        agreements: agreement of the variant with each intermediate Keras model. Disagreement with ``keras prune`` is
            due to int8, and disagreement with ``keras qat`` is due to the conversion alone.
    """

    run: str
    variant: str
    path: str
    method: str
    precision: str
    forms: tuple[ParityRow, ...]
    val_top1: float
    val_drop_points: float
    drop_points: float
    max_drop: float
    sparsity: float
    model_sha256: str
    figures: EvaluationReport
    calibration: dict[str, Any] = field(default_factory=dict)
    adapted: list[dict[str, Any]] = field(default_factory=list)
    why: str = ""
    agreements: dict[str, float] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """Number of test images."""
        return self.figures.images

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-serializable dictionary."""
        return vars(self) | {
            "forms": [row.to_dict() for row in self.forms],
            "figures": self.figures.to_dict(),
            "images": self.images,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QuantizeReport:
        """Create a report from the contents of a variant's ``report.json``."""
        known = {item.name: values[item.name] for item in fields(cls) if item.name in values}
        known["forms"] = tuple(_known(ParityRow, row) for row in values["forms"])
        known["figures"] = _known(EvaluationReport, values["figures"] | {"labels": tuple(values["figures"]["labels"])})
        return cls(**known)


def _known(cls: Callable[..., T], values: Mapping[str, Any]) -> T:
    """Create a dataclass instance from a mapping, ignoring keys that are not fields."""
    return cls(**{item.name: values[item.name] for item in fields(cls) if item.name in values})  # type: ignore[arg-type]
