"""Augmentation does what its keys say, the same for the same seed, and mixing reaches training and fine-tuning."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from edgerec import Recipe
from edgerec.errors import RecipeError
from edgerec.recipe import NOT_AUGMENTED, AugmentSection

# Every key that is not in the default, at a strength at which it shows.
NEW = {
    "crop": 0.5,
    "saturation": 0.5,
    "hue_deg": 60.0,
    "motion_blur": 0.2,
    "exposure_stops": 2.0,
    "gamma": 1.0,
    "noise": 0.1,
    "jpeg": 20,
    "cutout": 0.4,
    "randaugment": 2,
}
COLOURS = ("saturation", "hue_deg")


@pytest.fixture(scope="module")
def tf():
    from edgerec.train.backend import keras

    keras()
    import tensorflow

    return tensorflow


def blobs(count=24, side=20, channels=3):
    """Smooth pictures with all values, float32."""
    import cv2

    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 5, 5, channels), np.uint8)
    large = [cv2.resize(one, (side, side), interpolation=cv2.INTER_CUBIC).reshape(side, side, -1) for one in small]
    return np.stack(large).astype(np.float32)


def changed(tf, pixels, number=1, **keys):
    from edgerec.data.augment import augmenter

    augment = augmenter(replace(NOT_AUGMENTED, **keys))
    # Shape and batch as the feed gives them.
    graph = tf.function(lambda batch, seed: augment(tf.ensure_shape(batch, [len(pixels), *pixels.shape[1:]]), seed))
    return graph(tf.constant(pixels), tf.constant([3, number], tf.int64)).numpy()


def test_what_is_new_is_off_and_nothing_is_off_by_position():
    default = AugmentSection()
    assert set(default.active) == {"shift", "rotate_deg", "zoom", "brightness", "contrast"}
    assert not NOT_AUGMENTED.active
    assert all(not getattr(NOT_AUGMENTED, item.name) for item in fields(AugmentSection))
    Recipe(augment=NOT_AUGMENTED)  # and each zero has its key's type
    assert replace(default, mixup=0.2, cutmix=1.0).unmixed == default


def test_the_changes_of_a_seed_stay_what_they_were(tf):
    """Means of a corner that were computed by the first version; a recipe of then trains to the same model."""
    from edgerec.data.augment import augmenter

    rng = np.random.default_rng(0)
    for channels, means in ((1, [135.4, 148.549, 153.161]), (3, [116.933, 138.142, 159.404])):
        pixels = tf.constant(rng.integers(0, 256, (16, 24, 20, channels)), tf.float32)
        seen = augmenter(AugmentSection(flip=True))(pixels, tf.constant([3, 7], tf.int64)).numpy()
        assert seen[:3, :8, :8].mean(axis=(1, 2, 3)) == pytest.approx(means, abs=0.01)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("key", NEW)
def test_a_change_is_seeded_bounded_and_of_one_picture_alone(tf, key, channels):
    pixels = blobs(channels=channels)
    one = changed(tf, pixels, **{key: NEW[key]})
    assert one.shape == pixels.shape
    assert one.dtype == np.float32
    assert 0 <= one.min() <= one.max() <= 255
    if channels == 1 and key in COLOURS:
        assert np.array_equal(one, pixels)
        return
    assert np.abs(one - pixels).max() > 10
    others = np.concatenate([pixels[:5], 255 - pixels[5:]])
    assert np.allclose(changed(tf, others, **{key: NEW[key]})[:5], one[:5], atol=0.01)
    assert not np.allclose(changed(tf, pixels, number=2, **{key: NEW[key]}), one, atol=1)


def test_a_crop_is_a_part_of_the_picture(tf):
    ramp = np.tile(np.arange(40, dtype=np.float32)[None, None, :, None] * 6, (64, 40, 1, 1))
    seen = changed(tf, ramp, crop=0.75)
    steps = np.diff(seen[:, 20, :, 0], axis=1).mean(axis=1) / 6  # how much of the width is left
    assert 0.4 < steps.min() < 0.65
    assert steps.max() <= 1.001
    assert ramp.min() - 0.01 <= seen.min() <= seen.max() <= ramp.max() + 0.01


def test_colours_turn_and_greys_stay(tf):
    grey = np.repeat(blobs(channels=1), 3, axis=3)
    for key in COLOURS:
        assert np.allclose(changed(tf, grey, **{key: NEW[key]}), grey, atol=0.1)
    red = np.zeros((32, 8, 8, 3), np.float32) + np.array([200, 60, 60], np.float32)
    turned = changed(tf, red, hue_deg=180.0)[:, 0, 0]
    assert (turned.argmax(axis=1) != 0).mean() > 0.3
    paler = changed(tf, red, saturation=0.9)[:, 0, 0]
    spread = np.ptp(paler, axis=1)
    assert spread.min() < 60 < 180 < spread.max()


def test_a_smear_keeps_the_light_and_has_a_direction(tf):
    dot = np.zeros((48, 31, 31, 1), np.float32)
    dot[:, 15, 15] = 255
    seen = changed(tf, dot, motion_blur=0.3)[..., 0]
    assert np.allclose(seen.sum(axis=(1, 2)), 255, rtol=0.01)
    rows, columns = np.nonzero(seen.max(axis=0) > 1)
    assert np.ptp(rows) > 4
    assert np.ptp(columns) > 4
    assert np.abs(np.stack([rows, columns]) - 15).max() <= 6  # half of 0.3 * 31, and a pixel's width
    longest = max(int((one > 1).sum()) for one in seen)
    assert 8 < longest < 40  # a line and no disc


def test_exposure_and_gamma_keep_the_order_of_tones(tf):
    ramp = np.tile(np.linspace(0, 255, 64, dtype=np.float32)[None, None, :, None], (32, 8, 1, 1))
    for keys in ({"exposure_stops": 2.0}, {"gamma": 1.0}):
        seen = changed(tf, ramp, **keys)[:, 0, :, 0]
        assert (np.diff(seen, axis=1) >= -1e-3).all()
        middles = seen[:, 32]
        assert middles.min() < 90
        assert middles.max() > 170
    assert np.allclose(changed(tf, ramp, gamma=1.0)[:, 0, [0, -1], 0], [0, 255], atol=0.01)


def test_cutout_covers_a_square_and_jpeg_leaves_whole_numbers(tf):
    pixels = blobs(side=30)
    covered = (changed(tf, pixels, cutout=0.4) != pixels).any(axis=3)
    assert covered.sum(axis=(1, 2)).max() == 12 * 12
    for one in covered:
        rows, columns = one.any(axis=1), one.any(axis=0)
        assert np.array_equal(one, rows[:, None] & columns[None])
    stored = changed(tf, pixels, jpeg=20)
    assert np.array_equal(stored, np.rint(stored))
    assert 1 < np.abs(stored - pixels).mean() < 20


def test_each_of_randaugments_changes_takes_a_batch_of_none_and_of_one(tf):
    from edgerec.data.augmentation import randaugment

    pixels = blobs()
    for kind, change in randaugment.PIXEL_OPERATIONS.items():
        for some in (pixels[:0], pixels[:1], pixels):
            seen = np.asarray(change(tf.constant(some), tf.ones((len(some), 1, 1, 1)), 0.7))
            assert seen.shape == some.shape, kind
            assert not len(seen) or 0 <= seen.min() <= seen.max() <= 255, kind
        assert np.abs(seen - pixels).max() > 5, kind
    flat = tf.fill((2, 8, 8, 3), 90.0)  # nothing to spread
    for kind in ("autocontrast", "equalize", "sharpness", "contrast"):
        assert np.allclose(randaugment.PIXEL_OPERATIONS[kind](flat, tf.ones((2, 1, 1, 1)), 0.7), 90, atol=0.01), kind
    assert len(randaugment.KINDS) == 14


@pytest.mark.parametrize("keys", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_mixing_mixes_labels_as_it_mixes_pixels(tf, keys):
    from edgerec.data.augment import augmenter, mixer

    section = replace(NOT_AUGMENTED, **keys)
    assert augmenter(section) is None
    # Each picture is as light as its class, so that its mean tells what it was mixed of.
    classes = np.arange(32) % 2
    pixels = np.repeat(255 * classes, 256).reshape(32, 16, 16, 1).astype(np.float32)
    mixed, shares = mixer(section)(tf.constant(pixels), tf.one_hot(classes, 2), tf.constant([0, 1], tf.int64))
    assert np.allclose(np.sum(shares, axis=1), 1)
    assert np.allclose(np.mean(mixed, axis=(1, 2, 3)) / 255, shares[:, 1], atol=1e-4)
    assert len(np.unique(np.round(shares[:, 1], 3))) > 10
    half = np.isin(np.asarray(mixed), (0, 255)).all(axis=(1, 2, 3))
    assert half.all() == (set(keys) == {"cutmix"})
    alone = mixer(section)(tf.constant(pixels[:1]), tf.one_hot(classes[:1], 2), tf.constant([0, 1], tf.int64))
    assert np.array_equal(alone[0], pixels[:1])  # nobody to mix with


def test_mixing_reaches_training_and_leaves_fine_tuning_its_labels(tf, tmp_path):
    """A run that mixes learns and goes on after a stop; what quantizing trains on has one label a picture."""
    from edgerec import Run, fit
    from edgerec.compress.context import CompressionContext
    from edgerec.data import readers as sources
    from edgerec.train.input_pipeline import ONE_REPLICA
    from edgerec.utils.progress import ignore

    digits = sources.find("digits")
    np.savez(tmp_path / "some.npz", x_train=digits.images[:600], y_train=digits.classes[:600])
    recipe = Recipe().override(
        {
            "data.source": str(tmp_path / "some.npz"),
            "augment.mixup": 0.2,
            "augment.cutmix": 1.0,
            "train.epochs": 3,
            "train.learning_rate": 0.003,
            "train.class_weights": "balanced",
        }
    )

    class Stop(Exception):
        pass

    def after(epoch, model):
        if epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(recipe, tmp_path / "run", on_epoch=after)
    stopped = Run.at(tmp_path / "run").history()
    made = fit(recipe, tmp_path / "run", resume=True)
    assert made.history()[:2] == stopped
    assert made.metrics["accuracy"] > 0.5
    assert made.history()[-1]["accuracy"] < made.history()[-1]["val_accuracy"]
    with CompressionContext.open(made, made.recipe, None, ignore) as context:
        tune = context.fine_tune(tmp_path)
    for feed in (tune.feed(0, ONE_REPLICA), tune.plain):
        _, classes, _ = next(iter(feed))
        assert classes.dtype == np.int64
        assert classes.shape.rank == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [("crop", 1.0), ("jpeg", 101), ("jpeg", 50.5), ("mixup", -0.1), ("randaugment", 2.5), ("noise", True)],
)
def test_keys_out_of_range_are_refused_by_name(key, value):
    with pytest.raises(RecipeError, match=f"augment.{key} is"):
        Recipe().override({f"augment.{key}": value})
