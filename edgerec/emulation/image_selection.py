"""Select images for comparing an emulated system's scores with this machine's."""

from __future__ import annotations

from edgerec.contract.preprocess import encode_png
from edgerec.data.raw_dataset import Files
from edgerec.data.readers import find
from edgerec.errors import DataError


def select_images(source: str, limit: int) -> dict[str, bytes]:
    """Select up to ``limit`` evenly spaced images, and return their file contents, keyed by file name.

    Image files are not decoded, because decoding is part of the comparison.

    Args:
        source: image folder, .npz file or data set name.
        limit: maximum number of images.

    Raises:
        DataError: there are no images.
    """
    source_images = find(source, flat=True)
    count = len(source_images.classes)
    if not count or limit < 1:
        raise DataError(
            f"cannot compare scores because {source} contains no images: choose another data set with --data"
        )
    images = {}
    for number in (index * count // min(limit, count) for index in range(min(limit, count))):
        part, index = source_images.locate(number)
        if isinstance(part, Files):
            images[f"image-{number:05d}{part.paths[index].suffix.lower()}"] = part.paths[index].read_bytes()
        else:
            image = part.images[index]
            images[f"image-{number:05d}.png"] = encode_png(image if image.ndim == 3 else image[:, :, None])
    return images
