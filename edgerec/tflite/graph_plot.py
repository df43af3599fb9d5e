"""Draw a model's graph as a PNG image.

Graphviz is not used for the layout, because pip cannot install it.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgerec.tflite.operators import KINDS
from edgerec.utils.atomic import checked_output
from edgerec.utils.figures import save_figure
from edgerec.utils.optional import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgerec.tflite.inspection import InspectedOperator, InspectReport

# Box width, box height, row height, lane width and column gap of the graph drawing, in inches.
BOX_WIDTH, BOX_HEIGHT, ROW, LANE, GUTTER = 1.72, 0.46, 0.72, 1.98, 0.26
# A row of the graph drawing contains at most this number of parallel operators.
MAX_LANES = 4
ASPECT_RATIO = 1.35
EDGE, TEXT = "#718096", "#1a202c"
# Fill and edge colors of operators, which depend on the device if the target has an Edge TPU.
PLACEMENT_COLORS = {"edgetpu": ("#bee3f8", "#2b6cb0"), "cpu": ("#feebc8", "#dd6b20"), "refused": ("#fed7d7", "#c53030")}
KIND_COLORS = {
    "weights": ("#bee3f8", "#2b6cb0"),
    "pooling": ("#c6f6d5", "#2f855a"),
    "arithmetic": ("#fefcbf", "#b7791f"),
    "shape": ("#e9d8fd", "#6b46c1"),
    "other": ("#edf2f7", "#4a5568"),
}
_SHORT = {"DEPTHWISE_CONV_2D": "DEPTHWISE_CONV", "UNIDIRECTIONAL_SEQUENCE_LSTM": "LSTM"}


@dataclass(frozen=True)
class BoxPosition:
    """An operator's position in the graph drawing.

    The drawing has columns, each column has rows, and the operators in a row are side by side in lanes.

    Attributes:
        row: number of the row, counted over all columns.
        lane: number of the lane in the row.
        column: number of the column.
        x, y: center of the operator's box in inches.
    """

    row: int
    lane: int
    column: int
    x: float
    y: float


def graph_plot(report: InspectReport, path: Path) -> None:
    """Draw a model's operators to a PNG file. Data flows from top to bottom, and columns from left to right.

    Args:
        report: result of :func:`~edgerec.tflite.inspection.inspect`.
        path: output path of the PNG file.
    """
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    positions = layout(report)
    width = max((position.x for position in positions.values()), default=1) + LANE / 2 + GUTTER
    height = max((position.y for position in positions.values()), default=1) + BOX_HEIGHT + 0.15
    width, header = max(width, 5.5), 0.75
    figure = Figure(figsize=(width, height + header))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, height / (height + header)))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    _draw_edges(axes, report, positions)
    refused = _refused(report)
    for operator in report.operators:
        _draw_box(axes, operator, positions[operator.index], _colors(operator, report, refused))
    _draw_header(figure, report, width, height + header)
    save_figure(figure, checked_output(path, suffixes=(".png",)), dpi=_dpi(width, height))


def layout(report: InspectReport) -> dict[int, BoxPosition]:
    """Return the position of each operator in the graph drawing, keyed by operator index.

    Each operator is placed below all operators that compute its inputs, if possible in the first one's lane.
    """
    rows, lanes = _rows_and_lanes(report)
    depth = 1 + max(rows.values(), default=0)
    widths: dict[int, int] = {}
    for index, row in rows.items():
        widths[row] = max(widths.get(row, 0), 1 + lanes[index])
    widest = max(widths.values(), default=1)
    rows_per_column = max(1, math.ceil(math.sqrt(depth * (LANE * widest + GUTTER) / ROW / ASPECT_RATIO)))
    rows_per_column = math.ceil(depth / math.ceil(depth / rows_per_column))  # balances the column lengths
    left, starts = GUTTER, list[float]()
    for first in range(0, depth, rows_per_column):
        starts.append(left)
        left += LANE * max(widths.get(row, 1) for row in range(first, min(depth, first + rows_per_column))) + GUTTER
    return {
        index: BoxPosition(
            row,
            lanes[index],
            row // rows_per_column,
            starts[row // rows_per_column] + LANE * lanes[index] + LANE / 2,
            0.45 + ROW * (row % rows_per_column) + BOX_HEIGHT / 2,
        )
        for index, row in rows.items()
    }


def _rows_and_lanes(report: InspectReport) -> tuple[dict[int, int], dict[int, int]]:
    """Return two dictionaries, which map operator indices to rows and to lanes."""
    predecessors = _predecessors(report)
    rows: dict[int, int] = {}
    lanes: dict[int, int] = {}
    used_lanes: dict[int, set[int]] = {}
    # Maps each full row to a later row, so that full rows are not searched again for each operator.
    later_rows: dict[int, int] = {}
    for operator in report.operators:
        before = [index for index in predecessors[operator.index] if index in rows]
        row = 1 + max((rows[index] for index in before), default=-1)
        full_rows = []
        while row in later_rows:
            full_rows.append(row)
            row = later_rows[row]
        later_rows |= dict.fromkeys(full_rows, row)
        preferred = min((lanes[index] for index in before), default=0)
        used = used_lanes.setdefault(row, set())
        free = (lane for lane in [preferred, *range(MAX_LANES)] if lane not in used)
        rows[operator.index], lanes[operator.index] = row, next(free)
        used.add(lanes[operator.index])
        if len(used) == MAX_LANES:
            later_rows[row] = row + 1
    return rows, lanes


def _predecessors(report: InspectReport) -> dict[int, list[int]]:
    producers = {tensor: operator.index for operator in report.operators for tensor in operator.outputs}
    return {
        operator.index: list(dict.fromkeys(producers[t] for t in operator.inputs if t is not None and t in producers))
        for operator in report.operators
    }


def _draw_edges(axes: Axes, report: InspectReport, positions: dict[int, BoxPosition]) -> None:
    for index, before in _predecessors(report).items():
        for other in before:
            _draw_edge(axes, positions[other], positions[index])


def _draw_edge(axes: Axes, start: BoxPosition, end: BoxPosition) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Line

    half, out = BOX_HEIGHT / 2, (ROW - BOX_HEIGHT) / 2
    bottom, top = (start.x, start.y + half), (end.x, end.y - half)
    if end.row == start.row + 1 and end.column == start.column and end.lane == start.lane:
        points = [bottom, top]
    elif end.column == start.column and end.row > start.row and end.row - start.row <= 1:
        points = [bottom, (start.x, start.y + half + out), (end.x, end.y - half - out), top]
    elif end.column == start.column:  # Draw the line to the right of all boxes between the operators.
        side = max(start.x, end.x) + LANE / 2 - 0.06
        points = [bottom, (start.x, bottom[1] + out * 1.6), (side, bottom[1] + out), (side, bottom[1] + 2 * out)]
        points += [(side, top[1] - 2 * out), (side, top[1] - out), (end.x, top[1] - out * 1.6), top]
    else:  # Draw the line through the gap between two columns.
        side = end.x - LANE * end.lane - LANE / 2 - GUTTER / 2
        points = [bottom, (start.x, bottom[1] + out), (side, bottom[1] + out), (side, bottom[1])]
        points += [(side, top[1]), (side, top[1] - out), (end.x, top[1] - out), top]
    curve = [Line.CURVE4] * 3
    codes = {2: [Line.LINETO], 4: curve, 8: [*curve, Line.LINETO, *curve]}[len(points)]
    axes.add_patch(
        FancyArrowPatch(
            path=Line(points, [Line.MOVETO, *codes]), arrowstyle="-|>", mutation_scale=7, color=EDGE, lw=0.9, zorder=1
        )
    )


def _draw_box(axes: Axes, operator: InspectedOperator, position: BoxPosition, colors: tuple[str, str]) -> None:
    from matplotlib.patches import FancyBboxPatch

    corner = (position.x - BOX_WIDTH / 2, position.y - BOX_HEIGHT / 2)
    axes.add_patch(
        FancyBboxPatch(
            corner,
            BOX_WIDTH,
            BOX_HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=colors[0],
            edgecolor=colors[1],
            lw=1.1,
            zorder=2,
        )
    )
    name = _SHORT.get(operator.op, operator.op.removeprefix("CUSTOM "))
    name = name if len(name) <= 17 else f"{name[:16]}…"
    text = f"{operator.index} {name}"
    axes.text(position.x, position.y - 0.075, text, ha="center", va="center", fontsize=7.2, color=TEXT, zorder=3)
    below = "×".join(str(n) for n in operator.shape[1:]) or "–"
    if operator.macs:
        below += f" · {_count(operator.macs)}"
    axes.text(position.x, position.y + 0.105, below, ha="center", va="center", fontsize=6.2, color="#4a5568", zorder=3)


def _refused(report: InspectReport) -> set[int]:
    """Return the indices of the operators that the target cannot run, and -1 if it rejects the model as a whole."""
    return {finding.index for finding in report.findings}


def _colors(operator: InspectedOperator, report: InspectReport, refused: set[int]) -> tuple[str, str]:
    if report.edgetpu is not None:
        return PLACEMENT_COLORS["refused" if operator.index in refused else operator.on]
    if report.target:
        return PLACEMENT_COLORS["refused"] if operator.index in refused else KIND_COLORS["weights"]
    return KIND_COLORS[_kind(operator)]


def _kind(operator: InspectedOperator) -> str:
    return next((kind for kind, names in KINDS.items() if operator.op in names), "other")


def _draw_header(figure: object, report: InspectReport, width: float, height: float) -> None:
    """Draw the model's name, a summary and the legend above the graph."""
    path = Path(report.file)
    name = "/".join(path.parts[-2:]) if path.name == "model.tflite" else path.name
    name = name.replace("$", r"\$")  # Matplotlib would render text between dollar signs as a formula.
    name = name if len(name) <= 60 else f"{name[:30]}…{name[-29:]}"
    facts = f"{len(report.operators)} operators · {_count(report.macs)} MACs · {report.size_bytes:,} bytes"
    if report.edgetpu is not None:
        mapped = sum(operator.on == "edgetpu" for operator in report.operators)
        fraction = 1 - report.edgetpu.cpu_macs / report.edgetpu.macs if report.edgetpu.macs else mapped > 0
        facts = f"{mapped} of {len(report.operators)} operators on the Edge TPU, {fraction:.1%} of the MACs"
    text = figure.text  # type: ignore[attr-defined]
    text(GUTTER / width, 1 - 0.22 / height, name, fontsize=11, weight="bold", color=TEXT, va="center")
    text(GUTTER / width, 1 - 0.44 / height, facts, fontsize=8.5, color="#4a5568", va="center")
    x = GUTTER
    for label, color in _legend(report):
        text(x / width, 1 - 0.66 / height, "■", fontsize=9, color=color, va="center")
        text((x + 0.16) / width, 1 - 0.66 / height, label, fontsize=8, color=TEXT, va="center")
        x += 0.32 + 0.066 * len(label)


