"""Tests of tuning: search space, cost of a trial, interrupted and shared studies, and invalid arguments."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from edgerec import Recipe, Run, fit, tune
from edgerec.cli.app import app
from edgerec.compress.calibration import pin_range
from edgerec.compress.convert import plain_names, to_int8
from edgerec.errors import EdgerecError, ModelError, OutputExistsError, RecipeError, StudyError, TrainError
from edgerec.tflite.metadata import with_metadata
from edgerec.tflite.pi_latency import estimated_ms
from edgerec.tuning.plan import Plan, refuse_other_settings
from edgerec.tuning.results import TrialRow, best_of
from edgerec.tuning.search_space import Choices, Numbers, applied, default_space, own_point, read_space, to_toml
from edgerec.tuning.storage import make_sampler
from edgerec.tuning.trial_cost import Cost, Limits, measure
from tests import database
from tests.conftest import error_line

optuna = pytest.importorskip("optuna")

SEARCH = {
    "train.learning_rate": {"low": 0.001, "high": 0.01, "log": True},
    "model.width": [0.25, 2.0],
    "augment": {"low": 0, "high": 2},
}
GOALS = {"objectives": ("accuracy", "bytes"), "limit_bytes": 100_000, "search": SEARCH}


@pytest.fixture(scope="module")
def digits_npz(tmp_path_factory) -> Path:
    """Return the path of a data set of 60 digits, 28×28, with the classes even and odd."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.kron(digits.images[:60], np.ones((4, 4)))[:, 2:-2, 2:-2] * 15
    path = tmp_path_factory.mktemp("digits") / "even.npz"
    np.savez(path, x_train=images.astype(np.uint8), y_train=digits.target[:60] % 2)
    return path


@pytest.fixture(scope="module")
def base(digits_npz) -> Recipe:
    """Return a recipe that trains a narrow network on these images for one epoch."""
    return Recipe().override({"data.source": str(digits_npz), "train.epochs": 1, "model.width": 0.25})


@pytest.fixture(scope="module")
def study(base, tmp_path_factory):
    """Return a finished study with two trained trials. The first trial, the recipe itself, exceeds the limit.

    Tests must not change this study.
    """
    return tune(wide(base), tmp_path_factory.mktemp("study") / "even", trials=2, **GOALS)


def wide(recipe: Recipe) -> Recipe:
    return recipe.override({"model.width": 2.0})


# Search space


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.learning_rat", [1], "unknown recipe key 'train.learning_rat'; did you mean 'train.learning_rate'"),
        ("train.learning_rate", {"low": 0.1, "hihg": 1}, "unknown bound 'hihg'; did you mean 'high'"),
        ("train.learning_rate", {"low": 0.1}, "train.learning_rate has no high"),
        ("train.learning_rate", {"low": 1, "high": 0.1}, "low is 1, expected less than high (0.1)"),
        ("train.learning_rate", {"low": 0.1, "high": 20}, "train.learning_rate is 20.0, expected 1e-08 to 10"),
        ("train.learning_rate", {"low": math.nan, "high": 1}, "train.learning_rate is nan"),
        ("train.learning_rate", {"low": "a", "high": 1}, "low is 'a', expected a number"),
        ("train.learning_rate", {"low": 0.1, "high": 1, "log": 1}, "'log' must be true or false, got 1"),
        ("train.learning_rate", {"low": 0.1, "high": 1, "log": True, "step": 0.1}, "log and step cannot be combined"),
        ("model.dropout", {"low": 0, "high": 0.5, "log": True}, "low is 0, expected more than 0 with log"),
        ("model.width", {"low": 0.25, "high": 1, "step": 0}, "step is 0, expected more than 0 and at most 0.75"),
        ("train.batch_size", {"low": 16.5, "high": 64}, "low is 16.5, expected an integer"),
        ("model.arch", {"low": 1, "high": 2}, "model.arch is not a number and cannot have a range: use a list"),
        ("model.arch", ["resnet8", "resnet9"], "unknown architecture 'resnet9'; did you mean 'resnet8'"),
        ("model.width", [], "model.width must have at least one choice"),
        ("model.width", [0.5, 1, 1.0], "the choice 1.0 of model.width is listed twice"),
        ("model.width", 0.5, "model.width is 0.5, expected { low"),
        ("data.val_fraction", [0.1, 0.2], "all trials must be compared on the same images"),
        ("seed", [1, 2], "all trials must be compared on the same images"),
        ("compress.sparsity", [0.1, 0.2], "affects only compression, but a study compares trained models"),
        ("augment", {"low": 0, "high": 10}, "with augment = 10, augment.shift is 1.0, expected 0 to 0.5"),
        ("augment", {"low": -1, "high": 1}, "augment is -1.0, but the factor must be at least 0"),
    ],
)
def test_invalid_search_is_refused_with_its_key(key, value, message):
    with pytest.raises(RecipeError) as error:
        read_space({key: value}, Recipe())
    assert message in str(error.value)
    assert str(error.value).startswith("search: ")


