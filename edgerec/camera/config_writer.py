"""Write configuration dataclasses as TOML with a comment for each key."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from edgerec.camera.config_fields import (
    attribute_docs,
    field_default,
    field_key,
    field_values,
    is_list_type,
    literal_secrets,
    nested_dataclass,
    relocate_path,
    typed_fields,
)
from edgerec.errors import ConfigError
from edgerec.utils.type_descriptions import non_none_types

_PLACEHOLDERS: dict[Any, str] = {
    str: "<string>",
    int: "<integer>",
    float: "<number>",
    bool: "<true or false>",
    Path: "<path>",
}
_HEADER = """\
Configuration of edgerec camera. Start the camera with: edgerec camera --config FILE
To set a key whose line begins with #, remove the # and enter a value. The comments call the value of such a key None.
To use a table whose lines begin with #, such as [csv], remove the first # of each of its lines. Relative paths
refer to the folder of this file. Write a URL with a password, and a token, as env:NAME to read it from an environment
variable, or as @FILE to read it from a file with mode 0600."""
_WIDTH = 100


def to_toml(config: Any, folder: str | Path | None = None) -> str:
    """Return a configuration dataclass as TOML, with a comment for each key.

    Args:
        config: instance of the dataclass.
        folder: folder of the file that will contain the text. Relative paths refer to the working directory, and are
            written as absolute paths if ``folder`` is another folder. None writes all paths unchanged.

    Raises:
        ConfigError: the configuration contains a password or token, or a path that is not valid UTF-8.
    """
    values = field_values(config)
    if secret := next(literal_secrets(type(config), values), None):
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
        """Return the lines of a TOML table without its header."""
        keys, tables, docs = [], [], attribute_docs(kind)
        for item, hint in typed_fields(kind):
            about = _comment(docs.get(item.name, ""))
            value = values.get(item.name, field_default(item))
            name = f"{path}{field_key(item)}"
            if nested := nested_dataclass(hint):
                tables += [*about, *self._nested(nested, value, name, is_list_type(hint)), ""]
            elif any(get_origin(each) is Mapping for each in non_none_types(hint)):
                tables += [*about, f"[{name}]", *self._mapping(item, value or {}, hint), ""]
            else:
                keys += [*about, self._assignment(field_key(item), value, item, hint)]
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
            docs = attribute_docs(spec)
            lines = []
            for setting, kind in typed_fields(spec):
                text = self._assignment(setting.name, values.get(setting.name), setting, kind)
                lines += [*_comment(docs.get(setting.name, "")), text]
            return lines
        return [f"{_toml_key(name)} = {self._toml(value, name)}" for name, value in values.items()]

    def _assignment(self, key: str, value: Any, item: Field[Any], hint: Any) -> str:
        if value is None:
            return f"# {key} = {_placeholder(hint)}"
        if isinstance(value, int) and item.name.endswith("_bytes"):
            return f"{key} = {_size(value)}"
        content = "path" if Path in non_none_types(hint) else item.metadata.get("content", "")
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
            return _toml_string(relocate_path(str(value), content, self._relocate), key)
        return json.dumps(value)


def _toml_string(text: str, key: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            key, f"is {text!r}, which is not valid UTF-8 and cannot be written to TOML: rename the file"
        ) from None
    # JSON strings have the same syntax as TOML strings, except that TOML does not allow the character DEL.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_string(key, key)


def _size(size: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if size and size % factor == 0:
            return f'"{size // factor}{unit}"'
    return str(size)


def _placeholder(hint: Any) -> str:
    alternatives = non_none_types(hint)
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
    """Remove trailing empty lines."""
    result = list(lines)
    while result and not result[-1]:
        result.pop()
    return result


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH - 2, break_long_words=False, break_on_hyphens=False)]
