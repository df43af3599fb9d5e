"""Measure a bundle's latency, throughput and memory use on this machine."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgerec.contract.bundle import Bundle
from edgerec.contract.decision import decide
from edgerec.contract.preprocess import Image
from edgerec.contract.smoothing import Decider
from edgerec.errors import BundleError, MissingExtraError, SourceError
from edgerec.runtime.classifier import Classifier
from edgerec.runtime.interpreter import Fingerprint, fingerprint
from edgerec.runtime.latency_percentiles import StageLatency
from edgerec.runtime.operator_profile import OperatorTime, profile_operators
from edgerec.runtime.thermal import Health, read_health
from edgerec.runtime.verification import golden_images
from edgerec.tflite.schema import tflite_schema
from edgerec.utils.atomic import user_path
from edgerec.utils.child_process import ask_python
from edgerec.utils.progress import Listener, Progress, ignore

# The CPU is treated as throttled if its clock frequency falls below this fraction of the initial frequency.
THROTTLED = 0.9
# Minimum number of images in a benchmark, unless the source delivers fewer.
LEAST_IMAGES = 50
_COLD_START_CODE = """
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
    """An image, e.g. a camera frame, and its capture time in seconds on the monotonic clock."""

    @property
    def grabbed(self) -> Image: ...

    @property
    def grabbed_s(self) -> float: ...


@dataclass(frozen=True)
class BenchmarkReport:
    """A bundle's latency, throughput and memory use on this machine.

    Attributes:
        runtime: name and version of the runtime, and the CPU.
        threads: number of interpreter threads, or 0 if the runtime chose the number.
        stages: latencies of preprocessing, inference and decision, and their sum. If a source was measured, also the
            latency ``end to end`` since the capture of a frame.
        fps: images per second if images are processed one after the other. For a source, the achieved frame rate.
        images: number of measured images.
        cold_start_s: time from the start of a new process to its first prediction, in seconds.
        peak_memory_bytes: peak resident memory of the new process, or 0 if the system does not report it.
        before, after: state of the machine before and after the measurement.
        throttled: reasons why the CPU was throttled during the measurement, if it was.
        operators: time of each operator. Empty if not requested, or if ``operators_error`` is not empty.
        operators_error: reason why the operators could not be measured.
        source: source of the images without secrets. Empty if the golden images were used.
    """

    bundle: str
    variant: str
    runtime: Fingerprint
    threads: int
    delegate: str
    stages: tuple[StageLatency, ...]
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
        """Return the report as a JSON-serializable dictionary."""
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
    allowed_signers: str | Path | None = None,
    revoked_keys: str | Path | None = None,
    listener: Listener = ignore,
) -> BenchmarkReport:
    """Measure a bundle's latency, throughput and memory use with its golden images or a source's frames.

    Args:
        path: the bundle's folder or .zip.
        frames: frames of a source, e.g. from ``SourceSupervisor.frames()``. None uses the golden images.
        source: name of the source, for the report.
        seconds: duration of each of the two measurements (stages and operators), in seconds.
        threads: number of interpreter threads. 0 uses the number in the bundle.
        delegate: a delegate's shared library, ``gpu``, or ``none`` for the CPU. None uses the bundle's
            delegate.
        operators: whether to measure the time of each operator.
        allowed_signers, revoked_keys: files of SSH keys that check the signature; see :meth:`Bundle.open`.
        listener: called with the progress.

    Raises:
        BundleError: the bundle does not exist, cannot be run, or has no golden images.
        SourceError: the source delivers fewer than two frames.
    """
    bundle = Bundle.open(path, allowed_signers=allowed_signers, revoked_keys=revoked_keys)
    classifier = Classifier(bundle, threads=threads, delegate=delegate)
    images = golden_images(bundle)
    listener(Progress("starting a new process", 0, 3))
    options = {"threads": threads, "delegate": delegate}
    # The new process opens the bundle again, so it must also check the signature.
    keys = {"allowed_signers": allowed_signers, "revoked_keys": revoked_keys}
    options |= {name: str(user_path(file)) for name, file in keys.items() if file is not None}
    cold_start_s, peak = _measure_cold_start(bundle, images, options)
    before = read_health()
    listener(Progress("measuring the stages", 1, 3))
    if frames is None:
        latencies_ms, _ = _measure_stages(classifier, _repeat(images.values()), seconds)
        del latencies_ms["end to end"]  # Golden images have no capture time.
        fps = 1000 / float(np.mean(latencies_ms["together"]))
    else:
        latencies_ms, elapsed_s = _measure_stages(classifier, iter(frames), seconds)
        fps = len(latencies_ms["together"]) / elapsed_s
    after = read_health()
    operators_error = _unreadable_graph() if operators else ""
    operators = operators and not operators_error
    listener(Progress("measuring the operators", 2, 3))
    manifest, used_threads = bundle.manifest, threads or bundle.manifest.threads
    contents = [bundle.files[spec.model] for spec in manifest.networks]
    operator_times = profile_operators(contents, threads=used_threads, budget_s=seconds) if operators else ()
    listener(Progress("measuring the operators", 3, 3))
    return BenchmarkReport(
        bundle=str(path),
        variant=manifest.variant,
        runtime=fingerprint(),
        threads=used_threads,
        delegate=manifest.delegate_for(delegate),
        stages=tuple(StageLatency.of(name, values) for name, values in latencies_ms.items()),
        fps=round(fps, 2),
        images=len(latencies_ms["together"]),
        cold_start_s=round(cold_start_s, 4),
        peak_memory_bytes=peak,
        before=before,
        after=after,
        throttled=throttling_reasons(before, after),
        operators=operator_times,
        source=source,
        operators_error=operators_error,
    )


