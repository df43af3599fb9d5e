"""Read configuration dataclasses from TOML files, and write them.

The functions work for every frozen dataclass whose fields contain strings, numbers, paths, choices, lists, mappings,
other such dataclasses, or tuples of such dataclasses. pydantic is not used, because importing it would delay the start
of the camera.

The metadata of a field may contain these entries:

- ``content``: ``source`` (source URI or path), ``url`` (URL that may contain a password), ``token`` (a secret) or
  ``library`` (path or name of a shared library).
- ``keys``: dataclass whose fields are the valid keys of a mapping.
- ``key``: name of the key in the file, if it is not the name of the field.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from edgerec.contract.format_detection import reason
from edgerec.errors import ConfigError, unknown
from edgerec.utils.atomic import user_path
from edgerec.utils.bounded_parsing import MAX_TOML_BYTES, parse_toml
from edgerec.utils.byte_sizes import parse_size
from edgerec.utils.secret_references import is_reference
from edgerec.utils.url_redaction import MASK, has_secret, redacted

T = TypeVar("T")

_TYPE_NAMES: dict[Any, str] = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}
_PLACEHOLDERS: dict[Any, str] = {
    str: "<string>",
    int: "<integer>",
    float: "<number>",
    bool: "<true or false>",
    Path: "<path>",
}
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # A single letter before the colon is a drive of Windows.
_HEADER = """\
Configuration of edgerec camera. Start the camera with: edgerec camera --config FILE
To set a key whose line begins with #, remove the # and enter a value. The comments call the value of such a key None.
To use a table whose lines begin with #, such as [csv], remove the first # of each of its lines. Relative paths
refer to the folder of this file. Write a URL with a password, and a token, as env:NAME to read it from an environment
variable, or as @FILE to read it from a file with mode 0600."""
# redacted() would treat the @ in synthetic:640x480@30 as the end of a password.
_SOURCES_WITHOUT_SECRETS = ("synthetic:", "picamera2:")
# Other users must not be able to read or write a file with secrets. Members of the file's group may read the file.
_OTHER_USERS = 0o037
_WIDTH = 100


# Reading.


@contextmanager
def in_file(path: str | Path) -> Iterator[None]:
    """Context manager that adds the path of the file to a :class:`ConfigError`."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.field}", error.problem) from None


def read_values(kind: type[Any], path: str | Path) -> dict[str, Any]:
    """Read a TOML file, and check its keys and the types of its values. Ranges are checked by :func:`build`.

    Args:
        kind: the dataclass that the file describes.
        path: path of the file. Relative paths in the file are returned relative to the file's folder.

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
    secret = next(_literal_secrets(kind, typed), None)
    if secret and os.name == "posix" and mode & _OTHER_USERS:
        raise ConfigError(
            str(path),
            f"contains a password or token in {secret}, but other users can access the file (mode {mode:04o}): run "
            f"chmod 600 {path}, or use env:NAME or @FILE",
        )
    return typed


def typed_values(kind: type[Any], values: Mapping[str, Any], folder: str = "") -> dict[str, Any]:
    """Check the keys and convert the values of a parsed TOML file to the types of a dataclass's fields.

    Args:
        kind: the dataclass.
        values: the parsed TOML file.
        folder: folder to which relative paths refer. Empty returns paths unchanged.

    Raises:
        ConfigError: a key is unknown or a value has the wrong type. Its ``field`` is the dotted key.
    """
    return _Reader(kind, folder).table(kind, values, "")


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` updated with ``changes``. Nested dictionaries are merged."""
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
    for item, hint in _fields(kind):
        key = f"{prefix}{_key(item)}"
        if item.name in values:
            value, nested = values[item.name], _dataclass(hint)
            if nested and isinstance(value, tuple):
                value = tuple(build(nested, each, f"{key}[{index}].") for index, each in enumerate(value))
            elif nested:
                value = build(nested, value, f"{key}.")
            arguments[item.name] = value
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(key, f"is missing; expected {_describe(hint)}")
    try:
        return kind(**arguments)
    except ConfigError as error:
        raise ConfigError(prefix + error.field.partition(".")[2], error.problem) from None


