"""Read configuration dataclasses from TOML files.

pydantic is not used, because importing pydantic would slow down the start of the camera.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

from edgerec.camera.config_fields import (
    field_key,
    is_list_type,
    literal_secrets,
    nested_dataclass,
    relocate_path,
    typed_fields,
)
from edgerec.contract.format_detection import reason
from edgerec.errors import ConfigError, unknown
from edgerec.utils.atomic import user_path
from edgerec.utils.bounded_parsing import MAX_TOML_BYTES, parse_toml
from edgerec.utils.byte_sizes import parse_size
from edgerec.utils.type_descriptions import describe_type, non_none_types

T = TypeVar("T")

# Permission bits that are not allowed for a file with secrets. Members of the file's group may read the file.
_OTHER_USERS = 0o037


@contextmanager
def in_file(path: str | Path) -> Iterator[None]:
    """Context manager that adds the path of the file to the message of a :class:`ConfigError`."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.field}", error.problem) from None


@contextmanager
def keys_of_file(kind: type[Any], path: str | Path | None) -> Iterator[None]:
    """Context manager that adds the file and the dotted key to a :class:`ConfigError`.

    Errors for fields of other dataclasses than ``kind`` are raised unchanged. None for ``path`` changes no error.
    """
    try:
        yield
    except ConfigError as error:
        if path is None or not error.field.startswith(f"{kind.__name__}."):
            raise
        raise ConfigError(f"{path}: {_key_of_error(kind, error)}", error.problem) from None


def read_values(kind: type[Any], path: str | Path) -> dict[str, Any]:
    """Read a TOML file and check its keys and value types. :func:`build` checks the ranges of the values.

    Args:
        kind: the dataclass that the file describes.
        path: path of the file. Relative paths in the file refer to the file's folder.

    Returns:
        The fields in the file. Nested dataclasses are dictionaries.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or contains an unknown key or a value of the wrong type, or
            other users can read a file that contains a password or token.
    """
    content, mode = _read(path)
    try:
        values = parse_toml(content)
    except ValueError as error:
        raise ConfigError(str(path), f"is not TOML: {reason(user_path(path), error)}") from None
    with in_file(path):
        typed = typed_values(kind, values, os.path.dirname(user_path(path)))
    secret = next(literal_secrets(kind, typed), None)
    if secret and os.name == "posix" and mode & _OTHER_USERS:
        raise ConfigError(
            str(path),
            f"contains a password or token in {secret}, but other users can access the file (mode {mode:04o}): run "
            f"chmod 600 {path}, or use env:NAME or @FILE",
        )
    return typed


def typed_values(kind: type[Any], values: Mapping[str, Any], folder: str = "") -> dict[str, Any]:
    """Check the keys of a parsed TOML file, and convert its values to the types of a dataclass's fields.

    Args:
        kind: the dataclass.
        values: the parsed TOML file.
        folder: folder to which relative paths refer. An empty string leaves paths unchanged.

    Raises:
        ConfigError: a key is unknown or a value has the wrong type. Its ``field`` is the dotted key.
    """
    return _Reader(kind, folder).table(kind, values, "")


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of ``values`` updated with ``changes``. Nested dictionaries are merged."""
    result = dict(values)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def build(kind: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Create a dataclass and its nested dataclasses from the result of :func:`typed_values`.

    Raises:
        ConfigError: a required key is missing or a value is out of range. Its ``field`` is the dotted key.
    """
    arguments: dict[str, Any] = {}
    for item, hint in typed_fields(kind):
        key = f"{prefix}{field_key(item)}"
        if item.name in values:
            value, nested = values[item.name], nested_dataclass(hint)
            if nested and isinstance(value, tuple):
                value = tuple(build(nested, each, f"{key}[{index}].") for index, each in enumerate(value))
            elif nested:
                value = build(nested, value, f"{key}.")
            arguments[item.name] = value
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(key, f"is missing; expected {describe_type(hint)}")
    try:
        return kind(**arguments)
    except ConfigError as error:
        raise ConfigError(prefix + _key_of_error(kind, error), error.problem) from None


def _key_of_error(kind: type[Any], error: ConfigError) -> str:
    """Return the dotted key of the field in an error, such as ``action[0].on`` for ``CameraConfig.actions[0].on``."""
    path = error.field.partition(".")[2]
    name = re.split(r"[.\[]", path, maxsplit=1)[0]
    keys = {item.name: field_key(item) for item, _ in typed_fields(kind)}
    return keys.get(name, name) + path[len(name) :]


