"""Summarize a data set without reading all of its images."""

from __future__ import annotations

from dataclasses import dataclass

from edgerec.data import readers as readers
from edgerec.data.dataset import typical_side_px
from edgerec.data.raw_dataset import Arrays, Files, Merged
from edgerec.data.tfrecord_reader import Packed, is_pack
from edgerec.recipe import DataSection


@dataclass(frozen=True)
class DataSummary:
    """Number of images, number of classes and image size of a data set.

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
    """Count the images and classes of a data set, and estimate the image size.

    Raises:
        DataError: the data set has no images.
    """
    if isinstance(section.source, str) and is_pack(section.source):
        pack = Packed.open(section.source)
        images = sum(shard.images for shard in pack.shards if shard.split != "test")
        return DataSummary(images, len(pack.labels), pack.preprocess.width, pack.preprocess.channels, packed=True)
    data = readers.find(section.source, levels=section.levels)
    parts = data.parts if isinstance(data, Merged) else (data,)
    sides, channels = zip(*map(_side_and_channels, parts), strict=True)
    return DataSummary(int((data.splits != "test").sum()), len(data.labels), max(sides), max(channels))


def _side_and_channels(data: Arrays | Files) -> tuple[int, int]:
    if isinstance(data, Files):
        return typical_side_px(data), 3
    height, width, channels = data.shape
    return min(height, width), channels
