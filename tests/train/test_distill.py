"""Knowledge distillation: a student learns the outputs of its teachers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgerec import Run, ensemble, evaluate, fit
from edgerec.errors import RecipeError
from edgerec.train.distill import student_recipe
from edgerec.train.distillation_loss import distillation_loss


def test_distillation_loss_is_the_divergence_of_softened_scores(run):
    recipe = replace(run.recipe, distill=replace(run.recipe.distill, teachers=str(run.path), temperature=2.0))
    distance = distillation_loss(recipe, run.labels)
    dataset, parts = run.data()
    pixels = recipe.normalize.apply(dataset.images[parts.val[:8]].astype(np.float32))
    scores = np.asarray(run.model()(pixels, training=False), np.float64)
    assert float(distance(pixels, scores.astype(np.float32))) == pytest.approx(0, abs=1e-4)
    other = np.full_like(scores, 0.1)
    soft = (scores + 1e-7) ** 0.5  # exp(log(p) / temperature)
    soft /= soft.sum(axis=1, keepdims=True)
    expected = 4 * (soft * np.log(soft / 0.1)).sum(axis=1).mean()
    assert float(distance(pixels, other.astype(np.float32))) == pytest.approx(expected, rel=1e-3)
    assert distillation_loss(run.recipe, run.labels) is None


def test_student_is_trained_with_the_distillation_loss(run, tmp_path, invoke):
    options = ["--student", "simple_cnn", "--width", "0.25", "--epochs", "3", "--out", tmp_path / "student"]
    result = invoke("distill", "--teacher", run.path, *options)
    assert result.returncode == 0, result.stderr
    student = Run.open(tmp_path / "student")
    assert student.recipe.model.width == 0.25
    assert student.recipe.distill.teachers == str(run.path.resolve())
    assert student.metrics["parameters"] < run.metrics["parameters"] / 4
    # With distill.weight 0, the training is the same as without a teacher.
    alone = student_recipe([run.path], "simple_cnn").override({"train.epochs": 1, "distill.weight": 0.0})
    plain = replace(alone, distill=replace(alone.distill, teachers=""))
    both = [fit(recipe, tmp_path / str(number)).history()[0] for number, recipe in enumerate((alone, plain))]
    assert both[0]["val_loss"] == pytest.approx(both[1]["val_loss"], abs=1e-4)


def test_teacher_with_other_preprocessing_or_split_is_refused(run, tmp_path):
    recipe = student_recipe([run.path], "simple_cnn")
    for key, value in (("data.normalize", "signed"), ("seed", 7)):
        with pytest.raises(RecipeError, match=f"its {key} is .*, but the student's is"):
            fit(recipe.override({key: value}), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    with pytest.raises(RecipeError, match="requires at least one teacher"):
        student_recipe([], "simple_cnn")


def test_ensemble_of_runs_has_high_accuracy(run, bundle, tmp_path):
    from edgerec import quantize

    quantize(run, "ptq", overwrite=True)  # the ensemble needs an int8 variant, which may differ from the bundle's
    other = fit(run.recipe.override({"seed": 3, "train.epochs": 1}), tmp_path / "other")
    quantize(other, "ptq", max_drop=100)
    report = ensemble([bundle, other.path], tmp_path / "both")
    assert report.models == 2
    assert evaluate(tmp_path / "both", "digits").accuracy > 0.8
