"""Figures as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgerec.utils.atomic import checked_output
from edgerec.utils.figures import save_figure
from edgerec.utils.optional import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from edgerec.runtime.benchmark import BenchmarkReport, Stage
    from edgerec.runtime.profile import OperatorTime

BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#4a5568"
PERCENTILES = {"p50": BLUE, "p95": "#90cdf4", "p99": "#cbd5e0"}
MOST_OPERATORS = 15
LONGEST_NAME = 60
# A bar that is so many times as long as all others may be is cut, or one hiccup would leave them without length.
OUTLIER, CUT = 2.0, 1.5
# Room for the numbers, in parts of the longest bar.
MARGIN = 0.36


def benchmark_plot(report: BenchmarkReport, path: Path) -> None:
    """Draw stages and the longest operators into a PNG."""
    path = checked_output(path, suffixes=(".png",))
    save_figure(benchmark_figure(report), path)


def benchmark_figure(report: BenchmarkReport) -> Figure:
    """The same as a figure of Matplotlib."""
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    longest = sorted(report.operators, key=lambda operator: -operator.ms)[:MOST_OPERATORS]
    rows = [1.2 + 0.38 * len(report.stages)] + ([0.8 + 0.28 * len(longest)] if longest else [])
    figure = Figure(figsize=(9, 0.8 + sum(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), 1, height_ratios=rows, squeeze=False)[:, 0]
    figure.suptitle(_title(report), x=0.01, ha="left", fontsize=11)
    _draw_stages(axes[0], report.stages)
    if longest:
        _draw_operators(axes[1], longest, len(report.operators))
    for one in axes:
        one.invert_yaxis()
        one.set_xlabel("ms")
        one.spines[["top", "right"]].set_visible(False)
    return figure


def axis_end_ms(stages: Sequence[Stage]) -> float:
    """Where the bars end: with the longest p99, or before it when that is out of all proportion to every p95."""
    p95_ms, p99_ms = max(stage.p95_ms for stage in stages), max(stage.p99_ms for stage in stages)
    return p99_ms if p99_ms <= OUTLIER * p95_ms else CUT * p95_ms


def _title(report: BenchmarkReport) -> str:
    source = report.source or "its golden pictures"
    if len(source) > LONGEST_NAME:
        source = f"{source[: LONGEST_NAME // 2]}…{source[1 - LONGEST_NAME // 2 :]}"  # a host begins, a file's name ends
    # Dollar signs would begin a formula.
    return (
        f"{Path(report.bundle).name} ({report.variant}), measured on {source}\n".replace("$", r"\$")
        + f"{report.fps:,.1f} pictures/s, {report.peak_memory_bytes / 2**20:.0f} MiB, "
        + f"first answer after {report.cold_start_s:.2f} s"
    )


def _draw_stages(axes: Axes, stages: Sequence[Stage]) -> None:
    end_ms = axis_end_ms(stages)
    names = [stage.name for stage in stages]
    drawn = {}
    for name, color in reversed(PERCENTILES.items()):
        values = [min(getattr(stage, f"{name}_ms"), end_ms) for stage in stages]
        drawn[name] = axes.barh(names, values, color=color, label=name)
    for at, stage in enumerate(stages):
        cut = stage.p99_ms > end_ms
        numbers = " · ".join(_ms(value) for value in (stage.p50_ms, stage.p95_ms, stage.p99_ms))
        axes.text(
            min(stage.p99_ms, end_ms),
            at,
            f"  {numbers}{' (cut)' if cut else ''}",
            va="center",
            fontsize=8.5,
            color=GREY,
        )
        if cut:  # two strokes across the bar
            for back in (0.985, 0.97):
                axes.plot([end_ms * (back - 0.006), end_ms * (back + 0.006)], [at + 0.42, at - 0.42], color="w", lw=2)
    axes.set_xlim(0, end_ms * (1 + MARGIN) or 1)
    axes.legend(
        [drawn[name] for name in PERCENTILES],
        PERCENTILES,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=len(PERCENTILES),
        frameon=False,
        fontsize=9,
        borderaxespad=0.2,
    )


def _draw_operators(axes: Axes, longest: Sequence[OperatorTime], of: int) -> None:
    axes.barh([f"{operator.name}  {operator.op}" for operator in longest], [o.ms for o in longest], color=ORANGE)
    for at, operator in enumerate(longest):
        axes.text(operator.ms, at, f"  {_ms(operator.ms)} · {operator.part:.0%}", va="center", fontsize=8.5, color=GREY)
    axes.set_xlim(0, max(operator.ms for operator in longest) * (1 + MARGIN / 2) or 1)
    axes.set_title(f"the {len(longest)} longest of {of} operators", loc="left", fontsize=10)


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"
