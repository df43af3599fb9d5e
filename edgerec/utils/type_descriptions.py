"""Describe the type of a dataclass field for an error message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

_TYPE_NAMES: dict[Any, str] = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}


def non_none_types(hint: Any) -> list[Any]:
    """Return the types in a union, except None."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return [kind for kind in kinds if kind is not NoneType]


def describe_type(hint: Any, plural: bool = False) -> str:
    """Return a description of a type for an error message, e.g. ``a list of 4 numbers``."""
    alternatives = non_none_types(hint)
    if Path in alternatives:
        return "paths" if plural else "a path"
    texts = []
    for kind in alternatives:
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is Literal:
            choices = ", ".join(argument or "''" for argument in arguments)
            texts.append(f"{'values from' if plural else 'one of'} {choices}")
        elif origin in (tuple, Sequence):
            count = "" if origin is Sequence or arguments[-1] is Ellipsis else f"{len(arguments)} "
            texts.append(f"a list of {count}{describe_type(arguments[0], plural=True)}")
        elif origin is Mapping:
            texts.append(f"a table of {describe_type(arguments[1], plural=True)}")
        elif is_dataclass(kind):
            texts.append("tables" if plural else "a table")
        else:
            name = _TYPE_NAMES.get(kind, "a value")
            texts.append(f"{name.split()[-1]}s" if plural and kind is not bool else name)
    return " or ".join(texts)
