"""Choose the scale at which a JPEG image is decoded, to save time for decoding and resizing.

libjpeg can decode an image at 1/2, 1/4 or 1/8 of its size by computing only the low frequencies of each 8×8 block. The
pixels and the scores differ slightly from those of an image that is decoded at full size and then halved by
:func:`edgerec.contract.preprocess.apply`. Reduced decoding is therefore optional.
"""

from __future__ import annotations

from collections.abc import Callable

from edgerec.contract.image_headers import image_size, orientation
from edgerec.contract.preprocess import PreprocessSpec, cropped_and_resized

# Function that returns the reduction factor (1, 2, 4 or 8) for the width and height of an image.
ReductionChooser = Callable[[int, int], int]
# Left, top, right and bottom edges in pixels.
Region = tuple[int, int, int, int]

REDUCTIONS = (8, 4, 2)


def largest_reduction(
    width: int, height: int, spec: PreprocessSpec, region: Region | None = None, *, sideways: bool = False
) -> int:
    """Return the largest factor (1, 2, 4 or 8) by which an image can be reduced during decoding.

    Preprocessing crops an image and then halves it until its size is less than twice the size of the model's input. A
    reduction may only replace these halving steps, so that the image is never enlarged. The crop of the reduced image
    must cover exactly the same pixels, because a shift by a fraction of a pixel would change the scores more than the
    reduction itself. With ``interpolation="nearest"``, images are not halved, and the result is 1.

    Args:
        width, height: size of the image in pixels.
        spec: size and geometry of the model's input.
        region: left, top, right and bottom edges of the region that is passed to preprocessing, or None if the image is
            not cropped, rotated or mirrored before preprocessing.
        sideways: whether the region is rotated by 90 or 270 degrees before preprocessing.
    """
    left, top, right, bottom = region or (0, 0, width, height)
    rows, columns = bottom - top, right - left
    if spec.interpolation == "nearest" or rows < 1 or columns < 1:
        return 1
    if sideways:
        rows, columns = columns, rows
    cropped, resized = cropped_and_resized(rows, columns, spec)
    factor = min(cropped[0] // resized[0], cropped[1] // resized[1])
    # All sides must be divisible by the factor, because a rotation could move a partial pixel to another side.
    edges = () if region is None else (width, height, *region)
    for reduction in REDUCTIONS:
        if reduction <= factor and not any(edge % reduction for edge in edges):
            reduced_rows, reduced_columns = -(-rows // reduction), -(-columns // reduction)
            if _crop_edges(rows, columns, spec) == tuple(
                edge * reduction for edge in _crop_edges(reduced_rows, reduced_columns, spec)
            ):
                return reduction
    return 1


def _crop_edges(height: int, width: int, spec: PreprocessSpec) -> tuple[int, int, int, int]:
    """Return the top edge, left edge, height and width of the area that preprocessing uses."""
    (rows, columns), _ = cropped_and_resized(height, width, spec)
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def jpeg_reduction(content: bytes, choose: ReductionChooser | None) -> tuple[int, tuple[int, int] | None]:
    """Return the reduction factor for an image file.

    Returns:
        The factor (1, 2, 4 or 8), and the full width and height after the EXIF rotation. The size is None if the factor
        is 1.
    """
    if choose is None or content[:3] != b"\xff\xd8\xff":
        return 1, None
    width, height = image_size(content)
    turn = orientation(content)
    if turn >= 5:  # EXIF orientations 5 to 8 swap the width and height.
        width, height = height, width
    reduction = choose(width, height)
    is_upright_or_aligned = turn == 1 or not (width % reduction or height % reduction)
    return (reduction, (width, height)) if reduction > 1 and is_upright_or_aligned else (1, None)
