"""JPEG images that are decoded at a reduced size cover the same pixels as images that are decoded at full size."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest

from edgerec.contract.image_decoding import decode
from edgerec.contract.preprocess import PreprocessSpec, apply
from edgerec.contract.reduced_decoding import jpeg_reduction, largest_reduction


def smooth_image(height: int, width: int) -> np.ndarray:
    """Return an image of large colored areas, which JPEG changes little."""
    small = np.random.default_rng(height * width).integers(40, 216, (4, 5, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def jpeg(image: np.ndarray, *options: int, orientation: int = 1) -> bytes:
    content = bytes(cv2.imencode(".jpg", image[..., ::-1] if image.ndim == 3 else image, options)[1])
    if orientation == 1:
        return content
    tags = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)
    exif = b"Exif\0\0" + tags
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + content[2:]


def halved(image: np.ndarray, times: int) -> np.ndarray:
    """Halve an image as preprocessing does. A missing row or column is filled with the last one."""
    for _ in range(times):
        rows, columns = (-(-side // 2) * 2 for side in image.shape[:2])
        image = np.pad(image, ((0, rows - image.shape[0]), (0, columns - image.shape[1]), (0, 0)), "edge")
        image = cv2.resize(image, (columns // 2, rows // 2), interpolation=cv2.INTER_AREA)
    return image


@pytest.mark.parametrize(
    ("width", "height", "spec", "expected"),
    [
        (1280, 720, PreprocessSpec(96, 96), 4),
        (1280, 720, PreprocessSpec(224, 224), 2),
        (1280, 720, PreprocessSpec(361, 361), 1),
        (1280, 720, PreprocessSpec(360, 360), 2),
        (1280, 720, PreprocessSpec(90, 90, fit="stretch"), 8),
        (1280, 720, PreprocessSpec(160, 160, fit="pad"), 8),
        (4032, 3024, PreprocessSpec(224, 224), 8),
        (100, 100, PreprocessSpec(48, 48), 2),
        (1280, 720, PreprocessSpec(96, 96, interpolation="nearest"), 1),
        (0, 0, PreprocessSpec(96, 96), 1),
    ],
)
def test_reduced_image_is_at_least_as_large_as_the_input(width, height, spec, expected):
    assert largest_reduction(width, height, spec) == expected


def test_reduction_that_would_shift_the_crop_is_not_used():
    spec = PreprocessSpec(96, 96)
    assert largest_reduction(1920, 1080, spec) == 4  # The left margin of 420 pixels is not a multiple of 8.
    assert largest_reduction(400, 534, spec) == 1  # The top margin is 67 pixels.
    assert largest_reduction(400, 533, spec) == 2  # The top margin is 66 pixels. The last row is not used.
    assert largest_reduction(500, 375, spec) == 1


def test_reduction_depends_on_the_region():
    spec = PreprocessSpec(96, 96)
    assert largest_reduction(1280, 720, spec, (0, 0, 1280, 720)) == 4
    assert largest_reduction(1280, 720, spec, (640, 200, 840, 400)) == 2
    assert largest_reduction(1280, 720, spec, (641, 200, 841, 400)) == 1
    assert largest_reduction(1280, 720, spec, (1280, 720, 1280, 720)) == 1
    tall = PreprocessSpec(192, 96)
    assert largest_reduction(1280, 720, tall, (0, 0, 800, 400)) == 2
    assert largest_reduction(1280, 720, tall, (0, 0, 800, 400), sideways=True) == 4


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("version", [1, 2])
def test_crop_of_a_reduced_image_covers_the_same_pixels(fit, version):
    """If images were halved during decoding exactly as during preprocessing, the pixels would be equal."""
    rng = np.random.default_rng(7)
    reductions = []
    for _ in range(400):
        width, height, *sides = (int(n) for n in rng.integers(1, (500, 500, 60, 60)))
        spec = PreprocessSpec(*sides, fit=fit, version=version)
        reduction = largest_reduction(width, height, spec)
        reductions.append(reduction)
        if reduction > 1:
            image = rng.integers(0, 256, (height, width, 3), np.uint8)
            reduced = halved(image, reduction.bit_length() - 1)
            assert np.array_equal(apply(reduced, spec), apply(image, spec)), (width, height, spec, reduction)
    assert {1, 2, 4} <= set(reductions)


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("kind", ["baseline", "progressive", "grayscale"])
def test_reduced_image_is_a_smaller_copy(reduction, orientation, kind):
    image = smooth_image(240, 323)
    if kind == "grayscale":
        image = np.repeat(image[..., :1], 3, axis=2)
    options = (cv2.IMWRITE_JPEG_PROGRESSIVE, 1) if kind == "progressive" else ()
    content = jpeg(image[..., 0] if kind == "grayscale" else image, *options, orientation=orientation)
    full, reduced = decode(content), decode(content, reduction=reduction)
    turned = (323, 240) if orientation == 6 else (240, 323)
    assert full.shape == (*turned, 3)
    assert reduced.shape == (*(-(-side // reduction) for side in turned), 3)
    whole = tuple(side // reduction for side in turned)
    if orientation == 1:
        expected = halved(full, reduction.bit_length() - 1)[: whole[0], : whole[1]].astype(int)
        assert np.abs(reduced[: whole[0], : whole[1]] - expected).mean() < 3


def test_only_jpeg_files_are_reduced():
    image = smooth_image(96, 160)
    choices = []

    def choose(width: int, height: int) -> int:
        choices.append((width, height))
        return 4

    assert jpeg_reduction(jpeg(image), choose) == (4, (160, 96))
    assert jpeg_reduction(jpeg(image, orientation=6), choose) == (4, (96, 160))
    assert choices == [(160, 96), (96, 160)]
    assert jpeg_reduction(jpeg(image), None) == (1, None)
    for content in (
        bytes(cv2.imencode(".png", image)[1]),
        bytes(cv2.imencode(".webp", image)[1]),
        b"",
        b"\xff\xd8\xff",
    ):
        assert jpeg_reduction(
            content, lambda width, height: largest_reduction(width, height, PreprocessSpec(9, 9))
        ) == (
            1,
            None,
        )


def test_rotated_image_is_reduced_only_if_its_size_is_a_multiple():
    """The incomplete last column of a reduced image would become the first column."""
    content = jpeg(smooth_image(96, 162), orientation=3)
    assert jpeg_reduction(content, lambda width, height: 2) == (2, (162, 96))
    assert jpeg_reduction(content, lambda width, height: 4) == (1, None)
