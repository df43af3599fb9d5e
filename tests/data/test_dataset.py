"""Tests of loading data sets, of the pixel cache, and of splits without leaks."""

from __future__ import annotations

import re
import shutil
from contextlib import suppress

import cv2
import numpy as np
import pytest

from edgerec.contract.image_decoding import decode
from edgerec.contract.preprocess import PreprocessSpec, apply
from edgerec.data import cache, load, split_dataset
from edgerec.data import readers as sources
from edgerec.errors import DataError, RecipeError
from edgerec.recipe import DataSection


def section(source, **values):
    return DataSection(source=str(source), **values)


def write_npz(path, count=40, classes=4, **changes):
    rng = np.random.default_rng(0)
    values = {
        "x_train": rng.integers(0, 256, (count, 12, 12), np.uint8),
        "y_train": np.arange(count) % classes,
    }
    np.savez(path, **{k: v for k, v in (values | changes).items() if v is not None})
    return path


def test_digits_are_available_offline():
    dataset, resolved = load(section("digits"))
    assert dataset.images.shape == (1797, 28, 28, 1)
    assert dataset.images.dtype == np.uint8
    assert dataset.labels == tuple("0123456789")
    assert (resolved.input_size, resolved.channels) == (28, 1)


def test_folder_pixels_match_the_preprocessing_of_the_device(image_folder):
    dataset, resolved = load(section(image_folder))
    assert dataset.labels == ("blue", "red")
    assert (resolved.input_size, resolved.channels) == (30, 3)
    for i in (0, 25):
        image = decode((image_folder / dataset.names[i]).read_bytes())
        assert np.array_equal(dataset.images[i], apply(image, PreprocessSpec(30, 30)))
        assert np.array_equal(dataset.original(i), image)
        assert dataset.names[i].startswith(dataset.labels[dataset.classes[i]])


def test_images_are_decoded_once(image_folder, monkeypatch):
    first, _ = load(section(image_folder, input_size=16))
    monkeypatch.setattr(cache, "decode", lambda content: pytest.fail("decoded again"))
    cached, _ = load(section(image_folder, input_size=16))
    assert np.array_equal(first.images, cached.images)
    assert first.digest == cached.digest


def test_changed_image_is_read_again(image_folder):
    before, _ = load(section(image_folder, input_size=16))
    cv2.imwrite(str(image_folder / "red" / "person0_00.jpg"), np.zeros((30, 40, 3), np.uint8))
    after, _ = load(section(image_folder, input_size=16))
    assert before.digest != after.digest


def test_unreadable_file_is_skipped_or_refused(image_folder, caplog):
    (image_folder / "red" / "notes.txt").write_text("hello")
    (image_folder / "blue" / "half.jpg").write_bytes(b"\xff\xd8\xff\xe0 half")
    (image_folder / "blue" / ".hidden").write_bytes(b"")
    dataset, _ = load(section(image_folder, input_size=20))
    assert dataset.skipped == ("blue/half.jpg", "red/notes.txt")
    assert len(dataset.classes) == 40
    assert "skipped 2 files that are not readable images: blue/half.jpg, red/notes.txt" in caplog.text
    with pytest.raises(DataError, match="2 files that are not readable images"):
        load(section(image_folder, input_size=20, strict=True))


def test_own_splits_are_kept(image_folder, tmp_path):
    for subset in ("train", "test"):
        for label in ("blue", "red"):
            (tmp_path / "split" / subset / label).mkdir(parents=True)
    for path in image_folder.glob("*/*"):
        subset = "test" if "person3" in path.name else "train"
        path.rename(tmp_path / "split" / subset / path.parent.name / path.name)
    dataset, resolved = load(section(tmp_path / "split", input_size=16))
    parts = split_dataset(dataset, resolved, 0)
    assert not parts.held_out
    assert {dataset.names[i].split("/")[0] for i in parts.test} == {"test"}
    assert {dataset.names[i].split("/")[0] for i in parts.train} == {"train"}
    assert len(parts.test) == 10
    assert len(parts.train) + len(parts.val) == 30


