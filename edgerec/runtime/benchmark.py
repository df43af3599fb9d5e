"""Time and memory of a bundle on the machine that this runs on."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgerec.contract.bundle import Bundle
from edgerec.contract.decision import Decider, decide
from edgerec.contract.preprocess import Image
from edgerec.errors import BundleError, MissingExtraError, SourceError
from edgerec.runtime.classifier import Classifier
from edgerec.runtime.interpreter import Fingerprint, fingerprint
from edgerec.runtime.profile import OperatorTime, profile_operators
from edgerec.runtime.thermal import Health, look
from edgerec.runtime.verification import golden_pictures
from edgerec.tflite.schema import tflite_schema
from edgerec.utils.child_process import ask_python
from edgerec.utils.progress import Listener, Progress, ignore

# A clock that falls below this part of what it was, while the model runs, has been throttled.
THROTTLED = 0.9
LEAST_IMAGES = 50
_COLD = """
import json, sys, time
from edgerec.runtime.classifier import Classifier, read_image
Classifier.open(sys.argv[1], **json.loads(sys.argv[3])).classify(read_image(sys.argv[2]))
ended = time.time()
try:
    import resource
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
except ImportError:  # Windows
    kilobytes = 0
print(json.dumps([ended, kilobytes]))
"""


class Grabbed(Protocol):
    """A picture and when it was grabbed, monotonic seconds, as a camera's frames are."""

    @property
    def grabbed(self) -> Image: ...

    @property
    def grabbed_s(self) -> float: ...


@dataclass(frozen=True)
class Stage:
    """Milliseconds of one stage over all pictures."""

    name: str
    p50_ms: float
    p95_ms: float
    p99_ms: float

    @classmethod
    def of(cls, name: str, taken_ms: Sequence[float]) -> Stage:
        """The percentiles of what was measured."""
        return cls(name, *(round(float(p), 4) for p in np.percentile(taken_ms, (50, 95, 99))))


@dataclass(frozen=True)
class BenchmarkReport:
    """Latency, throughput and memory of a bundle on this machine.

    Attributes:
        runtime: name and version of the runtime, and the CPU.
        threads: number of interpreter threads; 0 if the runtime chose the number.
        stages: latency of preprocessing, inference, decision, and their total; for a source also the latency
            ``end to end``, from the grab of a frame.
        fps: images per second when images are processed one after the other; for a source, the achieved frame rate.
        images: number of measured images.
        cold_start_s: time from the start of a new process to its first prediction, in seconds.
        peak_memory_bytes: peak resident memory of this process; 0 if the system does not report it.
        before, after: state of the machine before and after the measurement.
        throttled: reason why the CPU was throttled during the measurement; empty if it was not.
        operators: time of each operator; empty if not requested, or if ``operators_error`` is not empty.
        operators_error: reason why the operators were not measured.
        source: source of the images without secrets; empty if the golden images were used.
    """

    bundle: str
    variant: str
    runtime: Fingerprint
    threads: int
    delegate: str
    stages: tuple[Stage, ...]
    fps: float
    images: int
    cold_start_s: float
    peak_memory_bytes: int
    before: Health
    after: Health
    throttled: tuple[str, ...]
    operators: tuple[OperatorTime, ...]
    source: str = ""
    operators_error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)


def benchmark(
    path: str | Path,
    *,
    frames: Iterable[Grabbed] | None = None,
    source: str = "",
    seconds: float = 5.0,
    threads: int = 0,
    delegate: str | None = None,
    operators: bool = True,
    listener: Listener = ignore,
) -> BenchmarkReport:
    """Measure a bundle on its golden pictures, or on what a source gives.

    Args:
        path: a bundle's folder or .zip.
        frames: of a source, as :meth:`edgerec.camera.Feeds.frames` gives them; None takes the golden pictures.
        source: what the frames come from, for the report.
        seconds: for the stages, and again for the operators.
        threads, delegate: as for :class:`Classifier`.
        operators: time each operator too.
        listener: told of the progress.

    Raises:
        BundleError: no such bundle, or one without golden pictures.
        SourceError: the source gives no frames.
    """
    bundle = Bundle.open(path)
    classifier = Classifier(bundle, threads=threads, delegate=delegate)
    pictures = golden_pictures(bundle)
    listener(Progress("starting a new process", 0, 3))
    cold_start_s, peak = _cold(bundle, pictures, {"threads": threads, "delegate": delegate})
    before = look()
    listener(Progress("measuring the stages", 1, 3))
    if frames is None:
        taken, _ = _stages(classifier, _over_and_over(pictures.values()), seconds)
        del taken["end to end"]  # nothing was grabbed
        fps = 1000 / float(np.mean(taken["together"]))
    else:
        taken, elapsed_s = _stages(classifier, iter(frames), seconds)
        fps = len(taken["together"]) / elapsed_s
    after = look()
    operators_error = _unreadable_graph() if operators else ""
    operators = operators and not operators_error
    listener(Progress("measuring the operators", 2, 3))
    manifest, used = bundle.manifest, threads or bundle.manifest.threads
    contents = [bundle.files[spec.model] for spec in manifest.networks]
    timed = profile_operators(contents, threads=used, budget_s=seconds) if operators else ()
    listener(Progress("measuring the operators", 3, 3))
    return BenchmarkReport(
        bundle=str(path),
        variant=manifest.variant,
        runtime=fingerprint(),
        threads=used,
        delegate=manifest.delegate if delegate is None else delegate,
        stages=tuple(Stage.of(name, values) for name, values in taken.items()),
        fps=round(fps, 2),
        images=len(taken["together"]),
        cold_start_s=round(cold_start_s, 4),
        peak_memory_bytes=peak,
        before=before,
        after=after,
        throttled=_throttled(before, after),
        operators=timed,
        source=source,
        operators_error=operators_error,
    )


