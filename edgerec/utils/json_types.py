"""Check that parsed JSON values have the types declared by a TypedDict.

The runtime must stay small, so it does not depend on a validation library such as pydantic.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import UnionType
from typing import Annotated, Any, NotRequired, Required, Union, get_args, get_origin, get_type_hints, is_typeddict

MAX_NUMBER = 1e300  # Larger integers may overflow when converted to float.


@dataclass(frozen=True)
class MinItems:
    """Minimum number of items in a list, e.g. in ``Annotated[list[str], MinItems(1)]``."""

    count: int


def check_type(value: Any, expected: Any, where: str = "") -> None:
    """Raise :class:`ValueError` if a parsed JSON or TOML value does not have the expected type.

    Args:
        value: the parsed value.
        expected: ``Any``, a basic type, ``list[T]``, ``dict[str, T]``, a union, or a :class:`~typing.TypedDict`. Keys
            that a TypedDict does not declare are not checked. Numbers must be finite, and integers must fit into 64
            bits.
        where: name of the value for the error message.
    """
    kind, arguments = get_origin(expected), get_args(expected)
    if expected is Any:
        return
    if kind is Annotated:
        check_type(value, arguments[0], where)
        if len(value) < arguments[1].count:
            raise ValueError(f"{where or 'the list'} has only {len(value)} items")
    elif kind in (Union, UnionType):
        if not any(_has_type(value, each) for each in arguments[1:]):
            check_type(value, arguments[0], where)
    elif kind is list:
        _check_basic_type(value, list, where)
        for number, item in enumerate(value):
            check_type(item, arguments[0], f"{where}[{number}]")
    elif kind is dict:
        _check_basic_type(value, dict, where)
        for key, item in value.items():
            check_type(item, arguments[1], _joined(where, key))
    elif is_typeddict(expected):
        _check_basic_type(value, dict, where)
        for key, (item_type, required) in _keys(expected).items():
            if key in value:
                check_type(value[key], item_type, _joined(where, key))
            elif required:
                raise ValueError(f"{_joined(where, key)} is missing")
    else:
        _check_basic_type(value, expected, where)


@lru_cache
def _keys(typed_dict: Any) -> dict[str, tuple[Any, bool]]:
    hints = get_type_hints(typed_dict, include_extras=True)
    # If annotations are evaluated lazily, __optional_keys__ ignores NotRequired and Required.
    keys = {}
    for key, hint in hints.items():
        if get_origin(hint) in (NotRequired, Required):
            keys[key] = (get_args(hint)[0], get_origin(hint) is Required)
        else:
            keys[key] = (hint, key not in typed_dict.__optional_keys__)
    return keys


def _has_type(value: Any, expected: Any) -> bool:
    try:
        check_type(value, expected)
    except ValueError:
        return False
    return True


def _check_basic_type(value: Any, expected: type, where: str) -> None:
    number = expected in (int, float) and not isinstance(value, bool)
    if number and isinstance(value, int | float):
        fits = abs(value) < MAX_NUMBER if expected is float else isinstance(value, int) and abs(value) < 1 << 63
    else:
        fits = isinstance(value, expected) and (number or not isinstance(value, bool) or expected is bool)
    if not fits:
        names = {
            str: "a string",
            int: "an integer",
            float: "a number",
            list: "a list",
            dict: "an object",
            bool: "a bool",
        }
        raise ValueError(
            f"{where or 'the value'} is {_shown(value)}, expected {names.get(expected, expected.__name__)}"
        )


def _shown(value: Any) -> str:
    return type(value).__name__ if isinstance(value, dict | list) else repr(value)[:40]


def _joined(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
