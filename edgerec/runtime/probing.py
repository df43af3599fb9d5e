"""Load and run a .tflite file in a child process, because an untrusted file can crash, hang or exhaust memory."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgerec.contract.stderr import captured_output
from edgerec.errors import EdgerecError

TIMEOUT_S = 60.0
# The child process starts no further run after this number of seconds.
RUNS_S = 5.0
RUNS = 12
MEMORY_BYTES = 8 << 30
_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from edgerec.runtime import probing; probing.child()"


@dataclass(frozen=True)
class Probe:
    """The result of loading a model and running it on several inputs.

    Attributes:
        error: why the interpreter cannot load or run the model; empty if it can.
        runs: number of inputs for which all outputs were finite; 0 if the model has dynamic shapes or several outputs.
        lowest, highest: smallest and largest real output over all runs.
        lowest_sum, highest_sum: smallest and largest sum of the outputs of one run.
    """

    error: str = ""
    runs: int = 0
    lowest: float = math.inf
    highest: float = -math.inf
    lowest_sum: float = math.inf
    highest_sum: float = -math.inf

    @property
    def within_unit(self) -> bool:
        """True if every output was in [0, 1], up to rounding."""
        return self.runs > 2 and self.lowest >= -1e-3 and self.highest <= 1.005

    def sums_to(self, total: float, tolerance: float) -> bool:
        """Return whether the sum of the outputs was ``total`` in every run."""
        return self.runs > 2 and total - tolerance <= self.lowest_sum and self.highest_sum <= total + tolerance


def probe_model(content: bytes, *, timeout_s: float = TIMEOUT_S) -> Probe:
    """Load a model in a child process with limits on time and memory, and run it on several inputs.

    Args:
        content: the .tflite file's bytes.
        timeout_s: time in seconds after which the child process is stopped.
    """
    # The child process imports the same packages as this process, but nothing from the current directory.
    folders = [str(Path(__file__).resolve().parents[2]), *filter(None, sys.path)]
    command = [sys.executable, "-P", "-c", _CHILD, json.dumps(folders)]
    try:
        done = subprocess.run(command, input=content, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Probe(error=f"loading and running the model timed out after {timeout_s:g} s")
    if done.returncode < 0:
        return Probe(error=f"the interpreter crashes with {signal.Signals(-done.returncode).name}")
    try:
        return Probe(**json.loads(done.stdout.decode().splitlines()[-1]))
    except (ValueError, IndexError, TypeError):
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return Probe(error=f"the interpreter fails: {(lines or [f'exit code {done.returncode}'])[-1]}")


def child() -> None:
    """Read a model from standard input and print a :class:`Probe` as JSON. This is the child's main function."""
    _limit_memory()
    content = sys.stdin.buffer.read()
    with captured_output():
        probe = _probe(content)
    print(json.dumps(asdict(probe)), flush=True)
    os._exit(0)  # skips the interpreter's destructor, which can crash for a damaged model


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _probe(content: bytes) -> Probe:
    from edgerec.runtime.interpreter import open_interpreter
    from edgerec.runtime.messages import first_sentence

    try:
        interpreter = open_interpreter(content)
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
        for run in range(RUNS):
            if run > 3 and time.monotonic() - began > RUNS_S:
                break
            for detail in inputs:
                interpreter.set_tensor(detail["index"], _input(detail, run))
            interpreter.reset_all_variables()
            interpreter.invoke()
            real = _real(interpreter.get_tensor(outputs[0]["index"]), outputs[0])
            if not np.isfinite(real).all():  # the input may be outside the model's range, e.g. exp overflows
                continue
            totals.append((float(real.min()), float(real.max()), float(real.sum())))
    except (RuntimeError, ValueError) as error:
        return Probe(error=f"the interpreter cannot run it: {first_sentence(error)}")
    except MemoryError:
        return Probe(error="the interpreter needs more memory than there is")
    if not totals:
        return Probe()
    lowest, highest, sums = zip(*totals, strict=True)
    return Probe("", len(totals), min(lowest), max(highest), min(sums), max(sums))


def _supported(detail: dict[str, Any]) -> bool:
    return detail["dtype"].__name__ in ("float32", "uint8", "int8", "int16") and math.prod(detail["shape"]) > 0


def _input(detail: dict[str, Any], run: int) -> Any:
    """Return the test input for run number ``run``: a constant, or noise in a range that differs between runs."""
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


def _real(stored: Any, detail: dict[str, Any]) -> Any:
    scale, zero_point = detail["quantization"]
    return (stored.astype(np.float64) - zero_point) * scale if scale else stored.astype(np.float64)
