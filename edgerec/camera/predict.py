"""Classify image files in the same way as camera frames."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from edgerec.camera.frame import Frame, Result
from edgerec.errors import DataError
from edgerec.runtime.classifier import Classifier, read_image
from edgerec.utils.folders import may_be_image, visible_files

log = logging.getLogger(__name__)


def predict(
    bundle: str | Path | Classifier,
    images: Iterable[str | Path],
    *,
    threshold: float | None = None,
    allowed_signers: str | Path | None = None,
    revoked_keys: str | Path | None = None,
    reduced_decoding: bool = False,
) -> Iterator[Result]:
    """Classify image files, yielding one result per file.

    Args:
        bundle: a bundle's folder or .zip, or an open classifier.
        images: paths of image files, or of folders. The files in a folder and its subfolders are classified in order of
            their paths. Files that cannot be decoded are skipped, with a warning if they have the suffix of an image
            format or no suffix.
        threshold: minimum score, 0 to 1. If the score is lower, the label is ``unknown``. None uses the bundle's
            threshold.
        allowed_signers, revoked_keys: files of SSH keys that check the signature of the bundle; see
            :meth:`~edgerec.contract.bundle.Bundle.open`. They have no effect on an open classifier.
        reduced_decoding: whether to decode JPEG files at 1/2, 1/4 or 1/8 of their size if the model's input is that
            much smaller. This is faster, but changes the scores slightly.

    Raises:
        DataError: a file is not an image, or a folder contains no image.
    """
    keys = {"allowed_signers": allowed_signers, "revoked_keys": revoked_keys}
    classifier = bundle if isinstance(bundle, Classifier) else Classifier.open(bundle, threshold=threshold, **keys)
    choose_reduction = classifier.manifest.largest_reduction if reduced_decoding else None
    index = 0
    for path in map(Path, images):
        first_index = index
        for file in visible_files(path, below=True) if path.is_dir() else [path]:
            captured_s = time.monotonic()
            try:
                image = read_image(file, classifier.levels, choose_reduction)
            except DataError as error:
                if file == path:
                    raise
                if may_be_image(file):
                    log.warning("a file was skipped: %s", error)
                continue
            frame = Frame(image, index, captured_s, str(file))
            yield Result(frame, classifier.classify(frame.image), time.monotonic())
            index += 1
        if index == first_index:
            raise DataError(f"{path} contains no image files: specify a folder with images, or the image files")
