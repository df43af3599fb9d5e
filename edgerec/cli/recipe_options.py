"""Build a recipe from a command's argument, options and ``--set`` assignments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerec.utils.command_line import command

if TYPE_CHECKING:
    from edgerec.recipe import Recipe

SUBJECT_HELP = (
    "Data (an image folder, an .npz file or the name of a data set) or a recipe. Options override the recipe's keys."
)
SET_HELP = "Set a recipe key, such as augment.flip=true ('edgerec recipe' lists all keys). May be repeated."
GROUP_BY_HELP = (
    "Regular expression for image paths below the class folder. Images with the same match stay in the same split "
    "(training, validation or test set)."
)
STRICT_HELP = "Fail if the data contains files that are not images, instead of skipping them."


def compose_recipe(subject: str | None, options: Mapping[str, Any], assignments: Sequence[str]) -> Recipe:
    """Build a recipe from a command's argument and options.

    Args:
        subject: a recipe file, a data set to merge with the data sets in ``data.source``, or None if the argument was
            omitted.
        options: values of the command's options, keyed by dotted recipe key; None for options that were not given.
        assignments: ``KEY=VALUE`` strings, which take precedence over ``options``.

    Raises:
        RecipeError: a key or value is invalid, or no data set is given.
    """
    from edgerec.errors import RecipeError
    from edgerec.recipe import Recipe, parse_assignment

    changes = {key: value for key, value in options.items() if value is not None}
    recipe = Recipe().override({"data.source": ""})
    if subject is not None and is_recipe(subject):
        recipe = Recipe.from_toml(subject, base=recipe)
    elif subject is not None:
        _refuse_run(Path(subject))
        changes["data.source"] = [subject, *changes.get("data.source", [])]
    recipe = recipe.override(changes, "command line").override(dict(map(parse_assignment, assignments)))
    if not recipe.data.source:
        raise RecipeError(
            "no data set specified: pass an image folder with one subfolder per class (edgerec train photos/ …) or an "
            ".npz file, or use --data digits to try edgerec on handwritten digits"
        )
    return recipe


def is_recipe(subject: str) -> bool:
    """Return True if a command's argument is a recipe file, and False if it is a data set."""
    path = Path(subject)
    return path.suffix == ".toml" and not path.is_dir()


def _refuse_run(path: Path) -> None:
    from edgerec.errors import RecipeError

    if (path / "recipe.toml").is_file():
        raise RecipeError(
            f"expected a data set, but {path} is a run: resume its training with "
            f"{command('train', '--resume', '--out', path)}, or train a new run from its recipe with "
            f"{command('train', path / 'recipe.toml', '--out', 'NEW_RUN')}"
        )
