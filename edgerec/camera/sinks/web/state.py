"""What the page shows: the sink's thread writes it, the server's reads it."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, takewhile
from typing import Any

from edgerec.camera.frame import Result
from edgerec.camera.sinks.window import FrameRate
from edgerec.camera.source_state import StateChange
from edgerec.runtime.thermal import processor_temperature_c
from edgerec.utils.clock import unix_s
from edgerec.utils.optional import require

# The page's picture is no wider or higher than this, and changes no more often.
SHOWN_PX = 1280
IMAGES_PER_S = 15
# The model comes first: on a small processor pictures become rarer, so that encoding takes no more of one core.
MAX_LOAD = 0.25
JPEG_QUALITY = 80
# Pictures that were just shown stay, so that the one a person points at is the one that is kept.
RECENT = 4
HELD = 6
HELD_S = 300.0
REMEMBERED = 300
TEMPERATURE_EVERY_S = 2.0


@dataclass(frozen=True)
class ShownImage:
    """A result whose picture went to the page, as JPEG."""

    result: Result
    jpeg: bytes


@dataclass(frozen=True)
class HeldImage:
    """A shown picture that waits for its label."""

    shown: ShownImage
    since_s: float


@dataclass
class SourceView:
    """One source on the board."""

    name: str
    state: StateChange | None = None
    result: Result | None = None
    label: str | None = None
    fps: float = 0.0
    rate: FrameRate = field(default_factory=FrameRate)
    recent: deque[ShownImage] = field(default_factory=lambda: deque(maxlen=RECENT))
    next_s: float = 0.0
    story: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))


class PageState:
    """The newest of everything, and the last decisions.

    :meth:`write` and :meth:`state` belong to the sink's thread, everything else to the server's: pictures are encoded
    only when somebody asks for one, once for everybody.
    """

    def __init__(self) -> None:
        self.version = 0
        self.closed = False
        self.encoded = 0
        self._lock = threading.Lock()
        self._channels: dict[str, SourceView] = {}
        self._told = 0
        self._held: OrderedDict[str, HeldImage] = OrderedDict()
        self._temperature: tuple[float, float | None] = (-TEMPERATURE_EVERY_S, None)

    def write(self, result: Result) -> None:
        """Store a result. If the label is unchanged, update the score of the last decision."""
        with self._lock:
            channel = self._channel(result.frame.feed or result.frame.source)
            channel.result, channel.fps = result, channel.rate.tick()
            answer = result.decision or result.classification
            if answer.label != channel.label:
                channel.label = answer.label
                self._tell(channel, result.frame.captured_s, _answer(result))
            else:
                self._update_last(channel, _answer(result))
            self.version += 1

    def state(self, change: StateChange) -> None:
        """Take a change of state."""
        with self._lock:
            channel = self._channel(change.source)
            channel.state = change
            if change.state != "live":
                channel.label = None  # what comes back is told again
            self._tell(channel, change.since_s, {"state": str(change.state), "reason": change.reason})
            self.version += 1

    def news(self, after: int) -> dict[str, Any]:
        """Every source as it is now, and what was told since number ``after``, as JSON values."""
        with self._lock:
            channels = list(self._channels.values())
            # Each source has its own, so that one that flickers does not push out another's.
            newer = [takewhile(lambda entry: entry["number"] > after, reversed(one.story)) for one in channels]
            story = sorted(chain.from_iterable(newer), key=lambda entry: entry["number"])
        return {
            "now_s": time.time(),
            "temperature_c": self._degrees(),
            "sources": [dict(_fields(channel)) for channel in channels],
            "story": story,
        }

    def picture(self, number: int) -> ShownImage | None:
        """The newest picture of a source, encoded once, at most ``IMAGES_PER_S`` times a second.

        Raises:
            LookupError: there is no such source.
        """
        channel = self._numbered(number)
        result = channel.result
        newest = channel.recent[-1] if channel.recent else None
        now = time.monotonic()
        if result is not None and (newest is None or (result is not newest.result and now >= channel.next_s)):
            newest = ShownImage(result, jpeg_of(result))
            channel.recent.append(newest)
            period_s = max(1 / IMAGES_PER_S, (time.monotonic() - now) / MAX_LOAD)
            # From when it was due, not from when it was asked for: or 15 a second would become 10.
            channel.next_s = max(channel.next_s + period_s, now + period_s / 2)
            self.encoded += 1
        return newest

    def hold(self, number: int, frame: int) -> tuple[str, ShownImage] | None:
        """Keep the picture of that frame, or the nearest one that is still there, until it is labelled; its key.

        Raises:
            LookupError: there is no such source.
        """
        self.picture(number)
        channel = self._numbered(number)
        if not channel.recent:
            return None
        shown = min(channel.recent, key=lambda shown: abs(shown.result.frame.index - frame))
        self._forget_old()
        while len(self._held) >= HELD:
            self._held.popitem(last=False)
        key = secrets.token_urlsafe(12)
        self._held[key] = HeldImage(shown, time.monotonic())
        return key, shown

    def held(self, key: str) -> ShownImage | None:
        """The picture that was kept under ``key``, if it still is."""
        self._forget_old()
        held = self._held.get(key)
        return held.shown if held else None

    def spare(self, key: str) -> None:
        """Keep that picture still, but let it be the first to go: it was taken already."""
        if key in self._held:
            self._held.move_to_end(key, last=False)

    def release(self, key: str) -> None:
        """Forget a picture that was kept."""
        self._held.pop(key, None)

    def _forget_old(self) -> None:
        now = time.monotonic()
        for key in [key for key, held in self._held.items() if now - held.since_s > HELD_S]:
            del self._held[key]

    def _numbered(self, number: int) -> SourceView:
        with self._lock:
            return list(self._channels.values())[number]

    def _channel(self, name: str) -> SourceView:
        return self._channels.setdefault(name, SourceView(name))

    def _tell(self, channel: SourceView, at_s: float, said: dict[str, Any]) -> None:
        self._told += 1
        channel.story.append({"number": self._told, "at_s": unix_s(at_s), "source": channel.name, **said})

    def _update_last(self, channel: SourceView, answer: dict[str, Any]) -> None:
        """Update the score of the last decision. The entry is replaced, because a reader may still use the old one."""
        for at in range(len(channel.story) - 1, -1, -1):
            entry = channel.story[at]
            if "state" not in entry:
                channel.story[at] = {key: entry[key] for key in ("number", "at_s", "source")} | answer
                return

    def _degrees(self) -> float | None:
        at_s, degrees = self._temperature
        if time.monotonic() - at_s >= TEMPERATURE_EVERY_S:
            degrees = processor_temperature_c()
            self._temperature = (time.monotonic(), degrees)
        return degrees


def jpeg_of(result: Result) -> bytes:
    """The result's picture as JPEG, made smaller where it is larger than the page shows."""
    cv2 = require("cv2")
    image = result.frame.image
    factor = SHOWN_PX / max(image.shape[:2])
    if factor < 1:
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    return bytes(
        cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    )


