"""Build the recipe of a command from its argument, its options and its ``--set`` assignments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerec.utils.command_line import command

if TYPE_CHECKING:
    from edgerec.recipe import Recipe

SUBJECT_HELP = (
    "Data (an image folder, an .npz file or the name of a data set) or a recipe. Options override recipe keys."
)
SET_HELP = "Set any recipe key, such as augment.flip=true; edgerec recipe lists the keys. May be repeated."
GROUP_BY_HELP = (
    "Regular expression. Images with the same match in their path below the class folder are kept in the same split "
    "(training, validation or test set)."
)
STRICT_HELP = "Fail if the data contains files that are not images, instead of skipping these files."


def compose_recipe(
    subject: str | None, options: Mapping[str, Any], assignments: Sequence[str], *, needs_data: bool = True
) -> Recipe:
    """Return the recipe that results from a command's argument and options.

    Args:
        subject: a recipe file, or a data set to merge with the data sets in ``data.source``. None if the command has
            no argument.
        options: dictionary that maps dotted recipe keys to the values of the command's options. None for an option
            that was not used.
        assignments: ``KEY=VALUE`` strings, which take precedence over ``options``.
        needs_data: raise an error if ``data.source`` is empty, so that nobody trains on the default data by mistake.

    Raises:
        RecipeError: a key or a value is invalid, or no data set is given.
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
    if needs_data and not recipe.data.source:
        raise RecipeError(
            "no data set is given: pass an image folder with one folder per class (edgerec train photos/ …) or an .npz "
            "file, or use --data digits to try edgerec on handwritten digits"
        )
    return recipe


def is_recipe(subject: str) -> bool:
    """Return whether a command's argument is a recipe file rather than data."""
    path = Path(subject)
    return path.suffix == ".toml" and not path.is_dir()


def _refuse_run(path: Path) -> None:
    from edgerec.errors import RecipeError

    if (path / "recipe.toml").is_file():
        raise RecipeError(
            f"{path} is a run, not a data set. Resume its training with {command('train', '--resume', '--out', path)}, "
            f"or train a new run with its recipe: {command('train', path / 'recipe.toml', '--out', 'NEW_RUN')}"
        )
