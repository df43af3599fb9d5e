"""Inspect configuration dataclasses: types, TOML keys and descriptions of fields, and values that are secrets.

The fields of a frozen dataclass may contain strings, numbers, paths, choices, lists, mappings, nested dataclasses and
tuples of dataclasses.

The metadata of a field may contain these entries:

- ``content``: ``source`` (source URI or path), ``url`` (URL that may contain a password), ``token`` (a secret) or
  ``library`` (path or name of a shared library).
- ``keys``: dataclass whose fields are the valid keys of a mapping.
- ``key``: name of the key in the file, if it is not the name of the field.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import lru_cache
from typing import Any, get_args, get_origin, get_type_hints

from edgerec.utils.secret_references import is_reference
from edgerec.utils.type_descriptions import non_none_types
from edgerec.utils.url_redaction import MASK, has_secret, redacted

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # A single letter before a colon is a Windows drive.
# Do not redact these sources, because redacted() would treat the @ in synthetic:640x480@30 as the end of a password.
_SOURCES_WITHOUT_SECRETS = ("synthetic:", "picamera2:")


def typed_fields(kind: Any) -> tuple[tuple[Field[Any], Any], ...]:
    """Return the fields of a dataclass with their types."""
    return _cached_fields(kind)


@lru_cache
def _cached_fields(kind: Any) -> tuple[tuple[Field[Any], Any], ...]:
    hints = get_type_hints(kind)
    return tuple((item, hints[item.name]) for item in fields(kind) if item.init)


def field_key(item: Field[Any]) -> str:
    """Return the TOML key of a field."""
    return item.metadata.get("key", item.name)


def field_default(item: Field[Any]) -> Any:
    """Return the default of a field, or None if the field is required. Dataclasses are converted to dictionaries."""
    if item.default_factory is not MISSING:
        default = item.default_factory()
        return field_values(default) if is_dataclass(default) else default
    return None if item.default is MISSING else item.default


def is_list_type(hint: Any) -> bool:
    """Return True if a type is a list or tuple."""
    return any(get_origin(kind) in (tuple, Sequence) for kind in non_none_types(hint))


def nested_dataclass(hint: Any) -> type[Any] | None:
    """Return the dataclass in a type such as ``A``, ``A | None`` or ``tuple[A, ...]``, or None."""
    for kind in non_none_types(hint):
        item = get_args(kind)[0] if get_origin(kind) in (tuple, Sequence) else kind
        if isinstance(item, type) and is_dataclass(item):
            return item
    return None


def attribute_docs(kind: type[Any]) -> dict[str, str]:
    """Return plain-text descriptions from the ``Attributes`` section of a docstring, keyed by attribute name."""
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


def field_values(config: Any) -> dict[str, Any]:
    """Return a dataclass as a nested dictionary."""
    values = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            value = field_values(value)
        elif isinstance(value, tuple | list) and value and all(map(is_dataclass, value)):
            value = tuple(map(field_values, value))
        values[item.name] = value
    return values


def relocate_path(text: str, content: str, relocate: Callable[[str], str]) -> str:
    """Apply ``relocate`` to the path in ``text``. Return ``text`` unchanged if it contains no path."""
    if content in ("source", "url", "token") and text.startswith("@"):
        return f"@{relocate(text[1:])}"
    is_path = (
        content == "path"
        or (content == "library" and "/" in text)
        or (content == "source" and not (text == "auto" or text.isdecimal() or is_reference(text)))
    )
    # Treat text such as ``a:b`` as a path only if the file exists, because the text may also be a URI.
    if is_path and content == "source" and _SCHEME.match(text) and not os.path.exists(relocate(text)):
        return text
    return relocate(text) if is_path else text


def literal_secrets(kind: type[Any], values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of values that contain a password or token."""
    for item, hint in typed_fields(kind):
        value, key = values.get(item.name), f"{prefix}{field_key(item)}"
        nested, content = nested_dataclass(hint), item.metadata.get("content")
        if value is None:
            continue
        if nested:
            for each in value if isinstance(value, tuple) else (value,):
                yield from literal_secrets(nested, each, f"{key}.")
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
