"""Classify frames from sources and send the results to sinks."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from edgerec.camera.frame import Result, region_name
from edgerec.camera.frame_filters import FrameOptions, FrameSelector
from edgerec.camera.inference_pool import classify_events
from edgerec.camera.interrupts import Interrupts
from edgerec.camera.reconnection import Timeouts
from edgerec.camera.regions import RegionConfig, check_regions, regions_of_sources
from edgerec.camera.service_notifier import ServiceNotifier
from edgerec.camera.sinks import Sink
from edgerec.camera.sinks.sink_thread import CLOSE_S, STALLED_S, SinkWorker
from edgerec.camera.source_state import SourceState, StateChange
from edgerec.camera.sources import Address, CaptureFormat, find_source
from edgerec.camera.supervisor import Event, SourceSupervisor
from edgerec.contract.bundle import Bundle
from edgerec.contract.manifest import Manifest
from edgerec.contract.reduced_decoding import ReductionChooser
from edgerec.contract.smoothing import Decider
from edgerec.errors import SourceError
from edgerec.runtime.classifier import Classifier, changed_decision
from edgerec.runtime.threads import best_threads
from edgerec.utils.allocator import return_freed_memory
from edgerec.utils.atomic import checked_output, sha256
from edgerec.utils.parallel import available_cpus

log = logging.getLogger(__name__)

# Default limit on interpreters if the sources are files. One reading thread cannot keep more interpreters busy.
MAX_INTERPRETERS = 4
# Interval in seconds for checking window events and closed sinks while no frame arrives.
_POLL_S = 0.05
# Interval in seconds for returning freed memory to the operating system.
_RETURN_MEMORY_S = 60.0


@dataclass(frozen=True)
class RunReport:
    """Counters for one call to :meth:`Camera.run`.

    Attributes:
        classified: number of classified frames. Each named region of a frame counts separately.
        overtaken: number of live frames dropped because a newer frame arrived.
        skipped: number of frames skipped by ``frame_options``, keyed by reason. The named regions of a frame count
            separately for the reasons ``motion`` and ``roi``, and as one frame for the other reasons.
        dropped: number of results that a sink did not receive or could not process, plus the number of messages and
            requests that it lost or commands that failed, keyed by sink name.
        incomplete: names of the sinks that lost results because of an error. Sinks that were too slow for a live source
            are not included.
        invalid: number of frames whose scores were NaN or infinite. The label of such a frame is unknown.
    """

    classified: int
    overtaken: int
    skipped: dict[str, int]
    dropped: dict[str, int]
    incomplete: tuple[str, ...] = ()
    invalid: int = 0

    @property
    def exit_code(self) -> int:
        """Exit code of ``edgerec camera``: 1 if a sink lost results because of an error, otherwise 0."""
        return int(bool(self.incomplete))

    def to_dict(self) -> dict[str, Any]:
        """Return the counters as a JSON-serializable dictionary."""
        return vars(self).copy()


class Camera:
    """A camera that classifies frames from one or more sources.

    A lost live source is reconnected until it delivers frames again, or until ``timeouts.give_up_s`` has passed. Frames
    of files are never dropped.

    Attributes:
        manifest: the bundle's manifest, including the settings that were overridden for this camera.
        live: whether at least one source is live.
        sources: source names, without passwords.
        regions: names of each source's regions, keyed by source. Sources without regions are not included.
        inputs: source names and the bundle's path. No sink may write to these paths.
        bundle_digest: SHA-256 digest of the bundle's manifest.json, or an empty string if the camera was not created
            with :meth:`open`.

    >>> with Camera.open("signs-rpi", "0") as camera:   # doctest: +SKIP
    ...     for result in camera:
    ...         print(result.classification.label, result.age_ms)
    """

    def __init__(
        self,
        classifier: Classifier | Sequence[Classifier],
        addresses: Sequence[Address],
        *,
        frame_options: FrameOptions | None = None,
        timeouts: Timeouts | None = None,
        regions: Mapping[str, Sequence[RegionConfig]] | None = None,
    ) -> None:
        """Create a camera from classifiers and source addresses.

        Args:
            classifier: a classifier, or several classifiers of the same bundle, which run in parallel.
            addresses: addresses of the sources. The sources are opened when the camera's context is entered.
            frame_options: options that select the frames to classify, and crop, rotate and mirror them.
            timeouts: timeouts for live sources.
            regions: named regions to classify instead of whole frames, keyed by source name.

        Raises:
            SourceError: two sources have the same name.
            RecipeError: the decision settings of a region are invalid.
        """
        regions, options = regions or {}, frame_options or FrameOptions()
        _refuse_duplicates(names := [address.name for address in addresses], names)
        self._classifiers = tuple(classifier) if isinstance(classifier, Sequence) else (classifier,)
        self.manifest = self._classifiers[0].manifest
        self.live = any(address.live for address in addresses)
        self.sources = tuple(address.name for address in addresses)
        self.inputs = self.sources
        self.bundle_digest = ""
        self._classified, self._workers = 0, list[SinkWorker]()
        self._stops = 0
        self._live_sources = frozenset(address.name for address in addresses if address.live)
        self._supervisor = SourceSupervisor(addresses, timeouts)
        self.regions = {name: tuple(region.name for region in own) for name, own in regions.items() if own}
        self._specs = {
            region_name(name, region.name): changed_decision(self.manifest.decision, region.threshold, region.decision)
            for name, own in regions.items()
            for region in own
        }
        # The display name of a region may equal the name of another source.
        names = [view for name in self.sources for view in self._display_names(name)]
        _refuse_duplicates(names, names)
        self._deciders = {
            view: self._decider(view, stream=address.stream)
            for address in addresses
            for view in self._display_names(address.name)
        }
        self._selector = FrameSelector(
            options, {name: [(r.name, r.frame_options(options)) for r in own] for name, own in regions.items()}
        )
        self._entered = False
        self._counts_before = self._totals()

    def _display_names(self, source: str) -> list[str]:
        return [region_name(source, region) for region in self.regions.get(source, ())] or [source]

    def _decider(self, display_name: str, *, stream: bool) -> Decider:
        spec = self._specs.get(display_name, self.manifest.decision)
        return Decider(spec if stream else spec.for_single(), self.manifest.labels)

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        source: str | Sequence[str],
        *,
        threads: int = 0,
        requested: CaptureFormat | None = None,
        frame_options: FrameOptions | None = None,
        timeouts: Timeouts | None = None,
        loop: bool = False,
        allowed_signers: str | Path | None = None,
        revoked_keys: str | Path | None = None,
        regions: Sequence[RegionConfig] = (),
        reduced_decoding: bool = False,
        **options: Any,
    ) -> Camera:
        """Create a camera from a bundle and source URIs. The sources are opened when the camera's context is entered.

        Args:
            bundle: the bundle's folder or .zip.
            source: one or more source URIs; see :func:`~edgerec.camera.sources.find_source`. Frames from several
                sources are classified in turn.
            threads: number of interpreter threads. 0 uses the number in the bundle. If the bundle has none, a
                short benchmark determines the fastest number of threads, which is then cached. If no source is live and
                no delegate is used, this many interpreters with one thread each run in parallel instead, which
                increases the throughput but does not reduce the latency of a frame. 0 then means one interpreter per
                CPU, at most 4.
            requested: size, rate and format to request from cameras.
            frame_options: options that select the frames to classify, and crop, rotate and mirror them.
            timeouts: timeouts for live sources.
            loop: whether to restart video files and folders when they end.
            allowed_signers, revoked_keys: files of SSH keys that check the signature; see :meth:`Bundle.open`.
            regions: named regions. Each region of a frame is classified independently, with its own decision. Sources
                without regions are classified as a whole.
            reduced_decoding: whether to decode JPEG images of HTTP sources and folders at 1/2, 1/4 or 1/8 of their
                size if the model's input is that much smaller. This is faster, but changes the scores slightly.
            options: keyword arguments of :class:`~edgerec.runtime.classifier.Classifier`.

        Raises:
            SourceError: a source is not recognized, or is specified twice.
            BundleError: the bundle does not exist or cannot be used.
            SignatureError: the bundle is not signed by an allowed signer.
            ConfigError: the regions conflict with each other, or a region refers to an unknown source.
        """
        check_regions(regions, frame_options or FrameOptions())
        sources = [source] if isinstance(source, str) else list(source)
        opened_bundle = Bundle.open(bundle, allowed_signers=allowed_signers, revoked_keys=revoked_keys)
        manifest = opened_bundle.manifest
        choose_reduction = _reduction_chooser(manifest, frame_options, regions) if reduced_decoding else None
        addresses = _with_unique_names(
            [
                find_source(uri, requested, manifest.levels, loop=loop, choose_reduction=choose_reduction)
                for uri in sources
            ]
        )
        own_regions = regions_of_sources(regions, sources, [address.name for address in addresses])
        threads, interpreters = threads or manifest.threads, 1
        if not manifest.delegate_for(options.get("delegate")):
            if not any(address.live for address in addresses):
                threads, interpreters = 1, threads or min(available_cpus(), MAX_INTERPRETERS)
            elif not threads:
                threads = best_threads(opened_bundle.model, manifest.normalize)
        classifiers = [Classifier(opened_bundle, threads=threads, **options) for _ in range(interpreters)]
        camera = cls(classifiers, addresses, frame_options=frame_options, timeouts=timeouts, regions=own_regions)
        camera.inputs = (*camera.inputs, str(bundle))
        camera.bundle_digest = sha256(opened_bundle.manifest_content)
        return camera

    @property
    def report(self) -> RunReport:
        """Counters for the current or most recent call to :meth:`run`, which may be read from any thread."""
        total, before = self._totals(), self._counts_before
        return replace(
            total,
            classified=total.classified - before.classified,
            overtaken=total.overtaken - before.overtaken,
            skipped=dict(Counter(total.skipped) - Counter(before.skipped)),
            invalid=total.invalid - before.invalid,
        )

    def _totals(self) -> RunReport:
        """Return the counters since the camera was created. Lost results of earlier runs are not included."""
        return RunReport(
            self._classified,
            self._supervisor.overtaken,
            dict(self._selector.skipped),
            {worker.name: worker.lost for worker in self._workers if worker.lost},
            tuple(worker.name for worker in self._workers if worker.incomplete),
            sum(classifier.invalid for classifier in self._classifiers),
        )

    def stop(self) -> None:
        """Stop reading frames, so that :meth:`run` returns after the sinks have processed their queued results.

        A second call abandons sinks that have not finished. This method may be called from any thread and from a signal
        handler.
        """
        self._stops += 1
        self._supervisor.stop()

    def __enter__(self) -> Camera:
        self._supervisor.__enter__()
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._supervisor.__exit__(kind, error, trace)

    def __iter__(self) -> Iterator[Result]:
        """Yield the result for each frame. After the last frame, raise :class:`SourceError` if a source failed."""
        return (event for event in self.events() if isinstance(event, Result))

    def events(self) -> Iterator[Result | StateChange]:
        """Yield results and state changes in chronological order for each source."""
        return (event for event in self._events(ServiceNotifier(), _POLL_S) if event is not None)

    def _events(self, service: ServiceNotifier, idle_s: float) -> Iterator[Result | StateChange | None]:
        """Yield results and state changes, or None for a skipped frame or after ``idle_s`` seconds without events."""
        if not self._entered:
            raise RuntimeError("the camera is not open: use it in a with block (with Camera.open(...) as camera)")
        for event in classify_events(self._selected(service, idle_s), self._classifiers, self._specs):
            if event is None:
                yield None
            elif isinstance(event, StateChange):
                service.report_state(event)
                if event.state is SourceState.LOST:
                    for name in self._display_names(event.source):
                        self._deciders[name].reset()
                yield event
            else:
                frame, prediction = event
                self._classified += 1
                completed_s = time.monotonic()
                decision = self._deciders[frame.display_name].update(
                    prediction.scores, frame.captured_s, prediction.novelty, prediction.finite
                )
                yield Result(frame, prediction, completed_s, decision)
        for error in self._supervisor.errors if not self._stops else ():
            raise error

    def _selected(self, service: ServiceNotifier, idle_s: float) -> Iterator[Event | None]:
        """Yield state changes and selected frames, and None for a skipped frame or if no event has occurred."""
        for event in self._supervisor.events(idle_s):
            # Notify the watchdog only on an event, so that the service is restarted if all sources hang.
            if event is not None:
                service.alive()
            if isinstance(event, StateChange):
                if event.state is SourceState.LOST:
                    self._selector.forget(event.source)
                yield event
            else:
                selected = self._selector.select(event) if event else []
                if not selected:
                    yield None
                for frame in selected:
                    service.alive()  # Classifying many regions may take longer than the watchdog's timeout.
                    yield frame

    def run(
        self,
        sinks: Iterable[Sink],
        max_frames: int | None = None,
        *,
        service: ServiceNotifier | None = None,
        keep_open: bool = False,
    ) -> RunReport:
        """Send results and state changes to all sinks until the sources end, a sink closes or a limit is reached.

        At the end, the sinks process their queued results. A sink is abandoned if it makes no progress for 10 s, or for
        10 min if all sources are files and :meth:`stop` was not called.

        In the main thread, Ctrl-C (and other signals whose handler is ``signal.default_int_handler``) calls
        :meth:`stop`. ``KeyboardInterrupt`` is raised after the sinks are closed. :attr:`report` is complete by then.

        Args:
            sinks: receivers of the results. A sink whose attribute ``inline`` is True, such as a window, is called in
                this thread. Each other sink has its own thread.
            max_frames: stop after this many predictions. None means no limit.
            service: notifies the service manager. If the model, a window or all connections hang, the notifications
                stop so that the service manager's watchdog restarts the service.
            keep_open: keep the sinks open after the last frame so that a web page can still be viewed. The call then
                returns when a sink closes or :meth:`stop` is called.

        Raises:
            OutputIsInputError: a sink would write to a source's path.
            KeyboardInterrupt: a signal has stopped the camera.
        """
        with Interrupts(self.stop):
            return self._run(list(sinks), max_frames, service or ServiceNotifier(), keep_open)

    def _run(self, sinks: list[Sink], max_frames: int | None, service: ServiceNotifier, keep_open: bool) -> RunReport:
        inline = [sink for sink in sinks if getattr(sink, "inline", False)]
        threaded = [sink for sink in sinks if not getattr(sink, "inline", False)]
        workers = self._workers = [
            SinkWorker(sink, lossless=not self.live, timeout_s=self._sink_timeout_s) for sink in threaded
        ]
        self._counts_before = self._totals()
        polled_s = returned_s = time.monotonic()

        def poll() -> None:
            nonlocal polled_s
            if time.monotonic() - polled_s >= _POLL_S:
                for sink in inline:
                    if process_events := getattr(sink, "poll", None):
                        process_events()
                polled_s = time.monotonic()

        try:
            for path in (path for sink in sinks for path in getattr(sink, "outputs", ())):
                checked_output(path, self.inputs)
            service.ready()
            for event in self._events(service, _POLL_S):
                if event is None:
                    poll()
                else:
                    source = event.source if isinstance(event, StateChange) else event.frame.source
                    for worker in workers:
                        worker.put(event, wait=source not in self._live_sources)
                    for sink in inline:
                        sink.state(event) if isinstance(event, StateChange) else sink.write(event)
                enough = isinstance(event, Result) and self._classified - self._counts_before.classified == max_frames
                if enough or any(worker.closed for worker in workers) or any(sink.closed for sink in inline):
                    break
                if time.monotonic() - returned_s >= _RETURN_MEMORY_S:
                    return_freed_memory()
                    returned_s = time.monotonic()
            while keep_open and not self._stops and not any(sink.closed for sink in sinks):
                service.alive()
                poll()
                time.sleep(_POLL_S)
        finally:
            service.stopping()
            for worker in workers:  # Ask all sinks to finish before waiting for the first one.
                worker.finish()
            for worker in workers:
                worker.close()
            for sink in inline:
                sink.close()
            report = self.report
            for worker in workers:
                for problem in worker.problems(report.classified):
                    log.warning("%s", problem)
        return report

    def _sink_timeout_s(self) -> float:
        if self._stops > 1:
            return 0.0
        return CLOSE_S if self._stops or self.live else STALLED_S


def _reduction_chooser(
    manifest: Manifest, frame_options: FrameOptions | None, regions: Sequence[RegionConfig]
) -> ReductionChooser:
    """Return a function that chooses a reduction factor suitable for all classified regions."""
    whole = frame_options or FrameOptions()
    parts = [region.frame_options(whole) for region in regions]
    if any(region.source for region in regions) or not regions:
        parts.append(whole)

    def choose(width: int, height: int) -> int:
        return min(
            manifest.largest_reduction(width, height, part.region(width, height), sideways=part.rotate in (90, 270))
            for part in parts
        )

    return choose


def _with_unique_names(addresses: Sequence[Address]) -> list[Address]:
    """Append numbers to duplicate names, e.g. for URLs that differ only in a redacted query parameter."""
    names = [address.name for address in addresses]
    _refuse_duplicates([address.identity or address.name for address in addresses], names)
    counts: Counter[str] = Counter()
    distinct = []
    for address in addresses:
        counts[address.name] += 1
        number = counts[address.name]
        distinct.append(replace(address, name=f"{address.name} #{number}") if number > 1 else address)
    return distinct


def _refuse_duplicates(identities: Sequence[str], names: Sequence[str]) -> None:
    # Source names must be unique because frames and decisions refer to sources by name.
    for index, identity in enumerate(identities):
        if identity in identities[:index]:
            raise SourceError(
                f"the source {names[index]} is specified twice: specify each source only once. URLs that differ only "
                "in user name or password are the same source"
            )
