"""Implement the ``edgerec cache`` command."""

from __future__ import annotations

import time

import typer

from edgerec.cli.output import JsonOption, say, show_json, show_log, table


def cache(
    clear: bool = typer.Option(False, "--clear", help="Delete all entries that no process is using."),
    limit: str | None = typer.Option(
        None,
        metavar="SIZE",
        help="Delete the least recently used entries until the cache is no larger than this size, such as 5G.",
    ),
    json: bool = JsonOption,
) -> None:
    """Show or clear the cache of preprocessed images.

    The cache is limited to 20 GB. To change the limit, set the environment variable EDGEREC_CACHE_LIMIT (such as 50G,
    or none for no limit).
    """
    from edgerec.data.cache_limit import pixel_cache
    from edgerec.utils.byte_sizes import parse_size

    if clear and limit is not None:
        raise typer.BadParameter(
            "--limit cannot be combined with --clear, which deletes all entries: use only one of them",
            param_hint="--limit",
        )
    try:
        limit_bytes = None if limit is None else parse_size(limit)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--limit") from None
    show_log()
    report = pixel_cache(clear=clear, limit_bytes=limit_bytes)
    if json:
        show_json(report.to_dict())
        return
    rows = [
        (
            entry.source or entry.key,
            f"{entry.images:,}",
            "×".join(map(str, entry.input)),
            _size(entry.size_bytes),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used)) + (", in use" if entry.in_use else ""),
        )
        for entry in report.entries
    ]
    if rows:
        table(("source", "images", "input", "size", "last used"), rows)
    if report.removed:
        say(f"deleted  {len(report.removed)} entries, {_size(sum(entry.size_bytes for entry in report.removed))}")
    limit_text = "no limit" if report.limit_bytes is None else f"limit {_size(report.limit_bytes)}"
    say(f"total    {_size(report.size_bytes)} in {len(report.entries)} entries, {limit_text}  ({report.folder})")


def _size(size_bytes: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:,.1f} {unit}"
    return f"{size_bytes / 1000:,.1f} kB"