def test_search_file_is_unchanged_by_reading_and_writing(tmp_path):
    path = tmp_path / "search.toml"
    path.write_text(
        "augment = { low = 0, high = 1.5 }\ntrain.learning_rate = { low = 1e-4, high = 1e-2, log = true }\n"
        '[model]\narch = ["resnet8"]\nwidth = { low = 0.25, high = 1, step = 0.25 }\n'
    )
    space = read_space(path, Recipe())
    assert space == {
        "augment": Numbers(0.0, 1.5),
        "train.learning_rate": Numbers(1e-4, 1e-2, log=True),
        "model.arch": Choices(("resnet8",)),
        "model.width": Numbers(0.25, 1.0, step=0.25),
    }
    path.write_text(to_toml(space))
    assert read_space(path, Recipe()) == space
    for text, message in (("a =", "is not TOML"), ("", "has no hyperparameters to tune")):
        path.write_text(text)
        with pytest.raises(RecipeError, match=message):
            read_space(path, Recipe())
    with pytest.raises(RecipeError, match="does not exist"):
        read_space(tmp_path / "none.toml", Recipe())


def test_default_search_contains_the_recipe_itself():
    resolved = {"model.arch": "simple_cnn", "model.width": 1.0, "model.weights": "none"}
    resolved |= {"data.input_size": 96, "data.channels": 3, "train.batch_size": 48}
    recipe = Recipe().override(resolved)
    space = default_space(recipe, 1000)
    assert own_point(recipe, space) == {
        "train.learning_rate": 0.002,
        "train.batch_size": 48,
        "augment": 1.0,
        "model.width": 1.0,
        "model.arch": "simple_cnn",
        "data.input_size": 96,
    }
    assert space["data.input_size"].values == (48, 72, 96)
    pretrained = recipe.override({"model.weights": "imagenet", "model.arch": "mobilenet_v2"})
    assert not {"model.arch", "model.width", "data.input_size"} & set(default_space(pretrained, 1000))


def test_parameters_are_applied_to_the_recipe():
    recipe = applied(Recipe(), {"augment": 0.5, "model.width": 0.25, "train.batch_size": 32})
    assert recipe.augment.rotate_deg == 5
    assert recipe.augment.shift == 0.05
    assert (recipe.model.width, recipe.train.batch_size) == (0.25, 32)


def test_sampler_repeats_the_parameters_after_a_resume():
    def value(trial):
        x, kind = trial.suggest_float("x", -3, 3), trial.suggest_categorical("kind", ["a", "b"])
        return x * x + (kind == "b")

    def drawn_parameters(*numbers: int) -> list[dict]:
        storage = optuna.storages.InMemoryStorage()
        for count in numbers:
            created = optuna.create_study(
                storage=storage, study_name="one", sampler=make_sampler(seed), load_if_exists=True
            )
            created.optimize(value, n_trials=count)
        return [trial.params for trial in created.trials]

    seed = 3
    uninterrupted = drawn_parameters(14)  # TPE draws the first ten trials at random, and the others from their results
    assert drawn_parameters(4, 10) == uninterrupted
    seed = 4
    assert drawn_parameters(3) != uninterrupted[:3]


