"""The autoencoder: training, compressing, and what a bundle answers that carries one."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from edgerec import Bundle, Camera, Classifier, Novelty, Recipe, Run, ensemble, export_bundle, fit, quantize, verify
from edgerec.cli.app import app
from edgerec.contract.decision import Decider, DecisionSpec, decide
from edgerec.contract.manifest import Manifest
from edgerec.contract.tensors import Normalise
from edgerec.errors import BundleError, EdgerecError, GateError, ModelError, RecipeError, RunError
from edgerec.runtime.anomaly import Autoencoder
from edgerec.runtime.model import ImageModel
from edgerec.tflite.flatbuffer import float_tensors, read_graph

UNIT = Normalise.named("unit")
LABELS = ("cat", "dog")
# Digits as they are, 8×8, where the classifier of the other tests sees them enlarged.
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
    made = fit(Recipe.from_dict(RECIPE), tmp_path_factory.mktemp("autoencoder") / "again")
    quantize(made, "ptq")
    quantize(made, "qat")
    return made


@pytest.fixture(scope="module")
def guarded(run, autoencoder, tmp_path_factory):
    """The digits' bundle with the autoencoder's int8 variant."""
    out = tmp_path_factory.mktemp("guarded") / "digits.zip"
    export_bundle(run, "rpi", novelty=Novelty(autoencoder.path, "int8", 0.95), out=out)
    return out


def noise(seed: int = 0, side: int = 8):
    """A picture that is no digit."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


# --- Training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (30, 3), (53, 1)])
def test_it_gives_what_it_takes_at_any_size(side, channels):
    from edgerec.models import build
    from edgerec.train.backend import keras

    section = Recipe.from_dict({"model": {"arch": "autoencoder", "width": 0.25}}).model
    model = build(keras(), section, (side, side, channels), 10, UNIT)
    assert model.output_shape == (None, side, side, channels)
    code = model.get_layer("code").output_shape
    assert np.prod(code[1:]) <= side * side * channels / 2


def test_training_tells_errors_and_no_accuracy(autoencoder):
    rows, metrics = autoencoder.history(), autoencoder.metrics
    assert not any("accuracy" in key for key in (*rows[0], *metrics))
    assert metrics["best_epoch"] == min(rows, key=lambda row: row["val_loss"])["epoch"]
    assert 0 < metrics["error"] < rows[0]["loss"]
    assert metrics["known"] > 0.9
    assert set(metrics["per_class"]) == set(map(str, range(10)))
    plots = {path.name for path in (autoencoder.path / "plots").iterdir()}
    assert plots == {"learning_curves.png", "reconstructions.png", "errors.png"}
    assert (autoencoder.path / "model_keras3.keras").is_file()


def test_threshold_is_the_quantile_of_validation(autoencoder):
    from edgerec.train.evaluate import keras_scorer

    dataset, split = autoencoder.data()
    errors = keras_scorer(autoencoder.model(), UNIT)(dataset.images[split.val], lambda _: None)[:, 0]
    assert np.mean(errors <= autoencoder.metrics["threshold"]) == pytest.approx(0.99, abs=0.01)


