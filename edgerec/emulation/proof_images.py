"""Pictures of a person's own for the proof, as files."""

from __future__ import annotations

from edgerec.contract.preprocess import encode_png
from edgerec.data.readers import Files, find
from edgerec.errors import DataError


def some_pictures(source: str, most: int) -> dict[str, bytes]:
    """At most ``most`` of a folder's, an .npz file's or a named data set's pictures, spread over it evenly, by name.

    Files are taken as they are: decoding them is part of what is compared.

    Raises:
        DataError: there are none.
    """
    found = find(source, flat=True)
    count = len(found.classes)
    if not count or most < 1:
        raise DataError(f"{source} has no pictures to compare answers on")
    chosen = [number * count // min(most, count) for number in range(min(most, count))]
    images = {}
    for number in chosen:
        part, place = found.locate(number)
        if isinstance(part, Files):
            images[f"picture-{number:05d}{part.paths[place].suffix.lower()}"] = part.paths[place].read_bytes()
        else:
            image = part.images[place]
            images[f"picture-{number:05d}.png"] = encode_png(image if image.ndim == 3 else image[:, :, None])
    return images
