"""Tests of `edgerec build`, `edgerec runs` and `edgerec diff`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgerec import Recipe, Run, build, diff_runs, list_runs, verify
from edgerec.cli.build import default_run
from edgerec.errors import EdgerecError, GateError, OutputExistsError, RecipeError

RECIPE = Recipe.from_dict(
    {"data": {"source": "digits"}, "train": {"epochs": 3}, "compress": {"method": "ptq", "max_drop": 20.0}}
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("build")
    return build(RECIPE, folder / "digits", "rpi")


@pytest.mark.slow
def test_build_creates_a_verified_bundle_and_a_report(built):
    assert verify(built.bundle).exact
    assert built.variant == "int8"
    assert "<html" in Path(built.page).read_text(encoding="utf-8")[:500]
    assert built.reused == ()
    assert built.top1 > 0.5


@pytest.mark.slow
def test_build_reuses_finished_steps(built):
    history = Run.open(built.run).history()
    second = build(RECIPE, built.run, "rpi")
    assert second.reused == ("train", "quantize", "export")
    assert Run.open(built.run).history() == history


@pytest.mark.slow
def test_build_continues_an_interrupted_training(built, tmp_path):
    run = tmp_path / "digits"
    shutil.copytree(built.run, run)
    for name in ("metrics.json", "model.keras"):
        (run / name).unlink()
    shutil.rmtree(run / "int8")
    for_desktop = build(RECIPE, run, "desktop")
    assert for_desktop.reused == ()
    assert for_desktop.bundle == str(tmp_path / "digits-desktop")
    assert [row["epoch"] for row in Run.open(run).history()] == [1, 2, 3]


@pytest.mark.slow
def test_build_refuses_a_run_of_another_recipe_and_a_bundle_of_another_model(built, tmp_path):
    other_recipe = RECIPE.override({"train.epochs": 4})
    with pytest.raises(RecipeError, match=r"train\.epochs"):
        build(other_recipe, built.run, "rpi")
    run = tmp_path / "digits"
    shutil.copytree(built.run, run)
    shutil.copytree(built.bundle, tmp_path / "digits-rpi")
    with pytest.raises(OutputExistsError, match="bundle with another model"):
        build(RECIPE, run, "rpi", method="float16")


@pytest.mark.slow
def test_build_accepts_other_compression_settings_for_a_trained_run(built, tmp_path):
    run = tmp_path / "digits"
    shutil.copytree(built.run, run)
    report = json.loads((run / "int8" / "report.json").read_text())
    report["forms"][-1]["top1"] = report["forms"][0]["top1"] - 0.1
    (run / "int8" / "report.json").write_text(json.dumps(report))
    with pytest.raises(GateError, match=r"loses 10\.00 percentage points"):
        build(RECIPE.override({"compress.max_drop": 5.0}), run, "rpi")
    # The next call allows more, as the error suggests.
    with_other_drop = build(RECIPE.override({"compress.max_drop": 15.0}), run, "rpi")
    assert with_other_drop.reused == ("train", "quantize")
    calibration = tmp_path / "seven.toml"
    calibration.write_text("images = 7\n")
    with pytest.raises(OutputExistsError, match="created with calibration stratified"):
        build(RECIPE.override({"compress.calibration": str(calibration)}), run, "rpi")
    pruning = {"compress.method": "prune", "compress.schedule": "constant", "compress.clusters": 8}
    with_other_drop = build(
        RECIPE.override({**pruning, "compress.epochs": 1, "compress.max_drop": 100.0}), run, "desktop"
    )
    assert (with_other_drop.variant, with_other_drop.reused) == ("int8-pruned", ("train",))


@pytest.mark.slow
def test_build_command_names_the_run_and_advises_to_improve_a_model_that_learned_nothing(
    tmp_path, monkeypatch, invoke, brief_training
):
    """Labels that have nothing to do with the images cannot be learned."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (120, 8, 8), np.uint8), np.arange(120) % 4
    np.savez("noise.npz", x_train=images, y_train=labels)
    settings = ("--method", "ptq", "--set", "model.width=0.25")
    command = ("build", "noise.npz", "--epochs", "1", "--arch", "simple_cnn", "--max-drop", "100", *settings)
    result = invoke(*command)
    assert result.returncode == 0, result.stderr
    assert "next     run 'edgerec data check'" in result.stdout
    assert "copy" not in result.stdout
    assert Path("runs/noise-rpi/manifest.json").is_file()
    again = invoke(*command, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["run"] == "runs/noise"


@pytest.mark.parametrize("data", ["digits", "digits.npz", "digits.toml", "photos/digits/"])
def test_build_names_the_run_after_the_data(data):
    assert default_run(data) == Path("runs/digits")


def test_build_refuses_an_unknown_target_and_an_autoencoder_before_training(tmp_path):
    with pytest.raises(EdgerecError, match="rpl"):
        build(RECIPE, tmp_path / "x", "rpl")
    with pytest.raises(RecipeError, match="is not a classifier"):
        build(RECIPE.override({"model.arch": "autoencoder"}), tmp_path / "x", "rpi")
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_runs_lists_finished_unfinished_and_damaged_runs(built, tmp_path, invoke):
    shutil.copytree(built.run, tmp_path / "a" / "finished")
    shutil.copytree(built.run, tmp_path / "b")
    (tmp_path / "b" / "metrics.json").unlink()
    shutil.copytree(built.run, tmp_path / "c")
    (tmp_path / "c" / "metrics.json").write_text("{")
    shutil.copytree(built.run, tmp_path / ".hidden")
    rows = list_runs(tmp_path)
    assert [row.run for row in rows] == [str(tmp_path / name) for name in ("a/finished", "b", "c")]
    assert [row.state.partition(":")[0] for row in rows] == ["finished", "epoch 3 of 3", "damaged"]
    assert rows[0].variant == "int8"
    assert rows[0].variant_top1 == built.top1
    result = invoke("runs", tmp_path, "--json")
    assert json.loads(result.stdout) == [row.to_dict() for row in rows]
    assert "damaged" in invoke("runs", tmp_path).stdout
    assert "contains no runs" in invoke("runs", tmp_path / "a" / "finished" / "plots").stdout


@pytest.mark.slow
def test_diff_reports_settings_results_and_whether_the_change_is_significant(built, tmp_path, invoke):
    shutil.copytree(built.run, tmp_path / "second")
    second = tmp_path / "second"
    text = (second / "recipe.toml").read_text()
    (second / "recipe.toml").write_text(text.replace("epochs = 3", "epochs = 9", 1))
    metrics = json.loads((second / "metrics.json").read_text())
    (second / "metrics.json").write_text(json.dumps(metrics | {"accuracy": metrics["accuracy"] - 0.5}))
    difference = diff_runs(built.run, second)
    assert [(item.key, item.first, item.second) for item in difference.settings] == [("train.epochs", 3, 9)]
    assert difference.same_data
    assert difference.same_test
    assert difference.accuracy_change == pytest.approx(-50)
    assert 0 < difference.noise_points < 10
    assert " points: statistically significant" in invoke("diff", built.run, second).stdout
    assert "no change" in invoke("diff", built.run, built.run).stdout
    assert json.loads(invoke("diff", built.run, second, "--json").stdout) == json.loads(
        json.dumps(difference.to_dict())
    )


@pytest.mark.slow
def test_diff_warns_about_different_test_images(built, tmp_path, invoke):
    shutil.copytree(built.run, tmp_path / "second")
    record = json.loads((tmp_path / "second" / "split.json").read_text())
    # Other images with the same names.
    contents = record["contents"] | {"test": "0" * 16 + record["contents"]["test"][16:]}
    (tmp_path / "second" / "split.json").write_text(json.dumps(record | {"contents": contents}))
    assert not diff_runs(built.run, tmp_path / "second").same_test
    assert "cannot be compared" in invoke("diff", built.run, tmp_path / "second").stdout
