"""Images that are halved along one axis have the same bytes as with INTER_AREA of OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edgerec.contract.preprocess import PreprocessSpec, apply


def resized_by_opencv(image, height, width):
    """Halve each axis while it is at least twice the target, then interpolate."""
    while image.shape[0] >= 2 * height or image.shape[1] >= 2 * width:
        factors = 1 + (image.shape[0] >= 2 * height), 1 + (image.shape[1] >= 2 * width)
        rows, columns = image.shape[0] // factors[0], image.shape[1] // factors[1]
        cropped = image[: rows * factors[0], : columns * factors[1]]
        image = cv2.resize(cropped, (columns, rows), interpolation=cv2.INTER_AREA)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("rows", "columns"), [(40, 333), (333, 40), (45, 2001), (720, 1280), (33, 66)])
def test_bytes_do_not_depend_on_the_implementation(rows, columns, channels):
    image = np.random.default_rng(rows).integers(0, 256, (rows, columns, channels), np.uint8)
    expected = resized_by_opencv(image, 32, 31).reshape(32, 31, channels)
    spec = PreprocessSpec(32, 31, channels, fit="stretch")
    assert np.array_equal(apply(image, spec), expected)
    if channels == 3:
        bgr = np.ascontiguousarray(image[:, :, ::-1])
        assert np.array_equal(apply(bgr[:, :, ::-1], spec), expected)


@pytest.mark.parametrize("version", [1, 2])
def test_bytes_are_the_same_for_random_sizes_and_views(version):
    rng = np.random.default_rng(version)
    for _ in range(100):
        rows, columns, height, width = (int(n) for n in rng.integers(1, (900, 900, 200, 200)))
        frame = rng.integers(0, 256, (rows + 5, columns + 3, 3), np.uint8)
        view = frame[5:, 3:, ::-1]  # a region of a BGR image, which is not contiguous
        shrinks_both = rows >= 2 * height and columns >= 2 * width
        if version == 1 and not shrinks_both:
            expected = cv2.resize(view.copy(), (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
        elif version == 2:
            expected = resized_by_opencv(view.copy(), height, width)
        else:
            continue
        spec = PreprocessSpec(height, width, fit="stretch", version=version)
        assert np.array_equal(apply(view, spec), expected)
