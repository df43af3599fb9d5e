"""The autoencoder that a classifier's bundle carries, and the threshold by which it says that a picture is unknown."""

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
from edgerec.tflite.edgetpu import compiled
from edgerec.train.anomaly import KNOWN_FRACTION, fit_threshold
from edgerec.train.evaluate import tflite_scorer
from edgerec.train.run import Run
from edgerec.utils.progress import Listener

log = logging.getLogger(__name__)

MODEL, DELEGATE_MODEL = "novelty.tflite", "novelty_edgetpu.tflite"


@dataclass(frozen=True)
class Novelty:
    """What is to find novelty in a bundle.

    Attributes:
        run: an autoencoder's run.
        variant: of it; None takes the one that the target can run with the best validation figures.
        known: part of its validation pictures that are to stay known, 0 to 1, both excluded.
    """

    run: str | Path
    variant: str | None = None
    known: float = KNOWN_FRACTION

    def __post_init__(self) -> None:
        if not 0 < self.known < 1:
            raise EdgerecError(f"known is {self.known!r}, expected a part between 0 and 1, as 0.99")

    @classmethod
    def of(cls, given: Novelty | str | Path) -> Novelty:
        """A run alone, with nothing else chosen."""
        return given if isinstance(given, Novelty) else cls(given)


@dataclass(frozen=True)
class Guard:
    """An autoencoder ready to go into a bundle.

    Attributes:
        spec: what the manifest says of it.
        files: its models, by their names in the bundle.
        about: what was measured, for people and ``metrics``.
        origin: where it comes from, for ``provenance``.
    """

    spec: NoveltySpec
    files: dict[str, bytes]
    about: dict[str, Any]
    origin: dict[str, Any]

    def added_to(self, manifest: Manifest) -> Manifest:
        """The manifest of the bundle with it."""
        return replace(
            manifest,
            novelty=self.spec,
            metrics={**manifest.metrics, "novelty": self.about},
            provenance={**manifest.provenance, "novelty": self.origin},
        )


def refuse_kind(target: Target) -> None:
    """Raise :class:`BundleError` for a target that takes one model and nothing of edgerec's."""
    if target.kind != "bundle":
        raise BundleError(
            f"target {target.name} takes one model: novelty is found where edgerec runs, as on desktop or rpi; "
            "leave --novelty out"
        )


def novelty_guard(
    wanted: Novelty, classifier: Run, target: Target, data: DataSource | None, listener: Listener
) -> Guard:
    """Choose the autoencoder's variant, and fit its threshold as it runs on the device.

    Args:
        wanted: the autoencoder.
        classifier: the run that it is to stand beside; pictures that were moved were moved for both.
        target: where both will run.
        data: where the classifier's pictures are now, if they were moved.
        listener: told of the progress.

    Raises:
        EdgerecError: it is no autoencoder's run, its pictures are not there, or the target cannot run it.
    """
    run = Run.open(wanted.run)
    if not run.reconstructs:
        raise EdgerecError(
            f"{wanted.run} is a classifier, --novelty takes an autoencoder's run: "
            "make one with edgerec train --arch autoencoder"
        )
    recipe = run.recipe
    data = data if recipe.data.source == classifier.recipe.data.source else None
    dataset, split = run.data(data, listener)
    chosen = choose(run, target, wanted.variant, max_drop=None, data=data, listener=listener)
    model = Autoencoder(chosen.content, recipe.normalise, where=f"{wanted.run}/{chosen.name}")
    score = tflite_scorer(model)
    errors, held_out = (score(dataset.select(part), listener)[:, 0] for part in (split.val, split.test))
    threshold = fit_threshold(errors, wanted.known)
    if not threshold:
        raise EdgerecError(f"{wanted.run} makes its validation pictures again without any error: nothing is to be told")
    edgetpu = compiled(chosen.content, target) if target.compiler else None
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
        "known": wanted.known,
        "validation_images": len(errors),
        "known_held_out": float(np.mean(held_out <= threshold)),
        "error": float(held_out.mean(dtype=np.float64)),
        "images": len(held_out),
        "size_bytes": len(chosen.content),
        "forms": chosen.report["forms"],
    }
    origin = {"data_digest": dataset.digest, "recipe": without_folders(recipe).to_dict()}
    return Guard(spec, files, about, origin)
