"""Classify frames, either with one classifier or with several that run in parallel."""

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

    None means that no event arrived for some time. A single classifier finishes each frame before the next frame is
    requested. With several classifiers, each one runs in its own thread, which requests the frames that it classifies.
    At most twice as many frames as classifiers are requested before their results are consumed. This increases the
    throughput and the latency. The threads end with the events, or when the iterator is closed.
    """
    if len(classifiers) == 1:
        return (_answer(classifiers[0], event) for event in events)
    return _in_parallel(iter(events), classifiers)


def _answer(classifier: Classifier, event: Event | None) -> ClassifiedEvent:
    return (event, classifier.classify(event.grabbed)) if isinstance(event, Frame) else event


def _in_parallel(events: Iterator[Event | None], classifiers: Sequence[Classifier]) -> Iterator[ClassifiedEvent]:
    # Each event has a number. `requests` contains the numbers of the events that may be requested.
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
                results.put((number, _answer(classifier, event)))
        except BaseException as error:  # raised again by the consumer; StopIteration marks the end of the events
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

    atexit.register(close)  # a thread that runs native code while Python exits would abort the process
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
