"""Long training runs: estimated time and cost, time limits, early stopping and gradient accumulation."""

from __future__ import annotations

import numpy as np
import pytest
import typer

from edgerec import Recipe, Run, fit
from edgerec.cli.output import parse_duration_s
from edgerec.errors import RecipeError
from edgerec.recipe import TrainSection
from edgerec.train import optimizer as optimizer_module
from edgerec.train.backend import keras, prepare
from edgerec.train.callbacks import duration, training_cost
from edgerec.train.early_stopping import next_stage
from edgerec.train.optimizer import optimizer
from edgerec.train.training_step import compile_classifier


def row(epoch, seconds=1.0, accuracy=0.5):
    return {"epoch": epoch, "seconds": seconds, "val_accuracy": accuracy, "val_loss": 1.0}


def test_plateau_halves_the_rate_after_three_epochs_without_improvement():
    def plateau_rate(losses):
        return optimizer_module.plateau_rate(0.8, 0.0, losses)

    assert plateau_rate([]) == 0.8
    assert plateau_rate([3, 2, 2, 2]) == 0.8
    assert plateau_rate([3, 2, 2, 2, 2]) == 0.4
    assert plateau_rate([3, 2, 2, 2, 1, 1, 1]) == 0.8
    assert plateau_rate([2, 2, 1.99995, 2, 2, 2, 2]) == 0.2
    assert plateau_rate([2, float("nan"), float("nan"), float("nan")]) == 0.4


def test_training_cost_includes_completed_and_remaining_epochs():
    recipe = Recipe().override({"train.epochs": 10, "train.price_per_hour": 36.0})
    cost = training_cost([row(1, 100.0), row(2, 10.0), row(3, 10.0), row(4, 10.0)], recipe)
    assert (cost.seconds, cost.seconds_left) == (130.0, 60.0)
    assert str(cost) == "2:10 so far, 1:00 to go; cost 1.30 so far, 0.60 to come"
    assert "cost" not in str(training_cost([row(1)], Recipe().override({"train.epochs": 10})))
    assert [duration(n) for n in (0, 59.6, 3599, 3600, 90061)] == ["0:00", "1:00", "59:59", "1:00:00", "25:01:01"]


@pytest.mark.parametrize(("text", "expected"), [("90s", 90), ("1.5m", 90), ("8h", 28800), ("2d", 172800)])
def test_durations_are_parsed(text, expected):
    assert parse_duration_s(text, "--max-time") == expected


@pytest.mark.parametrize("text", ["", "90", "0h", "-1h", "2x", "1h30m", "nan h"])
def test_invalid_durations_are_refused(text):
    with pytest.raises(typer.BadParameter, match="expected a duration") as caught:
        parse_duration_s(text, "--max-time")
    assert caught.value.param_hint == "--max-time"


def test_training_ends_by_epochs_time_limit_or_early_stopping():
    recipe = Recipe().override({"train.epochs": 5})
    assert next_stage(recipe, [])
    assert not next_stage(recipe, [row(n) for n in range(1, 6)])
    hurried = recipe.override({"train.max_hours": 25 / 3600})
    assert next_stage(hurried, [row(1, 10.0)])
    assert not next_stage(hurried, [row(1, 10.0), row(2, 10.0)])
    stalled = recipe.override({"train.early_stopping": 2})
    assert not next_stage(stalled, [row(1, accuracy=0.9), row(2), row(3)])
    assert next_stage(stalled, [row(1), row(2, accuracy=0.9), row(3)])


def tiny():
    """A model with one trainable layer, and a random batch for the model."""
    layers = keras().layers
    model = keras().Sequential([layers.Input((8, 8, 1)), layers.Flatten(), layers.Dense(3, activation="softmax")])
    rng = np.random.default_rng(0)
    return model, rng.random((32, 8, 8, 1), np.float32), rng.integers(0, 3, 32)


def trained_weights(pixels, classes, policy="float32", **options):
    """Train the model for two steps, and return its kernel."""
    prepare(TrainSection(), 0)
    keras().mixed_precision.set_global_policy(policy)
    model, *_ = tiny()
    compile_classifier(model, optimizer("sgd", 0.1), 1, **options)
    model.fit(pixels, classes, batch_size=32, epochs=2, shuffle=False, verbose=0)
    return model.get_weights()[0]


def test_gradient_accumulation_and_xla_give_the_same_weights():
    _, pixels, classes = tiny()
    full_batch = trained_weights(pixels, classes)
    assert np.abs(trained_weights(pixels, classes, micro_batches=4) - full_batch).max() < 1e-6
    assert np.abs(trained_weights(pixels, classes, xla=True) - full_batch).max() < 1e-6
    try:
        mixed = [
            trained_weights(pixels, classes, micro_batches=4, policy=f"mixed_{name}")
            for name in ("float16", "bfloat16")
        ]
    finally:
        keras().mixed_precision.set_global_policy("float32")
    assert all(0 < np.abs(each - full_batch).max() < 1e-2 for each in mixed)


def test_accumulate_must_divide_the_batch_size(tmp_path):
    recipe = Recipe().override({"train.batch_size": 32, "train.accumulate": 5})
    with pytest.raises(RecipeError, match=r"train\.accumulate must divide the batch size \(32\), but is 5"):
        fit(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_train_command_limits_the_time_and_writes_cost_and_tensorboard_logs(tmp_path, invoke):
    pytest.importorskip("tensorboard")
    options = ["--data", "digits", "--epochs", "50", "--max-time", "2s", "--tensorboard", "--set", "train.accumulate=2"]
    result = invoke("train", "--out", tmp_path / "run", *options, "--set", "train.price_per_hour=3600")
    assert result.returncode == 0, result.stderr
    finished = Run.open(tmp_path / "run")
    assert 1 <= len(finished.history()) < 50
    assert "leaves no time for epoch" in result.stderr
    assert "to come)" in result.stderr
    assert list((finished.path / "tensorboard" / "train").glob("events.out.tfevents.*"))
    assert "such as 90s, 90m, 8h or 2d, got '2x'" in invoke("train", "--out", tmp_path / "b", "--max-time", "2x").stderr
