"""Detect the actual format of an unreadable file, for a helpful error message."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import IO

# Number of bytes at the start of a file that are used to detect its format.
HEAD_BYTES = 4096

_SIGNATURES: tuple[tuple[bytes, int, str], ...] = (
    (b"TFL3", 4, "is a TFLite model"),
    (b"\x89HDF\r\n\x1a\n", 0, "is an HDF5 file, such as a Keras model (.h5)"),
    (b"\x89PNG", 0, "is a PNG image"),
    (b"\xff\xd8\xff", 0, "is a JPEG image"),
    (b"GIF8", 0, "is a GIF image"),
    (b"%PDF", 0, "is a PDF document"),
    (b"\x7fELF", 0, "is a program or shared library"),
    (b"\x1f\x8b", 0, "is compressed with gzip: unpack it first"),
    (b"BZh", 0, "is compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ", 0, "is compressed with xz: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", 0, "is a 7-Zip archive: unpack it first"),
    (b"Rar!", 0, "is a RAR archive: unpack it first"),
    (b"ustar", 257, "is a tar archive: unpack it first"),
    (b"\x93NUMPY", 0, "is a NumPy array (.npy)"),
    (b"SQLite format 3", 0, "is an SQLite database"),
    (b"PAR1", 0, "is a Parquet file"),
    (b"\x80\x02", 0, "is a pickle, for example an old PyTorch model: edgerec never unpickles files"),
    (b"\x80\x03", 0, "is a pickle: edgerec never unpickles files"),
    (b"\x80\x04", 0, "is a pickle: edgerec never unpickles files"),
    (b"\x80\x05", 0, "is a pickle: edgerec never unpickles files"),
    (b"RIFF", 0, "is a RIFF file (WebP, AVI or WAV)"),
)
_HTML = re.compile(
    rb"\s*(?:<\?xml[^>]*>\s*|<!--(?:(?!-->).)*-->\s*)*<(?:!doctype html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)
# An ONNX file starts with ir_version, a small integer, usually followed by the producer's name.
_ONNX = re.compile(
    rb"\x08[\x01-\x20](?:\x12.(?:pytorch|tf2onnx|onnx|keras|skl2onnx|paddle|matlab|coreml|.{0,40}onnx)|:)", re.DOTALL
)
_SAVED_MODEL = re.compile(rb"\x08\x01\x12", re.DOTALL)


def describe(content: bytes) -> str:
    """Describe a file's format in a phrase such as ``is a PNG image``. Return an empty string if it is unknown.

    Args:
        content: the file's bytes. The first :data:`HEAD_BYTES` are sufficient, except for zip archives.
    """
    head = content[:HEAD_BYTES].removeprefix(b"\xef\xbb\xbf")
    if not content:
        return "is empty"
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "is a Git LFS pointer instead of the file itself: run git lfs install and git lfs pull in its repository"
    if re.match(rb"(\.\./|/annex/|\.git/annex)?[^\n]{0,200}annex/objects/", head) and len(content) < 1024:
        return "is a git-annex pointer instead of the file itself: run git annex get in its repository"
    if _HTML.match(head):
        return "is a web page instead of the file itself: log in, or use a direct link (on GitHub: the 'raw' link)"
    if head.startswith(b"PK\x03\x04"):
        return _archive(io.BytesIO(content))
    for signature, at, text in _SIGNATURES:
        if head[at : at + len(signature)] == signature:
            return text
    if _ONNX.match(head):
        return "is an ONNX model: convert it to .tflite first, for example with onnx2tf"
    if _SAVED_MODEL.match(head) and b"saved_model" in content[:65536] + content[-65536:]:
        return "is the saved_model.pb of a TensorFlow SavedModel: pass its folder to edgerec quantize"
    if _SAVED_MODEL.match(head) and b"serve" in content[: 1 << 20]:
        return "is the saved_model.pb of a TensorFlow SavedModel: pass its folder to edgerec quantize"
    if re.match(rb"\n.{0,3}\n.{1,200}\x12.{1,40}(Const|Placeholder)", head, re.DOTALL):
        return "is a frozen TensorFlow graph (.pb): convert it with TensorFlow's TFLite converter"
    return ""


def describe_file(path: Path) -> str:
    """Describe the format of a file or folder. Return an empty string if it is unknown or ``path`` cannot be read."""
    try:
        if path.is_dir():
            return "is the folder of a SavedModel" if (path / "saved_model.pb").is_file() else "is a folder"
        if not path.is_file():  # Opening a named pipe would block.
            return "is not a regular file" if path.exists() else ""
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            return _archive(file) if head.startswith(b"PK\x03\x04") else describe(head)
    except OSError:
        return ""


def _archive(file: IO[bytes]) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()[:10_000]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, OSError):
        return "is a damaged or truncated zip archive: download or copy it again"
    tails = {name.rpartition("/")[2] for name in names}
    if "config.json" in tails and any(name.endswith("weights.h5") for name in tails):
        return "is a Keras model (.keras): edgerec quantize converts it"
    if "saved_model.pb" in tails:
        return "is a zip archive with a SavedModel: unpack it, and pass its folder to edgerec quantize"
    if "data.pkl" in tails:
        return "is a PyTorch model: export it to ONNX or TFLite first (PyTorch: ai-edge-torch)"
    if "manifest.json" in tails and any(name.endswith(".tflite") for name in tails):
        return "is a zip archive with an edgerec bundle or an app's model"
    if any(name.endswith(".tflite") for name in tails):
        inner = next(name for name in names if name.endswith(".tflite"))
        return f"is a zip archive: unpack it, and use {inner}"
    if tails and all(name.endswith(".npy") for name in tails):
        return "is a NumPy archive (.npz)"
    if any(name.endswith(".mlmodel") for name in tails):
        return "is a Core ML package"
    return "is a zip archive: unpack it first"


def reason(path: str | Path, error: object) -> str:
    """Explain why a file cannot be parsed. Name its actual format if known, otherwise quote the parser's error."""
    kind = describe_file(Path(path))
    return f"it {kind}" if kind else str(error)
