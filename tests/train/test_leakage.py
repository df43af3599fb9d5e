"""Weights that were trained on held-out images are refused, and the evaluation reports which images were used."""

from __future__ import annotations

import json
import shutil
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from edgerec import EdgerecError, Recipe, Run, adopt, distill, evaluate, export_bundle, fit, tune
from edgerec.errors import DataError, RecipeError
from edgerec.train.leakage import TrainedImages
from edgerec.train.run import TRAINED_IMAGES
from tests.data.test_split import write_images

QUICK = {
    "train.epochs": 1,
    "model.arch": "simple_cnn",
    "model.width": 0.25,
    "data.input_size": 28,
    "transfer.frozen": 0.0,
    "transfer.unfreeze": 0.0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    names = [f"{label}/{number:03d}.png" for label in ("cat", "dog") for number in range(60)]
    return write_images(tmp_path_factory.mktemp("data") / "pets", names)


def recipe(folder, **changes):
    return Recipe().override({"data.source": str(folder)} | QUICK | changes)


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    return fit(recipe(folder), tmp_path_factory.mktemp("runs") / "pets")


@pytest.fixture(params=["run", "model.keras", "checkpoint", "link", "copy"])
def weights(trained, request, tmp_path):
    """The weights of the run, given as a folder, a file, a checkpoint, a link or a copy."""
    if request.param == "link":
        (tmp_path / "link.keras").symlink_to(trained.path / "model.keras")
        return tmp_path / "link.keras"
    if request.param == "copy":
        return shutil.copy(trained.path / "model.keras", tmp_path / "copy.keras")
    paths = {
        "run": trained.path,
        "model.keras": trained.path / "model.keras",
        "checkpoint": next((trained.path / "checkpoints").glob("*.keras"), trained.path / "model.keras"),
    }
    return paths[request.param]


def test_weights_of_another_split_are_refused(trained, weights, folder, tmp_path):
    with pytest.raises(RecipeError, match=r"was trained on \d+ of the \d+ test images .*seed=0") as refusal:
        fit(recipe(folder, seed=1, **{"model.weights": str(weights)}), tmp_path / "run")
    assert "model.weights" in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_weights_of_the_same_split_are_accepted(trained, weights, folder, tmp_path):
    second = fit(recipe(folder, **{"model.weights": str(weights)}), tmp_path / "run", finish=False)
    assert second.split_record["test"] == trained.split_record["test"]


def test_weights_are_recognized_when_folders_are_merged_with_their_arrays(folder, tmp_path):
    rng = np.random.default_rng(0)
    arrays = str(tmp_path / "pets.npz")
    np.savez(
        arrays,
        x_train=rng.integers(0, 256, (80, 28, 28, 3), np.uint8),
        y_train=np.arange(80) % 2,
        labels=np.array(["cat", "dog"]),
    )
    first = fit(recipe(arrays), tmp_path / "first")
    merged = recipe(folder, seed=1).override({"data.source": [arrays, str(folder)], "model.weights": str(first.path)})
    with pytest.raises(RecipeError, match=r"was trained on \d+ of the \d+ test images"):
        fit(merged, tmp_path / "second")
    # The split of the evaluated data is known for the arrays, and the images in the folder are new.
    figures = evaluate(first.path, [arrays, str(folder)])
    assert (figures.split, figures.training_images) == ("held-out", 0)
    assert figures.images == len(first.split_record["test"]) + 120


def test_backbone_of_another_split_is_refused(trained, folder, tmp_path):
    changes = {"model.arch": "backbone", "model.weights": str(trained.path), "data.channels": 3, "seed": 1}
    with pytest.raises(RecipeError, match="was trained on"):
        fit(recipe(folder, **changes), tmp_path / "run")


def test_moved_images_are_recognized(trained, folder, tmp_path):
    for path in folder.rglob("*.png"):
        (tmp_path / "data" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "data" / path.parent.name / f"new_{path.name}")
    changes = {"model.weights": str(trained.path), "seed": 1}
    with pytest.raises(RecipeError, match="was trained on"):
        fit(recipe(tmp_path / "data", **changes), tmp_path / "run")


def test_weights_are_accepted_after_images_were_added(trained, folder, tmp_path):
    grown = shutil.copytree(folder, tmp_path / "grown")
    write_images(grown, [f"cat/new{number}.png" for number in range(10)], seed=1)
    assert fit(recipe(grown, **{"model.weights": str(trained.path)}), tmp_path / "run", finish=False).history()


def test_training_images_of_earlier_weights_are_recognized(trained, folder, tmp_path):
    """The second run was trained on other images, but started from the weights of the first run."""
    other = write_images(
        tmp_path / "other", [f"{label}/{n}.png" for label in ("cat", "dog") for n in range(40)], seed=5
    )
    second = fit(recipe(other, seed=1, **{"model.weights": str(trained.path)}), tmp_path / "second")
    with pytest.raises(RecipeError, match=r"was trained on \d+ of the"):
        fit(recipe(folder, seed=1, **{"model.weights": str(second.path)}), tmp_path / "third")


def test_search_refuses_weights_before_its_first_trial(trained, folder, tmp_path):
    changes = {"model.weights": str(trained.path), "seed": 1}
    with pytest.raises(RecipeError, match="was trained on"):
        tune(recipe(folder, **changes), tmp_path / "study", trials=1)


def test_model_of_a_run_with_another_split_is_not_imported(trained, folder, tmp_path):
    with pytest.raises(RecipeError, match="was trained on"):
        adopt(trained.path / "model.keras", str(folder), tmp_path / "run", normalize="unit", recipe=Recipe(seed=1))


def test_teacher_of_a_grown_data_set_keeps_its_split(folder, tmp_path):
    """Recipes are equal, but images were removed and added since the teacher was trained."""
    data = shutil.copytree(folder, tmp_path / "data")
    teacher = fit(recipe(data), tmp_path / "teacher")
    write_images(data, ["cat/new.png"], seed=1)
    student = distill([teacher.path], "simple_cnn", tmp_path / "student", changes={"model.width": 0.25})
    assert set(teacher.split_record["test"]) <= set(student.split_record["test"])


def test_weights_of_unknown_origin_cause_a_warning(trained, folder, tmp_path, caplog):
    trained.model().save_weights(tmp_path / "weights.h5")
    fit(recipe(folder, **{"model.weights": str(tmp_path / "weights.h5")}), tmp_path / "run", finish=False)
    assert "the training images of model.weights" in caplog.text


def test_unfinished_run_as_weights_is_refused(folder, tmp_path):
    fit(recipe(folder), tmp_path / "begun", finish=False)
    with pytest.raises(EdgerecError, match="is unfinished"):
        fit(recipe(folder, **{"model.weights": str(tmp_path / "begun")}), tmp_path / "run")


# --- The evaluation reports which images were used


@pytest.fixture(scope="module")
def exported(trained):
    return export_bundle(trained, "desktop", variant="float32").bundle


@pytest.fixture(params=["run", "bundle"])
def model(request, trained, exported):
    return trained.path if request.param == "run" else exported


@pytest.fixture(scope="module")
def renamed(folder, tmp_path_factory):
    """The same images under other names, and ten new ones."""
    data = tmp_path_factory.mktemp("renamed") / "pets"
    for path in folder.rglob("*.png"):
        (data / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, data / path.parent.name / f"new_{path.name}")
    return data


def test_evaluation_uses_test_images_among_renamed_images(model, trained, renamed, tmp_path):
    figures = evaluate(model, str(renamed))
    assert (figures.training_images, figures.images) == (0, trained.metrics["images"])
    grown = shutil.copytree(renamed, tmp_path / "grown")
    write_images(grown, [f"cat/added{number}.png" for number in range(10)], seed=1)
    assert evaluate(model, str(grown)).training_images == 0


def test_evaluation_counts_training_images(model, trained, renamed, caplog):
    figures = evaluate(model, str(renamed), split="all")
    assert figures.images == 120
    assert trained.metrics["train_images"] <= figures.training_images <= 120 - trained.metrics["images"]
    assert "were used for training" in caplog.text


def test_evaluation_uses_all_images_of_new_data(model, tmp_path):
    new = write_images(
        tmp_path / "new", [f"{label}/{number}.png" for label in ("cat", "dog") for number in range(4)], 9
    )
    figures = evaluate(model, str(new))
    assert (figures.split, figures.images, figures.training_images) == ("all", 8, 0)


def test_training_images_of_a_plain_tflite_file_are_unknown(trained, exported, folder, invoke):
    result = invoke("evaluate", trained.path / "float32" / "model.tflite", "--data", folder, "--json")
    assert json.loads(result.stdout)["training_images"] is None
    assert "it is unknown whether the model was trained on them" in result.stderr
    with pytest.raises(DataError, match="the model's training images are unknown"):
        evaluate(trained.path / "float32" / "model.tflite", str(folder), split="test")


def test_printed_text_states_whether_training_images_were_evaluated(trained, renamed, invoke):
    assert "none of them was used for training" in invoke("evaluate", trained.path, "--data", renamed).stdout
    everything = invoke("evaluate", trained.path, "--data", renamed, "--split", "all")
    assert "of them were used for training" in everything.stdout
    assert "the accuracy on new images is lower" in everything.stderr


def test_training_images_of_an_older_bundle_are_unknown(trained, exported, folder, tmp_path, monkeypatch):
    record = Run.open(trained.path).split_record
    del record["contents"], record["split_by"]
    old = shutil.copytree(trained.path, tmp_path / "old")
    Run.open(old).write_json("split.json", record)
    bundle = export_bundle(Run.open(old), "desktop", variant="float32").bundle
    figures = evaluate(bundle, str(folder))
    assert (figures.split, figures.training_images) == ("all", None)


@pytest.mark.parametrize("record", ["[" * 100_000, "5", '{"contents": {"of": 1}}'])
def test_damaged_record_in_a_model_file_counts_as_no_record(tmp_path, record):
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr(TRAINED_IMAGES, record)
    assert TrainedImages.of_file(tmp_path / "m.keras", SimpleNamespace(contents_of="files")) is None
