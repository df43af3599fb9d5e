"""Show the progress and the outcomes of a deployment to several devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgerec.cli.output import log_above, say, show_log, table
from edgerec.utils.text import printable

if TYPE_CHECKING:
    from edgerec.deploy import DeviceOutcome, Step

_BAR_WIDTH = 12


@contextmanager
def fleet_progress(
    names: Sequence[str], *, quiet: bool = False
) -> Iterator[tuple[Callable[[Step], None], Callable[[DeviceOutcome], None]]]:
    """Return a context manager that shows the progress of deployments to several devices.

    If stderr is a terminal, a live table shows all devices. Otherwise, one line is printed for each completed step. The
    context manager yields two functions, which must be called with each step and each outcome.

    Args:
        names: names of the devices.
        quiet: whether to print nothing if stderr is not a terminal.
    """
    show_log()
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    width = max(map(len, names), default=0)
    if not console.is_terminal:

        def show_step(step: Step) -> None:
            if step.state != "running" and not quiet:
                say(f"{step.device:<{width}}  {step.name:<8} {step.text}", err=True)

        def show_outcome(outcome: DeviceOutcome) -> None:
            if not quiet:
                say(f"{outcome.device:<{width}}  {outcome.state}", err=True)

        yield show_step, show_outcome
        return
    rows = dict.fromkeys(names, ("waiting", 0.0, ""))
    active: set[str] = set()

    def step_row(step: Step) -> None:
        fraction = min(1.0, step.done / step.total) if step.total else 0.0
        rows[step.device] = (step.name, fraction, step.text)
        active.add(step.device)

    def outcome_row(outcome: DeviceOutcome) -> None:
        rows[outcome.device] = (outcome.state, 0.0, outcome.error)
        active.discard(outcome.device)

    def render() -> Any:
        visible = list(rows.items())
        if len(visible) >= console.height:  # Show active devices first if not all devices fit.
            visible.sort(key=lambda row: row[0] not in active)
        return _progress_table(visible)

    with (
        Live(get_renderable=render, console=console, refresh_per_second=4, transient=True),
        log_above(console),
    ):
        yield step_row, outcome_row


def _progress_table(rows: Sequence[tuple[str, tuple[str, float, str]]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, show_header=False, padding=(0, 2, 0, 0), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, min_width=11)
    grid.add_column(no_wrap=True, min_width=_BAR_WIDTH)
    grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for name, (state, fraction, text) in rows:
        bar = "━" * round(fraction * _BAR_WIDTH)
        grid.add_row(Text(printable(name)), Text(state), Text(bar), Text(printable(text)))
    return grid


def show_outcomes(outcomes: Sequence[DeviceOutcome]) -> None:
    """Print a table of the outcomes and all error messages. Print the log lines of the devices to stderr."""
    rows = [
        (
            outcome.device,
            outcome.state,
            outcome.result.release or "–" if outcome.result else "–",
            f"{outcome.result.sent_bytes:,}" if outcome.result else "–",
            f"{outcome.seconds:.1f} s",
        )
        for outcome in outcomes
    ]
    table(("device", "state", "release", "bytes sent", "time"), rows, optional=("bytes sent", "time"))
    for outcome in outcomes:
        for line in outcome.log:
            say(f"{outcome.device}: {line}", err=True)
    for outcome in outcomes:
        if outcome.error:
            say(f"{outcome.device}: {outcome.error}")
    succeeded = f"{sum(outcome.succeeded for outcome in outcomes)} of {len(outcomes)} devices"
    if any(outcome.state == "planned" for outcome in outcomes):
        say(f"planned  {succeeded}; no changes were made (--dry-run)")
    else:
        say(f"done     {succeeded} succeeded")
