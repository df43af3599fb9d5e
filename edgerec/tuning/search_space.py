"""What a study searches: keys of the recipe, and the values that each may take."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from edgerec.contract.content import reason
from edgerec.errors import RecipeError, unknown
from edgerec.models import ARCHITECTURES, find_classifier, least_size_px
from edgerec.recipe import Recipe
from edgerec.utils.bounded import read_toml

# A key that is a whole section: a factor on all numbers of the recipe's augmentation.
STRENGTH = "augment"
# Of the section data, what does not change which pictures are compared.
_OF_DATA = ("data.input_size", "data.channels", "data.fit", "data.interpolation", "data.normalise")
_SECTIONS = ("model.", "train.", "transfer.", "distill.", "augment.")
# Quick ones among the architectures; a file of one's own names others.
_ARCHITECTURES = ("simple_cnn", "resnet8", "mobilenet_v1", "mobilenet_v2")
_EXPECTED = "{ low = 0.1, high = 1.0 } with log = true or step = 0.1, or a list of choices"


@dataclass(frozen=True)
class Numbers:
    """From ``low`` to ``high``, both included; ``step`` 0 takes all between, ``log`` spreads them by their size."""

    low: float
    high: float
    step: float = 0
    log: bool = False
    whole: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a trial can have this value."""
        steps = (value - self.low) / self.step if self.step else 0.0
        return self.low <= value <= self.high and math.isclose(steps, round(steps), abs_tol=1e-9)

    def suggest(self, trial: Any, key: str) -> Any:
        """A value of it, by Optuna's trial."""
        if self.whole:
            return trial.suggest_int(key, int(self.low), int(self.high), step=int(self.step) or 1, log=self.log)
        return trial.suggest_float(key, self.low, self.high, step=self.step or None, log=self.log)

    def to_value(self) -> dict[str, Any]:
        """As the search file has it."""
        value: dict[str, Any] = {"low": self.low, "high": self.high}
        return value | ({"step": self.step} if self.step else {}) | ({"log": True} if self.log else {})


@dataclass(frozen=True)
class Choices:
    """One of these."""

    values: tuple[Any, ...]

    def holds(self, value: Any) -> bool:
        """Whether a trial can have this value."""
        return value in self.values

    def suggest(self, trial: Any, key: str) -> Any:
        """A value of it, by Optuna's trial."""
        return trial.suggest_categorical(key, list(self.values))

    def to_value(self) -> list[Any]:
        """As the search file has it."""
        return list(self.values)


Space = dict[str, Numbers | Choices]


def read_space(source: str | Path | Mapping[str, Any], recipe: Recipe) -> Space:
    """The space of a TOML file, or of what such a file holds: ``{"train.learning_rate": {"low": …, "high": …}}``.

    Raises:
        RecipeError: a key or a bound that ``recipe`` refuses, or that would make trials impossible to compare.
    """
    if isinstance(source, Mapping):
        where, values = "search", dict(source)
    else:
        where, values = str(source), _read(source)
    space = {key: _range(where, key, value, recipe) for key, value in _flat(where, values)}
    if not space:
        raise RecipeError(f"{where} has no key to search: add one, as train.learning_rate = {_EXPECTED}")
    return space


