"""Expand ``~`` in options and arguments, because shells do not expand it in ``--out=~/x`` or inside quotes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# Command-line parameters whose values are never paths, such as patterns, names and secrets.
_NOT_PATHS = frozenset({"group_by", "skip", "float_layers", "study", "web_token", "mqtt_discovery", "roi", "decision"})


def expand_user_paths(command: Any) -> None:
    """Make a Click command and its subcommands expand ``~`` in option and argument values."""
    for subcommand in getattr(command, "commands", {}).values():
        expand_user_paths(subcommand)
    for parameter in command.params:
        if parameter.name not in _NOT_PATHS:
            parameter.callback = partial(_expanded, parameter.callback)


def _expanded(callback: Callable[..., Any] | None, ctx: Any, parameter: Any, value: Any) -> Any:
    value = [_expand(item) for item in value] if isinstance(value, list | tuple) else _expand(value)
    return value if callback is None else callback(ctx, parameter, value)


def _expand(value: Any) -> Any:
    from edgerec.utils.atomic import user_path

    if isinstance(value, Path):
        return user_path(value)
    if not isinstance(value, str) or "~" not in value:
        return value
    key, equals, text = value.rpartition("=")  # A path can follow an equals sign, e.g. data.source=~/photos.
    return f"{key}{equals}{user_path(text)}" if text.startswith("~") and "://" not in key else value
