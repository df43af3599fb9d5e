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
from edgerec.cli.app import app

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"


def command_line() -> str:
    """Return a Markdown page with all commands, arguments and options."""
    lines = ["# Command line", "", "This page is generated from the help texts of the commands.", ""]
    root = typer.main.get_command(app)
    with root.context_class(root, info_name="edgerec") as context:
        for name in sorted(root.list_commands(context)):
            lines += _command(name, root.get_command(context, name), context)
    return "\n".join(lines)


def _command(name: str, command: Any, parent: Any) -> list[str]:
    with command.context_class(command, info_name=name, parent=parent) as context:
        lines = [f"## edgerec {context.command_path.split(' ', 1)[1]}", "", command.help or "", ""]
        if hasattr(command, "commands"):
            for inner in sorted(command.commands):
                lines += [line.replace("## ", "### ", 1) for line in _command(inner, command.commands[inner], context)]
            return lines
        lines += ["```text", " ".join(context.get_usage().removeprefix("Usage: ").split()), "```", ""]
        records = [record for parameter in command.params if (record := _record(parameter, context))]
        if records:
            lines += ["| argument or option | description |", "|---|---|"]
            lines += [f"| `{_cell(option, code=True)}` | {_cell(text)} |" for option, text in records]
            lines += [""]
        return lines


def _record(parameter: Any, context: Any) -> tuple[str, str] | None:
    if getattr(parameter, "hidden", False):
        return None
    record: tuple[str, str] | None = parameter.get_help_record(context)
    if record is None and parameter.param_type_name == "argument":
        record = parameter.make_metavar(context), parameter.help or ""
    return record


def _cell(text: str, code: bool = False) -> str:
    text = text.replace("|", "\\|").replace("\n", " ")
    return text if code else text.replace("<", "&lt;")


def recipe_keys() -> str:
    """Return a Markdown page with all recipe keys, their defaults and their meaning."""
    lines = [
        "# Recipe keys",
        "",
        "This page is generated from the recipe's dataclasses. `edgerec recipe` prints the same",
        "",
    ]
    lines[-2] += " as a TOML file."
    section_lines: list[str] = []
    for line in Recipe().to_toml(comments=True).splitlines():
        code, _, comment = line.partition("#")
        if line.startswith("["):
            section = code.strip().strip("[]")
            section_lines += ["", f"## [{section}]", "", comment.strip(), "", *_HEADER]
        elif "=" in code:
            if not section_lines:
                section_lines = ["## Top level", "", *_HEADER]
            key, _, _ = code.partition("=")
            value = code.partition("=")[2].strip()
            tomllib.loads(f"value = {value}")  # the page must show valid TOML
            section_lines.append(f"| `{key.strip()}` | `{value}` | {_cell(comment.strip())} |")
    return "\n".join([*lines, *section_lines, ""])


_HEADER = ["| key | default | meaning (allowed values) |", "|---|---|---|"]


def main() -> None:
    """Write the pages."""
    REFERENCE.mkdir(exist_ok=True)
    for name, page in (("cli.md", command_line()), ("recipe.md", recipe_keys())):
        (REFERENCE / name).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
