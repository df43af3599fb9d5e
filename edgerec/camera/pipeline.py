"""The camera: a source, a classifier, and the answers in between."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from types import TracebackType

from edgerec.camera.frame import Result
from edgerec.camera.reader import FrameReader
from edgerec.camera.sinks import Sink
from edgerec.camera.sources import open_source
from edgerec.runtime.classifier import Classifier


class Camera:
    """Classifies a source's frames as they come.

    >>> with Camera.open("signs-rpi", "0") as camera:   # doctest: +SKIP
    ...     for result in camera:
    ...         print(result.classification.label, result.age_ms)
    """

    def __init__(self, classifier: Classifier, source: str) -> None:
        self._classifier = classifier
        self._source = source
        self._stack = ExitStack()
        self._reader: FrameReader | None = None

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        source: str,
        *,
        threads: int = 0,
        delegate: str | None = None,
        threshold: float | None = None,
    ) -> Camera:
        """A camera over the bundle (folder or .zip) and the source, which opens on entering it."""
        classifier = Classifier.open(bundle, threads=threads, delegate=delegate, threshold=threshold)
        return cls(classifier, source)

    def __enter__(self) -> Camera:
        self._reader = self._stack.enter_context(FrameReader(open_source(self._source)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[Result]:
        """Each frame's result; ends with the source, raises :class:`SourceError` when it fails."""
        if self._reader is None:
            raise RuntimeError("use the camera in a with block: with Camera.open(...) as camera")
        for frame in self._reader:
            classification = self._classifier.classify(frame.image)
            yield Result(frame, classification, time.monotonic())

    def run(self, sinks: Iterable[Sink], max_frames: int | None = None) -> int:
        """Send every result to every sink until the source ends, a sink closes, or ``max_frames`` are done.

        Returns:
            How many frames were answered.
        """
        sinks = list(sinks)
        count = 0
        for result in islice(self, max_frames):
            count += 1
            for sink in sinks:
                sink.write(result)
            if any(sink.closed for sink in sinks):
                break
        return count
