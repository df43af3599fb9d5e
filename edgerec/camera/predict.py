"""Classify image files, with the same results as a camera's frames."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from edgerec.camera.frame import Frame, Result
from edgerec.errors import DataError
from edgerec.runtime.classifier import Classifier, read_image
from edgerec.utils.folders import visible_files

log = logging.getLogger(__name__)


def predict(
    bundle: str | Path | Classifier, images: Iterable[str | Path], *, threshold: float | None = None
) -> Iterator[Result]:
    """Classify image files one after the other.

    Args:
        bundle: a bundle's folder or .zip, or an open classifier.
        images: paths of image files, or of folders whose files are classified in the order of their paths, including
            those in subfolders. A file in a folder that is not an image is skipped with a warning.
        threshold: score below which the label is ``unknown``, 0 to 1; None uses the threshold in the bundle.

    Raises:
        DataError: a file is not an image, or a folder contains no image.
    """
    classifier = bundle if isinstance(bundle, Classifier) else Classifier.open(bundle, threshold=threshold)
    index = 0
    for path in map(Path, images):
        before = index
        for file in visible_files(path, below=True) if path.is_dir() else [path]:
            captured_s = time.monotonic()
            try:
                image = read_image(file, classifier.levels)
            except DataError as error:
                if file == path:
                    raise
                log.warning("skipped: %s", error)
                continue
            frame = Frame(image, index, captured_s, str(file))
            yield Result(frame, classifier.classify(frame.image), time.monotonic())
            index += 1
        if index == before:
            raise DataError(f"{path} contains no image file: name a folder of images, or the images themselves")
