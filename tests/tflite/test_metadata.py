"""TFLite metadata: labels and normalization in .tflite files, in the format of tflite-support."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from edgerec import evaluate
from edgerec.compress.convert import to_float32
from edgerec.contract.tensors import ChannelNormalize, Normalize, TensorSpec
from edgerec.errors import DataError, EdgerecError, ModelError
from edgerec.runtime.image_model import ImageModel
from edgerec.tflite import metadata as module
from edgerec.tflite.flatbuffer import pack, parse, read_graph
from edgerec.tflite.metadata import Metadata, has_metadata, normalize_for, read_metadata, with_metadata
from edgerec.tflite.schema import tflite_schema

UNIT = Normalize(0.0, 255.0)


@pytest.fixture(scope="module")
def without_metadata(run) -> bytes:
    """The float model of the run as .tflite without metadata."""
    return to_float32(run.model())


@pytest.fixture(scope="module")
def with_labels(without_metadata, run) -> bytes:
    return with_metadata(without_metadata, run.labels, UNIT, "simple_cnn")


def graph_of(content: bytes):
    """Return the tensors and operators of a graph in a form that can be compared."""
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


def test_every_variant_has_metadata(run):
    for name, report in run.variants().items():
        content = (run.variant(name) / "model.tflite").read_bytes()
        metadata = read_metadata(content)
        assert metadata.labels == run.labels
        assert metadata.normalize == (run.recipe.normalize,)
        assert metadata.name == "simple_cnn"
        assert "10 labels" in metadata.description
        assert report["forms"][-1]["size_bytes"] == len(content)


def test_metadata_does_not_change_the_model(without_metadata, with_labels, run):
    assert graph_of(with_labels) == graph_of(without_metadata)
    assert read_metadata(without_metadata) is None
    dataset, _ = run.data()
    before, after = ImageModel(without_metadata, UNIT), ImageModel(with_labels, UNIT)
    for image in dataset.images[:20]:
        assert np.array_equal(before.invoke(image), after.invoke(image))
    schema = tflite_schema()
    names = [entry.name for entry in schema.ModelT.InitFromObj(schema.Model.GetRootAs(with_labels, 0)).metadata]
    assert names == [b"min_runtime_version", b"CONVERSION_METADATA", b"TFLITE_METADATA"]


def test_metadata_is_small_and_reproducible(without_metadata, with_labels, run):
    assert 0 < len(with_labels) - len(without_metadata) < 1000
    assert with_metadata(without_metadata, run.labels, UNIT, "simple_cnn") == with_labels
    with pytest.raises(ModelError, match="the model already has TFLite metadata"):
        with_metadata(with_labels, run.labels, UNIT, "simple_cnn")


def test_label_file_is_an_uncompressed_zip_entry(with_labels, run):
    with zipfile.ZipFile(io.BytesIO(with_labels)) as archive:
        (info,) = archive.infolist()
        # MediaPipe cannot read compressed files, because it maps the label file into memory.
        assert (info.filename, info.compress_type, info.date_time[0]) == ("labels.txt", zipfile.ZIP_STORED, 1980)
        assert archive.read(info).decode().splitlines() == list(run.labels)


def test_labels_in_any_language_are_unchanged_after_writing_and_reading(without_metadata):
    labels = ("größer", "猫", "a, b", "  ")
    assert read_metadata(with_metadata(without_metadata, labels, UNIT, "名")).labels == labels[:3]
    assert read_metadata(with_metadata(without_metadata, labels, UNIT, "名")).name == "名"


def test_metadata_of_a_model_from_google_is_read(real_data):
    content = (real_data / "edgetpu" / "mobilenet_v1_0.25_128_quant.tflite").read_bytes()
    metadata = read_metadata(content)
    assert metadata.name == "ImageClassifier"
    assert list(metadata.labels) == (real_data / "imagenet_labels.txt").read_text().splitlines()
    assert metadata.normalize == (Normalize(127.5, 127.5),)


def test_normalization_is_read_from_metadata_for_float_inputs_only():
    spec = TensorSpec("float32", (1, 8, 8, 3))
    common, per_channel = (UNIT,), (UNIT, UNIT, Normalize(1.0, 255.0))
    assert normalize_for(spec, Metadata("", "", (), common)) == UNIT
    assert normalize_for(spec, Metadata("", "", (), per_channel)) == ChannelNormalize((0, 0, 1), (255, 255, 255))
    with pytest.raises(
        ModelError, match="2 normalizations for 3 channels: set the correct normalization with --normalize"
    ):
        normalize_for(spec, Metadata("", "", (), per_channel[1:]))
    with pytest.raises(ModelError, match="has a float32 input, but does not specify its normalization"):
        normalize_for(spec, Metadata("", "", (), ()))
    # Pixels are not normalized for integer inputs, regardless of the metadata.
    quantized = TensorSpec("uint8", (1, 8, 8, 3), 0.5, 3)
    assert normalize_for(quantized, Metadata("", "", (), per_channel)) == Normalize(3.0, 2.0)


def test_evaluate_needs_a_normalization_for_a_float_file_without_metadata(
    run, without_metadata, tmp_path, image_folder
):
    own = evaluate(run.variant("float32") / "model.tflite", "digits")
    assert own.labels == run.labels
    assert own.accuracy > 0.9
    with pytest.raises(DataError, match="has a class 'blue' that the model does not know"):
        evaluate(run.variant("float32") / "model.tflite", str(image_folder))
    (tmp_path / "bare.tflite").write_bytes(without_metadata)
    with pytest.raises(EdgerecError, match="does not specify its normalization: add --normalize"):
        evaluate(tmp_path / "bare.tflite", "digits")
    assert evaluate(tmp_path / "bare.tflite", "digits", normalize="unit").accuracy == own.accuracy


def test_damaged_metadata_causes_only_model_errors(with_labels, monkeypatch):
    """Change bytes in the metadata and in the appended zip archive, and truncate the file."""
    positions = [*span(with_labels), *range(with_labels.index(b"PK\x03\x04"), len(with_labels))]
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(600):
        changed = bytearray(with_labels)
        for position in rng.choice(positions, 3):
            changed[position] = rng.integers(256)
        outcomes.add(outcome(bytes(changed)))
    for cut in range(1, 900, 9):
        outcomes.add(outcome(with_labels[:-cut]))
    assert outcomes == {"refused", "read"}
    with pytest.raises(ModelError, match=r"f\.tflite has damaged TFLite metadata"):
        read_metadata(with_labels[:-10], "f.tflite")
    monkeypatch.setattr(module, "MAX_LABEL_BYTES", 10)
    with pytest.raises(ModelError, match=r"labels.txt exceeds the limit of 10 bytes"):
        read_metadata(with_labels)


@pytest.mark.parametrize("name", [b"\xff\xfe", b"x" * 100_000])
def test_other_metadata_may_have_any_name(without_metadata, with_labels, name):
    for content, expected in ((without_metadata, False), (with_labels, True)):
        model = parse(content)
        entry = tflite_schema().MetadataT()
        entry.name, entry.buffer = name, 0
        model.metadata = [entry, *(model.metadata or ())]
        assert has_metadata(pack(model)) == expected
        if not expected:
            assert read_metadata(pack(model)) is None


def test_huge_sizes_in_metadata_do_not_use_much_memory(with_labels):
    """Replace each group of four bytes in the metadata by a huge size."""
    for start in span(with_labels)[::4]:
        for size in (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff"):
            outcome(with_labels[:start] + size + with_labels[start + 4 :])


def span(content: bytes) -> range:
    """Return the range of bytes of the metadata flatbuffer. Its length is stored before the flatbuffer."""
    at = content.index(b"M001") - 4
    return range(at, at + int.from_bytes(content[at - 4 : at], "little"))


def outcome(content: bytes) -> str:
    try:
        metadata = read_metadata(content)
    except ModelError:
        return "refused"
    assert metadata is None or all(entry.std > 0 for entry in metadata.normalize)
    return "read"
