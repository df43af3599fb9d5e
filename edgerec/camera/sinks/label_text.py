"""Draw labels in any script, e.g. Greek or Chinese. OpenCV's own fonts support only ASCII."""

from __future__ import annotations

import functools
import importlib
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.preprocess import Image
from edgerec.utils.fonts import Font, ascii_text, installed_fonts, needs_shaping, split_by_font
from edgerec.utils.optional import require
from edgerec.utils.text import printable

log = logging.getLogger(__name__)

SIZE_PX = 24
# OpenCV's font scale and line thickness for text that is about SIZE_PX pixels high.
SCALE, THICKNESS = 0.8, 2
MAX_CHARACTERS = 200
# Bitmap fonts such as Noto Color Emoji usually contain only this size in pixels.
_BITMAP_PX = 109


@dataclass(frozen=True)
class LabelText:
    """A rendered label.

    Attributes:
        text: the label, or an ASCII replacement if this system cannot draw the label.
        pixels: uint8 RGBA ``(H, W, 4)``, with the baseline ``SIZE_PX`` below the top, or None if OpenCV draws the
            label.
    """

    text: str
    pixels: npt.NDArray[np.uint8] | None = None


def draw_label(image: Image, label: str, index: int, left: int, baseline: int) -> int:
    """Draw a label in white.

    Args:
        image: uint8 RGB, changed in place.
        label: text in any script.
        index: class index, drawn if the label cannot be drawn.
        left: x coordinate of the text's left end, in pixels.
        baseline: y coordinate of the text's baseline, in pixels.

    Returns:
        The x coordinate at the right end of the text, in pixels.
    """
    text = label_text(label, index)
    if text.pixels is None:
        return draw_ascii(image, text.text, left, baseline)
    top = baseline - SIZE_PX
    part = image[max(0, top) : top + text.pixels.shape[0], left : left + text.pixels.shape[1]]
    pixels = text.pixels[max(0, -top) :][: part.shape[0], : part.shape[1]].astype(np.uint16)
    alpha = pixels[:, :, 3:]
    part[:] = (pixels[:, :, :3] * alpha + part * (255 - alpha)) // 255
    return left + text.pixels.shape[1]


def draw_ascii(image: Image, text: str, left: int, baseline: int) -> int:
    """Draw white ASCII text with OpenCV and return the x coordinate of its right end."""
    cv2 = require("cv2")
    cv2.putText(image, text, (left, baseline), cv2.FONT_HERSHEY_SIMPLEX, SCALE, (255, 255, 255), THICKNESS, cv2.LINE_AA)
    width: int = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, SCALE, THICKNESS)[0][0]
    return left + width


@functools.lru_cache(maxsize=32)  # up to 0.5 MB of pixels each
def label_text(label: str, index: int) -> LabelText:
    """Render a non-ASCII label with Pillow. If rendering fails, log the reason and fall back to ASCII."""
    label = printable(label[:MAX_CHARACTERS])
    if label.isascii():
        return LabelText(label)
    try:
        return LabelText(label, _render(label))
    except _CannotDrawError as error:
        warn_once(str(error))
    text = ascii_text(label)
    return LabelText(text if "\\" not in text else f"class {index} ({text[:30]})")


class _CannotDrawError(Exception):
    """Raised when a label cannot be drawn because software or fonts are missing."""


@functools.cache
def warn_once(reason: str) -> None:
    """Log why labels cannot be drawn, once per reason."""
    log.warning("some labels are drawn in ASCII: %s", reason)


def _render(label: str) -> npt.NDArray[np.uint8]:
    try:
        features = importlib.import_module("PIL.features")
        image_module = importlib.import_module("PIL.Image")
        draw_module = importlib.import_module("PIL.ImageDraw")
        font_module = importlib.import_module("PIL.ImageFont")
    except ImportError:
        raise _CannotDrawError("Pillow is not installed: run pip install pillow") from None
    shaped = bool(features.check("raqm"))
    if needs_shaping(label) and not shaped:
        raise _CannotDrawError("Pillow's text layout library is not installed: run apt install libraqm0 libfribidi0")
    fonts = installed_fonts()
    if not fonts:
        raise _CannotDrawError("no fonts were found: run apt install fontconfig fonts-noto")
    parts = split_by_font(label, fonts)
    if parts is None:
        raise _CannotDrawError(
            "the installed fonts do not contain all characters of a label: run "
            "apt install fonts-noto fonts-noto-cjk fonts-noto-color-emoji"
        )
    layout = font_module.Layout.RAQM if shaped else font_module.Layout.BASIC
    try:
        drawn = [_render_part(text, font, layout, (image_module, draw_module, font_module)) for text, font in parts]
    except (OSError, ValueError) as error:
        raise _CannotDrawError(f"Pillow cannot use the installed fonts ({error}): run apt install fonts-noto") from None
    return np.concatenate(drawn, axis=1)


def _render_part(text: str, font: Font, layout: Any, pillow: tuple[Any, Any, Any]) -> npt.NDArray[np.uint8]:
    image_module, draw_module, font_module = pillow
    size = SIZE_PX
    try:
        loaded = font_module.truetype(str(font.path), size, index=font.index & 0xFFFF, layout_engine=layout)
    except OSError:  # Bitmap fonts contain only one size.
        size = _BITMAP_PX
        loaded = font_module.truetype(str(font.path), size, index=font.index & 0xFFFF, layout_engine=layout)
    left, _, right, _ = loaded.getbbox(text, anchor="ls")
    width = max(1, round(loaded.getlength(text)), right) - min(0, left)
    sheet = image_module.new("RGBA", (width, 3 * size // 2), (255, 255, 255, 0))
    draw = draw_module.Draw(sheet)
    draw.text((-min(0, left), size), text, (255, 255, 255, 255), loaded, anchor="ls", embedded_color=True)
    if size != SIZE_PX:
        factor = SIZE_PX / size
        sheet = sheet.resize((max(1, round(width * factor)), 3 * SIZE_PX // 2), image_module.Resampling.BOX)
    return np.asarray(sheet)
