"""Load and run a .tflite file in a child process, because an untrusted file can crash or hang the interpreter.

The digests of models that ran successfully are stored in this process and in the user's cache folder, so that each
model is tested only once.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgerec.errors import EdgerecError, ModelError
from edgerec.tflite.runtime_packages import RUNTIMES
from edgerec.tflite.verifier import check_bounds
from edgerec.utils.atomic import cache_folder, sha256
from edgerec.utils.child_process import limit_resources, run_python
from edgerec.utils.messages import first_sentence
from edgerec.utils.native_output import captured_output

log = logging.getLogger(__name__)

TIMEOUT_S = 60.0
# By default, a model is tested with RUNS inputs, and no new run starts after RUNS_S seconds.
RUNS, RUNS_S = 12, 5.0
# A smoke test needs only a few inferences, because it checks only for crashes and hangs.
SAFETY_RUNS = 4
# The memory limit for running a model is MEMORY_BYTES plus MEMORY_FACTOR times the size of the file.
MEMORY_BYTES, MEMORY_FACTOR = 2 << 30, 4
# Increase this version when adding a check, so that all models are tested again.
_CHECKS_VERSION = 1
_MOST_REMEMBERED = 1000
_CHILD = """
from edgerec.runtime.interpreter import find_runtime, open_interpreter
from edgerec.tflite.probing import child
find_runtime()  # before the memory is limited, because TensorFlow and its CUDA libraries need much address space
child(open_interpreter, *sys.argv[1:])
"""

_runnable: set[str] = set()
_trusted: set[str] = set()


@dataclass(frozen=True)
class Probe:
    """Result of loading a model and running it on several inputs.

    Attributes:
        error: why the interpreter cannot load or run the model, or an empty string if it can.
        runs: number of inputs for which all outputs were finite, or 0 if the model has dynamic shapes or several
            outputs.
        lowest, highest: smallest and largest dequantized output over all runs.
        lowest_sum, highest_sum: smallest and largest sum of a run's outputs.
    """

    error: str = ""
    runs: int = 0
    lowest: float = math.inf
    highest: float = -math.inf
    lowest_sum: float = math.inf
    highest_sum: float = -math.inf

    @property
    def within_unit(self) -> bool:
        """True if all outputs were in [0, 1], apart from rounding errors."""
        return self.runs > 2 and self.lowest >= -1e-3 and self.highest <= 1.005

    def sums_to(self, total: float, tolerance: float) -> bool:
        """Return whether the outputs of every run sum to ``total``, within ``tolerance``."""
        return self.runs > 2 and total - tolerance <= self.lowest_sum and self.highest_sum <= total + tolerance


def require_runnable(content: bytes, where: str) -> None:
    """Check a model by running it in a child process, unless the same model has already passed the check.

    Args:
        content: the .tflite file.
        where: the model's name in error messages.

    Raises:
        ModelError: the file is damaged, or the model cannot be loaded or run within the time and memory limits.
    """
    key = _key(content)
    if key in _runnable or _is_remembered(key):
        _runnable.add(key)
        return
    check_bounds(content, where)
    if key in _trusted:
        return
    probe = probe_model(content, runs=SAFETY_RUNS)
    if probe.error:
        raise ModelError(f"{where} cannot be run: {probe.error}")


def trust(content: bytes) -> None:
    """Let :func:`require_runnable` accept a model without running it, e.g. in an isolated process."""
    _trusted.add(_key(content))


def remember(content: bytes) -> None:
    """Record that a model is safe to run, because this process converted it or a child process ran it."""
    key = _key(content)
    if key in _runnable:
        return
    _runnable.add(key)
    try:
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / key).touch()
        files = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime)
        for file in files[:-_MOST_REMEMBERED]:
            file.unlink(missing_ok=True)
    # Writing fails if there is no home folder, or if the disk is full or read-only.
    except (OSError, RuntimeError) as error:
        log.debug("the cache of checked models cannot be written: %s", error)


def _is_remembered(key: str) -> bool:
    try:
        return (_folder() / key).is_file()
    except (OSError, RuntimeError):
        return False


def _folder() -> Path:
    return cache_folder() / "runnable-models"


def _key(content: bytes) -> str:
    """Return the name of a model's cache file, which depends on the installed runtime versions."""
    return f"{sha256(content)}-{_runtimes_digest()}"


@functools.cache
def _runtimes_digest() -> str:
    versions: list[int | str] = [_CHECKS_VERSION]
    for package in RUNTIMES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return sha256(repr(versions).encode())[:16]