def _read(path: str | Path) -> tuple[bytes, int]:
    """Return the content and the permissions of a file."""
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for a writer.
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
        known = {_key(item): (item, hint) for item, hint in _fields(kind)}
        result = {}
        for key, value in values.items():
            if key not in known:
                raise ConfigError(f"{prefix}{key}", _unknown_key(self._root, known, prefix, str(key)))
            item, hint = known[key]
            result[item.name] = self._value(value, item, hint, prefix + key)
        return result

    def _value(self, value: Any, item: Field[Any], hint: Any, key: str) -> Any:
        nested = _dataclass(hint)
        if nested and _is_list(hint):
            if not isinstance(value, list | tuple):
                raise ConfigError(key, f"is {_shown(value)}; expected a list of tables [[{key}]]")
            return tuple(self.table(nested, each, f"{key}[{index}].") for index, each in enumerate(value))
        if nested:
            return self.table(nested, value, f"{key}.")
        content, spec = item.metadata.get("content", ""), item.metadata.get("keys")
        if spec:
            return self._settings(spec, value, key)
        # An integer number of bytes may have a unit.
        if isinstance(value, str) and item.name.endswith("_bytes"):
            try:
                return parse_size(value)
            except ValueError:
                raise ConfigError(key, f"is {value!r}; expected a size such as 500MB, 2GiB or 20G") from None
        if content == "token" and not isinstance(value, str | None):
            raise ConfigError(key, "has the wrong type; expected a string")  # The value may be a secret.
        content = "path" if Path in _alternatives(hint) else content
        return _converted(value, hint, key, lambda text: _with_path(text, content, self._relocate))

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
        # Path("./lib.so") would be "lib.so", which the system's loader searches for in other folders.
        return os.path.join(self._folder, str(user_path(path)) if path.startswith("~") else path)


def _converted(value: Any, hint: Any, key: str, relocated: Callable[[str], str]) -> Any:
    """Convert a value to one of the types in ``hint``."""
    alternatives = _alternatives(hint)
    if value is None and NoneType in get_args(hint):  # TOML has no null, but a command-line option may be None.
        return None
    kind: Any
    for kind in alternatives:
        origin, arguments = get_origin(kind) or kind, get_args(kind)
        if origin is Literal and value in arguments and isinstance(value, str):
            return value
        if isinstance(value, str) and origin is str:
            if Path not in alternatives:
                return relocated(value)
            if value:  # An empty path would be the folder itself.
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
    raise ConfigError(key, f"is {_shown(value)}; expected {_describe(hint)}")


def _with_path(text: str, content: str, relocate: Callable[[str], str]) -> str:
    """Return a string with ``relocate`` applied to its path. A string without a path is not changed."""
    if content in ("source", "url", "token") and text.startswith("@"):
        return f"@{relocate(text[1:])}"
    is_path = (
        content == "path"
        or (content == "library" and "/" in text)
        or (content == "source" and not (text == "auto" or text.isdecimal() or is_reference(text)))
    )
    # A relative path may contain a colon, but an existing file is needed to distinguish it from a URI.
    if is_path and content == "source" and _SCHEME.match(text) and not os.path.exists(relocate(text)):
        return text
    return relocate(text) if is_path else text


