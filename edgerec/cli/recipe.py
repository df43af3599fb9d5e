"""Implement the ``edgerec recipe`` command."""

from __future__ import annotations

from pathlib import Path

import typer

from edgerec.cli.recipe_options import SET_HELP


def recipe(
    file: Path | None = typer.Argument(
        None,
        metavar="RECIPE.toml",
        help="Recipe to validate and complete with default values. [default: the default recipe]",
    ),
    assignments: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help=SET_HELP),
) -> None:
    """Print a complete recipe with comments that explain every key."""
    from edgerec.recipe import Recipe, parse_assignment

    complete = Recipe.from_toml(file) if file else Recipe()
    complete = complete.override(dict(parse_assignment(text) for text in assignments))
    typer.echo(complete.to_toml(comments=True), nl=False)
