"""Recipes: all settings needed to reproduce a training run and its model's compression, stored as TOML."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from edgerec.contract.image_decoding import Levels
from edgerec.contract.preprocess import UNRECORDED_VERSION, PreprocessSpec
from edgerec.contract.tensors import Normalize
from edgerec.contract.toml_settings import check_settings, number, read_settings
from edgerec.errors import RecipeError, unknown
from edgerec.recipe_sections import (
    AUTO,
    NOT_AUGMENTED,
    AugmentSection,
    CompressSection,
    DataSection,
    DataSource,
    DistillSection,
    ModelSection,
    TrainSection,
    TransferSection,
    one_or_tuple,
)
from edgerec.utils.atomic import user_path
from edgerec.utils.bounded_parsing import parse_toml
from edgerec.utils.command_line import command

__all__ = [
    "AUTO",
    "NOT_AUGMENTED",
    "UNRESOLVED",
    "AugmentSection",
    "CompressSection",
    "DataSection",
    "DataSource",
    "DistillSection",
    "ModelSection",
    "Recipe",
    "TrainSection",
    "TransferSection",
    "one_or_tuple",
    "parse_assignment",
]

# Maps each recipe key that training can choose automatically to the value that requests an automatic choice.
UNRESOLVED: dict[str, Any] = {
    "data.input_size": 0,
    "data.channels": 0,
    "data.preprocess_version": 0,
    "data.white_level": 0,
    "model.arch": AUTO,
    "model.width": 0.0,
    "model.weights": AUTO,
    "train.epochs": 0,
    "train.batch_size": 0,
}


@dataclass(frozen=True)
class Recipe:
    """A complete recipe, validated on construction. Use :func:`dataclasses.replace` to create a variation."""

    seed: int = number(0, "seed for the split, the initial weights, the image order and the augmentation", 0, 2**31 - 1)
    data: DataSection = field(default_factory=DataSection)
    augment: AugmentSection = field(default_factory=AugmentSection)
    model: ModelSection = field(default_factory=ModelSection)
    train: TrainSection = field(default_factory=TrainSection)
    transfer: TransferSection = field(default_factory=TransferSection)
    distill: DistillSection = field(default_factory=DistillSection)
    compress: CompressSection = field(default_factory=CompressSection)

    def __post_init__(self) -> None:
        check_settings(self, RecipeError)

    @classmethod
    def from_toml(cls, path: str | Path, *, base: Recipe | None = None) -> Recipe:
        """Load a recipe file. Missing keys keep their values from ``base`` (default: ``Recipe()``).

        If the file is a run's recipe without a preprocessing version, missing keys get the values from
        :attr:`unversioned`.

        Raises:
            RecipeError: the file cannot be read, is not TOML, or contains an unknown key or an invalid value.
        """
        write = f"{command('recipe')} > {shlex.quote(str(path))}"
        values = read_settings(user_path(path), RecipeError, f"create a complete recipe with {write}")
        of_run = user_path(path).with_name("split.json").is_file()
        base = base or cls()
        return cls.from_dict(values, str(path), base=base.unversioned if of_run else base)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "recipe", *, base: Recipe | None = None) -> Recipe:
        """Build a recipe from nested dictionaries. Missing keys keep their values from ``base``.

        Raises:
            RecipeError: a key is unknown or a value is invalid. The message contains ``where`` and the dotted key.
        """
        if not isinstance(values, Mapping):
            raise RecipeError(f"{where}: expected an object that contains recipe sections, got {type(values).__name__}")
        return _merge(base or cls(), values, where, "")

    @property
    def unversioned(self) -> Recipe:
        """Copy of the recipe with the preprocessing version and white level of old runs."""
        data = replace(self.data, preprocess_version=UNRECORDED_VERSION, white_level=Levels().white)
        return replace(self, data=data)

    def override(self, assignments: Mapping[str, Any], where: str = "--set") -> Recipe:
        """Return a copy with new values for dotted keys, such as ``{"train.epochs": 3}``.

        Raises:
            RecipeError: a key is unknown or a value is invalid. The message contains ``where`` and the dotted key.
        """
        recipe = self
        for path, value in assignments.items():
            section, _, key = path.rpartition(".")
            nested = {section: {key: value}} if section else {key: value}
            recipe = _merge(recipe, nested, where, "")
        return recipe

    @property
    def unresolved(self) -> list[str]:
        """Dotted keys of the settings that training will choose automatically."""
        values = self.flattened
        return [key for key, value in UNRESOLVED.items() if value == values[key]]

    @property
    def flattened(self) -> dict[str, Any]:
        """All values of the recipe, with dotted keys such as ``train.epochs``."""
        flat: dict[str, Any] = {}
        for section, value in self.to_dict().items():
            flat |= (
                {f"{section}.{key}": item for key, item in value.items()}
                if isinstance(value, dict)
                else {section: value}
            )
        return flat

    def to_dict(self) -> dict[str, Any]:
        """Convert the recipe to nested dictionaries. :meth:`from_dict` is the inverse."""
        return {
            item.name: {key.name: getattr(value, key.name) for key in fields(value)} if is_dataclass(value) else value
            for item in fields(self)
            for value in [getattr(self, item.name)]
        }

    def to_toml(self, comments: bool = False) -> str:
        """Return the recipe as TOML. If ``comments`` is true, a comment explains each key."""
        lines = _toml_lines(self, comments)
        for item in fields(self):
            section = getattr(self, item.name)
            if is_dataclass(section):
                about = f"  # {type(section).__doc__}" if comments else ""
                lines += ["", f"[{item.name}]{about}", *_toml_lines(section, comments)]
        return "\n".join(lines) + "\n"

    @property
    def preprocess(self) -> PreprocessSpec:
        """Preprocessing of the model's input. Requires nonzero ``data.input_size`` and ``data.channels``."""
        return self.data.preprocess

    @property
    def without_source(self) -> Recipe:
        """Copy of the recipe without ``data.source``, whose path may differ between machines."""
        return replace(self, data=replace(self.data, source=""))

    @property
    def normalize(self) -> Normalize:
        """Normalization that converts uint8 pixels to the model's floating-point input."""
        return Normalize.named(self.data.normalize)