def default_space(recipe: Recipe, train_images: int) -> Space:
    """What is searched where nothing else is said.

    Args:
        recipe: complete: no key is left to be chosen.
        train_images: how many pictures there are to train.
    """
    rate = recipe.train.learning_rate
    batches = {size for size in (16, 32, 64, 128) if size <= train_images // 4} | {recipe.train.batch_size}
    space: Space = {
        "train.learning_rate": Numbers(max(rate / 10, 1e-8), min(rate * 10, 10.0), log=True),
        "train.batch_size": Choices(tuple(sorted(batches))),
    }
    if any(getattr(recipe.augment, name) for name in _strengths(recipe)):
        space[STRENGTH] = Numbers(0.0, 2.0 if _takes(recipe, 2.0) else 1.0)
    if recipe.model.pretrained:  # trained weights fit one architecture, and often one input size
        return space
    space["model.width"] = Numbers(0.25, 1.0, step=0.25)
    networks: tuple[str, ...] = (recipe.model.arch,)
    if recipe.model.arch in ARCHITECTURES:
        fitting = (n for n in _ARCHITECTURES if n in ARCHITECTURES and least_size_px(n) <= recipe.data.input_size)
        networks = (*networks, *(name for name in fitting if name not in networks))
        space["model.arch"] = Choices(networks)
    side, least = recipe.data.input_size, max(map(least_size_px, networks))
    sides = {round(side * part / 8) * 8 for part in (0.5, 0.75)}
    if smaller := [small for small in sorted(sides) if least <= small < side]:
        space["data.input_size"] = Choices((*smaller, side))
    return space


def suggest(trial: Any, space: Space) -> dict[str, Any]:
    """A point of the space, by Optuna's trial."""
    return {key: allowed.suggest(trial, key) for key, allowed in space.items()}


def applied(recipe: Recipe, point: Mapping[str, Any]) -> Recipe:
    """The recipe with a point's values."""
    recipe = recipe.override({key: value for key, value in point.items() if key != STRENGTH}, "trial")
    return strengthened(recipe, point[STRENGTH]) if STRENGTH in point else recipe


def strengthened(recipe: Recipe, factor: float) -> Recipe:
    """The recipe with all numbers of its augmentation times ``factor``."""
    changed = {name: getattr(recipe.augment, name) * factor for name in _strengths(recipe)}
    return replace(recipe, augment=replace(recipe.augment, **changed))


def own_point(recipe: Recipe, space: Space) -> dict[str, Any]:
    """The recipe's own values, as far as the space holds them."""
    own = {key: 1.0 if key == STRENGTH else _value(recipe, key) for key in space}
    return {key: value for key, value in own.items() if space[key].holds(value)}


def to_values(space: Space) -> dict[str, Any]:
    """The space as JSON values, the inverse of :func:`read_space`."""
    return {key: allowed.to_value() for key, allowed in space.items()}


def to_toml(space: Space) -> str:
    """The space as a file that :func:`read_space` reads."""
    lines = []
    for key, value in to_values(space).items():
        if isinstance(value, dict):
            text = "{ " + ", ".join(f"{name} = {json.dumps(one)}" for name, one in value.items()) + " }"
        else:
            text = json.dumps(value, ensure_ascii=False)
        lines.append(f"{key} = {text}\n")
    return "".join(lines)


def _read(path: str | Path) -> dict[str, Any]:
    try:
        return read_toml(Path(path))
    except FileNotFoundError:
        raise RecipeError(f"{path} does not exist; it would have lines as train.learning_rate = {_EXPECTED}") from None
    except ValueError as error:
        raise RecipeError(f"{path} is not TOML: {reason(path, error)}") from None


def _flat(where: str, values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and what stands there: TOML makes tables of ``train.learning_rate``."""
    for name, value in values.items():
        key = f"{path}{name}"
        section = isinstance(value, Mapping) and not {"low", "high"} & set(value)
        if section and not path and "." not in name:
            yield from _flat(where, value, f"{key}.")
        elif isinstance(value, list | tuple) or (isinstance(value, Mapping) and not section):
            yield key, value
        else:
            raise RecipeError(f"{where}: {key} is {value!r}, expected {_EXPECTED}")


def _range(where: str, key: str, value: Any, recipe: Recipe) -> Numbers | Choices:
    if key != STRENGTH:
        _check_key(where, key, recipe)
    if not isinstance(value, Mapping):
        return _choices(where, key, value, recipe)
    if wrong := set(value) - {"low", "high", "step", "log"}:
        raise RecipeError(f"{where}: {key}: {unknown('bound', min(wrong), ('low', 'high', 'step', 'log'))}")
    own = 1.0 if key == STRENGTH else _value(recipe, key)
    if isinstance(own, bool | str):
        raise RecipeError(f"{where}: {key} takes no bounds: expected a list of choices, as [{json.dumps(own)}]")
    whole = isinstance(own, int)
    for name in ("low", "high", "step"):
        number = value.get(name, 1)
        if isinstance(number, bool) or not isinstance(number, int if whole else int | float):
            expected = "a whole number" if whole else "a number"
            raise RecipeError(f"{where}: {key}: {name} is {number!r}, expected {expected}")
    if not isinstance(value.get("log", False), bool):
        raise RecipeError(f"{where}: {key}: log is {value['log']!r}, expected true or false")
    if missing := {"low", "high"} - set(value):
        raise RecipeError(f"{where}: {key} has no {min(missing)}, expected {_EXPECTED}")
    kind = int if whole else float
    found = Numbers(kind(value["low"]), kind(value["high"]), kind(value.get("step", 0)), value.get("log", False), whole)
    for bound in (found.low, found.high):
        _tried(where, key, bound, recipe)
    if problem := _problem(found, "step" in value):
        raise RecipeError(f"{where}: {key}: {problem}")
    return found


def _problem(found: Numbers, stepped: bool) -> str:
    if not found.low < found.high:
        return f"low is {found.low:g}, expected less than high ({found.high:g})"
    if stepped and not 0 < found.step <= found.high - found.low:
        return f"step is {found.step:g}, expected more than 0 and up to {found.high - found.low:g}"
    if found.log and stepped:
        return "log and step exclude each other"
    if found.log and found.low <= 0:
        return f"low is {found.low:g}, expected more than 0 with log = true"
    return ""


def _choices(where: str, key: str, values: Any, recipe: Recipe) -> Choices:
    if not values:
        raise RecipeError(f"{where}: {key} is [], expected one choice or more")
    taken = [_tried(where, key, value, recipe) for value in values]
    if twice := [value for i, value in enumerate(taken) if value in taken[:i]]:
        raise RecipeError(f"{where}: {key} has {twice[0]!r} twice")
    return Choices(tuple(taken))


def _check_key(where: str, key: str, recipe: Recipe) -> None:
    known = [
        f"{section}.{name}"
        for section, values in recipe.to_dict().items()
        if isinstance(values, dict)
        for name in values
    ]
    if key not in (*known, "seed"):
        raise RecipeError(f"{where}: {unknown('recipe key', key, [*known, STRENGTH])}")
    if key.startswith("compress."):
        raise RecipeError(f"{where}: {key} changes nothing that a study measures: search it with edgerec quantize")
    if key not in _OF_DATA and not key.startswith(_SECTIONS):
        raise RecipeError(
            f"{where}: {key} decides on which pictures trials are compared, and must be the same for all of them"
        )


def _tried(where: str, key: str, value: Any, recipe: Recipe) -> Any:
    """The value as the recipe has it; raises :class:`RecipeError` when the recipe refuses it."""
    if key == STRENGTH:
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise RecipeError(f"{where}: {key} is {value!r}, expected a factor of 0 or more")
        try:
            strengthened(recipe, value)
        except RecipeError as error:
            raise RecipeError(f"{where}: {key} = {value:g} makes {error}") from None
        return float(value)
    try:
        taken = recipe.override({key: value}, where)
        if key == "model.arch":
            find_classifier(value)
    except RecipeError as error:
        text = str(error)
        raise RecipeError(text if text.startswith(where) else f"{where}: {key}: {text}") from None
    return _value(taken, key)


def _takes(recipe: Recipe, factor: float) -> bool:
    try:
        strengthened(recipe, factor)
    except RecipeError:
        return False
    return True


def _strengths(recipe: Recipe) -> list[str]:
    return [item.name for item in fields(recipe.augment) if type(getattr(recipe.augment, item.name)) is float]


def _value(recipe: Recipe, key: str) -> Any:
    section, _, name = key.rpartition(".")
    return getattr(getattr(recipe, section), name) if section else getattr(recipe, name)
