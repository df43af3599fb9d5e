"""Pictures of a person's own for the proof, as files."""

from __future__ import annotations

from edgerec.contract.preprocess import encode_png
from edgerec.data.sources import Files, find
from edgerec.errors import DataError


def some_pictures(source: str, most: int) -> dict[str, bytes]:
    """At most ``most`` of a folder's, an .npz file's or a named data set's pictures, spread over it evenly, by name.

    Files are taken as they are: decoding them is part of what is compared.

    Raises:
        DataError: there are none.
    """
    found = find(source, flat=True)
    count = len(found.paths) if isinstance(found, Files) else len(found.images)
    if not count or most < 1:
        raise DataError(f"{source} has no pictures to compare answers on")
    chosen = [number * count // min(most, count) for number in range(min(most, count))]
    if isinstance(found, Files):
        return {f"picture-{n:05d}{found.paths[n].suffix.lower()}": found.paths[n].read_bytes() for n in chosen}
    images = (found.images[n] for n in chosen)
    return {
        f"picture-{n:05d}.png": encode_png(image if image.ndim == 3 else image[:, :, None])
        for n, image in zip(chosen, images, strict=True)
    }
