"""How the command line shows things: data to stdout, chatter and progress to stderr."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import typer

from edgerec.command_line import command

if TYPE_CHECKING:
    from edgerec.contract.progress import Listener

JsonOption = typer.Option(False, "--json", help="Print JSON, for scripts.")


def show_json(value: Any) -> None:
    """One JSON object to stdout."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


def say(text: str) -> None:
    """A line for people, to stdout."""
    typer.echo(text)


def suggest(*words: object, note: str = "") -> None:
    """Print the next command for a person, ready to be pasted into a shell; ``note`` becomes a shell comment."""
    say(f"next     {command(*words)}{f'  # {note}' if note else ''}")


def repeated(context: typer.Context, *more: str) -> str:
    """Return the command line that is running, with more options at its end."""
    arguments: list[object] = []
    options: list[object] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        source, flag = context.get_parameter_source(name), max(parameter.opts, key=len)
        if source is None or source.name != "COMMANDLINE" or flag in more:
            continue
        value = context.params[name]
        values = value if isinstance(value, list | tuple) else [value]
        if parameter.param_type_name == "argument":
            arguments += values
        elif isinstance(value, bool):
            options.append(flag if value else max(parameter.secondary_opts, key=len))
        else:
            options += [word for item in values for word in (flag, item)]
    return command(*context.command_path.split()[1:], *arguments, *options, *more)


def helped(json: bool) -> bool:
    """Whether this process helped another one that wrote the result; then it is said here."""
    from edgerec.train.rendezvous import Cluster

    cluster = Cluster.from_environment()
    if cluster is None or cluster.chief:
        return False
    if json:
        show_json({"worker": cluster.index, "chief": cluster.addresses[0]})
    else:
        say(f"done     {cluster.name(0)} has the result")
    return True


def seconds(text: str) -> float:
    """Of a time as people type it: ``90s``, ``90m``, ``8h`` or ``2d``; wrong usage for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is None or not float(found[1]):
        raise typer.BadParameter(f"{text} is no time: expected a number with s, m, h or d, as 90m")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table to stdout: the first column to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        cells = [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]
        typer.echo("  ".join(cells).rstrip())


def parity_table(forms: Sequence[dict[str, Any]]) -> None:
    """The parity table: top-1 (of an autoencoder: error, part known), agreement, bytes, gzip bytes."""
    again = "error" in forms[0]
    table(
        ("form", *(("error", "known") if again else ("top-1",)), "agreement", "bytes", "gzip bytes"),
        [
            (
                row["name"],
                *((f"{row['error']:.5f}",) if again else ()),
                f"{row['top1']:.2%}",
                f"{row['agreement']:.2%}",
                f"{row['size_bytes']:,}" if row["size_bytes"] else "–",
                f"{row['gzip_bytes']:,}" if row["gzip_bytes"] else "–",
            )
            for row in forms
        ],
    )


def chatter() -> None:
    """Show the library's log on stderr, and keep TensorFlow's own off it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    log = logging.getLogger("edgerec")
    if not log.handlers:
        handler = _Stderr()
        handler.setFormatter(_Formatter())
        log.addHandler(handler)
    level = os.environ.get("EDGEREC_LOG", "INFO").upper()
    log.setLevel(level if level in logging.getLevelNamesMapping() else "INFO")
    log.propagate = False


class _Stderr(logging.Handler):
    """Writes to what is stderr when a line is written: who calls the commands from Python may have changed it."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError, ValueError):  # a terminal that has gone ends nothing
            typer.echo(self.format(record), err=True)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        return message if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {message}"


@contextmanager
def progress() -> Iterator[Listener]:
    """A progress bar with time left on stderr while the block runs; nothing where stderr is no terminal."""
    chatter()
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from edgerec.contract.progress import Progress as Step

    console = Console(stderr=True)
    columns = (
        "[progress.description]{task.description}",
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    bars: dict[str, Any] = {}
    log = logging.getLogger("edgerec")
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as display:

        def listen(step: Step) -> None:
            if step.stage not in bars:
                for other in bars.values():
                    display.update(other, visible=False)
                bars[step.stage] = display.add_task(step.stage, total=step.total, text=step.text)
            bar = bars[step.stage]
            display.update(bar, completed=step.done, total=step.total, text=step.text, visible=step.done < step.total)

        handlers = log.handlers[:]
        if console.is_terminal:
            # Lines of the log go above the bar.
            above = _Above(display.console)
            above.setFormatter(_Formatter())
            log.handlers = [above]
        try:
            yield listen
        finally:
            log.handlers = handlers


class _Above(logging.Handler):
    def __init__(self, console: Any) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)
