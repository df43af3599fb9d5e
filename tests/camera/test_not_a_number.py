"""Tests of models whose scores are NaN or infinite: the label is unknown, frames are counted, and JSON stays valid."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from edgerec import Bundle, Classifier, evaluate, import_tflite
from edgerec.camera.pipeline import Camera
from edgerec.contract.decision import COMBINATIONS, DecisionSpec, decide
from edgerec.contract.smoothing import Decider
from edgerec.errors import EdgerecError
from edgerec.tflite.flatbuffer import pack, parse
from edgerec.utils.atomic import sha256
from tests.tflite_models import softmax

LABELS = ("red", "green", "blue")


def nan_classifier(value: float = float("nan")) -> bytes:
    """Return a classifier whose last layer has NaN weights."""
    model = parse(softmax().to_bytes())
    graph = model.subgraphs[0]
    dense = graph.operators[1]
    buffer = model.buffers[graph.tensors[dense.inputs[1]].buffer]
    buffer.data = np.full(len(buffer.data) // 4, value, np.float32).view(np.uint8)
    return pack(model)


@pytest.fixture(scope="module")
def nan_bundle(tmp_path_factory):
    """A valid bundle whose model was replaced, with the correct digest."""
    folder = tmp_path_factory.mktemp("nan")
    (folder / "model.tflite").write_bytes(softmax().to_bytes())
    (folder / "labels.txt").write_text("\n".join(LABELS))
    import_tflite(folder / "model.tflite", folder / "bundle", labels=folder / "labels.txt", normalize="unit")
    manifest = json.loads((folder / "bundle" / "manifest.json").read_text())
    (folder / "bundle" / "model.tflite").write_bytes(nan_classifier())
    manifest["files"]["model.tflite"] = sha256(nan_classifier())
    (folder / "bundle" / "manifest.json").write_text(json.dumps(manifest))
    return folder / "bundle"


@pytest.mark.parametrize("scores", [(np.nan, 0.5, 0.5), (0.2, np.inf, 0.1), (np.nan,) * 3, (0.9, 0.1, -np.inf)])
@pytest.mark.parametrize("smoothing", ["none", "mean", "vote"])
def test_label_of_nan_scores_is_unknown(scores, smoothing):
    array = np.array(scores, np.float32)
    spec = DecisionSpec(threshold=0.0, smoothing=smoothing, memory=3, votes=2, temperature=1.5)
    result = decide(array, LABELS, spec)
    assert (result.label, result.index, result.finite) == ("unknown", -1, False)
    assert np.isfinite(result.scores).all()
    decider = Decider(spec, LABELS)
    assert decider.update(array, 0.0).label == "unknown"
    for second in (1, 2, 3, 4, 5):  # the NaN does not stay in the mean
        decision = decider.update(np.array([0.0, 1.0, 0.0], np.float32), second)
    assert (decision.label, decision.score > 0.5) == ("green", True)


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_nan_scores_of_one_model_of_an_ensemble_make_the_label_unknown(combine):
    scores = np.array([[0.1, 0.8, 0.1], [np.nan] * 3, [0.1, 0.8, 0.1]], np.float32)
    assert decide(COMBINATIONS[combine](scores), LABELS, DecisionSpec()).label == "unknown"


def test_camera_counts_frames_with_nan_scores(nan_bundle, golden_images, edgerec, caplog):
    classifier = Classifier.open(nan_bundle)
    assert classifier.classify(np.zeros((9, 9, 3), np.uint8)).label == "unknown"
    assert classifier.invalid == 1
    with Camera.open(nan_bundle, str(golden_images[0].parent)) as camera:
        labels = {result.decision.label for result in camera}
    assert labels == {"unknown"}
    assert camera.report.invalid == camera.report.classified == len(golden_images)
    assert "not numbers (NaN)" in caplog.text
    for arguments in (
        ("predict", nan_bundle, golden_images[0]),
        ("camera", nan_bundle, "--source", golden_images[0].parent),
    ):
        process = edgerec(*arguments, "--json", *(["--headless"] if arguments[0] == "camera" else []))
        assert process.returncode == 0, process.stderr
        for line in process.stdout.splitlines():
            json.loads(line, parse_constant=lambda name: pytest.fail(f"bare {name}"))
        assert '"unknown"' in process.stdout


def test_evaluation_of_a_model_with_nan_scores_is_an_error(nan_bundle, tmp_path, golden_images):
    for number, label in enumerate(LABELS):
        (tmp_path / "data" / label).mkdir(parents=True)
        shutil.copy(golden_images[number], tmp_path / "data" / label)
    with pytest.raises(EdgerecError, match=r"NaN or infinite for 3 of 3 images"):
        evaluate(nan_bundle, data=str(tmp_path / "data"))


@pytest.mark.parametrize("name", ["bundle", "bundle.zip"])
def test_model_with_nan_scores_does_not_replace_a_bundle(tmp_path, name):
    path, labels, out = tmp_path / "model.tflite", tmp_path / "labels.txt", tmp_path / name
    labels.write_text("\n".join(LABELS))
    path.write_bytes(softmax().to_bytes())
    import_tflite(path, out, labels=labels, normalize="unit")
    before = Bundle.open(out).model
    path.write_bytes(nan_classifier())
    with pytest.raises(EdgerecError, match="NaN"):
        import_tflite(path, out, labels=labels, normalize="unit", activation="none", overwrite=True)
    assert Bundle.open(out).model == before
    with pytest.raises(EdgerecError, match="NaN"):
        import_tflite(path, tmp_path / "new", labels=labels, normalize="unit", activation="none")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([name, "labels.txt", "model.tflite"])


def test_bundle_is_verified_before_it_is_moved_to_its_path(tmp_path, bundle):
    opened = Bundle.open(bundle)

    def refuse(partial):
        assert Bundle.open(partial).manifest.labels == opened.manifest.labels
        raise EdgerecError("no")

    for name in ("new", "new.zip"):
        with pytest.raises(EdgerecError, match="no"):
            Bundle.write(tmp_path / name, opened.manifest, opened.files, check=refuse)
    assert list(tmp_path.iterdir()) == []
