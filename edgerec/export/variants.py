"""Choose the variant of a run to export for a target, and check that the target supports the variant."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from edgerec.compress.accuracy_drop import check_drop
from edgerec.compress.quantize import make_float32
from edgerec.compression_methods import FLOAT32
from edgerec.contract.target import Target
from edgerec.errors import BundleError, TargetError, unknown
from edgerec.recipe import DataSource, Recipe
from edgerec.tflite.compatibility import require_fit
from edgerec.train.metrics import metrics_of
from edgerec.train.run import Run, best_int8
from edgerec.train.run_files import VariantRecord
from edgerec.utils.atomic import sha256
from edgerec.utils.command_line import command, data_options
from edgerec.utils.progress import Listener

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChosenVariant:
    """The variant chosen for export.

    Attributes:
        name: name of the variant.
        report: content of the variant's ``report.json``.
        content: content of the .tflite file.
    """

    name: str
    report: VariantRecord
    content: bytes


def choose(
    run: Run,
    target: Target,
    variant: str | None,
    *,
    max_drop: float | None,
    data: DataSource | None,
    listener: Listener,
) -> ChosenVariant:
    """Choose the variant to export.

    Args:
        run: the run.
        target: the target that will run the variant.
        variant: name of the variant. If None, the variant with the best validation accuracy among those supported by
            the target is chosen.
        max_drop: maximum loss of top-1 accuracy, in percentage points. If None, the limit used for quantization
            applies.
        data: current location of the run's images if they were moved.
        listener: receives progress updates if the variant ``float32`` must be created first.

    Raises:
        TargetError: the target cannot run the variant. The message contains a command that creates a suitable variant.
        GateError: the variant loses more than ``max_drop``.
    """
    name = _choose_name(run, target, variant, data, listener)
    report, path = run.variants()[name], run.variant(name) / "model.tflite"
    content = path.read_bytes()
    if sha256(content) != report["model_sha256"]:
        raise BundleError(f"{path} was modified after its accuracy was measured: create it again with edgerec quantize")
    require_fit(content, target, str(path))
    before, after = report["forms"][0]["top1"], report["forms"][-1]["top1"]
    check_drop(name, before, after, report["max_drop"] if max_drop is None else max_drop, metrics_of(run).top1_name)
    return ChosenVariant(name, report, content)


def without_folders(recipe: Recipe) -> Recipe:
    """Return a copy of the recipe in which paths (data, weights and calibration set) are reduced to file names."""
    data = recipe.data.without_folders
    compress = replace(recipe.compress, calibration=Path(recipe.compress.calibration).name)
    return replace(
        recipe, data=data, model=replace(recipe.model, weights=Path(recipe.model.weights).name), compress=compress
    )


def _choose_name(run: Run, target: Target, variant: str | None, data: DataSource | None, listener: Listener) -> str:
    """Return the name of the variant to export, creating the variant ``float32`` if necessary."""
    variants = run.variants()
    make_int8 = f"create an int8 variant with: {command('quantize', run.path, *data_options(data))}"
    if variant is None:
        best = best_int8(variants)
        if best is not None and "int8" in target.types:
            return best
        if "float32" not in target.types:
            raise TargetError(
                f"target {target.name} supports only int8 models, but {run.path} has no int8 variant: {make_int8}"
            )
        log.warning("exporting float32, because %s has no int8 variant; %s", run.path, make_int8)
        variant = FLOAT32
    is_int8 = variant != FLOAT32 and (variant not in variants or variants[variant]["precision"] == "int8")
    if ("int8" if is_int8 else "float32") not in target.types:
        types = " and ".join(target.types)
        raise TargetError(f"target {target.name} supports only {types} models, not the variant {variant}: {make_int8}")
    if variant == FLOAT32 and variant not in variants:
        make_float32(run, data, listener)
    elif variant not in variants:
        raise TargetError(
            f"{run.path}: {unknown('variant', variant, [*variants, FLOAT32])}. To create variants, run edgerec quantize"
        )
    return variant
