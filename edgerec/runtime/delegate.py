"""Load delegates: shared libraries that run models on an Edge TPU, a GPU or another accelerator."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from edgerec.errors import DelegateError
from edgerec.utils.child_process import run_python
from edgerec.utils.messages import first_sentence
from edgerec.utils.native_output import captured_stderr

PROBE_S = 20.0
_DELEGATE_TEST_CODE = """
import json, sys
from edgerec.runtime.interpreter import find_runtime
from edgerec.utils.messages import first_sentence
from edgerec.utils.child_process import limit_resources
runtime, model = find_runtime()[1], sys.stdin.buffer.read()
limit_resources(4 << 30)
try:
    delegate = runtime.load_delegate(sys.argv[1], json.loads(sys.argv[2]))
    if model:
        interpreter = runtime.Interpreter(model_content=model, experimental_delegates=[delegate])
        interpreter.allocate_tensors()
        interpreter.invoke()
except (ValueError, OSError, RuntimeError) as error:
    print(first_sentence(error))
    sys.stdout.flush()
    import os
    os._exit(3)  # skips the destructor of the delegate, which fails if the delegate failed to load
print("loaded", flush=True)
"""


def load_delegate(module: Any, library: str, options: Mapping[str, str] | None = None, model: bytes = b"") -> Any:
    """Load a delegate after testing it in a child process, because the library may crash or hang.

    The child process also runs the model, because a delegate for another runtime may crash only when it runs a model.

    Args:
        module: interpreter module of the runtime.
        library: path or name of the shared library. Names are never searched in the current folder.
        options: delegate options, e.g. ``{"device": "usb:1"}`` for the second Edge TPU stick.
        model: the .tflite file that the delegate will run. If empty, only the library is tested.

    Raises:
        DelegateError: the library cannot be loaded or cannot run the model. The message states the reason, and how to
            continue without the delegate.
    """
    delegate_options = dict(options or {})
    if _in_current_folder(library):
        raise DelegateError(
            f"refusing to load the delegate {library} from the current folder, because it may be malicious: remove "
            "the folder from LD_LIBRARY_PATH, or pass the library's full path with --delegate"
        )
    if reason := try_delegate(library, delegate_options, model):
        raise _delegate_error(library, reason)
    with captured_stderr():
        try:
            return module.load_delegate(library, delegate_options)
        except (ValueError, OSError) as error:
            reason = first_sentence(error)
    raise _delegate_error(library, reason)


def _in_current_folder(library: str) -> bool:
    """Return True if the dynamic loader would find ``library`` in the current folder."""
    if os.path.dirname(library):
        return False
    folders = re.split("[:;]", os.environ.get("LD_LIBRARY_PATH") or os.sep)
    folders += ["."] if sys.platform == "darwin" else []  # On macOS, dlopen searches the current folder.
    searches_here = any(os.path.realpath(folder) == os.path.realpath(".") for folder in folders)
    return searches_here and os.path.exists(library)


def try_delegate(library: str, options: Mapping[str, str] | None = None, model: bytes = b"") -> str:
    """Test a delegate in a child process. Return an error message, or an empty string on success."""
    return probe(_DELEGATE_TEST_CODE, library, json.dumps(dict(options or {})), content=model)


def probe(code: str, *arguments: str, content: bytes = b"") -> str:
    """Run Python code that may crash or hang in a child process.

    Args:
        code: Python code that prints ``loaded`` if it succeeds. If it fails for a known reason, it prints the reason
            and exits with code 3.
        arguments: command-line arguments for the code.
        content: bytes that the code can read from standard input.

    Returns:
        The reason why the code failed, or an empty string if it succeeded.
    """
    try:
        result = run_python(code, *arguments, content=content, timeout_s=PROBE_S)
    except ValueError:
        return "the name of the library contains invalid characters"
    if result.code == 3:
        return result.stdout.strip() or "no reason was given"
    return "" if result.code == 0 and "loaded" in result.stdout else result.reason or "it printed no result"


def _delegate_error(library: str, reason: str) -> DelegateError:
    return DelegateError(
        f"the delegate {library} does not load ({reason}): is its driver installed, the device plugged in, and the "
        "library built for this runtime? Use --delegate none to run on the CPU"
    )
