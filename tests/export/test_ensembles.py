"""Ensembles: bundles that combine the scores of several models."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from edgerec import Bundle, Camera, Classifier, benchmark, ensemble, evaluate, export_bundle, read_image, verify
from edgerec.contract.decision import COMBINATIONS
from edgerec.contract.manifest import Manifest
from edgerec.data import split_dataset
from edgerec.errors import BundleError, DataError, OutputExistsError
from edgerec.runtime.verification import make_golden
from edgerec.train.training_data import chosen_images
from tests.conftest import error_line
from tests.contract.test_bundle import change, rewrite


@pytest.fixture(scope="module")
def other_bundle(bundle, tmp_path_factory):
    """A bundle of the same model with different preprocessing, so that its scores differ."""
    opened = Bundle.open(bundle)
    spec = replace(opened.manifest.preprocess, fit="pad", interpolation="nearest")
    manifest = replace(opened.manifest, name="other", preprocess=spec)
    files = {name: content for name, content in opened.files.items() if not name.startswith("golden/")}
    path = tmp_path_factory.mktemp("other") / "other"
    files |= make_golden(Classifier(Bundle(path, manifest, files)), [("wide", wide(opened, bundle))])
    Bundle.write(path, manifest, files)
    return path


def wide(opened, bundle):
    """Return an image for which the two kinds of preprocessing give different pixels."""
    return np.pad(read_image(bundle / "golden" / "003.png"), ((0, 0), (40, 90), (0, 0)))


@pytest.fixture(scope="module")
def float32(first_run, tmp_path_factory):
    """A bundle of the float32 variant of the same run."""
    folder = tmp_path_factory.mktemp("float32")
    shutil.copytree(first_run.path, folder / "digits")
    return export_bundle(folder / "digits", "rpi", variant="float32", out=folder / "float32").bundle


@pytest.fixture(scope="module")
def ensemble_bundle(bundle, other_bundle, float32, tmp_path_factory):
    path = tmp_path_factory.mktemp("three") / "three"
    report = ensemble([bundle, other_bundle, float32], path)
    assert (report.models, report.combine, report.golden) == (3, "mean", 10)
    return path


@pytest.mark.parametrize("combine", ["mean", "vote"])
def test_ensemble_combines_the_scores_of_the_single_models(bundle, other_bundle, float32, tmp_path, combine):
    bundles = [bundle, other_bundle, float32]
    ensemble(bundles, tmp_path / "e", combine=combine)
    image = wide(Bundle.open(bundle), bundle)
    member_scores = np.stack([Classifier.open(path).classify(image).scores for path in bundles])
    assert not np.array_equal(member_scores[0], member_scores[1])
    combined = Classifier.open(tmp_path / "e").classify(image)
    assert np.array_equal(combined.scores, COMBINATIONS[combine](member_scores))
    assert combined.scores.dtype == np.float32


def test_mean_and_vote_combine_scores():
    scores = np.array([[0.1, 0.9, 0.0], [0.6, 0.4, 0.0], [0.5, 0.1, 0.4]], np.float32)
    assert COMBINATIONS["mean"](scores) == pytest.approx([0.4, 1.4 / 3, 0.4 / 3])
    assert COMBINATIONS["vote"](scores) == pytest.approx([2 / 3, 1 / 3, 0], abs=1e-3)
    # In a tie, the label with the higher mean score gets a slightly higher result.
    tie = COMBINATIONS["vote"](scores[:2])
    assert tie.argmax() == 1
    assert tie == pytest.approx([0.5, 0.5, 0], abs=1e-3)
    assert tie.sum() == pytest.approx(1)


def test_verify_checks_every_model_of_an_ensemble(ensemble_bundle, tmp_path):
    report = verify(ensemble_bundle)
    assert (report.exact, report.images, len(report.golden)) == (True, 10, 30)
    assert {result.model for result in report.golden} == {"model.tflite", "model-2.tflite", "model-3.tflite"}
    copy = tmp_path / "copy"
    shutil.copytree(ensemble_bundle, copy)
    golden = json.loads((copy / "golden/golden.json").read_text())
    golden["vectors"][4]["scores"][1][0] += 1
    rewrite(copy, "golden/golden.json", json.dumps(golden).encode())
    with pytest.raises(BundleError, match=r"004\.png: scores of model-2\.tflite differ by 1 .* at most 0 is allowed"):
        verify(copy)
    # On another machine, the tolerance is 16 quantization steps for int8 models, and 0.001 for float32 models.
    golden["made_on"]["machine"] = "elsewhere"
    rewrite(copy, "golden/golden.json", json.dumps(golden).encode())
    assert {result.tolerance for result in verify(copy).golden} == {16, 1e-3}


def test_ensemble_works_with_camera_benchmark_and_predict(ensemble_bundle, video, golden_images, edgerec):
    with Camera.open(ensemble_bundle, str(video)) as camera:
        results = list(camera)
    assert len(results) == 30
    correct = [result.frame.index // 3 == result.classification.index for result in results]
    assert sum(correct) > 15
    report = benchmark(ensemble_bundle, seconds=0.1)
    assert {operator.model for operator in report.operators} == {0, 1, 2}
    assert sum(operator.part for operator in report.operators) == pytest.approx(1, abs=0.01)
    process = edgerec("predict", ensemble_bundle, golden_images[3], "--json")
    assert (
        json.loads(process.stdout)["label"]
        == Classifier.open(ensemble_bundle).classify(read_image(golden_images[3])).label
    )


def test_ensemble_is_evaluated_on_images_that_no_model_was_trained_on(ensemble_bundle, bundle, first_run):
    """Only images that are in the test split of every model are used, even if the preprocessing differs."""
    single, combined = evaluate(bundle, "digits"), evaluate(ensemble_bundle, "digits")
    assert (combined.split, combined.images) == ("test", single.images)
    assert combined.accuracy > single.accuracy - 0.03
    dataset, split = first_run.data()
    section = first_run.recipe.data

    def subsets(seed):
        """Return the subset of each image in a split with this seed."""
        parts, result = split_dataset(dataset, section, seed), np.full(len(dataset.classes), "train")
        for name in ("val", "test"):
            result[parts.part(name)] = name
        return result

    chosen, name = chosen_images(dataset, "digits", None, [subsets(0), subsets(1)])
    assert name == "test"
    assert set(chosen) < set(split.test)
    assert 0 < len(chosen) < len(split.test) / 2
    with pytest.raises(DataError, match=r"no image in .* belongs to the test split of all models"):
        chosen_images(dataset, "digits", None, [subsets(seed) for seed in range(12)])


def test_ensemble_of_ensembles_contains_all_models(bundle, other_bundle, float32, tmp_path):
    ensemble([other_bundle, float32], tmp_path / "two")
    report = ensemble([bundle, tmp_path / "two"], tmp_path / "three.zip")
    assert report.models == 3
    manifest = Bundle.open(tmp_path / "three.zip").manifest
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert [spec.model for spec in manifest.models] == ["model.tflite", "model-2.tflite", "model-3.tflite"]
    assert len(manifest.provenance["members"]) == 3
    with pytest.raises(BundleError, match="two of the bundles contain the same model"):
        ensemble([tmp_path / "two", other_bundle], tmp_path / "e")
    with pytest.raises(BundleError, match="at least two bundles, got 1: add another bundle or training run"):
        ensemble([other_bundle], tmp_path / "e")


def test_ensemble_command_writes_a_bundle_and_refuses_invalid_options(bundle, other_bundle, tmp_path, edgerec):
    out = tmp_path / "both"
    result = edgerec(
        "ensemble", bundle, other_bundle, "--out", out, "--combine", "vote", "--threshold", "0.6", "--json"
    )
    assert result.returncode == 0, result.stderr
    value = json.loads(result.stdout)
    assert (value["models"], value["combine"]) == (2, "vote")
    assert set(value["files"]) | {"manifest.json"} == {
        path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()
    }
    assert Bundle.open(out).manifest.decision.threshold == 0.6
    assert "2 models are combined" in (out / "README.md").read_text()
    assert "already exists" in error_line(edgerec("ensemble", bundle, other_bundle, "--out", out))
    assert edgerec("ensemble", bundle, other_bundle, "--out", out, "--overwrite").returncode == 0
    assert "unknown combination 'sum'" in error_line(
        edgerec("ensemble", bundle, other_bundle, "--out", tmp_path / "x", "--combine", "sum")
    )
    assert not (tmp_path / "x").exists()


def test_ensemble_refuses_bundles_with_other_labels_or_targets(bundle, other_bundle, tmp_path):
    with pytest.raises(BundleError, match="at least two bundles, got 1"):
        ensemble([bundle], tmp_path / "e")
    copy = tmp_path / "copy"
    shutil.copytree(other_bundle, copy)
    labels = list(Bundle.open(bundle).manifest.labels)
    change(copy, labels=[*labels[:4], "vier", *labels[5:]])
    with pytest.raises(BundleError, match=r"at index 4, .* has 'vier' and .* has '4'"):
        ensemble([bundle, copy], tmp_path / "e")
    change(copy, labels=labels, target="desktop")
    with pytest.raises(BundleError, match=r"was exported for target desktop, but .* was exported for rpi"):
        ensemble([bundle, copy], tmp_path / "e")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("mine")
    with pytest.raises(OutputExistsError):
        ensemble([bundle, other_bundle], tmp_path / "mine", overwrite=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"combine": "sum"}, "unknown combine 'sum'"),
        ({"combine": 3}, "combine is 3, expected a string"),
        ({"members": {}}, "members: expected a list"),
        ({"members": [3]}, "members: "),
        ({"members": [{"model": "model.tflite"}]}, "members: .*missing 4 required"),
        ({"members": [{"colour": "red"}]}, "members: .*colour"),
    ],
)
def test_damaged_members_are_refused(ensemble_bundle, tmp_path, values, message):
    copy = tmp_path / "copy"
    shutil.copytree(ensemble_bundle, copy)
    change(copy, **values)
    with pytest.raises(BundleError, match=message):
        Bundle.open(copy)


def test_member_without_a_model_file_is_refused(ensemble_bundle, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(ensemble_bundle, copy)
    members = json.loads((copy / "manifest.json").read_text())["members"]
    members[1]["model"] = "elsewhere.tflite"
    change(copy, members=members)
    with pytest.raises(BundleError, match=r"members\[1\] refers to the file 'elsewhere.tflite', but 'files' has no"):
        Bundle.open(copy)