def test_pictures_need_no_labels(tmp_path, image_folder):
    """A folder of pictures, or of one class."""
    from edgerec.train.fit import resolved

    flat = tmp_path / "flat"
    flat.mkdir()
    for path in image_folder.rglob("*.jpg"):
        (flat / f"{path.parent.name}-{path.name}").write_bytes(path.read_bytes())
    (tmp_path / "one").mkdir()
    (image_folder / "red").rename(tmp_path / "one" / "red")
    small = {"data": {"input_size": 8}, "train": {"epochs": 1}, "model": RECIPE["model"]}
    recipe = Recipe.from_dict(small).override({"data.source": str(tmp_path / "flat")})
    made = fit(recipe, tmp_path / "run")
    assert made.labels == ()
    assert made.metrics["per_class"] == {}
    assert len(made.data()[0].images) == 40
    one = recipe.override({"data.source": str(tmp_path / "one")})
    assert resolved(one, lambda _: None)[1].labels == ("red",)
    with pytest.raises(EdgerecError, match="one class only"):
        resolved(one.override({"model.arch": "resnet8", "data.input_size": 16}), lambda _: None)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("data.normalise", "pixels", "set data.normalise to unit or signed"),
        ("model.weights", "imagenet", "set model.weights to none"),
        ("distill.teachers", "somewhere", "distillation is for a classifier"),
    ],
)
def test_what_means_nothing_to_it_is_refused(tmp_path, key, value, said):
    with pytest.raises(RecipeError, match=said):
        fit(Recipe.from_dict(RECIPE).override({key: value}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- Compressing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["int8", "int8-qat"])
def test_variants_are_judged_by_their_errors(autoencoder, variant):
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


def test_agreement_is_the_order_of_the_errors():
    from edgerec.train.metrics import AutoencoderMetrics

    measure, errors = AutoencoderMetrics(0.5), np.array([[0.1], [0.2], [0.3], [0.9]], np.float32)
    assert measure.top1(errors, np.zeros(4, np.int64)) == 0.75
    assert measure.agreement(errors**2, errors) == pytest.approx(1)
    assert measure.agreement(-errors, errors) == pytest.approx(-1)
    assert measure.agreement(np.full((4, 1), 0.1, np.float32), errors) == 0
    assert measure.error(errors) == pytest.approx(0.375)


def test_the_gate_speaks_of_known_pictures(autoencoder, run, monkeypatch):
    report = dict(autoencoder.variants()["int8"])
    report["forms"] = [*report["forms"][:-1], report["forms"][-1] | {"top1": 0.5}]
    monkeypatch.setattr(Run, "variants", lambda self: {"int8": report, "int8-qat": report})
    from edgerec.contract.target import Target
    from edgerec.export.variants import choose

    with pytest.raises(GateError, match="points of known images"):
        choose(autoencoder, Target.load("rpi"), "int8", max_drop=None, data=None, listener=lambda _: None)


def test_channels_are_judged_by_the_error(autoencoder, tmp_path):
    from edgerec.compress.channel_graph import trace
    from edgerec.compress.channels import taylor_importance
    from edgerec.compress.context import CompressionContext

    with CompressionContext.open(autoencoder, autoencoder.recipe, None, lambda _: None) as context:
        tune = context.fine_tune(tmp_path)
    model = autoencoder.model()
    scores = taylor_importance(model, trace(model), tune)
    assert np.isfinite(scores).all()
    assert np.count_nonzero(scores) > 8


def test_a_classifier_is_no_autoencoder(run, autoencoder):
    with pytest.raises(ModelError, match="not an autoencoder"):
        Autoencoder((run.path / "int8-qat" / "model.tflite").read_bytes(), UNIT)
    with pytest.raises(ModelError, match=r"expected \[1, classes\]"):
        ImageModel((autoencoder.path / "int8" / "model.tflite").read_bytes(), UNIT)


# --- What makes no sense of it says so --------------------------------------------------------------------------


def test_commands_for_classifiers_refuse_it(autoencoder, tmp_path):
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


def test_export_refuses_what_is_none(run, autoencoder, tmp_path):
    with pytest.raises(EdgerecError, match="is a classifier"):
        export_bundle(run, "rpi", novelty=run.path, out=tmp_path / "out")
    with pytest.raises(BundleError, match="leave --novelty out"):
        export_bundle(run, "web", novelty=autoencoder.path, out=tmp_path / "out")
    with pytest.raises(EdgerecError, match="between 0 and 1"):
        Novelty(autoencoder.path, known=1.0)
    done = CliRunner().invoke(app, ["export", str(run.path), "--known", "0.9"])
    assert done.exit_code == 2
    assert not (tmp_path / "out").exists()


# --- In a bundle ------------------------------------------------------------------------------------------------


def test_threshold_is_that_of_the_shipped_model(guarded, autoencoder):
    bundle = Bundle.open(guarded)
    spec, about = bundle.manifest.novelty, bundle.manifest.metrics["novelty"]
    dataset, split = autoencoder.data()
    model = Autoencoder(bundle.files["novelty.tflite"], spec.normalise)
    errors = [model.error(dataset.images[i]) for i in split.val]
    assert np.mean(np.array(errors) <= spec.threshold * (1 + 1e-6)) == pytest.approx(0.95, abs=0.01)
    assert about["variant"] == "int8"
    assert about["known_held_out"] > 0.85
    assert "## Novelty" in bundle.files["README.md"].decode()


def test_new_pictures_are_unknown(guarded, pictures):
    from edgerec import read_image

    classifier = Classifier.open(guarded)
    digits = [classifier.classify(read_image(path)) for path in pictures]
    assert sum(answer.index >= 0 for answer in digits) >= 8
    strange = classifier.classify(noise())
    assert (strange.label, strange.index) == ("unknown", -1)
    assert strange.novelty > 1 > min(answer.novelty for answer in digits)
    assert strange.score == strange.categories[0].score  # what it would have been
    everything = Classifier.open(guarded, decision={"novelty": 0.0}).classify(noise())
    assert everything.index >= 0
    assert everything.novelty is None
    looser = Classifier.open(guarded, decision={"novelty": 2 * strange.novelty}).classify(noise())
    assert looser.index >= 0


def test_camera_and_predict_say_why(guarded, tmp_path):
    import cv2

    for number in range(4):
        cv2.imwrite(str(tmp_path / f"{number}.png"), noise(number))
    with Camera.open(guarded, str(tmp_path), threads=2) as camera:  # several interpreters
        results = list(camera)
    assert [result.decision.index for result in results] == [-1] * 4
    assert all(result.to_dict()["novelty"] > 1 for result in results)
    done = CliRunner().invoke(app, ["predict", str(guarded), str(tmp_path / "0.png"), "--json"])
    assert json.loads(done.stdout.splitlines()[-1])["novelty"] > 1
    done = CliRunner().invoke(app, ["predict", str(guarded), str(tmp_path / "0.png")])
    assert "unknown" in done.stdout
    assert "novelty" in done.stdout


def test_golden_errors_are_verified(guarded, tmp_path):
    report = verify(guarded)
    assert report.exact
    assert [result.model for result in report.golden if result.image == "golden/000.png"] == [
        "model.tflite",
        "novelty.tflite",
    ]
    bundle = Bundle.open(guarded)
    golden = json.loads(bundle.files["golden/golden.json"])
    for change, said in ((1.01, "are off by"), (float("nan"), "is damaged")):
        other = json.loads(json.dumps(golden))
        other["vectors"][0]["error"] *= change
        files = bundle.files | {"golden/golden.json": json.dumps(other).encode()}
        Bundle.write(tmp_path / "bundle", bundle.manifest, files, overwrite=True)
        with pytest.raises(BundleError, match=said):
            verify(tmp_path / "bundle")


def test_error_tolerance_holds_for_the_worst_output():
    """Every output off by as much as allowed moves the error by no more than is allowed."""
    from edgerec.contract.manifest import NoveltySpec
    from edgerec.contract.preprocess import PreprocessSpec
    from edgerec.contract.tensors import TensorSpec
    from edgerec.runtime.interpreter import Fingerprint
    from edgerec.runtime.verification import UNITS_OTHER_MACHINE, error_tolerance

    tensor = TensorSpec("uint8", (1, 8, 8, 1), 0.01, 20)
    spec = NoveltySpec("m", tensor, tensor, PreprocessSpec(8, 8, 1), UNIT, threshold=0.1)
    made, here = Fingerprint("litert", "1", "x", "a"), Fingerprint("litert", "1", "y", "b")
    apart = np.random.default_rng(0).normal(0, 0.1, 64)
    error = float(np.mean(apart**2))
    worst = float(np.mean((np.abs(apart) + UNITS_OTHER_MACHINE * 0.01) ** 2))
    assert worst - error <= error_tolerance(made, here, spec, error)
    assert error_tolerance(made, made, spec, error) < 1e-8


def test_ensemble_keeps_it(guarded, bundle, run, tmp_path):
    other = export_bundle(run, "rpi", variant="float32", out=tmp_path / "float").bundle
    made = ensemble([other, guarded], tmp_path / "both")
    assert made.models == 2
    classifier = Classifier.open(made.bundle)
    assert classifier.classify(noise()).label == "unknown"
    assert verify(made.bundle).images == 10


def test_bundles_without_one_still_open(bundle, pictures):
    from edgerec import read_image

    opened = Bundle.open(bundle)
    values = json.loads(opened.manifest.to_json())
    assert values.pop("novelty") is None
    del values["decision"]["novelty"]
    before = Manifest.from_json(json.dumps(values))
    assert before == opened.manifest
    answer = Classifier(replace(opened, manifest=before)).classify(read_image(pictures[0]))
    assert answer.novelty is None
    with pytest.raises(BundleError, match="has no autoencoder"):
        Classifier(opened).error(())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threshold": 0}, "expected a number above 0"),
        ({"threshold": True}, "expected a number above 0"),
        ({"threshold": "1"}, "expected a number above 0"),
        ({"model": "other.tflite"}, "contains no digest"),
        (
            {"output": {"dtype": "uint8", "shape": [1, 4, 4, 1], "scale": 1.0, "zero_point": 0}},
            "the shape of the input",
        ),
        ({"strange": 1}, "strange"),
    ],
)
def test_damaged_manifests_are_refused(guarded, change, said):
    values = json.loads(Bundle.open(guarded).manifest.to_json())
    values["novelty"] |= change
    with pytest.raises(BundleError, match=said):
        Manifest.from_json(json.dumps(values))


