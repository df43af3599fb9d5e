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
    found = {}
    for name, content in files:
        image = decode(content)
        if image is None:
            found[name] = ["", ""]
            continue
        seen = hashlib.sha256()
        for spec in SPECS:
            seen.update(apply(image, spec).tobytes())
        found[name] = [hashlib.sha256(image.tobytes()).hexdigest(), seen.hexdigest()]
    return {"opencv": cv2.__version__, "files": found}


if __name__ == "__main__":
    here = Path(sys.argv[1])
    pictures = sorted((here / "pictures").iterdir())
    (here / "result.json").write_text(json.dumps(digests((path.name, path.read_bytes()) for path in pictures)))