def _legend(report: InspectReport) -> list[tuple[str, str]]:
    refused = _refused(report)
    if report.edgetpu is not None:
        stranded = any(operator.on == "cpu" and operator.index not in refused for operator in report.operators)
        return [
            ("Edge TPU", PLACEMENT_COLORS["edgetpu"][1]),
            *([("refused", PLACEMENT_COLORS["refused"][1])] if refused - {-1} else []),
            *([("CPU, depends on a refused operator", PLACEMENT_COLORS["cpu"][1])] if stranded else []),
        ]
    if report.target:
        supported = (f"supported by {report.target}", KIND_COLORS["weights"][1])
        return [supported, ("refused", PLACEMENT_COLORS["refused"][1])] if refused - {-1} else [supported]
    kinds = Counter(_kind(operator) for operator in report.operators)
    return [(f"{kind} ({kinds[kind]})", KIND_COLORS[kind][1]) for kind in KIND_COLORS if kinds[kind]]


def _count(number: int) -> str:
    for unit, size in (("G", 1_000_000_000), ("M", 1_000_000), ("k", 1_000)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _dpi(width: float, height: float) -> int:
    """Return the resolution in dots per inch, which is lower for large graphs so that viewers can open the image."""
    return max(50, min(130, int(12_000 / max(width, height))))
