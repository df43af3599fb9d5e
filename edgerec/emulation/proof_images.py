"""Select images of the user for the comparison between the userland and this machine."""

from __future__ import annotations

from edgerec.contract.preprocess import encode_png
from edgerec.data.readers import Files, find
from edgerec.errors import DataError


def select_images(source: str, limit: int) -> dict[str, bytes]:
    """Return the content of at most ``limit`` image files, evenly chosen, by name.

    Image files are not decoded, because the comparison includes the decoding.

    Args:
        source: folder, .npz file or name of a dataset.
        limit: maximum number of images.

    Raises:
        DataError: there are no images.
    """
    source_images = find(source, flat=True)
    count = len(source_images.classes)
    if not count or limit < 1:
        raise DataError(f"{source} contains no images, so there is nothing to compare: choose other --data")
    chosen = [number * count // min(limit, count) for number in range(min(limit, count))]
    images = {}
    for number in chosen:
        part, index = source_images.locate(number)
        if isinstance(part, Files):
            images[f"picture-{number:05d}{part.paths[index].suffix.lower()}"] = part.paths[index].read_bytes()
        else:
            image = part.images[index]
            images[f"picture-{number:05d}.png"] = encode_png(image if image.ndim == 3 else image[:, :, None])
    return images
