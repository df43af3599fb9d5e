"""Files of bundles for microcontrollers and apps."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from edgerec import ensemble, export_bundle, verify
from edgerec.contract.bundle import Bundle
from edgerec.contract.target import Target
from edgerec.errors import BundleError, TargetError
from edgerec.export.tflm import sources, spelled
from edgerec.runtime.classifier import Classifier
from edgerec.runtime.verification import golden_images
from edgerec.tflite.flatbuffer import read_graph
from edgerec.tflite.memory import MICRO_ALIGNMENT, microcontroller_bytes, plan_bytes
from edgerec.tflite.metadata import read_metadata

# TFLite Micro's interpreter aborts the process if it cannot run a model, so it runs in a separate process.
MICRO = """
import sys, numpy as np
from tflite_micro import runtime
model, pixels = open(sys.argv[1], "rb").read(), np.load(sys.argv[2])
interpreter = runtime.Interpreter.from_bytes(model, arena_size=int(sys.argv[4]))
scores = []
for image in pixels:
    interpreter.set_input(image[np.newaxis], 0)
    interpreter.invoke()
    scores.append(interpreter.get_output(0).reshape(-1))
np.save(sys.argv[3], np.stack(scores))
interpreter.print_allocations()
"""

# A stand-in for TensorFlow Lite Micro's header, which counts the operators that the sources add.
RESOLVER = """
#pragma once
enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };
namespace tflite {
template <unsigned int N> class MicroMutableOpResolver {
 public:
  unsigned int added = 0;
%s
 private:
  TfLiteStatus Take() { return ++added <= N ? kTfLiteOk : kTfLiteError; }
};
}
"""
MAIN = """
#include <cstdint>
#include <cstdio>
#include "model.h"
#include "model_operators.h"
int main() {
  edgerec::ModelOperators operators;
  if (edgerec::AddModelOperators(operators) != kTfLiteOk) return 1;
  if (reinterpret_cast<std::uintptr_t>(edgerec::kModel) % 16) return 2;
  std::fwrite(edgerec::kModel, 1, edgerec::kModelBytes, stdout);
  for (const char* label : edgerec::kLabels) std::fprintf(stderr, "%s\\n", label);
}
"""


@pytest.fixture(scope="module")
def micro(run, tmp_path_factory):
    """A bundle of the run for a microcontroller."""
    return Bundle.open(export_bundle(run, "microcontroller", out=tmp_path_factory.mktemp("micro") / "digits").bundle)


def compiled(files, folder) -> subprocess.CompletedProcess:
    """Compile the sources with warnings as errors, and run a program that prints the model and the labels."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed: sources are not compiled")
    header = folder / "tensorflow" / "lite" / "micro" / "micro_mutable_op_resolver.h"
    header.parent.mkdir(parents=True)
    names = Target.load("microcontroller").operators
    header.write_text(
        RESOLVER % "\n".join(f"  TfLiteStatus Add{spelled(name)}() {{ return Take(); }}" for name in names)
    )
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "main.cc").write_text(MAIN)
    command = [compiler, "-std=c++11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I.", "model.cc", "main.cc"]
    subprocess.run([*command, "-o", "show"], cwd=folder, check=True, timeout=120)
    return subprocess.run([folder / "show"], capture_output=True, check=False, timeout=30)


def test_sources_contain_model_labels_and_operators(micro, tmp_path):
    files = {name: micro.files[name] for name in ("model.h", "model.cc", "model_operators.h")}
    result = compiled(files, tmp_path)
    assert result.returncode == 0
    assert result.stdout == micro.model
    assert result.stderr.decode().splitlines() == list(micro.manifest.labels)
    operators = {operator.name for operator in read_graph(micro.model).operators}
    assert f"MicroMutableOpResolver<{len(operators)}>" in files["model_operators.h"].decode()
    assert verify(micro.path).exact  # the bundle can still be verified on a computer
    assert "requirements.txt" not in micro.files


def test_special_characters_in_labels_are_escaped(micro, tmp_path):
    from dataclasses import replace

    labels = ['"; int x = 1; //', "back\\slash\\", "Ölfaß ??/ 猫", *micro.manifest.labels[3:]]
    manifest = replace(micro.manifest, name="end of line \\\n#error", labels=tuple(labels))
    result = compiled(sources(micro.model, manifest), tmp_path)
    assert result.stderr.decode().splitlines() == labels


