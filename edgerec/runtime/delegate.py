"""Delegates: other people's shared libraries that compute a model's operators, as on an Edge TPU or a GPU."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from edgerec.contract.stderr import captured_stderr
from edgerec.errors import DelegateError
from edgerec.runtime.messages import first_sentence

PROBE_S = 20.0
_PROBE = """
import json, sys
from edgerec.runtime.interpreter import find_runtime
from edgerec.runtime.messages import first_sentence
try:
    find_runtime()[1].load_delegate(sys.argv[1], json.loads(sys.argv[2]))
except (ValueError, OSError) as error:
    print(first_sentence(error))
    sys.stdout.flush()
    import os
    os._exit(3)  # skips the destructor of the delegate, which fails if the delegate failed to load
print("loaded", flush=True)
"""


def load_delegate(module: Any, library: str, options: Mapping[str, str] | None = None) -> Any:
    """A runtime's delegate object.

    The library is loaded in a child process first, so that one that crashes or hangs is an error, not the end of
    this process.

    Args:
        module: the runtime's interpreter module.
        library: the shared library's path or name.
        options: for the delegate, as ``{"device": "usb:1"}`` for the second Edge TPU stick.

    Raises:
        DelegateError: it does not load; the message says why and how to go on without it.
    """
    wanted = dict(options or {})
    if reason := try_delegate(library, wanted):
        raise _refused(library, reason)
    with captured_stderr():
        try:
            return module.load_delegate(library, wanted)
        except (ValueError, OSError) as error:
            reason = first_sentence(error)
    raise _refused(library, reason)


def try_delegate(library: str, options: Mapping[str, str] | None = None) -> str:
    """Why a delegate does not load in a child process; empty when it does."""
    return probe(_PROBE, library, json.dumps(dict(options or {})))


def probe(code: str, *arguments: str, given: bytes = b"") -> str:
    """Run Python code that may crash or hang in a child process.

    Args:
        code: prints ``loaded`` at its end; where it fails in a way that it knows, the reason, and exits with 3.
        arguments: for ``sys.argv``.
        given: what it reads from its standard input.

    Returns:
        Why it failed, empty when it did not.
    """
    command = [sys.executable, "-c", code, *arguments]
    try:
        done = subprocess.run(command, input=given, capture_output=True, timeout=PROBE_S, check=False)
    except subprocess.TimeoutExpired:
        return f"it hangs: nothing for {PROBE_S:g} s"
    except ValueError:  # a null character, or half of one beyond U+FFFF
        return "that is no file name"
    if done.returncode == 3:
        return done.stdout.decode(errors="replace").strip() or "it says nothing"
    if done.returncode < 0:
        return f"it crashes with {signal.Signals(-done.returncode).name}"
    if done.returncode or b"loaded" not in done.stdout:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return (lines or [f"exit code {done.returncode}"])[-1]
    return ""


def _refused(library: str, reason: str) -> DelegateError:
    return DelegateError(
        f"the delegate {library} does not load ({reason}): is its driver installed and the device plugged in? "
        "--delegate none runs on the processor"
    )