def parse_assignment(text: str) -> tuple[str, Any]:
    """Parse ``section.key=value``. Values that are not valid TOML are treated as strings."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise RecipeError(f"{text!r} is not an assignment: use KEY=VALUE, e.g. train.epochs=3")
    try:
        return path.strip(), parse_toml(f"value = {value}")["value"]
    except ValueError:
        return path.strip(), value.strip()


def _toml_lines(section: Any, comments: bool) -> list[str]:
    lines = []
    for item in fields(section):
        value = getattr(section, item.name)
        if is_dataclass(value):
            continue
        # Strings, numbers, booleans and lists of strings have the same syntax in JSON and TOML.
        line = f"{item.name} = {json.dumps(value, ensure_ascii=False)}".replace("\x7f", "\\u007f")
        if comments:
            expected = f" ({item.metadata['expected']})" if item.metadata["expected"] else ""
            line = f"{line:<28} # {item.metadata['help']}{expected}"
        lines.append(line)
    return lines


_PATH_KEYS = ("data.source", "model.arch", "model.weights", "distill.teachers", "compress.calibration")


def _expand_home(value: str) -> str:
    """Expand ``~`` in a path or in several paths separated by commas."""
    return ",".join(str(user_path(part)) if part.startswith("~") else part for part in value.split(","))


def _merge(section: Any, values: Mapping[str, Any], where: str, path: str) -> Any:
    """Return a copy of a recipe or section, updated with ``values``.

    ``path`` is the dotted prefix of the keys, such as ``train.``, or empty for a recipe.
    """
    known = {item.name: getattr(section, item.name) for item in fields(section)}
    changes: dict[str, Any] = {}
    for name, value in values.items():
        full = f"{path}{name}"
        if name not in known:
            raise RecipeError(f"{where}: {_unknown_key_message(full, [path + key for key in known])}")
        if is_dataclass(known[name]):
            if not isinstance(value, Mapping):
                raise RecipeError(f"{where}: the section {full} is {value!r}, expected a table [{full}]")
            value = _merge(known[name], value, where, f"{full}.")
        elif isinstance(value, int) and not isinstance(value, bool) and isinstance(known[name], float):
            value = float(max(-(10**300), min(value, 10**300)))
        elif isinstance(value, str) and full in _PATH_KEYS:
            value = _expand_home(value)
        elif isinstance(value, list | tuple) and all(isinstance(one, str) for one in value) and value:
            value = one_or_tuple([_expand_home(one) for one in value] if full in _PATH_KEYS else value)
        changes[name] = value
    try:
        merged = replace(section, **changes)
        if path:
            check_settings(merged, RecipeError, path)
        return merged
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None


def _unknown_key_message(key: str, choices: Iterable[str]) -> str:
    """Return an error message for an unknown key that suggests a key with the same name or a similar name."""
    name = key.rpartition(".")[2]
    sections = ((item.name, value) for item in fields(Recipe) if is_dataclass(value := getattr(Recipe(), item.name)))
    same_name = [f"{section}.{name}" for section, value in sections if name in {item.name for item in fields(value)}]
    if same_name:
        return f"unknown recipe key {key!r}; did you mean {' or '.join(map(repr, same_name))}?"
    return unknown("recipe key", key, choices)
