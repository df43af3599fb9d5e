"""What a study is for: everything that its trials share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgerec.errors import RecipeError, StudyError, unknown
from edgerec.recipe import Recipe
from edgerec.runtime.interpreter import fingerprint
from edgerec.tuning.search_space import Space, read_space, to_toml, to_values
from edgerec.tuning.trial_cost import PLACES, Limits
from edgerec.utils.atomic import write_file
from edgerec.utils.bounded import read_json
from edgerec.utils.text import to_json

OBJECTIVES = ("accuracy", "ms", "bytes", "memory")
PRUNERS = ("median", "hyperband", "none")
ABOUT = "study.json"
# They change where a trial runs and what is told of it, not what comes out of it.
_FREE = ("data.source", "train.device", "train.price_per_hour", "train.tensorboard")


@dataclass(frozen=True)
class Plan:
    """A recipe, what of it is searched, and what trials are judged by.

    Attributes:
        recipe: what all trials begin with; its ``data`` is complete, its source absolute.
        space: what is searched.
        objectives: of :data:`OBJECTIVES`, ``accuracy`` among them.
        limits: what is refused before it is trained.
        on: where milliseconds are of, a name of :data:`PLACES`.
        pruner: what stops trials that lag behind.
        data_digest: of the pictures.
    """

    recipe: Recipe
    space: Space
    objectives: tuple[str, ...]
    limits: Limits
    on: str
    pruner: str
    data_digest: str

    def fixed(self) -> dict[str, Any]:
        """What must be the same for all who share the study, as dotted keys."""
        recipe = _dotted(self.recipe.to_dict())
        shared = {key: value for key, value in recipe.items() if key not in (*_FREE, *self.space)}
        shared = {key: value for key, value in shared.items() if not key.startswith("compress.")}
        shared |= {f"search {key}": value for key, value in to_values(self.space).items()}
        shared |= {f"limit {key}": value for key, value in self.limits.given().items()}
        shared |= {"objectives": self.objectives, "on": self.on, "pruner": self.pruner, "data": self.data_digest}
        if self.on == "this" and ("ms" in self.objectives or self.limits.ms is not None):
            machine = fingerprint()
            shared["machine"] = f"{machine.cpu} ({machine.machine})"
        return json.loads(json.dumps(shared))

    def write(self, folder: Path, name: str, storage: str) -> None:
        """Keep it in the study's folder: for resuming, and the search once more as a file to read and change."""
        about = {
            "study": name,
            "storage": storage,
            "recipe": self.recipe.to_dict(),
            "search": to_values(self.space),
            "objectives": list(self.objectives),
            "limits": self.limits.given(),
            "on": self.on,
            "pruner": self.pruner,
            "data_digest": self.data_digest,
        }
        write_file(folder / "search.toml", to_toml(self.space))
        write_file(folder / ABOUT, to_json(about, indent=1) + "\n")


@dataclass(frozen=True)
class Kept:
    """A study's folder as it was left: its plan, its name, and where its database is if that is elsewhere."""

    plan: Plan
    study: str
    storage: str

    @classmethod
    def read(cls, folder: Path) -> Kept:
        """Raises :class:`StudyError` where there is no study, or a damaged one."""
        try:
            about = read_json(folder / ABOUT)
            recipe = Recipe.from_dict(about["recipe"], str(folder / ABOUT), base=Recipe().unversioned)
            plan = Plan(
                recipe,
                read_space(about["search"], recipe),
                checked_objectives(about["objectives"]),
                checked_limits(**{name: about["limits"].get(name) for name in ("ms", "bytes", "memory")}),
                checked_place(about["on"]),
                str(about["pruner"]),
                str(about["data_digest"]),
            )
            return cls(plan, str(about["study"]), str(about["storage"]))
        except FileNotFoundError:
            raise StudyError(f"{folder} has nothing to resume: it is no study; tune without --resume") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StudyError(f"{folder / ABOUT} is damaged ({error}): tune in another folder") from None


def checked_objectives(names: Sequence[str]) -> tuple[str, ...]:
    """The objectives, each once; raises :class:`RecipeError` for others than :data:`OBJECTIVES`."""
    for name in names:
        if name not in OBJECTIVES:
            raise RecipeError(unknown("objective", name, OBJECTIVES))
    if "accuracy" not in names:
        raise RecipeError(
            f"objective is {','.join(names)!r}, expected accuracy among them: nothing else needs training"
        )
    return tuple(dict.fromkeys(names))


def checked_place(name: str) -> str:
    """Where milliseconds are of; raises :class:`RecipeError` for another than :data:`PLACES`."""
    if name not in PLACES:
        raise RecipeError(unknown("place", name, PLACES))
    return name


def checked_limits(ms: float | None, bytes: int | None, memory: int | None) -> Limits:
    """The limits; raises :class:`RecipeError` for one that nothing can keep."""
    for name, value in {"ms": ms, "bytes": bytes, "memory": memory}.items():
        if value is not None and not 0 < value < float("inf"):
            raise RecipeError(f"--limit-{name} is {value:g}, expected more than 0")
    return Limits(ms, bytes, memory)


def checked_pruner(name: str | None, objectives: Sequence[str]) -> str:
    """What stops trials; None takes what suits the objectives. Raises :class:`RecipeError` for what does not."""
    if name is None:
        return "median" if len(objectives) == 1 else "none"
    if name not in PRUNERS:
        raise RecipeError(unknown("pruner", name, PRUNERS))
    if name != "none" and len(objectives) > 1:
        raise RecipeError(f"--pruner {name} compares one number, and there are {len(objectives)} objectives: use none")
    return name


def refuse_other(theirs: Mapping[str, Any], ours: Mapping[str, Any], where: str) -> None:
    """Raise :class:`StudyError` with the first key that differs."""
    # An older edgerec's study lacks recipe keys that there were not yet: it had what they are by default.
    theirs = {key: value for key, value in _dotted(Recipe().to_dict()).items() if key in ours} | dict(theirs)
    for key in sorted(set(ours) | set(theirs)):
        if theirs.get(key) == ours.get(key):
            continue
        if key == "data":
            what = "other pictures (their digest differs)"
        elif key == "machine":
            what = f"milliseconds on {theirs.get(key)}, and this is {ours.get(key)}"
        else:
            what = f"another recipe or search: {key} is {theirs.get(key)!r} there, {ours.get(key)!r} here"
        raise StudyError(f"{where} was made for {what}: choose another --study and --out")


def _dotted(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _dotted(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return found
