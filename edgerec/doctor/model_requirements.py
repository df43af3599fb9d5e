"""Does a machine fit a target?"""

from __future__ import annotations

import re

from edgerec.contract.target import Target
from edgerec.doctor.edgetpu import EdgeTpu
from edgerec.doctor.finding import Finding, note, ok, problem
from edgerec.doctor.packages import numbers
from edgerec.doctor.python import Python
from edgerec.doctor.resources import MIB, Resources
from edgerec.doctor.runtimes import Runtime
from edgerec.doctor.system import System

_COMPARED = {
    ">=": lambda have, want: have >= want,
    "<": lambda have, want: have < want,
    "==": lambda have, want: have == want,
}


def findings(
    target: Target,
    system: System,
    python: Python,
    runtimes: tuple[Runtime, ...],
    resources: Resources,
    tpu: EdgeTpu,
    delegate: str,
) -> list[Finding]:
    """Architecture, Python, runtime, memory and delegate, each against the target.

    Args:
        target: what the bundle was made for.
        system, python, runtimes, resources, tpu: the machine.
        delegate: the library that the bundle, or else the target, runs on; empty for the processor.
    """
    what = f"target {target.name}"
    if target.kind != "bundle":
        return [note(what, f"its {target.kind} goes into a program of your own: edgerec does not run there")]
    found = []
    if target.arch and system.arch not in target.arch:
        fits = f"it is for {' or '.join(target.arch)}, this is {system.arch}"
        found.append(problem(what, fits, "edgerec targets   # shows one that fits"))
    if target.python and python.short not in target.python:
        mend = f"python{target.python[-1]} -m venv .venv"
        found.append(problem(what, f"it is for Python {' or '.join(target.python)}, this is {python.short}", mend))
    if target.runtimes and not any(_meets(runtime, line) for runtime in runtimes for line in target.runtimes):
        detail = f"it runs with {' or '.join(target.runtimes)}, which is not here or does not load"
        found.append(problem(what, detail, f'pip install "{target.runtimes[0]}"'))
    # A Raspberry Pi keeps some of its memory for the GPU.
    if 0 < resources.memory_bytes < 0.7 * target.memory_bytes:
        have, want = resources.memory_bytes / MIB, target.memory_bytes / MIB
        found.append(note(what, f"it has {want:,.0f} MiB of memory, this has {have:,.0f}"))
    if "edgetpu" in delegate and not tpu.works:
        detail = f"it runs on {delegate}, and no Edge TPU works here; --delegate none runs on the processor"
        found.append(problem(what, detail, "lsusb -d 1a6e: ; lsusb -d 18d1:9302   # is it plugged in?"))
    return found or [ok(what, "this machine fits")]


def _meets(runtime: Runtime, line: str) -> bool:
    """Whether an installed runtime is what a line as ``ai-edge-litert>=2.0,<3`` asks for."""
    name = re.split(r"[\s<>=!~;\[]", line, maxsplit=1)[0]
    bounds = re.findall(r"(>=|<|==)\s*(\d+(?:\.\d+)*)", line.partition(";")[0])
    have = numbers(runtime.version)
    # 2 is 2.0, so both get as many numbers.
    length = 4
    return (
        runtime.package == name
        and not runtime.reason
        and all(_COMPARED[sign](_filled(have, length), _filled(numbers(want), length)) for sign, want in bounds)
    )


def _filled(version: tuple[int, ...], length: int) -> tuple[int, ...]:
    return (version + (0,) * length)[:length]
