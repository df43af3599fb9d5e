"""Tests of the type checks for parsed JSON values."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired, Required, TypedDict

import pytest

from edgerec.utils.json_types import MinItems, check_type


class Point(TypedDict):
    x: float
    name: NotRequired[str | None]


class Drawing(TypedDict, total=False):
    points: Required[Annotated[list[Point], MinItems(1)]]
    colors: dict[str, int]
    extra: Any


@pytest.mark.parametrize(
    "value",
    [
        {"points": [{"x": 1}]},
        {"points": [{"x": 1.5, "name": None}, {"x": -2, "name": "a"}], "colors": {"red": 1}, "extra": [{}], "other": 0},
    ],
)
def test_values_of_the_declared_type_are_accepted(value):
    check_type(value, Drawing)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "the value is list, expected an object"),
        ({}, "points is missing"),
        ({"points": []}, "points has only 0 items"),
        ({"points": {}}, "points is dict, expected a list"),
        ({"points": [{"x": 1}, {}]}, r"points\[1\].x is missing"),
        ({"points": [{"x": "1"}]}, r"points\[0\].x is '1', expected a number"),
        ({"points": [{"x": True}]}, r"points\[0\].x is True, expected a number"),
        ({"points": [{"x": float("nan")}]}, r"points\[0\].x is nan, expected a number"),
        ({"points": [{"x": 10**400}]}, r"points\[0\].x is 1000"),
        ({"points": [{"x": 1, "name": 1}]}, r"points\[0\].name is 1, expected a string"),
        ({"points": [{"x": 1}], "colors": {"red": 1.5}}, r"colors.red is 1.5, expected an integer"),
        ({"points": [{"x": 1}], "colors": {"red": 1 << 63}}, r"colors.red is 9223"),
    ],
)
def test_other_values_are_refused_with_their_position(value, message):
    with pytest.raises(ValueError, match=message):
        check_type(value, Drawing)