def probe_model(content: bytes, runs: int = RUNS) -> Probe:
    """Load a model in a child process with time and memory limits, and run it on several inputs.

    Args:
        content: the .tflite file's bytes.
        runs: maximum number of runs, each with another input.
    """
    memory = MEMORY_BYTES + MEMORY_FACTOR * len(content)
    done = run_python(_CHILD, str(memory), str(runs), content=content, timeout_s=TIMEOUT_S)
    if "bad_alloc" in done.stderr or "MemoryError" in done.stderr:
        return Probe(error=f"the model needs more than {memory >> 20} MiB of memory")
    if done.failure:
        return Probe(error=f"the interpreter {done.failure}")
    try:
        probe = Probe(**json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError, TypeError):
        return Probe(error=f"the interpreter fails: {(done.reason or 'the child process printed no result')[:300]}")
    if not probe.error:
        remember(content)
    return probe


def child(open_interpreter: Callable[..., Any], memory: str, runs: str) -> None:
    """Read a model from standard input, run it, and print a :class:`Probe` as JSON.

    This is the entry point of the child process.

    Args:
        open_interpreter: the function of this name in :mod:`edgerec.runtime.interpreter`.
        memory: memory limit of the process, in bytes.
        runs: maximum number of runs, each with another input.
    """
    limit_resources(int(memory))
    content = sys.stdin.buffer.read()
    with captured_output():
        probe = _probe(int(runs), lambda: open_interpreter(content, trusted=True))
    print(json.dumps(asdict(probe)), flush=True)
    os._exit(0)  # The destructor of the interpreter can crash if the model is damaged.


def _probe(runs: int, load: Callable[[], Any]) -> Probe:
    try:
        interpreter = load()
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    except EdgerecError as error:
        return Probe(error=str(error))
    except UnicodeDecodeError:
        return Probe(error="the name of a tensor is not valid UTF-8")
    dynamic = any(-1 in detail.get("shape_signature", detail["shape"])[1:] for detail in inputs)
    if dynamic or len(outputs) != 1 or not all(_supported(detail) for detail in (*inputs, *outputs)):
        return Probe()
    totals: list[tuple[float, float, float]] = []
    began = time.monotonic()
    try:
        for run in range(runs):
            if run > 3 and time.monotonic() - began > RUNS_S:
                break
            for detail in inputs:
                interpreter.set_tensor(detail["index"], _input(detail, run))
            interpreter.reset_all_variables()
            interpreter.invoke()
            scores = _dequantized(interpreter.get_tensor(outputs[0]["index"]), outputs[0])
            # Random inputs outside the expected range can cause overflows, e.g. in exp.
            if not np.isfinite(scores).all():
                continue
            totals.append((float(scores.min()), float(scores.max()), float(scores.sum())))
    except (RuntimeError, ValueError) as error:
        return Probe(error=f"the interpreter cannot run the model: {first_sentence(error)}")
    except MemoryError:
        return Probe(error="the interpreter needs more memory than is available")
    if not totals:
        return Probe()
    lowest, highest, sums = zip(*totals, strict=True)
    return Probe("", len(totals), min(lowest), max(highest), min(sums), max(sums))


def _supported(detail: dict[str, Any]) -> bool:
    return detail["dtype"].__name__ in ("float32", "uint8", "int8", "int16") and math.prod(detail["shape"]) > 0


def _input(detail: dict[str, Any], run: int) -> Any:
    """Return a test input: constant values in the first runs, and random noise in later runs."""
    rng = np.random.default_rng(run)
    shape, dtype = detail["shape"], detail["dtype"]
    if dtype is not np.float32:
        limits = np.iinfo(dtype)
        if run < 2:
            return np.full(shape, limits.max if run else limits.min, dtype)
        middle, spread = rng.uniform(limits.min, limits.max), rng.uniform(1, limits.max)
        return np.clip(rng.normal(middle, spread, shape), limits.min, limits.max).astype(dtype)
    low, high = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))[run % 3]
    if run < 3:
        return np.full(shape, high, np.float32)
    return rng.uniform(low, rng.uniform(low, high), shape).astype(np.float32)


def _dequantized(stored: Any, detail: dict[str, Any]) -> Any:
    scale, zero_point = detail["quantization"]
    return (stored.astype(np.float64) - zero_point) * scale if scale else stored.astype(np.float64)
