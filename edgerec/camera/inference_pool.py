"""Classify frames with one classifier, or with several in parallel."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

from edgerec.camera.frame import Frame
from edgerec.camera.source_state import StateChange
from edgerec.camera.supervisor import Event
from edgerec.contract.decision import Classification, DecisionSpec
from edgerec.runtime.classifier import Classifier

ClassifiedEvent = StateChange | tuple[Frame, Classification] | None


def classify_events(
    events: Iterable[Event | None],
    classifiers: Sequence[Classifier],
    specs: Mapping[str, DecisionSpec] | None = None,
) -> Iterator[ClassifiedEvent]:
    """Yield each frame with its classification, and each state change, in the original order.

    ``specs`` contains the decision settings of regions that differ from the bundle's, keyed by display name.

    A None in ``events`` stands for a skipped frame or a timeout, and is passed on. A single classifier finishes each
    frame before the next frame is requested. Several classifiers each run in their own thread, and up to twice as many
    frames as classifiers are requested in advance, which increases both the throughput and the latency. The threads
    end when there are no more events, or when the iterator is closed.
    """
    if len(classifiers) == 1:
        return (_classify(classifiers[0], event, specs or {}) for event in events)
    return _in_parallel(events, classifiers, specs or {})


def _classify(classifier: Classifier, event: Event | None, specs: Mapping[str, DecisionSpec]) -> ClassifiedEvent:
    if not isinstance(event, Frame):
        return event
    spec = specs.get(event.display_name) if event.region else None
    return event, classifier.classify(event.grabbed, spec) if spec else classifier.classify(event.grabbed)


def _in_parallel(
    events: Iterable[Event | None], classifiers: Sequence[Classifier], specs: Mapping[str, DecisionSpec]
) -> Iterator[ClassifiedEvent]:
    idle = SimpleQueue[Classifier]()
    for classifier in classifiers:
        idle.put(classifier)

    def classify(event: Event) -> ClassifiedEvent:
        classifier = idle.get()
        try:
            return _classify(classifier, event, specs)
        finally:
            idle.put(classifier)

    pending = deque[Future[ClassifiedEvent]]()
    iterator, failure = iter(events), None
    with ThreadPoolExecutor(len(classifiers), thread_name_prefix="edgerec-model") as pool:
        while True:
            try:
                event = next(iterator)
            except StopIteration:
                break
            except Exception as error:  # The error is raised after the results of earlier frames.
                failure = error
                break
            if event is None:
                yield None
            else:
                pending.append(pool.submit(classify, event))
            while pending and (len(pending) > 2 * len(classifiers) or pending[0].done()):
                yield pending.popleft().result()
        for future in pending:
            yield future.result()
    if failure is not None:
        raise failure
