"""Decide when a training stage ends: after its last epoch, by early stopping, or at the time limit."""

from __future__ import annotations

from edgerec.recipe import Recipe
from edgerec.train.run import best_epoch
from edgerec.train.stages import TrainingStage, stages


def next_stage(recipe: Recipe, history: list[dict[str, float]]) -> TrainingStage | None:
    """Return the next epoch's stage, or None if training is complete.

    If the previous stage ended early, the returned stage starts earlier than planned. If the stage was interrupted, the
    returned stage starts at its first epoch, not at the next epoch.
    """
    number = _stage_number(recipe, history[-1]) if history else 0
    for stage in stages(recipe)[number:]:
        actual = stage.starting_at(len(history) - len(_rows_of_stage(recipe, stage, history)))
        # The planned end of a stage may change when a run is extended.
        if len(history) < min(actual.last, stage.last) and not early_end(recipe, actual, history):
            return actual
    return None


def planned_epochs(recipe: Recipe, history: list[dict[str, float]]) -> int:
    """Return the expected total number of epochs, given the epochs completed so far."""
    number = _stage_number(recipe, history[-1]) if history else 0
    current, *later = stages(recipe)[number:]
    before = len(history) - len(_rows_of_stage(recipe, current, history))
    return before + sum(stage.last - stage.first for stage in (current, *later))


def early_end(recipe: Recipe, stage: TrainingStage, history: list[dict[str, float]]) -> str:
    """Return the reason for stopping a stage early, or an empty string if the stage continues.

    ``train.early_stopping`` counts the epochs of each stage separately. ``train.max_hours`` is divided among the stages
    in proportion to their epochs, so that no stage uses up the next stage's time.
    """
    train, rows = recipe.train, _rows_of_stage(recipe, stage, history)
    if train.max_hours and history:
        left_s = train.max_hours * stage.time_fraction * 3600 - sum(row["seconds"] for row in history)
        if history[-1]["seconds"] > left_s:
            limit = f" ({stage.time_fraction:.0%} of this time is for {stage.description} and earlier stages)" * (
                stage.time_fraction < 1
            )
            return f"train.max_hours {train.max_hours:g}{limit} leaves no time for epoch {len(history) + 1}"
    if train.early_stopping and rows and len(history) - best_epoch(rows) >= train.early_stopping:
        return f"no better validation result for {train.early_stopping} epochs (train.early_stopping)"
    return ""


def _rows_of_stage(recipe: Recipe, stage: TrainingStage, history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [row for row in history if _stage_number(recipe, row) == stage.number]


def _stage_number(recipe: Recipe, row: dict[str, float]) -> int:
    """Older versions did not record stages in ``history.csv``, so their stages are derived from the recipe."""
    plan = stages(recipe)
    number = row.get("stage", next((stage.number for stage in plan if row["epoch"] <= stage.last), 0))
    return min(int(number), len(plan) - 1)
