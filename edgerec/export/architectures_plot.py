"""The architectures as a picture: what they compute against how large they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgerec.contract.files import checked_output, replacing
from edgerec.optional import require
from edgerec.runtime.plots import BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from edgerec.export.architectures import ArchitectureReport


def architectures_plot(reports: Sequence[ArchitectureReport], path: Path) -> None:
    """Draw all into a PNG: to the left is quick, below is small; blue ones have ImageNet's weights."""
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    first = reports[0]
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for colour, said in ((BLUE, "with ImageNet's weights"), (ORANGE, "without")):
        chosen = [report for report in reports if bool(report.imagenet_widths) == (colour == BLUE)]
        if chosen:
            x, y = [report.macs / 1e6 for report in chosen], [report.int8_bytes / 1e6 for report in chosen]
            axes.scatter(x, y, color=colour, label=said, zorder=3)
    for report in reports:
        right = _has_room(report, reports)
        axes.annotate(
            report.name,
            (report.macs / 1e6, report.int8_bytes / 1e6),
            xytext=(6 if right else -6, 0),
            textcoords="offset points",
            ha="left" if right else "right",
            va="center",
            fontsize=8,
            color=GREY,
        )
    axes.set(xscale="log", yscale="log", xlabel="million multiply-adds a picture", ylabel="int8 model, MB")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(which="both", color="#edf2f7")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    size = f"{first.input_size}×{first.input_size} RGB pictures, {first.classes} classes, width {first.width:g}"
    axes.set_title(f"Architectures for {size}", loc="left", fontsize=11)
    with replacing(checked_output(path, suffixes=(".png",))) as partial:
        figure.savefig(partial, format="png", dpi=120)


def _has_room(report: ArchitectureReport, reports: Sequence[ArchitectureReport]) -> bool:
    """Whether a name can stand to the right of its point."""
    near = [r for r in reports if abs(math.log(r.int8_bytes / report.int8_bytes)) < 0.1]
    behind = any(1 < r.macs / report.macs < 1.5 for r in near)
    return not behind and report.macs < 0.2 * max(r.macs for r in reports)
