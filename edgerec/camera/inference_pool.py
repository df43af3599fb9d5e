"""Classify frames with one classifier, or with several classifiers in parallel."""

from __future__ import annotations

import atexit
import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from queue import SimpleQueue

from edgerec.camera.frame import Frame
from edgerec.camera.source_state import StateChange
from edgerec.camera.supervisor import Event
from edgerec.contract.decision import Classification
from edgerec.runtime.classifier import Classifier

ClassifiedEvent = StateChange | tuple[Frame, Classification] | None


def classify_events(events: Iterable[Event | None], classifiers: Sequence[Classifier]) -> Iterator[ClassifiedEvent]:
    """Yield each frame with its classification and each state change, in the order of the events.

    An event that is None means that no frame or state change arrived for some time; it is passed on. A single
    classifier finishes each frame before the next frame is requested. Several classifiers each run in their own thread,
    which requests the frames that it classifies. At most twice as many frames as classifiers are requested before their
    results are consumed, which increases the throughput, but also the latency. The threads end when there are no more
    events, or when the iterator is closed.
    """
    if len(classifiers) == 1:
        return (_classify(classifiers[0], event) for event in events)
    return _in_parallel(iter(events), classifiers)


def _classify(classifier: Classifier, event: Event | None) -> ClassifiedEvent:
    return (event, classifier.classify(event.grabbed)) if isinstance(event, Frame) else event


def _in_parallel(events: Iterator[Event | None], classifiers: Sequence[Classifier]) -> Iterator[ClassifiedEvent]:
    # The events are numbered, so that the results can be sorted. `requests` has the numbers that may be requested.
    requests, results = SimpleQueue[int](), SimpleQueue[tuple[int, ClassifiedEvent | BaseException]]()
    turn, closing = threading.Lock(), threading.Event()

    def work(classifier: Classifier) -> None:
        number = 0
        try:
            while True:
                with turn:
                    number = requests.get()
                    if closing.is_set():
                        return
                    event = next(events)
                results.put((number, _classify(classifier, event)))
        except BaseException as error:  # raised again in the consumer's thread; StopIteration marks the end
            results.put((number, error))

    threads = [
        threading.Thread(target=work, args=(classifier,), name=f"edgerec-model-{index}", daemon=True)
        for index, classifier in enumerate(classifiers)
    ]

    def close() -> None:
        closing.set()
        for _ in threads:
            requests.put(0)
        for thread in threads:
            thread.join()

    atexit.register(close)  # if a thread runs native code while Python exits, the process aborts
    try:
        for thread in threads:
            thread.start()
        for number in range(2 * len(classifiers)):
            requests.put(number)
        early: dict[int, ClassifiedEvent | BaseException] = {}
        for number in itertools.count():
            while number not in early:
                finished, result = results.get()
                early[finished] = result
            result = early.pop(number)
            if isinstance(result, StopIteration):
                return
            if isinstance(result, BaseException):
                raise result
            requests.put(number + 2 * len(classifiers))
            yield result
    finally:
        close()
        atexit.unregister(close)