def test_split_is_stratified_seeded_and_complete():
    dataset, resolved = load(section("digits"))
    parts = split_dataset(dataset, resolved, 3)
    assert parts.held_out
    together = np.concatenate([parts.train, parts.val, parts.test])
    assert sorted(together) == list(range(1797))
    for part, fraction in ((parts.test, 0.15), (parts.val, 0.1)):
        counts = np.bincount(dataset.classes[part]) / np.bincount(dataset.classes)
        assert abs(len(part) / 1797 - fraction) < 0.02
        assert np.abs(counts - fraction).max() < 0.06
    second = split_dataset(dataset, resolved, 3)
    assert np.array_equal(parts.test, second.test)
    assert not np.array_equal(parts.test, split_dataset(dataset, resolved, 4).test)


def test_groups_are_not_divided_between_splits(image_folder):
    dataset, resolved = load(
        section(image_folder, group_by=r"(person\d)", test_fraction=0.25, val_fraction=0.25, input_size=16)
    )
    parts = split_dataset(dataset, resolved, 0)
    people = [
        {re.search(r"person\d", dataset.names[i])[0] for i in part} for part in (parts.train, parts.val, parts.test)
    ]
    assert not people[0] & people[1]
    assert not people[0] & people[2]
    assert not people[1] & people[2]
    assert set.union(*people) == {f"person{i}" for i in range(4)}


def test_real_people_are_not_divided_between_splits(real_data, tmp_path):
    import sys

    sys.path.insert(0, "benchmarks")
    try:
        from common import signs_by_person
    finally:
        sys.path.pop(0)
    folder = signs_by_person(tmp_path)
    dataset, resolved = load(section(folder, group_by="person_([0-9]+)", input_size=32))
    assert len(dataset.classes) == 1644
    parts = split_dataset(dataset, resolved, 0)
    people = [{dataset.names[i].split("person_")[1][:3] for i in part} for part in (parts.train, parts.val, parts.test)]
    assert not people[0] & people[1]
    assert not (people[0] | people[1]) & people[2]
    assert 0.1 < len(parts.test) / 1644 < 0.2


@pytest.mark.parametrize(
    ("expression", "error", "message"),
    [
        ("(person", RecipeError, "not a regular expression"),
        (r"camera\d", DataError, "does not match the path of"),
        ("person", DataError, "gives 1 group"),
    ],
)
def test_unusable_group_expression_is_refused(image_folder, expression, error, message):
    dataset, resolved = load(section(image_folder, group_by=expression, input_size=16))
    with pytest.raises(error, match=message):
        split_dataset(dataset, resolved, 0)


def test_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="no class folders"):
        load(section(tmp_path))
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="no images"):
        load(section(tmp_path))


def test_single_class_is_refused(image_folder):
    shutil.rmtree(image_folder / "red")
    with pytest.raises(DataError, match=r"only one class \('blue'\)"):
        load(section(image_folder, input_size=16))


def test_class_without_readable_images_is_refused(image_folder):
    (image_folder / "green").mkdir()
    with pytest.raises(DataError, match="class 'green' has no readable image"):
        load(section(image_folder, input_size=16))


def test_class_with_too_few_images_is_refused(image_folder):
    for path in sorted((image_folder / "red").glob("*"))[2:]:
        path.unlink()
    dataset, resolved = load(section(image_folder, input_size=16))
    with pytest.raises(DataError, match="class 'red' has too few images"):
        split_dataset(dataset, resolved, 0)


def test_test_split_of_an_npz_file_is_used(tmp_path):
    path = write_npz(tmp_path / "a.npz")
    dataset, resolved = load(section(path))
    assert dataset.images.shape == (40, 28, 28, 1)
    assert split_dataset(dataset, resolved, 0).held_out
    rng = np.random.default_rng(1)
    write_npz(path, x_test=rng.integers(0, 256, (8, 12, 12), np.uint8), y_test=np.arange(8) % 4)
    dataset, resolved = load(section(path))
    parts = split_dataset(dataset, resolved, 0)
    assert not parts.held_out
    assert len(parts.test) == 8