def _fields(channel: SourceView) -> Iterator[tuple[str, Any]]:
    yield "name", channel.name
    if (change := channel.state) is not None:
        yield from {"state": str(change.state), "since_s": unix_s(change.since_s), "reason": change.reason}.items()
    if (result := channel.result) is not None:
        silent_s = time.monotonic() - result.completed_s
        yield "frame", result.frame.index
        yield "size", [result.frame.grabbed.shape[1], result.frame.grabbed.shape[0]]
        yield "fps", round(channel.fps if silent_s < 2 else 0.0, 1)
        yield "age_ms", round(result.age_ms, 1)
        yield "silent_s", round(silent_s, 2)
        yield "answer", _answer(result)
        yield "categories", [[c.label, c.index, round(c.score, 4)] for c in result.classification.categories]


def _answer(result: Result) -> dict[str, Any]:
    """The answer that is shown; with ``unknown``, the best class of the frame and its score as ``best``, and its
    ``novelty`` where there is one."""
    answer = result.decision or result.classification
    said = {"label": answer.label, "index": answer.index, "score": round(answer.score, 4)}
    if answer.index < 0 and result.classification.categories:
        best = result.classification.categories[0]
        said["best"] = [best.label, round(best.score, 4)]
        if result.classification.novelty is not None:
            said["novelty"] = round(result.classification.novelty, 2)
    return said
