"""Search space of a study, which defines the possible values of each hyperparameter."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from edgerec.contract.toml_settings import read_settings
from edgerec.errors import RecipeError, unknown
from edgerec.models import ARCHITECTURES, find_classifier, least_size_px
from edgerec.recipe import Recipe

# Hyperparameter that multiplies all floating-point values in the ``augment`` section of a recipe.
STRENGTH = "augment"
# Recipe keys for the data that can be tuned, because they do not affect the split.
_TUNABLE_DATA_KEYS = ("data.input_size", "data.channels", "data.fit", "data.interpolation", "data.normalize")
_TUNABLE_PREFIXES = ("model.", "train.", "transfer.", "distill.", "augment.")
# The default search space contains only fast architectures.
_FAST_ARCHITECTURES = ("simple_cnn", "resnet8", "mobilenet_v1", "mobilenet_v2")
_EXPECTED = "{ low = 0.1, high = 1.0 }, optionally with log = true or step = 0.1, or a list of choices"


@dataclass(frozen=True)
class Numbers:
    """Range of a numeric hyperparameter.

    Attributes:
        low: smallest value.
        high: largest value.
        step: distance between adjacent values, or 0 for a continuous range.
        log: whether values are drawn from a log-uniform distribution.
        integer: whether all values are integers.
    """

    low: float
    high: float
    step: float = 0
    log: bool = False
    integer: bool = False

    def contains(self, value: Any) -> bool:
        """Return whether the range contains a value."""
        steps = (value - self.low) / self.step if self.step else 0.0
        return self.low <= value <= self.high and math.isclose(steps, round(steps), abs_tol=1e-9)

    def suggest(self, trial: Any, key: str) -> Any:
        """Return the value that an Optuna trial suggests for this hyperparameter."""
        if self.integer:
            return trial.suggest_int(key, int(self.low), int(self.high), step=int(self.step) or 1, log=self.log)
        return trial.suggest_float(key, self.low, self.high, step=self.step or None, log=self.log)

    def to_value(self) -> dict[str, Any]:
        """Return the range as it appears in a search space file."""
        value: dict[str, Any] = {"low": self.low, "high": self.high}
        return value | ({"step": self.step} if self.step else {}) | ({"log": True} if self.log else {})


@dataclass(frozen=True)
class Choices:
    """Possible values of a hyperparameter."""

    values: tuple[Any, ...]

    def contains(self, value: Any) -> bool:
        """Return whether a value is one of the choices."""
        return value in self.values

    def suggest(self, trial: Any, key: str) -> Any:
        """Return the value that an Optuna trial suggests for this hyperparameter."""
        return trial.suggest_categorical(key, list(self.values))

    def to_value(self) -> list[Any]:
        """Return the choices as they appear in a search space file."""
        return list(self.values)


Space = dict[str, Numbers | Choices]


def read_space(source: str | Path | Mapping[str, Any], recipe: Recipe) -> Space:
    """Read a search space from a TOML file or from a mapping.

    An example of a mapping is ``{"train.learning_rate": {"low": 0.001, "high": 0.1}}``.

    Raises:
        RecipeError: a key or a bound is invalid for ``recipe``, or the validation accuracies of trials with different
            values of a key cannot be compared.
    """
    if isinstance(source, Mapping):
        where, values = "search", dict(source)
    else:
        advice = f"create it with lines such as train.learning_rate = {_EXPECTED}"
        where, values = str(source), read_settings(Path(source), RecipeError, advice)
    space = {key: _range(where, key, value, recipe) for key, value in _dotted_keys(where, values)}
    if not space:
        raise RecipeError(
            f"{where} has no hyperparameters to tune: add a line such as train.learning_rate = {_EXPECTED}"
        )
    return space


def default_space(recipe: Recipe, train_images: int) -> Space:
    """Return the default search space.

    Args:
        recipe: the base recipe, with all automatic values resolved.
        train_images: number of training images.
    """
    rate = recipe.train.learning_rate
    batches = {size for size in (16, 32, 64, 128) if size <= train_images // 4} | {recipe.train.batch_size}
    space: Space = {
        "train.learning_rate": Numbers(max(rate / 10, 1e-8), min(rate * 10, 10.0), log=True),
        "train.batch_size": Choices(tuple(sorted(batches))),
    }
    if any(getattr(recipe.augment, name) for name in _float_augmentations(recipe)):
        space[STRENGTH] = Numbers(0.0, 2.0 if _allows_strength(recipe, 2.0) else 1.0)
    if recipe.model.pretrained:  # Pretrained weights fit only one architecture, and often only one input size.
        return space
    space["model.width"] = Numbers(0.25, 1.0, step=0.25)
    networks: tuple[str, ...] = (recipe.model.arch,)
    if recipe.model.arch in ARCHITECTURES:
        usable = (n for n in _FAST_ARCHITECTURES if n in ARCHITECTURES and least_size_px(n) <= recipe.data.input_size)
        networks = (*networks, *(name for name in usable if name not in networks))
        space["model.arch"] = Choices(networks)
    side, least = recipe.data.input_size, max(map(least_size_px, networks))
    smaller_sides = sorted({round(side * fraction / 8) * 8 for fraction in (0.5, 0.75)})
    if usable_sides := [smaller for smaller in smaller_sides if least <= smaller < side]:
        space["data.input_size"] = Choices((*usable_sides, side))
    return space


def suggest(trial: Any, space: Space) -> dict[str, Any]:
    """Return the hyperparameters that an Optuna trial suggests for this search space."""
    return {key: values.suggest(trial, key) for key, values in space.items()}


def applied(recipe: Recipe, point: Mapping[str, Any]) -> Recipe:
    """Return a copy of the recipe that uses the hyperparameter values in ``point``."""
    recipe = recipe.override({key: value for key, value in point.items() if key != STRENGTH}, "trial")
    return with_augment_strength(recipe, point[STRENGTH]) if STRENGTH in point else recipe


def with_augment_strength(recipe: Recipe, factor: float) -> Recipe:
    """Return a copy of the recipe with all floating-point augmentation strengths multiplied by ``factor``."""
    changed = {name: getattr(recipe.augment, name) * factor for name in _float_augmentations(recipe)}
    return replace(recipe, augment=replace(recipe.augment, **changed))


def own_point(recipe: Recipe, space: Space) -> dict[str, Any]:
    """Return the hyperparameter values of the recipe that are in the search space."""
    own = {key: 1.0 if key == STRENGTH else recipe.flattened[key] for key in space}
    return {key: value for key, value in own.items() if space[key].contains(value)}


def to_values(space: Space) -> dict[str, Any]:
    """Return the search space as a JSON-serializable dictionary that :func:`read_space` accepts."""
    return {key: values.to_value() for key, values in space.items()}


def to_toml(space: Space) -> str:
    """Return the search space as TOML that :func:`read_space` accepts."""
    lines = []
    for key, value in to_values(space).items():
        if isinstance(value, dict):
            text = "{ " + ", ".join(f"{name} = {json.dumps(bound)}" for name, bound in value.items()) + " }"
        else:
            text = json.dumps(value, ensure_ascii=False)
        lines.append(f"{key} = {text}\n")
    return "".join(lines)


def _dotted_keys(where: str, values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten nested TOML tables to dotted keys, such as ``train.learning_rate``."""
    for name, value in values.items():
        key = f"{path}{name}"
        section = isinstance(value, Mapping) and not {"low", "high"} & set(value)
        if section and not path and "." not in name:
            yield from _dotted_keys(where, value, f"{key}.")
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
    own = 1.0 if key == STRENGTH else recipe.flattened[key]
    if isinstance(own, bool | str):
        raise RecipeError(
            f"{where}: {key} is not a number and cannot have a range: use a list of choices, such as "
            f"[{json.dumps(own)}]"
        )
    integer = isinstance(own, int)
    for name in ("low", "high", "step"):
        number = value.get(name, 1)
        if isinstance(number, bool) or not isinstance(number, int if integer else int | float):
            expected = "an integer" if integer else "a number"
            raise RecipeError(f"{where}: {key}: {name} is {number!r}, expected {expected}")
    if not isinstance(value.get("log", False), bool):
        raise RecipeError(f"{where}: {key}: 'log' must be true or false, got {value['log']!r}")
    if missing := {"low", "high"} - set(value):
        raise RecipeError(f"{where}: {key} has no {min(missing)}, expected {_EXPECTED}")
    kind = int if integer else float
    low, high, step = kind(value["low"]), kind(value["high"]), kind(value.get("step", 0))
    numbers = Numbers(low, high, step, value.get("log", False), integer)
    for bound in (numbers.low, numbers.high):
        _checked_value(where, key, bound, recipe)
    if problem := _describe_invalid_range(numbers, "step" in value):
        raise RecipeError(f"{where}: {key}: {problem}")
    return numbers


