"""Decode and classify images in parallel worker threads."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from edgerec.contract.decision import Classification
from edgerec.contract.image_decoding import decode, memory_for, why_unreadable
from edgerec.contract.image_headers import image_size
from edgerec.contract.reduced_decoding import ReductionChooser, jpeg_reduction
from edgerec.errors import DataError
from edgerec.runtime.classifier import Classifier

log = logging.getLogger(__name__)

# Maximum number of pixels, because decoding larger images takes seconds and hundreds of megabytes.
MAX_PIXELS = 50_000_000
# Maximum number of images in a batch.
MAX_BATCH = 16
# Target duration of a batch in seconds.
BATCH_S = 0.02
# Maximum time in seconds that an image may wait in the queue before its request is rejected.
MAX_WAIT_S = 30.0
# Time in seconds after which a worker that is still classifying the same image is treated as hung.
HANG_S = 60.0
# Maximum time in seconds to wait for the worker threads to stop.
JOIN_S = 5.0


class BusyError(Exception):
    """Raised when the queue is full or an image has waited too long in the queue."""


@dataclass(eq=False, slots=True)
class _Job:
    content: bytes
    future: asyncio.Future[Classification]
    loop: asyncio.AbstractEventLoop
    submitted_s: float


_Outcome = tuple[_Job, Classification | Exception]


class ClassifierPool:
    """A pool of worker threads that take images from a bounded queue, and decode and classify them.

    Each worker has its own classifier. If many images are waiting, a worker takes a batch of them and returns the
    results together, because switching threads for each image would take as long as classifying a small image.

    All methods except :meth:`close` must be called in the event loop's thread.

    Attributes:
        queued: number of images that are waiting or being classified.
        max_queued: maximum value of :attr:`queued`.
        classified: number of classified images.
    """

    def __init__(
        self, classifiers: Sequence[Classifier], *, max_queued: int, choose_reduction: ReductionChooser | None = None
    ) -> None:
        """Start one worker thread for each classifier.

        ``choose_reduction`` selects the scale at which JPEG images are decoded. None decodes them at full size.
        """
        self._choose_reduction = choose_reduction
        self.queued, self.max_queued, self.classified = 0, max_queued, 0
        self._classifiers = tuple(classifiers)
        self._jobs = SimpleQueue[_Job | None]()
        self._closed = False
        # Time at which each worker started its current image, or None if the worker is idle.
        self._started_s: list[float | None] = [None] * len(self._classifiers)
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"edgerec-classifier-{number}", daemon=True)
            for number in range(len(self._classifiers))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def invalid(self) -> int:
        """Number of images for which a model returned NaN or infinite scores."""
        return sum(classifier.invalid for classifier in self._classifiers)

    @property
    def healthy(self) -> bool:
        """Whether all workers are running and none is hung."""
        now = time.monotonic()
        hanging = any(started_s is not None and now - started_s > HANG_S for started_s in self._started_s)
        return not hanging and not self._closed and all(thread.is_alive() for thread in self._threads)

    def submit(self, contents: Sequence[bytes]) -> list[asyncio.Future[Classification]]:
        """Add image files to the queue and return a future for each prediction.

        A future raises :class:`DataError` if its file is not a readable image, and :class:`BusyError` if the file has
        waited for more than :data:`MAX_WAIT_S`.

        Raises:
            BusyError: the queue has no room for all files. No file is added.
        """
        if self._closed or self.queued + len(contents) > self.max_queued:
            raise BusyError
        loop, now = asyncio.get_running_loop(), time.monotonic()
        jobs = [_Job(content, loop.create_future(), loop, now) for content in contents]
        self.queued += len(jobs)
        for job in jobs:
            self._jobs.put(job)
        return [job.future for job in jobs]

    def close(self) -> None:
        """Stop each worker after its current image. Images in the queue are discarded."""
        self._closed = True
        for _ in self._threads:
            self._jobs.put(None)
        end_s = time.monotonic() + JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, end_s - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            log.warning("a classifier does not stop: its thread is abandoned")

    def _run(self, number: int) -> None:
        classifier, image_s = self._classifiers[number], BATCH_S
        while True:
            jobs = self._take(int(BATCH_S / image_s))
            outcomes: list[_Outcome] = []
            batch_s = started_s = time.monotonic()
            for job in jobs:
                if job is None or self._closed:
                    self._deliver(outcomes)
                    return
                if outcomes and started_s - batch_s > BATCH_S:
                    self._deliver(outcomes)
                    outcomes, batch_s = [], started_s
                self._started_s[number] = started_s
                outcomes.append((job, self._outcome(classifier, job, started_s - job.submitted_s)))
                image_s, started_s = max(time.monotonic() - started_s, 1e-6), time.monotonic()
            self._started_s[number] = None
            self._deliver(outcomes)

    def _take(self, batch_size: int) -> list[_Job | None]:
        """Wait for a job and return a batch of at most ``batch_size`` jobs."""
        jobs = [self._jobs.get()]
        share = min(batch_size, MAX_BATCH, self._jobs.qsize() // (4 * len(self._threads)))
        try:
            while len(jobs) < share and jobs[-1] is not None:
                jobs.append(self._jobs.get_nowait())
        except Empty:
            pass
        return jobs

    def _deliver(self, outcomes: list[_Outcome]) -> None:
        if outcomes:
            try:
                outcomes[0][0].loop.call_soon_threadsafe(self._complete, outcomes)
            except RuntimeError:  # The event loop is already closed.
                log.debug("the results of %d images were dropped, because the server has stopped", len(outcomes))

    def _outcome(self, classifier: Classifier, job: _Job, waited_s: float) -> Classification | Exception:
        if waited_s > MAX_WAIT_S or job.future.cancelled():
            return BusyError()
        try:
            return classify_file(classifier, job.content, self._choose_reduction)
        except Exception as error:  # A damaged image must not stop the worker thread.
            return error

    def _complete(self, outcomes: list[_Outcome]) -> None:
        self.queued -= len(outcomes)
        for job, outcome in outcomes:
            self.classified += isinstance(outcome, Classification)
            if job.future.done():
                continue
            if isinstance(outcome, Classification):
                job.future.set_result(outcome)
            else:
                # The traceback refers to the job, so this reference cycle would keep the image in memory.
                traceback.clear_frames(outcome.__traceback__)
                job.future.set_exception(outcome)


def classify_file(
    classifier: Classifier, content: bytes, choose_reduction: ReductionChooser | None = None
) -> Classification:
    """Decode and classify an image file.

    ``choose_reduction`` selects the scale at which a JPEG image is decoded. None decodes it at full size.

    Raises:
        DataError: the file is not a readable image, or it has more than :data:`MAX_PIXELS` pixels.
    """
    width, height = image_size(content)
    if width * height > MAX_PIXELS:
        raise DataError(
            f"the image has {width}×{height} pixels, but this server accepts at most {MAX_PIXELS:,} pixels: resize the "
            "image"
        )
    with memory_for(content):
        reduction, _ = jpeg_reduction(content, choose_reduction)
        image = decode(content, classifier.levels, reduction=reduction)
    if image is None:
        raise DataError(why_unreadable(content))
    return classifier.classify(image)
