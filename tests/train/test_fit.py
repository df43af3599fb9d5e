"""Training: files of a run, resuming, and error messages."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import cv2
import numpy as np
import pytest

from edgerec import Recipe, Run, evaluate, fit
from edgerec.errors import DataError, EdgerecError, ModelError, OutputExistsError, RecipeError, TrainError
from edgerec.train.callbacks import epoch_recorder
from edgerec.train.distribute import Workers
from edgerec.train.metrics import classifier_report
from edgerec.train.run import best_epoch
from edgerec.train.stages import stages
from edgerec.utils.progress import ignore
from tests.conftest import error_line


def test_run_contains_the_documented_files(run):
    names = {p.relative_to(run.path).as_posix() for p in run.path.rglob("*") if p.is_file()}
    assert {
        "recipe.toml",
        "model.keras",
        "labels.txt",
        "split.json",
        "history.csv",
        "metrics.json",
        "plots/learning_curves.png",
        "plots/confusion_matrix.png",
        "plots/worst_mistakes.png",
    } <= names
    assert not [name for name in names if "partial" in name]
    assert run.labels == tuple("0123456789")
    with open(run.path / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert set(rows[0]) == {
        "epoch",
        "loss",
        "accuracy",
        "val_loss",
        "val_accuracy",
        "learning_rate",
        "seconds",
        "stage",
    }


def test_metrics_equal_those_of_scikit_learn(run):
    from sklearn.metrics import classification_report

    dataset, split = run.data()
    pixels = dataset.images[split.test].astype(np.float32) / 255
    predicted = run.model().predict(pixels, verbose=0).argmax(1)
    report = classification_report(dataset.classes[split.test], predicted, target_names=run.labels, output_dict=True)
    metrics = run.metrics
    assert metrics["accuracy"] == pytest.approx(report["accuracy"])
    assert metrics["accuracy"] > 0.85
    for label in run.labels:
        assert metrics["per_class"][label]["f1"] == pytest.approx(report[label]["f1-score"])
        assert metrics["per_class"][label]["support"] == report[label]["support"]
    assert np.array(metrics["confusion"]).sum() == metrics["images"] == len(split.test)


def test_run_records_the_resolved_recipe(run, recipe):
    resolved = run.recipe
    assert resolved.data.input_size == 28
    assert resolved.train.batch_size == 16
    assert resolved.seed == recipe.seed


def test_split_record_lists_the_test_images(run):
    record = run.split_record
    assert len(record["test"]) == 250
    assert not set(record["test"]) & set(record["val"])
    assert record["held_out_here"] is True
    assert record["digest"] == run.metrics["data_digest"]


@pytest.mark.parametrize("name", ["learning_curves", "confusion_matrix", "worst_mistakes"])
def test_plots_are_readable_images(run, name):
    image = cv2.imread(str(run.path / "plots" / f"{name}.png"))
    assert image.shape[0] > 200
    assert image.std() > 5


def test_metrics_match_a_manual_calculation():
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], np.float32)
    result = classifier_report(scores, np.array([0, 1, 1]), ("a", "b"), "test")
    assert result.accuracy == pytest.approx(2 / 3)
    assert result.confusion == [[1, 0], [1, 1]]
    assert result.per_class["b"]["recall"] == 0.5
    assert result.loss == pytest.approx(-np.log([0.9, 0.8, 0.4]).mean())


def test_best_epoch_prefers_accuracy_then_loss():
    rows = [
        {"epoch": i + 1, "val_accuracy": a, "val_loss": b}
        for i, (a, b) in enumerate([(0.9, 1), (0.95, 2), (0.95, 1), (0.9, 0.5)])
    ]
    assert best_epoch(rows) == 3


def test_run_bundle_and_tflite_file_have_similar_accuracy(run, bundle):
    own = evaluate(run.path)
    assert own.accuracy == pytest.approx(run.metrics["accuracy"])
    float32 = evaluate(run.path / "float32" / "model.tflite", "digits", split="all")
    assert float32.images == 1797
    of_bundle = evaluate(bundle, "digits")
    assert of_bundle.split == "test"  # the bundle records its training images
    assert of_bundle.images == 250
    assert abs(of_bundle.accuracy - own.accuracy) <= 0.03
    assert of_bundle.accuracy == run.variants()["int8-qat"]["forms"][-1]["top1"]


def test_evaluate_prints_json(run, invoke):
    value = json.loads(invoke("evaluate", run.path, "--json").stdout)
    assert {"accuracy", "loss", "per_class", "confusion"} <= set(value)
    assert set(value["per_class"]["3"]) == {"precision", "recall", "f1", "support"}


def test_evaluate_on_a_folder_maps_classes_by_name(run, golden_images, tmp_path):
    for number in (7, 3):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "a.png").write_bytes(golden_images[number].read_bytes())
    result = evaluate(run.path, str(tmp_path))
    assert result.split == "all"
    assert result.per_class["7"]["support"] == result.per_class["3"]["support"] == 1
    assert np.array(result.confusion)[[3, 7]].sum() == 2
    (tmp_path / "eleven").mkdir()
    (tmp_path / "eleven" / "a.png").write_bytes(golden_images[0].read_bytes())
    with pytest.raises(DataError, match="class 'eleven' that the model does not know"):
        evaluate(run.path, str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "is not a run, a bundle or"),
        (["{bundle}"], "add --data"),
        (["{bundle}", "--data", "nothing"], "unknown data set 'nothing'"),
    ],
)
def test_evaluate_refuses_missing_model_or_data(bundle, invoke, arguments, message):
    assert message in error_line(invoke("evaluate", *(a.format(bundle=bundle) for a in arguments)))


def test_existing_folder_is_not_replaced(run, recipe, tmp_path):
    with pytest.raises(OutputExistsError, match="--overwrite"):
        fit(recipe, run.path)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "recipe.toml").write_text("seed = 1")
    (tmp_path / "precious" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="--overwrite does not replace it"):
        fit(recipe, tmp_path / "precious", overwrite=True)
    assert (tmp_path / "precious" / "thesis.txt").exists()


def start(out, *arguments) -> subprocess.Popen:
    command = [sys.executable, "-m", "edgerec", "train", "--data", "digits", "--out", str(out), *arguments]
    # A process in the background of a shell ignores SIGINT, and its child processes inherit this setting.
    restore_sigint = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=restore_sigint
    )


def wait_for(path, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_run_resumes_and_ends_like_an_uninterrupted_run(tmp_path, invoke, edgerec):
    # Each training runs in its own process, because rounding errors may depend on other work of a process.
    out, epochs = tmp_path / "run", ["--epochs", "4", "--set", "model.dropout=0.3"]
    process = start(out, *epochs)
    wait_for(out / "checkpoints" / "epoch-00001.keras", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "metrics.json").exists()
    assert "add --resume" in error_line(invoke("train", "--data", "digits", "--out", out))
    assert "unfinished" in error_line(invoke("quantize", out))
    result = edgerec("train", "--resume", "--out", out, timeout=600)
    assert result.returncode == 0, result.stderr
    assert "resuming after epoch" in result.stderr
    resumed = Run.open(out)
    assert [row["epoch"] for row in resumed.history()] == [1, 2, 3, 4]
    assert not list(out.rglob("*partial*"))
    uninterrupted = edgerec("train", "--data", "digits", *epochs, "--out", tmp_path / "uninterrupted", timeout=600)
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    for epoch, expected in zip(resumed.history(), Run.open(tmp_path / "uninterrupted").history(), strict=True):
        assert epoch["loss"] == pytest.approx(expected["loss"], abs=1e-5)
        assert epoch["val_loss"] == pytest.approx(expected["val_loss"], abs=1e-5)
    assert invoke("train", "--resume", "--out", out).returncode == 0  # a finished run is not an error


@pytest.mark.slow
def test_ctrl_c_prints_the_command_to_resume(tmp_path):
    process = start(tmp_path / "run", "--epochs", "500")
    wait_for(tmp_path / "run" / "checkpoints" / "epoch-00001.keras", process)
    process.send_signal(signal.SIGINT)
    try:
        _, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert f"edgerec train --resume --out {tmp_path / 'run'}" in error
    assert "Traceback" not in error


def test_resume_of_a_missing_run_is_refused(tmp_path, invoke):
    assert "because it is not a run: train without --resume" in error_line(
        invoke("train", "--resume", "--out", tmp_path / "x")
    )
    result = invoke("train", "--resume", "--overwrite", "--out", tmp_path / "x")
    assert result.returncode == 2
    assert "cannot be combined with --overwrite" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "digit"], "did you mean 'digits'"),
        (
            ["--data", "digits", "--arch", "mobilnet_v1"],
            "unknown architecture 'mobilnet_v1'; did you mean 'mobilenet_v1'",
        ),
        (["--set", "train.epoch=3"], "did you mean 'train.epochs'"),
        (["--data", "digits", "--weights", "nothing.h5"], "does not exist"),
        (["--data", "digits", "--weights", "imagenet"], "these architectures: vgg16, resnet50, mobilenet_v1"),
        (["nothing.toml"], "create a complete recipe with edgerec recipe > nothing.toml"),
    ],
)
def test_train_refuses_invalid_arguments(tmp_path, invoke, arguments, message):
    assert message in error_line(invoke("train", *arguments, "--out", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_missing_gpu_is_an_error(tmp_path, invoke):
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        pytest.skip("this machine has a GPU")
    assert "TensorFlow finds no GPU" in error_line(
        invoke("train", "--data", "digits", "--device", "gpu", "--out", tmp_path / "run")
    )


def quick(**changes):
    return Recipe().override({"train.epochs": 1, **changes})


def test_loss_that_becomes_nan_ends_the_run(run, tmp_path):
    model = run.model()
    model.set_weights([weight * np.nan for weight in model.get_weights()])
    model.save(tmp_path / "nan.keras")
    with pytest.raises(TrainError, match=r"the loss became nan in epoch 1, by step \d+ of \d+: lower train"):
        fit(quick(**{"model.weights": str(tmp_path / "nan.keras"), "model.arch": "simple_cnn"}), tmp_path / "run")


def test_validation_loss_that_becomes_nan_ends_the_run(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    interrupted = Run.open(tmp_path / "run")
    history = interrupted.history()
    last = stages(interrupted.recipe)[-1]
    record = epoch_recorder(
        interrupted, interrupted.recipe, last, steps=1, workers=Workers(), listener=ignore, on_epoch=None
    )
    model = run.model()
    model.compile("adam")
    record.set_model(model)
    record.on_epoch_begin(len(history))
    with pytest.raises(TrainError, match=f"the val_loss became nan in epoch {len(history) + 1}: lower train"):
        record.on_epoch_end(len(history), {"loss": 1.0, "accuracy": 0.5, "val_loss": np.nan, "val_accuracy": 0.1})
    assert interrupted.history() == history  # a row with NaN would make the run unreadable


def test_options_of_training_work_together(image_folder, tmp_path):
    recipe = quick(
        **{
            "data.source": str(image_folder),
            "data.input_size": 32,
            "data.normalize": "signed",
            "model.arch": "resnet8",
            "model.width": 0.5,
            "model.dropout": 0.2,
            "train.schedule": "plateau",
            "train.class_weights": "balanced",
            "train.mixed_precision": True,
            "augment.flip": True,
        }
    )
    finished = fit(recipe, tmp_path / "run")
    assert {weight.dtype for weight in finished.model().get_weights()} == {np.dtype("float32")}
    assert {layer.compute_dtype for layer in finished.model().layers} == {"float32"}
    assert evaluate(finished.path).accuracy == finished.metrics["accuracy"]


def test_early_stopping_ends_the_training(image_folder, tmp_path):
    recipe = quick(
        **{
            "data.source": str(image_folder),
            "train.epochs": 50,
            "train.early_stopping": 2,
            "train.learning_rate": 1e-8,  # too low for any improvement
        }
    )
    history = fit(recipe, tmp_path / "run").history()
    assert len(history) == best_epoch(history) + 2
    assert len(history) < 50


def test_weights_are_loaded_from_a_file(run, tmp_path):
    again = fit(quick(**{"model.weights": str(run.path / "model.keras")}), tmp_path / "run")
    assert again.history()[0]["val_accuracy"] > 0.9


def test_unsuitable_weights_are_refused(tmp_path, run):
    with pytest.raises(ModelError, match="none of the weights"):
        fit(quick(**{"model.weights": str(run.path / "model.keras"), "model.arch": "resnet8"}), tmp_path / "a")
    (tmp_path / "no.h5").write_bytes(b"hello")
    with pytest.raises(ModelError, match="no weights that Keras can read"):
        fit(quick(**{"model.weights": str(tmp_path / "no.h5"), "model.arch": "simple_cnn"}), tmp_path / "b")


def test_changed_images_are_not_evaluated(image_folder, tmp_path):
    finished = fit(quick(**{"data.source": str(image_folder)}), tmp_path / "run")
    next((image_folder / "red").iterdir()).unlink()
    with pytest.raises(DataError, match="has changed since"):
        evaluate(finished.path)
    with pytest.raises(DataError, match="has changed since"):
        finished.data()


def test_each_image_is_decoded_once(image_folder, tmp_path, monkeypatch):
    """Later epochs and the evaluation read the decoded images from the cache."""
    from edgerec.data import cache

    decoded = []
    real = cache.decode
    monkeypatch.setattr(cache, "decode", lambda *arguments: decoded.append(1) or real(*arguments))
    finished = fit(quick(**{"data.source": str(image_folder), "train.epochs": 3}), tmp_path / "run")
    assert len(decoded) == 40
    evaluate(finished.path)
    assert len(decoded) == 40


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="mounting a small disk needs root")
def test_full_disk_is_reported_in_one_line_without_partial_files(tmp_path, invoke, run, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk], check=False)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        message = error_line(invoke("export", run.path, "--target", "rpi", "--out", disk / "bundle"))
        assert "No space left on device" in message
        assert list(disk.iterdir()) == []
        result = invoke("train", "--data", "digits", "--epochs", "1", "--out", disk / "run")
        assert result.returncode == 1
        assert "o space left" in result.stderr.splitlines()[-1]
        monkeypatch.setenv("EDGEREC_CACHE", str(disk / "cache"))
        result = invoke("train", "--data", "digits", "--epochs", "1", "--out", tmp_path / "run")
        assert result.returncode == 1
        assert "No space left on device" in result.stderr.splitlines()[-1]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_empty_folder_is_not_a_run(tmp_path):
    with pytest.raises(EdgerecError, match="is not a run"):
        Run.open(tmp_path)


def test_unknown_recipe_key_in_a_file_is_refused(tmp_path, invoke):
    (tmp_path / "my.toml").write_text("[train]\nepoch = 3\n")
    message = error_line(invoke("train", tmp_path / "my.toml", "--out", tmp_path / "run"))
    assert "my.toml: unknown recipe key 'train.epoch'; did you mean 'train.epochs'?" in message
    with pytest.raises(RecipeError):
        Recipe.from_toml(tmp_path / "my.toml")


def test_failed_download_of_imagenet_weights_names_the_solution(image_folder, tmp_path, monkeypatch):
    import tf_keras

    real = tf_keras.applications.MobileNetV2

    def offline(**options):
        if options["weights"] == "imagenet":
            raise Exception("URL fetch failure on https://example: None -- [Errno -2] Name or service not known")
        return real(**options)

    monkeypatch.setattr(tf_keras.applications, "MobileNetV2", offline)
    recipe = quick(**{"data.source": str(image_folder), "model.arch": "mobilenet_v2", "model.weights": "imagenet"})
    advice = r"could not be downloaded .*: connect this machine .* set model.weights to 'none'"
    with pytest.raises(ModelError, match=advice):
        fit(recipe, tmp_path / "run")


def test_moved_images_can_be_named_with_data(image_folder, tmp_path):
    finished = fit(quick(**{"data.source": str(image_folder)}), tmp_path / "run")
    image_folder.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="does not exist: the folder"):
        finished.data()
    _, split = finished.data(str(tmp_path / "elsewhere"))
    assert len(split.test) == len(finished.split_record["test"])
    assert evaluate(finished.path, str(tmp_path / "elsewhere")).split == "test"


def test_relative_data_path_works_from_another_directory(image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(image_folder.parent)
    finished = fit(quick(**{"data.source": image_folder.name}), tmp_path / "run")
    monkeypatch.chdir("/")
    assert len(finished.data()[0].classes) == 40


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", "\x00"])
@pytest.mark.parametrize("name", ["metrics.json", "split.json", "recipe.toml", "labels.txt", "int8-qat/report.json"])
def test_damaged_run_is_reported_in_one_line(run, tmp_path, name, content, capsys):
    """Each command that reads a damaged file of a run fails with one line; other commands work."""
    import shutil

    from typer.testing import CliRunner

    from edgerec.cli.app import app

    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_text(content)
    for command in (["evaluate", copy], ["quantize", copy], ["export", copy, "--out", tmp_path / "b"]):
        result = CliRunner().invoke(app, [str(part) for part in command])
        # A variant without a report does not count as finished, and evaluate does not read the report.
        unused = name == "int8-qat/report.json" and (content is None or command[0] == "evaluate")
        assert result.exit_code == (0 if unused else 1), result.exception
        assert result.stderr.strip().rpartition("\n")[2].startswith("error: ") is not unused


def test_damaged_checkpoint_is_skipped(recipe, tmp_path):
    finished = fit(quick(**{"train.epochs": 2}), tmp_path / "run")
    for name in ("metrics.json", "model.keras"):
        (finished.path / name).unlink()
    newest = finished.path / "checkpoints" / "epoch-00002.keras"
    newest.write_bytes(newest.read_bytes()[:-1000])
    (finished.path / "checkpoints" / "epoch-00003 (copy).keras").write_bytes(b"mine")
    again = fit(recipe, finished.path, resume=True)
    assert again.finished
    assert [row["epoch"] for row in again.history()] == [1, 2]
    for path in (finished.path / "checkpoints").glob("epoch-0000?.keras"):
        path.write_bytes(b"damaged")
    (finished.path / "metrics.json").unlink()
    restarted = fit(recipe, finished.path, resume=True)  # without a checkpoint, the training starts at the first epoch
    assert [row["epoch"] for row in restarted.history()] == [1, 2]


def test_partially_written_variant_is_not_listed(run):
    partial = run.path / ".int8-qat.x.partial"
    partial.mkdir()
    try:
        (partial / "model.tflite").write_bytes(b"")
        (partial / "report.json").write_text("{")
        assert partial.name not in run.variants()
    finally:
        (partial / "report.json").unlink()
        (partial / "model.tflite").unlink()
        partial.rmdir()


def test_class_names_may_have_special_characters(image_folder, tmp_path):
    (image_folder / "red").rename(image_folder / "$$$ rot_")
    (image_folder / "blue").rename(image_folder / "blau ö %s {x}")
    finished = fit(quick(**{"data.source": str(image_folder)}), tmp_path / "run")
    assert finished.labels == ("$$$ rot_", "blau ö %s {x}")
    (image_folder / "blau ö %s {x}").rename(image_folder / "a\nb")
    with pytest.raises(DataError, match="control character"):
        fit(quick(**{"data.source": str(image_folder)}), tmp_path / "other")


def test_file_names_need_not_be_valid_utf8(image_folder, tmp_path, edgerec, invoke):
    some = sorted((image_folder / "red").iterdir())
    for number, path in enumerate(some):
        os.rename(path, os.fsencode(path.parent) + b"/M\xfcller" + str(number).encode() + b".jpg")
    result = invoke("train", "--data", image_folder, "--epochs", "1", "--out", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert any("ller" in name for name in Run.open(tmp_path / "run").split_record["test"])
    result = invoke("export", tmp_path / "run", "--target", "desktop")
    assert result.returncode == 0, result.stderr
    result = edgerec("camera", tmp_path / "run-desktop", "--source", image_folder / "red", "--headless", "--json")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count('"event": "result"') == 20


def test_split_without_validation_images_is_refused(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "split.json").read_text())
    for key, title in (("val", "validation"), ("test", "test")):
        (tmp_path / "run" / "split.json").write_text(json.dumps(record | {key: []}))
        with pytest.raises(DataError, match=f"split.json has no {title} images: restore this file"):
            Run.open(tmp_path / "run").data()
        (tmp_path / "run" / "metrics.json").rename(tmp_path / "metrics.json")
        with pytest.raises(DataError, match=f"split.json has no {title} images: restore this file"):
            fit(run.recipe, tmp_path / "run", resume=True)
        (tmp_path / "metrics.json").rename(tmp_path / "run" / "metrics.json")
