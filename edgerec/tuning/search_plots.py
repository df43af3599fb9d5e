"""Plot the results of a study.

Optuna's ``visualization`` is not used, because it does not show limits, pruned trials and trials that exceed a limit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgerec.tuning.plan import Plan
from edgerec.tuning.results import TrialRow
from edgerec.utils.figures import BLUE, GRAY, ORANGE, label_log_axis, label_points, new_figure, save_figure

_UNITS = {"ms": (1.0, "ms"), "bytes": (1024.0, "KiB of the .tflite"), "memory": (1024.0, "KiB of working memory")}
_STATES = {"complete": ("o", BLUE), "pruned": ("x", GRAY)}
_PLACES = {"this": "this machine, 1 thread", "rpi": "Raspberry Pi 4, estimated"}


def draw_study(rows: Sequence[TrialRow], best: Sequence[TrialRow], plan: Plan, path: Path) -> None:
    """Plot the accuracy of all trials against the trial number and against each cost.

    Args:
        rows: all trials.
        best: the trials on the Pareto front, which are highlighted.
        plan: settings of the study.
        path: path of the PNG file.
    """
    figure = new_figure(11, 7.5)
    complete = sum(row.state == "complete" for row in rows)
    objectives = " and ".join(part for part in (", ".join(plan.objectives[:-1]), plan.objectives[-1]) if part)
    title = f"{len(rows)} trials for {objectives}, {complete} of them complete"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    first, *others = figure.subplots(2, 2).flat
    _over_trials(first, rows, best)
    positions = {first: [float(row.number) for row in best]}
    for axes, name in zip(others, _UNITS, strict=True):
        _against(axes, name, rows, best, plan)
        positions[axes] = [getattr(row, name) / _UNITS[name][0] for row in best]
    for axes in figure.axes:
        axes.margins(0.08)
        if axes.get_xscale() == "log":
            label_log_axis(axes.xaxis)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylabel("validation accuracy, %")
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        drawn, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, drawn, strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    for axes, x_values in positions.items():
        points = [(x, 100 * (row.accuracy or 0)) for x, row in zip(x_values, best, strict=True)]
        # A white background keeps the numbers readable where they overlap a line.
        background = {"facecolor": "white", "edgecolor": "none", "pad": 0.3, "alpha": 0.8}
        label_points(axes, points, [str(row.number) for row in best], fontsize=8, bbox=background)
    save_figure(figure, path)


def _over_trials(axes: Any, rows: Sequence[TrialRow], best: Sequence[TrialRow]) -> None:
    complete = [row for row in rows if row.state == "complete"]
    highest = np.maximum.accumulate([100 * (row.accuracy or 0) for row in complete])
    axes.step([row.number for row in complete], highest, where="post", color=ORANGE, linewidth=1, label="best so far")
    _draw_trials(axes, rows, best, lambda row: row.number)
    _draw_refused(axes, [row.number for row in rows if row.state == "refused"])
    axes.set_xlabel("trial")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _against(axes: Any, name: str, rows: Sequence[TrialRow], best: Sequence[TrialRow], plan: Plan) -> None:
    scale, unit = _UNITS[name]
    measured = [row for row in rows if getattr(row, name) is not None]
    _draw_trials(axes, measured, best, lambda row: getattr(row, name) / scale)
    _draw_refused(axes, [getattr(row, name) / scale for row in measured if row.state == "refused"])
    if name in plan.objectives and len(plan.objectives) == 2:
        steps = sorted((getattr(row, name) / scale, 100 * (row.accuracy or 0)) for row in best)
        axes.step(*zip(*steps, strict=True), where="post", color=ORANGE, linewidth=1, label="Pareto front")
    limit = plan.limits.to_dict().get(name)
    if limit is not None:
        axes.axvline(limit / scale, color="black", linestyle="--", linewidth=1, label="limit")
    values = [getattr(row, name) for row in measured]
    if values and max(values) > 8 * min(values) > 0:
        axes.set_xscale("log")
    axes.set_xlabel(f"{unit}, {_PLACES[plan.on]}" if name == "ms" else unit)


def _draw_trials(axes: Any, rows: Sequence[TrialRow], best: Sequence[TrialRow], x_of: Callable[[Any], float]) -> None:
    for state, (marker, color) in _STATES.items():
        in_state = [row for row in rows if row.state == state and row.accuracy is not None]
        accuracies = [100 * row.accuracy for row in in_state if row.accuracy is not None]
        label = "complete" if state == "complete" else "pruned"
        if in_state:
            axes.plot([x_of(row) for row in in_state], accuracies, marker, color=color, markersize=5, label=label)
    for row in best:
        point = (x_of(row), 100 * (row.accuracy or 0))
        axes.plot(*point, "o", color=ORANGE, markersize=8, label="best" if len(best) == 1 else "Pareto-optimal")


def _draw_refused(axes: Any, x_values: Sequence[float]) -> None:
    """Refused trials have no accuracy, so they are drawn as ticks at the bottom of the plot."""
    if x_values:
        transform = axes.get_xaxis_transform()
        axes.plot(x_values, [0.02] * len(x_values), "|", color="black", transform=transform, label="refused")
