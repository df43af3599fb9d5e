"""Calibration sets: sampling, storing, and checking sets with typical faults."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from edgerec import Bundle, Recipe, Run, export_bundle, quantize
from edgerec.cli.app import app
from edgerec.compress import calibration
from edgerec.compress.calibration import calibration_set
from edgerec.compress.calibration.check import check, examine
from edgerec.compress.calibration.loading import CandidateSet, open_candidate
from edgerec.compress.calibration.sampling import SAMPLING_METHODS
from edgerec.data import load, split_dataset
from edgerec.data.near_duplicates import nearest_neighbor_distances, thumbnails
from edgerec.errors import DataError, EdgerecError, OutputExistsError, RecipeError
from edgerec.utils.package_data import shipped, shipped_names


@pytest.fixture(scope="module")
def data(run):
    return run.data()


@pytest.fixture(scope="module")
def valid_set(run, tmp_path_factory):
    """A calibration set with 40 images of the run."""
    path = tmp_path_factory.mktemp("sets") / "good"
    calibration.make(run, path, images=40)
    return path


@pytest.fixture
def check_arrays(run, tmp_path):
    """Return a function that saves arrays as .npz and checks them.

    The function returns the severity of each finding by its kind, and the report.
    """

    def save_and_check(**arrays):
        np.savez(tmp_path / "offered.npz", **arrays)
        report = check(tmp_path / "offered.npz", run)
        return {finding.kind: finding.severity for finding in report.findings}, report

    return save_and_check


def draw_pixels(data, count=40, subset="train"):
    """Return images and classes of a subset of the split, with the same number of images per class."""
    dataset, split = data
    chosen = SAMPLING_METHODS["stratified"](dataset, split.part(subset), count, np.random.default_rng(0))
    return dataset.images[chosen], dataset.classes[chosen]


def burst(image, count, rng):
    """Return similar frames of one scene, moved by up to a pixel, with noise."""
    frames = []
    for _ in range(count):
        move = np.array([[1, 0, rng.uniform(-1, 1)], [0, 1, rng.uniform(-1, 1)]], np.float32)
        moved = cv2.warpAffine(image, move, image.shape[1::-1]).reshape(image.shape)
        frames.append((moved + rng.normal(0, 3, image.shape)).clip(0, 255).astype(np.uint8))
    return np.stack(frames)


# Sampling and storing


def test_set_is_sampled_from_training_images_and_has_no_findings(run, data, valid_set):
    dataset, split = data
    stored = calibration_set.read(valid_set)
    trained = {dataset.images[i].tobytes() for i in split.train}
    assert stored.images.shape == (40, 28, 28, 1)
    assert {image.tobytes() for image in stored.images} <= trained
    assert stored.digest == calibration_set.digest_of(draw_pixels(data)[0])
    report = check(valid_set, run)
    assert report.findings == ()
    assert report.ok
    assert report.digest == stored.digest


def test_set_is_an_image_folder(valid_set, data):
    description = json.loads((valid_set / "calibration.json").read_text())
    assert description["recipe"] == {"name": "stratified", "method": "stratified", "images": 40, "seed": 0}
    assert description["counts"] == {str(digit): 4 for digit in range(10)}
    assert (description["source"], description["data_digest"]) == ("digits", data[0].digest)
    for number, entry in enumerate(description["images"]):
        image = cv2.imread(str(valid_set / entry["file"]), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(image, draw_pixels(data)[0][number][..., 0])
        assert entry["file"].startswith(f"{entry['label']}/")
    dataset, _ = load(Recipe().override({"data.source": str(valid_set), "data.channels": 1}).data)
    assert len(dataset.images) == 40


def test_sets_are_created_from_recipe_or_folder(image_folder, tmp_path):
    (tmp_path / "mine.toml").write_text(f'[data]\nsource = "{image_folder}"\ninput_size = 32\nchannels = 3\n')
    first = calibration.make(tmp_path / "mine.toml", tmp_path / "one", images=6)
    assert first.images.shape == (6, 32, 32, 3)
    assert sorted(first.labels) == ["blue"] * 3 + ["red"] * 3
    other_seed = calibration.make(tmp_path / "mine.toml", tmp_path / "other", images=6, seed=1)
    assert first.digest != other_seed.digest
    assert calibration.make(None, tmp_path / "third", data=str(image_folder), images=500).images.shape[0] < 40
    assert first.digest == calibration_set.read(tmp_path / "one").digest
    assert np.array_equal(first.images, calibration_set.read(tmp_path / "one").images)  # red is red


def test_labels_may_be_invalid_folder_names(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 28, 28, 3), np.uint8)
    labels = np.array(["../a/b", ".hidden", "c:\\d"])
    np.savez(tmp_path / "own.npz", x_train=images, y_train=np.arange(30) % 3, labels=labels)
    drawn_set = calibration.make(None, tmp_path / "set", data=str(tmp_path / "own.npz"), images=9)
    stored = calibration_set.read(tmp_path / "set")
    assert stored.labels == drawn_set.labels
    assert set(stored.labels) == set(labels)
    assert stored.names[0].startswith("own.npz[")  # without the folder
    assert len(list((tmp_path / "set").glob("[!.]*/*.png"))) == 9


def test_only_calibration_sets_are_replaced(run, tmp_path):
    calibration.make(run, tmp_path / "set", images=10)
    with pytest.raises(OutputExistsError, match="add --overwrite"):
        calibration.make(run, tmp_path / "set", images=20)
    calibration.make(run, tmp_path / "set", images=20, overwrite=True)
    assert len(calibration_set.read(tmp_path / "set").images) == 20
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("x")
    with pytest.raises(OutputExistsError, match="does not replace"):
        calibration.make(run, tmp_path / "mine", images=20, overwrite=True)


def test_diverse_samples_each_scene_once(tmp_path):
    rng = np.random.default_rng(0)
    scenes = rng.integers(0, 256, (2, 4, 8, 8, 3), np.uint8)
    frames = [burst(cv2.resize(s, (32, 32)), 20, rng) for label in scenes for s in label]
    np.savez(tmp_path / "video.npz", x_train=np.concatenate(frames), y_train=np.repeat([0, 1], 80))
    dataset, section = load(Recipe().override({"data.source": str(tmp_path / "video.npz")}).data)
    split = split_dataset(dataset, section, 0)
    scene = np.repeat(np.arange(8), 20)
    by = {m: SAMPLING_METHODS[m](dataset, split.train, 8, np.random.default_rng(0)) for m in ("diverse", "stratified")}
    assert set(scene[by["diverse"]]) == set(range(8))
    assert len(set(scene[by["stratified"]])) < 8


def test_few_images_are_from_random_classes(data):
    assert set(draw_pixels(data, 5)[1]) != set(range(5))


def test_shipped_recipes_and_shipped_set_are_valid(run, data):
    for name in shipped_names("calibration"):
        assert len(calibration.draw(name, *data).images) == 200
    assert check(shipped("calibration") / "digits", run).findings == ()
    assert len(calibration.draw("digits", *data).images) == 20


def test_invalid_recipes_are_refused(tmp_path, data):
    own = tmp_path / "own.toml"
    own.write_text('method = "stratifed"\n')
    with pytest.raises(RecipeError, match="method is 'stratifed', expected stratified, random, diverse"):
        calibration.read_recipe(str(own))
    own.write_text("images = 0\n")
    with pytest.raises(RecipeError, match="images is 0"):
        calibration.read_recipe(str(own))
    with pytest.raises(RecipeError, match="there is no calibration set with this path"):
        calibration.draw("nowhere", *data)


# Findings


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [({"input_size": 32}, "size", "32×32×1"), ({"channels": 3}, "channels", "28×28×3")],
)
def test_other_size_or_number_of_channels_is_refused(run, data, tmp_path, change, kind, message):
    recipe = Recipe().override({f"data.{key}": value for key, value in change.items()})
    (tmp_path / "other.toml").write_text(recipe.to_toml())
    calibration.make(tmp_path / "other.toml", tmp_path / "set", images=20)
    (finding,) = check(tmp_path / "set", run).findings
    assert (finding.severity, finding.kind) == ("error", kind)
    assert f"images have the size {message} (height, width, channels), but the model requires 28×28×1" in finding.what
    with pytest.raises(DataError, match=r"cannot use the calibration set .* the model requires 28×28×1"):
        calibration.draw(str(tmp_path / "set"), *data)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda x: (x / 255).astype(np.float32), r"already normalized to \[0, 1\]"),
        (lambda x: (x / 127.5 - 1).astype(np.float32), r"already normalized to \[-1, 1\]"),
        (lambda x: x // 255, "rounded down"),
        (lambda x: (x.astype(int) - 128).astype(np.int8), "128 was subtracted"),
        (lambda x: (x / 255 - 0.45) / 0.22, "may have been normalized to mean 0"),
        (lambda x: np.where(x > 250, np.nan, x), "contains NaN or infinite values"),
    ],
)
def test_wrong_pixel_range_is_detected(check_arrays, data, transform, message):
    images, classes = draw_pixels(data)
    kinds, report = check_arrays(x=transform(images), y=classes)
    assert kinds["range"] == "error"
    assert not report.ok
    assert re.search(message, report.findings[0].what)


def test_pixels_of_another_type_are_a_warning(check_arrays, data):
    images, classes = draw_pixels(data)
    assert check_arrays(x=images.astype(np.float32), y=classes)[0] == {"range": "warning"}
    assert check_arrays(x=images)[0] == {"no-labels": "note"}


def test_low_contrast_and_other_brightness_are_detected(check_arrays, data):
    images, classes = draw_pixels(data)
    assert check_arrays(x=images // 2, y=classes)[0] == {"foreign": "warning", "contrast": "error"}
    brighter = np.clip(images.astype(int) + 40, 0, 255).astype(np.uint8)
    assert check_arrays(x=brighter, y=classes)[0]["brightness"] == "warning"


def test_channels_first_layout_is_detected(run, image_folder, tmp_path, check_arrays, data):
    images, classes = draw_pixels(data)
    kinds, _ = check_arrays(x=images.transpose(0, 3, 1, 2), y=classes)
    assert kinds == {"layout": "error"}


def test_missing_unbalanced_and_unknown_classes_are_detected(check_arrays, data):
    images, classes = draw_pixels(data)
    kinds, report = check_arrays(x=images[classes != 3], y=classes[classes != 3])
    assert kinds == {"missing-class": "error"}
    assert report.findings[0].where == "3"
    kinds, report = check_arrays(x=images[:7], y=classes[:7])
    assert kinds == {"few": "warning", "missing-class": "warning"}
    assert report.ok
    selected = (classes != 3) | (np.cumsum(classes == 3) == 1)
    assert check_arrays(x=images[selected], y=classes[selected])[0] == {"unbalanced": "warning"}
    assert check_arrays(x=images, y=np.where(classes == 3, 33, classes))[0]["unknown-class"] == "error"


def test_bursts_of_similar_frames_are_detected(check_arrays, data):
    images, classes = draw_pixels(data, 10)
    rng = np.random.default_rng(0)
    single_burst, ten_bursts = burst(images[3], 40, rng), np.concatenate([burst(image, 10, rng) for image in images])
    assert check_arrays(x=single_burst)[0]["alike"] == "error"
    # A burst of frames for every class is also detected.
    assert check_arrays(x=ten_bursts, y=np.repeat(classes, 10))[0] == {"foreign": "warning", "alike": "error"}


def test_duplicates_are_detected(check_arrays, data):
    images, classes = draw_pixels(data)
    kinds, _ = check_arrays(x=np.concatenate([images, images[:10]]), y=np.concatenate([classes, classes[:10]]))
    assert kinds == {"duplicates": "warning"}


def test_overlap_with_test_and_validation_images_is_detected(check_arrays, data):
    images, classes = draw_pixels(data, subset="test")
    kinds, report = check_arrays(x=images, y=classes)
    assert kinds == {"test-overlap": "error"}
    assert "40 images are test images" in report.findings[0].what
    recompressed = [cv2.imdecode(cv2.imencode(".jpg", image)[1], cv2.IMREAD_GRAYSCALE) for image in images]
    kinds, _ = check_arrays(x=np.stack(recompressed), y=classes)
    assert kinds == {"foreign": "warning", "near-test": "warning"}
    images, classes = draw_pixels(data, subset="val")
    assert check_arrays(x=images, y=classes)[0] == {"val-overlap": "note"}


def test_copies_in_training_and_test_set_are_only_a_note(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28, 1), np.uint8)
    classes = np.arange(40) % 2
    np.savez(tmp_path / "twice.npz", x_train=images, y_train=classes, x_test=images[:9], y_test=classes[:9])
    dataset, section = load(Recipe().override({"data.source": str(tmp_path / "twice.npz")}).data)
    split = split_dataset(dataset, section, 0)
    # Older versions trained on copies of test images.
    split = replace(split, train=np.sort(np.concatenate([split.train, split.excluded])))
    findings = examine(CandidateSet("x", images, ("x",) * 40, None, None, ""), dataset, split)
    assert ("note", "leak") in [(finding.severity, finding.kind) for finding in findings]


def test_swapped_red_and_blue_channels_are_detected(image_folder, tmp_path):
    """Swapped channels are detected by identical training images, or else by colors."""
    dataset, section = load(Recipe().override({"data.source": str(image_folder), "data.input_size": 32}).data)
    split = split_dataset(dataset, section, 0)
    chosen = SAMPLING_METHODS["stratified"](dataset, split.train, 12, np.random.default_rng(0))
    right, labels = dataset.images[chosen], tuple(dataset.labels[c] for c in dataset.classes[chosen])
    noisy = (right.astype(int) + np.random.default_rng(1).integers(-3, 4, right.shape)).clip(0, 255).astype(np.uint8)

    def order(images, labels):
        findings = examine(CandidateSet("x", images, tuple(map(str, range(12))), labels, None, ""), dataset, split)
        return [
            (finding.severity, finding.what.partition(":")[0])
            for finding in findings
            if finding.kind == "channel-order"
        ]

    assert order(right, labels) == []
    assert order(right[..., ::-1], labels) == [
        ("error", "12 images are training images with swapped red and blue channels")
    ]
    assert order(noisy, labels) == []
    assert order(noisy[..., ::-1], labels) == [("error", "red and blue seem to be swapped")]
    # There are as many red as blue images, so the order is unclear without labels.
    assert [severity for severity, _ in order(noisy[..., ::-1], None)] == ["note"]


def test_changed_images_are_detected(run, data, valid_set, tmp_path):
    shutil.copytree(valid_set, tmp_path / "set")
    cv2.imwrite(str(tmp_path / "set" / "3" / "0003.png"), 255 - draw_pixels(data)[0][3])
    kinds = {finding.kind: finding.severity for finding in check(tmp_path / "set", run).findings}
    assert kinds == {"digest": "error", "foreign": "warning"}
    with pytest.raises(DataError, match="images are modified or damaged"):
        calibration.draw(str(tmp_path / "set"), *data)


def test_other_preprocessing_is_detected(run, valid_set, tmp_path):
    shutil.copytree(valid_set, tmp_path / "set")
    description = (tmp_path / "set" / "calibration.json").read_text()
    (tmp_path / "set" / "calibration.json").write_text(description.replace('"crop"', '"pad"'))
    assert [finding.kind for finding in check(tmp_path / "set", run).findings] == ["preprocess"]


def _without_image(folder, description):
    (folder / description["images"][0]["file"]).unlink()


def _other_size(folder, description):
    cv2.imwrite(str(folder / description["images"][0]["file"]), np.zeros((9, 9), np.uint8))


def _truncate_image(folder, description):
    file = folder / description["images"][0]["file"]
    file.write_bytes(file.read_bytes()[:40])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_image, "0000.png is missing"),
        (_other_size, "not a PNG file of 28×28"),
        (_truncate_image, "damaged PNG"),
        (lambda folder, description: description.update(schema=99), "only supports up to 1"),
        (lambda folder, description: description.update(schema="1"), "has schema version '1'"),
        (lambda folder, description: description.update(images=[]), "lists no images"),
        (lambda folder, description: description.pop("digest"), "is damaged"),
        (
            lambda folder, description: description["images"][0].update(file="../../x.png"),
            "outside the calibration set's folder",
        ),
        (lambda folder, description: description["preprocess"].update(height=-1), "preprocess.height is -1"),
        (lambda folder, description: description["recipe"].update(run="rm"), "is damaged"),
    ],
)
def test_damaged_sets_are_refused(run, valid_set, tmp_path, damage, message):
    shutil.copytree(valid_set, tmp_path / "set")
    description = json.loads((valid_set / "calibration.json").read_text())
    damage(tmp_path / "set", description)
    (tmp_path / "set" / "calibration.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match=message):
        calibration_set.read(tmp_path / "set")
    with pytest.raises(DataError, match=message):
        check(tmp_path / "set", run)


def test_other_files_are_refused(run, tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 3, 3)), b=np.zeros((2, 3, 3)))
    (tmp_path / "cut.npz").write_bytes(b"PK")
    (tmp_path / "folder" / "a").mkdir(parents=True)
    (tmp_path / "folder" / "a" / "x.txt").write_text("x")
    for name, message in (
        ("objects.npy", "pickled objects, which can execute code"),
        ("two.npz", "expected one array of images"),
        ("cut.npz", "cannot be read"),
        ("folder", "no images, only other files"),
        ("folder/a/x.txt", "expected a calibration set"),
        ("nowhere", "does not exist"),
    ):
        with pytest.raises(DataError, match=message):
            check(tmp_path / name, run)
    with pytest.raises(DataError, match="is not a calibration set"):
        calibration_set.read(tmp_path / "folder")


def test_image_folder_and_single_array_are_accepted(run, data, valid_set, tmp_path):
    shutil.copytree(valid_set, tmp_path / "set")
    (tmp_path / "set" / "calibration.json").unlink()
    (tmp_path / "set" / "3" / "notes.txt").write_text("x")
    report = check(tmp_path / "set", run)
    assert [(finding.kind, finding.where) for finding in report.findings] == [("not-an-image", "3/notes.txt")]
    np.save(tmp_path / "lone.npy", draw_pixels(data)[0][..., 0])
    offered = open_candidate(tmp_path / "lone.npy", run.recipe.preprocess, run.labels)
    assert offered.digest == calibration_set.read(valid_set).digest
    named = np.array([run.labels[c] for c in draw_pixels(data)[1]])
    np.savez(tmp_path / "named.npz", x=draw_pixels(data)[0], y=named)
    assert check(tmp_path / "named.npz", run).findings == ()


# Use of sets


def test_ptq_uses_set_and_bundle_records_its_digest(run, valid_set, tmp_path):
    copy = Run(tmp_path / "run")
    shutil.copytree(run.path, copy.path, ignore=shutil.ignore_patterns("int8*", "checkpoints", "plots"))
    report = quantize(copy, "ptq", calibration=str(valid_set), max_drop=100.0)
    assert report.calibration == {"recipe": "good", "images": 40, "digest": calibration_set.read(valid_set).digest}
    with pytest.raises(RecipeError, match="--calibration has no effect with --method qat"):
        quantize(copy, "qat", calibration=str(valid_set))
    # The recipe may name the set too. The path of the set is not stored.
    (copy.path / "recipe.toml").write_text(run.recipe.override({"compress.calibration": str(valid_set)}).to_toml())
    provenance = Bundle.open(export_bundle(copy, "desktop", variant="int8").bundle).manifest.provenance
    assert provenance["calibration"] == report.calibration
    assert provenance["recipe"]["compress"]["calibration"] == "good"


def test_calibration_commands_make_and_check_a_set(run, data, valid_set, tmp_path):
    def call(*arguments):
        return CliRunner().invoke(app, ["calibration", *map(str, arguments)])

    result = call("make", run.path, "--out", tmp_path / "set", "--recipe", "random", "--images", 50, "--json")
    assert result.exit_code == 0, result.stderr
    written = json.loads(result.stdout)
    assert (written["recipe"]["name"], len(written["images"])) == ("random", 50)
    result = call("check", tmp_path / "set", "--run", run.path)
    assert (result.exit_code, result.stdout.splitlines()[-1][:14]) == (0, "ok: 50 images ")
    np.savez(tmp_path / "bad.npz", x=draw_pixels(data)[0] / 255)
    result = call("check", tmp_path / "bad.npz", "--run", run.path, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["ok"] is False
    assert report["findings"][0]["kind"] == "range"
    result = call("make", "--out", tmp_path / "none")
    assert result.exit_code == 2
    result = call("make", tmp_path, "--out", tmp_path / "none")
    assert (result.exit_code, "is not a run" in result.stderr) == (1, True)


def test_contact_sheet_shows_all_images(run, data, valid_set, tmp_path):
    assert calibration.show(valid_set, tmp_path / "sheet.png", run=run) == 40
    sheet = cv2.imread(str(tmp_path / "sheet.png"), cv2.IMREAD_GRAYSCALE)
    assert sheet.shape[1] > 1000
    assert (sheet < 30).mean() > 0.1  # digits are white on black
    with pytest.raises(OutputExistsError):
        calibration.show(valid_set, tmp_path / "sheet.png")
    np.save(tmp_path / "nan.npy", np.full((2, 28, 28), np.nan))
    with pytest.raises(EdgerecError, match="contains NaN or infinite values"):
        calibration.show(tmp_path / "nan.npy", tmp_path / "other.png", run=run)


def test_distances_are_in_gray_levels():
    images = np.zeros((3, 16, 16, 1), np.uint8)
    images[1, :8], images[2, :8] = 20, 24
    assert nearest_neighbor_distances(thumbnails(images)) == pytest.approx([10, 2, 2], abs=1e-4)
