"""State of the web page, shared by the sink's thread and the web server's thread."""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, takewhile
from typing import Any

from edgerec.camera.frame import Result, region_name
from edgerec.camera.sinks.web.image_memory import ImageMemory
from edgerec.camera.sinks.window import FrameRate
from edgerec.camera.source_state import StateChange
from edgerec.contract.preprocess import contiguous
from edgerec.runtime.thermal import processor_temperature_c
from edgerec.utils.clock import unix_s
from edgerec.utils.optional import require

# Maximum width and height in pixels of the images on the page, and maximum number of images per second.
SHOWN_PX = 1280
IMAGES_PER_S = 15
# Maximum CPU load of image encoding, as a fraction of one CPU core.
MAX_LOAD = 0.25
JPEG_QUALITY = 80
# Number of recent images per source kept in memory, because the browser may not display the newest image yet.
RECENT = 4
# Time in seconds after which the recent images of a source that no client displays are removed.
UNVIEWED_S = 10.0
# Maximum total size in bytes of the sources' newest and recent images, about 20 images of 1920x1080 pixels.
MAX_IMAGE_BYTES = 256 << 20
# Maximum number and total size in bytes of the pending images, i.e. images selected on the page but not yet labeled.
MAX_PENDING = 6
MAX_PENDING_BYTES = 128 << 20
# Time in seconds after which pending images are removed.
PENDING_S = 300.0
# Maximum number of decisions and state changes kept in memory per source.
MAX_ENTRIES = 300
TEMPERATURE_INTERVAL_S = 2.0


@dataclass(frozen=True)
class ShownImage:
    """A result, which may have been stored without its image, and the JPEG image that is sent to the browser."""

    result: Result
    jpeg: bytes


@dataclass(frozen=True)
class PendingImage:
    """An image selected by the user but not yet labeled. ``since_s`` is the monotonic time of the selection."""

    shown: ShownImage
    since_s: float


@dataclass(eq=False)
class SourceView:
    """The state of a source or region on the web page.

    Attributes:
        name: name of the source or display name of the region.
        state: the last state change.
        result: the newest result, without its image if the image was removed to free memory.
        size: width and height of the newest result's image in pixels.
        box: the region as ``[left, top, right, bottom]``, as fractions of the frame's size. None for a source.
        label: label of the last decision, or None if the next result starts a new decision.
        fps: results per second.
        rate: computes ``fps``.
        shown: the image that was last sent to the page, and its result without the full-resolution image.
        recent: results whose images were recently sent to the page.
        viewed_s: monotonic time at which a client last requested an image.
        next_s: monotonic time at which the next image is due.
        entries: the last decisions and state changes, as JSON-serializable dictionaries.
    """

    name: str
    state: StateChange | None = None
    result: Result | None = None
    size: tuple[int, int] = (0, 0)
    box: list[float] | None = None
    label: str | None = None
    fps: float = 0.0
    rate: FrameRate = field(default_factory=FrameRate)
    shown: ShownImage | None = None
    recent: deque[Result] = field(default_factory=deque)
    viewed_s: float = -math.inf
    next_s: float = 0.0
    entries: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=MAX_ENTRIES))