def _unreadable_graph() -> str:
    """Return the reason why .tflite files cannot be parsed, e.g. a missing package, or an empty string if they can."""
    try:
        tflite_schema()
    except MissingExtraError as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class _Golden:
    grabbed: Image

    @property
    def grabbed_s(self) -> float:
        return time.monotonic()


def _repeat(images: Iterable[Image]) -> Iterator[Grabbed]:
    return cycle([_Golden(image) for image in images])


def _measure_stages(
    classifier: Classifier, frames: Iterator[Grabbed], seconds: float
) -> tuple[dict[str, list[float]], float]:
    """Return the latencies of each stage in milliseconds, and the measurement's duration in seconds.

    The first frame is not measured.
    """
    manifest = classifier.manifest
    decider = Decider(manifest.decision, manifest.labels)
    names = ("preprocess", "invoke", "decision", "together", "end to end")
    latencies_ms: dict[str, list[float]] = {name: [] for name in names}
    first = next(frames, None)
    if first is None:
        raise SourceError("the benchmark requires at least two frames, but the source delivered none")
    classifier.classify(first.grabbed)  # The first inference is slower, e.g. because it allocates memory.
    began = time.perf_counter()
    for frame in frames:
        times_ns = [time.perf_counter_ns()]
        pixels = classifier.pixels(frame.grabbed)
        times_ns.append(time.perf_counter_ns())
        scores, novelty = classifier.scores(pixels), classifier.novelty(pixels)
        times_ns.append(time.perf_counter_ns())
        decide(scores, manifest.labels, manifest.decision, novelty)
        decider.update(scores, frame.grabbed_s, novelty)
        times_ns.append(time.perf_counter_ns())
        since_grab_ms = (time.monotonic() - frame.grabbed_s) * 1000
        stages_ms = [duration / 1e6 for duration in (*np.diff(times_ns), times_ns[-1] - times_ns[0])]
        for values, duration_ms in zip(latencies_ms.values(), (*stages_ms, since_grab_ms), strict=True):
            values.append(duration_ms)
        if len(latencies_ms["together"]) >= LEAST_IMAGES and time.perf_counter() - began >= seconds:
            break
    if not latencies_ms["together"]:
        raise SourceError("the benchmark requires at least two frames, but the source delivered only one")
    return latencies_ms, time.perf_counter() - began


def _measure_cold_start(bundle: Bundle, images: dict[str, Image], options: dict[str, Any]) -> tuple[float, int]:
    """Return the time in seconds from process start to first prediction, and the peak memory in bytes."""
    first = Path(bundle.path) / next(iter(images))
    if not first.is_file():  # the bundle is a .zip
        from edgerec.utils.package_data import shipped

        first = next(shipped("calibration").glob("digits/*/*.png"))
    began = time.time()
    result, reason = ask_python(_COLD_START_CODE, str(bundle.path), str(first), json.dumps(options), timeout_s=300)
    if reason:
        raise BundleError(f"the process that measures the cold start of {bundle.path} failed: {reason[-300:]}")
    ended, kilobytes = result
    return ended - began, kilobytes * (1 if sys.platform == "darwin" else 1024)


def throttling_reasons(before: Health, after: Health) -> tuple[str, ...]:
    """Return the reasons why the CPU was throttled between two snapshots of the machine's state."""
    reasons = list(after.throttled or ())
    if before.clock_mhz and after.clock_mhz and after.clock_mhz < THROTTLED * before.clock_mhz:
        reasons.append(f"the CPU clock fell from {before.clock_mhz:.0f} to {after.clock_mhz:.0f} MHz")
    return tuple(reasons)
