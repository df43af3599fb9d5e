"""Small files cannot use unlimited memory or time."""

from __future__ import annotations

import json
import logging
import os
import shutil
import struct
import zipfile
import zlib

import cv2
import numpy as np
import pytest

from edgerec import Bundle, EdgerecError, Recipe, check_data, pack_data, read_image
from edgerec.camera.sources import find_source
from edgerec.contract.image_decoding import decode, why_unreadable
from edgerec.data import load
from edgerec.errors import BundleError, DataError
from edgerec.recipe import DataSection
from edgerec.utils import bounded_parsing

# Just above the largest image that is decoded. The file has 20 kB.
WIDTH, HEIGHT = 16000, 13000


def huge_png() -> bytes:
    """Return a PNG file of one bit per pixel that is completely black."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((1 + WIDTH // 8) * HEIGHT), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.fixture
def images_with_huge_one(tmp_path):
    folder = tmp_path / "data"
    for number in range(40):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((10, 10, 3), number, np.uint8))
    (folder / "a" / "huge.png").write_bytes(huge_png())
    return folder


def test_image_with_too_many_pixels_is_refused(tmp_path):
    (tmp_path / "huge.png").write_bytes(huge_png())
    with pytest.raises(DataError, match=r"16000×13000 pixels, but .* at most 200,000,000 pixels: resize the image"):
        read_image(tmp_path / "huge.png")


@pytest.mark.parametrize("suffix", [".tiff", ".webp", ".bmp", ".jp2", ".ppm", ".jpg", ".gif"])
def test_the_size_in_the_header_is_checked_in_every_format(suffix, tmp_path):
    image = np.zeros((37, 53, 3), np.uint8)
    content = bytes(cv2.imencode(suffix, image, [cv2.IMWRITE_WEBP_QUALITY, 80] if suffix == ".webp" else [])[1])
    assert decode(content).shape == image.shape
    huge = content.replace(*HEADER_SIZES[suffix])
    assert huge != content
    (tmp_path / f"huge{suffix}").write_bytes(huge)
    with pytest.raises(DataError, match=r"the image has \d{5,}×\d+ pixels"):
        read_image(tmp_path / f"huge{suffix}")


HEADER_SIZES = {
    ".tiff": (struct.pack("<HHII", 256, 3, 1, 53), struct.pack("<HHII", 256, 4, 1, 1 << 30)),
    ".webp": (struct.pack("<HH", 53, 37), struct.pack("<HH", 16383, 16383)),
    ".bmp": (struct.pack("<ii", 53, 37), struct.pack("<ii", 99999, 99999)),
    ".jp2": (struct.pack(">II", 53, 37), struct.pack(">II", 99999, 99999)),
    ".ppm": (b"53 37", b"99999 99999"),
    ".jpg": (struct.pack(">HH", 37, 53), struct.pack(">HH", 65500, 65500)),
    ".gif": (struct.pack("<HH", 53, 37), struct.pack("<HH", 65500, 65500)),
}


def test_data_commands_skip_an_image_with_too_many_pixels(images_with_huge_one, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("EDGEREC_CACHE", str(tmp_path / "cache"))
    caplog.set_level(logging.WARNING)
    section = DataSection(source=str(images_with_huge_one), input_size=8)
    dataset, _ = load(section)
    assert dataset.skipped == ("a/huge.png",)
    assert "16000×13000 pixels" in caplog.text
    pack = pack_data(Recipe(data=section), tmp_path / "pack")
    assert pack.skipped == ("a/huge.png",)
    assert "16000×13000 pixels" in str(check_data(Recipe(data=section)).to_dict())


def test_folder_source_skips_an_image_with_too_many_pixels(images_with_huge_one, caplog):
    caplog.set_level(logging.WARNING)
    images = list(find_source(str(images_with_huge_one / "a")).open().images())
    assert len(images) == 20
    assert "huge.png was skipped: the image has 16000×13000 pixels" in caplog.text


@pytest.fixture
def files(bundle):
    return {path.relative_to(bundle).as_posix(): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}


def zipped(path, files, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED])
def test_zip_that_unpacks_to_far_more_than_its_size_is_refused(files, tmp_path, compression):
    zeros = bytes(1 << 26)
    path = zipped(tmp_path / "b.zip", files | {f"zeros{number}": zeros for number in range(2)}, compression)
    with pytest.raises(BundleError, match=r"not a bundle, .* unpacks from [\d,]+ to 1\d\d,\d{3},\d{3} bytes"):
        Bundle.open(path)


def test_zip_with_very_many_files_is_refused(files, tmp_path):
    path = zipped(tmp_path / "b.zip", files | {f"{number}": b"" for number in range(10_001)})
    with pytest.raises(BundleError, match="more than 10,000 files"):
        Bundle.open(path)


@pytest.mark.parametrize("form", ["folder", "b.zip"])
def test_long_manifest_is_refused(files, tmp_path, form):
    manifest = json.loads(files["manifest.json"])
    manifest["metrics"] = {"x": [{}] * 1_500_000}
    files["manifest.json"] = json.dumps(manifest, separators=(",", ":")).encode()
    path = tmp_path / form
    if form == "folder":
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    else:
        zipped(path, files)
    with pytest.raises(BundleError, match=r"manifest\.json has \d,\d{3},\d{3} bytes, but .* 4 MiB for the manifest"):
        Bundle.open(path)


@pytest.mark.parametrize(
    "shape",
    [[3] * 1_000_000, [1, 2**31, 2**31, 3], [1, 2**29], [1, -10], [1, 0], [1, 10.0], ["1", "10"], [[1], 10], 10, []],
    ids=lambda shape: str(shape)[:20],
)
def test_absurd_tensor_shapes_are_refused(files, tmp_path, shape):
    manifest = json.loads(files["manifest.json"])
    manifest["output"]["shape"] = shape
    path = zipped(tmp_path / "b.zip", files | {"manifest.json": json.dumps(manifest)})
    with pytest.raises(BundleError, match=r"output: shape must "):
        Bundle.open(path)


def test_ensemble_with_very_many_members_is_refused(files, tmp_path):
    manifest = json.loads(files["manifest.json"])
    member = {key: manifest[key] for key in ("model", "input", "output", "preprocess", "normalize")}
    manifest["members"] = [member] * 65
    path = zipped(tmp_path / "b.zip", files | {"manifest.json": json.dumps(manifest)})
    with pytest.raises(BundleError, match="members: expected at most 64 models, got 65"):
        Bundle.open(path)


def test_npz_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.npz", "w", zipfile.ZIP_BZIP2) as archive:
        for name, array in {"x_train": np.zeros((100, 1000, 1000), np.uint8), "y_train": np.arange(100) % 2}.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array)
    with pytest.raises(EdgerecError, match=r"unpacks from 561 to 100,\d{3},\d{3} bytes and may be a zip bomb"):
        load(DataSection(source=str(tmp_path / "data.npz")))


def test_calibration_set_that_lists_an_image_twice_is_refused(run, tmp_path, invoke):
    assert invoke("calibration", "make", run.path, "--out", tmp_path / "set", "--images", "10").returncode == 0
    about = next(path for path in (tmp_path / "set").glob("*.json"))
    values = json.loads(about.read_text())
    values["images"] *= 2
    about.write_text(json.dumps(values))
    result = invoke("calibration", "check", tmp_path / "set", "--run", run.path)
    assert result.returncode == 1
    assert "an image twice" in result.stdout + result.stderr
    shutil.rmtree(tmp_path / "set")


def test_photos_of_200_megapixels_are_within_the_limit():
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 16320, 12240, 8, 2, 0, 0, 0)
    assert decode(header) is None  # it has no pixels
    assert "pixels" not in why_unreadable(header)
    assert int(os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"]) >= 16320 * 12240


def test_toml_with_a_very_long_dotted_key_is_refused(tmp_path):
    """The time to parse such a key grows with the square of its length."""
    (tmp_path / "recipe.toml").write_text(".".join("a" * 100_000) + " = 1\n")
    with pytest.raises(EdgerecError, match="a line has more than 1,000 dots"):
        Recipe.from_toml(tmp_path / "recipe.toml")


def test_zip_file_on_disk_with_very_many_files_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(bounded_parsing.MAX_ZIP_ENTRIES + 1):
            archive.writestr(str(number), b"")
    with pytest.raises(zipfile.BadZipFile, match="more than 10,000 files"):
        bounded_parsing.check_zip_file(tmp_path / "many.zip", 1 << 30)
