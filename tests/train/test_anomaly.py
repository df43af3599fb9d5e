"""Autoencoders: training, compression, and novelty detection in a bundle."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from edgerec import Bundle, Camera, Classifier, Novelty, Recipe, Run, ensemble, export_bundle, fit, quantize, verify
from edgerec.cli.app import app
from edgerec.contract.decision import DecisionSpec, decide
from edgerec.contract.manifest import Manifest
from edgerec.contract.smoothing import Decider
from edgerec.contract.tensors import Normalize
from edgerec.errors import BundleError, EdgerecError, GateError, ModelError, RecipeError, RunError
from edgerec.runtime.autoencoder import Autoencoder
from edgerec.runtime.image_model import ImageModel
from edgerec.tflite.flatbuffer import float_tensors, read_graph

UNIT = Normalize.named("unit")
LABELS = ("cat", "dog")
# The digits in their original size of 8×8 pixels. The classifier of the other tests takes enlarged images.
RECIPE = {
    "data": {"input_size": 8},
    "model": {"arch": "autoencoder", "width": 0.5},
    "train": {"epochs": 4, "learning_rate": 0.01, "accumulate": 2},
    "augment": {"mixup": 0.2},
    "compress": {"epochs": 1, "max_drop": 10.0},
}


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory) -> Run:
    """A finished run with the variants int8 and int8-qat."""
    trained = fit(Recipe.from_dict(RECIPE), tmp_path_factory.mktemp("autoencoder") / "run")
    quantize(trained, "ptq")
    quantize(trained, "qat")
    return trained


@pytest.fixture(scope="module")
def novelty_bundle(run, autoencoder, tmp_path_factory):
    """A bundle of the digits' classifier with the int8 variant of the autoencoder."""
    out = tmp_path_factory.mktemp("novelty_bundle") / "digits.zip"
    export_bundle(run, "rpi", novelty=Novelty(autoencoder.path, "int8", 0.95), out=out)
    return out


