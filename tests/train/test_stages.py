"""Training stages have their own early stopping, warm-up and time limit, and finished runs can be extended."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil

import pytest

from edgerec import Recipe, Run, fit
from edgerec.errors import EdgerecError, RecipeError
from edgerec.train.early_stopping import next_stage
from edgerec.train.extend import complete_extension, extend
from edgerec.train.optimizer import plateau_rate
from edgerec.train.stages import stage_rate, stages
from tests.conftest import error_line

# From trained weights: two epochs of the head, one of the last layers, three of all layers.
TRANSFER = {
    "data.test_fraction": 0.5,
    "model.width": 0.25,
    "train.batch_size": 32,
    "train.epochs": 6,
    "train.learning_rate": 0.01,
    "transfer.frozen": 0.34,
    "transfer.unfreeze": 0.17,
    "transfer.rate": 0.5,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A finished run and the path of its weights."""
    small = {key: value for key, value in TRANSFER.items() if not key.startswith("transfer")} | {"train.epochs": 1}
    run = fit(Recipe().override(small), tmp_path_factory.mktemp("first") / "run")
    return {"model.weights": str(run.path / "model.keras")}


def train_run(path, changes, stop_after=None, finish=False, **options):
    """Train; return the run and the number of trainable weights in each epoch."""
    trainable_counts = []

    class Stop(Exception):
        pass

    def on_epoch(number, model):
        trainable_counts.append(len(model.trainable_weights))
        if number == stop_after:
            raise Stop

    with contextlib.suppress(Stop):
        fit(Recipe().override(TRANSFER | changes), path, on_epoch=on_epoch, finish=finish, **options)
    return Run.at(path), trainable_counts


def test_early_stopping_ends_only_the_current_stage_also_after_a_resume(weights, tmp_path, caplog):
    changes = weights | {"train.epochs": 8, "train.early_stopping": 1, "train.learning_rate": 1e-8}
    with caplog.at_level(logging.WARNING, "edgerec"):
        unbroken, learning = train_run(tmp_path / "unbroken", changes)
    assert learning[-1] > learning[0]  # the last stage trains more layers than the first
    rows = unbroken.history()
    assert sorted({row["stage"] for row in rows}) == [stage.number for stage in stages(unbroken.recipe)]
    assert len(rows) < 8
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    assert "training the head alone: ending after epoch" in caplog.text
    assert "no better validation result for 1 epochs (train.early_stopping); next: training the head and" in caplog.text
    assert "training all layers: ending after" in caplog.text

    stop_after = next(int(row["epoch"]) for row in rows if row["stage"] == 1)  # right after a stage that ended early
    _, before = train_run(tmp_path / "cut", changes, stop_after=stop_after)
    resumed, after = train_run(tmp_path / "cut", changes, resume=True)
    assert before + after == learning
    stage_of_epoch = [[(row["epoch"], row["stage"]) for row in run.history()] for run in (unbroken, resumed)]
    assert stage_of_epoch[0] == stage_of_epoch[1]


def test_time_limit_is_divided_among_the_stages(weights, tmp_path, caplog):
    """Each epoch takes longer than the limit, so that all stages except the first have no time left."""
    with caplog.at_level(logging.WARNING, "edgerec"):
        run, learning = train_run(tmp_path / "run", weights | {"train.epochs": 200, "train.max_hours": 1e-9})
    assert len(learning) == 1
    assert "training the head alone: ending after epoch 1/200: train.max_hours 1e-09" in caplog.text
    recipe = run.recipe.override({"train.max_hours": 100 / 3600})
    rows = [{"epoch": n, "stage": 0, "seconds": 1.0, "val_loss": 1.0, "val_accuracy": 0.5} for n in range(1, 36)]
    assert next_stage(recipe, rows[:32]).number == 0
    following = next_stage(recipe, rows)  # 34 % of 100 s are used before the 68 epochs of the head are complete
    assert (following.number, following.first) == (1, 35)


