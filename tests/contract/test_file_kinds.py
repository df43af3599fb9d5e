"""If a file has another format than expected, the error message states its format."""

from __future__ import annotations

import io
import os
import tracemalloc
import zipfile

import numpy as np
import pytest

from edgerec import Bundle, Recipe, import_tflite, inspect, read_image
from edgerec.contract.format_detection import describe_file
from edgerec.contract.target import Target
from edgerec.errors import EdgerecError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345678\n"
PAGE = b"\n\n\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>"


def archive(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name in names:
            file.writestr(name, b"")
    return content.getvalue()


KINDS = {
    "lfs": (POINTER, "Git LFS pointer .* git lfs pull"),
    "page": (PAGE, "web page"),
    "saved_model": (archive("m/saved_model.pb", "m/variables/variables.index"), "zip archive with a SavedModel"),
    "zipped": (archive("m/model.tflite", "m/labels.txt"), "zip archive.* m/model.tflite"),
    "keras3": (
        archive("config.json", "metadata.json", "model.weights.h5"),
        r"Keras model \(\.keras\).*edgerec quantize",
    ),
    "keras2": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5 file, such as a Keras model"),
    "torch": (archive("archive/data.pkl", "archive/data/0"), "PyTorch model"),
    "old_torch": (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M", "pickle.* never unpickles"),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\xab\x01\n\x1b", "ONNX model"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(20), "compressed with gzip"),
    "cut": (archive("m/saved_model.pb")[:40], "damaged or truncated zip"),
    "empty": (b"", "is empty"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_import_and_inspect_name_the_format_of_the_file(tmp_path, kind):
    content, expected = KINDS[kind]
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    for read in (inspect, lambda path: import_tflite(path, tmp_path / "b")):
        with pytest.raises(EdgerecError, match=f"model.tflite is not a TFLite model: it .*{expected}"):
            read(path)


@pytest.mark.parametrize("kind", ["lfs", "page"])
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("recipe.toml", Recipe.from_toml),
        ("target.toml", lambda path: Target.load(str(path))),
        ("bundle.zip", Bundle.open),
        ("image.jpg", read_image),
    ],
)
def test_other_readers_name_the_format_of_the_file(tmp_path, kind, name, read):
    content, expected = KINDS[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EdgerecError, match=expected):
        read(tmp_path / name)


def test_keras_and_array_readers_name_the_format_of_the_file(tmp_path):
    from edgerec.data.array_files import npz, read_arrays
    from edgerec.importing.third_party_keras import read_third_party

    for content, expected in (*KINDS.values(), (b"\x1c\0\0\0TFL3", "TFLite model .edgerec import")):
        if "Keras" in expected:
            continue
        (tmp_path / "model.keras").write_bytes(content)
        with pytest.raises(EdgerecError, match=expected):
            read_third_party(tmp_path / "model.keras")
    for name in ("data.npz", "data.npy"):
        (tmp_path / name).write_bytes(POINTER)
        with pytest.raises(EdgerecError, match="Git LFS pointer"):
            (npz if name == "data.npz" else read_arrays)(tmp_path / name)


def test_damaged_files_of_the_expected_format_have_another_message(tmp_path):
    np.savez(tmp_path / "x.npz", x_train=np.zeros((2, 2, 2), np.uint8))
    from edgerec.data.array_files import npz

    with pytest.raises(EdgerecError, match="but no y_train"):
        npz(tmp_path / "x.npz")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(EdgerecError, match="OpenCV cannot decode it"):
        read_image(tmp_path / "cut.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_named_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert describe_file(tmp_path / "pipe") == "is not a regular file"


def test_archive_is_recognized_without_reading_all_of_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "big.zip", "w") as file:
        file.writestr("m/saved_model.pb", b"")
        with file.open("m/variables.bin", "w") as weights:
            for _ in range(64):
                weights.write(bytes(1 << 20))
    tracemalloc.start()
    assert "SavedModel" in describe_file(tmp_path / "big.zip")
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


def test_endless_device_is_not_read(monkeypatch):
    monkeypatch.setattr("edgerec.contract.image_decoding.MAX_FILE_BYTES", 1 << 20)
    with pytest.raises(EdgerecError, match="/dev/zero cannot be read: the file is larger than 1 MiB"):
        read_image("/dev/zero")
    monkeypatch.setattr("edgerec.runtime.third_party.MAX_MODEL_BYTES", 1 << 20)
    with pytest.raises(EdgerecError, match="larger than 1 MiB"):
        import_tflite("/dev/zero", "out", labels="labels.txt")
