"""Labels and normalisation inside the .tflite, as tflite-support's schema has them, and the model as it was."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from edgerec import evaluate
from edgerec.compress.convert import to_float32
from edgerec.contract.tensors import ChannelNormalise, Normalise, TensorSpec
from edgerec.errors import DataError, EdgerecError, ModelError
from edgerec.runtime.model import ImageModel
from edgerec.tflite import metadata as module
from edgerec.tflite.flatbuffer import read_graph
from edgerec.tflite.metadata import Metadata, normalise_for, read_metadata, with_metadata
from edgerec.tflite.schema import tflite_schema

UNIT = Normalise(0.0, 255.0)


@pytest.fixture(scope="module")
def bare(run) -> bytes:
    """The run's float model, converted and left so."""
    return to_float32(run.model())


@pytest.fixture(scope="module")
def described(bare, run) -> bytes:
    return with_metadata(bare, run.labels, UNIT, "simple_cnn")


def graph_of(content: bytes):
    """All of a graph that can be compared."""
    graph = read_graph(content)
    tensors = [
        (t.name, t.dtype, t.shape, t.scales, t.zero_points, None if t.data is None else t.data.tobytes())
        for t in (*graph.tensors, *graph.inputs, *graph.outputs)
    ]
    operators = [
        (
            *(op.name, op.version, op.options and str(vars(op.options))),
            *([t and t.name for t in op.inputs], [t.name for t in op.outputs]),
        )
        for op in graph.operators
    ]
    return tensors, operators


def test_every_variant_says_what_it_is(run):
    for name, report in run.variants().items():
        content = (run.variant(name) / "model.tflite").read_bytes()
        found = read_metadata(content)
        assert found.labels == run.labels
        assert found.normalise == (run.recipe.normalise,)
        assert found.name == "simple_cnn"
        assert "10 labels" in found.description
        assert report["forms"][-1]["size_bytes"] == len(content)


def test_the_model_stays_as_it_was(bare, described, run):
    assert graph_of(described) == graph_of(bare)
    assert read_metadata(bare) is None
    dataset, _ = run.data()
    before, after = ImageModel(bare, UNIT), ImageModel(described, UNIT)
    for image in dataset.images[:20]:
        assert np.array_equal(before.invoke(image), after.invoke(image))
    schema = tflite_schema()
    names = [entry.name for entry in schema.ModelT.InitFromObj(schema.Model.GetRootAs(described, 0)).metadata]
    assert names == [b"min_runtime_version", b"CONVERSION_METADATA", b"TFLITE_METADATA"]


def test_it_is_small_and_the_same_bytes_again(bare, described, run):
    assert 0 < len(described) - len(bare) < 1000
    assert with_metadata(bare, run.labels, UNIT, "simple_cnn") == described
    with pytest.raises(ModelError, match="metadata already"):
        with_metadata(described, run.labels, UNIT, "simple_cnn")


def test_the_label_file_is_a_zip_that_others_open(described, run):
    with zipfile.ZipFile(io.BytesIO(described)) as archive:
        (info,) = archive.infolist()
        # MediaPipe maps the file and reads no compressed one.
        assert (info.filename, info.compress_type, info.date_time[0]) == ("labels.txt", zipfile.ZIP_STORED, 1980)
        assert archive.read(info).decode().splitlines() == list(run.labels)


def test_labels_in_any_language(bare):
    labels = ("größer", "猫", "a, b", "  ")
    assert read_metadata(with_metadata(bare, labels, UNIT, "名")).labels == labels[:3]
    assert read_metadata(with_metadata(bare, labels, UNIT, "名")).name == "名"


def test_metadata_that_google_wrote(real_data):
    content = (real_data / "edgetpu" / "mobilenet_v1_0.25_128_quant.tflite").read_bytes()
    found = read_metadata(content)
    assert found.name == "ImageClassifier"
    assert list(found.labels) == (real_data / "imagenet_labels.txt").read_text().splitlines()
    assert found.normalise == (Normalise(127.5, 127.5),)


def test_what_pixels_become():
    given = TensorSpec("float32", (1, 8, 8, 3))
    grey, coloured = (UNIT,), (UNIT, UNIT, Normalise(1.0, 255.0))
    assert normalise_for(given, Metadata("", "", (), grey)) == UNIT
    assert normalise_for(given, Metadata("", "", (), coloured)) == ChannelNormalise((0, 0, 1), (255, 255, 255))
    with pytest.raises(ModelError, match="2 normalizations for 3 channels: set the right one with --normalise"):
        normalise_for(given, Metadata("", "", (), coloured[1:]))
    with pytest.raises(ModelError, match="takes float32 and does not state its normalization"):
        normalise_for(given, Metadata("", "", (), ()))
    # Through integers they pass, whatever somebody wrote.
    quantized = TensorSpec("uint8", (1, 8, 8, 3), 0.5, 3)
    assert normalise_for(quantized, Metadata("", "", (), coloured)) == Normalise(3.0, 2.0)


def test_evaluate_reads_a_bare_float_file(run, bare, tmp_path, image_folder):
    own = evaluate(run.variant("float32") / "model.tflite", "digits")
    assert own.labels == run.labels
    assert own.accuracy > 0.9
    with pytest.raises(DataError, match="has a class 'blue' that the model does not know"):
        evaluate(run.variant("float32") / "model.tflite", str(image_folder))
    (tmp_path / "bare.tflite").write_bytes(bare)
    with pytest.raises(EdgerecError, match="does not state its normalization: add --normalise"):
        evaluate(tmp_path / "bare.tflite", "digits")
    assert evaluate(tmp_path / "bare.tflite", "digits", normalise="unit").accuracy == own.accuracy


def test_a_damaged_file_is_refused_and_never_believed(described, monkeypatch):
    """Bytes changed in the metadata and in the zip behind the model, and the end cut off."""
    places = [*span(described), *range(described.index(b"PK\x03\x04"), len(described))]
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(600):
        changed = bytearray(described)
        for place in rng.choice(places, 3):
            changed[place] = rng.integers(256)
        outcomes.add(outcome(bytes(changed)))
    for cut in range(1, 900, 9):
        outcomes.add(outcome(described[:-cut]))
    assert outcomes == {"refused", "read"}
    with pytest.raises(ModelError, match=r"f\.tflite has damaged TFLite metadata"):
        read_metadata(described[:-10], "f.tflite")
    monkeypatch.setattr(module, "MAX_LABEL_BYTES", 10)
    with pytest.raises(ModelError, match=r"labels.txt has more than 10 bytes"):
        read_metadata(described)


def test_claims_are_bounded(described):
    """Every four bytes of the metadata in turn claim to be enormous."""
    for start in span(described)[::4]:
        for claim in (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff"):
            outcome(described[:start] + claim + described[start + 4 :])


def span(content: bytes) -> range:
    """Where the metadata's own flatbuffer lies: its length stands before it."""
    at = content.index(b"M001") - 4
    return range(at, at + int.from_bytes(content[at - 4 : at], "little"))


def outcome(content: bytes) -> str:
    try:
        found = read_metadata(content)
    except ModelError:
        return "refused"
    assert found is None or all(one.std > 0 for one in found.normalise)
    return "read"