def _literal_secrets(kind: type[Any], values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of all values that contain a password or token."""
    for item, hint in _fields(kind):
        value, key = values.get(item.name), f"{prefix}{_key(item)}"
        nested, content = _dataclass(hint), item.metadata.get("content")
        if value is None:
            continue
        if nested:
            for each in value if isinstance(value, tuple) else (value,):
                yield from _literal_secrets(nested, each, f"{key}.")
        elif content in ("source", "url", "token"):
            texts = (value,) if isinstance(value, str) else value
            if any(_is_literal_secret(text, content) for text in texts):
                yield key


def _is_literal_secret(text: str, content: str) -> bool:
    if not text or is_reference(text):
        return False
    if content == "source" and (text.startswith(_SOURCES_WITHOUT_SECRETS) or os.path.exists(text)):
        return False
    return content == "token" or has_secret(text) or MASK in redacted(text)


# Writing.


def to_toml(config: Any, folder: str | Path | None = None) -> str:
    """Return a configuration dataclass as TOML, with a comment for each key.

    Args:
        config: instance of the dataclass.
        folder: folder of the file that will contain the text. Relative paths refer to the working directory, and are
            written as absolute paths if ``folder`` is another folder. None writes all paths unchanged.

    Raises:
        ConfigError: the configuration contains a password or token, or a path that is not valid UTF-8.
    """
    values = _values_of(config)
    if secret := next(_literal_secrets(type(config), values), None):
        raise ConfigError(
            secret,
            "contains a password or token, which is not written to a file: put it into an environment variable or a "
            "file with mode 0600, and use env:NAME or @FILE instead",
        )
    moved = folder is not None and os.path.realpath(folder) != os.path.realpath(".")
    lines = [*(f"# {line}" for line in _HEADER.splitlines()), "", *_Writer(moved).table(type(config), values, "")]
    return "\n".join(lines).rstrip() + "\n"


class _Writer:
    """Formats the values of dataclass fields as TOML."""

    def __init__(self, absolute: bool) -> None:
        self._relocate = os.path.abspath if absolute else str

    def table(self, kind: type[Any], values: Mapping[str, Any], path: str) -> list[str]:
        """Return the lines of a table without its header: first the keys, then the nested tables."""
        keys, tables, docs = [], [], _attribute_docs(kind)
        for item, hint in _fields(kind):
            about = _comment(docs.get(item.name, ""))
            value = values.get(item.name, _default(item))
            name = f"{path}{_key(item)}"
            if nested := _dataclass(hint):
                tables += [*about, *self._nested(nested, value, name, _is_list(hint)), ""]
            elif any(get_origin(each) is Mapping for each in _alternatives(hint)):
                tables += [*about, f"[{name}]", *self._mapping(item, value or {}, hint), ""]
            else:
                keys += [*about, self._assignment(_key(item), value, item, hint)]
        return [*keys, "", *tables]

    def _nested(self, kind: type[Any], value: Any, name: str, is_list: bool) -> list[str]:
        if not is_list:
            lines = [f"[{name}]", *self.table(kind, value or {}, f"{name}.")]
            return _stripped(lines if value is not None else _commented(lines))
        items: Sequence[Mapping[str, Any]] = value or [{}]
        blocks = [[f"[[{name}]]", *self.table(kind, each, f"{name}.")] for each in items]
        lines = [line for block in blocks for line in [*_stripped(block), ""]]
        return _stripped(lines if value else _commented(lines))

    def _mapping(self, item: Field[Any], values: Mapping[str, Any], hint: Any) -> list[str]:
        if spec := item.metadata.get("keys"):
            docs = _attribute_docs(spec)
            lines = []
            for setting, kind in _fields(spec):
                text = self._assignment(setting.name, values.get(setting.name), setting, kind)
                lines += [*_comment(docs.get(setting.name, "")), text]
            return lines
        return [f"{_toml_key(name)} = {self._toml(value, name)}" for name, value in values.items()]

    def _assignment(self, key: str, value: Any, item: Field[Any], hint: Any) -> str:
        if value is None:
            return f"# {key} = {_placeholder(hint)}"
        if isinstance(value, int) and item.name.endswith("_bytes"):
            return f"{key} = {_size(value)}"
        content = "path" if Path in _alternatives(hint) else item.metadata.get("content", "")
        return f"{key} = {self._toml(value, key, content)}"

    def _toml(self, value: Any, key: str, content: str = "") -> str:
        if isinstance(value, Mapping):
            pairs = (f"{_toml_key(name)} = {self._toml(each, key)}" for name, each in value.items())
            return f"{{ {', '.join(pairs)} }}" if value else "{}"
        if isinstance(value, tuple | list):
            return f"[{', '.join(self._toml(each, key, content) for each in value)}]"
        if isinstance(value, float):
            return repr(value)
        if isinstance(value, str | Path):
            return _toml_string(_with_path(str(value), content, self._relocate), key)
        return json.dumps(value)


def _values_of(config: Any) -> dict[str, Any]:
    """Return the fields of a dataclass. Nested dataclasses become dictionaries."""
    values = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            value = _values_of(value)
        elif isinstance(value, tuple | list) and value and all(map(is_dataclass, value)):
            value = tuple(map(_values_of, value))
        values[item.name] = value
    return values


def _toml_string(text: str, key: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            key, f"is {text!r}, which is not valid UTF-8 and cannot be written to TOML: rename the file"
        ) from None
    # JSON strings have the same syntax as TOML strings, except for one character.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_string(key, key)


def _size(size: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if size and size % factor == 0:
            return f'"{size // factor}{unit}"'
    return str(size)


def _placeholder(hint: Any) -> str:
    alternatives = _alternatives(hint)
    kind = Path if Path in alternatives else alternatives[0]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(f'"{choice}"' for choice in arguments)
    if origin in (tuple, Sequence):
        shown = [each for each in arguments if each is not Ellipsis]
        return f"[{', '.join(map(_placeholder, shown))}]"
    if origin is Mapping:
        return f"{{ <name> = {_placeholder(arguments[1])} }}"
    return _PLACEHOLDERS.get(kind, "<value>")


def _commented(lines: Iterable[str]) -> list[str]:
    return [f"# {line}" if line else "#" for line in _stripped(lines)]


def _stripped(lines: Iterable[str]) -> list[str]:
    """Return the lines without empty lines at the end."""
    result = list(lines)
    while result and not result[-1]:
        result.pop()
    return result


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH - 2, break_long_words=False, break_on_hyphens=False)]


def _attribute_docs(kind: type[Any]) -> dict[str, str]:
    """Return the descriptions in the section ``Attributes`` of a docstring as plain text, keyed by attribute."""
    section = textwrap.dedent((kind.__doc__ or "").partition("Attributes:\n")[2])
    docs: dict[str, str] = {}
    for match in re.finditer(r"^(\w+(?:, \w+)*): (.*(?:\n[ \t]+.*)*)", section, re.MULTILINE):
        text = " ".join(match[2].split())
        text = text if text.startswith("`") else text[:1].upper() + text[1:]
        text = re.sub(r"; see :\w+:`[^`]*`", "", text)  # Remove cross-references to the API documentation.
        text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text).replace("``", "")
        for name in match[1].split(", "):
            docs[name] = text
    return docs


# Fields and their types.


def _fields(kind: Any) -> tuple[tuple[Field[Any], Any], ...]:
    """Return the fields of a dataclass with their types."""
    return _typed_fields(kind)


@lru_cache
def _typed_fields(kind: Any) -> tuple[tuple[Field[Any], Any], ...]:
    hints = get_type_hints(kind)
    return tuple((item, hints[item.name]) for item in fields(kind) if item.init)


def _key(item: Field[Any]) -> str:
    """Return the TOML key of a field."""
    return item.metadata.get("key", item.name)


def _default(item: Field[Any]) -> Any:
    if item.default_factory is not MISSING:
        default = item.default_factory()
        return _values_of(default) if is_dataclass(default) else default
    return None if item.default is MISSING else item.default


def _alternatives(hint: Any) -> list[Any]:
    """Return the types in a union, except None."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return [kind for kind in kinds if kind is not NoneType]


def _is_list(hint: Any) -> bool:
    return any(get_origin(kind) in (tuple, Sequence) for kind in _alternatives(hint))


def _dataclass(hint: Any) -> type[Any] | None:
    """Return the dataclass of a field that contains a dataclass or a tuple of dataclasses, otherwise None."""
    for kind in _alternatives(hint):
        item = get_args(kind)[0] if get_origin(kind) in (tuple, Sequence) else kind
        if isinstance(item, type) and is_dataclass(item):
            return item
    return None


def _describe(hint: Any, plural: bool = False) -> str:
    """Describe a type for an error message, such as ``a list of 4 numbers``."""
    alternatives = _alternatives(hint)
    if Path in alternatives:
        return "paths" if plural else "a path"
    texts = []
    for kind in alternatives:
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is Literal:
            texts.append(f"one of {', '.join(map(str, arguments))}")
        elif origin in (tuple, Sequence):
            count = "" if origin is Sequence or arguments[-1] is Ellipsis else f"{len(arguments)} "
            texts.append(f"a list of {count}{_describe(arguments[0], plural=True)}")
        elif origin is Mapping:
            texts.append(f"a table of {_describe(arguments[1], plural=True)}")
        elif is_dataclass(kind):
            texts.append("tables" if plural else "a table")
        else:
            name = _TYPE_NAMES.get(kind, "a value")
            texts.append(f"{name.split()[-1]}s" if plural and kind is not bool else name)
    return " or ".join(texts)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a table"
    return "a list" if isinstance(value, list | tuple) else repr(value)[:60]


def _unknown_key(root: type[Any], known: Iterable[str], prefix: str, key: str) -> str:
    """Describe the problem of an unknown key, and suggest a key with the same or a similar name."""
    same = [dotted for dotted in _dotted_keys(root) if dotted.rpartition(".")[2] == key and dotted != prefix + key]
    if same:
        return f"is unknown; did you mean {' or '.join(map(repr, same))}? (choices: {', '.join(sorted(known))})"
    return f"is unknown{unknown('key', key, known).partition(repr(key))[2]}"


def _dotted_keys(kind: type[Any], prefix: str = "") -> Iterator[str]:
    for item, hint in _fields(kind):
        key = f"{prefix}{_key(item)}"
        yield key
        if nested := _dataclass(hint) or item.metadata.get("keys"):
            yield from _dotted_keys(nested, f"{key}.")
