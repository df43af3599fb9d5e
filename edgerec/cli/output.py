"""Print results to stdout, and log messages and progress bars to stderr."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import typer

from edgerec.utils.command_line import command
from edgerec.utils.text import printable, to_json

if TYPE_CHECKING:
    from edgerec.tflite.edgetpu.compiler import EdgeTpuReport
    from edgerec.utils.progress import Listener

JsonOption = typer.Option(False, "--json", help="Print the result as JSON.")


def show_json(value: Any) -> None:
    """Print a value as JSON to stdout."""
    typer.echo(to_json(value, indent=1))


def say(text: str, *, err: bool = False) -> None:
    """Print a line to stdout, or to stderr if ``err`` is true, escaping unprintable characters."""
    typer.echo(printable(text), err=err)


def suggest(*words: object, note: str = "") -> None:
    """Print the recommended next command with an optional shell comment."""
    say(f"next     {command(*words)}{f'  # {note}' if note else ''}")


def repeat_command(context: typer.Context, *more: str) -> str:
    """Return the current command line with additional options."""
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


def report_worker(json: bool) -> bool:
    """Return True if this process is a non-chief worker in a ``TF_CONFIG`` cluster.

    Only the chief writes results. Other workers print their index and the chief's address.
    """
    from edgerec.train.worker_handshake import Cluster

    cluster = Cluster.from_environment()
    if cluster is None or cluster.chief:
        return False
    if json:
        show_json({"worker": cluster.index, "chief": cluster.addresses[0]})
    else:
        say(f"done     {cluster.name(0)} has the result")
    return True


def parse_duration_s(text: str, option: str) -> float:
    """Parse a duration such as ``90s``, ``90m``, ``8h`` or ``2d``, and return it in seconds.

    ``option`` is the command-line option, which the error message names.

    Raises:
        typer.BadParameter: the text is not a duration, or the duration is 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None or not float(match[1]):
        raise typer.BadParameter(f"expected a duration such as 90s, 90m, 8h or 2d, got {text!r}", param_hint=option)
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def table(header: Sequence[str], rows: Sequence[Sequence[str]], optional: Sequence[str] = ()) -> None:
    """Print a table to stdout, with the first column left-aligned and all others right-aligned.

    If the terminal is too narrow, optional columns are omitted and long cells are wrapped. If stdout is not a terminal,
    all columns are printed.

    Args:
        header: column names.
        rows: cells of each row.
        optional: columns that may be omitted, in the order of removal.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    width = _terminal_width()
    if width is None:
        _print_table([header, *rows], len)
        return
    from rich.cells import cell_len

    lines, omitted = [list(header), *map(list, rows)], []
    for name in optional:
        if _table_width(lines) <= width or lines[0].count(name) != 1:
            continue
        column = lines[0].index(name)
        lines = [[*line[:column], *line[column + 1 :]] for line in lines]
        omitted.append(name)
    if _table_width(lines) <= width:
        _print_table(lines, cell_len)
    else:
        _print_wrapped(lines, width)
    if omitted:
        note = f"(not shown: {', '.join(omitted)}; a wider terminal or --json shows all columns)"
        for line in textwrap.wrap(note, max(width, 40)):
            say(line)


def pairs(rows: Sequence[tuple[str, str]], indent: str = "", left: int = 0) -> None:
    """Print names and descriptions in two columns, wrapping the descriptions to fit the terminal.

    Args:
        rows: name and description of each row.
        indent: prefix of each line.
        left: width of the first column, including the gap between the columns; 0 fits it to the longest name.
    """
    left = left or max(len(name) for name, _ in rows) + 2
    width = _terminal_width()
    for name, text in rows:
        start = f"{indent}{name:<{left}}"
        if width is None or len(start) + len(text) <= width:
            say(start + text)
        else:
            room = max(20, width - len(start))
            following = " " * len(start)
            for line in textwrap.wrap(text, len(start) + room, initial_indent=start, subsequent_indent=following):
                say(line)


def _terminal_width() -> int | None:
    """Return the terminal's width in columns, or None if stdout is not a terminal."""
    if not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


def _table_width(lines: Sequence[Sequence[str]]) -> int:
    from rich.cells import cell_len

    return sum(max(cell_len(cell) for cell in column) + 2 for column in zip(*lines, strict=True)) - 2


def _print_table(lines: Sequence[Sequence[str]], measure: Callable[[str], int]) -> None:
    widths = [max(measure(cell) for cell in column) for column in zip(*lines, strict=True)]
    for line in lines:
        gaps = [" " * (width - measure(cell)) for cell, width in zip(line, widths, strict=True)]
        cells = [line[0] + gaps[0], *(gap + cell for cell, gap in zip(line[1:], gaps[1:], strict=True))]
        say("  ".join(cells).rstrip())


