"""Add an autoencoder to the bundle of a classifier, so that unfamiliar images get the label ``unknown``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgerec.contract.manifest import Manifest, NoveltySpec, VariantForm
from edgerec.contract.target import Target
from edgerec.errors import BundleError, EdgerecError
from edgerec.export.variants import choose, without_folders
from edgerec.export.writer import add_compiled
from edgerec.recipe import DataSource
from edgerec.runtime.autoencoder import Autoencoder
from edgerec.train.anomaly import KNOWN_FRACTION, fit_threshold
from edgerec.train.run import Run
from edgerec.train.scorers import tflite_scorer
from edgerec.utils.progress import Listener

MODEL, DELEGATE_MODEL = "novelty.tflite", "novelty_edgetpu.tflite"


@dataclass(frozen=True)
class Novelty:
    """Settings of the autoencoder that a bundle uses to detect unfamiliar images.

    Attributes:
        run: run of the autoencoder, or its path.
        variant: name of the autoencoder's variant. None chooses the variant with the best validation result among
            those that the target can run.
        known: fraction of the autoencoder's validation images that must be accepted as known, i.e. whose reconstruction
            error is at most the threshold; greater than 0 and less than 1.
    """

    run: str | Path
    variant: str | None = None
    known: float = KNOWN_FRACTION

    def __post_init__(self) -> None:
        if not 0 < self.known < 1:
            raise EdgerecError(f"known must be a fraction between 0 and 1, such as 0.99, but is {self.known!r}")

    @classmethod
    def of(cls, novelty: Novelty | str | Path) -> Novelty:
        """Convert the path of an autoencoder run to a :class:`Novelty` with default settings, if necessary."""
        return novelty if isinstance(novelty, Novelty) else cls(novelty)


@dataclass(frozen=True)
class NoveltyReport:
    """The autoencoder of a bundle, and its metrics.

    Attributes:
        variant: name of the autoencoder's variant.
        threshold: largest reconstruction error of images that are accepted as known.
        known: fraction of the validation images that must be accepted as known.
        validation_images: number of validation images to which the threshold was fitted.
        known_held_out: fraction of the test images that are accepted as known.
        error: mean reconstruction error of the test images.
        images: number of test images.
        size_bytes: size of the .tflite file.
        forms: metrics of each form of the autoencoder, see
            :attr:`~edgerec.compress.variant_report.QuantizeReport.forms`.
    """

    variant: str
    threshold: float
    known: float
    validation_images: int
    known_held_out: float
    error: float
    images: int
    size_bytes: int
    forms: list[VariantForm]


@dataclass(frozen=True)
class FittedAutoencoder:
    """An autoencoder with a fitted threshold, which can be added to a bundle.

    Attributes:
        spec: entry ``novelty`` of the manifest.
        files: contents of the model files, keyed by their names in the bundle.
        report: measurements, which become ``metrics["novelty"]`` of the manifest.
        origin: recipe and digest of the training data, which become ``provenance["novelty"]`` of the manifest.
    """

    spec: NoveltySpec
    files: dict[str, bytes]
    report: NoveltyReport
    origin: dict[str, Any]

    def added_to(self, manifest: Manifest) -> Manifest:
        """Return a copy of the manifest that includes this autoencoder."""
        return replace(
            manifest,
            novelty=self.spec,
            metrics={**manifest.metrics, "novelty": vars(self.report)},
            provenance={**manifest.provenance, "novelty": self.origin},
        )


def require_edgerec(target: Target) -> None:
    """Raise :class:`BundleError` if the target does not run edgerec, because only edgerec can run an autoencoder."""
    if target.kind != "bundle":
        raise BundleError(
            f"target {target.name} supports only one model, but --novelty adds a second one: omit --novelty, or choose "
            "a target on which edgerec runs, such as desktop or rpi"
        )


def fit_autoencoder(
    novelty: Novelty, classifier: Run, target: Target, data: DataSource | None, listener: Listener
) -> FittedAutoencoder:
    """Choose the variant of the autoencoder, and fit the threshold to the .tflite model that will run on the device.

    Args:
        novelty: settings of the autoencoder.
        classifier: run of the classifier in the same bundle.
        target: target of the bundle.
        data: current location of the classifier's images, if they were moved. The same location is used for the
            autoencoder if both runs were trained on the same data source.
        listener: receives the progress.

    Raises:
        EdgerecError: ``novelty.run`` is not the run of an autoencoder, its images do not exist, or the target cannot
            run the autoencoder.
    """
    run = Run.open(novelty.run)
    if not run.reconstructs:
        raise EdgerecError(
            f"{novelty.run} is a classifier run, but --novelty needs an autoencoder run: create one with "
            "edgerec train --arch autoencoder"
        )
    recipe = run.recipe
    data = data if recipe.data.source == classifier.recipe.data.source else None
    dataset, split = run.data(data, listener)
    chosen = choose(run, target, novelty.variant, max_drop=None, data=data, listener=listener)
    model = Autoencoder(chosen.content, recipe.normalise, where=f"{novelty.run}/{chosen.name}")
    score = tflite_scorer(model)
    errors, held_out = (score(dataset.select(subset), listener)[:, 0] for subset in (split.val, split.test))
    threshold = fit_threshold(errors, novelty.known)
    if not threshold:
        raise EdgerecError(
            f"{novelty.run} reconstructs its validation images without any error, so no threshold can be fitted: "
            "check that the validation images differ from each other"
        )
    files = {MODEL: chosen.content}
    add_compiled(files, chosen.content, target, DELEGATE_MODEL)
    spec = NoveltySpec(
        model=MODEL,
        input=model.input,
        output=model.output,
        preprocess=recipe.preprocess,
        normalise=recipe.normalise,
        delegate_model=DELEGATE_MODEL if DELEGATE_MODEL in files else "",
        threshold=threshold,
    )
    report = NoveltyReport(
        variant=chosen.name,
        threshold=threshold,
        known=novelty.known,
        validation_images=len(errors),
        known_held_out=float(np.mean(held_out <= threshold)),
        error=float(held_out.mean(dtype=np.float64)),
        images=len(held_out),
        size_bytes=len(chosen.content),
        forms=chosen.report["forms"],
    )
    origin = {"data_digest": dataset.digest, "recipe": without_folders(recipe).to_dict()}
    return FittedAutoencoder(spec, files, report, origin)
