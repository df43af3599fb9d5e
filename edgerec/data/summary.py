"""Measure a data set's properties that determine the choice of architecture, without reading all images."""

from __future__ import annotations

from dataclasses import dataclass

from edgerec.data import readers as readers
from edgerec.data.dataset import typical_side_px
from edgerec.data.raw_dataset import Arrays, Files, Merged
from edgerec.data.tfrecord_reader import Packed, is_pack
from edgerec.recipe import DataSection


@dataclass(frozen=True)
class DataSummary:
    """A data set's number of images, number of classes and image size.

    Attributes:
        images: number of images that are not in the data's own test split.
        classes: number of classes.
        side_px: median of the shorter sides of the stored images, in pixels.
        channels: 1 for grayscale arrays, otherwise 3.
        packed: whether the data is a pack, whose images already have the size of the model's input.
    """

    images: int
    classes: int
    side_px: int
    channels: int
    packed: bool = False


def summarize(section: DataSection) -> DataSummary:
    """Count images and classes, and estimate the image size. Raise :class:`DataError` if there are no images."""
    if isinstance(section.source, str) and is_pack(section.source):
        pack = Packed.open(section.source)
        images = sum(shard.images for shard in pack.shards if shard.split != "test")
        return DataSummary(images, len(pack.labels), pack.preprocess.width, pack.preprocess.channels, packed=True)
    data = readers.find(section.source, levels=section.levels)
    parts = data.parts if isinstance(data, Merged) else (data,)
    sides, channels = zip(*map(_shape, parts), strict=True)
    return DataSummary(int((data.splits != "test").sum()), len(data.labels), max(sides), max(channels))


def _shape(data: Arrays | Files) -> tuple[int, int]:
    """Return a typical image's shorter side in pixels, and its number of channels."""
    if isinstance(data, Files):
        return typical_side_px(data), 3
    height, width, channels = data.shape
    return min(height, width), channels