def _print_wrapped(lines: Sequence[Sequence[str]], width: int) -> None:
    """Print a table whose text columns are wrapped to the width of the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")
    for number, (name, *cells) in enumerate(zip(*lines, strict=True)):
        numeric = all(re.fullmatch(r"[^A-Za-z]*|[0-9]+×[0-9×]+", cell) for cell in cells)
        no_wrap = numeric or (number == 0 and 10 * max(map(len, cells)) <= 3 * width)
        grid.add_column(name, justify="right" if numeric and number else "left", no_wrap=no_wrap, overflow="fold")
    for line in lines[1:]:
        grid.add_row(*map(Text, line))
    console = Console(width=width, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(grid)
    for line in capture.get().splitlines():
        say(line.rstrip())


def show_edgetpu(report: EdgeTpuReport) -> None:
    """Print a summary of the Edge TPU compilation."""
    state = "compiled" if report.compiler else "checked, not compiled"
    say(f"edge tpu {report.operators} operators, all predicted to run on the Edge TPU; {state}")
    if report.differences:
        say(f"         the compiler left {len(report.differences)} of them on the CPU")


def parity_table(forms: Sequence[dict[str, Any]]) -> None:
    """Print the accuracy, agreement and size of a model's variants.

    For an autoencoder, print the reconstruction error and the fraction of images recognized as known instead of the
    accuracy.
    """
    is_autoencoder = "error" in forms[0]
    table(
        ("variant", *(("error", "known") if is_autoencoder else ("top-1",)), "agreement", "bytes", "gzip bytes"),
        [
            (
                row["name"],
                *((f"{row['error']:.5f}",) if is_autoencoder else ()),
                f"{row['top1']:.2%}",
                f"{row['agreement']:.2%}",
                f"{row['size_bytes']:,}" if row["size_bytes"] else "–",
                f"{row['gzip_bytes']:,}" if row["gzip_bytes"] else "–",
            )
            for row in forms
        ],
    )


def show_log() -> None:
    """Print edgerec's log messages to stderr, and silence TensorFlow and OpenCV."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    log = logging.getLogger("edgerec")
    if not log.handlers:
        handler = _Stderr()
        handler.setFormatter(_Formatter())
        log.addHandler(handler)
    level = os.environ.get("EDGEREC_LOG", "INFO").upper()
    log.setLevel(level if level in logging.getLevelNamesMapping() else "INFO")
    log.propagate = False


class _Stderr(logging.Handler):
    """Handler that looks up ``sys.stderr`` for each message, because tests may replace the stream."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError, ValueError):  # Writing fails if the terminal was closed.
            typer.echo(self.format(record), err=True)


class _Formatter(logging.Formatter):
    """Formatter that escapes unprintable characters and prefixes warnings and errors with their level."""

    def format(self, record: logging.LogRecord) -> str:
        message = printable(record.getMessage())
        return message if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {message}"


@contextmanager
def progress() -> Iterator[Listener]:
    """Context manager that shows a progress bar with the remaining time if stderr is a terminal."""
    show_log()
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    from edgerec.utils.progress import Progress as Step

    console = Console(stderr=True)
    # Shorten the progress bar and truncate its text, so that both fit on one line of the terminal.
    # Disable Rich's markup, because file names may contain brackets.
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=max(8, min(40, console.width // 6))),
        TimeRemainingColumn(),
        TextColumn(
            "{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
        ),
    )
    bars: dict[str, Any] = {}
    with Progress(*columns, console=console, transient=True, expand=True, disable=not console.is_terminal) as display:

        def listen(step: Step) -> None:
            if step.may_ask_user:
                display.stop()
                return
            if not display.live.is_started:
                display.start()
            if step.stage not in bars:
                for other in bars.values():
                    display.update(other, visible=False)
                bars[step.stage] = display.add_task(step.stage, total=step.total, text="")
            bar, text = bars[step.stage], printable(step.text)
            display.update(bar, completed=step.done, total=step.total, text=text, visible=step.done < step.total)

        with log_above(display.console):
            yield listen


@contextmanager
def log_above(console: Any) -> Iterator[None]:
    """Context manager that prints log messages above a live display of ``rich``, if the console is a terminal."""
    log = logging.getLogger("edgerec")
    handlers = log.handlers[:]
    if console.is_terminal:
        handler = _AboveProgressBar(console)
        handler.setFormatter(_Formatter())
        log.handlers = [handler]
    try:
        yield
    finally:
        log.handlers = handlers


class _AboveProgressBar(logging.Handler):
    """Handler that prints log records above the progress bar."""

    def __init__(self, console: Any) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)
