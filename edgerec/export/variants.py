"""Which variant of a run goes to a target, and whether it may."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgerec.compress.accuracy_gate import check_drop
from edgerec.compress.methods import FLOAT32
from edgerec.compress.quantize import make_float32
from edgerec.contract.target import Target
from edgerec.errors import BundleError, TargetError, unknown
from edgerec.recipe import DataSource, Recipe
from edgerec.tflite.compatibility import require_fit
from edgerec.train.metrics import metrics_of
from edgerec.train.run import Run, best_int8
from edgerec.utils.atomic import sha256
from edgerec.utils.command_line import command, data_options
from edgerec.utils.progress import Listener

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """A variant that a target runs: its name, its report as ``report.json`` has it, and its .tflite."""

    name: str
    report: dict[str, Any]
    content: bytes


def choose(
    run: Run, target: Target, wanted: str | None, *, max_drop: float | None, data: DataSource | None, listener: Listener
) -> Chosen:
    """The variant to export.

    Args:
        run: whose.
        target: what will run it.
        wanted: its name; None takes the one that the target can run with the best validation top-1.
        max_drop: points that it may have lost; None takes what quantize allowed.
        data: where the run's pictures are now, if they were moved.
        listener: told of the progress, where float32 must be made.

    Raises:
        TargetError: the target cannot run it; the message has the command that makes the right one.
        GateError: it lost more than ``max_drop``.
    """
    name = _choose(run, target, wanted, data, listener)
    report, path = run.variants()[name], run.variant(name) / "model.tflite"
    content = path.read_bytes()
    if sha256(content) != report["model_sha256"]:
        raise BundleError(f"{path} is not the file that was measured: quantize again")
    require_fit(content, target, str(path))
    before, after = report["forms"][0]["top1"], report["forms"][-1]["top1"]
    check_drop(name, before, after, report["max_drop"] if max_drop is None else max_drop, metrics_of(run).top1_name)
    return Chosen(name, report, content)


def without_folders(recipe: Recipe) -> Recipe:
    """The recipe as others may see it: the names of its data, weights and calibration set, not where they lay."""
    data = recipe.data.without_folders
    compress = replace(recipe.compress, calibration=Path(recipe.compress.calibration).name)
    return replace(
        recipe, data=data, model=replace(recipe.model, weights=Path(recipe.model.weights).name), compress=compress
    )


def _choose(run: Run, target: Target, wanted: str | None, data: DataSource | None, listener: Listener) -> str:
    """The name of the variant; float32 is made where it is what is wanted and not there yet."""
    variants = run.variants()
    make_int8 = f"make an int8 one with: {command('quantize', run.path, *data_options(data))}"
    if wanted is None:
        best = best_int8(variants)
        if best is not None and "int8" in target.types:
            return best
        if "float32" not in target.types:
            raise TargetError(f"target {target.name} runs int8 only and {run.path} has no int8 variant: {make_int8}")
        log.warning("%s has no int8 variant, float32 it is; %s", run.path, make_int8)
        wanted = FLOAT32
    full_int8 = wanted != FLOAT32 and (wanted not in variants or variants[wanted]["precision"] == "int8")
    if ("int8" if full_int8 else "float32") not in target.types:
        raise TargetError(f"target {target.name} runs {' and '.join(target.types)}, not {wanted}: {make_int8}")
    if wanted == FLOAT32 and wanted not in variants:
        make_float32(run, data, listener)
    elif wanted not in variants:
        raise TargetError(
            f"{run.path}: {unknown('variant', wanted, [*variants, FLOAT32])}; edgerec quantize makes them"
        )
    return wanted
