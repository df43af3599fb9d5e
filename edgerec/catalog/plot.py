"""Plot the model size of each architecture against its number of multiply-adds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgerec.utils.atomic import checked_output
from edgerec.utils.figures import BLUE, DARK, ORANGE, label_log_axis, label_points, new_figure, save_figure

if TYPE_CHECKING:
    from edgerec.catalog.architectures import ArchitectureReport


def architectures_plot(reports: Sequence[ArchitectureReport], path: Path) -> None:
    """Plot each architecture as a labeled point, and save the plot as a PNG file.

    Architectures with ImageNet weights are blue, and all others are orange.
    """
    path, first = checked_output(path, suffixes=(".png",)), reports[0]
    figure = new_figure(9, 6.5)
    axes = figure.subplots()
    for color, label in ((BLUE, "with ImageNet weights"), (ORANGE, "without ImageNet weights")):
        chosen = [report for report in reports if bool(report.imagenet_widths) == (color == BLUE)]
        if chosen:
            x, y = [report.macs / 1e6 for report in chosen], [report.int8_bytes / 1e6 for report in chosen]
            axes.scatter(x, y, color=color, label=label, zorder=3)
    axes.set(xscale="log", yscale="log", xlabel="multiply-adds per image, millions", ylabel="int8 model size, MB")
    axes.margins(x=0.12, y=0.08)
    label_log_axis(axes.xaxis)
    label_log_axis(axes.yaxis)
    axes.grid(color="#edf2f7")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    size = f"{first.input_size}×{first.input_size} RGB images, {first.classes} classes, width {first.width:g}"
    axes.set_title(f"Architectures for {size}", loc="left", fontsize=11)
    points = [(report.macs / 1e6, report.int8_bytes / 1e6) for report in reports]
    label_points(axes, points, [report.name for report in reports], fontsize=8, color=DARK)
    save_figure(figure, path)
