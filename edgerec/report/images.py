"""Pictures inside the page's own text."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgerec.contract.preprocess import Image, decode
from edgerec.data import Dataset, Split
from edgerec.report.model import RunReport
from edgerec.train.run import Run
from edgerec.utils.optional import require

# The longer side, pixels: twice of what a page shows them at.
MOST_PX = 144
# A smaller picture's pixels are seen one by one, which JPEG would smear.
EXACT_PX = 48
JPEG_QUALITY = 82
MOST_SAMPLES, MOST_OF_A_CLASS = 80, 8
# What training drew stands in where the pictures are gone, if it is no larger than this.
MOST_DRAWN_BYTES = 1_200_000


@dataclass(frozen=True)
class Shown:
    """One picture: a ``data:`` address, and its sides."""

    address: str
    width: int
    height: int

    @property
    def exact(self) -> bool:
        """Whether its pixels shall stay squares when it is enlarged."""
        return max(self.width, self.height) <= EXACT_PX


@dataclass(frozen=True)
class Pictures:
    """``samples`` of a label's training pictures, a picture for each mistake, and ``drawn``: what training drew of its
    mistakes, where the pictures themselves cannot be had."""

    samples: dict[str, tuple[Shown, ...]] = field(default_factory=dict)
    mistakes: tuple[Shown, ...] = ()
    drawn: Shown | None = None


def take(run: Run, found: tuple[Dataset, Split] | None, facts: RunReport) -> Pictures:
    """The pictures of a page, as the model sees them."""
    if found is None:
        return Pictures(drawn=_drawn(run))
    dataset, split = found
    mistakes = tuple(shown(dataset.images[mistake.position]) for mistake in facts.mistakes)
    return Pictures(_samples(dataset, split.train), mistakes)


def shown(image: Image) -> Shown:
    """A picture uint8 ``(H, W, 1 or 3)``, made smaller if it is large."""
    cv2 = require("cv2")
    height, width = image.shape[:2]
    factor = MOST_PX / max(height, width)
    if factor < 1:
        width, height = max(1, round(width * factor)), max(1, round(height * factor))
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, -1)
    pixels = image[:, :, ::-1] if image.shape[2] == 3 else image
    exact = max(width, height) <= EXACT_PX
    kind, options = ("png", []) if exact else ("jpeg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    _, content = cv2.imencode(f".{kind}", np.ascontiguousarray(pixels), options)
    return Shown(_address(kind, content.tobytes()), width, height)


def matrix_picture(parts: npt.NDArray[np.float64]) -> Shown:
    """A picture ``(N, N)`` of the parts of each row: on the diagonal blue, beside it orange, the more the denser."""
    colours = np.zeros((*parts.shape, 4), np.uint8)
    colours[:, :, :3] = (0x2F, 0x7A, 0xE0)  # blue, green, red
    colours[:, :, 3] = np.sqrt(parts) * 255
    diagonal = np.arange(len(parts))
    colours[diagonal, diagonal, :3] = (0xC8, 0x8A, 0x3A)
    _, content = require("cv2").imencode(".png", colours)
    return Shown(_address("png", content.tobytes()), parts.shape[1], parts.shape[0])


def _samples(dataset: Dataset, part: npt.NDArray[np.int64]) -> dict[str, tuple[Shown, ...]]:
    """Training pictures, evenly chosen; of a few classes only, where there are very many."""
    present = np.unique(dataset.classes[part])
    chosen = present[np.linspace(0, len(present) - 1, num=min(len(present), MOST_SAMPLES)).astype(int)]
    of_each = min(MOST_OF_A_CLASS, MOST_SAMPLES // len(chosen))
    samples = {}
    for index in chosen:
        members = part[dataset.classes[part] == index]
        some = members[np.linspace(0, len(members) - 1, num=min(of_each, len(members))).astype(int)]
        samples[dataset.labels[index]] = tuple(shown(dataset.images[i]) for i in some)
    return samples


def _drawn(run: Run) -> Shown | None:
    path = run.path / "plots" / "worst_mistakes.png"
    try:
        if path.stat().st_size > MOST_DRAWN_BYTES:
            return None
        content = path.read_bytes()
    except OSError:
        return None
    image = decode(content)
    return None if image is None else Shown(_address("png", content), image.shape[1], image.shape[0])


def _address(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
