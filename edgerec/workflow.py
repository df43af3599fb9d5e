"""Build a bundle from images in one call: train, compress, export, verify and report."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgerec.compress.parity import check_drop
from edgerec.compress.quantize import existing, quantize, used_differently
from edgerec.compress.report import QuantizeReport
from edgerec.contract.bundle import Bundle
from edgerec.contract.progress import Listener, ignore
from edgerec.contract.recipe import Recipe
from edgerec.contract.target import Target
from edgerec.errors import OutputExistsError, RecipeError
from edgerec.export import export_bundle
from edgerec.export.page import report
from edgerec.models import reconstructs
from edgerec.runtime.golden import verify
from edgerec.train.fit import fit, was_begun
from edgerec.train.run import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildReport:
    """What :func:`build` produced.

    Attributes:
        run: folder of the training run.
        variant: the compressed variant in the bundle.
        bundle: folder of the bundle.
        page: the HTML report about the run.
        accuracy: top-1 of the float model on the test images, 0 to 1.
        top1: top-1 of the variant on the same images, 0 to 1.
        size_bytes: size of the bundle's model file.
        golden: number of golden vectors that were verified.
        reused: steps whose results were there already: ``train``, ``quantize``, ``export``.
    """

    run: str
    variant: str
    bundle: str
    page: str
    accuracy: float
    top1: float
    size_bytes: int
    golden: int
    reused: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def build(
    recipe: Recipe,
    out: str | Path,
    target: str = "rpi",
    *,
    method: str | None = None,
    overwrite: bool = False,
    listener: Listener = ignore,
) -> BuildReport:
    """Train by a recipe, compress, export for a target, verify the bundle and write the report.

    A build that was interrupted continues when it is called again with the same arguments. Results that are complete
    are reused.

    Args:
        recipe: how to train and compress.
        out: folder of the run. The bundle is written beside it, as ``OUT-TARGET``.
        target: a name in ``targets/``, or a .toml file.
        method: compression method; None takes the recipe's ``compress.method``.
        overwrite: start again and replace the run and the bundle.
        listener: called with the progress.

    Raises:
        RecipeError: ``out`` holds a run that was trained by another recipe, or the recipe trains an autoencoder.
        GateError: the variant lost more accuracy than ``compress.max_drop`` allows.
        EdgerecError: a step failed.
    """
    aim = Target.load(target)  # a wrong name must not be noticed after an hour of training
    if reconstructs(recipe.model.arch):
        raise RecipeError(
            f"model.arch is {recipe.model.arch!r}, which does not classify: train it with edgerec train, then "
            "add it to a classifier's bundle with edgerec export --novelty"
        )
    reused = []
    recipe = recipe if method is None else recipe.override({"compress.method": method})
    run = Run.at(out)
    # Training does not depend on the settings of the compression, so that they can be changed afterwards.
    if overwrite or not run.begun or not was_begun(replace(recipe, compress=run.recipe.compress), out):
        for_target = recipe if recipe.model.target else recipe.override({"model.target": target})
        run = fit(for_target, out, overwrite=overwrite, listener=listener)
    else:
        reused += ["train"] if run.finished else []
        run = fit(recipe, out, resume=True, listener=listener)
    settings = vars(recipe.compress)
    quantized = None if overwrite else _existing_variant(run, replace(run.recipe, compress=recipe.compress))
    if quantized is None:
        changed = {key: value for key, value in settings.items() if value != getattr(run.recipe.compress, key)}
        quantized = quantize(run, **changed, resume=True, overwrite=overwrite, listener=listener)
    else:
        check_drop(quantized.variant, quantized.forms[0].top1, quantized.forms[-1].top1, recipe.compress.max_drop)
        reused.append("quantize")
    place = run.path.with_name(f"{run.path.name}-{aim.name}")
    if not overwrite and Bundle.stands_at(place):
        manifest = Bundle.open(place).manifest
        if manifest.files.get(manifest.model) != quantized.model_sha256:
            raise OutputExistsError(f"{place} holds a bundle of another model: add --overwrite, or move it away")
        log.info("%s is complete already", place)
        reused.append("export")
    else:
        export_bundle(
            run,
            target,
            variant=quantized.variant,
            out=place,
            max_drop=recipe.compress.max_drop,
            overwrite=overwrite,
            listener=listener,
        )
    verified = verify(place)
    page = report(run, overwrite=True, listener=listener)
    return BuildReport(
        run=str(run.path),
        variant=quantized.variant,
        bundle=str(place),
        page=page.page,
        accuracy=run.metrics["accuracy"],
        top1=quantized.forms[-1].top1,
        size_bytes=quantized.forms[-1].size_bytes,
        golden=verified.pictures,
        reused=tuple(reused),
    )


def _existing_variant(run: Run, recipe: Recipe) -> QuantizeReport | None:
    """Return the report of the variant that the recipe's method makes, if the run has it; ``auto`` decides this itself.

    Raises:
        OutputExistsError: the variant was made with other settings.
    """
    if recipe.compress.method == "auto":
        return None
    report = existing(run, recipe)
    if report is not None and (other := used_differently(run, recipe)):
        raise OutputExistsError(
            f"{run.path} has the variant {report.variant} already, which was made with {other}: build into another "
            "folder with --out, or add --overwrite to start again"
        )
    return report
