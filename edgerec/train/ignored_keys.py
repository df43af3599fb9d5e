"""Find recipe keys that are set but have no effect on training."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from edgerec.models import BACKBONE, reconstructs
from edgerec.recipe import Recipe

log = logging.getLogger(__name__)


def ignored_keys(recipe: Recipe) -> dict[str, str]:
    """Return the recipe keys that differ from their defaults but have no effect.

    The result maps each key to the reason why it has no effect. The recipe must be resolved, i.e. contain no automatic
    values.
    """
    default, values = Recipe().flattened, recipe.flattened
    return {key: reason for key, reason in _without_effect(recipe) if values[key] != default[key]}


def warn_ignored(recipe: Recipe) -> None:
    """Log a warning for each recipe key that is set but has no effect."""
    for key, reason in ignored_keys(recipe).items():
        log.warning("%s has no effect: %s", key, reason)


def _without_effect(recipe: Recipe) -> Iterator[tuple[str, str]]:
    arch = recipe.model.arch
    if reconstructs(arch):
        reason = f"the architecture {arch} is an autoencoder, which is trained without labels"
        yield "train.class_weights", reason
        yield "compress.teacher_weight", reason
    if arch == BACKBONE and recipe.model.width != 1:
        yield "model.width", "the file determines the width of the network"
    if not recipe.model.pretrained:
        for name in vars(recipe.transfer):
            yield f"transfer.{name}", "model.weights is 'none', so there are no trained weights to start from"
    if not recipe.distill.teachers:
        for name in ("weight", "temperature"):
            yield f"distill.{name}", "distill.teachers names no teacher"
    if not recipe.augment.randaugment:
        yield "augment.randaugment_strength", "augment.randaugment is 0"
    if recipe.data.channels == 1:
        for name in ("saturation", "hue_deg"):
            yield f"augment.{name}", "the images are grayscale"
