"""The camera: sources, a classifier, and the answers in between."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from edgerec.camera.answers import answered
from edgerec.camera.feed import Event, Feeds
from edgerec.camera.frame import Result
from edgerec.camera.service import Service
from edgerec.camera.sinks import Sink
from edgerec.camera.sinks.worker import SinkWorker
from edgerec.camera.sources import Address, CaptureFormat, find_source
from edgerec.camera.states import Patience, StateChange
from edgerec.camera.view import Choice, View
from edgerec.contract.bundle import Bundle
from edgerec.contract.decision import Decider
from edgerec.contract.files import checked_output, user_path
from edgerec.errors import SourceError
from edgerec.runtime.available import processors
from edgerec.runtime.classifier import Classifier
from edgerec.runtime.threads import best_threads

log = logging.getLogger(__name__)

# Interpreters for files where nobody says how many threads: one reader does not feed more.
MOST_AT_ONCE = 4
# While the sinks are kept open after the last frame, their state is checked this often.
_POLL_S = 0.2


@dataclass(frozen=True)
class RunReport:
    """What :meth:`Camera.run` did.

    Attributes:
        answered: frames with an answer.
        overtaken: frames of live sources that newer ones replaced.
        skipped: frames that the view left out, by reason.
        dropped: results that a sink did not take, by sink.
    """

    answered: int
    overtaken: int
    skipped: dict[str, int]
    dropped: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return vars(self).copy()


class Camera:
    """Classifies the frames of one or several sources as they come.

    A live source that is lost is connected again, for ever unless ``patience`` ends; of a file nothing is dropped.

    Attributes:
        manifest: the bundle's, with what was changed for this camera.
        live: whether one of the sources is.
        sources: their names, without passwords.
        inputs: paths and names of everything that is read; no sink may write there.

    >>> with Camera.open("signs-rpi", "0") as camera:   # doctest: +SKIP
    ...     for result in camera:
    ...         print(result.classification.label, result.age_ms)
    """

    def __init__(
        self,
        classifier: Classifier | Sequence[Classifier],
        addresses: Sequence[Address],
        *,
        view: View | None = None,
        patience: Patience | None = None,
    ) -> None:
        """A camera over an open classifier.

        Args:
            classifier: one, or several of the same bundle, which answer as many frames at once.
            addresses: of the sources, which open on entering the camera.
            view, patience: as for :meth:`open`.

        Raises:
            SourceError: a source is named twice.
        """
        _refuse_twice([address.name for address in addresses])
        self._classifiers = tuple(classifier) if isinstance(classifier, Sequence) else (classifier,)
        self.manifest = self._classifiers[0].manifest
        self.live = any(address.live for address in addresses)
        self.sources = tuple(address.name for address in addresses)
        self.inputs = self.sources
        self._answered, self._workers = 0, list[SinkWorker]()
        self._feeds = Feeds(addresses, patience)
        labels, spec = self.manifest.labels, self.manifest.decision
        self._deciders = {a.name: Decider(spec if a.stream else spec.for_single(), labels) for a in addresses}
        self._choice = Choice(view or View())
        self._entered = False

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        source: str | Sequence[str],
        *,
        threads: int = 0,
        wanted: CaptureFormat | None = None,
        view: View | None = None,
        patience: Patience | None = None,
        loop: bool = False,
        **options: Any,
    ) -> Camera:
        """A camera over the bundle (folder or .zip) and its sources, which open on entering it.

        Args:
            bundle: what to classify with.
            source: what :func:`~edgerec.camera.sources.find_source` understands, or several, which take turns.
            threads: of the interpreter; 0 takes the bundle's number, or else the one that a short measurement found
                to suit, which is remembered. Where no source is live and there is no delegate, so many interpreters
                of one thread each, which is quicker for all frames though not for one; 0: one for each processor,
                at most 4.
            wanted: size, rate and format that cameras are asked for.
            view: which frames are looked at, and what of them.
            patience: how long a live source may be silent.
            loop: whether video files and folders start again when they end.
            options: as for :class:`~edgerec.runtime.classifier.Classifier`.

        Raises:
            SourceError: nothing understands a source, or it is named twice.
            BundleError: no such bundle.
        """
        sources = [source] if isinstance(source, str) else list(source)
        opened = Bundle.open(user_path(bundle))
        addresses = [find_source(uri, wanted, opened.manifest.levels, loop=loop) for uri in sources]
        manifest = opened.manifest
        threads, at_once = threads or manifest.threads, 1
        if not (options.get("delegate") or manifest.delegate):
            if not any(address.live for address in addresses):
                threads, at_once = 1, threads or min(processors(), MOST_AT_ONCE)
            elif not threads:
                threads = best_threads(opened.model, manifest.normalise)
        classifiers = [Classifier(opened, threads=threads, **options) for _ in range(at_once)]
        camera = cls(classifiers, addresses, view=view, patience=patience)
        camera.inputs = (*camera.inputs, str(bundle))
        return camera

    @property
    def report(self) -> RunReport:
        """What was done so far; may be asked from another thread."""
        return RunReport(
            self._answered,
            self._feeds.overtaken,
            dict(self._choice.skipped),
            {worker.name: worker.lost for worker in self._workers if worker.lost},
        )

    def __enter__(self) -> Camera:
        self._feeds.__enter__()
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._feeds.__exit__(kind, error, trace)

    def __iter__(self) -> Iterator[Result]:
        """Each frame's result; ends with the sources, and raises :class:`SourceError` when one of them failed."""
        return (event for event in self.events() if isinstance(event, Result))

    def events(self) -> Iterator[Result | StateChange]:
        """Each frame's result and each change of a source's state, in the order of time for each source."""
        return self._events(Service())

    def _events(self, service: Service) -> Iterator[Result | StateChange]:
        if not self._entered:
            raise RuntimeError("use the camera in a with block: with Camera.open(...) as camera")
        for event in answered(self._looked_at(service), self._classifiers):
            if isinstance(event, StateChange):
                service.tell(event)
                yield event
            else:
                frame, answer = event
                self._answered += 1
                answered_s = time.monotonic()
                decision = self._deciders[frame.feed].update(answer.scores, frame.grabbed_s, answer.novelty)
                yield Result(frame, answer, answered_s, decision)
        for error in self._feeds.errors:
            raise error

    def _looked_at(self, service: Service) -> Iterator[Event]:
        """Changes of state, and of the frames what the model sees of those that the view takes."""
        for event in self._feeds:
            service.alive()  # also for a frame that the view leaves out
            seen = event if isinstance(event, StateChange) else self._choice.take(event)
            if seen is not None:
                yield seen

    def run(
        self,
        sinks: Iterable[Sink],
        max_frames: int | None = None,
        *,
        service: Service | None = None,
        keep_open: bool = False,
    ) -> RunReport:
        """Send everything to every sink until the sources end, a sink closes, or ``max_frames`` are answered.

        A sink with an attribute ``inline`` that is true, as a window must be, is called in this thread; each other
        one has a thread of its own.

        Raises :class:`OutputIsInputError` if a sink's attribute ``outputs`` has the path of a source.

        ``service`` is told when this begins and ends, and that it is alive: with each frame that is looked at, and
        each step of connecting a source again. A model, a window or all connections that hang let its watchdog bark.

        With ``keep_open`` the sinks stay open after the last frame, so that a web page can still be read. The call
        then returns when a sink closes, and otherwise waits for a ``KeyboardInterrupt``.
        """
        sinks, service = list(sinks), service or Service()
        inline = [sink for sink in sinks if getattr(sink, "inline", False)]
        threaded = [sink for sink in sinks if not getattr(sink, "inline", False)]
        workers = self._workers = [SinkWorker(sink, lossless=not self.live) for sink in threaded]
        try:
            for path in (path for sink in sinks for path in getattr(sink, "outputs", ())):
                checked_output(path, self.inputs)
            service.ready()
            for event in self._events(service):
                for worker in workers:
                    worker.put(event)
                for sink in inline:
                    sink.state(event) if isinstance(event, StateChange) else sink.write(event)
                enough = isinstance(event, Result) and self._answered == max_frames
                if enough or any(worker.closed for worker in workers) or any(sink.closed for sink in inline):
                    break
            while keep_open and not any(sink.closed for sink in sinks):
                service.alive()
                for sink in inline:
                    if poll := getattr(sink, "poll", None):
                        poll()
                time.sleep(_POLL_S)
        finally:
            service.stopping()
            for worker in workers:
                worker.close()
            for sink in inline:
                sink.close()
            for name, lost in self.report.dropped.items():
                log.warning("%s did not take %d of %d results", name, lost, self._answered)
        return self.report


def _refuse_twice(names: Sequence[str]) -> None:
    # By its name a frame finds its decisions, and a listener tells sources apart.
    if twice := next((name for at, name in enumerate(names) if name in names[:at]), None):
        raise SourceError(f"the source {twice} is named twice: name each source once (a password is no difference)")