@pytest.mark.parametrize(("changes", "schedule"), [({}, "cosine"), ({"train.schedule": "constant"}, "constant")])
def test_every_stage_warms_up(changes, schedule):
    recipe = Recipe().override(TRANSFER | {"model.weights": "theirs.keras", "train.warmup_epochs": 1.0} | changes)
    for stage in stages(recipe):
        rate = stage_rate(recipe, stage, steps=10)
        warmup = min(10, 10 * (stage.last - stage.first) // 2)
        assert float(rate(0)) == 0.0
        assert float(rate(warmup // 2)) == pytest.approx(stage.rate * (warmup // 2) / warmup)
        assert float(rate(warmup)) == pytest.approx(stage.rate)
    assert stages(recipe)[-1].schedule == schedule


def test_plateau_warms_up_by_epochs():
    losses = [3.0, 2.0, 1.0]
    assert [plateau_rate(1.0, 1.5, losses[:result]) for result in range(3)] == pytest.approx([1 / 3, 11 / 12, 1.0])


def test_plateau_counts_from_the_start_of_its_stage(weights, tmp_path):
    changes = {"train.schedule": "plateau", "train.warmup_epochs": 0.0, "train.epochs": 8, "train.learning_rate": 1e-8}
    run, _ = train_run(tmp_path / "run", weights | changes)
    last = stages(run.recipe)[-1]
    rates = [row["learning_rate"] for row in run.history()[last.first :]]
    assert rates[:3] == pytest.approx([last.rate] * 3)


def test_finished_run_is_extended(tmp_path, invoke):
    out = tmp_path / "run"
    run, _ = train_run(out, {"train.epochs": 2, "train.early_stopping": 5}, finish=True)
    split = run.split_record
    first = run.history()
    result = invoke("train", "--resume", "--epochs", "+3", "--out", out)
    assert result.returncode == 0, result.stderr
    run = Run.open(out)
    rows = run.history()
    assert rows[:2] == first
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["stage"] for row in rows] == [0, 0, 1, 1, 1]
    assert (run.recipe.train.epochs, run.recipe.train.restarts) == (5, "2")
    assert rows[2]["learning_rate"] > rows[1]["learning_rate"]  # the cosine schedule restarts
    assert rows[4]["learning_rate"] < rows[2]["learning_rate"]
    assert run.split_record == split
    assert Run.open(out / "after-2-epochs").metrics["epochs"] == 2
    assert run.metrics["epochs"] == 5

    # An interrupted extension is resumed without adding more epochs.
    train_run(out, {}, resume=True, more_epochs=2, stop_after=6)
    message = error_line(invoke("train", "--resume", "--epochs", "+2", "--out", out))
    assert "is unfinished" in message
    run, _ = train_run(out, {}, resume=True, finish=True)
    assert [row["epoch"] for row in run.history()] == [1, 2, 3, 4, 5, 6, 7]
    assert run.recipe.train.restarts == "2, 5"


def test_extension_starts_at_the_last_epoch_of_a_run_that_ended_early(tmp_path):
    out = tmp_path / "run"
    train_run(out, {"train.epochs": 50, "train.max_hours": 1e-9}, finish=True)
    run, _ = train_run(out, {}, resume=True, more_epochs=2)
    # The first stage has no epochs left, so that the extension does not continue it.
    assert (run.recipe.train.epochs, run.recipe.train.restarts) == (3, "1")


def simulated_recipe(changes):
    """A resolved recipe with several stages, for runs that are not really trained."""
    settings = {"model.weights": "imagenet", "model.arch": "mobilenet_v2", "train.batch_size": 8, "data.input_size": 32}
    settings |= {"data.channels": 3, "data.preprocess_version": 2, "data.white_level": 65535, "model.width": 1.0}
    return Recipe().override(settings | {"train.epochs": 20} | changes)


def simulate_training(run, recipe):
    """Finish a run without training, and return the stage of each epoch. Every epoch takes one second."""
    (run.path / "checkpoints").mkdir(parents=True, exist_ok=True)
    for name in ("labels.txt", "split.json", "metrics.json", "model.keras"):
        (run.path / name).touch()
    (run.path / "recipe.toml").write_text(recipe.to_toml())
    rows = run.history()
    while stage := next_stage(recipe, rows):
        values = {"loss": 1.0, "accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5, "learning_rate": 1.0}
        rows.append(values | {"epoch": len(rows) + 1.0, "seconds": 1.0, "stage": float(stage.number)})
    run.write_history(rows)
    (run.path / "checkpoints" / f"epoch-{len(rows):05}.keras").touch()
    return [row["stage"] for row in rows]


@pytest.mark.parametrize("restarts", ["", "4, 12"])
def test_extension_does_not_continue_a_stage_that_ended_early(tmp_path, restarts):
    run = Run(tmp_path)
    recipe = simulated_recipe({"train.restarts": restarts, "train.max_hours": 10 / 3600})
    before = simulate_training(run, recipe)
    assert len(before) == 10
    extend(run, 3)
    after = simulate_training(run, run.recipe)
    assert len(after) == 13
    assert after[10:] == [after[9] + 1] * 3
    shutil.rmtree(tmp_path / "after-10-epochs")  # the time of earlier extensions does not depend on this folder
    extend(run, 100)
    assert len(simulate_training(run, run.recipe)) == 23  # the limit of 10 s applies only to the added epochs


class KilledError(BaseException):
    """Simulates the end of the process before a file operation."""


def kill_before(monkeypatch, operation):
    """Raise :class:`KilledError` before a file operation, counted from 0, and before all later ones."""
    done = []

    def counted(function):
        def call(*args, **kwargs):
            if len(done) >= operation:
                raise KilledError
            done.append(function)
            return function(*args, **kwargs)

        return call

    for module, name in [(os, "replace"), (os, "rename"), (os, "mkdir"), (os, "rmdir"), (shutil, "copy2")]:
        monkeypatch.setattr(module, name, counted(getattr(module, name)))


def contents(folder):
    """The content of each file in a folder, except temporary files, which the next process deletes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files if ".partial/" not in path.as_posix()}


def test_extension_can_be_killed_before_each_file_operation(tmp_path, monkeypatch):
    recipe = simulated_recipe({"train.max_hours": 10 / 3600})
    run = Run(tmp_path / "run")
    simulate_training(run, recipe)
    for name in ("plots/learning_curves.png", "int8/report.json"):
        (run.path / name).parent.mkdir()
        (run.path / name).touch()
    expected = Run(shutil.copytree(run.path, tmp_path / "expected"))
    extend(expected, 3)
    outcomes = []
    for operation in range(100):
        killed = Run(shutil.copytree(run.path, tmp_path / str(operation)))
        with monkeypatch.context() as patch:
            kill_before(patch, operation)
            try:
                extend(killed, 3)
            except KilledError:
                outcomes.append(killed.finished)
            else:
                break
        if killed.finished:
            assert killed.recipe == recipe
            assert killed.history() == run.history()
            complete_extension(killed)  # does nothing
            extend(killed, 3)
        else:
            complete_extension(killed)
        assert contents(killed.path) == contents(expected.path)
    assert set(outcomes) == {True, False}


def test_interrupted_extension_is_completed_by_a_resume(tmp_path, monkeypatch):
    out = tmp_path / "run"
    run, _ = train_run(out, {"train.epochs": 1}, finish=True)

    def kill(source, target, replace=os.replace):
        replace(source, target)
        if os.path.basename(target) == "metrics.json":
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)
        with pytest.raises(KilledError):
            extend(run, 1)
    assert not run.finished
    train_run(out, {}, resume=True, finish=True)
    assert [row["stage"] for row in Run.open(out).history()] == [0, 1]
    assert Run.open(out / "after-1-epochs").metrics["epochs"] == 1


def test_extension_of_unsuitable_runs_is_refused(first_run, tmp_path, invoke):
    for arguments in (["--epochs", "+3"], ["--resume", "--epochs", "+0"], ["--epochs", "many"]):
        assert invoke("train", *arguments, "--data", "digits", "--out", tmp_path / "run").returncode == 2
    assert "create one with" in error_line(invoke("train", "--resume", "--epochs", "+3", "--out", tmp_path / "run"))
    assert invoke("train", "--resume", "--epochs", "+3", "--width", "2", "--out", first_run.path).returncode == 2
    with pytest.raises(EdgerecError, match="more_epochs must be positive and requires resume=True"):
        fit(first_run.recipe, tmp_path / "run", more_epochs=3)


@pytest.mark.parametrize("text", ["0", "6", "3, 2", "x"])
def test_restarts_out_of_order_are_refused(text, tmp_path):
    with pytest.raises(RecipeError, match=r"train\.restarts is .*, expected increasing epochs below train\.epochs"):
        fit(Recipe().override({"train.epochs": 6, "train.restarts": text}), tmp_path / "run")


def test_stages_of_new_epochs_are_recorded_in_a_run_without_stages(tmp_path):
    # Older versions wrote history.csv without the column "stage".
    keys = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds")
    old = [dict.fromkeys(keys, 1.0) | {"epoch": number} for number in (1.0, 2.0)]
    run = Run(tmp_path)
    run.write_history(old)
    run.write_history([*run.history(), old[0] | {"epoch": 3.0, "stage": 1.0}])
    assert run.history() == [*old, old[0] | {"epoch": 3.0, "stage": 1.0}]


@pytest.mark.parametrize("fractions", [{"frozen": 1.0}, {"frozen": 0.5, "unfreeze": 0.5}])
def test_restart_trains_all_layers_at_the_rate_and_schedule_of_the_recipe(fractions):
    keys = {f"transfer.{name}": value for name, value in fractions.items()}
    settings = {"model.weights": "imagenet", "train.epochs": 12, "train.restarts": "8", "train.schedule": "cosine"}
    last = stages(Recipe().override(settings | keys | {"train.learning_rate": 0.01, "transfer.rate": 0.5}))[-1]
    assert (last.first, last.last, last.trainable_fraction, last.rate, last.schedule) == (8, 12, 1.0, 0.005, "cosine")
