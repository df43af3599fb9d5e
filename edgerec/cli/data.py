"""``edgerec data show | check``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgerec.cli.output import JsonOption, progress, say, show_json

if TYPE_CHECKING:
    from edgerec.contract.recipe import Recipe

app = typer.Typer(help="Look at a data set and find what is wrong with it.", no_args_is_help=True)

_SUBJECT = typer.Argument(
    ..., metavar="DATA|RECIPE.toml|RUN", help="A data set as for train, or whose recipe says which."
)
_SET = typer.Option([], "--set", metavar="KEY=VALUE", help="Change a key of the recipe: augment.cutout=0.3.")
_OVERWRITE = typer.Option(False, "--overwrite", help="Replace the PNG.")


@app.command()
def show(
    subject: str = _SUBJECT,
    augment: bool = typer.Option(False, "--augment", help="Show what augmentation makes of the pictures."),
    out: Path = typer.Option(Path("sheet.png"), "--out", "-o", help="The PNG."),
    assignments: list[str] = _SET,
    overwrite: bool = _OVERWRITE,
    json: bool = JsonOption,
) -> None:
    """Draw a contact sheet: a row per class, as the model sees it."""
    recipe = _recipe(subject, assignments)
    with progress() as listener:
        from edgerec.data.show import show as draw
        from edgerec.models import find

        least = find(recipe.model.arch).least_size_px
        sheet = draw(recipe, out, augment=augment, overwrite=overwrite, least_size_px=least, listener=listener)
    if json:
        show_json(sheet.to_dict())
        return
    say(f"sheet    {sheet.path}  ({sum(sheet.counts.values()):,} pictures of {len(sheet.counts)} classes)")


def _recipe(subject: str, assignments: list[str]) -> Recipe:
    """The recipe of a file or a run, or the default one with the data that is named."""
    from edgerec.contract.recipe import Recipe, parse_assignment

    path = Path(subject)
    if path.suffix == ".toml":
        recipe = Recipe.from_toml(path)
    elif (path / "recipe.toml").is_file():
        recipe = Recipe.from_toml(path / "recipe.toml")
    else:
        recipe = Recipe().override({"data.source": subject}, "command line")
    return recipe.override(dict(map(parse_assignment, assignments)))