# Cost of a trial


def test_estimates_match_the_published_times():
    assert estimated_ms(550.3e6, 18.46e6) == pytest.approx(24, rel=0.01)
    assert estimated_ms(278.8e6, 22.65e6) == pytest.approx(17, rel=0.01)


def test_cost_is_that_of_the_int8_file(base):
    complete = base.override({"data.input_size": 28, "data.channels": 1, "model.arch": "simple_cnn"})
    cost = measure(complete, ("even", "odd"), "rpi", Limits())
    convolution, dense = 26 * 26 * 8 * 9 + 11 * 11 * 16 * 9 * 8, 5 * 5 * 16 * 16 + 16 * 2
    # Elements that two poolings, the quantization of the input, the softmax and its quantization read.
    memory_bound = 26 * 26 * 8 + 11 * 11 * 16 + 28 * 28 + 2 + 2
    assert cost.macs == convolution + dense
    assert cost.ms == pytest.approx(estimated_ms(convolution, dense + memory_bound), rel=1e-3)
    assert cost.parameters < cost.bytes < 4 * cost.parameters
    assert 26 * 26 * 8 < cost.memory < 28 * 28 + 26 * 26 * 8 + 13 * 13 * 8 + 1000


def test_exceeded_limits_are_described():
    cost = Cost(ms=38.2, bytes=200_000, memory=1000, macs=1, parameters=1)
    assert Limits(ms=20, bytes=250_000).exceeded(cost) == "38.2 ms (limit 20)"
    assert Limits(ms=40, bytes=100_000, memory=10).exceeded(cost) == (
        "200,000 bytes (limit 100,000), 1,000 bytes of memory (limit 10)"
    )
    assert Limits(ms=40).exceeded(cost) == ""
    assert Limits(ms=19.1).excess(cost) == {"ms": pytest.approx(1)}


def test_best_trials_are_the_pareto_front():
    def best(directions, *values):
        study = optuna.create_study(directions=directions)
        for accuracy, *costs in values:
            attributes = {"accuracy": accuracy, "refused": accuracy is None}
            state = optuna.trial.TrialState.COMPLETE if accuracy else optuna.trial.TrialState.PRUNED
            numbers = None if accuracy is None else [accuracy, *costs]
            study.add_trial(optuna.trial.create_trial(state=state, values=numbers, user_attrs=attributes))
        return [trial.number for trial in best_of(study)]

    trials = [(0.8, 1), (0.9, 3), (0.8, 2), (None, 1), (0.9, 3)]
    assert best(["maximize", "minimize"], *trials) == [1, 0]
    assert best(["maximize"], *((accuracy,) for accuracy, _ in trials)) == [1]
    assert best(["maximize"], (None,)) == []


# Studies


def test_trial_that_exceeds_a_limit_is_not_trained(study):
    refused = [trial for trial in study.trials if trial.state == "refused"]
    assert study.counts == {"complete": 2, "refused": len(refused)}
    assert refused[0].number == 0
    for trial in refused:
        assert "(limit 100,000)" in trial.reason
        assert trial.epochs == 0
        assert trial.params["model.width"] == 2
    assert all(trial.bytes <= 100_000 for trial in study.trials if trial.state == "complete")


