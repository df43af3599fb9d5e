"""Recommend architectures for a target: the choices of ``--arch auto`` with their size and estimated time."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgerec.catalog.architectures import ArchitectureReport, architectures, measured
from edgerec.contract.target import Target
from edgerec.errors import RecipeError
from edgerec.models import least_size_px, reconstructs
from edgerec.models.automatic import Rule, rules_for
from edgerec.tflite.pi_latency import CONDITIONS
from edgerec.utils.progress import Listener, ignore

# Path of the figures of the networks that ``--arch auto`` can choose. The file is written by
# ``benchmarks/models.py --recommended``.
FIGURES = Path(__file__).resolve().parent.parent / "models" / "recommended.json"
# Input size at which networks for small images are measured, in pixels.
SMALL_INPUT_PX = 32
# Conditions of the estimate for each target whose time per image can be estimated.
ESTIMATES = {"rpi": CONDITIONS}


@dataclass(frozen=True)
class Recommendation:
    """An architecture for a target.

    Attributes:
        data: descriptions of the data sets for which ``--arch auto`` chooses the architecture; empty if there are none.
        report: figures of the full-int8 model with random weights.
        estimated_ms: estimated milliseconds for one image on the target (see :data:`ESTIMATES`); None if there is no
            estimate for the target.
        refusal: reason why the target cannot run the architecture; empty if the target can.
    """

    data: tuple[str, ...]
    report: ArchitectureReport
    estimated_ms: float | None
    refusal: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self) | {"data": list(self.data), "report": self.report.to_dict()}


def recommendations(
    target: str, *, input_size: int | None = None, listener: Listener = ignore
) -> tuple[Recommendation, ...]:
    """Return the architectures for a target: first the choices of ``--arch auto``, then all others that run on it.

    Args:
        target: a target's name or file.
        input_size: width and height of the model's input, in pixels. This call then builds and converts the
            architectures that ``auto`` chooses at this size, and returns no others. None uses the figures that are
            included in edgerec.
        listener: called with the progress.

    Raises:
        TargetError: the target does not exist.
        RecipeError: no architecture supports such a small input.
    """
    loaded = Target.load(target)
    chosen: dict[tuple[str, float, int], list[str]] = {}
    if input_size is not None and not 8 <= input_size <= 1024:
        raise RecipeError(f"--input-size is {input_size}, expected 8 to 1024")
    for rule in rules_for(loaded, input_size or 0):
        chosen.setdefault((rule.arch, rule.width, input_size or default_input_px(rule)), []).append(rule.data)
    rows = [_recommendation(tuple(data), _report(*network, listener), loaded) for network, data in chosen.items()]
    if input_size is None:
        classifiers = [report for report in architectures() if not reconstructs(report.name)]
        supported = [report for report in classifiers if not report.targets.get(loaded.name, "unknown")]
        rows += [_recommendation((), report, loaded) for report in sorted(supported, key=lambda report: report.pi4_ms)]
    return tuple(rows)


def default_input_px(rule: Rule) -> int:
    """Return the input size, in pixels, at which the costs of a rule's architectures are computed."""
    return max(SMALL_INPUT_PX if rule.small else rule.max_input_px, least_size_px(rule.arch))


def key(arch: str, width: float, input_size: int) -> str:
    """Return the key of a network in :data:`FIGURES`."""
    return f"{arch} {width:g} {input_size}"


def _report(arch: str, width: float, input_size: int, listener: Listener) -> ArchitectureReport:
    shipped = json.loads(FIGURES.read_text(encoding="utf-8"))
    values = shipped.get(key(arch, width, input_size))
    if values is None:
        return measured(arch, input_size=input_size, width=width, listener=listener)
    values = values | {"imagenet_widths": tuple(values["imagenet_widths"]), "methods": tuple(values["methods"])}
    return ArchitectureReport(**values)


def _recommendation(data: tuple[str, ...], report: ArchitectureReport, target: Target) -> Recommendation:
    refusal = report.targets.get(target.name, "")
    return Recommendation(data, report, report.pi4_ms if target.name in ESTIMATES else None, refusal)
