"""The method ``auto``: PTQ first, then QAT if necessary. Interrupted fine-tuning is not discarded."""

from __future__ import annotations

import json
import logging
import shlex
import shutil

import numpy as np
import pytest

from edgerec import Recipe, Run, fit, quantize
from edgerec.compress.convert import to_float16
from edgerec.errors import GateError, OutputExistsError, RecipeError
from tests.conftest import error_line, write_red_and_blue_images


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A run on 40 images of two colors, in a folder whose name has a space and a quote."""
    folder = tmp_path_factory.mktemp("user's files")
    data = {"source": str(write_red_and_blue_images(folder / "my images")), "input_size": 28}
    recipe = Recipe.from_dict(
        {
            "data": data,
            "model": {"width": 0.25},
            "train": {"epochs": 2, "batch_size": 8},
            "compress": {"epochs": 1, "max_drop": 100.0},
        }
    )
    return fit(recipe, folder / "my run")


@pytest.fixture
def int8_run(small_run):
    """Return the run with an int8 variant, also if a test runs alone."""
    if "int8" not in small_run.variants():
        quantize(small_run)
    return small_run


def record_validation_drop(run: Run, variant: str, points: float) -> None:
    """Write another loss on the validation images into the report of an existing variant."""
    path = run.variant(variant) / "report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"val_drop_points": points}))


def test_auto_is_default_and_chooses_ptq_if_it_loses_little(small_run, invoke):
    result = invoke("quantize", small_run.path)
    assert result.returncode == 0, result.stderr
    assert list(small_run.variants()) == ["float32", "int8"]
    assert "why      ptq loses so little that qat is not tried" in result.stdout
    assert "validation images ptq loses" in result.stdout
    # A second call reuses the variant instead of refusing it.
    result = invoke("quantize", small_run.path, "--json")
    assert json.loads(result.stdout)["variant"] == "int8"
    assert "auto: using the existing variant int8" in result.stderr


def test_auto_tries_qat_if_ptq_loses_much_and_chooses_the_better(int8_run):
    record_validation_drop(int8_run, "int8", 51.0)  # more than half of ``max_drop``, but less than ``max_drop``
    report = quantize(int8_run)
    assert (report.variant, report.method) == ("int8-qat", "qat")
    assert report.why.startswith("qat loses least; on 4 validation images ptq loses 51.00 points, qat loses ")
    record_validation_drop(int8_run, "int8-qat", 52.0)
    assert quantize(int8_run).variant == "int8"
    # If both lose the same accuracy, the method without training is chosen.
    record_validation_drop(int8_run, "int8-qat", 51.0)
    assert quantize(int8_run).variant == "int8"


def test_auto_falls_back_to_float16_with_warning(small_run, invoke):
    record_validation_drop(small_run, "int8", 3.0)
    record_validation_drop(small_run, "int8-qat", 2.0)
    result = invoke("quantize", small_run.path, "--max-drop", "1")
    assert result.returncode == 0, result.stderr
    assert "auto chose float16, which is not int8" in result.stderr
    assert "why      no int8 method meets --max-drop; on 4 validation images ptq loses 3.00 points" in result.stdout
    # The suggested command exports this variant, although export itself prefers int8.
    (suggested,) = (line for line in result.stdout.splitlines() if line.startswith("next"))
    assert shlex.split(suggested)[1:] == [
        *("edgerec", "export", str(small_run.path), "--target", "rpi", "--variant", "float16"),
    ]


def test_auto_fails_if_every_method_loses_too_much_and_keeps_the_best(small_run):
    record_validation_drop(small_run, "float16", 2.5)
    with pytest.raises(GateError, match=r"no method meets --max-drop 1 on 4 validation images") as excinfo:
        quantize(small_run, max_drop=1)
    assert excinfo.value.report.variant == "int8-qat"


def test_auto_counts_a_variant_with_nan_scores_as_failed(int8_run, tmp_path, monkeypatch):
    run = Run(shutil.copytree(int8_run.path, tmp_path / "run"))
    shutil.rmtree(run.variant("float16"), ignore_errors=True)
    shutil.rmtree(run.variant("int8-qat"), ignore_errors=True)
    shutil.copytree(run.variant("int8"), run.variant("int8-qat"))
    record_validation_drop(run, "int8", 90.0)
    record_validation_drop(run, "int8-qat", 80.0)

    def to_nan(model):
        model.set_weights([np.full_like(weights, np.nan) for weights in model.get_weights()])
        return to_float16(model)

    monkeypatch.setattr("edgerec.compress.candidate.to_float16", to_nan)
    with pytest.raises(GateError, match=r"no method meets --max-drop 1 .*float16 cannot be used") as caught:
        quantize(run, max_drop=1)
    assert caught.value.report.val_drop_points == 80.0


def test_auto_does_not_reuse_variant_with_other_settings(small_run, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text("images = 7\n")
    with pytest.raises(
        OutputExistsError, match=r"int8 already exists, but was created with calibration stratified: add --overwrite"
    ):
        quantize(small_run, calibration=str(other))


def test_only_the_chosen_variant_is_measured_on_the_test_images(small_run, tmp_path, caplog):
    # PTQ with a calibration set of one image is bad, so that both methods are tried.
    fresh = fit(small_run.recipe, tmp_path / "run")
    one = tmp_path / "one.toml"
    one.write_text("images = 1\n")
    with caplog.at_level(logging.INFO, "edgerec"):
        report = quantize(fresh, max_drop=100, calibration=str(one))
    assert list(fresh.variants()) == ["float32", report.variant]


@pytest.mark.parametrize(
    ("option", "value", "method"),
    [("sparsity", 0.5, "prune"), ("clusters", 8, "cluster"), ("channels", 0.3, "channels")],
)
def test_option_that_auto_does_not_use_is_refused(small_run, invoke, option, value, method):
    with pytest.raises(RecipeError, match=rf"--{option} has no effect with --method auto: .* --method {method} "):
        quantize(small_run, **{option: value})
    assert f"such as --method {method} " in error_line(invoke("quantize", small_run.path, f"--{option}", value))


def other_network(small_run, folder, arch):
    values = small_run.recipe.to_dict()
    values["model"] |= {"arch": arch}
    values["train"] |= {"epochs": 1}
    return fit(Recipe.from_dict(values), folder)


def test_auto_skips_qat_for_a_recurrent_network(small_run, tmp_path):
    run = other_network(small_run, tmp_path / "run", "lstm")
    assert quantize(run).variant == "int8"
    record_validation_drop(run, "int8", 60.0)
    report = quantize(run)  # the only int8 method, inside max_drop
    assert report.variant == "int8"
    assert report.why.startswith("ptq is the only int8 method for this model; on 4 validation images ptq loses 60.00")
    assert "qat cannot be used" in report.why


def test_auto_quantizes_an_autoencoder(small_run, tmp_path, invoke):
    run = other_network(small_run, tmp_path / "my run", "autoencoder")
    result = invoke("quantize", run.path)
    assert result.returncode == 0, result.stderr
    assert "why      ptq loses so little" in result.stdout
    (suggested,) = (line for line in result.stdout.splitlines() if line.startswith("next"))
    assert shlex.split(suggested)[1:] == [
        *("edgerec", "export", "CLASSIFIER_RUN", "--novelty", str(run.path), "--target", "rpi"),
    ]


def test_qat_that_auto_did_not_choose_is_used_later(small_run, tmp_path, caplog):
    run = Run(shutil.copytree(small_run.path, tmp_path / "run"))
    for variant in ("int8", "int8-qat"):
        shutil.rmtree(run.variant(variant), ignore_errors=True)
    quantize(run, "ptq")
    record_validation_drop(run, "int8", 0.6)
    # A learning rate that destroys the model, so that QAT loses more than PTQ.
    options = {"learning_rate": 1.0, "epochs": 1}
    assert quantize(run, max_drop=1, **options).variant == "int8"
    caplog.clear()
    with caplog.at_level(logging.INFO, "edgerec"):
        assert quantize(run, "qat", max_drop=100, **options).variant == "int8-qat"
    assert "resuming after epoch 1/1" in caplog.text
    assert "epoch 1/1  loss" not in caplog.text


class Stopped(Exception):
    """Replaces KeyboardInterrupt, which pytest would handle itself."""


@pytest.fixture(scope="module")
def interrupted_run(small_run, tmp_path_factory):
    """A copy of the run with an interrupted QAT of two epochs, one of which is complete. Tests must not change it."""
    run = Run(shutil.copytree(small_run.path, tmp_path_factory.mktemp("interrupted") / "run"))

    def stop(progress):
        if progress.text.startswith("epoch 2"):
            raise Stopped

    with pytest.raises(Stopped):
        quantize(run, "qat", epochs=2, overwrite=True, listener=stop)
    return run


@pytest.fixture
def interrupted(interrupted_run, tmp_path):
    """A copy of the interrupted run, in a folder whose name has a space and a quote."""
    return Run(shutil.copytree(interrupted_run.path, tmp_path / "user's files" / "my run"))


def test_interrupted_fine_tuning_is_not_discarded_without_overwrite(interrupted, invoke, caplog):
    states = list((interrupted.path / "checkpoints" / "int8-qat").iterdir())
    assert len(states) == 1
    command = ("quantize", interrupted.path, "--method", "qat", "--epochs", 2)
    shutil.rmtree(interrupted.variant("int8-qat"), ignore_errors=True)
    message = error_line(invoke(*command))
    assert "contains checkpoints from an interrupted qat: add --resume to resume it, or --overwrite to" in message
    # The method auto would also start a new training.
    assert "add --resume" in error_line(invoke("quantize", interrupted.path, "--epochs", 2))
    assert list((interrupted.path / "checkpoints" / "int8-qat").iterdir()) == states
    # Other settings would silently start again.
    with pytest.raises(OutputExistsError, match=r"interrupted qat with compress.epochs 2 instead of 3: use the same"):
        quantize(interrupted, "qat", epochs=3, resume=True)
    with caplog.at_level(logging.INFO, "edgerec"):
        quantize(interrupted, "qat", epochs=2, max_drop=99, resume=True)  # ``max_drop`` may differ
    assert "quantization-aware training: resuming after epoch 1/2" in caplog.text
    assert not states[0].exists()


def test_message_about_other_settings_names_only_options_of_the_command(interrupted, invoke):
    """``quantize --compare`` and ``build`` always resume, and ``build`` has no option --resume."""
    folder = interrupted.path / "checkpoints" / "int8-qat"
    shutil.rmtree(interrupted.variant("int8-qat"), ignore_errors=True)
    recipe = interrupted.path.parent / "recipe.toml"
    recipe.write_text(interrupted.recipe.override({"compress.epochs": 3}).to_toml())
    build = ("build", recipe, "--method", "qat", "--no-open", "--out", interrupted.path)
    for command in (("quantize", interrupted.path, "--compare", "--method", "qat", "--epochs", 3), build):
        result = invoke(*command)
        message = result.stderr.splitlines()[-1]
        assert result.returncode == 1
        assert f"{folder} contains checkpoints from an interrupted qat with compress.epochs 2 instead of 3" in message
        assert "use the same settings to resume it, or delete this folder to start again" in message
        assert "--" not in message
    message = error_line(invoke("quantize", interrupted.path, "--method", "qat", "--epochs", 3))
    assert "use the same settings and add --resume to resume it, or --overwrite to start again" in message
    shutil.rmtree(folder)
    report = quantize(interrupted, "qat", epochs=1, max_drop=100, resume=True)
    assert report.variant == "int8-qat"


def test_overwrite_starts_fine_tuning_again(interrupted, caplog):
    with caplog.at_level(logging.INFO, "edgerec"):
        quantize(interrupted, "qat", epochs=2, overwrite=True)
    assert "resuming" not in caplog.text


def test_ctrl_c_prints_command_for_resuming(small_run, invoke, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("edgerec.compress.candidate.quantization_aware", interrupt)
    result = invoke("quantize", small_run.path, "--method", "qat", "--epochs", 2, "--overwrite")
    assert result.returncode == 130
    last = result.stderr.splitlines()[-1]
    command = shlex.split(last.partition("resume with: ")[2])
    assert command[:3] == ["edgerec", "quantize", str(small_run.path)]
    assert " ".join(command[3:5]) == "--method qat"
    assert sorted(command[5:]) == sorted(["--epochs", "2", "--overwrite", "--resume"])