def _read(path: str | Path) -> tuple[bytes, int]:
    try:
        # O_NONBLOCK prevents opening a named pipe from blocking until the pipe has a writer.
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
        with open(os.open(user_path(path), flags), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(str(path), "is not a file: choose a TOML file")
            content = file.read(MAX_TOML_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(
            str(path), "does not exist: write a configuration with edgerec camera BUNDLE --write-config FILE"
        ) from None
    except PermissionError:
        raise ConfigError(
            str(path),
            "cannot be read: permission denied; make the file readable for the user of this process, or run "
            f"chmod 644 {path} if it contains no password",
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            str(path), f"cannot be read: {getattr(error, 'strerror', None) or 'it is not a file name'}"
        ) from None
    return content, stat.S_IMODE(status.st_mode)


class _Reader:
    """Converts parsed TOML values to the types of dataclass fields."""

    def __init__(self, root: type[Any], folder: str) -> None:
        self._root, self._folder = root, folder

    def table(self, kind: type[Any], values: Any, prefix: str) -> dict[str, Any]:
        if not isinstance(values, Mapping):
            name = prefix.rstrip(".")
            raise ConfigError(name, f"is {_shown(values)}; expected a table [{name}]")
        known = {field_key(item): (item, hint) for item, hint in typed_fields(kind)}
        result = {}
        for key, value in values.items():
            if key not in known:
                raise ConfigError(f"{prefix}{key}", _unknown_key(self._root, known, prefix, str(key)))
            item, hint = known[key]
            result[item.name] = self._value(value, item, hint, prefix + key)
        return result

    def _value(self, value: Any, item: Field[Any], hint: Any, key: str) -> Any:
        nested = nested_dataclass(hint)
        if nested and is_list_type(hint):
            if not isinstance(value, list | tuple):
                raise ConfigError(key, f"is {_shown(value)}; write each {key} as a table [[{key}]]")
            return tuple(self.table(nested, each, f"{key}[{index}].") for index, each in enumerate(value))
        if nested:
            return self.table(nested, value, f"{key}.")
        content, spec = item.metadata.get("content", ""), item.metadata.get("keys")
        if spec:
            return self._settings(spec, value, key)
        # Sizes in bytes may have a unit, e.g. "500MB".
        if isinstance(value, str) and item.name.endswith("_bytes"):
            try:
                return parse_size(value)
            except ValueError:
                raise ConfigError(key, f"is {value!r}; expected a size such as 500MB, 2GiB or 20G") from None
        if content == "token" and not isinstance(value, str | None):
            raise ConfigError(key, "has the wrong type; expected a string")  # Omit secrets.
        content = "path" if Path in non_none_types(hint) else content
        return _converted(value, hint, key, lambda text: relocate_path(text, content, self._relocate))

    def _settings(self, spec: type[Any], values: Any, key: str) -> dict[str, Any]:
        settings = self.table(spec, values, f"{key}.")
        for name, value in settings.items():
            try:
                spec(**{name: value})
            except ValueError as error:
                field, verb, problem = str(error).partition(" is ")
                raise ConfigError(f"{key}.{field.partition('.')[2]}", f"{verb.strip()} {problem}") from None
        return settings

    def _relocate(self, path: str) -> str:
        # Keep "./lib.so" as a string, because Path would remove "./" and the loader would search other folders.
        return os.path.join(self._folder, str(user_path(path)) if path.startswith("~") else path)


def _converted(value: Any, hint: Any, key: str, relocated: Callable[[str], str]) -> Any:
    alternatives = non_none_types(hint)
    if value is None and NoneType in get_args(hint):  # TOML has no null, but a command-line option can be None.
        return None
    kind: Any
    for kind in alternatives:
        origin, arguments = get_origin(kind) or kind, get_args(kind)
        if origin is Literal and value in arguments and isinstance(value, str):
            return value
        if isinstance(value, str) and origin is str:
            if Path not in alternatives:
                return relocated(value)
            if value:  # Path("") would be the folder itself.
                return Path(relocated(value))
        if isinstance(value, Path) and Path in alternatives:
            return value
        if type(value) is int and abs(value) < 1 << 63 and origin in (int, float):
            return origin(value)
        if isinstance(value, float) and origin is float and math.isfinite(value):
            return value
        if isinstance(value, bool) and origin is bool:
            return value
        if isinstance(value, Mapping) and origin is Mapping:
            return {name: _converted(each, arguments[1], f"{key}.{name}", relocated) for name, each in value.items()}
        if isinstance(value, list | tuple) and origin in (tuple, Sequence):
            count = len(arguments) if origin is tuple and arguments[-1] is not Ellipsis else len(value)
            if len(value) == count:
                return tuple(_converted(each, arguments[0], f"{key}[{i}]", relocated) for i, each in enumerate(value))
        if kind is Any:
            return value
    is_sequence = isinstance(value, list | tuple) and is_list_type(hint)
    shown = f"has {len(value)} elements" if is_sequence else f"is {_shown(value)}"
    raise ConfigError(key, f"{shown}; expected {describe_type(hint)}")


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a table"
    return "a list" if isinstance(value, list | tuple) else repr(value)[:60]


def _unknown_key(root: type[Any], known: Iterable[str], prefix: str, key: str) -> str:
    """Return an error message for an unknown key, with a suggestion if a similar key exists."""
    same = [dotted for dotted in _dotted_keys(root) if dotted.rpartition(".")[2] == key and dotted != prefix + key]
    if same:
        return f"is unknown; did you mean {' or '.join(map(repr, same))}? (choices: {', '.join(sorted(known))})"
    return f"is unknown{unknown('key', key, known).partition(repr(key))[2]}"


def _dotted_keys(kind: type[Any], prefix: str = "") -> Iterator[str]:
    for item, hint in typed_fields(kind):
        key = f"{prefix}{field_key(item)}"
        yield key
        if nested := nested_dataclass(hint) or item.metadata.get("keys"):
            yield from _dotted_keys(nested, f"{key}.")
