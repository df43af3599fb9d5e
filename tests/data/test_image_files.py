"""Tests of image files of other programs: orientation, bit depth, and formats that OpenCV cannot read."""

from __future__ import annotations

import hashlib
import io
import logging
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from edgerec import Bundle, Camera, Classifier, Recipe, predict, read_image
from edgerec.contract.image_decoding import decode, why_unreadable
from edgerec.contract.preprocess import PreprocessSpec
from edgerec.data import load
from edgerec.data.checks import check_data
from edgerec.data.tfrecord_writer import pack_data
from edgerec.errors import BundleError, DataError, RecipeError
from edgerec.recipe import DataSection

FORMATS = ("JPEG", "PNG", "WEBP", "WEBP with the mark of JPEG", "TIFF", "MPO", "AVIF", "PNG by ImageMagick")


def marked_image() -> Image.Image:
    """Return an image with a red bar at the top and a green bar at the left, so that all orientations differ."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:8] = (255, 0, 0)
    pixels[8:, :10] = (0, 255, 0)
    return Image.fromarray(pixels)


def oriented(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x112] = orientation
    out = io.BytesIO()
    if kind == "PNG by ImageMagick":
        marked_image().save(out, "PNG")
        data = exif.tobytes()
        text = b"\nexif\n%8d\n" % len(data) + data.hex().encode()
        chunk = b"zTXt" + b"Raw profile type exif\0\0" + zlib.compress(text)
        chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        content = out.getvalue()
        return content[:33] + chunk + content[33:]
    marked_image().save(out, kind.split()[0], exif=exif)
    content = out.getvalue()
    if kind == "WEBP with the mark of JPEG":
        position = content.index(b"EXIF", 30)
        (length,) = struct.unpack_from("<I", content, position + 4)
        data = b"Exif\0\0" + content[position + 8 : position + 8 + length]
        content = content[:position] + b"EXIF" + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
        content = content[:4] + struct.pack("<I", len(content) - 8) + content[8:]
    return content


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_does(tmp_path, kind, orientation):
    path = tmp_path / "image"
    path.write_bytes(oriented(kind, orientation))
    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"), int)
    image = read_image(path)
    assert image.shape == expected.shape
    assert abs(image - expected).mean() < 3


def test_pixels_are_the_same_without_pillow(tmp_path):
    for kind in FORMATS:
        (tmp_path / kind).write_bytes(oriented(kind, 6))
    program = (
        "import sys, pathlib, hashlib; sys.modules['PIL'] = None; from edgerec import read_image;"
        "paths = sorted(pathlib.Path(sys.argv[1]).iterdir());"
        "[print(hashlib.sha256(read_image(path).tobytes()).hexdigest()) for path in paths]"
    )
    result = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    expected = [hashlib.sha256(read_image(path).tobytes()).hexdigest() for path in sorted(tmp_path.iterdir())]
    assert result.stdout.split() == expected


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_damaged_headers_do_not_stop_reading(tmp_path, kind):
    content, rng = oriented(kind, 6), np.random.default_rng(0)
    path = tmp_path / "image"
    for _ in range(60):
        damaged = bytearray(content[: rng.integers(8, len(content) + 1)])
        for position in rng.integers(4, len(damaged), 6):
            damaged[position] = rng.integers(0, 256)
        path.write_bytes(damaged)
        with suppress(DataError):  # any other exception fails the test
            assert read_image(path).shape[2] == 3


def with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    """Return a PNG file with an additional chunk after its header."""
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return png[:33] + chunk + png[33:]


def deep_tiff(samples: np.ndarray, bits: int = 16, maximum: int = 0) -> bytes:
    """Return a gray TIFF file with 16 or packed 12 bits per sample; its directory follows the pixels, as in libtiff."""
    height, width = samples.shape
    if bits == 12:
        pairs = samples.reshape(-1, 2).astype(int)
        data = b"".join(((a << 12) | b).to_bytes(3, "big") for a, b in pairs.tolist())
    else:
        data = samples.astype(f"<u{bits // 8}").tobytes()
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 4, height), (279, 4, len(data))] + ([(281, 3, maximum)] if maximum else [])
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + directory + bytes(4)


def deep_png(samples: np.ndarray) -> bytes:
    return cv2.imencode(".png", samples.astype(np.uint16))[1].tobytes()


RAMP = np.linspace(0, 1, 256).reshape(16, 16)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        *((deep_png(RAMP * (2**bits - 1)), f"{bits} bits in a PNG") for bits in (10, 12, 14, 16)),
        (with_chunk(deep_png(RAMP * 4095), b"sBIT", b"\x0c"), "12 significant bits"),
        (with_chunk(deep_png(RAMP * 65535), b"sBIT", b"\x0c"), "12 significant bits, scaled as the standard says"),
        (deep_tiff(RAMP * 4095, maximum=4095), "TIFF with MaxSampleValue"),
        (deep_tiff(RAMP * 4095, bits=12), "TIFF with packed samples"),
        (deep_tiff(RAMP * 16383), "14 bits in a TIFF"),
        (b"P5\n# a camera\n16 16\n1023\n" + (RAMP * 1023).astype(">u2").tobytes(), "PGM with its maximum"),
    ],
)
def test_bit_depth_of_a_file_is_detected(tmp_path, content, name):
    (tmp_path / "image").write_bytes(content)
    image = read_image(tmp_path / "image")
    assert abs(image[:, :, 0] - RAMP * 255).max() < 1.5, name


@pytest.mark.parametrize("kind", [".pgm", ".jp2"])
@pytest.mark.parametrize("bits", [12, 14])
def test_depth_is_measured_where_writers_state_16_bits(tmp_path, kind, bits):
    """OpenCV always writes a maximum of 65535 or a precision of 16 bits, even if the values are smaller."""
    ramp = np.tile(np.linspace(0, 2**bits - 1, 64).astype(np.uint16), (64, 1))
    cv2.imwrite(str(tmp_path / f"image{kind}"), ramp, [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])
    image = read_image(tmp_path / f"image{kind}")
    assert abs(image[:, :, 0].astype(int) - (ramp >> (bits - 8))).max() <= 1


def test_command_line_names_an_undecodable_image_without_messages_of_opencv(tmp_path, edgerec):
    for label in ("a", "b"):
        (tmp_path / "d" / label).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "d" / label / "0.tiff"), np.ones((16, 16), np.float32))
    result = edgerec("data", "check", tmp_path / "d", "--no-labels")
    assert "32-bit samples" in result.stdout + result.stderr
    assert "OpenCV" not in result.stderr


def test_stated_depth_counts_for_dark_images(tmp_path):
    dark = RAMP * 1000
    (tmp_path / "a").write_bytes(with_chunk(deep_png(dark), b"sBIT", b"\x0c"))
    (tmp_path / "b").write_bytes(b"P5 16 16 4095\n" + dark.astype(">u2").tobytes())
    (tmp_path / "c").write_bytes(deep_tiff(dark, bits=12))
    for path in tmp_path.iterdir():
        assert abs(read_image(path)[:, :, 0].astype(int) - dark // 16).max() <= 1


def test_full_range_is_divided_by_256(tmp_path):
    samples = np.random.default_rng(0).integers(0, 65536, (16, 16, 3)).astype(np.uint16)
    for suffix in (".png", ".tiff"):
        cv2.imwrite(str(tmp_path / f"a{suffix}"), samples)
        assert np.array_equal(read_image(tmp_path / f"a{suffix}"), (samples >> 8)[:, :, ::-1])


def deep_folder(folder, low, high, *, write=deep_png, dead=None):
    """Write two classes of 16-bit images with values from ``low`` to ``high``, as of a thermal camera.

    Return the folder. ``dead`` is the value of a dead pixel in one image.
    """
    rng = np.random.default_rng(0)
    for label in ("cold", "hot"):
        (folder / label).mkdir(parents=True)
        for number in range(12):
            real = rng.uniform(0, 0.3, (16, 16))
            real[4:12, 4:12] += 0.7 if label == "hot" else 0.2
            samples = np.clip(low + real * (high - low), low, high).round()
            samples.flat[0], samples.flat[1] = low, high
            if dead is not None and label == "hot" and not number:
                samples.flat[7] = dead
            (folder / label / f"{number:02d}.png").write_bytes(write(samples))
    return folder


@pytest.mark.parametrize(
    ("low", "high", "levels"),
    [
        (0, 4000, (0, 4095)),
        (100, 900, (0, 1023)),
        (0, 15000, (0, 16383)),
        (0, 65535, (0, 65535)),
        (28815, 31115, (28815, 31115)),
        (7200, 9100, (7200, 9100)),
    ],
)
def test_levels_are_determined_over_the_data_set(tmp_path, caplog, low, high, levels):
    with caplog.at_level(logging.INFO, "edgerec"):
        dataset, section = load(DataSection(source=str(deep_folder(tmp_path / "d", low, high)), input_size=16))
    assert (section.black_level, section.white_level) == levels
    assert dataset.images.max() > 215
    assert dataset.original(0).max() > 215
    assert ("is mapped to black" in caplog.text) == (levels != (0, 65535))


def test_dead_pixel_does_not_darken_all_images(tmp_path):
    _, section = load(DataSection(source=str(deep_folder(tmp_path, 28815, 31115, dead=65535)), input_size=16))
    # One of 6,144 samples exceeds the fraction of 0.01 % that is ignored as dead pixels.
    assert section.white_level == 65535
    rng = np.random.default_rng(0)
    for number in range(60):
        cv2.imwrite(str(tmp_path / "hot" / f"{number}.png"), rng.integers(28815, 31116, (32, 32)).astype(np.uint16))
    _, section = load(DataSection(source=str(tmp_path), input_size=16))
    assert (section.black_level, section.white_level) == (28815, 31115)


def test_levels_of_arrays_are_determined_and_reused(tmp_path, caplog):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4096, (40, 12, 12)).astype(np.uint16)
    np.savez(tmp_path / "a.npz", x_train=values, y_train=np.arange(40) % 4)
    with caplog.at_level(logging.INFO, "edgerec"):
        dataset, section = load(DataSection(source=str(tmp_path / "a.npz"), input_size=28))
    assert np.array_equal(dataset.original(3), values[3] >> 4)
    assert (section.black_level, section.white_level) == (0, 4095)
    assert "the value 0 is mapped to black and 4095 to white" in caplog.text
    # Other data is read with the levels of the model, independently of the data's own range.
    np.savez(tmp_path / "b.npz", x_train=values // 4, y_train=np.arange(40) % 4)
    other, _ = load(replace(section, source=str(tmp_path / "b.npz")))
    assert np.array_equal(other.original(3), values[3] >> 6)


def test_levels_can_be_set_and_are_checked(tmp_path):
    folder = deep_folder(tmp_path / "d", 0, 4000)
    section = DataSection(source=str(folder), input_size=16, black_level=1000, white_level=2000)
    dataset, resolved = load(section)
    assert (resolved.black_level, resolved.white_level) == (1000, 2000)
    assert (dataset.images == 0).mean() > 0.1
    assert (dataset.images == 255).mean() > 0.1
    with pytest.raises(RecipeError, match="black_level is 10, but must be below"):
        Recipe().override({"data.white_level": 10, "data.black_level": 10})


def test_data_check_and_pack_read_16_bit_files_with_their_range(tmp_path):
    folder = deep_folder(tmp_path / "d", 28815, 31115)
    recipe = Recipe().override({"data.source": str(folder), "data.input_size": 16})
    report = check_data(recipe, labels=False)
    assert not [finding for finding in report.findings if finding.kind in ("blank", "near", "near-across-classes")]
    packed = pack_data(recipe, tmp_path / "pack")
    assert packed.preprocess == PreprocessSpec(16, 16, black_level=28815, white_level=31115)
    dataset, _ = load(DataSection(source=str(tmp_path / "pack")))
    assert np.ptp(dataset.images[:]) > 200


def test_device_reads_16_bit_files_as_training_did(bundle, tmp_path):
    opened = Bundle.open(bundle)
    spec = replace(opened.manifest.preprocess, black_level=28815, white_level=31115)
    classifier = Classifier(replace(opened, manifest=replace(opened.manifest, preprocess=spec)))
    files = sorted((deep_folder(tmp_path / "d", 28815, 31115) / "hot").iterdir())
    expected = read_image(files[0], spec.levels)
    assert np.ptp(expected) == 255
    (result,) = predict(classifier, files[:1])
    assert np.array_equal(result.frame.image, expected)
    changed = replace(opened.manifest, preprocess=spec)
    Bundle.write(tmp_path / "bundle", changed, {name: opened.files[name] for name in changed.files})
    with Camera.open(tmp_path / "bundle", str(files[0].parent)) as camera:
        first = next(iter(camera))
    assert np.array_equal(first.frame.image, expected)
    with pytest.raises(BundleError, match="was trained with black level"):
        replace(changed, members=opened.manifest.models).check("manifest.json")


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)


def test_heic_error_says_what_to_install(tmp_path):
    (tmp_path / "IMG_0001.HEIC").write_bytes(HEIC)
    program = (
        "import sys; sys.modules['pillow_heif'] = None; from edgerec.cli.app import main;"
        "sys.argv[1:] = ['data', 'check', sys.argv[1]]; main()"
    )
    for label in ("blue", "red"):
        (tmp_path / "d" / label).mkdir(parents=True)
        for number in range(2):
            (tmp_path / "d" / label / f"IMG_{number}.HEIC").write_bytes(HEIC)
    result = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "d"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert 'it is a HEIC file, and pillow-heif is not installed: pip install "edgerec[heic]"' in result.stderr


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"", "it is empty"),
        (bytes(128) + b"DICM" + bytes(9), "DICOM"),
        (b"\xff\x0a" + bytes(9), "JPEG XL"),
        (deep_tiff(RAMP * 255, bits=32), "32-bit samples"),
    ],
)
def test_warning_about_an_unreadable_file_names_its_format(image_folder, caplog, content, reason):
    (image_folder / "red" / "odd.jpg").write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_image(image_folder / "red" / "odd.jpg")
    load(DataSection(source=str(image_folder), input_size=16))
    assert reason in caplog.text


@pytest.mark.parametrize("value", [1_000_000_000, -1_000_000_000])
def test_tiff_files_with_32_bit_samples_are_not_readable_images(value):
    _, encoded = cv2.imencode(".tiff", np.full((8, 8, 3), value, np.int32))
    assert decode(encoded.tobytes()) is None
    assert "32-bit samples" in why_unreadable(encoded.tobytes())
