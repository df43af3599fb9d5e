"""Check whether this machine meets a target's requirements."""

from __future__ import annotations

import re

from edgerec.contract.target import Target
from edgerec.doctor.check_edgetpu import EdgeTpu
from edgerec.doctor.check_packages import numbers
from edgerec.doctor.check_python import Python
from edgerec.doctor.check_resources import MIB, Resources
from edgerec.doctor.check_result import CheckResult, note, ok, problem
from edgerec.doctor.check_runtimes import Runtime
from edgerec.doctor.check_system import System

_OPERATORS = {
    ">=": lambda version, bound: version >= bound,
    "<": lambda version, bound: version < bound,
    "==": lambda version, bound: version == bound,
}


def check(
    target: Target,
    system: System,
    python: Python,
    runtimes: tuple[Runtime, ...],
    resources: Resources,
    tpu: EdgeTpu,
    delegate: str,
) -> list[CheckResult]:
    """Check a machine against a target's requirements.

    Args:
        target: the target.
        system: the machine's operating system.
        python: the Python interpreter that runs edgerec.
        runtimes: the installed TFLite runtimes.
        resources: the machine's resources, e.g. its memory.
        tpu: the machine's Edge TPU.
        delegate: the bundle's or target's delegate, or an empty string for the CPU.
    """
    what = f"target {target.name}"
    if target.kind != "bundle":
        return [note(what, "this target does not run edgerec: use the exported model in your own app or firmware")]
    result = []
    if target.arch and system.arch not in target.arch:
        detail = f"the target requires {' or '.join(target.arch)}, but this machine is {system.arch}"
        result.append(problem(what, detail, "edgerec targets   # lists all targets"))
    if target.python and python.short not in target.python:
        detail = f"the target requires Python {' or '.join(target.python)}, but this is Python {python.short}"
        result.append(problem(what, detail, f"python{target.python[-1]} -m venv .venv"))
    if target.runtimes and not any(_meets(runtime, text) for runtime in runtimes for text in target.runtimes):
        detail = f"the target requires {' or '.join(target.runtimes)}, which is not installed or cannot be imported"
        result.append(problem(what, detail, f'pip install "{target.runtimes[0]}"'))
    # A machine may have up to 30 % less memory, because a Raspberry Pi reserves memory for the GPU.
    if 0 < resources.memory_bytes < 0.7 * target.memory_bytes:
        available_mib, needed_mib = resources.memory_bytes / MIB, target.memory_bytes / MIB
        detail = f"the target has {needed_mib:,.0f} MiB of memory, but this machine has only {available_mib:,.0f} MiB"
        result.append(note(what, detail))
    if "edgetpu" in delegate and not tpu.works:
        detail = (
            f"the target requires {delegate}, but this machine has no working Edge TPU; --delegate none uses the CPU"
        )
        result.append(problem(what, detail, "lsusb -d 1a6e: ; lsusb -d 18d1:9302   # lists connected Edge TPUs"))
    return result or [ok(what, "this machine meets the requirements")]


def _meets(runtime: Runtime, requirement: str) -> bool:
    """Return whether an installed runtime meets a requirement such as ``ai-edge-litert>=2.0,<3``."""
    name = re.split(r"[\s<>=!~;\[]", requirement, maxsplit=1)[0]
    bounds = re.findall(r"(>=|<|==)\s*(\d+(?:\.\d+)*)", requirement.partition(";")[0])
    version = numbers(runtime.version)
    length = 4  # Versions are padded with zeros, so that 2 equals 2.0.
    return (
        runtime.package == name
        and not runtime.reason
        and all(_OPERATORS[sign](_padded(version, length), _padded(numbers(bound), length)) for sign, bound in bounds)
    )


def _padded(version: tuple[int, ...], length: int) -> tuple[int, ...]:
    return (version + (0,) * length)[:length]