def test_npz_floats_are_converted_to_uint8(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 28, 28, 3), np.uint8)
    path = write_npz(tmp_path / "a.npz", x_train=(pixels / 255).astype(np.float32))
    assert np.array_equal(load(section(path))[0].images, pixels)


@pytest.mark.parametrize("train_in_unit_range", [False, True])
def test_npz_with_floats_in_different_ranges_is_refused(tmp_path, train_in_unit_range):
    bright = np.random.default_rng(0).integers(0, 256, (40, 28, 28)).astype(np.float32)
    dark = np.minimum(bright, 1)  # e.g. images of a dark scene in 0…255, or images in 0…1
    train, test = (dark, bright) if train_in_unit_range else (bright, dark)
    path = write_npz(tmp_path / "a.npz", x_train=train, x_test=test, y_test=np.arange(40) % 4)
    low, high = ("x_train", "x_test") if train_in_unit_range else ("x_test", "x_train")
    with pytest.raises(DataError, match=f"the values of {low} are at most 1, but those of {high} are up to 255"):
        load(section(path))
    write_npz(path, x_train=train, x_test=test.astype(np.uint8), y_test=np.arange(40) % 4)
    assert load(section(path))[0].images.max() == 255  # the data type states the range of integers


def test_npz_with_black_float_images_has_the_range_of_its_other_images(tmp_path):
    train = np.random.default_rng(0).integers(0, 256, (40, 28, 28)).astype(np.float32)
    path = write_npz(tmp_path / "a.npz", x_train=train, x_test=np.zeros_like(train), y_test=np.arange(40) % 4)
    dataset = load(section(path))[0]
    assert (dataset.images[dataset.splits == "train"][..., 0] == train).all()
    assert not dataset.images[dataset.splits == "test"].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.array([{}, {}], object)}, "pickled objects"),
        ({"x_train": np.zeros((40, 12), np.uint8)}, r"x_train has shape \(40, 12\), expected"),
        ({"x_train": np.zeros((40, 12, 12, 4), np.uint8)}, "expected"),
        ({"x_train": np.full((40, 12, 12), 70000)}, "expected pixel values in 0…255"),
        ({"x_train": np.full((40, 12, 12), np.nan)}, "expected pixel values in 0…255"),
        ({"x_train": np.full((40, 12, 12), "a")}, "expected uint8"),
        ({"y_train": np.zeros(39, int)}, "one per image"),
        ({"y_train": np.zeros(40)}, "expected integers"),
        ({"y_train": None}, "but no y_train"),
        ({"x_test": np.zeros((8, 12, 12), np.uint8)}, "no y_test"),
        ({"x_test": np.zeros((8, 9, 9), np.uint8), "y_test": np.zeros(8, int)}, "the same size"),
        ({"labels": np.arange(4)}, "one string per class"),
        ({"labels": np.array(["a", "b", "a", "c"])}, "a duplicate"),
        ({"labels": np.array(["a", "b\nb", "d", "c"])}, "control character"),
    ],
)
def test_invalid_npz_is_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        load(section(write_npz(tmp_path / "a.npz", **changes)))


def test_damaged_npz_raises_only_data_error(tmp_path):
    rng = np.random.default_rng(0)
    np.savez_compressed(tmp_path / "a.npz", x_train=np.zeros((40, 12, 12), np.uint8), y_train=np.arange(40) % 4)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    for position in (*range(0, len(content), 3), *rng.integers(0, len(content), 100)):
        damaged = content.copy()
        damaged[position] ^= 0xFF
        (tmp_path / "a.npz").write_bytes(damaged)
        with suppress(DataError):
            sources.find(str(tmp_path / "a.npz"))


