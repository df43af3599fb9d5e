"""Add an autoencoder to the bundle of a classifier, so that unfamiliar images get the label ``unknown``."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgerec.contract.manifest import Manifest, NoveltySpec
from edgerec.contract.target import Target
from edgerec.errors import BundleError, EdgerecError
from edgerec.export.variants import choose, without_folders
from edgerec.recipe import DataSource
from edgerec.runtime.anomaly import Autoencoder
from edgerec.tflite.edgetpu import compile_for_edgetpu
from edgerec.train.anomaly import KNOWN_FRACTION, fit_threshold
from edgerec.train.run import Run
from edgerec.train.scorers import tflite_scorer
from edgerec.utils.progress import Listener

log = logging.getLogger(__name__)

MODEL, DELEGATE_MODEL = "novelty.tflite", "novelty_edgetpu.tflite"


@dataclass(frozen=True)
class Novelty:
    """Settings of the autoencoder that a bundle uses to detect unfamiliar images.

    Attributes:
        run: run of the autoencoder, or its path.
        variant: name of the variant; None chooses the best variant, measured on the validation images, among those that
            the target can run.
        known: fraction of the autoencoder's validation images whose reconstruction error must be below the threshold,
            between 0 and 1 (both excluded).
    """

    run: str | Path
    variant: str | None = None
    known: float = KNOWN_FRACTION

    def __post_init__(self) -> None:
        if not 0 < self.known < 1:
            raise EdgerecError(f"known is {self.known!r}, expected a fraction between 0 and 1, such as 0.99")

    @classmethod
    def of(cls, novelty: Novelty | str | Path) -> Novelty:
        """Return the settings unchanged, or the default settings for the path of a run."""
        return novelty if isinstance(novelty, Novelty) else cls(novelty)


@dataclass(frozen=True)
class Guard:
    """An autoencoder with a fitted threshold, which can be added to a bundle.

    Attributes:
        spec: entry ``novelty`` of the manifest.
        files: content of the model files by their names in the bundle.
        about: measurements, which become ``metrics["novelty"]`` of the manifest.
        origin: recipe and digest of the training data, which become ``provenance["novelty"]`` of the manifest.
    """

    spec: NoveltySpec
    files: dict[str, bytes]
    about: dict[str, Any]
    origin: dict[str, Any]

    def added_to(self, manifest: Manifest) -> Manifest:
        """Return the manifest with this autoencoder."""
        return replace(
            manifest,
            novelty=self.spec,
            metrics={**manifest.metrics, "novelty": self.about},
            provenance={**manifest.provenance, "novelty": self.origin},
        )


def refuse_kind(target: Target) -> None:
    """Raise :class:`BundleError` if the target uses a single model without edgerec."""
    if target.kind != "bundle":
        raise BundleError(
            f"target {target.name} takes one model, but --novelty needs a target that runs edgerec, such as desktop or "
            "rpi: omit --novelty, or choose another target"
        )


def novelty_guard(
    novelty: Novelty, classifier: Run, target: Target, data: DataSource | None, listener: Listener
) -> Guard:
    """Choose the autoencoder's variant, and fit its threshold to the .tflite model that will run on the device.

    Args:
        novelty: settings of the autoencoder.
        classifier: run of the classifier in the same bundle.
        target: target of the bundle.
        data: current location of the classifier's images, if they were moved. It is used for the autoencoder too if
            both runs were trained on the same data source.
        listener: receives the progress.

    Raises:
        EdgerecError: the run is not that of an autoencoder, its images do not exist, or the target cannot run it.
    """
    run = Run.open(novelty.run)
    if not run.reconstructs:
        raise EdgerecError(
            f"{novelty.run} is the run of a classifier, but --novelty needs the run of an autoencoder: "
            "create one with edgerec train --arch autoencoder"
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
    edgetpu = compile_for_edgetpu(chosen.content, target) if target.compiler else None
    files = {MODEL: chosen.content}
    if edgetpu is not None and edgetpu.content:
        files[DELEGATE_MODEL] = edgetpu.content
    spec = NoveltySpec(
        model=MODEL,
        input=model.input,
        output=model.output,
        preprocess=recipe.preprocess,
        normalise=recipe.normalise,
        delegate_model=DELEGATE_MODEL if DELEGATE_MODEL in files else "",
        threshold=threshold,
    )
    about = {
        "variant": chosen.name,
        "threshold": threshold,
        "known": novelty.known,
        "validation_images": len(errors),
        "known_held_out": float(np.mean(held_out <= threshold)),
        "error": float(held_out.mean(dtype=np.float64)),
        "images": len(held_out),
        "size_bytes": len(chosen.content),
        "forms": chosen.report["forms"],
    }
    origin = {"data_digest": dataset.digest, "recipe": without_folders(recipe).to_dict()}
    return Guard(spec, files, about, origin)