def test_study_folder_contains_trials_plot_and_recipes(study, base):
    folder = Path(study.folder)
    with open(folder / "trials.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["number"]) for row in rows] == list(range(len(study.trials)))
    assert [float(row["model.width"]) for row in rows] == [trial.params["model.width"] for trial in study.trials]
    best = Recipe.from_toml(folder / "best.toml")
    assert best.model.width == study.best[0].params["model.width"]
    assert best.train.epochs == base.train.epochs
    front = sorted(path.name for path in (folder / "pareto").iterdir())
    assert front == sorted(f"trial-{trial.number:05d}.toml" for trial in study.best)
    assert sorted(path.name for path in (folder / "trials").iterdir()) == sorted(
        str(trial.number) for trial in study.best
    )
    assert cv2.imread(study.plot).std() > 5
    assert json.loads(json.dumps(study.to_dict()))["best"][0]["number"] == study.best[0].number
    assert not [path for path in folder.rglob("*") if "partial" in path.name]


def test_test_images_are_evaluated_only_after_the_study(study, tmp_path):
    best_run = Path(study.kept[0])
    assert not list(Path(study.folder).rglob("metrics.json"))
    assert not list(best_run.rglob("confusion_matrix.png"))
    shutil.copytree(best_run, tmp_path / "run")
    finished = fit(Recipe(), tmp_path / "run", resume=True)
    assert finished.metrics["images"] == len(finished.split_record["test"])
    assert finished.metrics["val_accuracy"] == pytest.approx(study.best[0].accuracy)
    # The size that was measured before training is that of the trained model.
    dataset, _ = finished.data()
    recipe = finished.recipe
    content = to_int8(finished.model(), recipe.normalize.apply(pin_range(dataset.images[:4]).astype(np.float32)))
    content = with_metadata(plain_names(content), finished.labels, recipe.normalize, recipe.model.arch)
    assert abs(len(content) - study.best[0].bytes) < 64


def test_resumed_study_has_the_same_result(study, base, tmp_path):
    out = tmp_path / "even"

    def stop(step):
        if step.stage == "training":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        tune(wide(base), out, listener=stop, **GOALS)
    with pytest.raises(OutputExistsError, match="contains a study: add --resume"):
        tune(wide(base), out, **GOALS)
    resumed = tune(None, out, trials=1, keep="none", resume=True)
    lost = next(trial for trial in resumed.trials if trial.state == "failed")
    assert lost.reason == "interrupted"
    again = resumed.trials[lost.number + 1]
    assert (again.state, again.params) == ("complete", lost.params)
    assert not list((out / "trials").iterdir())
    # The trials are those of the uninterrupted study, except that the interrupted trial was repeated.
    assert [trial.params for trial in resumed.trials[: lost.number]] == [
        trial.params for trial in study.trials[: lost.number]
    ]
    assert again.params == study.trials[lost.number].params
    assert again.accuracy == pytest.approx(study.trials[lost.number].accuracy, abs=1e-6)


@pytest.fixture
def constant_costs(monkeypatch):
    """Replace the measurement of costs by a constant, for tests that do not depend on costs."""
    monkeypatch.setattr("edgerec.tuning.trial.measure", lambda *_: Cost(1.0, 1, 1, 1, 1))


def test_trial_is_stopped_by_pruner_and_time_limit(base, tmp_path, constant_costs):
    from edgerec.tuning.trial import Objective, TimeLimitError

    class AlwaysPrune(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return True

    recipe = base.override({"train.epochs": 3, "data.input_size": 28, "data.channels": 1, "train.batch_size": 16})
    plan = Plan(recipe, {"model.width": Choices((0.1,))}, ("accuracy",), Limits(), "this", "median", "")
    created = optuna.create_study(direction="maximize", pruner=AlwaysPrune())
    run = Objective(plan, tmp_path, ("even", "odd"), math.inf, True, lambda step: None)
    created.optimize(run, n_trials=2)
    stopped, same = map(TrialRow.of, created.trials)
    assert (stopped.state, stopped.epochs) == ("pruned", 1)
    assert stopped.reason == "stopped by the pruner after epoch 1"
    assert stopped.accuracy == Run(tmp_path / "trials" / "0").history()[0]["val_accuracy"]
    assert (same.state, same.reason) == ("pruned", "same parameters as trial 0")
    assert not (tmp_path / "trials" / "1").exists()
    expired = Objective(plan, tmp_path / "late", ("even", "odd"), 0.0, False, lambda step: None)
    created = optuna.create_study(direction="maximize")
    with pytest.raises(TimeLimitError):
        created.optimize(expired, n_trials=1)
    ended, again = map(TrialRow.of, created.trials)
    assert (ended.state, ended.epochs, ended.reason) == ("failed", 1, "time limit of the study reached")
    assert again.state == "waiting"


def test_study_continues_after_a_nan_loss(base, tmp_path, monkeypatch, constant_costs):
    problems = [ModelError("its weights do not fit"), TrainError("the loss became nan in epoch 1: lower it")]

    def broken(*_, **__):
        raise problems.pop(0)

    monkeypatch.setattr("edgerec.tuning.trial.fit", broken)
    report = tune(base, tmp_path / "nan", trials=1, search={"train.learning_rate": {"low": 0.001, "high": 1}})
    assert [trial.reason for trial in report.trials] == ["its weights do not fit", "the loss became nan in epoch 1"]
    assert [trial.state for trial in report.trials] == ["refused", "pruned"]
    assert (report.best, report.plot) == ((), "")


def test_study_continues_after_a_trial_was_marked_as_failed(base, tmp_path, monkeypatch, constant_costs, caplog):
    """This happens if a machine was suspended, so that another process received no heartbeats and ended the trial."""
    url = f"sqlite:///{tmp_path / 'sleepy' / 'study.db'}"

    def fail_in_database(*_, **__):
        created = optuna.load_study(study_name="sleepy", storage=url)
        if len(created.trials) == 1:
            created.tell(0, state=optuna.trial.TrialState.FAIL)
        raise TrainError("the loss became nan in epoch 1: lower train.learning_rate")

    monkeypatch.setattr("edgerec.tuning.trial.fit", fail_in_database)
    monkeypatch.setattr(logging.getLogger("edgerec"), "propagate", True)
    report = tune(base, tmp_path / "sleepy", trials=1, search={"train.learning_rate": {"low": 0.001, "high": 1}})
    assert report.counts == {"failed": 1, "pruned": 1}
    assert "another process marked the trial as failed" in caplog.text


def test_study_ends_if_no_trial_meets_the_limits(base, tmp_path, monkeypatch):
    monkeypatch.setattr("edgerec.tuning.trial_loop.MAX_REFUSED", 3)
    with pytest.raises(StudyError, match=r"3 consecutive trials were refused.*\(limit 10\): raise the limits"):
        tune(base, tmp_path / "tight", limit_bytes=10, search=SEARCH)
    assert (tmp_path / "tight" / "trials.csv").read_text().count("refused") == 3
    assert not (tmp_path / "tight" / "trials").exists()


# Errors


def test_study_with_other_settings_is_refused(study, base, tmp_path, digits_npz):
    with pytest.raises(StudyError, match=r"another recipe or search space: train\.epochs is 1, but now 2"):
        tune(base.override({"train.epochs": 2}), study.folder, resume=True, **GOALS)
    with pytest.raises(StudyError, match="limit bytes is 100000, but now 90000"):
        tune(base, study.folder, resume=True, **GOALS | {"limit_bytes": 90000})
    with np.load(digits_npz) as arrays:
        np.savez(tmp_path / "others.npz", x_train=arrays["x_train"] // 2, y_train=arrays["y_train"])
    with pytest.raises(StudyError, match="was created for other images"):
        tune(base.override({"data.source": str(tmp_path / "others.npz")}), study.folder, resume=True, **GOALS)
    with pytest.raises(StudyError, match=r"was created for milliseconds on A \(x\), but this machine is B"):
        refuse_other_settings({"machine": "A (x)"}, {"machine": "B (x)"}, "study 'a'")
    # A study of a version without this key is equivalent to a study with the default value.
    refuse_other_settings({}, {"train.epochs": Recipe().train.epochs}, "study 'a'")


def test_folder_with_other_files_is_not_changed(base, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="exists but is not a study: choose another name"):
        tune(base, tmp_path)
    with pytest.raises(EdgerecError, match=r"thesis\.txt has a file suffix"):
        tune(base, tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_study_of_another_program_is_refused(study, base, tmp_path):
    shutil.copytree(study.folder, tmp_path / "even")
    url = f"sqlite:///{tmp_path / 'even' / 'study.db'}"
    optuna.delete_study(study_name="even", storage=url)
    created = optuna.create_study(study_name="even", storage=url)
    created.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(StudyError, match="was not created by edgerec"):
        tune(None, tmp_path / "even", resume=True)


@pytest.mark.parametrize(("name", "message"), [("study.json", "is damaged"), ("study.db", "file is not a database")])
def test_damaged_study_is_refused(study, tmp_path, name, message):
    shutil.copytree(study.folder, tmp_path / "study")
    (tmp_path / "study" / name).write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(StudyError, match=message):
        tune(None, tmp_path / "study", resume=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--objective", "accuracy,mss"], "unknown objective 'mss'; did you mean 'ms'"),
        (["--objective", "bytes"], "does not include accuracy"),
        (["--on", "pi"], "unknown device for --on 'pi'; did you mean 'rpi'"),
        (["--pruner", "medium"], "unknown pruner 'medium'; did you mean 'median'"),
        (
            ["--objective", "accuracy,ms", "--pruner", "median"],
            "supports only one objective, but the study has 2 objectives",
        ),
        (["--limit-ms", "0"], "--limit-ms must be finite and greater than 0, got 0"),
        (["--trials", "0"], "--trials must be greater than 0, got 0"),
        (["--keep", "some"], "unknown keep 'some'"),
        (["--resume"], "it is not a study: start a study with edgerec tune without --resume"),
        (
            ["--storage", "mysql://me:secret@host/base"],
            "must be the URL of a PostgreSQL database: postgresql://USER@HOST/DATABASE",
        ),
        (
            ["--storage", "postgresql://me:secret@127.0.0.1:1/base"],
            "postgresql://127.0.0.1:1/base cannot be used",
        ),
    ],
)
def test_invalid_arguments_are_refused(digits_npz, tmp_path, arguments, message):
    result = CliRunner().invoke(app, ["tune", "--data", str(digits_npz), "--out", str(tmp_path / "study"), *arguments])
    assert result.exit_code == 1, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "secret" not in result.output
    assert not (tmp_path / "study" / "study.json").exists()


def test_tune_command_resumes_a_study_and_prints_its_best_trials(study, edgerec, tmp_path):
    shutil.copytree(study.folder, tmp_path / "even")
    arguments = ["tune", "--resume", "--trials", "2", "--out", str(tmp_path / "even")]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["counts"] == study.counts
    assert [trial["number"] for trial in summary["best"]] == [trial.number for trial in study.best]
    shown = CliRunner().invoke(app, arguments).stdout
    assert f"{study.best[0].accuracy:.2%}" in shown
    assert f"edgerec train --resume --out {tmp_path / 'even' / 'trials' / str(study.best[0].number)}" in shown
    (tmp_path / "none.toml").write_text("model.width = 3")
    message = error_line(
        edgerec("tune", "--data", "digits", "--out", tmp_path / "x", "--search", tmp_path / "none.toml")
    )
    assert "none.toml: model.width is 3, expected {" in message


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning", "ignore:Heartbeat of storage")
def test_killed_trial_is_repeated_after_a_resume(base, tmp_path, monkeypatch, constant_costs):
    search = {"train.learning_rate": {"low": 0.001, "high": 1}}
    monkeypatch.setattr("edgerec.tuning.trial.Objective._train", lambda *_: 0.5)
    tune(base, tmp_path / "study", trials=1, search=search)
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study' / 'study.db'}", heartbeat_interval=1)
    killed = optuna.load_study(study_name="study", storage=storage).ask()
    learning_rate = killed.suggest_float("train.learning_rate", 0.001, 1)
    storage.record_heartbeat(killed._trial_id)
    storage.engine.dispose()
    # Without a shared database, no other process can be running this trial, so that its last heartbeat does not matter.
    report = tune(None, tmp_path / "study", trials=2, resume=True)
    assert report.counts == {"complete": 2, "failed": 1}
    assert report.trials[2].params == {"train.learning_rate": learning_rate}


def test_unchanged_recipe_is_tried_until_its_trial_is_not_killed(base, tmp_path, monkeypatch, constant_costs, caplog):
    search = {"train.learning_rate": {"low": 0.001, "high": 1}}
    out = tmp_path / "study"
    # SystemExit ends the process without a result, as if the process was killed.
    monkeypatch.setattr("edgerec.tuning.trial.Objective._train", lambda *_: sys.exit(1))
    for attempt in range(4):
        with pytest.raises(SystemExit):
            tune(
                None if attempt else base, out, trials=2, resume=attempt > 0, **({} if attempt else {"search": search})
            )
    monkeypatch.setattr("edgerec.tuning.trial.Objective._train", lambda *_: 0.5)
    report = tune(None, out, trials=2, resume=True)
    own, other = [trial.params for trial in report.trials if trial.state == "complete"]
    assert own == {"train.learning_rate": base.train.learning_rate} != other
    assert all(trial.params == own for trial in report.trials if trial.state == "failed")
    assert "the unchanged recipe is tried again, because its trial was killed 4 times" in caplog.text


# Shared studies


@pytest.mark.nightly
def test_killed_process_loses_one_trial_of_a_shared_study(base, tmp_path):
    """The other process detects the missing heartbeats, marks the trial as failed, and tries its parameters again."""
    if reason := database.unavailable_reason():
        pytest.skip(reason)
    with database.postgresql() as server:
        options = {"storage": server.address, "heartbeat_s": 1}
        shared = {"study": "shared", "search": {"train.learning_rate": SEARCH["train.learning_rate"]}, **options}
        other = _other_process(base, tmp_path, shared)
        killed = threading.Event()

        def kill(step):
            if step.stage == "training" and not killed.is_set():
                other.kill()
                killed.set()

        try:
            _suspend_in_second_trial(other, tmp_path / "other" / "trials")
            tune(base, tmp_path / "ours", trials=3, listener=kill, **shared)
            time.sleep(7)  # heartbeats are sent every second, and six missing heartbeats are tolerated
            report = tune(None, tmp_path / "ours", trials=4, resume=True, **options)
            with pytest.raises(StudyError, match=r"train\.epochs is 1, but now 2"):
                tune(base.override({"train.epochs": 2}), tmp_path / "third", **shared)
            with pytest.raises(StudyError, match=r"cannot be used as the study's database: .*connection"):
                tune(None, tmp_path / "ours", trials=5, resume=True, listener=lambda _: server.kill(), **options)
        finally:
            other.kill()
            stderr = other.communicate(timeout=30)[1]
    assert killed.is_set()
    assert report.counts == {"complete": 4, "failed": 1}
    lost = next(trial for trial in report.trials if trial.state == "failed")
    assert (lost.number, lost.reason) == (1, "the process was interrupted or killed")
    complete = [trial.params["train.learning_rate"] for trial in report.trials if trial.state == "complete"]
    assert lost.params["train.learning_rate"] in complete
    assert len(set(complete)) == 4
    assert not [path for path in tmp_path.rglob("*.json") if database.PASSWORD in path.read_text()]
    assert database.PASSWORD not in json.dumps(report.to_dict()) + stderr


def _other_process(recipe: Recipe, folder: Path, options: dict) -> subprocess.Popen:
    (folder / "recipe.toml").write_text(recipe.to_toml())
    code = f"import edgerec; edgerec.tune(edgerec.Recipe.from_toml('recipe.toml'), 'other', **{options!r})"
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, stderr=subprocess.PIPE, text=True)


def _suspend_in_second_trial(process: subprocess.Popen, folder: Path) -> None:
    deadline = time.monotonic() + 180
    while not (folder / "1" / "recipe.toml").exists() or (folder / "1" / "history.csv").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