def noise(seed: int = 0, side: int = 8):
    """Return an image of random pixels, which is not a digit."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


# --- Training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (30, 3), (53, 1)])
def test_output_has_the_shape_of_the_input(side, channels):
    from edgerec.models import build
    from edgerec.train.backend import keras

    section = Recipe.from_dict({"model": {"arch": "autoencoder", "width": 0.25}}).model
    model = build(keras(), section, (side, side, channels), 10, UNIT)
    assert model.output_shape == (None, side, side, channels)
    code = model.get_layer("code").output_shape
    assert np.prod(code[1:]) <= side * side * channels / 2


def test_training_records_errors_and_no_accuracy(autoencoder):
    rows, metrics = autoencoder.history(), autoencoder.metrics
    assert not any("accuracy" in key for key in (*rows[0], *metrics))
    assert metrics["best_epoch"] == min(rows, key=lambda row: row["val_loss"])["epoch"]
    assert 0 < metrics["error"] < rows[0]["loss"]
    assert metrics["known"] > 0.9
    assert set(metrics["per_class"]) == set(map(str, range(10)))
    plots = {path.name for path in (autoencoder.path / "plots").iterdir()}
    assert plots == {"learning_curves.png", "reconstructions.png", "errors.png"}
    assert (autoencoder.path / "model_keras3.keras").is_file()


def test_threshold_is_the_quantile_of_the_validation_errors(autoencoder):
    from edgerec.train.scorers import keras_scorer

    dataset, split = autoencoder.data()
    errors = keras_scorer(autoencoder.model(), UNIT)(dataset.images[split.val], lambda _: None)[:, 0]
    assert np.mean(errors <= autoencoder.metrics["threshold"]) == pytest.approx(0.99, abs=0.01)


def test_images_need_no_labels(tmp_path, image_folder):
    """An autoencoder is trained on a folder without class folders, or with a single class."""
    from edgerec.train.automatic_recipe import resolved

    flat = tmp_path / "flat"
    flat.mkdir()
    for path in image_folder.rglob("*.jpg"):
        (flat / f"{path.parent.name}-{path.name}").write_bytes(path.read_bytes())
    (tmp_path / "one").mkdir()
    (image_folder / "red").rename(tmp_path / "one" / "red")
    small = {"data": {"input_size": 8}, "train": {"epochs": 1}, "model": RECIPE["model"]}
    recipe = Recipe.from_dict(small).override({"data.source": str(tmp_path / "flat")})
    trained = fit(recipe, tmp_path / "run")
    assert trained.labels == ()
    assert trained.metrics["per_class"] == {}
    assert len(trained.data()[0].images) == 40
    one = recipe.override({"data.source": str(tmp_path / "one")})
    assert resolved(one, lambda _: None)[1].labels == ("red",)
    with pytest.raises(EdgerecError, match="has only one class"):
        resolved(one.override({"model.arch": "resnet8", "data.input_size": 16}), lambda _: None)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.normalize", "pixels", "set data.normalize to unit or signed"),
        ("model.weights", "imagenet", "set model.weights to none"),
        ("distill.teachers", "somewhere", "only classifiers can be distilled"),
    ],
)
def test_unsuitable_recipe_keys_are_refused(tmp_path, key, value, message):
    with pytest.raises(RecipeError, match=message):
        fit(Recipe.from_dict(RECIPE).override({key: value}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- Compression ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["int8", "int8-qat"])
def test_variants_are_measured_by_their_reconstruction_errors(autoencoder, variant):
    report = autoencoder.variants()[variant]
    keras, float32, *_, form = report["forms"]
    assert keras["agreement"] == pytest.approx(1)
    assert float32["error"] == pytest.approx(keras["error"], rel=1e-4)
    assert form["error"] == pytest.approx(keras["error"], rel=0.5)
    assert form["agreement"] > 0.9
    content = (autoencoder.path / variant / "model.tflite").read_bytes()
    graph = read_graph(content)
    assert not float_tensors(graph)
    assert "RESIZE_NEAREST_NEIGHBOR" in {operator.name for operator in graph.operators}
    assert Autoencoder(content, UNIT).reconstruction(np.zeros((8, 8, 1), np.uint8)).shape == (8, 8, 1)


def test_agreement_is_the_rank_correlation_of_the_errors():
    from edgerec.train.metrics import AutoencoderMetrics

    measure, errors = AutoencoderMetrics(0.5), np.array([[0.1], [0.2], [0.3], [0.9]], np.float32)
    assert measure.top1(errors, np.zeros(4, np.int64)) == 0.75
    assert measure.agreement(errors**2, errors) == pytest.approx(1)
    assert measure.agreement(-errors, errors) == pytest.approx(-1)
    assert measure.agreement(np.full((4, 1), 0.1, np.float32), errors) == 0
    assert measure.error(errors) == pytest.approx(0.375)


def test_accuracy_gate_compares_the_fraction_of_known_images(autoencoder, run, monkeypatch):
    report = dict(autoencoder.variants()["int8"])
    report["forms"] = [*report["forms"][:-1], report["forms"][-1] | {"top1": 0.5}]
    monkeypatch.setattr(Run, "variants", lambda self: {"int8": report, "int8-qat": report})
    from edgerec.contract.target import Target
    from edgerec.export.variants import choose

    with pytest.raises(GateError, match="points of known images"):
        choose(autoencoder, Target.load("rpi"), "int8", max_drop=None, data=None, listener=lambda _: None)


def test_channel_pruning_ranks_channels_by_the_reconstruction_error(autoencoder, tmp_path):
    from edgerec.compress.channel_graph import trace
    from edgerec.compress.channel_importance import taylor_importance
    from edgerec.compress.context import CompressionContext

    with CompressionContext.open(autoencoder, autoencoder.recipe, None, lambda _: None) as context:
        tune = context.fine_tune(tmp_path)
    model = autoencoder.model()
    scores = taylor_importance(model, trace(model), tune)
    assert np.isfinite(scores).all()
    assert np.count_nonzero(scores) > 8


def test_classifier_and_autoencoder_are_not_interchangeable(run, autoencoder):
    with pytest.raises(ModelError, match="not an autoencoder"):
        Autoencoder((run.path / "int8-qat" / "model.tflite").read_bytes(), UNIT)
    with pytest.raises(ModelError, match=r"expected \[1, classes\]"):
        ImageModel((autoencoder.path / "int8" / "model.tflite").read_bytes(), UNIT)


# --- Commands for classifiers --------------------------------------------------------------------------


def test_commands_for_classifiers_refuse_an_autoencoder(autoencoder, tmp_path):
    from edgerec import distill, evaluate, parity, tune, write_report

    classifying = Recipe.from_dict({})
    refused = (
        lambda: evaluate(autoencoder.path),
        lambda: parity(autoencoder),
        lambda: quantize(autoencoder, "qat", teacher_weight=0.5),
        lambda: export_bundle(autoencoder, "rpi", out=tmp_path / "out"),
        lambda: distill([autoencoder.path], "simple_cnn", tmp_path / "out"),
        lambda: ensemble([autoencoder.path, autoencoder.path], tmp_path / "out"),
        lambda: write_report(autoencoder, tmp_path / "out"),
        lambda: tune(autoencoder.recipe, tmp_path / "out", trials=1),
        lambda: tune(classifying, tmp_path / "out", search={"model.arch": ["autoencoder"]}, trials=1),
    )
    for call in refused:
        with pytest.raises((RunError, RecipeError), match="autoencoder"):
            call()
    assert not (tmp_path / "out").exists()


def test_export_refuses_unsuitable_novelty_options(run, autoencoder, tmp_path):
    with pytest.raises(EdgerecError, match="is a classifier run"):
        export_bundle(run, "rpi", novelty=run.path, out=tmp_path / "out")
    with pytest.raises(BundleError, match="omit --novelty"):
        export_bundle(run, "web", novelty=autoencoder.path, out=tmp_path / "out")
    with pytest.raises(EdgerecError, match="greater than 0 and less than 1"):
        Novelty(autoencoder.path, known=1.0)
    result = CliRunner().invoke(app, ["export", str(run.path), "--known", "0.9"])
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()


# --- In a bundle ------------------------------------------------------------------------------------------------


def test_threshold_is_measured_with_the_exported_model(novelty_bundle, autoencoder):
    bundle = Bundle.open(novelty_bundle)
    spec, about = bundle.manifest.novelty, bundle.manifest.metrics["novelty"]
    dataset, split = autoencoder.data()
    model = Autoencoder(bundle.files["novelty.tflite"], spec.normalize)
    errors = [model.error(dataset.images[i]) for i in split.val]
    assert np.mean(np.array(errors) <= spec.threshold * (1 + 1e-6)) == pytest.approx(0.95, abs=0.01)
    assert about["variant"] == "int8"
    assert about["known_held_out"] > 0.85
    assert "## Unfamiliar images" in bundle.files["README.md"].decode()


def test_novel_images_are_unknown(novelty_bundle, golden_images):
    from edgerec import read_image

    classifier = Classifier.open(novelty_bundle)
    digits = [classifier.classify(read_image(path)) for path in golden_images]
    assert sum(prediction.index >= 0 for prediction in digits) >= 8
    novel = classifier.classify(noise())
    assert (novel.label, novel.index) == ("unknown", -1)
    assert novel.novelty > 1 > min(prediction.novelty for prediction in digits)
    assert novel.score == novel.categories[0].score  # the scores are those of the classifier
    everything = Classifier.open(novelty_bundle, decision={"novelty": 0.0}).classify(noise())
    assert everything.index >= 0
    assert everything.novelty is None
    looser = Classifier.open(novelty_bundle, decision={"novelty": 2 * novel.novelty}).classify(noise())
    assert looser.index >= 0


def test_camera_and_predict_output_the_novelty(novelty_bundle, tmp_path):
    import cv2

    for number in range(4):
        cv2.imwrite(str(tmp_path / f"{number}.png"), noise(number))
    with Camera.open(novelty_bundle, str(tmp_path), threads=2) as camera:  # one interpreter for each thread
        results = list(camera)
    assert [result.decision.index for result in results] == [-1] * 4
    assert all(result.to_dict()["novelty"] > 1 for result in results)
    process = CliRunner().invoke(app, ["predict", str(novelty_bundle), str(tmp_path / "0.png"), "--json"])
    assert json.loads(process.stdout.splitlines()[-1])["novelty"] > 1
    process = CliRunner().invoke(app, ["predict", str(novelty_bundle), str(tmp_path / "0.png")])
    assert "unknown" in process.stdout
    assert "novelty" in process.stdout


def test_golden_errors_are_verified(novelty_bundle, tmp_path):
    report = verify(novelty_bundle)
    assert report.exact
    assert [result.model for result in report.golden if result.image == "golden/000.png"] == [
        "model.tflite",
        "novelty.tflite",
    ]
    bundle = Bundle.open(novelty_bundle)
    golden = json.loads(bundle.files["golden/golden.json"])
    for change, message in ((1.01, "differ by"), (float("nan"), "is damaged")):
        other = json.loads(json.dumps(golden))
        other["vectors"][0]["error"] *= change
        files = bundle.files | {"golden/golden.json": json.dumps(other).encode()}
        Bundle.write(tmp_path / "bundle", bundle.manifest, files, overwrite=True)
        with pytest.raises(BundleError, match=message):
            verify(tmp_path / "bundle")


def test_error_tolerance_holds_for_the_worst_output():
    """If each output differs by the permitted amount, the error differs by at most its tolerance."""
    from edgerec.contract.manifest import NoveltySpec
    from edgerec.contract.preprocess import PreprocessSpec
    from edgerec.contract.tensors import TensorSpec
    from edgerec.runtime.interpreter import Fingerprint
    from edgerec.runtime.verification import UNITS_OTHER_MACHINE, error_tolerance

    tensor = TensorSpec("uint8", (1, 8, 8, 1), 0.01, 20)
    spec = NoveltySpec("m", tensor, tensor, PreprocessSpec(8, 8, 1), UNIT, threshold=0.1)
    other_machine, this_machine = Fingerprint("litert", "1", "x", "a"), Fingerprint("litert", "1", "y", "b")
    differences = np.random.default_rng(0).normal(0, 0.1, 64)
    error = float(np.mean(differences**2))
    worst = float(np.mean((np.abs(differences) + UNITS_OTHER_MACHINE * 0.01) ** 2))
    assert worst - error <= error_tolerance(other_machine, this_machine, spec, error)
    assert error_tolerance(other_machine, other_machine, spec, error) < 1e-8


def test_ensemble_keeps_the_autoencoder(novelty_bundle, bundle, run, tmp_path):
    other = export_bundle(run, "rpi", variant="float32", out=tmp_path / "float").bundle
    combined = ensemble([other, novelty_bundle], tmp_path / "both")
    assert combined.models == 2
    classifier = Classifier.open(combined.bundle)
    assert classifier.classify(noise()).label == "unknown"
    assert verify(combined.bundle).images == 10


def test_bundles_without_an_autoencoder_still_open(bundle, golden_images):
    from edgerec import read_image

    opened = Bundle.open(bundle)
    values = json.loads(opened.manifest.to_json())
    assert values.pop("novelty") is None
    del values["decision"]["novelty"]
    before = Manifest.from_json(json.dumps(values))
    assert before == opened.manifest
    prediction = Classifier(replace(opened, manifest=before)).classify(read_image(golden_images[0]))
    assert prediction.novelty is None
    with pytest.raises(BundleError, match="has no autoencoder"):
        Classifier(opened).error(())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 0}, "expected a positive number"),
        ({"threshold": True}, "expected a positive number"),
        ({"threshold": "1"}, "expected a positive number"),
        ({"model": "other.tflite"}, "has no digest"),
        (
            {"output": {"dtype": "uint8", "shape": [1, 4, 4, 1], "scale": 1.0, "zero_point": 0}},
            "the output shape is",
        ),
        ({"strange": 1}, "strange"),
    ],
)
def test_damaged_manifests_are_refused(novelty_bundle, change, message):
    values = json.loads(Bundle.open(novelty_bundle).manifest.to_json())
    values["novelty"] |= change
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(json.dumps(values))


def test_inspect_export_and_resume_support_autoencoders(novelty_bundle, autoencoder, run, tmp_path):
    shown = CliRunner().invoke(app, ["inspect", str(novelty_bundle)])
    assert "novelty  novelty.tflite" in shown.stdout
    arguments = ["export", str(run.path), "--novelty", str(autoencoder.path), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--novelty-variant", "int8-qat", "--known", "0.9", "--json"])
    about = json.loads(result.stdout)["novelty"]
    assert (about["variant"], about["known"]) == ("int8-qat", 0.9)
    coral = export_bundle(
        run, "coral", novelty=autoencoder.path, out=tmp_path / "coral"
    )  # the export checks that the target supports each operator
    assert "novelty.tflite" in coral.files
    assert CliRunner().invoke(app, ["train", "--resume", "--out", str(autoencoder.path)]).stdout.startswith("error ")


def test_benchmark_includes_the_autoencoder(novelty_bundle):
    from edgerec import benchmark

    report = benchmark(novelty_bundle, seconds=0.2)
    assert "RESIZE_NEAREST_NEIGHBOR" in {operator.op for operator in report.operators}


# --- Decisions --------------------------------------------------------------------------------------------------


def test_novel_image_is_unknown_regardless_of_its_scores():
    sure = np.array([0.99, 0.01], np.float32)
    for novelty, limit, index in ((None, 1, 0), (1.0, 1, 0), (1.01, 1, -1), (1.4, 1.5, 0), (9, 0, 0), (np.nan, 1, -1)):
        prediction = decide(sure, LABELS, DecisionSpec(novelty=limit), novelty)
        assert prediction.index == index, (novelty, limit)
    with pytest.raises(ValueError, match="novelty"):
        DecisionSpec(novelty=-1)


@pytest.mark.parametrize("smoothing", ["none", "mean", "vote"])
def test_smoothed_decision_becomes_unknown_and_recovers(smoothing):
    decider = Decider(DecisionSpec(smoothing=smoothing, hysteresis=0.1), LABELS)
    sure = np.array([0.99, 0.01], np.float32)
    indices = [
        decider.update(sure, float(i), novelty).index for i, novelty in enumerate([0.5] * 5 + [50] * 5 + [0.5] * 9)
    ]
    assert indices[4] == 0
    assert indices[9] == -1
    assert indices[-1] == 0


def test_single_novel_frame_does_not_change_the_smoothed_decision():
    decider = Decider(DecisionSpec(smoothing="mean"), LABELS)
    sure = np.array([0.99, 0.01], np.float32)
    assert [decider.update(sure, float(i), n).index for i, n in enumerate([0.4, 0.4, 1000.0, 0.4])] == [0, 0, 0, 0]
