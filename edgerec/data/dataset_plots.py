"""Draw a table of images as a PNG file."""

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

# Each cell is CELL_PX wide and high, including a gap of GAP_PX on each side.
CELL_PX, GAP_PX = 128, 6
CELL_INCHES = 0.95


@dataclass(frozen=True)
class ImageRow:
    """Row of an image table.

    Attributes:
        label: title at the left of the images.
        about: one or two lines below the label, in gray.
        images: uint8 ``(H, W, 1)`` or ``(H, W, 3)``, of any size.
        notes: text below each image, or an empty list for no texts.
    """

    label: str
    about: str
    images: Sequence[Image]
    notes: Sequence[str] = ()


def image_table(rows: Sequence[ImageRow], titles: Sequence[str], heading: str, caption: str, path: Path) -> None:
    """Draw rows of images.

    Args:
        rows: the images and their texts.
        titles: titles of the columns, or an empty list for no titles.
        heading: text above the table.
        caption: text below the table.
        path: path of the PNG file.
    """
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
    figure.set_layout_engine("none")
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
        for column, note in enumerate(row.notes):
            x = (left + (column + 0.5) * CELL_INCHES) / width
            figure.text(x, bottom, plain(note), ha="center", va="top", fontsize=6.5, color=DARK, linespacing=1.1)
    save_figure(figure, path)


def _strip(row: ImageRow) -> npt.NDArray[np.uint8]:
    """Combine the images of a row into one image, because drawing separate axes would be slow."""
    strip = np.full((CELL_PX, CELL_PX * len(row.images), 3), 255, np.uint8)
    for column, image in enumerate(row.images):
        fitted = fit_cell(image)
        height, width = fitted.shape[:2]
        top, left = (CELL_PX - height) // 2, column * CELL_PX + (CELL_PX - width) // 2
        strip[top : top + height, left : left + width] = fitted
    return strip


def fit_cell(image: Image) -> Image:
    """Scale an image to fit into a table cell.

    Returns:
        uint8 ``(h, w, 3)``.
    """
    cv2 = require("cv2")
    longest_px = CELL_PX - 2 * GAP_PX
    scale = longest_px / max(image.shape[:2])
    size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
    interpolation = cv2.INTER_NEAREST if scale > 1 else cv2.INTER_AREA
    fitted = cv2.resize(np.ascontiguousarray(image), size, interpolation=interpolation)
    return cv2.cvtColor(fitted, cv2.COLOR_GRAY2RGB) if fitted.ndim == 2 else fitted
