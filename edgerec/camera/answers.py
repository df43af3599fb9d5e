"""Frames to answers: by one classifier as they come, or by several at once and in order."""

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

Answered = StateChange | tuple[Frame, Classification]


def answered(events: Iterable[Event], classifiers: Sequence[Classifier]) -> Iterator[Answered]:
    """Each frame with its answer and each change of state, in the order of the events.

    One classifier answers a frame before the next one is taken. Several answer as many at once, each in a thread, and
    twice as many frames are taken ahead, so that none waits for work behind a slow one: more a second, older answers.
    """
    if len(classifiers) == 1:
        return (_answer(classifiers[0], event) for event in events)
    return _at_once(events, classifiers)


def _answer(classifier: Classifier, event: Event) -> Answered:
    return event if isinstance(event, StateChange) else (event, classifier.classify(event.grabbed))


def _at_once(events: Iterable[Event], classifiers: Sequence[Classifier]) -> Iterator[Answered]:
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
            waiting.append(pool.submit(answer, event))
            while waiting and (len(waiting) > 2 * len(classifiers) or waiting[0].done()):
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()