class PageState:
    """Stores the newest result, recent decisions and recent state changes of each source and region.

    Each named region is treated as a source, whose image is the whole frame.

    The sink's thread calls :meth:`write` and :meth:`state`, and the server's thread calls all other methods. An image
    is encoded only when a client requests it, and only once for all clients.

    The images use at most :data:`MAX_IMAGE_BYTES` and :data:`MAX_PENDING_BYTES`, but the newest image is always kept.

    Attributes:
        version: number of changes, so that clients can detect new data.
        closed: whether the sink was closed.
        encoded: number of encoded images.
    """

    def __init__(self, regions: Mapping[str, Sequence[str]] | None = None) -> None:
        """Create an empty state. ``regions`` contains region names, keyed by source."""
        self._regions = dict(regions or {})
        self.version = 0
        self.closed = False
        self.encoded = 0
        self._lock = threading.Lock()
        self._sources: dict[str, SourceView] = {}
        self._memory = ImageMemory()
        # Sources whose newest result has an image, the least recently updated source first.
        self._with_image: OrderedDict[str, SourceView] = OrderedDict()
        # Sources of all recent images, the oldest image first. A source occurs once for each of its images.
        self._recent_sources: list[SourceView] = []
        self._last_number = 0
        self._pending: OrderedDict[str, PendingImage] = OrderedDict()
        self._temperature: tuple[float, float | None] = (-TEMPERATURE_INTERVAL_S, None)

    def write(self, result: Result) -> None:
        """Store a result. Add a log entry for a new label, or update the score in the last entry."""
        with self._lock:
            source = self._source_named(result.frame.display_name)
            self._store_result(source, result)
            source.fps = source.rate.tick()
            prediction = result.decision or result.classification
            if prediction.label != source.label:
                source.label = prediction.label
                self._add_entry(source, result.frame.captured_s, _prediction_fields(result))
            else:
                self._update_last(source, _prediction_fields(result))
            self.version += 1

    def state(self, change: StateChange) -> None:
        """Store a state change."""
        with self._lock:
            regions = self._regions.get(change.source, ())
            for name in [region_name(change.source, region) for region in regions] or [change.source]:
                source = self._source_named(name)
                source.state = change
                if change.state != "live":
                    # The first result after an outage is a new decision, even with the same label.
                    source.label = None
                self._add_entry(source, change.since_s, {"state": str(change.state), "reason": change.reason})
            self.version += 1

    def news(self, after: int) -> dict[str, Any]:
        """Return the state of each source and all log entries after number ``after``, as JSON-serializable data."""
        with self._lock:
            sources = list(self._sources.values())
            # Keep a log for each source, so that a busy source does not displace the entries of other sources.
            newer = [takewhile(lambda entry: entry["number"] > after, reversed(source.entries)) for source in sources]
            entries = sorted(chain.from_iterable(newer), key=lambda entry: entry["number"])
        return {
            "now_s": time.time(),
            "temperature_c": self._current_temperature_c(),
            "sources": [dict(_source_fields(source)) for source in sources],
            "story": entries,
        }

    def newest_image(self, number: int) -> ShownImage | None:
        """Return the newest image from source ``number``, or None if the source has no image yet.

        At most ``IMAGES_PER_S`` images per second are encoded.

        Raises:
            LookupError: there is no source with this index.
        """
        source = self._source_view(number)
        result, shown = source.result, source.shown
        now = source.viewed_s = time.monotonic()
        if result is None or not _has_image(result):
            return shown
        if shown is None or (result.without_image is not shown.result and now >= source.next_s):
            shown = source.shown = ShownImage(result.without_image, jpeg_of(result))
            with self._lock:
                self._add_recent(source, result)
            period_s = max(1 / IMAGES_PER_S, (time.monotonic() - now) / MAX_LOAD)
            # Add the period to the due time instead of the current time, so that delays do not lower the rate.
            source.next_s = max(source.next_s + period_s, now + period_s / 2)
            self.encoded += 1
        return shown

    def add_pending(self, number: int, frame: int) -> tuple[str, ShownImage] | None:
        """Add a frame's image to the pending images.

        If this image is no longer in memory, the image of the nearest frame is added instead.

        Args:
            number: source index.
            frame: frame index.

        Returns:
            The key and the image, or None if the source has no image yet.

        Raises:
            LookupError: there is no source with this index.
        """
        source = self._source_view(number)
        with self._lock:
            results = [*source.recent, *([source.result] if source.result and _has_image(source.result) else [])]
        if not results:
            return None
        result = min(results, key=lambda result: abs(result.frame.index - frame))
        # Only the region is labeled, not the whole frame.
        shown = ShownImage(result, jpeg_of(result, whole=False))
        self._remove_expired()
        key = secrets.token_urlsafe(12)
        self._pending[key] = PendingImage(shown, time.monotonic())
        while len(self._pending) > 1 and not self._pending_images_fit():
            self._pending.popitem(last=False)
        return key, shown

    def pending_image(self, key: str) -> ShownImage | None:
        """Return the pending image stored under ``key``, or None if it was removed."""
        self._remove_expired()
        pending = self._pending.get(key)
        return pending.shown if pending else None

    def evict_first(self, key: str) -> None:
        """Mark a pending image to be removed first if there are too many pending images."""
        if key in self._pending:
            self._pending.move_to_end(key, last=False)

    def remove_pending(self, key: str) -> None:
        """Remove a pending image."""
        self._pending.pop(key, None)

    def _pending_images_fit(self) -> bool:
        size_bytes = sum(pending.shown.result.frame.size_bytes for pending in self._pending.values())
        return len(self._pending) <= MAX_PENDING and size_bytes <= MAX_PENDING_BYTES

    def _store_result(self, source: SourceView, result: Result) -> None:
        if source.result is not None and source.name in self._with_image:
            self._memory.remove(source.result.frame)
        source.result = result
        height, width = result.frame.grabbed.shape[:2]
        source.size, source.box = (width, height), _box(result)
        self._with_image[source.name] = source
        self._with_image.move_to_end(source.name)
        self._memory.add(result.frame)
        if time.monotonic() - source.viewed_s > UNVIEWED_S:
            while source.recent:
                self._remove_recent(source)
        self._limit_memory()

    def _add_recent(self, source: SourceView, result: Result) -> None:
        source.recent.append(result)
        self._recent_sources.append(source)
        self._memory.add(result.frame)
        if len(source.recent) > RECENT:
            self._remove_recent(source)
        self._limit_memory()

    def _remove_recent(self, source: SourceView) -> None:
        self._recent_sources.remove(source)
        self._memory.remove(source.recent.popleft().frame)

    def _limit_memory(self) -> None:
        while self._memory.size_bytes > MAX_IMAGE_BYTES and self._recent_sources:
            self._remove_recent(self._recent_sources[0])
        while self._memory.size_bytes > MAX_IMAGE_BYTES and len(self._with_image) > 1:
            _, source = self._with_image.popitem(last=False)
            if source.result is not None:
                self._memory.remove(source.result.frame)
                source.result = source.result.without_image

    def _remove_expired(self) -> None:
        now = time.monotonic()
        for key in [key for key, pending in self._pending.items() if now - pending.since_s > PENDING_S]:
            del self._pending[key]

    def _source_view(self, number: int) -> SourceView:
        with self._lock:
            return list(self._sources.values())[number]

    def _source_named(self, name: str) -> SourceView:
        return self._sources.setdefault(name, SourceView(name))

    def _add_entry(self, source: SourceView, at_s: float, fields: dict[str, Any]) -> None:
        self._last_number += 1
        source.entries.append({"number": self._last_number, "at_s": unix_s(at_s), "source": source.name, **fields})

    def _update_last(self, source: SourceView, fields: dict[str, Any]) -> None:
        """Replace the last decision's entry instead of changing it, because another thread may be reading the entry."""
        for index in range(len(source.entries) - 1, -1, -1):
            entry = source.entries[index]
            if "state" not in entry:
                source.entries[index] = {key: entry[key] for key in ("number", "at_s", "source")} | fields
                return

    def _current_temperature_c(self) -> float | None:
        at_s, temperature_c = self._temperature
        if time.monotonic() - at_s >= TEMPERATURE_INTERVAL_S:
            temperature_c = processor_temperature_c()
            self._temperature = (time.monotonic(), temperature_c)
        return temperature_c


