"""Plot benchmark results."""

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

    from edgerec.runtime.benchmark import BenchmarkReport
    from edgerec.runtime.latency_percentiles import StageLatency
    from edgerec.runtime.operator_profile import OperatorTime

BLUE, ORANGE, GRAY = "#2b6cb0", "#dd6b20", "#4a5568"
PERCENTILES = {"p50": BLUE, "p95": "#90cdf4", "p99": "#cbd5e0"}
MOST_OPERATORS = 15
LONGEST_NAME = 60
# If the largest p99 exceeds OUTLIER times the largest p95, bars are cut off at CUT times the largest p95.
OUTLIER, CUT = 2.0, 1.5
# Space to the right of the bars for their values, as a fraction of the axis length.
MARGIN = 0.36


def benchmark_plot(report: BenchmarkReport, path: Path) -> None:
    """Save a PNG plot of the latency of each stage and of the slowest operators."""
    path = checked_output(path, suffixes=(".png",))
    save_figure(benchmark_figure(report), path)


def benchmark_figure(report: BenchmarkReport) -> Figure:
    """Return a Matplotlib figure that shows the latency of each stage and of the slowest operators."""
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    slowest = sorted(report.operators, key=lambda operator: -operator.ms)[:MOST_OPERATORS]
    heights = [1.2 + 0.38 * len(report.stages)] + ([0.8 + 0.28 * len(slowest)] if slowest else [])
    figure = Figure(figsize=(9, 0.8 + sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    plots = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    figure.suptitle(_title(report), x=0.01, ha="left", fontsize=11)
    _draw_stages(plots[0], report.stages)
    if slowest:
        _draw_operators(plots[1], slowest, len(report.operators))
    for axes in plots:
        axes.invert_yaxis()
        axes.set_xlabel("ms")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def axis_end_ms(stages: Sequence[StageLatency]) -> float:
    """Return the upper limit of the latency axis in milliseconds. Bars of outliers are cut off."""
    p95_ms, p99_ms = max(stage.p95_ms for stage in stages), max(stage.p99_ms for stage in stages)
    return p99_ms if p99_ms <= OUTLIER * p95_ms else CUT * p95_ms


def _title(report: BenchmarkReport) -> str:
    source = report.source or "its golden images"
    if len(source) > LONGEST_NAME:
        # Shorten URLs and paths in the middle to keep the host and the file name.
        source = f"{source[: LONGEST_NAME // 2]}…{source[1 - LONGEST_NAME // 2 :]}"
    # Escape dollar signs, which Matplotlib would interpret as math delimiters.
    return (
        f"{Path(report.bundle).name} ({report.variant}), measured on {source}\n".replace("$", r"\$")
        + f"{report.fps:,.1f} images/s, {report.peak_memory_bytes / 2**20:.0f} MiB, "
        + f"first prediction after {report.cold_start_s:.2f} s"
    )


def _draw_stages(axes: Axes, stages: Sequence[StageLatency]) -> None:
    end_ms = axis_end_ms(stages)
    names = [stage.name for stage in stages]
    bars = {}
    for name, color in reversed(PERCENTILES.items()):
        values = [min(getattr(stage, f"{name}_ms"), end_ms) for stage in stages]
        bars[name] = axes.barh(names, values, color=color, label=name)
    for position, stage in enumerate(stages):
        cut = stage.p99_ms > end_ms
        numbers = " · ".join(_ms(value) for value in (stage.p50_ms, stage.p95_ms, stage.p99_ms))
        axes.text(
            min(stage.p99_ms, end_ms),
            position,
            f"  {numbers}{' (cut)' if cut else ''}",
            va="center",
            fontsize=8.5,
            color=GRAY,
        )
        if cut:
            for x in (0.985 * end_ms, 0.97 * end_ms):
                slant = 0.006 * end_ms
                axes.plot([x - slant, x + slant], [position + 0.42, position - 0.42], color="w", lw=2)
    axes.set_xlim(0, end_ms * (1 + MARGIN) or 1)
    axes.legend(
        [bars[name] for name in PERCENTILES],
        PERCENTILES,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=len(PERCENTILES),
        frameon=False,
        fontsize=9,
        borderaxespad=0.2,
    )


def _draw_operators(axes: Axes, slowest: Sequence[OperatorTime], total: int) -> None:
    axes.barh([f"{operator.name}  {operator.op}" for operator in slowest], [o.ms for o in slowest], color=ORANGE)
    for position, operator in enumerate(slowest):
        label = f"  {_ms(operator.ms)} · {operator.part:.0%}"
        axes.text(operator.ms, position, label, va="center", fontsize=8.5, color=GRAY)
    axes.set_xlim(0, max(operator.ms for operator in slowest) * (1 + MARGIN / 2) or 1)
    axes.set_title(f"the {len(slowest)} slowest of {total} operators", loc="left", fontsize=10)


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"
