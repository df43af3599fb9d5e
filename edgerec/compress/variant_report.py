"""What quantizing a run says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from edgerec.compress.accuracy_gate import Form
from edgerec.train.evaluate import Figures

T = TypeVar("T")


@dataclass(frozen=True)
class QuantizeReport:
    """What quantizing made.

    Attributes:
        run, variant, path: where the .tflite is.
        method: as the recipe's ``compress.method``; ``none`` for float32.
        precision: ``float32``, ``float16``, ``dynamic``, ``int16x8`` or ``int8``.
        forms: the parity table, on the held-out test pictures: float Keras, float32 TFLite, the Keras models on the
            way from one to the other, the variant. They are, where there are such stages, the float model of which
            something was left out or shared (as ``keras prune``), and the one that learned with int8 rounding
            simulated (``keras qat``).
        val_top1: of the variant on the validation pictures, which choosing between variants may use.
        val_drop_points: top-1 that it lost there against float Keras, in points.
        drop_points: the same on the test pictures.
        sparsity: part of zeros among its weights.
        model_sha256: digest of the .tflite, by which export knows that these figures are its own.
        figures: accuracy and per-class figures of the variant on the test pictures.
        calibration: recipe, number of pictures and digest, for post-training quantization.
        agreements: as the variant's ``agreement``, with each of those on the way. What is missing to ``keras prune``
            int8 changed, what is missing to ``keras qat`` the conversion alone.
        adapted: the layers that became others first: ``layer what why``, and ``max_difference`` of the outputs.
        why: why ``auto`` took this one.
    """

    run: str
    variant: str
    path: str
    method: str
    precision: str
    forms: tuple[Form, ...]
    val_top1: float
    val_drop_points: float
    drop_points: float
    max_drop: float
    sparsity: float
    model_sha256: str
    figures: Figures
    calibration: dict[str, Any] = field(default_factory=dict)
    adapted: list[dict[str, Any]] = field(default_factory=list)
    why: str = ""
    agreements: dict[str, float] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """How many held-out pictures."""
        return self.figures.images

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return vars(self) | {
            "forms": [row.to_dict() for row in self.forms],
            "figures": self.figures.to_dict(),
            "images": self.images,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QuantizeReport:
        """Back from a variant's ``report.json``."""
        made = {item.name: values[item.name] for item in fields(cls) if item.name in values}
        made["forms"] = tuple(_known(Form, row) for row in values["forms"])
        made["figures"] = _known(Figures, values["figures"] | {"labels": tuple(values["figures"]["labels"])})
        return cls(**made)


def _known(cls: Callable[..., T], values: Mapping[str, Any]) -> T:
    """Build a dataclass from the values that belong to its fields."""
    return cls(**{item.name: values[item.name] for item in fields(cls) if item.name in values})  # type: ignore[arg-type]
