"""Settings that all trials of a study share."""

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
from edgerec.tuning.trial_cost import TIMING_CONDITIONS, Limits
from edgerec.utils.atomic import write_file
from edgerec.utils.bounded_parsing import read_json
from edgerec.utils.text import to_json

OBJECTIVES = ("accuracy", "ms", "bytes", "memory")
PRUNERS = ("median", "hyperband", "none")
STUDY_FILE = "study.json"
# These recipe keys may differ between the processes of a study, because they do not affect the results.
_UNCHECKED_KEYS = ("data.source", "train.device", "train.price_per_hour", "train.tensorboard")


@dataclass(frozen=True)
class Plan:
    """Settings of a study.

    Attributes:
        recipe: base recipe of all trials. The automatic values of its ``data`` section are resolved, and the source is
            an absolute path.
        space: search space.
        objectives: names from :data:`OBJECTIVES`, including ``accuracy``.
        limits: limits of the int8 model. A model that exceeds a limit is not trained.
        on: device whose latency counts, a name from :data:`TIMING_CONDITIONS`.
        pruner: name from :data:`PRUNERS`.
        data_digest: digest of all images.
    """

    recipe: Recipe
    space: Space
    objectives: tuple[str, ...]
    limits: Limits
    on: str
    pruner: str
    data_digest: str

    def shared_settings(self) -> dict[str, Any]:
        """Return the settings that must be equal in all processes of a study."""
        recipe = self.recipe.flattened
        shared = {key: value for key, value in recipe.items() if key not in (*_UNCHECKED_KEYS, *self.space)}
        shared = {key: value for key, value in shared.items() if not key.startswith("compress.")}
        shared |= {f"search {key}": value for key, value in to_values(self.space).items()}
        shared |= {f"limit {key}": value for key, value in self.limits.to_dict().items()}
        shared |= {"objectives": self.objectives, "on": self.on, "pruner": self.pruner, "data": self.data_digest}
        if self.on == "this" and ("ms" in self.objectives or self.limits.ms is not None):
            machine = fingerprint()
            shared["machine"] = f"{machine.cpu} ({machine.machine})"
        return json.loads(json.dumps(shared))

    def write(self, folder: Path, name: str, storage: str) -> None:
        """Save the plan and the search space in the folder of the study.

        Args:
            folder: folder of the study.
            name: name of the study.
            storage: location of a shared database, or an empty string for the file in ``folder``.
        """
        values = {
            "study": name,
            "storage": storage,
            "recipe": self.recipe.to_dict(),
            "search": to_values(self.space),
            "objectives": list(self.objectives),
            "limits": self.limits.to_dict(),
            "on": self.on,
            "pruner": self.pruner,
            "data_digest": self.data_digest,
        }
        write_file(folder / "search.toml", to_toml(self.space))
        write_file(folder / STUDY_FILE, to_json(values, indent=1) + "\n")


@dataclass(frozen=True)
class SavedStudy:
    """A study that was loaded from its folder.

    Attributes:
        plan: settings of the study.
        study: name of the study.
        storage: location of a shared database, or an empty string for the file in the folder.
    """

    plan: Plan
    study: str
    storage: str

    @classmethod
    def read(cls, folder: Path) -> SavedStudy:
        """Load a study from its folder.

        Raise :class:`StudyError` if the folder contains no study, or if it is damaged.
        """
        try:
            values = read_json(folder / STUDY_FILE)
            recipe = Recipe.from_dict(values["recipe"], str(folder / STUDY_FILE), base=Recipe().unversioned)
            plan = Plan(
                recipe,
                read_space(values["search"], recipe),
                checked_objectives(values["objectives"]),
                checked_limits(**{name: values["limits"].get(name) for name in ("ms", "bytes", "memory")}),
                checked_timing(values["on"]),
                str(values["pruner"]),
                str(values["data_digest"]),
            )
            return cls(plan, str(values["study"]), str(values["storage"]))
        except FileNotFoundError:
            raise StudyError(
                f"Cannot resume {folder}, because it is not a study: start a study with edgerec tune without --resume"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StudyError(
                f"{folder / STUDY_FILE} is damaged ({error}): start a new study in another folder"
            ) from None


def checked_objectives(names: Sequence[str]) -> tuple[str, ...]:
    """Validate the objectives and remove duplicates.

    Raises:
        RecipeError: an objective does not exist, or ``accuracy`` is missing.
    """
    for name in names:
        if name not in OBJECTIVES:
            raise RecipeError(unknown("objective", name, OBJECTIVES))
    if "accuracy" not in names:
        raise RecipeError(
            f"--objective {','.join(names)} does not include accuracy, the only objective that depends on training: "
            "add accuracy"
        )
    return tuple(dict.fromkeys(names))


def checked_timing(name: str) -> str:
    """Validate the name of the device for the latency objective.

    Raises:
        RecipeError: the name is not a key of :data:`TIMING_CONDITIONS`.
    """
    if name not in TIMING_CONDITIONS:
        raise RecipeError(unknown("device for --on", name, TIMING_CONDITIONS))
    return name


def checked_limits(ms: float | None, bytes: int | None, memory: int | None) -> Limits:
    """Validate the limits for the cost of the int8 model.

    Raises:
        RecipeError: a limit is not positive and finite.
    """
    for name, value in {"ms": ms, "bytes": bytes, "memory": memory}.items():
        if value is not None and not 0 < value < float("inf"):
            raise RecipeError(f"--limit-{name} must be finite and greater than 0, got {value:g}")
    return Limits(ms, bytes, memory)


def checked_pruner(name: str | None, objectives: Sequence[str]) -> str:
    """Validate the name of a pruner, or choose the default pruner if the name is None.

    Raises:
        RecipeError: the pruner does not exist, or it does not support several objectives.
    """
    if name is None:
        return "median" if len(objectives) == 1 else "none"
    if name not in PRUNERS:
        raise RecipeError(unknown("pruner", name, PRUNERS))
    if name != "none" and len(objectives) > 1:
        raise RecipeError(
            f"--pruner {name} supports only one objective, but the study has {len(objectives)} objectives: use "
            "--pruner none"
        )
    return name


def refuse_other_settings(stored: Mapping[str, Any], current: Mapping[str, Any], study: str) -> None:
    """Raise :class:`StudyError` if the stored settings of a study differ from the current settings.

    Args:
        stored: :meth:`Plan.shared_settings` of the existing study.
        current: :meth:`Plan.shared_settings` of this call.
        study: description of the study, which is the beginning of the error message.
    """
    # Use the default value of each recipe key that was added to edgerec after the study was created.
    stored = {key: value for key, value in Recipe().flattened.items() if key in current} | dict(stored)
    for key in sorted(set(current) | set(stored)):
        if stored.get(key) == current.get(key):
            continue
        if key == "data":
            difference = "other images (their digest differs)"
        elif key == "machine":
            difference = f"milliseconds on {stored.get(key)}, but this machine is {current.get(key)}"
        else:
            difference = f"another recipe or search space: {key} is {stored.get(key)!r}, but now {current.get(key)!r}"
        raise StudyError(f"{study} was created for {difference}: choose another --study and --out")
