"""Find a run's existing variants and interrupted fine-tuning, and compare their settings with a recipe."""

from __future__ import annotations

from pathlib import Path

from edgerec.compress.finetune import is_complete, other_setting, resumable_settings
from edgerec.compress.variant_report import QuantizeReport
from edgerec.compression_methods import METHODS, METHODS_BY_KEY
from edgerec.errors import OutputExistsError
from edgerec.recipe import Recipe
from edgerec.train.run import Run


def existing(run: Run, recipe: Recipe) -> QuantizeReport | None:
    """Return the report of the variant for the recipe's method, or None if the variant does not exist."""
    values = run.variants().get(METHODS[recipe.compress.method].variant)
    return None if values is None else QuantizeReport.from_dict(values)


def used_differently(run: Run, recipe: Recipe) -> str:
    """Describe how the existing variant's settings differ from those in the recipe.

    Return an empty string if all settings are the same.
    """
    section = recipe.compress
    saved = run.variants()[METHODS[section.method].variant]["compress"]
    used = (key for key, methods in METHODS_BY_KEY.items() if section.method in methods)
    return ", ".join(f"{key} {saved[key]}" for key in used if key in saved and saved[key] != getattr(section, key))


def interrupted_folder(run: Run, method: str) -> Path:
    """Return the folder that stores a method's fine-tuning checkpoints until the variant is complete."""
    return run.path / "checkpoints" / METHODS[method].variant


def is_interrupted_differently(run: Run, recipe: Recipe) -> bool:
    """Return whether an interrupted fine-tuning used settings that differ from those in the recipe."""
    return bool(other_setting(interrupted_folder(run, recipe.compress.method), resumable_settings(recipe)))


def refuse_interrupted(run: Run, recipe: Recipe, resume: bool, overwrite: bool) -> None:
    """Check that interrupted fine-tuning is neither discarded by mistake nor resumed with different settings.

    Raises:
        OutputExistsError: there are checkpoints of an interrupted fine-tuning. ``resume`` and ``overwrite`` are not
            set, or ``resume`` is set but the settings differ.
    """
    method = recipe.compress.method
    folder = interrupted_folder(run, method)
    if not any(folder.glob("*.npz")):
        return
    difference = other_setting(folder, resumable_settings(recipe))
    settings = f" with {difference}" if difference else ""
    checkpoints = f"{folder} contains checkpoints from an interrupted {method}{settings}"
    if resume and difference:
        # The message must not mention --resume, because edgerec build has no such option.
        raise OutputExistsError(
            f"{checkpoints}: use the same settings to resume it, or delete this folder to start again"
        )
    if not difference and is_complete(folder, len(METHODS[method].stages), recipe.compress.epochs):
        return  # the method "auto" completed the fine-tuning, but chose another method
    if not resume and not overwrite:
        same = "use the same settings and " if difference else ""
        raise OutputExistsError(f"{checkpoints}: {same}add --resume to resume it, or --overwrite to start again")
