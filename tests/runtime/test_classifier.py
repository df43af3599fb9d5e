"""The classifier, its interpreter, delegates and number of threads."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from edgerec import Bundle, Classifier, predict, read_image, verify
from edgerec.contract.preprocess import apply
from edgerec.contract.tensors import pixel_table
from edgerec.errors import DataError, DelegateError, EdgerecError, ModelError
from edgerec.runtime import interpreter
from edgerec.runtime.image_model import ImageModel
from tests.conftest import error_line


def test_scores_of_an_image_sum_to_one(bundle, golden_images):
    result = Classifier.open(bundle).classify(read_image(golden_images[0]))
    assert result.scores.shape == (10,)
    assert result.scores.dtype == np.float32
    assert result.scores.sum() == pytest.approx(1, abs=0.05)
    assert result.label == result.categories[0].label
    assert result.score == max(result.scores)


def test_model_input_equals_the_preprocessed_pixels(bundle, golden_images):
    """The pixels are not converted, because the normalization is part of the quantized model."""
    classifier = Classifier.open(bundle)
    (model,) = classifier.models
    assert pixel_table(classifier.manifest.normalize, classifier.manifest.input) is None
    pixels = apply(read_image(golden_images[0]), classifier.manifest.preprocess)
    tflite = interpreter.open_interpreter(Bundle.open(bundle).model)
    tflite.set_tensor(tflite.get_input_details()[0]["index"], pixels[np.newaxis])
    tflite.invoke()
    output = tflite.get_tensor(tflite.get_output_details()[0]["index"])
    assert np.array_equal(model.invoke(pixels), output.reshape(-1))


def test_most_golden_images_are_classified_correctly(bundle, golden_images):
    vectors = json.loads((bundle / "golden/golden.json").read_text())["vectors"]
    assert len(vectors) == len(golden_images) == 10
    correct = [result.classification.index == i for i, result in enumerate(predict(bundle, golden_images))]
    assert sum(correct) >= 7


def test_score_below_the_threshold_is_labeled_unknown(bundle, golden_images):
    (result,) = predict(bundle, golden_images[:1], threshold=1.0)
    assert result.classification.label == "unknown"
    assert result.classification.index == -1
    assert result.classification.categories[0].label != "unknown"


def test_predict_prints_the_documented_json_object(bundle, golden_images, edgerec):
    result = edgerec("predict", bundle, *golden_images[:3], "--json")
    objects = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(objects) == 3
    for number, value in enumerate(objects):
        assert list(value)[1:] == ["frame", "source", "captured_s", "age_ms", "label", "index", "score", "categories"]
        assert value["frame"] == number
        assert value["source"] == str(golden_images[number])
        assert value["age_ms"] >= 0
        assert len(value["categories"]) == 5
        assert value["categories"][0] == {key: value[key] for key in ("label", "index", "score")}


def test_predict_refuses_files_that_are_not_images(bundle, tmp_path, edgerec):
    (tmp_path / "note.txt").write_text("hello")
    assert "note.txt is not a readable image" in error_line(edgerec("predict", bundle, tmp_path / "note.txt"))
    assert "No such file" in error_line(edgerec("predict", bundle, tmp_path / "nothing.jpg"))
    with pytest.raises(DataError):
        read_image(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\0\0\0\0TFL3", b"\x1c\0\0\0TFL3" + b"\xff" * 200])
def test_files_that_are_not_tflite_models_are_refused(content):
    from edgerec.contract.tensors import Normalize

    with pytest.raises(ModelError):
        ImageModel(content, Normalize.named("unit"))


def test_missing_delegate_is_an_error_without_fallback(bundle, golden_images, caplog):
    with pytest.raises(DelegateError, match=r"does not load \(.*libnothing.so.1"):
        Classifier.open(bundle, delegate="libnothing.so.1")
    # With fallback=True, the CPU runs the model, and a warning is logged.
    on_cpu = Classifier.open(bundle, delegate="libnothing.so.1", fallback=True)
    assert "running on the CPU instead, which is slower" in caplog.text
    image = read_image(golden_images[0])
    assert np.array_equal(on_cpu.stored_scores(image), Classifier.open(bundle).stored_scores(image))


@pytest.mark.parametrize("delegate", ["none", ""])
def test_delegate_none_runs_the_model_on_the_cpu(bundle, golden_images, delegate):
    opened = Bundle.open(bundle)
    opened = replace(opened, manifest=replace(opened.manifest, delegate="libedgetpu.so.1"))
    with pytest.raises(DelegateError, match=r"libedgetpu\.so\.1"):
        Classifier(opened)
    image = read_image(golden_images[0])
    label = Classifier(opened, delegate=delegate).classify(image).label
    assert label == Classifier.open(bundle).classify(image).label
    assert verify(bundle, delegate=delegate).delegate == ""


def test_options_without_a_delegate_are_refused(bundle):
    with pytest.raises(DelegateError, match="delegate options require a delegate: specify its library"):
        Classifier.open(bundle, delegate_options={"device": "usb:1"})


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise(11);", "it crashed with SIGSEGV"),
        ("for (;;) pause();", "it timed out after"),
        ("exit(7);", "exit code 7"),
        ("return;", "does not load"),
    ],
)
def test_delegate_that_crashes_or_hangs_raises_an_error(bundle, tmp_path, monkeypatch, code, message):
    source = tmp_path / "delegate.c"
    source.write_text(
        "#include <signal.h>\n#include <stdlib.h>\n#include <unistd.h>\n"
        f"__attribute__((constructor)) static void begin(void) {{ {code} }}\n"
    )
    library = tmp_path / "libbad.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    monkeypatch.setattr("edgerec.runtime.delegate.PROBE_S", 3.0)
    with pytest.raises(DelegateError, match=message):
        Classifier.open(bundle, delegate=str(library))


def test_number_of_threads_is_measured_once_and_cached(bundle, monkeypatch, tmp_path):
    from edgerec.runtime import threads

    monkeypatch.setenv("EDGEREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    opened = Bundle.open(bundle)
    measured_threads = []

    def open_model(*arguments, **options):
        measured_threads.append(options["threads"])
        return ImageModel(*arguments, **options)

    monkeypatch.setattr(threads, "ImageModel", open_model)
    first = threads.best_threads(opened.model, opened.manifest.normalize)
    assert first in (1, 2, 3, 4)
    assert threads.best_threads(opened.model, opened.manifest.normalize) == first
    assert measured_threads == [1, 2, 3, 4]
    (cache_file,) = (tmp_path / "cache").iterdir()
    for damaged in ("many", "", "4000"):
        cache_file.write_text(damaged)
        assert 1 <= threads.best_threads(opened.model, opened.manifest.normalize) <= 4
    # If the cache folder is not writable, the result is not cached.
    monkeypatch.setenv("EDGEREC_CACHE", "/proc/nothing")
    assert threads.best_threads(opened.model, opened.manifest.normalize) in (1, 2, 3, 4)


def test_litert_and_tensorflow_return_similar_scores(bundle, golden_images, monkeypatch):
    """TensorFlow's interpreter is used if no other runtime is installed."""
    (first,) = Classifier.open(bundle).stored_scores(read_image(golden_images[0]))
    runtimes = {"tensorflow": interpreter.RUNTIMES["tensorflow"]}
    monkeypatch.setattr(interpreter, "RUNTIMES", runtimes)
    assert interpreter.fingerprint().runtime == "tensorflow"
    (other,) = Classifier.open(bundle).stored_scores(read_image(golden_images[0]))
    assert np.abs(first.astype(int) - other).max() <= 2


def test_error_without_a_runtime_names_the_package_to_install(monkeypatch):
    monkeypatch.setattr(interpreter, "RUNTIMES", {"x": "no_such_package_here"})
    with pytest.raises(EdgerecError, match="pip install ai-edge-litert"):
        interpreter.find_runtime()


def test_classifier_uses_the_bytes_whose_digest_was_checked(bundle):
    """The file is not read a second time, because it may have changed since the check."""
    opened = Bundle.open(bundle)
    assert opened.model == (bundle / "model.tflite").read_bytes()
    assert Classifier(opened).manifest == opened.manifest


def test_model_that_needs_too_much_memory_is_refused(bundle, monkeypatch):
    class Interpreter:
        def __init__(self, **_):
            raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(interpreter, "find_runtime", lambda: ("a runtime", SimpleNamespace(Interpreter=Interpreter)))
    with pytest.raises(ModelError, match="more memory than is available"):
        interpreter.open_interpreter((bundle / "model.tflite").read_bytes())
