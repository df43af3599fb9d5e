"""User-defined architectures: functions in a Python file.

``model.arch`` is ``package.module:function``, where the module is in the working directory or on Python's module search
path, or ``path/to/file.py:function``. The function has the same parameters as the functions in this package, ``(keras,
inputs, section)``, and returns the features, a tensor ``(batch, n)``; :func:`edgerec.models.build` adds the
classification layer and the softmax. Importing the file executes its code. This happens only for ``edgerec train`` and
``edgerec models``. A finished run contains the model, and is opened without the file.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from edgerec.errors import ModelError, RecipeError, unknown
from edgerec.recipe import ModelSection
from edgerec.utils.atomic import real_path

SHAPE = "expected a function build(keras, inputs, section) that returns a tensor (batch, n)"


def is_user_defined(arch: str) -> bool:
    """Return whether ``model.arch`` names a function in a user's Python file."""
    return ":" in arch


def plain_name(arch: str) -> str:
    """Return the Keras model name for a user-defined architecture."""
    return re.sub(r"\W", "_", Path(arch.rpartition(":")[0]).stem) or "own"


def find_function(arch: str) -> Callable[[Any, Any, ModelSection], Any]:
    """Import the function that ``model.arch`` names, which executes the function's Python file.

    Raises:
        RecipeError: the file, module or function does not exist.
        ModelError: the code in the file raised an exception.
    """
    module_or_path, _, name = arch.rpartition(":")
    if not module_or_path or not name.isidentifier():
        raise RecipeError(f"model.arch is {arch!r}, expected module:function or path/to/file.py:function")
    if module_or_path.endswith(".py"):
        module = _import_file(arch, Path(module_or_path))
    else:
        module = _import_module(arch, module_or_path)
    function = getattr(module, name, None)
    if function is None:
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        if not functions:
            raise RecipeError(f"model.arch is {arch!r}, but {module_or_path} defines no function: {SHAPE}")
        raise RecipeError(f"model.arch: {unknown(f'function of {module_or_path}', name, functions)}")
    if not callable(function):
        raise RecipeError(f"model.arch={arch!r} is an object of type {type(function).__name__}: {SHAPE}")
    return function


def features(keras: Any, inputs: Any, section: ModelSection) -> Any:
    """Call the user's architecture function and check the returned tensor.

    Raises:
        ModelError: the function raised an exception, or did not return a tf_keras tensor ``(batch, n)``.
    """
    arch, build = section.arch, find_function(section.arch)
    with _user_code_errors(arch, "failed"):
        output = build(keras, inputs, section)
    if type(output).__module__.partition(".")[0] == "keras":
        raise ModelError(f"{arch} returns a Keras 3 tensor, expected a tf_keras tensor: {_WHICH_KERAS}")
    if isinstance(output, keras.Model):
        raise ModelError(f"{arch} returns a model, but edgerec adds the classification layer itself: {SHAPE}")
    if not hasattr(output, "_keras_history"):
        raise ModelError(f"{arch} returns an object of type {type(output).__name__}: {SHAPE}")
    if len(output.shape) != 2 or output.shape[-1] is None:
        raise ModelError(
            f"{arch} returns a tensor of shape {tuple(output.shape)}, expected (batch, n): add "
            "GlobalAveragePooling2D or Flatten at its end"
        )
    with _user_code_errors(arch, "returns a tensor that is not computed from its inputs"):
        model = keras.Model(inputs, output)
    for layer in model.layers:
        if hasattr(layer, "layers"):
            raise ModelError(
                f"{arch} contains a nested model ({layer.name!r}), which quantization-aware training does not support: "
                "call its layers one by one, or call a Keras application with input_tensor=inputs"
            )
    with _user_code_errors(arch, "cannot be saved"):
        model.get_config()
    return output


_WHICH_KERAS = "use the Keras module that the function gets as its first argument, and do not import another Keras"


def _import_module(arch: str, name: str) -> ModuleType:
    here = str(Path.cwd())
    with _user_code_errors(arch, "cannot be imported"):
        sys.path.insert(0, here)
        # Python caches folder listings, so new modules would not be found.
        importlib.invalidate_caches()
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name.partition(".")[0] and error.name != name:
                raise
            raise RecipeError(
                f"model.arch is {arch!r}, but there is no module {error.name!r} in {here} or on Python's module search "
                "path: give the path of the .py file, e.g. nets/mine.py:build"
            ) from None
        finally:
            sys.path.remove(here)


def _import_file(arch: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise RecipeError(f"model.arch is {arch!r}, but the file {path} does not exist")
    with _user_code_errors(arch, "cannot be imported"):
        return _execute_file(real_path(path), path.stat().st_mtime_ns)


@functools.lru_cache
def _execute_file(path: Path, changed_ns: int) -> ModuleType:
    """The module is cached until the file changes."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # the file name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _user_code_errors(arch: str, what: str) -> Iterator[None]:
    """Convert exceptions in the user's code to a :class:`ModelError` that names the line."""
    try:
        yield
    except (ModelError, RecipeError):
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        user_frames = [frame for frame in frames if _is_user_file(Path(frame.filename))]
        where = f" ({user_frames[-1].filename}, line {user_frames[-1].lineno})" if user_frames else ""
        of_keras3 = "'keras.src" in str(error) or any("/keras/src/" in Path(f.filename).as_posix() for f in frames)
        hint = f"; {_WHICH_KERAS}" if of_keras3 else ""
        first_line = next(iter(str(error).strip().splitlines()), "")
        raise ModelError(f"{arch} {what}{where}: {type(error).__name__}: {first_line[:300]}{hint}") from error


def _is_user_file(path: Path) -> bool:
    return path.is_file() and "site-packages" not in path.parts and Path(__file__).parent.parent not in path.parents