def _box(result: Result) -> list[float] | None:
    region = result.frame.region
    if region is None:
        return None
    height, width = region.whole.shape[:2]
    return [round(edge / size, 5) for edge, size in zip(region.box, (width, height, width, height), strict=True)]


def _has_image(result: Result) -> bool:
    return result.frame.grabbed.size > 0


def jpeg_of(result: Result, *, whole: bool = True) -> bytes:
    """Return a result's image as JPEG, with at most :data:`SHOWN_PX` pixels per side.

    Args:
        result: result whose image is encoded.
        whole: whether to encode the source's whole frame instead of the classified region.
    """
    cv2 = require("cv2")
    region = result.frame.region
    image = contiguous(region.whole) if region is not None and whole else result.frame.image
    factor = SHOWN_PX / max(image.shape[:2])
    if factor < 1:
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    return bytes(
        cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    )


def _source_fields(source: SourceView) -> Iterator[tuple[str, Any]]:
    yield "name", source.name
    if (change := source.state) is not None:
        yield from {"state": str(change.state), "since_s": unix_s(change.since_s), "reason": change.reason}.items()
    if (result := source.result) is not None:
        if (region := result.frame.region) is not None:
            yield "source", result.frame.source
            yield "region", region.name
            yield "box", source.box
        silent_s = time.monotonic() - result.completed_s
        yield "frame", result.frame.index
        yield "size", list(source.size)
        yield "fps", round(source.fps if silent_s < 2 else 0.0, 1)
        yield "age_ms", round(result.age_ms, 1)
        yield "silent_s", round(silent_s, 2)
        yield "prediction", _prediction_fields(result)
        yield "categories", [[c.label, c.index, round(c.score, 4)] for c in result.classification.categories]


def _prediction_fields(result: Result) -> dict[str, Any]:
    """Return the prediction for the web page as a JSON-serializable dictionary.

    If the label is ``unknown``, ``best`` contains the label and score of the best class, and ``novelty`` contains the
    anomaly score if available.
    """
    prediction = result.decision or result.classification
    fields = {"label": prediction.label, "index": prediction.index, "score": round(prediction.score, 4)}
    if prediction.index < 0 and result.classification.categories:
        best = result.classification.categories[0]
        fields["best"] = [best.label, round(best.score, 4)]
        if result.classification.novelty is not None:
            fields["novelty"] = round(result.classification.novelty, 2)
    return fields
