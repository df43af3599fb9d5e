"""Compare the labels and scores that MediaPipe and edgerec compute from the same .tflite files.

    pip install mediapipe
    python benchmarks/metadata.py RUN/float32/model.tflite [MODEL ...] --image IMAGE

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


def classify_with_edgerec(content: bytes, image: Image) -> tuple[Image, tuple[str, ...], npt.NDArray[np.float32]]:
    """Return the preprocessed pixels, the labels and the scores."""
    metadata, spec = read_metadata(content), input_spec(open_interpreter(content))
    model = ImageModel(content, normalize_for(spec, metadata))
    _, height, width, channels = spec.shape
    pixels = apply(image, PreprocessSpec(height, width, channels))
    return pixels, metadata.labels if metadata else (), model.scores(pixels)


def classify_with_mediapipe(
    mediapipe: Any, content: bytes, pixels: Image
) -> tuple[tuple[str, ...], npt.NDArray[np.float32]]:
    """Return MediaPipe's labels and scores in the order of the outputs. MediaPipe raises ValueError or RuntimeError."""
    tasks = mediapipe.tasks
    options = tasks.vision.ImageClassifierOptions(tasks.BaseOptions(model_asset_buffer=content))
    image = mediapipe.Image(mediapipe.ImageFormat.SRGB, np.repeat(pixels, 3 // pixels.shape[2], axis=2))
    with tasks.vision.ImageClassifier.create_from_options(options) as classifier:
        categories = classifier.classify(image).classifications[0].categories
    categories = sorted(categories, key=lambda category: category.index)
    return tuple(c.category_name for c in categories), np.array([c.score for c in categories], np.float32)


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
    mismatches = 0
    for path in arguments.models:
        content = path.read_bytes()
        pixels, labels, scores = classify_with_edgerec(content, read_image(arguments.image))
        try:
            expected_labels, expected = classify_with_mediapipe(mediapipe, content, pixels)
        except (ValueError, RuntimeError) as error:
            print(f"{path}: MediaPipe refuses the model: {error}")
            continue
        distance = float(np.abs(scores - expected).max()) if scores.shape == expected.shape else float("inf")
        mismatches += expected_labels != labels or distance > 2e-3
        label, other_label = labels[int(scores.argmax())], expected_labels[int(expected.argmax())]
        print(
            f"{path}: {label} {scores.max():.4f}, MediaPipe {other_label} {expected.max():.4f}, difference {distance:g}"
        )
    return int(mismatches > 0)


if __name__ == "__main__":
    sys.exit(main())
