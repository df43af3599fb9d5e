"""Embed images in the report page as ``data:`` URLs."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgerec.contract.image_decoding import decode
from edgerec.contract.preprocess import Image
from edgerec.data import Dataset, Split
from edgerec.report.content import ReportContent
from edgerec.train.run import Run
from edgerec.utils.optional import require

# Embedded images have at most this side length in pixels, which is twice their size on the page.
MAX_SIDE_PX = 144
# Images up to this side length in pixels are stored as PNG, because JPEG would blur their enlarged pixels.
EXACT_PX = 48
JPEG_QUALITY = 82
MAX_SAMPLES, MAX_SAMPLES_PER_CLASS = 80, 8
# A plot of misclassified images is embedded only up to this file size in bytes.
MAX_PLOT_BYTES = 1_200_000


@dataclass(frozen=True)
class EmbeddedImage:
    """An image as a ``data:`` URL, with its size in pixels."""

    address: str
    width: int
    height: int

    @property
    def exact(self) -> bool:
        """Whether the browser should enlarge the image without smoothing."""
        return max(self.width, self.height) <= EXACT_PX


@dataclass(frozen=True)
class PageImages:
    """Images embedded in the report page.

    Attributes:
        samples: training images for each label.
        mistakes: images for :attr:`ReportContent.mistakes`, in the same order.
        plot: plot of misclassified images saved after training, or None if ``mistakes`` is available.
    """

    samples: dict[str, tuple[EmbeddedImage, ...]] = field(default_factory=dict)
    mistakes: tuple[EmbeddedImage, ...] = ()
    plot: EmbeddedImage | None = None


def page_images(run: Run, data: tuple[Dataset, Split] | None, content: ReportContent) -> PageImages:
    """Return the images for the report page.

    If ``data`` is None, only the saved plot of misclassified images is returned.
    """
    if data is None:
        return PageImages(plot=_mistakes_plot(run))
    dataset, split = data
    mistakes = tuple(embed(dataset.images[mistake.position]) for mistake in content.mistakes)
    return PageImages(_samples(dataset, split.train), mistakes)


def embed(image: Image) -> EmbeddedImage:
    """Encode an image as PNG or JPEG, shrinking it first if a side exceeds ``MAX_SIDE_PX``.

    Args:
        image: uint8 array with shape ``(height, width, 1 or 3)``.
    """
    cv2 = require("cv2")
    height, width = image.shape[:2]
    factor = MAX_SIDE_PX / max(height, width)
    if factor < 1:
        width, height = max(1, round(width * factor)), max(1, round(height * factor))
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, -1)
    pixels = image[:, :, ::-1] if image.shape[2] == 3 else image
    exact = max(width, height) <= EXACT_PX
    kind, options = ("png", []) if exact else ("jpeg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    _, content = cv2.imencode(f".{kind}", np.ascontiguousarray(pixels), options)
    return EmbeddedImage(_data_url(kind, content.tobytes()), width, height)


def matrix_image(fractions: npt.NDArray[np.float64]) -> EmbeddedImage:
    """Draw a confusion matrix with one pixel per cell, blue on the diagonal and orange elsewhere.

    Args:
        fractions: row-normalized confusion matrix with shape ``(N, N)``. Larger fractions are more opaque.
    """
    colors = np.zeros((*fractions.shape, 4), np.uint8)
    colors[:, :, :3] = (0x2F, 0x7A, 0xE0)  # OpenCV uses BGRA
    colors[:, :, 3] = np.sqrt(fractions) * 255
    diagonal = np.arange(len(fractions))
    colors[diagonal, diagonal, :3] = (0xC8, 0x8A, 0x3A)
    _, content = require("cv2").imencode(".png", colors)
    return EmbeddedImage(_data_url("png", content.tobytes()), fractions.shape[1], fractions.shape[0])


def _samples(dataset: Dataset, train: npt.NDArray[np.int64]) -> dict[str, tuple[EmbeddedImage, ...]]:
    """Return sample training images for up to ``MAX_SAMPLES`` classes, evenly spaced within each class."""
    present = np.unique(dataset.classes[train])
    chosen = present[np.linspace(0, len(present) - 1, num=min(len(present), MAX_SAMPLES)).astype(int)]
    per_class = min(MAX_SAMPLES_PER_CLASS, MAX_SAMPLES // len(chosen))
    samples = {}
    for index in chosen:
        members = train[dataset.classes[train] == index]
        positions = members[np.linspace(0, len(members) - 1, num=min(per_class, len(members))).astype(int)]
        samples[dataset.labels[index]] = tuple(embed(dataset.images[i]) for i in positions)
    return samples


def _mistakes_plot(run: Run) -> EmbeddedImage | None:
    """Return the plot of misclassified images saved after training, or None if it is missing or too large."""
    path = run.path / "plots" / "worst_mistakes.png"
    try:
        if path.stat().st_size > MAX_PLOT_BYTES:
            return None
        content = path.read_bytes()
    except OSError:
        return None
    image = decode(content)
    return None if image is None else EmbeddedImage(_data_url("png", content), image.shape[1], image.shape[0])


def _data_url(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
