"""Classify frames, either with one classifier or with several that run in parallel."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

from edgerec.camera.feed import Event
from edgerec.camera.frame import Frame
from edgerec.camera.states import StateChange
from edgerec.contract.decision import Classification
from edgerec.runtime.classifier import Classifier

Answered = StateChange | tuple[Frame, Classification] | None


def answered(events: Iterable[Event | None], classifiers: Sequence[Classifier]) -> Iterator[Answered]:
    """Yield each frame with its classification and each state change, in the order of the events.

    None means that no event arrived for some time, and is yielded immediately. A single classifier finishes each frame
    before the next frame is requested. With several classifiers, each one runs in its own thread, and up to twice as
    many frames as classifiers are requested in advance, so that a slow classifier does not block the others. This
    increases both throughput and latency.
    """
    if len(classifiers) == 1:
        return (_answer(classifiers[0], event) for event in events)
    return _at_once(events, classifiers)


def _answer(classifier: Classifier, event: Event | None) -> Answered:
    return (event, classifier.classify(event.grabbed)) if isinstance(event, Frame) else event


def _at_once(events: Iterable[Event | None], classifiers: Sequence[Classifier]) -> Iterator[Answered]:
    free = SimpleQueue[Classifier]()
    for classifier in classifiers:
        free.put(classifier)

    def answer(event: Event) -> Answered:
        classifier = free.get()
        try:
            return _answer(classifier, event)
        finally:
            free.put(classifier)

    waiting = deque[Future[Answered]]()
    with ThreadPoolExecutor(len(classifiers), thread_name_prefix="edgerec-model") as pool:
        for event in events:
            if event is None:
                yield None
            else:
                waiting.append(pool.submit(answer, event))
            while waiting and (len(waiting) > 2 * len(classifiers) or waiting[0].done()):
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()
