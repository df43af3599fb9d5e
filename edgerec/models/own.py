"""A network of the person's own: a function in a Python file, named in the recipe or on the command line.

``model.arch`` is ``package.module:function`` (found in the working directory or where Python looks) or
``path/to/file.py:function``. The function takes what those in this folder take, ``(keras, inputs, section)``, and gives
the features, a tensor ``(batch, n)``; classes and softmax are put behind. To import it is to run its code: only
:func:`edgerec.models.build` does, for ``edgerec train``; a finished run has its model, and opens without.
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

SHAPE = "expected a function build(keras, inputs, section) that gives a tensor (batch, n)"


def is_own(arch: str) -> bool:
    """Whether ``model.arch`` names code of the person's own."""
    return ":" in arch


def plain_name(arch: str) -> str:
    """What its model is called."""
    return re.sub(r"\W", "_", Path(arch.rpartition(":")[0]).stem) or "own"


def find_function(arch: str) -> Callable[[Any, Any, ModelSection], Any]:
    """The function that ``model.arch`` names. Its file is run.

    Raises:
        RecipeError: no such file, module or function.
        ModelError: the file's own code fails.
    """
    place, _, name = arch.rpartition(":")
    if not place or not name.isidentifier():
        raise RecipeError(f"model.arch is {arch!r}, expected module:function or path/to/file.py:function")
    module = _of_file(arch, Path(place)) if place.endswith(".py") else _of_name(arch, place)
    found = getattr(module, name, None)
    if found is None:
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        if not functions:
            raise RecipeError(f"model.arch is {arch!r}, but {place} defines no function: {SHAPE}")
        raise RecipeError(f"model.arch: {unknown(f'function of {place}', name, functions)}")
    if not callable(found):
        raise RecipeError(f"model.arch: {arch} is a {type(found).__name__}, {SHAPE}")
    return found


def features(keras: Any, inputs: Any, section: ModelSection) -> Any:
    """What the person's function makes of the inputs, checked.

    Raises:
        ModelError: it fails, or gives something else than a flat tensor of tf_keras.
    """
    arch, build = section.arch, find_function(section.arch)
    with _said_in_one_line(arch, "failed"):
        made = build(keras, inputs, section)
    if type(made).__module__.partition(".")[0] == "keras":
        raise ModelError(f"{arch} gives a tensor of Keras 3: {_WHICH_KERAS}")
    if isinstance(made, keras.Model):
        raise ModelError(f"{arch} gives a whole model, {SHAPE}: classes and softmax are put behind it")
    if not hasattr(made, "_keras_history"):
        raise ModelError(f"{arch} gives a {type(made).__name__}, {SHAPE}")
    if len(made.shape) != 2 or made.shape[-1] is None:
        raise ModelError(
            f"{arch} gives a tensor of shape {tuple(made.shape)}, expected (batch, n): "
            "end it with GlobalAveragePooling2D or Flatten"
        )
    with _said_in_one_line(arch, "gives what does not come from its inputs"):
        model = keras.Model(inputs, made)
    for layer in model.layers:
        if hasattr(layer, "layers"):
            raise ModelError(
                f"{arch} has a model inside ({layer.name!r}), which quantization-aware training refuses: call its "
                "layers one by one, or a Keras application with input_tensor=inputs"
            )
    with _said_in_one_line(arch, "cannot be saved"):
        model.get_config()
    return made


_WHICH_KERAS = "take the keras that it is given as its first argument, and do not import one"


def _of_name(arch: str, name: str) -> ModuleType:
    here = str(Path.cwd())
    with _said_in_one_line(arch, "cannot be imported"):
        sys.path.insert(0, here)
        importlib.invalidate_caches()  # the file may be a second old
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name.partition(".")[0] and error.name != name:
                raise
            raise RecipeError(
                f"model.arch is {arch!r}, and there is no module {error.name!r} in {here} or where Python looks: "
                "name a .py file by its path, as nets/mine.py:build"
            ) from None
        finally:
            sys.path.remove(here)


def _of_file(arch: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise RecipeError(f"model.arch is {arch!r}, and the file {path} does not exist")
    with _said_in_one_line(arch, "cannot be imported"):
        return _run(real_path(path), path.stat().st_mtime_ns)


@functools.lru_cache
def _run(path: Path, changed_ns: int) -> ModuleType:
    """The module of a file, which is run once as long as it does not change."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # it ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _said_in_one_line(arch: str, what: str) -> Iterator[None]:
    """Whatever a person's code raises, said with the place in their file."""
    try:
        yield
    except (ModelError, RecipeError):
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        theirs = [frame for frame in frames if _is_theirs(Path(frame.filename))]
        where = f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""
        of_keras3 = "'keras.src" in str(error) or any("/keras/src/" in Path(f.filename).as_posix() for f in frames)
        hint = f"; {_WHICH_KERAS}" if of_keras3 else ""
        said = next(iter(str(error).strip().splitlines()), "")
        raise ModelError(f"{arch} {what}{where}: {type(error).__name__}: {said[:300]}{hint}") from error


def _is_theirs(path: Path) -> bool:
    return path.is_file() and "site-packages" not in path.parts and Path(__file__).parent.parent not in path.parents
