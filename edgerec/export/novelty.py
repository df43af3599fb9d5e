"""Add an autoencoder to a classifier's bundle so that unfamiliar images get the label ``unknown``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgerec.contract.manifest import Manifest, NoveltySpec
from edgerec.contract.provenance import VariantForm
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
    """Settings for the autoencoder that a bundle uses to detect unfamiliar images.

    Attributes:
        run: the autoencoder run or its path.
        variant: name of the autoencoder's variant. If None, the variant with the best validation result among those
            supported by the target is chosen.
        known: fraction of the autoencoder's validation images to accept as known, i.e. whose reconstruction error must
            not exceed the threshold; greater than 0 and less than 1.
    """

    run: str | Path
    variant: str | None = None
    known: float = KNOWN_FRACTION

    def __post_init__(self) -> None:
        if not 0 < self.known < 1:
            raise EdgerecError(f"known must be greater than 0 and less than 1, such as 0.99, got {self.known!r}")

    @classmethod
    def of(cls, novelty: Novelty | str | Path) -> Novelty:
        """Return a :class:`Novelty` unchanged, or create one with default settings from a run's path."""
        return novelty if isinstance(novelty, Novelty) else cls(novelty)


@dataclass(frozen=True)
class NoveltyReport:
    """A bundle's autoencoder and its metrics.

    Attributes:
        variant: name of the autoencoder's variant.
        threshold: maximum reconstruction error of images that are accepted as known.
        known: fraction of the validation images to accept as known.
        validation_images: number of validation images used to fit the threshold.
        known_held_out: fraction of the test images that are accepted as known.
        error: mean reconstruction error of the test images.
        images: number of test images.
        size_bytes: size of the .tflite file.
        forms: metrics of each form of the autoencoder; see
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
    """An autoencoder with a fitted threshold, ready to be added to a bundle.

    Attributes:
        spec: the manifest's ``novelty`` entry.
        files: contents of the model files, keyed by file name in the bundle.
        report: metrics, stored as ``metrics["novelty"]`` in the manifest.
        origin: recipe and digest of the training data, stored as ``provenance["novelty"]`` in the manifest.
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
    """Raise :class:`BundleError` if the target does not run edgerec, which is required for an autoencoder."""
    if target.kind != "bundle":
        raise BundleError(
            f"target {target.name} supports only one model, but --novelty adds a second one: omit --novelty, or choose "
            "a target that runs edgerec, such as desktop or rpi"
        )


def fit_autoencoder(
    novelty: Novelty, classifier: Run, target: Target, data: DataSource | None, listener: Listener
) -> FittedAutoencoder:
    """Choose a variant of an autoencoder, and fit the threshold of the reconstruction error.

    The threshold is fitted with the .tflite model rather than the Keras model, because their errors differ.

    Args:
        novelty: the autoencoder's settings.
        classifier: run of the classifier in the same bundle.
        target: the bundle's target.
        data: current location of the classifier's images if they were moved. It also applies to the autoencoder if both
            runs were trained on the same data source.
        listener: receives progress updates.

    Raises:
        EdgerecError: ``novelty.run`` is not an autoencoder run, its images do not exist, or the target cannot run the
            autoencoder.
    """
    run = Run.open(novelty.run)
    if not run.reconstructs:
        raise EdgerecError(
            f"--novelty requires an autoencoder run, but {novelty.run} is a classifier run: create an autoencoder run "
            "with edgerec train --arch autoencoder"
        )
    recipe = run.recipe
    data = data if recipe.data.source == classifier.recipe.data.source else None
    dataset, split = run.data(data, listener)
    chosen = choose(run, target, novelty.variant, max_drop=None, data=data, listener=listener)
    model = Autoencoder(chosen.content, recipe.normalize, where=f"{novelty.run}/{chosen.name}")
    score = tflite_scorer(model)
    errors, held_out = (score(dataset.select(subset), listener)[:, 0] for subset in (split.val, split.test))
    threshold = fit_threshold(errors, novelty.known)
    if not threshold:
        raise EdgerecError(
            f"cannot fit a threshold because {novelty.run} reconstructs its validation images without any error: "
            "check that the validation images differ from each other"
        )
    files = {MODEL: chosen.content}
    add_compiled(files, chosen.content, target, DELEGATE_MODEL)
    spec = NoveltySpec(
        model=MODEL,
        input=model.input,
        output=model.output,
        preprocess=recipe.preprocess,
        normalize=recipe.normalize,
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
