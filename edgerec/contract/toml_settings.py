"""Read settings from TOML files into frozen dataclasses, and validate the values.

pydantic is not used, because importing it would add about 0.1 s to the startup of every command that reads a target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from edgerec.contract.format_detection import reason
from edgerec.errors import EdgerecError, unknown
from edgerec.utils.bounded_parsing import read_toml
from edgerec.utils.type_descriptions import describe_type

T = TypeVar("T")


def setting(default: Any, help_text: str, expected: str, is_valid: Callable[[Any], bool] | None) -> Any:
    """Declare a setting: a dataclass field with help text and validation.

    Args:
        default: default value.
        help_text: description of the setting.
        expected: description of the valid values. Empty to use the description of the field's type.
        is_valid: called with a value of the right type, returns whether the value is valid. None accepts all values.
    """
    return field(default=default, metadata={"help": help_text, "expected": expected, "is_valid": is_valid})


def number(default: float, help_text: str, low: float, high: float) -> Any:
    """Declare a numeric setting that accepts values from ``low`` to ``high``, inclusive."""
    return setting(default, help_text, f"{low:.10g} to {high:.10g}", lambda value: low <= value <= high)


def choice(default: str, help_text: str, choices: Iterable[str]) -> Any:
    """Declare a string setting whose value must be one of ``choices``."""
    known = tuple(choices)
    return setting(default, help_text, ", ".join(known), known.__contains__)


def any_value(default: bool | str, help_text: str) -> Any:
    """Declare a Boolean or string setting that accepts any value."""
    return setting(default, help_text, "", None)


def read_settings(path: Path, error: type[EdgerecError], advice: str) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: path of the file.
        error: exception to raise if the file cannot be read or is not TOML.
        advice: what the user should do if the file does not exist, as the end of the error message.
    """
    try:
        return read_toml(path)
    except FileNotFoundError:
        raise error(f"{path} does not exist: {advice}") from None
    except OSError as cause:
        raise error(f"{path} cannot be read: {cause.strerror}") from None
    except ValueError as cause:
        raise error(f"{path} is not TOML: {reason(path, cause)}") from None


def from_settings(
    kind: type[T],
    values: Mapping[str, Any],
    where: str,
    what: str,
    error: type[EdgerecError],
    other_keys: Iterable[str] = (),
    **fixed: Any,
) -> T:
    """Create a dataclass instance from a TOML file's values.

    Args:
        kind: the dataclass.
        values: content of the file.
        where: path of the file, for error messages.
        what: adjective for the keys in error messages, such as ``target``.
        error: exception to raise if a key is unknown or missing, or a value is invalid.
        other_keys: other keys of the file, which an error message about an unknown key lists as well.
        fixed: values of fields that are not keys of the file.
    """
    keys: dict[str, Field[Any]] = {item.name: item for item in fields(kind) if item.name not in fixed}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    typed = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    for key, value in typed.items():
        if key not in keys:
            raise error(f"{where}: {unknown(f'{what} key', key, [*keys, *other_keys])}")
        _check_value(value, keys[key], hints[key], error, f"{where}: ")
    for key, item in keys.items():
        if key not in values and item.default is MISSING and item.default_factory is MISSING:
            raise error(f"{where}: the key {key!r} is missing")
    return kind(**fixed, **typed)


def check_settings(settings: Any, error: type[EdgerecError], prefix: str = "") -> None:
    """Raise ``error`` if a field of a dataclass or a nested dataclass has the wrong type or an invalid value.

    Args:
        settings: instance of a dataclass.
        error: type of the exception.
        prefix: text before the field's name in the error message.
    """
    hints = get_type_hints(type(settings))
    for item in fields(settings):
        value = getattr(settings, item.name)
        if is_dataclass(value):
            check_settings(value, error, f"{prefix}{item.name}.")
        else:
            _check_value(value, item, hints[item.name], error, prefix)


def _check_value(value: Any, item: Field[Any], kind: Any, error: type[EdgerecError], prefix: str) -> None:
    is_valid = item.metadata.get("is_valid")
    if not _has_type(value, kind) or (is_valid is not None and not is_valid(value)):
        shown = list(value) if isinstance(value, tuple) else value
        expected = item.metadata.get("expected") or describe_type(kind)
        raise error(f"{prefix}{item.name} is {shown!r}, expected {expected}")


def _has_type(value: Any, kind: Any) -> bool:
    origin = get_origin(kind) or kind
    if origin is UnionType:
        return any(_has_type(value, alternative) for alternative in get_args(kind))
    if origin is Literal:
        return value in get_args(kind)
    if origin is tuple:
        return isinstance(value, tuple) and all(_has_type(item, get_args(kind)[0]) for item in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(_has_type(item, get_args(kind)[1]) for item in value.values())
    return type(value) is origin or (origin is float and type(value) is int)