def test_float_model_gets_a_table_of_normalized_pixels(run, tmp_path):
    """The table contains (pixel - mean) / std for each of the 256 pixel values."""
    bundle = Bundle.open(export_bundle(run, "microcontroller", variant="float32", out=tmp_path / "b").bundle)
    files = {name: bundle.files[name] for name in ("model.h", "model.cc", "model_operators.h")}
    assert compiled(files, tmp_path).stdout == bundle.model
    table = files["model.cc"].decode().split("kStored[256] = {")[1].split("}")[0]
    numbers = np.array([float(number.strip().rstrip("f")) for number in table.split(",") if number.strip()])
    assert numbers == pytest.approx(bundle.manifest.normalize.apply(np.arange(256)), rel=1e-6)
    assert "data.f[i] = edgerec::kStored[pixels[i]];" in bundle.files["README.md"].decode()


def test_ensemble_for_a_microcontroller_is_refused(run, tmp_path):
    bundles = [export_bundle(run, "rpi", variant=v, out=tmp_path / v).bundle for v in ("int8-qat", "float32")]
    with pytest.raises(BundleError, match="target microcontroller supports only one model"):
        ensemble(bundles, tmp_path / "b", target="microcontroller")


def test_readme_contains_code_for_the_firmware(micro):
    readme = micro.files["README.md"].decode()
    assert "AddModelOperators(operators)" in readme
    assert f"{microcontroller_bytes(read_graph(micro.model)):,} bytes of RAM" in readme
    assert "pip install" not in readme
    assert "## Model card" in readme


@pytest.mark.skipif(importlib.util.find_spec("tflite_micro") is None, reason="tflite_micro is not installed")
def test_tensorflow_lite_micro_gives_the_golden_scores_in_the_estimated_arena(micro, tmp_path):
    """The golden scores match, the planned tensor memory is exact, and the arena is at most a third too large."""
    classifier, golden = Classifier(micro), json.loads(micro.files["golden/golden.json"])["vectors"]
    pixels = np.stack([classifier.pixels(image)[0] for image in golden_images(micro).values()])
    np.save(tmp_path / "pixels.npy", pixels)
    (tmp_path / "model.tflite").write_bytes(micro.model)
    graph = read_graph(micro.model)
    paths = [str(tmp_path / name) for name in ("model.tflite", "pixels.npy", "scores.npy")]
    command = [sys.executable, "-c", MICRO, *paths, str(microcontroller_bytes(graph))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    scores = np.load(tmp_path / "scores.npy").astype(int)
    expected = np.array([vector["scores"][0] for vector in golden])
    assert np.abs(scores - expected).max() <= 2
    assert (scores.argmax(1) == expected.argmax(1)).all()
    log = result.stdout + result.stderr
    head, total = (int(log.split(f"Arena allocation {kind} ")[1].split()[0]) for kind in ("head", "total"))
    assert head == plan_bytes(graph, MICRO_ALIGNMENT)
    assert 0.75 * microcontroller_bytes(graph) < total <= microcontroller_bytes(graph)


def test_model_larger_than_the_memory_is_refused(run, tmp_path):
    (tmp_path / "tiny.toml").write_text('like = "microcontroller"\nmemory_bytes = 20000\n')
    with pytest.raises(TargetError, match=r"memory: the model needs about .* bytes, but only 20,000 can be used;"):
        export_bundle(run, str(tmp_path / "tiny.toml"), out=tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("target", "snippet"),
    [
        ("android", "ImageClassifier.createFromFile"),
        ("web", "createFromOptions"),
        ("coral-dev-board", "make_interpreter"),
    ],
)
def test_app_bundles_contain_a_model_with_metadata_and_a_snippet(run, tmp_path, target, snippet):
    bundle = Bundle.open(export_bundle(run, target, out=tmp_path / "b").bundle)
    assert read_metadata(bundle.model).labels == bundle.manifest.labels
    assert snippet in bundle.files["README.md"].decode()
    assert not {"requirements.txt", "install.sh"} & set(bundle.files)
