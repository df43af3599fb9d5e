"""Tests of packs: writing and reading TFRecord shards, training on them, and damaged packs."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edgerec import Recipe, fit, pack_data, quantize
from edgerec.cli.app import app
from edgerec.compress import calibration
from edgerec.compress.calibration.check import check
from edgerec.data import load, recorded_split, split_dataset
from edgerec.data.tfrecord_reader import MANIFEST, Packed, PackedImages, manifest_digest
from edgerec.errors import DataError, OutputExistsError, OutputIsInputError, RecipeError
from edgerec.train.fit import was_begun
from edgerec.train.input_pipeline import Replicas, steps_per_epoch, training_batches
from tests.conftest import write_red_and_blue_images

NO_AUGMENTATION = {f"augment.{key}": 0.0 for key in ("shift", "rotate_deg", "zoom", "brightness", "contrast")}


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Packed:
    """Return a pack of the digits data set."""
    return pack_data(Recipe(), tmp_path_factory.mktemp("packs") / "digits")


def recipe_for(pack, **changes):
    return Recipe().override({"data.source": pack.location, "train.batch_size": 32} | NO_AUGMENTATION | changes)


def load_and_split(recipe):
    dataset, section = load(recipe.data)
    return dataset, split_dataset(dataset, section, recipe.seed)


def rows(images):
    return sorted(np.asarray(images, np.uint8).reshape(len(images), -1).tolist())


def test_pack_contains_the_same_split_and_images(packed):
    dataset, parts = load_and_split(recipe_for(packed))
    plain, plain_parts = load_and_split(Recipe())
    assert dataset.labels == plain.labels
    for name in ("train", "val", "test"):
        packed_indices, plain_indices = parts.part(name), plain_parts.part(name)
        assert rows(dataset.images[packed_indices]) == rows(plain.images[plain_indices])
        assert sorted(dataset.classes[packed_indices]) == sorted(plain.classes[plain_indices])
    assert list(dataset.select(parts.test))[3].shape == dataset.images.shape[1:]
    assert np.array_equal(np.stack(list(dataset.select(parts.val))), dataset.images[parts.val])
    assert dataset.names[len(dataset.names) - 1].startswith("test-")
    assert dataset.names[0] == f"{packed.shards[0].file}#0"
    assert np.array_equal(dataset.original(5), dataset.images[5])
    assert packed.counts == {name: len(parts.part(name)) for name in ("train", "val", "test")}


def test_shards_are_standard_tfrecord_files(packed):
    import tensorflow as tf

    records = tf.data.TFRecordDataset([packed.path(shard) for shard in packed.of("val")])
    examples = [tf.train.Example.FromString(record.numpy()).features.feature for record in records]
    dataset, parts = load_and_split(recipe_for(packed))
    assert [one["label"].int64_list.value[0] for one in examples] == list(dataset.classes[parts.val])
    first = np.frombuffer(examples[0]["image"].bytes_list.value[0], np.uint8)
    assert np.array_equal(first.reshape(dataset.images.shape[1:]), dataset.images[parts.val[0]])
    assert examples[0]["name"].bytes_list.value[0].startswith(b"digits[")


@pytest.mark.parametrize("workers", [1, 4])
def test_each_epoch_reads_every_image_once_in_a_new_order(packed, workers):
    recipe = recipe_for(packed)
    dataset, parts = load_and_split(recipe)
    steps = steps_per_epoch(parts.train, recipe)
    epochs = []
    for epoch in (0, 1):
        images_of_epoch = []
        for worker in range(workers):
            feed = training_batches(dataset, parts.train, recipe, Replicas(worker, 1, workers), first_epoch=epoch)
            batches = list(feed.take(2 * steps))
            assert all(len(classes) == 32 // workers for _, classes in batches)
            images_of_epoch += [np.rint(np.asarray(pixels) * 255) for pixels, _ in batches[:steps]]
        epochs.append(np.concatenate(images_of_epoch))
        known = rows(dataset.images[parts.train])
        epoch_rows = rows(epochs[-1])
        assert len(epoch_rows) == steps * 32 > len(known) - 32
        remaining = known[:]
        for row in epoch_rows:
            remaining.remove(row)  # raises ValueError if an image is read twice
    assert not np.array_equal(epochs[0], epochs[1])
    resumed = training_batches(dataset, parts.train, recipe, Replicas(0, 1, workers), first_epoch=1)
    pixels, _ = next(iter(resumed))
    assert np.array_equal(np.rint(np.asarray(pixels) * 255), epochs[1][: 32 // workers])


def test_packed_data_can_be_trained_and_quantized(packed, tmp_path):
    settings = {"train.epochs": 3, "model.width": 0.5, "compress.epochs": 1, "compress.max_drop": 10.0}
    run = fit(recipe_for(packed, **settings), tmp_path / "run")
    assert run.metrics["accuracy"] > 0.7
    assert quantize(run, "ptq").images == run.metrics["images"]
    assert run.recipe.data.source == str(Path(packed.location).resolve())


def test_shards_are_read_from_an_object_store(packed, monkeypatch):
    """TensorFlow's in-memory file system uses the same interface as the file systems of object stores."""
    import tensorflow as tf

    remote = recipe_for(packed).override({"data.source": "ram://bucket/digits"})
    tf.io.gfile.makedirs("ram://bucket/digits")
    for path in Path(packed.location).iterdir():
        with tf.io.gfile.GFile(f"ram://bucket/digits/{path.name}", "wb") as file:
            file.write(path.read_bytes())
    dataset, parts = load_and_split(remote)
    assert np.array_equal(dataset.images[parts.test[:5]], load_and_split(recipe_for(packed))[0].images[parts.test[:5]])
    pixels, _ = next(iter(training_batches(dataset, parts.train, remote, first_epoch=0)))
    assert pixels.shape == (32, *dataset.images.shape[1:])
    with pytest.raises(DataError, match=r"ram://bucket/nothing/pack.json cannot be read"):
        load(remote.override({"data.source": "ram://bucket/nothing"}).data)
    with pytest.raises(DataError, match="no file system for nosuch://"):
        load(remote.override({"data.source": "nosuch://bucket/digits"}).data)


