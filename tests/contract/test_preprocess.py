"""Preprocessing: geometry, color, decoding, and identical bytes on every machine."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import pytest

from edgerec.contract.image_decoding import decode
from edgerec.contract.preprocess import PreprocessSpec, apply, contiguous, encode_png


def image_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (31, 17), (96, 96), (720, 1280)])
def test_output_has_the_shape_of_the_spec_for_all_image_sizes(fit, channels, size):
    spec = PreprocessSpec(96, 64, channels, fit)
    assert apply(image_of(*size), spec).shape == (96, 64, channels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
def test_view_of_a_bgr_image_gives_the_same_bytes(fit, channels):
    bgr = np.random.default_rng(0).integers(0, 256, (101, 67, 3), np.uint8)
    view, spec = bgr[:, :, ::-1], PreprocessSpec(24, 32, channels, fit=fit)
    np.testing.assert_array_equal(apply(view, spec), apply(view.copy(), spec))
    same = contiguous(view[5:90, 3:60])
    assert same.flags.c_contiguous
    np.testing.assert_array_equal(same, view[5:90, 3:60])


def test_image_of_the_right_size_is_not_changed():
    image = image_of(32, 32)
    assert np.array_equal(apply(image, PreprocessSpec(32, 32)), image)


def test_crop_keeps_the_center():
    image = np.zeros((100, 300, 3), np.uint8)
    image[:, 100:200] = (10, 20, 30)
    assert (apply(image, PreprocessSpec(50, 50, fit="crop")) == (10, 20, 30)).all()


def test_pad_adds_black_on_both_sides():
    image = np.full((100, 200, 3), 255, np.uint8)
    padded = apply(image, PreprocessSpec(40, 40, fit="pad"))
    assert (padded[:10] == 0).all()
    assert (padded[10:30] == 255).all()
    assert (padded[30:] == 0).all()


def test_shrinking_uses_every_pixel():
    # Every eighth column is white. Bilinear interpolation alone would use only white or only black columns.
    image = np.zeros((256, 256, 3), np.uint8)
    image[:, ::8] = 255
    assert abs(apply(image, PreprocessSpec(32, 32)).mean() - 255 / 8) < 2


def test_grayscale_is_the_luma_of_opencv():
    image = image_of(20, 20)
    assert np.array_equal(apply(image, PreprocessSpec(20, 20, 1))[:, :, 0], cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (1, "e2a7f83a5ff900d925c2217d7c07a1e604492df5989ca2938420baffb5588654"),
        (2, "c60ef856b88bd55ad32ae55c183eca3161ae3a553e8025a10db9e3270ab75194"),
    ],
)
def test_pixels_are_identical_on_every_machine(version, expected):
    """A CPU or an OpenCV release that computes other pixels breaks the contract."""
    digest = hashlib.sha256()
    for number, size in enumerate([(37, 53), (480, 640), (719, 1279), (20, 20), (96, 200)]):
        for fit in ("crop", "stretch", "pad"):
            for side in (28, 96, 224):
                digest.update(
                    apply(image_of(*size, seed=number), PreprocessSpec(side, side, 3, fit, version=version)).tobytes()
                )
    assert digest.hexdigest() == expected


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "uint8"),
        (np.zeros((4, 4, 4), np.uint8), "RGB"),
        (np.zeros((0, 4, 3), np.uint8), "RGB"),
        (np.zeros((4,), np.uint8), "RGB"),
    ],
)
def test_array_that_is_not_an_image_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        apply(image, PreprocessSpec(8, 8))


@pytest.mark.parametrize(
    "fields", [{"height": 0}, {"channels": 2}, {"fit": "zoom"}, {"interpolation": "cubic"}, {"width": True}]
)
def test_invalid_spec_is_refused(fields):
    with pytest.raises(ValueError, match="preprocess"):
        PreprocessSpec(**({"height": 8, "width": 8} | fields))


def test_grayscale_rgba_and_16_bit_files_are_decoded():
    rgb = image_of(12, 10)
    gray = rgb[:, :, 0]
    assert np.array_equal(decode(cv2.imencode(".png", gray)[1].tobytes()), np.repeat(gray[:, :, None], 3, 2))
    rgba = np.dstack([rgb, np.full((12, 10), 7, np.uint8)])
    assert np.array_equal(decode(cv2.imencode(".png", rgba[:, :, [2, 1, 0, 3]])[1].tobytes()), rgb)
    deep = rgb.astype(np.uint16) * 257
    assert np.array_equal(decode(cv2.imencode(".png", deep[:, :, ::-1])[1].tobytes()), rgb)


def test_exif_rotation_is_applied():
    image = np.zeros((16, 32, 3), np.uint8)
    image[:, :16] = 255  # the left half is white
    jpeg = cv2.imencode(".jpg", image)[1].tobytes()
    # An APP1 segment with one tag: orientation 6, which means that the image must be rotated clockwise.
    tiff = b"MM\x00\x2a\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
    app1 = b"\xff\xe1" + (len(tiff) + 8).to_bytes(2, "big") + b"Exif\x00\x00" + tiff
    turned = decode(jpeg[:2] + app1 + jpeg[2:])
    assert turned.shape == (32, 16, 3)
    assert turned[:14].min() > 240  # the left half is now at the top
    assert turned[18:].max() < 15


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0 half a jpeg", b"\x89PNG\r\n\x1a\n"])
def test_content_that_is_not_an_image_is_decoded_as_none(content):
    assert decode(content) is None


def test_png_encoding_is_lossless():
    image = image_of(9, 7)
    assert np.array_equal(decode(encode_png(image)), image)
