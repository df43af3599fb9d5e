"""Figures as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgerec.contract.files import replacing
from edgerec.optional import require

if TYPE_CHECKING:
    from edgerec.runtime.benchmark import BenchmarkReport

BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#718096"


def benchmark_plot(report: BenchmarkReport, path: Path) -> None:
    """Draw stages and the longest operators into a PNG."""
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    longest = sorted(report.operators, key=lambda operator: -operator.ms)[:15][::-1]
    figure = Figure(figsize=(9, 2.6 + 0.28 * len(longest)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 if longest else 1, 1, height_ratios=[4, len(longest)] if longest else [1], squeeze=False)
    stages = report.stages[::-1]
    top = axes[0][0]
    for name, color, values in (
        ("p99", "#cbd5e0", [s.p99_ms for s in stages]),
        ("p95", "#90cdf4", [s.p95_ms for s in stages]),
        ("p50", BLUE, [s.p50_ms for s in stages]),
    ):
        top.barh([s.name for s in stages], values, color=color, label=name)
    top.legend(loc="lower right", frameon=False)
    top.set_title(
        f"{Path(report.bundle).name} ({report.variant}): {report.fps:,.0f} pictures/s, "
        f"{report.peak_memory_bytes / 2**20:.0f} MiB, first answer after {report.cold_start_s:.2f} s",
        loc="left",
        fontsize=10,
    )
    if longest:
        below = axes[1][0]
        below.barh([f"{o.name}  {o.op}" for o in longest], [o.ms for o in longest], color=ORANGE)
        for at, operator in enumerate(longest):
            below.text(operator.ms, at, f"  {operator.part:.0%}", va="center", fontsize=8, color=GREY)
        below.set_title(f"the {len(longest)} longest of {len(report.operators)} operators", loc="left", fontsize=10)
    for row in axes:
        row[0].set_xlabel("ms")
        row[0].spines[["top", "right"]].set_visible(False)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
