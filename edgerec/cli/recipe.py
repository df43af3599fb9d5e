"""``edgerec recipe``"""

from __future__ import annotations

from pathlib import Path

import typer


def recipe(
    file: Path | None = typer.Argument(None, help="A recipe to check and complete; the default one if left out."),
    assignments: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help="Change a key: train.epochs=3."),
) -> None:
    """Print a complete recipe, with a comment on every key."""
    from edgerec.recipe import Recipe, parse_assignment

    wanted = Recipe.from_toml(file) if file else Recipe()
    wanted = wanted.override(dict(parse_assignment(text) for text in assignments))
    typer.echo(wanted.to_toml(comments=True), nl=False)
