"""Recommend architectures for a target, with their size and estimated latency."""

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

# The command benchmarks/models.py --recommended writes the costs of the recommended models to this file.
COSTS = Path(__file__).resolve().parent.parent / "models" / "recommended_costs.json"
# Input size in pixels at which networks for small images are measured.
SMALL_INPUT_PX = 32
# Conditions under which the latency of each target is estimated.
ESTIMATES = {"rpi": CONDITIONS}


@dataclass(frozen=True)
class Recommendation:
    """An architecture that is recommended for a target.

    Attributes:
        data: descriptions of the data sets for which ``--arch auto`` chooses the architecture, if there are any.
        report: cost of the full-int8 model with random weights.
        estimated_ms: estimated latency for one image on the target in milliseconds (see :data:`ESTIMATES`), or None if
            there is no estimate for the target.
        refusal: reason why the target cannot run the architecture, or an empty string if it can.
    """

    data: tuple[str, ...]
    report: ArchitectureReport
    estimated_ms: float | None
    refusal: str

    def to_dict(self) -> dict[str, Any]:
        """Return the recommendation as a JSON-serializable dictionary."""
        return asdict(self) | {"data": list(self.data), "report": self.report.to_dict()}


def recommendations(
    target: str, *, input_size: int | None = None, listener: Listener = ignore
) -> tuple[Recommendation, ...]:
    """Return the recommended architectures for a target, starting with the choices of ``--arch auto``.

    All other classifiers that the target can run follow, in the order of increasing latency.

    Args:
        target: name or file of the target.
        input_size: width and height of the model's input in pixels. If a size is given, only the choices of ``--arch
            auto`` are returned, which are built and converted for this size. None uses the measurements that are
            included in edgerec.
        listener: receives the progress.

    Raises:
        TargetError: the target does not exist.
        RecipeError: no architecture supports such a small input.
    """
    loaded = Target.load(target)
    chosen: dict[tuple[str, float, int], list[str]] = {}
    if input_size is not None and not 8 <= input_size <= 1024:
        raise RecipeError(f"--input-size must be from 8 to 1024 pixels, got {input_size}")
    for rule in rules_for(loaded, input_size or 0):
        chosen.setdefault((rule.arch, rule.width, input_size or default_input_px(rule)), []).append(rule.data)
    rows = [_recommendation(tuple(data), _report(*network, listener), loaded) for network, data in chosen.items()]
    if input_size is None:
        classifiers = [report for report in architectures() if not reconstructs(report.name)]
        supported = [report for report in classifiers if not report.targets.get(loaded.name, "unknown")]
        rows += [_recommendation((), report, loaded) for report in sorted(supported, key=lambda report: report.pi4_ms)]
    return tuple(rows)


def default_input_px(rule: Rule) -> int:
    """Return the default input size of a recommended architecture, in pixels."""
    return max(SMALL_INPUT_PX if rule.small else rule.max_input_px, least_size_px(rule.arch))


def key(arch: str, width: float, input_size: int) -> str:
    """Return the key of a network in the file :data:`COSTS`."""
    return f"{arch} {width:g} {input_size}"


def _report(arch: str, width: float, input_size: int, listener: Listener) -> ArchitectureReport:
    shipped = json.loads(COSTS.read_text(encoding="utf-8"))
    values = shipped.get(key(arch, width, input_size))
    if values is None:
        return measured(arch, input_size=input_size, width=width, listener=listener)
    values = values | {"imagenet_widths": tuple(values["imagenet_widths"]), "methods": tuple(values["methods"])}
    return ArchitectureReport(**values)


def _recommendation(data: tuple[str, ...], report: ArchitectureReport, target: Target) -> Recommendation:
    refusal = report.targets.get(target.name, "")
    return Recommendation(data, report, report.pi4_ms if target.name in ESTIMATES else None, refusal)
