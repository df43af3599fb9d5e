"""Class weights of images with and without mixup or cutmix, on one device and on two."""

from __future__ import annotations

import numpy as np
import pytest

from edgerec import Recipe
from edgerec.data import load, split_dataset
from edgerec.train.input_pipeline import Replicas, training_batches


@pytest.fixture(scope="module")
def unbalanced(tmp_path_factory):
    """Three classes with 60, 30 and 10 training images."""
    path = tmp_path_factory.mktemp("data") / "unbalanced.npz"
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(3), (60, 30, 10))
    images, minority = rng.integers(0, 256, (100, 8, 8), np.uint8), rng.integers(0, 256, (12, 8, 8), np.uint8)
    np.savez(
        path,
        x_train=images,
        y_train=classes,
        x_val=minority,
        y_val=np.arange(12) % 3,
        x_test=~minority,
        y_test=np.arange(12) % 3,
    )
    return Recipe().override(
        {
            "data.source": str(path),
            "model.arch": "vgg_small",
            "model.width": 0.25,
            "train.epochs": 1,
            "train.batch_size": 20,
            "train.class_weights": "balanced",
        }
    )


EXPECTED = np.array([100 / 180, 100 / 90, 100 / 30])


def batches(recipe, replicas=Replicas(), count=5):
    dataset, section = load(recipe.data, least_size_px=8)
    parts = split_dataset(dataset, section, recipe.seed)
    return [
        [part.numpy() for part in batch]
        for batch in training_batches(dataset, parts.train, recipe, replicas, first_epoch=0).take(count)
    ]


def test_each_image_has_the_weight_of_its_class(unbalanced):
    both = [batches(unbalanced), batches(unbalanced, Replicas(0, 2, 2), 10)]
    for measured in both:
        for _, classes, weights in measured:
            assert weights == pytest.approx(EXPECTED[classes])
        total = np.zeros(3)
        for _, classes, weights in measured:
            np.add.at(total, classes, weights)
        assert total == pytest.approx([100 / 3] * 3)  # each class contributes the same to an epoch


@pytest.mark.parametrize(
    "changes", [{"augment.mixup": 1.0}, {"augment.cutmix": 1.0}, {"augment.mixup": 0.2, "augment.cutmix": 1.0}]
)
def test_mixed_image_has_the_mean_weight_of_its_classes(unbalanced, changes):
    measured = batches(unbalanced.override(changes))
    for _, soft_labels, weights in measured:
        assert weights == pytest.approx(soft_labels @ EXPECTED, rel=1e-5)
    argmax = np.concatenate([EXPECTED[soft_labels.argmax(1)] for _, soft_labels, _ in measured])
    assert not np.allclose(argmax, np.concatenate([weights for *_, weights in measured]))


def test_batches_have_no_weights_by_default(unbalanced):
    assert {len(batch) for batch in batches(unbalanced.override({"train.class_weights": "none"}))} == {2}