def _unreadable_graph() -> str:
    """Return why graphs of models cannot be read, e.g. because only tflite-runtime is installed; empty if they can."""
    try:
        tflite_schema()
    except MissingExtraError as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class _Golden:
    """A golden picture, as if it was grabbed when it is asked for."""

    grabbed: Image

    @property
    def grabbed_s(self) -> float:
        return time.monotonic()


def _over_and_over(pictures: Iterable[Image]) -> Iterator[Grabbed]:
    return cycle([_Golden(picture) for picture in pictures])


def _stages(classifier: Classifier, frames: Iterator[Grabbed], seconds: float) -> tuple[dict[str, list[float]], float]:
    """Milliseconds of each stage for each frame but the first, and how many seconds all of it took."""
    manifest = classifier.manifest
    decider = Decider(manifest.decision, manifest.labels)
    taken: dict[str, list[float]] = {"preprocess": [], "invoke": [], "decision": [], "together": [], "end to end": []}
    first = next(frames, None)
    if first is None:
        raise SourceError("the source gave no frame to measure with: expected two or more")
    classifier.classify(first.grabbed)  # what only the first picture takes
    began = time.perf_counter()
    for frame in frames:
        times = [time.perf_counter_ns()]
        pixels = classifier.pixels(frame.grabbed)
        times.append(time.perf_counter_ns())
        scores, novelty = classifier.scores(pixels), classifier.novelty(pixels)
        times.append(time.perf_counter_ns())
        decide(scores, manifest.labels, manifest.decision, novelty)
        decider.update(scores, frame.grabbed_s, novelty)
        times.append(time.perf_counter_ns())
        since_grab_ms = (time.monotonic() - frame.grabbed_s) * 1000
        spans_ms = [span / 1e6 for span in (*np.diff(times), times[-1] - times[0])]
        for values, span in zip(taken.values(), (*spans_ms, since_grab_ms), strict=True):
            values.append(span)
        if len(taken["together"]) >= LEAST_IMAGES and time.perf_counter() - began >= seconds:
            break
    if not taken["together"]:
        raise SourceError("the source gave one frame only: expected two or more to measure with")
    return taken, time.perf_counter() - began


def _cold(bundle: Bundle, pictures: dict[str, Image], options: dict[str, Any]) -> tuple[float, int]:
    """Seconds from a new process's start to its first answer, and the most memory that it held."""
    first = Path(bundle.path) / next(iter(pictures))
    if not first.is_file():  # in a .zip
        from edgerec.utils.package_data import shipped

        first = next(shipped("calibration").glob("digits/*/*.png"))
    began = time.time()
    times, reason = ask_python(_COLD, str(bundle.path), str(first), json.dumps(options), timeout_s=300)
    if reason:
        raise BundleError(f"{bundle.path} cannot be run in a new process: {reason[-300:]}")
    ended, kilobytes = times
    return ended - began, kilobytes * (1 if sys.platform == "darwin" else 1024)


def _throttled(before: Health, after: Health) -> tuple[str, ...]:
    reasons = list(after.throttled or ())
    if before.clock_mhz and after.clock_mhz and after.clock_mhz < THROTTLED * before.clock_mhz:
        reasons.append(f"the clock fell from {before.clock_mhz:.0f} to {after.clock_mhz:.0f} MHz")
    return tuple(reasons)
