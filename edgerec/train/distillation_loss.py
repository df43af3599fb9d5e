"""Compute the distillation loss for training a student to reproduce its teachers' outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from edgerec.errors import RecipeError
from edgerec.recipe import Recipe
from edgerec.train.precision import in_training_precision
from edgerec.train.run import Run
from edgerec.utils.optional import require

# A distillation loss is a function ``(pixels, student_scores, sample_weights or None) -> loss``.
DistillationLoss = Callable[..., Any]

# Recipe keys whose values must be equal for teacher and student.
_SAME = (
    *("data.source", "data.input_size", "data.channels", "data.fit", "data.interpolation", "data.normalize"),
    "data.preprocess_version",
    *("data.black_level", "data.white_level"),
    *("data.group_by", "data.val_fraction", "data.test_fraction", "seed"),
)


def check_same_data(run: Run, recipe: Recipe) -> None:
    """Raise :class:`RecipeError` if a teacher's preprocessing or split differs from the student's."""
    for key in _SAME:
        theirs, ours = run.recipe.flattened[key], recipe.flattened[key]
        if theirs != ours:
            raise RecipeError(
                f"Cannot use the teacher {run.path}, because its {key} is {theirs!r}, but the student's is {ours!r}: "
                "use the same value for both"
            )


def distillation_loss(recipe: Recipe, labels: Sequence[str]) -> DistillationLoss | None:
    """Return the recipe's distillation loss, or None if ``distill.teachers`` is empty."""
    if not recipe.distill.teachers:
        return None
    runs = [Run.open_classifier(path.strip()) for path in recipe.distill.teachers.split(",")]
    for run in runs:
        check_same_data(run, recipe)
        if run.labels != tuple(labels):
            raise RecipeError(
                f"Cannot use the teacher {run.path}, because its {len(run.labels)} labels differ from the data's "
                "labels: choose a teacher trained on the same classes"
            )
    return teacher_loss([in_training_precision(run.model()) for run in runs], recipe.distill.temperature)


def teacher_loss(models: Sequence[Any], temperature: float = 1.0) -> DistillationLoss:
    """Return a loss function that compares the student's scores with the teachers' mean scores.

    The loss is the Kullback–Leibler divergence of the softened scores, multiplied by the squared temperature. This
    factor keeps the gradient's magnitude comparable to that of the label loss (Hinton, Vinyals and Dean,
    arXiv:1503.02531).

    Args:
        models: the teachers, which take the same pixels and return softmax scores ``(batch, classes)``.
        temperature: softmax temperature; 1 leaves the scores unchanged.
    """
    tf = require("tensorflow")

    def softened(scores: Any) -> Any:
        return tf.nn.log_softmax(tf.math.log(tf.cast(scores, tf.float32) + 1e-7) / temperature)

    def loss(pixels: Any, scores: Any, weights: Any = None) -> Any:
        mean = tf.add_n([tf.cast(model(pixels, training=False), tf.float32) for model in models]) / len(models)
        target, log_scores = softened(mean), softened(scores)
        divergence = tf.reduce_sum(tf.exp(target) * (target - log_scores), axis=-1)
        if weights is not None:
            divergence *= tf.cast(weights, divergence.dtype)
        return temperature**2 * tf.reduce_mean(divergence)

    return loss
