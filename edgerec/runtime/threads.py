"""Find the fastest number of interpreter threads for a model on this machine, and cache the result."""

from __future__ import annotations

import logging

import numpy as np

from edgerec.contract.preprocess import Image
from edgerec.contract.tensors import Normalize
from edgerec.runtime.image_model import ImageModel
from edgerec.runtime.interpreter import fingerprint
from edgerec.runtime.latency_comparison import time_models
from edgerec.utils.atomic import cache_folder, sha256, write_file
from edgerec.utils.parallel import available_cpus

log = logging.getLogger(__name__)

# Maximum number of rounds and approximate duration in seconds of a latency measurement.
ROUNDS, BUDGET_S = 30, 0.3
# More threads are used only if they reduce the latency below this fraction of the latency with fewer threads.
MAX_TIME_RATIO = 0.9


def best_threads(content: bytes, normalize: Normalize) -> int:
    """Return the number of threads with the lowest latency, or a smaller number with a similar latency.

    Args:
        content: the bytes of a .tflite image classifier.
        normalize: input pixel normalization.
    """
    available = available_cpus()
    if available == 1:
        return 1
    machine = f"{fingerprint().to_dict()} {available}".encode()
    cache_file = None
    try:
        cache_file = cache_folder() / f"threads-{sha256(content + machine)[:32]}"
        return min(available, max(1, int(cache_file.read_text(encoding="ascii"))))
    except (OSError, ValueError):
        best = _measure(content, normalize, available)
    if cache_file is None:  # the user has no home folder
        return best
    try:
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        write_file(cache_file, str(best))
    except OSError as error:
        log.debug("the number of threads cannot be cached: %s", error)
    return best


def _measure(content: bytes, normalize: Normalize, available: int) -> int:
    counts = [n for n in (1, 2, 3, 4, 6, 8) if n <= available]
    models = {count: ImageModel(content, normalize, threads=count) for count in counts}
    pixels: Image = np.zeros(models[1].input.shape[1:], np.uint8)
    timings = time_models(
        {str(count): (model, pixels) for count, model in models.items()},
        budget_s=BUDGET_S / len(counts),
        least_rounds=3,
        most_rounds=ROUNDS,
    )
    best = 1
    for count in counts:
        if timings[str(count)].median_ms < MAX_TIME_RATIO * timings[str(best)].median_ms:
            best = count
    log.debug("threads: %d", best)
    return best