def _describe_invalid_range(numbers: Numbers, has_step: bool) -> str:
    if not numbers.low < numbers.high:
        return f"low is {numbers.low:g}, expected less than high ({numbers.high:g})"
    if has_step and not 0 < numbers.step <= numbers.high - numbers.low:
        return f"step is {numbers.step:g}, expected more than 0 and at most {numbers.high - numbers.low:g}"
    if numbers.log and has_step:
        return "log and step cannot be combined: remove one of them"
    if numbers.log and numbers.low <= 0:
        return f"low is {numbers.low:g}, expected more than 0 with log = true"
    return ""


def _choices(where: str, key: str, values: Any, recipe: Recipe) -> Choices:
    if not values:
        raise RecipeError(f"{where}: {key} must have at least one choice")
    choices = [_checked_value(where, key, value, recipe) for value in values]
    if duplicates := [value for i, value in enumerate(choices) if value in choices[:i]]:
        raise RecipeError(f"{where}: the choice {duplicates[0]!r} of {key} is listed twice: remove one of them")
    return Choices(tuple(choices))


def _check_key(where: str, key: str, recipe: Recipe) -> None:
    if key not in recipe.flattened:
        raise RecipeError(f"{where}: {unknown('recipe key', key, [*recipe.flattened, STRENGTH])}")
    if key.startswith("compress."):
        raise RecipeError(
            f"{where}: {key} affects only compression, but a study compares trained models: remove the key, and "
            "compare its values with edgerec quantize"
        )
    if key not in _TUNABLE_DATA_KEYS and not key.startswith(_TUNABLE_PREFIXES):
        raise RecipeError(
            f"{where}: {key} cannot be tuned, because all trials must be compared on the same images: remove the key"
        )


def _checked_value(where: str, key: str, value: Any, recipe: Recipe) -> Any:
    if key == STRENGTH:
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise RecipeError(f"{where}: {key} is {value!r}, but the factor must be at least 0")
        try:
            with_augment_strength(recipe, value)
        except RecipeError as error:
            raise RecipeError(f"{where}: with {key} = {value:g}, {error}") from None
        return float(value)
    try:
        changed_recipe = recipe.override({key: value}, where)
        if key == "model.arch":
            find_classifier(value)
    except RecipeError as error:
        text = str(error)
        raise RecipeError(text if text.startswith(where) else f"{where}: {key}: {text}") from None
    return changed_recipe.flattened[key]


def _allows_strength(recipe: Recipe, factor: float) -> bool:
    try:
        with_augment_strength(recipe, factor)
    except RecipeError:
        return False
    return True


def _float_augmentations(recipe: Recipe) -> list[str]:
    return [item.name for item in fields(recipe.augment) if type(getattr(recipe.augment, item.name)) is float]
