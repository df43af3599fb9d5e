"""Figures as PNG, and pictures in a table."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgerec.contract.preprocess import Image
from edgerec.utils.figures import DARK, new_figure, plain, save_figure
from edgerec.utils.optional import require

# Of a table's cell, in pixels of the composed sheet; the gap belongs to it.
CELL_PX, GAP_PX = 128, 6
CELL_INCHES = 0.95


@dataclass(frozen=True)
class Row:
    """Pictures side by side.

    Attributes:
        label: what they are, at their left.
        about: a line or two below the label, in grey.
        images: uint8 ``(H, W, 1)`` or ``(H, W, 3)``, of any sizes.
        notes: a short text below each; none or one per picture.
        marked: with a frame.
    """

    label: str
    about: str
    images: Sequence[Image]
    notes: Sequence[str] = ()
    marked: Sequence[bool] = ()


def picture_table(rows: Sequence[Row], titles: Sequence[str], heading: str, caption: str, path: Path) -> None:
    """Rows of pictures with their labels; ``titles`` stand above the columns."""
    columns = max(len(row.images) for row in rows)
    noted = max((note.count("\n") + 1 for row in rows for note in row.notes), default=0)
    row_inches = CELL_INCHES + 0.14 * noted
    longest = max(len(line) for row in rows for line in (plain(row.label, 26), *row.about.splitlines()))
    left = float(np.clip(0.08 * longest + 0.3, 1.1, 2.6))
    width = max(left + columns * CELL_INCHES + 0.15, 5.5)
    lines = textwrap.wrap(caption, int(width * 16)) or [""]
    above, below = 0.66 if titles else 0.5, 0.25 + 0.17 * len(lines)
    height = above + len(rows) * row_inches + below
    figure = new_figure(width, height)
    figure.set_layout_engine("none")  # every place is known
    figure.text(0.15 / width, 1 - 0.12 / height, plain(heading, int(width * 9)), va="top", fontsize=11, weight="bold")
    figure.text(0.15 / width, 0.1 / height, plain("\n".join(lines)), va="bottom", fontsize=8, color=DARK)
    for number, title in enumerate(titles):
        x, y = (left + (number + 0.5) * CELL_INCHES) / width, 1 - (above - 0.07) / height
        figure.text(x, y, title, ha="center", va="bottom", fontsize=8, color=DARK)
    for number, row in enumerate(rows):
        top = 1 - (above + number * row_inches) / height
        middle = top - CELL_INCHES / 2 / height
        figure.text(0.15 / width, middle + 0.02 / height, plain(row.label, 26), va="bottom", fontsize=9)
        figure.text(0.15 / width, middle - 0.03 / height, plain(row.about), va="top", fontsize=7.5, color=DARK)
        bottom = top - CELL_INCHES / height
        if not row.images:
            continue
        wide = len(row.images) * CELL_INCHES / width
        axes = figure.add_axes((left / width, bottom, wide, CELL_INCHES / height))
        axes.imshow(_strip(row), interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        for place, note in enumerate(row.notes):
            x = (left + (place + 0.5) * CELL_INCHES) / width
            figure.text(x, bottom, plain(note), ha="center", va="top", fontsize=6.5, color=DARK, linespacing=1.1)
    save_figure(figure, path)


def _strip(row: Row) -> npt.NDArray[np.uint8]:
    """The row's pictures as one, each in a cell of its own. An axes for every picture would take seconds."""
    strip = np.full((CELL_PX, CELL_PX * len(row.images), 3), 255, np.uint8)
    for place, image in enumerate(row.images):
        fitted = fit_cell(image)
        high, wide = fitted.shape[:2]
        top, start = (CELL_PX - high) // 2, place * CELL_PX + (CELL_PX - wide) // 2
        if row.marked and row.marked[place]:
            strip[top - 3 : top + high + 3, start - 3 : start + wide + 3] = (224, 122, 47)  # ORANGE
        strip[top : top + high, start : start + wide] = fitted
    return strip


def fit_cell(image: Image) -> Image:
    """uint8 ``(h, w, 3)``, neither side longer than a cell; small pictures show their pixels."""
    cv2 = require("cv2")
    most = CELL_PX - 2 * GAP_PX
    scale = most / max(image.shape[:2])
    size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
    how = cv2.INTER_NEAREST if scale > 1 else cv2.INTER_AREA
    fitted = cv2.resize(np.ascontiguousarray(image), size, interpolation=how)
    return cv2.cvtColor(fitted, cv2.COLOR_GRAY2RGB) if fitted.ndim == 2 else fitted
