"""Measure once which number of threads suits a model on this machine, and cache the result."""

from __future__ import annotations

import hashlib
import logging
import time

import numpy as np

from edgerec.contract.preprocess import Image
from edgerec.contract.tensors import Normalise
from edgerec.runtime.interpreter import fingerprint
from edgerec.runtime.model import ImageModel
from edgerec.tflite.runtimes import processors
from edgerec.utils.atomic import cache_folder, write_file

log = logging.getLogger(__name__)

ROUNDS, BUDGET_S = 30, 0.3
# More threads must be so much quicker: they also take the processors from the camera and the sinks.
WORTH = 0.9


def best_threads(content: bytes, normalise: Normalise) -> int:
    """Return the smallest number of threads with which the model is nearly as fast as with the best number.

    Args:
        content: the bytes of a .tflite image classifier.
        normalise: normalization of the input pixels.
    """
    available = processors()
    if available == 1:
        return 1
    about = f"{fingerprint().to_dict()} {available}".encode()
    remembered = None
    try:
        remembered = cache_folder() / f"threads-{hashlib.sha256(content + about).hexdigest()[:32]}"
        return min(available, max(1, int(remembered.read_text(encoding="ascii"))))
    except (OSError, ValueError):
        chosen = _measured(content, normalise, available)
    if remembered is None:  # the user has no home folder
        return chosen
    try:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        write_file(remembered, str(chosen))
    except OSError as error:
        log.debug("the number of threads is not remembered: %s", error)
    return chosen


def _measured(content: bytes, normalise: Normalise, most: int) -> int:
    counts = [n for n in (1, 2, 3, 4, 6, 8) if n <= most]
    models = {count: ImageModel(content, normalise, threads=count) for count in counts}
    pixels: Image = np.zeros(models[1].input.shape[1:], np.uint8)
    taken: dict[int, list[float]] = {count: [] for count in counts}
    began = time.perf_counter()
    for done in range(ROUNDS):
        if done >= 3 and time.perf_counter() - began > BUDGET_S:
            break
        for count, model in models.items():
            model.invoke(pixels)
            start = time.perf_counter()
            model.invoke(pixels)
            taken[count].append(time.perf_counter() - start)
    chosen = 1
    for count in counts:
        if np.median(taken[count]) < WORTH * np.median(taken[chosen]):
            chosen = count
    log.debug("threads: %d", chosen)
    return chosen
