"""Tests of the augmentations, their seeds, and mixup and cutmix in training."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from edgerec import Recipe
from edgerec.errors import RecipeError
from edgerec.recipe import NOT_AUGMENTED, AugmentSection

# Keys of augmentations that are disabled by default, with values that have a visible effect.
DISABLED_BY_DEFAULT = {
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
COLOR_KEYS = ("saturation", "hue_deg")


@pytest.fixture(scope="module")
def tf():
    from edgerec.train.backend import keras

    keras()
    import tensorflow

    return tensorflow


def blobs(count=24, side=20, channels=3):
    """Return smooth random images with values in the whole range, float32."""
    import cv2

    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 5, 5, channels), np.uint8)
    large = [cv2.resize(one, (side, side), interpolation=cv2.INTER_CUBIC).reshape(side, side, -1) for one in small]
    return np.stack(large).astype(np.float32)


def augmented(tf, pixels, number=1, **keys):
    """Augment a batch with only the given augmentations enabled."""
    from edgerec.data.augmentation.batch_augmenter import augmenter

    augment = augmenter(replace(NOT_AUGMENTED, **keys))
    # The input pipeline also gives the augmenter a batch with a static shape.
    graph = tf.function(lambda batch, seed: augment(tf.ensure_shape(batch, [len(pixels), *pixels.shape[1:]]), seed))
    return graph(tf.constant(pixels), tf.constant([3, number], tf.int64)).numpy()


def test_default_augmentations_are_active_and_can_be_disabled():
    default = AugmentSection()
    assert set(default.active) == {"shift", "rotate_deg", "zoom", "brightness", "contrast"}
    assert not NOT_AUGMENTED.active
    assert all(not getattr(NOT_AUGMENTED, item.name) for item in fields(AugmentSection))
    Recipe(augment=NOT_AUGMENTED)  # raises an error if a value has the wrong type
    assert replace(default, mixup=0.2, cutmix=1.0).unmixed == default


def test_augmentation_of_a_seed_is_the_same_in_every_version(tf):
    """The expected means of an image corner were computed by the first version of edgerec."""
    from edgerec.data.augmentation.batch_augmenter import augmenter

    rng = np.random.default_rng(0)
    for channels, means in ((1, [135.4, 148.549, 153.161]), (3, [116.933, 138.142, 159.404])):
        pixels = tf.constant(rng.integers(0, 256, (16, 24, 20, channels)), tf.float32)
        result = augmenter(AugmentSection(flip=True))(pixels, tf.constant([3, 7], tf.int64)).numpy()
        assert result[:3, :8, :8].mean(axis=(1, 2, 3)) == pytest.approx(means, abs=0.01)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("key", DISABLED_BY_DEFAULT)
def test_augmentation_is_seeded_bounded_and_independent_of_other_images(tf, key, channels):
    pixels = blobs(channels=channels)
    single = augmented(tf, pixels, **{key: DISABLED_BY_DEFAULT[key]})
    assert single.shape == pixels.shape
    assert single.dtype == np.float32
    assert 0 <= single.min() <= single.max() <= 255
    if channels == 1 and key in COLOR_KEYS:
        assert np.array_equal(single, pixels)
        return
    assert np.abs(single - pixels).max() > 10
    others = np.concatenate([pixels[:5], 255 - pixels[5:]])
    assert np.allclose(augmented(tf, others, **{key: DISABLED_BY_DEFAULT[key]})[:5], single[:5], atol=0.01)
    assert not np.allclose(augmented(tf, pixels, number=2, **{key: DISABLED_BY_DEFAULT[key]}), single, atol=1)


def test_crop_enlarges_a_region_of_the_image(tf):
    ramp = np.tile(np.arange(40, dtype=np.float32)[None, None, :, None] * 6, (64, 40, 1, 1))
    result = augmented(tf, ramp, crop=0.75)
    steps = np.diff(result[:, 20, :, 0], axis=1).mean(axis=1) / 6  # fraction of the width that the crop keeps
    assert 0.4 < steps.min() < 0.65
    assert steps.max() <= 1.001
    assert ramp.min() - 0.01 <= result.min() <= result.max() <= ramp.max() + 0.01


def test_hue_and_saturation_preserve_grays(tf):
    gray = np.repeat(blobs(channels=1), 3, axis=3)
    for key in COLOR_KEYS:
        assert np.allclose(augmented(tf, gray, **{key: DISABLED_BY_DEFAULT[key]}), gray, atol=0.1)
    red = np.zeros((32, 8, 8, 3), np.float32) + np.array([200, 60, 60], np.float32)
    turned = augmented(tf, red, hue_deg=180.0)[:, 0, 0]
    assert (turned.argmax(axis=1) != 0).mean() > 0.3
    paler = augmented(tf, red, saturation=0.9)[:, 0, 0]
    spread = np.ptp(paler, axis=1)
    assert spread.min() < 60 < 180 < spread.max()


def test_motion_blur_preserves_brightness_and_has_a_direction(tf):
    dot = np.zeros((48, 31, 31, 1), np.float32)
    dot[:, 15, 15] = 255
    result = augmented(tf, dot, motion_blur=0.3)[..., 0]
    assert np.allclose(result.sum(axis=(1, 2)), 255, rtol=0.01)
    rows, columns = np.nonzero(result.max(axis=0) > 1)
    assert np.ptp(rows) > 4
    assert np.ptp(columns) > 4
    assert np.abs(np.stack([rows, columns]) - 15).max() <= 6  # half of 0.3 * 31, plus the width of one pixel
    longest = max(int((image > 1).sum()) for image in result)
    assert 8 < longest < 40  # a disc would have more pixels than a line


def test_exposure_and_gamma_are_monotonic(tf):
    ramp = np.tile(np.linspace(0, 255, 64, dtype=np.float32)[None, None, :, None], (32, 8, 1, 1))
    for keys in ({"exposure_stops": 2.0}, {"gamma": 1.0}):
        result = augmented(tf, ramp, **keys)[:, 0, :, 0]
        assert (np.diff(result, axis=1) >= -1e-3).all()
        middles = result[:, 32]
        assert middles.min() < 90
        assert middles.max() > 170
    assert np.allclose(augmented(tf, ramp, gamma=1.0)[:, 0, [0, -1], 0], [0, 255], atol=0.01)


def test_cutout_covers_a_square_and_jpeg_returns_integers(tf):
    pixels = blobs(side=30)
    covered = (augmented(tf, pixels, cutout=0.4) != pixels).any(axis=3)
    assert covered.sum(axis=(1, 2)).max() == 12 * 12
    for one in covered:
        rows, columns = one.any(axis=1), one.any(axis=0)
        assert np.array_equal(one, rows[:, None] & columns[None])
    stored = augmented(tf, pixels, jpeg=20)
    assert np.array_equal(stored, np.rint(stored))
    assert 1 < np.abs(stored - pixels).mean() < 20


def test_randaugment_operations_accept_batches_of_zero_and_one(tf):
    from edgerec.data.augmentation import randaugment

    pixels = blobs()
    for kind, change in randaugment.PIXEL_OPERATIONS.items():
        for some in (pixels[:0], pixels[:1], pixels):
            result = np.asarray(change(tf.constant(some), tf.ones((len(some), 1, 1, 1)), 0.7))
            assert result.shape == some.shape, kind
            assert not len(result) or 0 <= result.min() <= result.max() <= 255, kind
        assert np.abs(result - pixels).max() > 5, kind
    flat = tf.fill((2, 8, 8, 3), 90.0)  # uniform images must not change
    for kind in ("autocontrast", "equalize", "sharpness", "contrast"):
        assert np.allclose(randaugment.PIXEL_OPERATIONS[kind](flat, tf.ones((2, 1, 1, 1)), 0.7), 90, atol=0.01), kind
    assert len(randaugment.KINDS) == 14


@pytest.mark.parametrize("keys", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_soft_labels_match_the_mixed_pixels(tf, keys):
    from edgerec.data.augmentation.batch_augmenter import augmenter, mixer

    section = replace(NOT_AUGMENTED, **keys)
    assert augmenter(section) is None
    # Images of class 0 are black and those of class 1 are white, so that the mean of a mixed image is its soft label.
    classes = np.arange(32) % 2
    pixels = np.repeat(255 * classes, 256).reshape(32, 16, 16, 1).astype(np.float32)
    mixed, soft_labels = mixer(section)(tf.constant(pixels), tf.one_hot(classes, 2), tf.constant([0, 1], tf.int64))
    assert np.allclose(np.sum(soft_labels, axis=1), 1)
    assert np.allclose(np.mean(mixed, axis=(1, 2, 3)) / 255, soft_labels[:, 1], atol=1e-4)
    assert len(np.unique(np.round(soft_labels[:, 1], 3))) > 10
    half = np.isin(np.asarray(mixed), (0, 255)).all(axis=(1, 2, 3))
    assert half.all() == (set(keys) == {"cutmix"})
    single = mixer(section)(tf.constant(pixels[:1]), tf.one_hot(classes[:1], 2), tf.constant([0, 1], tf.int64))
    assert np.array_equal(single[0], pixels[:1])  # a batch of one image has no other image to mix with


def test_mixing_is_used_in_training_but_not_in_fine_tuning(tf, tmp_path):
    """Training with mixup and cutmix can be resumed; fine-tuning uses one label per image instead of soft labels."""
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

    def stop_after_epoch(epoch, model):
        if epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(recipe, tmp_path / "run", on_epoch=stop_after_epoch)
    stopped = Run.at(tmp_path / "run").history()
    resumed = fit(recipe, tmp_path / "run", resume=True)
    assert resumed.history()[:2] == stopped
    assert resumed.metrics["accuracy"] > 0.5
    assert resumed.history()[-1]["accuracy"] < resumed.history()[-1]["val_accuracy"]
    with CompressionContext.open(resumed, resumed.recipe, None, ignore) as context:
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