def test_the_rest_of_the_command_line_knows_it(guarded, autoencoder, run, tmp_path):
    shown = CliRunner().invoke(app, ["inspect", str(guarded)])
    assert "novelty  novelty.tflite" in shown.stdout
    arguments = ["export", str(run.path), "--novelty", str(autoencoder.path), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*arguments, "--novelty-variant", "int8-qat", "--known", "0.9", "--json"])
    about = json.loads(done.stdout)["novelty"]
    assert (about["variant"], about["known"]) == ("int8-qat", 0.9)
    coral = export_bundle(run, "coral", novelty=autoencoder.path, out=tmp_path / "coral")  # every operator is checked
    assert "novelty.tflite" in coral.files
    assert CliRunner().invoke(app, ["train", "--resume", "--out", str(autoencoder.path)]).stdout.startswith("error ")


def test_benchmark_runs_it_too(guarded):
    from edgerec import benchmark

    made = benchmark(guarded, seconds=0.2)
    assert "RESIZE_NEAREST_NEIGHBOR" in {operator.op for operator in made.operators}


# --- Decisions --------------------------------------------------------------------------------------------------


def test_novel_image_is_unknown_regardless_of_its_scores():
    sure = np.array([0.99, 0.01], np.float32)
    for novelty, limit, index in ((None, 1, 0), (1.0, 1, 0), (1.01, 1, -1), (1.4, 1.5, 0), (9, 0, 0), (np.nan, 1, -1)):
        answer = decide(sure, LABELS, DecisionSpec(novelty=limit), novelty)
        assert answer.index == index, (novelty, limit)
    with pytest.raises(ValueError, match="novelty"):
        DecisionSpec(novelty=-1)


@pytest.mark.parametrize("smoothing", ["none", "mean", "vote"])
def test_a_stream_becomes_unknown_and_comes_back(smoothing):
    decider = Decider(DecisionSpec(smoothing=smoothing, hysteresis=0.1), LABELS)
    sure = np.array([0.99, 0.01], np.float32)
    seen = [decider.update(sure, float(i), novelty).index for i, novelty in enumerate([0.5] * 5 + [50] * 5 + [0.5] * 9)]
    assert seen[4] == 0
    assert seen[9] == -1
    assert seen[-1] == 0


def test_one_strange_frame_does_not_move_the_mean():
    decider = Decider(DecisionSpec(smoothing="mean"), LABELS)
    sure = np.array([0.99, 0.01], np.float32)
    assert [decider.update(sure, float(i), n).index for i, n in enumerate([0.4, 0.4, 1000.0, 0.4])] == [0, 0, 0, 0]
