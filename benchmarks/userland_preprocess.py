"""Compute digests of preprocessed images, on this machine and inside a userland (``benchmarks/userland.py``)."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2

from edgerec.contract.image_decoding import decode
from edgerec.contract.preprocess import PreprocessSpec, apply

SPECS = [
    PreprocessSpec(height, width, channels, fit, interpolation)
    for height, width in ((28, 28), (96, 96), (224, 224), (48, 160))
    for channels in (1, 3)
    for fit in ("crop", "stretch", "pad")
    for interpolation in ("linear", "nearest")
]


def digests(files: Iterable[tuple[str, bytes]]) -> dict[str, Any]:
    """Return OpenCV's version, and for each file the digests of its decoded and of its preprocessed pixels."""
    digest_pairs = {}
    for name, content in files:
        image = decode(content)
        if image is None:
            digest_pairs[name] = ["", ""]
            continue
        preprocessed = hashlib.sha256()
        for spec in SPECS:
            preprocessed.update(apply(image, spec).tobytes())
        digest_pairs[name] = [hashlib.sha256(image.tobytes()).hexdigest(), preprocessed.hexdigest()]
    return {"opencv": cv2.__version__, "files": digest_pairs}


if __name__ == "__main__":
    here = Path(sys.argv[1])
    images = sorted((here / "images").iterdir())
    (here / "result.json").write_text(json.dumps(digests((path.name, path.read_bytes()) for path in images)))