def test_damaged_cache_entry_is_rebuilt(image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEREC_CACHE", str(tmp_path / "cache"))
    first, _ = load(section(image_folder, input_size=16))
    complete = first.images.copy()
    for suffix, content in ((".raw", b"short"), (".json", b"{")):
        for path in (tmp_path / "cache").glob(f"*{suffix}"):
            path.write_bytes(content)
        rebuilt, _ = load(section(image_folder, input_size=16))
        assert np.array_equal(rebuilt.images, complete)


def test_digest_depends_on_the_classes_of_the_files(image_folder, tmp_path):
    for one, other in (("red", "blue"), ("blue", "red")):
        (tmp_path / "swapped").mkdir(exist_ok=True)
        (tmp_path / "swapped" / one).symlink_to(image_folder / other)
    assert load(section(image_folder))[0].digest != load(section(tmp_path / "swapped"))[0].digest


def test_class_with_only_test_images_is_refused(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "split" / "train")
    for label in ("blue", "red"):
        images = sorted((tmp_path / "split" / "train" / label).iterdir())
        (tmp_path / "split" / "test" / label.replace("red", "rde")).mkdir(parents=True)
        for path in images[:5]:
            path.rename(tmp_path / "split" / "test" / label.replace("red", "rde") / path.name)
    dataset, resolved = load(section(tmp_path / "split", input_size=16))
    with pytest.raises(DataError, match="class 'rde' has test images, but no training images"):
        split_dataset(dataset, resolved, 0)


def test_group_in_two_of_the_own_splits_is_refused(image_folder, tmp_path):
    for part in ("train", "test"):
        shutil.copytree(image_folder, tmp_path / "split" / part)
    dataset, resolved = load(section(tmp_path / "split", input_size=16, group_by=r"person\d", val_fraction=0.25))
    with pytest.raises(DataError, match="the data's own split is invalid"):
        split_dataset(dataset, resolved, 0)


def test_group_expression_does_not_match_the_class_folder(image_folder):
    dataset, resolved = load(section(image_folder, input_size=16, group_by="^person([0-9])", test_fraction=0.25))
    assert len(split_dataset(dataset, resolved, 0).test) == 10
    dataset, resolved = load(section(image_folder, input_size=16, group_by="red"))
    with pytest.raises(DataError, match="does not match the path"):
        split_dataset(dataset, resolved, 0)


def test_class_with_too_few_groups_is_refused(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(5):
            cv2.imwrite(str(tmp_path / label / f"{label}{number}.png"), np.zeros((30, 30, 3), np.uint8))
    dataset, resolved = load(section(tmp_path, group_by=r"\w+"))
    with pytest.raises(DataError, match="class 'a' has images in too few groups"):
        split_dataset(dataset, resolved, 0)


def test_shipped_sample_can_be_loaded():
    from edgerec.utils.package_data import shipped

    dataset, _ = load(section(shipped("calibration") / "digits", channels=1))
    assert dataset.images.shape == (20, 28, 28, 1)
    assert np.bincount(dataset.classes).tolist() == [2] * 10


def test_invalid_source_is_refused(tmp_path):
    with pytest.raises(DataError, match="did you mean 'mnist'"):
        load(section("mnits"))
    (tmp_path / "a.npz").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"not an \.npz"):
        load(section(tmp_path / "a.npz"))
    (tmp_path / "a.csv").write_bytes(b"hello")
    with pytest.raises(DataError, match="neither"):
        load(section(tmp_path / "a.csv"))


def test_failed_download_says_what_to_do(monkeypatch):
    import tf_keras

    def offline():
        raise Exception("URL fetch failure on https://example: None -- [Errno -2] Name or service not known")

    monkeypatch.setattr(tf_keras.datasets.mnist, "load_data", offline)
    with pytest.raises(DataError, match=r"Name or service not known\): connect this machine .*--data mnist\.npz"):
        load(section("mnist"))


def test_built_in_data_sets_have_label_names(monkeypatch):
    import tf_keras

    rng = np.random.default_rng(0)

    def small():
        x = rng.integers(0, 256, (40, 32, 32, 3), np.uint8)
        return (x, np.arange(40)[:, None] % 10), (x[:20], np.arange(20)[:, None] % 10)

    monkeypatch.setattr(tf_keras.datasets.cifar10, "load_data", small)
    registered = sources.find("cifar10")
    assert registered.labels[3] == "cat"
    assert len(registered.classes) == 60


def test_input_size_below_the_minimum_is_refused():
    with pytest.raises(RecipeError, match="needs at least 32"):
        load(section("digits", input_size=16), least_size_px=32)


def test_augmentation_is_seeded_and_within_its_limits():
    import tensorflow as tf

    from edgerec.data.augmentation.batch_augmenter import augmenter
    from edgerec.recipe import AugmentSection

    disabled = {"shift": 0.0, "rotate_deg": 0.0, "zoom": 0.0, "brightness": 0.0, "contrast": 0.0}
    assert augmenter(AugmentSection(**disabled)) is None
    rng = np.random.default_rng(0)
    pixels = tf.constant(rng.integers(0, 256, (64, 8, 8, 3)), tf.float32)
    one, two = (tf.constant([0, n], tf.int64) for n in (1, 2))
    everything = augmenter(AugmentSection(flip=True))
    assert np.array_equal(everything(pixels, one), everything(pixels, one))
    assert not np.array_equal(everything(pixels, one), everything(pixels, two))
    assert everything(pixels, one).shape == pixels.shape
    assert 0 <= np.min(everything(pixels, one)) <= np.max(everything(pixels, one)) <= 255

    flipped = augmenter(AugmentSection(**disabled, flip=True))(pixels, one).numpy()
    mirrored = [np.allclose(f, p[:, ::-1], atol=0.01) for f, p in zip(flipped, pixels.numpy(), strict=True)]
    same = [np.allclose(f, p, atol=0.01) for f, p in zip(flipped, pixels.numpy(), strict=True)]
    assert all(a or b for a, b in zip(mirrored, same, strict=True))
    assert 10 < sum(mirrored) < 54

    brighter = augmenter(AugmentSection(**(disabled | {"brightness": 0.2})))(pixels * 0 + 100, one).numpy()
    assert 49 <= brighter.min() < 60
    assert 140 < brighter.max() <= 151

    dot = np.zeros((64, 21, 21, 1), np.float32)
    dot[:, 10, 10] = 255
    moved = augmenter(AugmentSection(**(disabled | {"shift": 0.2})))(tf.constant(dot), one).numpy()[..., 0]
    rows, columns = np.indices((21, 21))
    centers = np.stack([(moved * axis).sum((1, 2)) / moved.sum((1, 2)) for axis in (rows, columns)]) - 10
    assert np.abs(centers).max() <= 4.2 + 0.1
    assert np.abs(centers).max() > 3
    turned = augmenter(AugmentSection(**(disabled | {"rotate_deg": 45.0})))(tf.constant(dot), one).numpy()
    assert np.allclose(turned[:, 10, 10], 255, atol=1)  # the center is not moved
    assert np.abs(turned - dot).max() > 20


def test_batches_depend_only_on_seed_and_epoch():
    from edgerec import Recipe
    from edgerec.train.input_pipeline import Replicas, steps_per_epoch, training_batches

    dataset, resolved = load(section("digits"))
    recipe = Recipe(data=resolved).override({"train.batch_size": 16})
    indices = np.arange(100)
    feed = training_batches(dataset, indices, recipe, first_epoch=0)
    continued = training_batches(dataset, indices, recipe, first_epoch=1)
    assert steps_per_epoch(indices, recipe) == 6
    assert not feed.options().autotune.enabled  # fit would wait for the autotuning thread at the end
    batches = list(feed.take(12))
    resumed = list(continued.take(6))
    for (x, y), (x_resumed, y_resumed) in zip(batches[6:], resumed, strict=True):
        assert np.array_equal(x, x_resumed)
        assert np.array_equal(y, y_resumed)
    assert not np.array_equal(batches[0][1], batches[6][1])
    assert batches[0][0].dtype == np.float32
    assert 0 <= np.min(batches[0][0]) <= np.max(batches[0][0]) <= 1
    # Two processes with one and two devices: together, they read the same batches as a single process.
    recipe = recipe.override({"train.batch_size": 15})
    single_worker = iter(training_batches(dataset, indices, recipe, Replicas(0, 1, 3), first_epoch=0))
    second_of_three = iter(training_batches(dataset, indices, recipe, Replicas(1, 2, 3), first_epoch=0))
    for _, complete in training_batches(dataset, indices, recipe, first_epoch=0).take(12):
        assert np.array_equal(
            np.concatenate([next(feed)[1] for feed in (single_worker, second_of_three, second_of_three)]), complete
        )
