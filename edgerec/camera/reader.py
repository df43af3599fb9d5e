"""The thread that reads a source while the model computes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType

from edgerec.camera.frame import Frame
from edgerec.camera.sources import Source
from edgerec.errors import SourceError

# How many decoded pictures of a file wait for the model: enough to overlap, little memory.
READ_AHEAD = 2
JOIN_S = 2.0


class FrameReader:
    """Iterates over a source's frames, read in a thread of its own.

    Of a live source only the newest frame is kept, so that answers are never about the past; of a file every
    frame is kept and the reading waits. The reader's failure is raised where the frames are consumed.
    """

    def __init__(self, source: Source, silence_s: float = 10.0) -> None:
        self._source = source
        self._silence_s = silence_s
        self._frames: deque[Frame] = deque(maxlen=1 if source.live else None)
        self._changed = threading.Condition()
        self._ended = False
        self._stopped = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._read, name="edgerec-reader", daemon=True)

    def __enter__(self) -> FrameReader:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(JOIN_S)  # a read that hangs ends with the process: the thread is a daemon

    def __iter__(self) -> Iterator[Frame]:
        while (frame := self._next()) is not None:
            yield frame

    def _next(self) -> Frame | None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._frames or self._ended, self._silence_s):
                raise SourceError(
                    f"{self._source.name} gave no picture for {self._silence_s:g} s: "
                    "is it still connected, and not in use by another program?"
                )
            if self._frames:
                frame = self._frames.popleft()
                self._changed.notify_all()
                return frame
            if self._error is not None:
                raise self._error
            return None

    def _read(self) -> None:
        try:
            for index, (image, name) in enumerate(self._source.images()):
                frame = Frame(image, index, time.monotonic(), name)
                with self._changed:
                    if not self._source.live:
                        self._changed.wait_for(lambda: self._stopped or len(self._frames) < READ_AHEAD)
                    if self._stopped:
                        break
                    self._frames.append(frame)
                    self._changed.notify_all()
        except Exception as error:  # raised again where the user stands
            self._error = error
        finally:
            self._source.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()
