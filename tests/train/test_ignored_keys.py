"""Recipe keys without effect are reported, and random flipping keeps or mirrors each image."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from edgerec import Recipe, fit
from edgerec.data.augmentation.batch_augmenter import augmenter
from edgerec.recipe import NOT_AUGMENTED


def test_random_flip_keeps_or_mirrors_each_image():
    """For this seed, the random number for image 1826 is exactly 0, which is the limit of its range."""
    import tensorflow as tf

    pixels = np.zeros((4096, 2, 4, 1), np.float32)
    pixels[:, :, 0] = 200.0
    changed = augmenter(replace(NOT_AUGMENTED, flip=True))(tf.constant(pixels), tf.constant([0, 2352], tf.int64))
    unchanged = np.isclose(changed, pixels, atol=1e-2).all((1, 2, 3))
    mirrored = np.isclose(changed, pixels[:, :, ::-1], atol=1e-2).all((1, 2, 3))
    assert (unchanged | mirrored).all()
    assert 0.4 < unchanged.mean() < 0.6


def test_autoencoder_training_warns_about_ignored_class_weights(tmp_path, caplog):
    changes = {
        "model.arch": "autoencoder",
        "model.width": 0.25,
        "data.input_size": 8,
        "train.epochs": 1,
        "train.batch_size": 64,
        "train.class_weights": "balanced",
    }
    with caplog.at_level(logging.WARNING, "edgerec"):
        fit(Recipe().override(changes), tmp_path / "run")
    assert "train.class_weights has no effect: the architecture autoencoder is an autoencoder" in caplog.text


@pytest.mark.parametrize(
    ("key", "value", "others"),
    [
        ("transfer.frozen", 0.5, {}),
        ("distill.temperature", 2.0, {}),
        ("augment.hue_deg", 20.0, {"data.channels": 1}),
        ("augment.randaugment_strength", 0.5, {}),
        ("model.width", 0.5, {"model.arch": "backbone", "model.weights": "theirs.keras"}),
        ("train.class_weights", "balanced", {"model.arch": "autoencoder"}),
    ],
)
def test_keys_without_effect_are_reported(key, value, others):
    from edgerec.train.ignored_keys import ignored_keys

    assert list(ignored_keys(Recipe().override(others | {key: value}))) == [key]
    assert not ignored_keys(Recipe().override(others))


def test_keys_with_effect_are_not_reported():
    from edgerec.train.ignored_keys import ignored_keys

    changes = {
        "model.weights": "theirs.keras",
        "transfer.frozen": 0.5,
        "augment.hue_deg": 20.0,
        "data.channels": 3,
        "train.class_weights": "balanced",
    }
    assert not ignored_keys(Recipe().override(changes))
