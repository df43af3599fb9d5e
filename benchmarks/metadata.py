"""Compare the labels and scores that MediaPipe and edgerec compute from the same .tflite files.

    pip install mediapipe
    python benchmarks/metadata.py RUN/float32/model.tflite [MODEL ...] --image PICTURE

TensorFlow is not needed. MediaPipe accepts only RGB inputs and float32 or uint8 tensors. For models with int8 outputs
or grayscale inputs, its error message is printed. The image is first resized to the model's input size, so that
differences in resizing have no effect.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec import read_image
from edgerec.contract.preprocess import Image, PreprocessSpec, apply
from edgerec.runtime.image_model import ImageModel
from edgerec.runtime.interpreter import input_spec, open_interpreter
from edgerec.tflite.metadata import normalize_for, read_metadata


def of_edgerec(content: bytes, picture: Image) -> tuple[Image, tuple[str, ...], npt.NDArray[np.float32]]:
    """Return the preprocessed pixels, the labels and the scores."""
    metadata, given = read_metadata(content), input_spec(open_interpreter(content))
    model = ImageModel(content, normalize_for(given, metadata))
    _, height, width, channels = given.shape
    pixels = apply(picture, PreprocessSpec(height, width, channels))
    return pixels, metadata.labels if metadata else (), model.scores(pixels)


def of_mediapipe(mediapipe: Any, content: bytes, pixels: Image) -> tuple[tuple[str, ...], npt.NDArray[np.float32]]:
    """Return MediaPipe's labels and scores in the order of the outputs. MediaPipe raises ValueError or RuntimeError."""
    tasks = mediapipe.tasks
    options = tasks.vision.ImageClassifierOptions(tasks.BaseOptions(model_asset_buffer=content))
    image = mediapipe.Image(mediapipe.ImageFormat.SRGB, np.repeat(pixels, 3 // pixels.shape[2], axis=2))
    with tasks.vision.ImageClassifier.create_from_options(options) as classifier:
        found = classifier.classify(image).classifications[0].categories
    ordered = sorted(found, key=lambda category: category.index)
    return tuple(c.category_name for c in ordered), np.array([c.score for c in ordered], np.float32)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--image", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        import mediapipe
    except ImportError as error:
        print(f"skipped: {error}; pip install mediapipe")
        return 0
    wrong = 0
    for path in arguments.models:
        content = path.read_bytes()
        pixels, labels, ours = of_edgerec(content, read_image(arguments.image))
        try:
            names, theirs = of_mediapipe(mediapipe, content, pixels)
        except (ValueError, RuntimeError) as error:
            print(f"{path}: MediaPipe refuses the model: {error}")
            continue
        off = float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else float("inf")
        wrong += names != labels or off > 2e-3
        best, other = labels[int(ours.argmax())], names[int(theirs.argmax())]
        print(f"{path}: {best} {ours.max():.4f}, MediaPipe {other} {theirs.max():.4f}, difference {off:g}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
