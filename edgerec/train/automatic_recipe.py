"""Choose the recipe values that depend on the images: architecture, width, initial weights and number of epochs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgerec.contract.target import Target
from edgerec.data.dataset import AUTO_SIZE_PX
from edgerec.data.summary import summarize
from edgerec.errors import ModelError, RecipeError
from edgerec.models import ARCHITECTURES, BACKBONE, imagenet, least_size_px
from edgerec.models.automatic import Rule, Situation, choose, suitable_epochs
from edgerec.recipe import AUTO, DataSection, Recipe, TrainSection
from edgerec.train.backend import keras
from edgerec.train.input_pipeline import batch_size
from edgerec.train.leakage import run_of
from edgerec.utils.progress import Listener, Progress

log = logging.getLogger(__name__)

# Values that model.weights accepts, for error messages.
WEIGHTS = "none, imagenet, a run, or a .keras or .h5 file"


def with_architecture(recipe: Recipe, listener: Listener) -> Recipe:
    """Return the recipe with ``model.arch``, ``model.width``, ``model.weights`` and ``data.input_size`` chosen.

    ``data.input_size`` changes only if ``model.arch`` is ``auto``. If ``model.weights`` names a run, ``auto`` uses the
    architecture of the run. If it names another file, ``auto`` uses the network in the file. Otherwise the rules in
    ``models/automatic.py`` choose the architecture, and the log states the choice and the reason. If the rule that
    applies uses ImageNet weights, but Keras cannot provide them, a rule without ImageNet weights is used instead.

    Raises:
        EdgerecError: the target does not exist, or the data cannot be read.
    """
    model = recipe.model
    target = Target.load(model.target) if model.target else None
    if model.arch != AUTO:
        weights = "none" if model.weights == AUTO else model.weights
        return replace(recipe, model=replace(model, width=model.width or 1.0, weights=weights))
    if model.pretrained and model.weights != "imagenet":
        if not Path(model.weights).exists():
            raise RecipeError(f"model.weights is {model.weights!r}, which does not exist; expected {WEIGHTS}")
        run = run_of(model.weights)
        if run is not None and run.recipe.model.arch in ARCHITECTURES:
            own = run.recipe.model
            log.info("arch auto: %s, width %g, as in the run %s", own.arch, model.width or own.width, run.path)
            return replace(recipe, model=replace(model, arch=own.arch, width=model.width or own.width))
        if model.width:
            raise RecipeError(
                f"Cannot use model.width {model.width:g} with the network in {model.weights}, whose width is fixed: "
                "leave it out, or name the architecture of the weights (--arch)"
            )
        log.info("arch auto: using the network in %s with a new head (arch backbone)", model.weights)
        return replace(recipe, model=replace(model, arch=BACKBONE, width=1.0))
    situation = _situation(recipe.data, target)
    rule = choose(situation, imagenet=_may_use_imagenet(recipe, situation))
    if rule.imagenet and model.weights == AUTO:
        rule = _without_missing_weights(recipe, rule, situation, listener)
    chosen = _with_rule(recipe, rule, situation)
    if rule.imagenet:
        with_weights = [name for name, known in ARCHITECTURES.items() if known.imagenet]
        imagenet.require_weights(chosen.model, ARCHITECTURES[rule.arch].imagenet, situation.channels, with_weights)
    weights = "ImageNet weights" if rule.imagenet else "random weights"
    network, size = f"{rule.arch}, width {chosen.model.width:g}, {weights}", chosen.data.input_size
    log.info("arch auto: %s, %d px input, because %s (%s)", network, size, rule.reason, situation)
    return chosen


def with_epochs(train: TrainSection, images: int) -> TrainSection:
    """Return the section with ``batch_size`` and ``epochs`` chosen for this number of training images."""
    size = batch_size(train.batch_size, images)
    if train.epochs:
        return replace(train, batch_size=size)
    epochs = suitable_epochs(images // size)
    log.info("training for %d epochs (train.epochs is not set), chosen for %s training images", epochs, f"{images:,}")
    return replace(train, batch_size=size, epochs=epochs)


def _situation(section: DataSection, target: Target | None) -> Situation:
    """Return the facts about the images and the target that the rules for the architecture depend on."""
    summary = summarize(section)
    input_px = section.input_size or (summary.side_px if summary.packed else 0)
    channels = section.channels or summary.channels
    return Situation(summary.side_px, channels, summary.images, summary.classes, target, input_px)


def _may_use_imagenet(recipe: Recipe, situation: Situation) -> bool | None:
    """Return True if the recipe requires ImageNet weights, False if they cannot be used, None if auto may choose."""
    model = recipe.model
    if model.weights != AUTO:
        return model.weights == "imagenet"
    rule = choose(situation, imagenet=None)
    known = ARCHITECTURES[rule.arch].imagenet
    width_exists = not model.width or (known is not None and model.width in known.widths)
    return None if width_exists else False


def _without_missing_weights(recipe: Recipe, rule: Rule, situation: Situation, listener: Listener) -> Rule:
    """Return the rule if its ImageNet weights are available, otherwise the first matching rule without them."""
    chosen = _with_rule(recipe, rule, situation)
    size = chosen.data.input_size
    listener(Progress("downloading weights", 0, 1, f"{rule.arch}, once"))
    try:
        imagenet.download_weights(
            keras(), chosen.model, (size, size, situation.channels), ARCHITECTURES[rule.arch].imagenet
        )
    except ModelError as error:
        log.warning("%s. Training starts from random weights, which needs more images for the same accuracy.", error)
        return choose(situation, imagenet=False)
    finally:
        listener(Progress("downloading weights", 1, 1))
        keras().utils.set_random_seed(recipe.seed)  # building the model with these weights has used random numbers
    return rule


def _with_rule(recipe: Recipe, rule: Rule, situation: Situation) -> Recipe:
    """Return the recipe with the architecture, width, weights and input size of a rule; set values are kept."""
    min_px = max(AUTO_SIZE_PX[0], least_size_px(rule.arch))
    keys: Mapping[str, Any] = {
        "arch": rule.arch,
        "width": recipe.model.width or rule.width,
        "weights": "imagenet" if rule.imagenet else "none",
    }
    size_px = situation.input_px or min(max(situation.side_px, min_px), rule.max_input_px)
    return replace(recipe, data=replace(recipe.data, input_size=size_px), model=replace(recipe.model, **keys))
