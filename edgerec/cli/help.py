"""Command classes whose plain-text ``--help`` groups options and commands under headings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typer.core import TyperCommand, TyperGroup


class GroupedCommand(TyperCommand):
    """A command that lists the options of each ``rich_help_panel`` under a separate heading.

    Options without a ``rich_help_panel`` come first. Typer ignores ``rich_help_panel`` unless Rich formats the help,
    and importing Rich makes ``--help`` slower.

    The error about an unexpected argument states how to correct the command.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.allow_extra_args = True
        rest = super().parse_args(ctx, args)
        if rest and not ctx.resilient_parsing:
            accepted = [str(each.metavar) for each in self.params if each.param_type_name == "argument"]
            takes = f"takes only {' '.join(accepted)}" if accepted else "takes no arguments"
            ctx.fail(
                f"{ctx.command_path} {takes}: remove {', '.join(map(repr, rest))}. If a value belongs to an option, "
                "put the name of the option before the value. If a path contains spaces, put the path in quotes"
            )
        return rest

    def format_options(self, ctx: Any, formatter: Any) -> None:
        write_parameters(self, ctx, formatter)


class GroupedCommands(TyperGroup):
    """A command group that lists its commands, grouped by :meth:`sections`, before its options."""

    def sections(self, ctx: Any) -> Mapping[str, Mapping[str, str]]:
        """Return the names and summaries of the commands, grouped by heading."""
        commands: dict[str, Any] = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        return {"Commands": {name: command.get_short_help_str(100) for name, command in commands.items()}}

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections = self.sections(ctx)
        name_width = max(len(name) for commands in sections.values() for name in commands)
        for heading, commands in sections.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(name_width), summary) for name, summary in commands.items()])
        write_parameters(self, ctx, formatter)


def write_parameters(command: Any, ctx: Any, formatter: Any) -> None:
    """Write a command's arguments and options to a help formatter, with one section per group."""
    for heading, records in grouped_parameters(command, ctx).items():
        with formatter.section(heading):
            formatter.write_dl(records)


def grouped_parameters(command: Any, ctx: Any) -> dict[str, list[tuple[str, str]]]:
    """Return the names and help texts of a command's parameters, grouped by heading."""
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for parameter in command.get_params(ctx):
        default_heading = "Arguments" if parameter.param_type_name == "argument" else "Options"
        record = parameter.get_help_record(ctx)
        if record is not None and default_heading == "Arguments":
            record = parameter.metavar or record[0], record[1]  # Omit the type name that Typer appends.
        if record is not None:
            sections.setdefault(getattr(parameter, "rich_help_panel", None) or default_heading, []).append(record)
    return {heading: records for heading, records in sections.items() if records}
