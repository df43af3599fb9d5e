"""Write the generated reference pages: the command line from Typer, and the recipe keys from the recipe's dataclasses.

    python .ci/reference_pages.py

The pages are written to ``docs/reference/`` and are not under version control.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import typer

from edgerec import Recipe
from edgerec.cli.app import COMMANDS, app
from edgerec.cli.help import grouped_parameters

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
KEYS = ["| key | default | meaning (allowed values) |", "|---|---|---|"]


def command_line() -> str:
    """Return a Markdown page with all commands, arguments and options, in the groups of ``--help``."""
    lines = ["# Command line", "", "This page is generated from the help texts of the commands.", ""]
    root = typer.main.get_command(app)
    with root.context_class(root, info_name="edgerec") as context:
        for task, names in COMMANDS.items():
            lines += [f"## {task}", ""]
            for name in names:
                lines += describe(name, root.get_command(context, name), context, "###")
    return "\n".join(lines)


def describe(name: str, command: Any, parent: Any, heading: str) -> list[str]:
    """Return the lines that describe a command and its subcommands."""
    with command.context_class(command, info_name=name, parent=parent) as context:
        lines = [f"{heading} {context.command_path}", "", command.help or "", ""]
        if hasattr(command, "commands"):
            for inner in sorted(command.commands):
                lines += describe(inner, command.commands[inner], context, f"{heading}#")
            return lines
        usage = " ".join(context.get_usage().removeprefix("Usage: ").split())
        lines += ["```text", usage, "```", ""]
        for group, records in grouped_parameters(command, context).items():
            lines += [f"| {group} | description |", "|---|---|"]
            for option, text in records:
                if "--help" not in option:
                    lines.append(f"| `{cell(option)}` | {cell(text)} |")
            lines += [""]
        return lines


def cell(text: str) -> str:
    """Escape a text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def recipe_keys() -> str:
    """Return a Markdown page with all recipe keys, their defaults and their meaning."""
    lines = [
        "# Recipe keys",
        "",
        "This page is generated from the recipe's dataclasses. `edgerec recipe` prints the same",
    ]
    lines += ["as a TOML file.", "", "## Top level", "", *KEYS]
    for line in Recipe().to_toml(comments=True).splitlines():
        code, _, comment = line.partition("#")
        if line.startswith("["):
            lines += ["", f"## {code.strip()}", "", comment.strip(), "", *KEYS]
        elif "=" in code:
            key, _, value = code.partition("=")
            tomllib.loads(code)  # the page must show valid TOML
            lines.append(f"| `{key.strip()}` | `{value.strip()}` | {cell(comment.strip())} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Write the pages."""
    REFERENCE.mkdir(exist_ok=True)
    for name, page in (("cli.md", command_line()), ("recipe.md", recipe_keys())):
        (REFERENCE / name).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
