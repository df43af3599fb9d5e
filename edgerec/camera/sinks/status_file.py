"""Write the camera's state to a JSON file, which other programs on the device can read."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgerec.camera.frame import Result, region_name
from edgerec.camera.pipeline import RunReport
from edgerec.camera.sinks.events import source_of
from edgerec.camera.source_state import StateChange
from edgerec.contract.status import MAX_STATUS_BYTES, VERSION, CameraStatus, LastDecision, SourceStatus
from edgerec.errors import EdgerecError, OutputExistsError
from edgerec.runtime.thermal import Health, read_health
from edgerec.utils.atomic import checked_output, read_at_most, replacing
from edgerec.utils.bounded_parsing import parse_json
from edgerec.utils.clock import unix_s
from edgerec.utils.text import printable, to_json

log = logging.getLogger(__name__)

# Minimum time in seconds between two writes.
INTERVAL_S = 1.0
HEARTBEAT_S = 5.0
# Time window in seconds, and maximum number of results in this window, for measuring the frame rate.
RATE_S = 10.0
MAX_RATE_RESULTS = 4096
# Maximum number of sources and regions in the file, so that the file has at most MAX_STATUS_BYTES.
MAX_SOURCES = 64
MAX_TEXT = 300
_WARN_S = 60.0
_CLOSE_S = 5.0


class StatusFile:
    """Writes the camera's state to a JSON file when the state changes, and at least every :data:`HEARTBEAT_S` seconds.

    The file's format is :class:`~edgerec.contract.status.CameraStatus`. All users can read the file, which contains no
    images. A background thread replaces the file atomically, even if no frames arrive.
    """

    closed = False
    name = "status"
    uses_images = False

    def __init__(
        self,
        path: str | Path,
        bundle: str,
        name: str,
        counters: Callable[[], RunReport],
        regions: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Check that the file can be written. The first event starts the writing thread.

        Args:
            path: path of the file, with the suffix .json. Missing folders are created.
            bundle: SHA-256 digest of the bundle's manifest.json as hexadecimal digits.
            name: name of the bundle.
            counters: function that returns the camera's counters. The writing thread calls this function.
            regions: region names, keyed by source name.

        Raises:
            OutputExistsError: the file exists and is not a status file.
            OutputNameError: the file has another suffix.
            EdgerecError: the file cannot be written.
        """
        self._path = checked_output(path, suffixes=(".json",))
        self.outputs = (self._path,)
        _refuse_unusable(self._path)
        self._bundle, self._bundle_name, self._counters = bundle, name, counters
        self._started_s = time.time()
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._changed = True
        self._regions = dict(regions or {})
        self._sources: dict[str, SourceStatus] = {}
        self._last: LastDecision | None = None
        self._completed_s: deque[float] = deque(maxlen=MAX_RATE_RESULTS)
        self._latest_result_s = 0.0
        self._health, self._health_read_s = Health(None, None, None), -HEARTBEAT_S
        self._warned_s, self._has_omitted = -_WARN_S, False
        self._thread = threading.Thread(target=self._work, name="edgerec-status-file", daemon=True)

    def write(self, result: Result) -> None:
        """Update the latest decision and the frame rate."""
        decision = result.decision or result.classification
        last = LastDecision(
            source=_text(source_of(result)),
            label=_text(decision.label),
            score=_finite(decision.score),
            at_s=unix_s(result.frame.captured_s),
        )
        with self._lock:
            # Measure the rate with completion times, because capture times of several video files are not comparable.
            times_s = self._completed_s
            times_s.append(result.completed_s)
            while times_s[-1] - times_s[0] > RATE_S:
                times_s.popleft()
            self._last, self._latest_result_s = last, time.monotonic()
            self._changed = True
        self._start()

    def state(self, change: StateChange) -> None:
        """Update the state of a source."""
        regions = [region_name(change.source, region) for region in self._regions.get(change.source, ())]
        with self._lock:
            for name in regions or [change.source]:
                if name not in self._sources and len(self._sources) >= MAX_SOURCES:
                    self._warn_about_omitted(name)
                    continue
                self._sources[name] = SourceStatus(
                    name=_text(name), state=str(change.state), reason=_text(change.reason)
                )
                self._changed = True
        self._start()

    def _warn_about_omitted(self, name: str) -> None:
        if not self._has_omitted:
            self._has_omitted = True
            log.warning(
                "the status file %s contains only the first %d sources and regions: %s and later ones are omitted",
                self._path,
                MAX_SOURCES,
                _text(name),
            )

    def close(self) -> None:
        """Write the camera's final state to the file, and stop the thread."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(_CLOSE_S)

    def _start(self) -> None:
        # Do not overwrite an existing file before the first event, because another sink may fail to open.
        if self._thread.ident is None:
            self._thread.start()

    def _work(self) -> None:
        while True:
            written_s = time.monotonic()
            self._replace_file()
            while not (closing := self._closing.wait(INTERVAL_S)):
                if self._changed or time.monotonic() - written_s >= HEARTBEAT_S:
                    break
            if closing:
                break
        self._replace_file()

    def _replace_file(self) -> None:
        try:
            content = to_json(self._status()) + "\n"
            with replacing(self._path) as partial:
                partial.write_text(content, encoding="utf-8")
                # Make the file readable by all users, regardless of the service's umask.
                partial.chmod(0o644)
        except OSError as error:
            if time.monotonic() - self._warned_s >= _WARN_S:
                self._warned_s = time.monotonic()
                log.warning("the status file %s cannot be written: %s", self._path, error.strerror or error)

    def _status(self) -> CameraStatus:
        now_s = time.monotonic()
        if now_s - self._health_read_s >= HEARTBEAT_S:
            self._health, self._health_read_s = read_health(), now_s
        counters, temperature_c = self._counters(), self._health.temperature_c
        with self._lock:
            self._changed = False
            return CameraStatus(
                version=VERSION,
                pid=os.getpid(),
                bundle=self._bundle,
                name=_text(self._bundle_name),
                started_s=round(self._started_s, 3),
                updated_s=round(time.time(), 3),
                frames=counters.classified,
                skipped=sum(counters.skipped.values()),
                fps=self._rate(now_s),
                invalid=counters.invalid,
                temperature_c=None if temperature_c is None else round(temperature_c, 1),
                throttled=list(self._health.throttled or ()),
                sources=list(self._sources.values()),
                last=self._last,
            )

    def _rate(self, now_s: float) -> float:
        times_s = self._completed_s
        if len(times_s) < 2 or now_s - self._latest_result_s > RATE_S:
            return 0.0
        duration_s = times_s[-1] - times_s[0]
        return round((len(times_s) - 1) / duration_s, 2) if duration_s > 0 else 0.0


def _refuse_unusable(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Check by creating a file, because os.access() does not detect read-only file systems.
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        content = read_at_most(path, MAX_STATUS_BYTES) if path.exists() else b""
    except OSError as error:
        raise EdgerecError(
            f"the status file {path} cannot be written ({error.strerror}): choose a file in a writable folder"
        ) from None
    try:
        # Overwrite an empty file, which a power failure may have left.
        is_status = not content or {"version", "pid", "updated_s"} <= parse_json(content).keys()
    except (ValueError, AttributeError):
        is_status = False
    if not is_status:
        raise OutputExistsError(f"{path} exists and is not a status file: choose another name")


def _text(text: str) -> str:
    return printable(text)[:MAX_TEXT]


def _finite(score: float) -> float:
    return round(float(score), 4) if score == score else 0.0