@pytest.fixture
def pack_copy(packed, tmp_path) -> Packed:
    import shutil

    shutil.copytree(packed.location, tmp_path / "copy")
    return Packed.open(str(tmp_path / "copy"))


def flip_bit(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def test_damaged_record_is_reported_with_its_shard(pack_copy, tmp_path):
    """Training reports a damaged record when it reads the record; ``data check`` reads all records."""
    shard = pack_copy.of("train")[2]
    entry = pack_copy.index[int(pack_copy.ends[1]) + 7]
    flip_bit(Path(pack_copy.location) / shard.file, int(entry["pixels"]) + 3)
    message = rf"{shard.file}: record 7 of {shard.images} is damaged"
    with pytest.raises(DataError, match=message):
        fit(recipe_for(pack_copy, **{"train.epochs": 1, "model.width": 0.25}), tmp_path / "run")
    flip_bit(Path(pack_copy.location) / shard.file, int(entry["pixels"]) + 3)  # repair the record
    val_shard = pack_copy.of("val")[0]
    flip_bit(
        Path(pack_copy.location) / val_shard.file,
        int(pack_copy.index[int(pack_copy.ends[len(pack_copy.of("train"))]) - 1]["pixels"]),
    )
    with pytest.raises(DataError, match=rf"{val_shard.file}: record {val_shard.images - 1} of"):  # in the validation
        fit(recipe_for(pack_copy, **{"train.epochs": 1, "model.width": 0.25}), tmp_path / "again")
    flip_bit(Path(pack_copy.location) / shard.file, int(entry["pixels"]) + 3)
    result = CliRunner().invoke(app, ["data", "check", pack_copy.location])
    assert result.exit_code == 1
    assert re.search(message, result.stderr.replace("\n", " "))


def test_missing_and_truncated_files_are_reported_on_loading(pack_copy):
    shard = pack_copy.shards[0]
    path = Path(pack_copy.location) / shard.file
    complete = path.read_bytes()
    path.write_bytes(complete[:-20])
    with pytest.raises(DataError, match=rf"{shard.file} has [\d,]+ bytes, expected"):
        load(recipe_for(pack_copy).data)
    path.unlink()
    with pytest.raises(DataError, match=f"{shard.file} is missing"):
        load(recipe_for(pack_copy).data)
    manifest = Path(pack_copy.location) / MANIFEST
    about = json.loads(manifest.read_text())
    about["shards"][0]["file"] = "../../secret"
    manifest.write_text(json.dumps(about))
    with pytest.raises(DataError, match=r"the shard '\.\./\.\./secret' is not a file name in"):
        load(recipe_for(pack_copy).data)
    manifest.write_text(json.dumps(about | {"schema": 99}))
    with pytest.raises(DataError, match=r"^\S+ has format version 99, but this edgerec version reads version \d+"):
        load(recipe_for(pack_copy).data)
    manifest.write_text("{}")
    with pytest.raises(DataError, match="is damaged"):
        load(recipe_for(pack_copy).data)
    path.write_bytes(complete)


def test_index_of_another_pack_is_refused(pack_copy):
    np.save(Path(pack_copy.location) / "index.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"index\.npy does not match the pack's shards"):
        load(recipe_for(pack_copy).data)


def test_settings_that_differ_from_the_pack_are_refused(packed):
    with pytest.raises(RecipeError, match=r"data.input_size is 64, .* was packed with 28: remove"):
        load(recipe_for(packed).override({"data.input_size": 64}).data)
    with pytest.raises(RecipeError, match="needs at least 32"):
        load(recipe_for(packed).data, least_size_px=32)


def test_same_command_continues_a_run_on_a_pack(packed, tmp_path):
    source = pack_data(Recipe().override({"data.fit": "stretch"}), tmp_path / "stretched").location
    recipe = Recipe().override({"data.source": source, "train.epochs": 1})
    fit(recipe, tmp_path / "run", finish=False)
    assert was_begun(recipe, tmp_path / "run")
    with pytest.raises(RecipeError, match=r"data\.normalize"):
        was_begun(recipe.override({"data.normalize": "pixels"}), tmp_path / "run")


def test_classifier_needs_a_pack_with_two_classes(tmp_path):
    images, labels = np.random.default_rng(0).integers(0, 256, (60, 28, 28), np.uint8), np.zeros(60, int)
    np.savez(tmp_path / "one.npz", x_train=images, y_train=labels)
    pack = pack_data(Recipe().override({"data.source": str(tmp_path / "one.npz")}), tmp_path / "one")
    recipe = Recipe().override({"data.source": pack.location})
    with pytest.raises(DataError, match="has only one class"):
        load(recipe.data)
    assert load(recipe.data, least_classes=1)[0].labels == ("0",)  # an autoencoder can be trained


def test_packing_skips_unreadable_files(image_folder, tmp_path, caplog, monkeypatch):
    (image_folder / "red" / "notes.txt").write_text("not an image")
    recipe = Recipe().override({"data.source": str(image_folder), "data.group_by": "person[0-9]"})
    with caplog.at_level(logging.WARNING, "edgerec"):
        with pytest.raises(DataError, match=r"does not match the path of 'red/notes.txt'"):
            pack_data(recipe, tmp_path / "pack")
        packed_again = pack_data(recipe.override({"data.group_by": ""}), tmp_path / "pack")
    assert packed_again.skipped == ("red/notes.txt",)
    assert "skipped 1 files that are not readable images: red/notes.txt" in caplog.text
    assert sum(packed_again.counts.values()) == 40
    with pytest.raises(OutputExistsError, match="already exists"):
        pack_data(recipe, tmp_path / "pack")
    monkeypatch.chdir(image_folder)
    with pytest.raises(OutputIsInputError, match="would overwrite the input"):
        pack_data(recipe, ".", overwrite=True)
    with pytest.raises(DataError, match=r"notes.txt is not a readable image"):
        pack_data(recipe.override({"data.group_by": "", "data.strict": True}), tmp_path / "strict")
    assert not (tmp_path / "strict").exists()


def test_interrupted_pack_is_resumed(image_folder, tmp_path, caplog):
    recipe = Recipe().override({"data.source": str(image_folder)})

    class Stop(Exception):
        pass

    def listener(progress):
        if progress.stage == "packing" and progress.done == progress.total:
            raise Stop

    complete = pack_data(recipe, tmp_path / "complete")
    with pytest.raises(Stop):
        pack_data(recipe, tmp_path / "pack", listener=listener)
    assert not (tmp_path / "pack").exists()
    finished_shards = sorted(path.name for path in (tmp_path / ".pack.packing").glob("*.tfrecord"))
    assert finished_shards
    with caplog.at_level(logging.INFO, "edgerec"):
        resumed_pack = pack_data(recipe, tmp_path / "pack", resume=True)
    assert "resuming the interrupted pack" in caplog.text
    assert resumed_pack.digest == complete.digest
    assert not (tmp_path / ".pack.packing").exists()


def test_interrupted_pack_of_changed_images_starts_again(image_folder, tmp_path):
    class Stop(Exception):
        pass

    def listener(progress):
        if progress.stage == "packing" and progress.done == progress.total:
            raise Stop

    recipe = Recipe().override({"data.source": str(image_folder)})
    with pytest.raises(Stop):
        pack_data(recipe, tmp_path / "pack", listener=listener)
    first, second, *_ = sorted((image_folder / "red").iterdir())
    first.write_bytes(second.read_bytes())
    resumed_pack = pack_data(recipe, tmp_path / "pack", resume=True)
    assert resumed_pack.digest == pack_data(recipe, tmp_path / "new").digest


def test_interrupted_pack_of_arrays_with_changed_splits_starts_again(tmp_path):
    class Stop(Exception):
        pass

    def listener(progress):
        if progress.stage == "packing" and progress.done == progress.total:
            raise Stop

    images, classes = np.random.default_rng(0).integers(0, 256, (60, 28, 28), np.uint8), np.arange(60) % 2
    recipe = Recipe().override({"data.source": str(tmp_path / "images.npz")})

    def save(train):
        arrays = {"x_train": images[:train], "x_test": images[train:]}
        np.savez(tmp_path / "images.npz", **arrays, y_train=classes[:train], y_test=classes[train:])

    save(train=50)
    with pytest.raises(Stop):
        pack_data(recipe, tmp_path / "pack", listener=listener)
    save(train=40)
    resumed_pack = pack_data(recipe, tmp_path / "pack", resume=True)
    assert resumed_pack.digest == pack_data(recipe, tmp_path / "new").digest


def test_pack_command_writes_and_checks_a_pack(tmp_path):
    run = CliRunner()
    result = run.invoke(app, ["data", "pack", "digits", "--out", str(tmp_path / "pack"), "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert sum(summary["images"].values()) == 1797
    checked = run.invoke(app, ["data", "check", str(tmp_path / "pack")])
    assert "ok: 1,797 packed images are unchanged" in checked.stdout
    refused = run.invoke(app, ["data", "check", str(tmp_path / "pack" / "nothing")])
    assert refused.exit_code == 1


def test_calibration_check_reads_only_a_sample_of_the_pack(packed, tmp_path, monkeypatch):
    run = fit(recipe_for(packed, **{"train.epochs": 1, "model.width": 0.25}), tmp_path / "run")
    calibration.make(run, tmp_path / "set", images=20)
    read = []
    original = PackedImages.__getitem__

    def counted(images, indices):
        result = original(images, indices)
        read.append(len(result) if result.ndim == 4 else 1)
        return result

    monkeypatch.setattr(PackedImages, "__getitem__", counted)
    report = check(tmp_path / "set", run)
    assert report.ok
    assert not {"foreign", "test-overlap", "val-overlap"} & {finding.kind for finding in report.findings}
    assert 0 < sum(read) < len(packed.images)


def test_calibration_check_finds_test_images_in_a_pack(packed, tmp_path):
    run = fit(recipe_for(packed, **{"train.epochs": 1, "model.width": 0.25}), tmp_path / "run")
    dataset, parts = run.data()
    images = np.concatenate([dataset.images[parts.test[:3]], dataset.images[parts.train[:17]]])
    np.savez(tmp_path / "set.npz", x=images, y=np.zeros(20, int))
    findings = check(tmp_path / "set.npz", run).findings
    assert [finding.what.split()[0] for finding in findings if finding.kind == "test-overlap"] == ["3"]


def test_content_digests_identify_images_outside_the_pack(packed, tmp_path):
    """A run of packed images recognizes the same images outside the pack."""
    run = fit(recipe_for(packed, **{"train.epochs": 1, "model.width": 0.25}), tmp_path / "run")
    with pytest.raises(RecipeError, match="was trained on"):
        fit(Recipe().override({"seed": 1, "model.width": 0.25, "model.weights": str(run.path)}), tmp_path / "other")


def test_labels_with_joiners_are_packed_and_read(tmp_path):
    labels = ("می\u200cخواهم", "👩\u200d🔬")
    images, classes = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "images.npz", x_train=images, y_train=classes, labels=np.array(labels))
    recipe = Recipe().override({"data.source": str(tmp_path / "images.npz")})
    assert set(pack_data(recipe, tmp_path / "pack").labels) == set(labels)
    assert set(Packed.open(str(tmp_path / "pack")).labels) == set(labels)


@pytest.mark.parametrize(("split", "title"), [("val", "validation"), ("test", "test")])
def test_pack_whose_validation_or_test_images_are_unreadable_is_refused(tmp_path, split, title):
    for name in ("train", "val", "test"):
        write_red_and_blue_images(tmp_path / "images" / name)
    for number, path in enumerate(sorted((tmp_path / "images").rglob("*.jpg"))):
        readable = split not in path.relative_to(tmp_path).parts
        path.write_bytes(path.read_bytes() + str(number).encode() if readable else f"damaged {number}".encode())
    recipe = Recipe().override({"data.source": str(tmp_path / "images"), "data.input_size": 28})
    with pytest.raises(DataError, match=f"has no readable {title} images") as raised:
        pack_data(recipe, tmp_path / "pack")
    assert "skipped 40 files" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "pack").exists()


def test_pack_without_validation_images_is_refused(packed, tmp_path):
    """Older versions of edgerec wrote such packs if all validation images were unreadable."""
    shutil.copytree(packed.location, tmp_path / "pack")
    about = json.loads((tmp_path / "pack" / "pack.json").read_text())
    about["shards"] = [shard for shard in about["shards"] if shard["split"] != "val"]
    del about["digest"]
    about["digest"] = manifest_digest(about)
    (tmp_path / "pack" / "pack.json").write_text(json.dumps(about))
    for name, array in (("index.npy", packed.index), ("contents.npy", packed.contents)):
        np.save(tmp_path / "pack" / name, array[packed.splits != "val"])
    recipe = recipe_for(Packed.open(str(tmp_path / "pack")))
    for split_function in (split_dataset, lambda dataset, *_: recorded_split(dataset, {})):
        with pytest.raises(DataError, match="pack has no validation images: pack the data again"):
            split_function(load(recipe.data)[0], recipe.data, 0)
