"""Classifying picture files, with the same results as a camera's frames."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from edgerec.camera.frame import Frame, Result
from edgerec.runtime.classifier import Classifier, read_image


def predict(
    bundle: str | Path | Classifier, images: Iterable[str | Path], *, threshold: float | None = None
) -> Iterator[Result]:
    """Classify picture files one after the other.

    Args:
        bundle: a bundle's folder or .zip, or an open classifier.
        images: paths of picture files.
        threshold: another ``unknown`` threshold than the bundle's.

    Raises:
        DataError: a file that is no picture.
    """
    classifier = bundle if isinstance(bundle, Classifier) else Classifier.open(bundle, threshold=threshold)
    for index, path in enumerate(images):
        grabbed_s = time.monotonic()
        frame = Frame(read_image(path, classifier.levels), index, grabbed_s, str(path))
        yield Result(frame, classifier.classify(frame.image), time.monotonic())
