"""Choose recipe values that suit the images: architecture, width, weights, batch size and epochs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgerec.contract.target import Target
from edgerec.data import Dataset, Split, load, split_dataset
from edgerec.data.dataset import AUTO_SIZE_PX
from edgerec.data.readers import NAMED
from edgerec.data.remote_files import is_remote
from edgerec.data.summary import summarize
from edgerec.errors import DataError, ModelError, RecipeError
from edgerec.models import ARCHITECTURES, BACKBONE, imagenet, least_size_px, reconstructs
from edgerec.models.automatic import Rule, Situation, choose, suitable_epochs
from edgerec.recipe import AUTO, DataSection, Recipe, TrainSection, one_or_tuple
from edgerec.train.backend import keras
from edgerec.train.input_pipeline import batch_size
from edgerec.train.leakage import run_of, with_weights_file
from edgerec.train.transfer import backbone_file, input_size_px
from edgerec.utils.atomic import real_path, user_path
from edgerec.utils.progress import Listener, Progress

log = logging.getLogger(__name__)

ACCEPTED_WEIGHTS = "none, imagenet, a run, or a .keras or .h5 file"


def with_architecture(recipe: Recipe, listener: Listener) -> Recipe:
    """Resolve automatic values of ``model.arch``, ``model.width``, ``model.weights`` and ``data.input_size``.

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
            raise RecipeError(f"model.weights is {model.weights!r}, which does not exist: expected {ACCEPTED_WEIGHTS}")
        run = run_of(model.weights)
        if run is not None and run.recipe.model.arch in ARCHITECTURES:
            arch, width = run.recipe.model.arch, model.width or run.recipe.model.width
            log.info("arch auto: %s, width %g, as in the run %s", arch, width, run.path)
            return replace(recipe, model=replace(model, arch=arch, width=width))
        if model.width:
            raise RecipeError(
                f"Cannot use model.width {model.width:g} with the network in {model.weights}, whose width is fixed: "
                "omit model.width, or choose the architecture of the weights with --arch"
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
    """Choose the batch size and the number of epochs, unless the recipe sets them."""
    size = batch_size(train.batch_size, images)
    if train.epochs:
        return replace(train, batch_size=size)
    epochs = suitable_epochs(images // size)
    log.info("training for %d epochs (train.epochs is not set), chosen for %s training images", epochs, f"{images:,}")
    return replace(train, batch_size=size, epochs=epochs)


def _situation(section: DataSection, target: Target | None) -> Situation:
    summary = summarize(section)
    input_px = section.input_size or (summary.side_px if summary.packed else 0)
    channels = section.channels or summary.channels
    return Situation(summary.side_px, channels, summary.images, summary.classes, target, input_px)


def _may_use_imagenet(recipe: Recipe, situation: Situation) -> bool | None:
    """Return True if the recipe requires ImageNet weights, False if it excludes them, and None if it allows both."""
    model = recipe.model
    if model.weights != AUTO:
        return model.weights == "imagenet"
    rule = choose(situation, imagenet=None)
    known = ARCHITECTURES[rule.arch].imagenet
    width_exists = not model.width or (known is not None and model.width in known.widths)
    return None if width_exists else False


def _without_missing_weights(recipe: Recipe, rule: Rule, situation: Situation, listener: Listener) -> Rule:
    """Return ``rule``, or a rule for random weights if the ImageNet weights cannot be downloaded."""
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
        # Downloading the weights changes the random state.
        keras().utils.set_random_seed(recipe.seed)
    return rule


def _with_rule(recipe: Recipe, rule: Rule, situation: Situation) -> Recipe:
    """Apply a rule to the recipe, but keep a width or input size that the recipe sets."""
    min_px = max(AUTO_SIZE_PX[0], least_size_px(rule.arch))
    keys: Mapping[str, Any] = {
        "arch": rule.arch,
        "width": recipe.model.width or rule.width,
        "weights": "imagenet" if rule.imagenet else "none",
    }
    size_px = situation.input_px or min(max(situation.side_px, min_px), rule.max_input_px)
    return replace(recipe, data=replace(recipe.data, input_size=size_px), model=replace(recipe.model, **keys))


def resolved(
    recipe: Recipe, listener: Listener, loaded: tuple[Dataset, DataSection] | None = None
) -> tuple[Recipe, Dataset, Split]:
    """Resolve all automatic values in a recipe, and load and split its data set.

    Args:
        recipe: the recipe.
        listener: receives the progress.
        loaded: the data set and its section if they were already loaded for this recipe, otherwise None.
    """
    recipe = with_architecture(replace(recipe, model=with_weights_file(recipe.model)), listener)
    unlabeled = reconstructs(recipe.model.arch)
    dataset, section = loaded or load(
        _sized_data_section(recipe),
        least_size_px=least_size_px(recipe.model.arch),
        flat=unlabeled,
        least_classes=1 if unlabeled else 2,
        listener=listener,
    )
    parts = split_dataset(dataset, section, recipe.seed)
    train = with_epochs(recipe.train, len(parts.train))
    size, accumulate = train.batch_size, train.accumulate
    if size < recipe.train.batch_size:
        log.warning(
            "train.batch_size is %d, but there are fewer training images: training with a batch size of %d",
            recipe.train.batch_size,
            size,
        )
    if size % accumulate:
        raise RecipeError(
            f"train.accumulate must divide the batch size ({size}), but is {accumulate}: set train.batch_size to a "
            f"multiple of {accumulate}, at most the number of training images ({len(parts.train)})"
        )
    return replace(recipe, data=with_absolute_paths(section), train=train), dataset, parts


def with_absolute_paths(section: DataSection) -> DataSection:
    """Return the data section with absolute paths, so that the run does not depend on the working directory.

    The paths of merged data sets are sorted, because their order has no effect.
    """
    sources = (
        source if source in NAMED or is_remote(source) else str(real_path(user_path(source)))
        for source in section.sources
    )
    absolute = replace(section, source=one_or_tuple(sorted(sources)))
    if any("\udc80" <= character <= "\udcff" for source in absolute.sources for character in source):
        raise DataError(
            f"Cannot save the path {absolute.title} in a recipe, because it is not valid UTF-8: rename the folder"
        )
    return absolute


def _sized_data_section(recipe: Recipe) -> DataSection:
    """Set ``data.input_size`` to the network's input size if the network is loaded from a file."""
    if recipe.model.arch != BACKBONE:
        return recipe.data
    path = backbone_file(recipe)
    # Resuming from a checkpoint does not require the weights file.
    if recipe.data.input_size and not path.exists():
        return recipe.data
    size = input_size_px(path)
    if recipe.data.input_size not in (0, size):
        raise RecipeError(
            f"data.input_size is {recipe.data.input_size}, but the network in {recipe.model.weights} requires images "
            f"of {size}×{size} pixels: omit data.input_size"
        )
    return replace(recipe.data, input_size=size)
