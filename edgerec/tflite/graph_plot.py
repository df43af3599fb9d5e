"""A model's graph as a picture."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgerec.utils.atomic import checked_output
from edgerec.utils.figures import save_figure
from edgerec.utils.optional import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgerec.tflite.inspection import InspectedOperator, InspectReport

# Inches. A row holds so many operators at most: the heads of a detector are many.
BOX_WIDTH, BOX_HEIGHT, ROW, LANE, GUTTER = 1.72, 0.46, 0.72, 1.98, 0.26
MOST_LANES = 4
# How much wider than high the picture shall be.
ASPECT = 1.35
EDGE, TEXT = "#718096", "#1a202c"
ON = {"edgetpu": ("#bee3f8", "#2b6cb0"), "cpu": ("#feebc8", "#dd6b20"), "refused": ("#fed7d7", "#c53030")}
KINDS = {
    "weights": ("#bee3f8", "#2b6cb0"),
    "pooling": ("#c6f6d5", "#2f855a"),
    "arithmetic": ("#fefcbf", "#b7791f"),
    "shape": ("#e9d8fd", "#6b46c1"),
    "other": ("#edf2f7", "#4a5568"),
}
_KIND_OF = {
    "weights": {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "UNIDIRECTIONAL_SEQUENCE_LSTM"},
    "pooling": {"AVERAGE_POOL_2D", "MAX_POOL_2D", "MEAN", "SUM", "REDUCE_MAX", "RESIZE_BILINEAR"},
    "arithmetic": {"ADD", "MUL", "SUB", "DIV", "SOFTMAX", "LOGISTIC", "HARD_SWISH", "RELU", "RELU6", "TANH"},
    "shape": {"RESHAPE", "CONCATENATION", "PAD", "SPLIT", "TRANSPOSE", "STRIDED_SLICE", "SLICE", "SQUEEZE", "PACK"},
}
_SHORT = {"DEPTHWISE_CONV_2D": "DEPTHWISE_CONV", "UNIDIRECTIONAL_SEQUENCE_LSTM": "LSTM"}


@dataclass(frozen=True)
class Place:
    """Where an operator is drawn: row in the whole graph, lane in its row, and the middle of its box in inches."""

    row: int
    lane: int
    column: int
    x: float
    y: float


def graph_plot(report: InspectReport, path: Path) -> None:
    """Draw the operators into a PNG: rows from the top, in columns from the left."""
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    places = layout(report)
    width = max((place.x for place in places.values()), default=1) + LANE / 2 + GUTTER
    height = max((place.y for place in places.values()), default=1) + BOX_HEIGHT + 0.15
    width, head = max(width, 5.5), 0.75
    figure = Figure(figsize=(width, height + head))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, height / (height + head)))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    _draw_edges(axes, report, places)
    for operator in report.operators:
        _draw_box(axes, operator, places[operator.index], _colours(operator, report))
    _draw_head(figure, report, width, height + head)
    save_figure(figure, checked_output(path, suffixes=(".png",)), dpi=_dpi(width, height))


def layout(report: InspectReport) -> dict[int, Place]:
    """Each operator's place: below all that it needs, and in the lane of the first of those where that is free."""
    needs = _needs(report)
    rows: dict[int, int] = {}
    lanes: dict[int, int] = {}
    taken: dict[int, set[int]] = {}
    for operator in report.operators:
        before = [index for index in needs[operator.index] if index in rows]
        row = 1 + max((rows[index] for index in before), default=-1)
        while len(taken.setdefault(row, set())) >= MOST_LANES:
            row += 1
        wanted = min((lanes[index] for index in before), default=0)
        free = (lane for lane in [wanted, *range(MOST_LANES)] if lane not in taken[row])
        rows[operator.index], lanes[operator.index] = row, next(free)
        taken[row].add(lanes[operator.index])
    depth = 1 + max(rows.values(), default=0)
    widest = max((max(used) + 1 for used in taken.values() if used), default=1)
    each = max(1, math.ceil(math.sqrt(depth * (LANE * widest + GUTTER) / ROW / ASPECT)))
    each = math.ceil(depth / math.ceil(depth / each))  # all columns about equally long
    left, starts = GUTTER, list[float]()
    for column in range(math.ceil(depth / each)):
        starts.append(left)
        used = [max(taken[row]) + 1 for row in range(column * each, min(depth, (column + 1) * each)) if taken.get(row)]
        left += LANE * max(used, default=1) + GUTTER
    return {
        index: Place(
            row,
            lanes[index],
            row // each,
            starts[row // each] + LANE * lanes[index] + LANE / 2,
            0.45 + ROW * (row % each) + BOX_HEIGHT / 2,
        )
        for index, row in rows.items()
    }


def _needs(report: InspectReport) -> dict[int, list[int]]:
    """The operators whose tensors each operator takes."""
    makes = {tensor: operator.index for operator in report.operators for tensor in operator.outputs}
    return {
        operator.index: list(dict.fromkeys(makes[t] for t in operator.inputs if t is not None and t in makes))
        for operator in report.operators
    }


def _draw_edges(axes: Axes, report: InspectReport, places: dict[int, Place]) -> None:
    for index, before in _needs(report).items():
        for other in before:
            _draw_edge(axes, places[other], places[index])


def _draw_edge(axes: Axes, start: Place, end: Place) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Line

    half, out = BOX_HEIGHT / 2, (ROW - BOX_HEIGHT) / 2
    bottom, top = (start.x, start.y + half), (end.x, end.y - half)
    if end.row == start.row + 1 and end.column == start.column and end.lane == start.lane:
        points, curve = [bottom, top], False
    elif end.column == start.column and end.row > start.row and end.row - start.row <= 1:
        points, curve = [bottom, (start.x, start.y + half + out), (end.x, end.y - half - out), top], True
    elif end.column == start.column:  # around the boxes between them
        side = max(start.x, end.x) + LANE / 2 - 0.06
        points = [bottom, (start.x, bottom[1] + out * 1.6), (side, bottom[1] + out), (side, bottom[1] + 2 * out)]
        points += [(side, top[1] - 2 * out), (side, top[1] - out), (end.x, top[1] - out * 1.6), top]
        curve = True
    else:  # through the gutter on the left of the column where it ends
        side = end.x - LANE * end.lane - LANE / 2 - GUTTER / 2
        points = [bottom, (start.x, bottom[1] + out), (side, bottom[1] + out), (side, bottom[1])]
        points += [(side, top[1]), (side, top[1] - out), (end.x, top[1] - out), top]
        curve = True
    if curve and len(points) == 8:
        codes = [Line.MOVETO, *[Line.CURVE4] * 3, Line.LINETO, *[Line.CURVE4] * 3]
    elif curve:
        codes = [Line.MOVETO, *[Line.CURVE4] * 3]
    else:
        codes = [Line.MOVETO, Line.LINETO]
    axes.add_patch(
        FancyArrowPatch(path=Line(points, codes), arrowstyle="-|>", mutation_scale=7, color=EDGE, lw=0.9, zorder=1)
    )


def _draw_box(axes: Axes, operator: InspectedOperator, place: Place, colours: tuple[str, str]) -> None:
    from matplotlib.patches import FancyBboxPatch

    corner = (place.x - BOX_WIDTH / 2, place.y - BOX_HEIGHT / 2)
    axes.add_patch(
        FancyBboxPatch(
            corner,
            BOX_WIDTH,
            BOX_HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=colours[0],
            edgecolor=colours[1],
            lw=1.1,
            zorder=2,
        )
    )
    name = _SHORT.get(operator.op, operator.op.removeprefix("CUSTOM "))
    name = name if len(name) <= 17 else f"{name[:16]}…"
    text = f"{operator.index} {name}"
    axes.text(place.x, place.y - 0.075, text, ha="center", va="center", fontsize=7.2, color=TEXT, zorder=3)
    below = "×".join(str(n) for n in operator.shape[1:]) or "–"
    if operator.macs:
        below += f" · {_count(operator.macs)}"
    axes.text(place.x, place.y + 0.105, below, ha="center", va="center", fontsize=6.2, color="#4a5568", zorder=3)


def _colours(operator: InspectedOperator, report: InspectReport) -> tuple[str, str]:
    refused = {finding.index for finding in report.findings}
    if report.edgetpu is not None:
        return ON["refused" if operator.index in refused else operator.on]
    if report.target:
        return ON["refused"] if operator.index in refused else KINDS["weights"]
    return KINDS[_kind(operator)]


def _kind(operator: InspectedOperator) -> str:
    return next((kind for kind, names in _KIND_OF.items() if operator.op in names), "other")


def _draw_head(figure: object, report: InspectReport, width: float, height: float) -> None:
    """Two lines and the colours' meaning, above the graph."""
    path = Path(report.file)
    name = "/".join(path.parts[-2:]) if path.name == "model.tflite" else path.name
    name = name.replace("$", r"\$")  # dollar signs would begin a formula
    name = name if len(name) <= 60 else f"{name[:30]}…{name[-29:]}"
    facts = f"{len(report.operators)} operators · {_count(report.macs)} multiply-adds · {report.size_bytes:,} bytes"
    if report.edgetpu is not None:
        there = sum(operator.on == "edgetpu" for operator in report.operators)
        part = 1 - report.edgetpu.cpu_macs / report.edgetpu.macs if report.edgetpu.macs else there > 0
        facts = f"{there} of {len(report.operators)} operators on the Edge TPU, {part:.1%} of the arithmetic"
    text = figure.text  # type: ignore[attr-defined]
    text(GUTTER / width, 1 - 0.22 / height, name, fontsize=11, weight="bold", color=TEXT, va="center")
    text(GUTTER / width, 1 - 0.44 / height, facts, fontsize=8.5, color="#4a5568", va="center")
    x = GUTTER
    for label, colour in _legend(report):
        text(x / width, 1 - 0.66 / height, "■", fontsize=9, color=colour, va="center")
        text((x + 0.16) / width, 1 - 0.66 / height, label, fontsize=8, color=TEXT, va="center")
        x += 0.32 + 0.066 * len(label)


def _legend(report: InspectReport) -> list[tuple[str, str]]:
    refused = {finding.index for finding in report.findings}
    if report.edgetpu is not None:
        behind = any(operator.on == "cpu" and operator.index not in refused for operator in report.operators)
        return [
            ("Edge TPU", ON["edgetpu"][1]),
            *([("refused", ON["refused"][1])] if refused - {-1} else []),
            *([("processor, behind what is refused", ON["cpu"][1])] if behind else []),
        ]
    if report.target:
        runs = (f"{report.target} has the operator", KINDS["weights"][1])
        return [runs, ("refused", ON["refused"][1])] if refused - {-1} else [runs]
    kinds = Counter(_kind(operator) for operator in report.operators)
    return [(f"{kind} ({kinds[kind]})", KINDS[kind][1]) for kind in KINDS if kinds[kind]]


def _count(number: int) -> str:
    for unit, size in (("G", 1_000_000_000), ("M", 1_000_000), ("k", 1_000)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _dpi(width: float, height: float) -> int:
    """Sharp, and never larger than what viewers open."""
    return max(50, min(130, int(12_000 / max(width, height))))
