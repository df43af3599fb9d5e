"""Build a bundle from images in one call, from training to verification."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgerec.compress.accuracy_drop import check_drop
from edgerec.compress.existing_variants import existing, used_differently
from edgerec.compress.quantize import quantize_as
from edgerec.compress.variant_report import QuantizeReport
from edgerec.contract.bundle import Bundle
from edgerec.contract.target import Target
from edgerec.errors import OutputExistsError, RecipeError
from edgerec.export import export_bundle
from edgerec.models import reconstructs
from edgerec.recipe import Recipe
from edgerec.report import write_report
from edgerec.runtime.verification import verify
from edgerec.train import baseline
from edgerec.train.fit import fit, was_begun
from edgerec.train.run import Run
from edgerec.utils.progress import Listener, ignore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildReport:
    """Result of :func:`build`.

    Attributes:
        run: folder of the training run.
        variant: the compressed variant in the bundle.
        bundle: folder of the bundle.
        page: the run's HTML report.
        accuracy: top-1 accuracy of the float model on the test set, 0 to 1.
        top1: top-1 accuracy of the compressed variant on the same images, 0 to 1.
        size_bytes: size of the bundle's model file, in bytes.
        golden: number of verified golden images.
        reused: names of the steps that were skipped because their results were complete (``train``, ``quantize``,
            ``export``).
        warning: a sentence if the float accuracy is not clearly better than the majority-class baseline.
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
    warning: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-serializable dictionary."""
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
    """Train a model, compress it, export it for a target, verify the bundle, and write the report.

    To continue an interrupted build, call this function again with the same arguments. Completed results are reused.

    Args:
        recipe: training and compression settings.
        out: folder of the run. The bundle is written to the folder ``OUT-TARGET`` beside ``out``.
        target: name of a target in ``targets/``, or path of a .toml file.
        method: compression method; None takes the recipe's ``compress.method``.
        overwrite: start from the beginning, and replace an existing run and bundle.
        listener: called with progress updates.

    Raises:
        RecipeError: ``out`` contains a run with a different recipe, or the recipe trains an autoencoder.
        GateError: the accuracy loss of the variant exceeds ``compress.max_drop``.
        EdgerecError: a step failed.
    """
    loaded_target = Target.load(target)  # An unknown target raises an error before training starts.
    if reconstructs(recipe.model.arch):
        raise RecipeError(
            f"model.arch is {recipe.model.arch!r}, which is not a classifier: train it with edgerec train, then "
            "add it to a classifier's bundle with edgerec export --novelty"
        )
    reused = []
    recipe = recipe if method is None else recipe.override({"compress.method": method})
    run = Run.at(out)
    # Compression settings are ignored when recipes are compared, because they do not affect training.
    if overwrite or not run.begun or not was_begun(replace(recipe, compress=run.recipe.compress), out):
        for_target = recipe if recipe.model.target else recipe.override({"model.target": target})
        run = fit(for_target, out, overwrite=overwrite, listener=listener)
    else:
        reused += ["train"] if run.finished else []
        run = fit(recipe, out, resume=True, data=recipe.data.source, listener=listener)
    own_recipe = replace(run.recipe, compress=recipe.compress)
    quantized = None if overwrite else _existing_variant(run, own_recipe)
    if quantized is None:
        quantized = quantize_as(run, own_recipe, resume=True, overwrite=overwrite, listener=listener)
    else:
        check_drop(quantized.variant, quantized.forms[0].top1, quantized.forms[-1].top1, recipe.compress.max_drop)
        reused.append("quantize")
    bundle_path = run.path.with_name(f"{run.path.name}-{loaded_target.name}")
    if not overwrite and Bundle.exists_at(bundle_path):
        manifest = Bundle.open(bundle_path).manifest
        if manifest.files.get(manifest.model) != quantized.model_sha256:
            raise OutputExistsError(
                f"{bundle_path} contains a bundle with another model: add --overwrite to replace the bundle, or move it"
            )
        log.info("%s is already complete", bundle_path)
        reused.append("export")
    else:
        export_bundle(
            run,
            target,
            variant=quantized.variant,
            out=bundle_path,
            max_drop=recipe.compress.max_drop,
            overwrite=overwrite,
            listener=listener,
        )
    # The bundle is verified without a delegate, because delegates are installed only on the device.
    verified = verify(bundle_path, delegate="")
    page = write_report(run, overwrite=True, listener=listener)
    return BuildReport(
        run=str(run.path),
        variant=quantized.variant,
        bundle=str(bundle_path),
        page=page.page,
        accuracy=run.metrics["accuracy"],
        top1=quantized.forms[-1].top1,
        size_bytes=quantized.forms[-1].size_bytes,
        golden=verified.images,
        reused=tuple(reused),
        warning=baseline.warning(run.metrics),
    )


def _existing_variant(run: Run, recipe: Recipe) -> QuantizeReport | None:
    """Return the report of an existing variant, or None if there is none or the method is ``auto``.

    Raises:
        OutputExistsError: the variant was created with different settings.
    """
    if recipe.compress.method == "auto":
        return None
    report = existing(run, recipe)
    if report is not None and (other := used_differently(run, recipe)):
        raise OutputExistsError(
            f"{run.path} already has the variant {report.variant}, created with {other}: choose another folder with "
            "--out, or add --overwrite to start again"
        )
    return report
