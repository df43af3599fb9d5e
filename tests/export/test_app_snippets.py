"""The code in the README of an app's bundle gives the same pixels as the preprocessing of the training."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest

from edgerec import Bundle, Classifier, read_image
from edgerec.contract.preprocess import PreprocessSpec, apply
from edgerec.contract.target import Target
from edgerec.contract.tensors import ACTIVATIONS, Normalize, TensorSpec, dequantize, pixel_table
from edgerec.export import app_snippets as apps
from edgerec.export import tflm as sources

UINT8 = (Normalize.named("unit"), TensorSpec("uint8", (1, 40, 56, 3), 1 / 255, 0))
INT8 = (Normalize.named("unit"), TensorSpec("int8", (1, 40, 56, 3), 1 / 255, -128))
SIGNED = (Normalize(127.5, 127.5), TensorSpec("int8", (1, 40, 56, 3), 0.0078431377, -1))


def code(text: str, language: str) -> str:
    return text.split(f"```{language}\n")[1].split("```")[0]


class Interpreter:
    """A LiteRT interpreter, or a stand-in with a constant output; records its input."""

    def __init__(self, output: np.ndarray, actual=None) -> None:
        self.output, self.actual, self.input = output, actual, None

    def allocate_tensors(self) -> None:
        pass

    def invoke(self) -> None:
        if self.actual is not None:
            self.actual.invoke()

    def get_input_details(self) -> list:
        return self.actual.get_input_details() if self.actual else [{"index": 0}]

    def get_output_details(self) -> list:
        return self.actual.get_output_details() if self.actual else [{"index": 1}]

    def set_tensor(self, index: int, values: np.ndarray) -> None:
        self.input = values
        if self.actual is not None:
            self.actual.set_tensor(index, values)  # refuses another dtype

    def get_tensor(self, index: int) -> np.ndarray:
        return self.actual.get_tensor(index) if self.actual else self.output


def execute(manifest, folder, monkeypatch, interpreter) -> str:
    """Run the Python code for a Coral board in ``folder``, and return what it prints."""
    readme = "\n".join(apps.usage(manifest, Target.load("coral-dev-board")))
    module = ModuleType("pycoral.utils.edgetpu")
    module.make_interpreter = lambda file: interpreter
    # PyCoral's own function copies into the input tensor, so that uint8 values wrap around in an int8 tensor.
    common = ModuleType("pycoral.adapters.common")
    common.input_size = lambda _: (manifest.preprocess.width, manifest.preprocess.height)
    common.set_input = lambda _, data: interpreter.set_tensor(0, data.astype(manifest.input.dtype)[np.newaxis])
    classify = SimpleNamespace(
        get_classes=lambda *_, **__: [SimpleNamespace(id=int(interpreter.output.argmax()), score=0)]
    )
    modules = {"pycoral.utils.edgetpu": module, "pycoral.adapters": SimpleNamespace(common=common, classify=classify)}
    for name, stand_in in {
        "pycoral": ModuleType("pycoral"),
        "pycoral.utils": ModuleType("pycoral.utils"),
        **modules,
    }.items():
        monkeypatch.setitem(sys.modules, name, stand_in)
    monkeypatch.chdir(folder)
    printed = []
    exec(code(readme, "python"), {"print": lambda *words: printed.append(words)})
    return printed


def photo(rows: int, columns: int) -> np.ndarray:
    image = np.random.default_rng(rows).integers(0, 256, (rows, columns, 3), np.uint8)
    return cv2.GaussianBlur(image, (0, 0), 2)


@pytest.mark.parametrize("size", [(300, 450), (37, 900), (640, 90), (40, 56)])
@pytest.mark.parametrize(
    ("fit", "interpolation", "version", "channels", "tensors"),
    [
        ("crop", "linear", 2, 3, UINT8),
        ("crop", "linear", 1, 1, INT8),
        ("stretch", "linear", 2, 3, SIGNED),
        ("stretch", "linear", 1, 3, INT8),
        ("pad", "linear", 2, 1, UINT8),
        ("pad", "nearest", 2, 3, SIGNED),
        ("crop", "nearest", 1, 3, INT8),
    ],
)
def test_coral_code_gives_the_model_the_pixels_of_the_training(
    bundle, tmp_path, monkeypatch, size, fit, interpolation, version, channels, tensors
):
    normalize, spec = tensors
    spec = replace(spec, shape=(1, 40, 56, channels))
    preprocess = PreprocessSpec(40, 56, channels, fit, interpolation, version)
    output = TensorSpec("uint8", (1, 10), 1 / 256, 0)
    manifest = replace(
        Bundle.open(bundle).manifest, input=spec, output=output, normalize=normalize, preprocess=preprocess
    )
    cv2.imwrite(str(tmp_path / "image.jpg"), photo(*size))
    (tmp_path / "labels.txt").write_text("\n".join(manifest.labels) + "\n", encoding="utf-8")
    interpreter = Interpreter(np.zeros((1, 10), np.uint8))
    execute(manifest, tmp_path, monkeypatch, interpreter)
    pixels = apply(read_image(tmp_path / "image.jpg"), preprocess)
    table = pixel_table(normalize, spec)
    expected = pixels if table is None else table[pixels]
    assert interpreter.input.dtype == expected.dtype
    assert np.array_equal(interpreter.input, expected[np.newaxis])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_coral_code_prints_label_and_score_of_the_classifier(bundle, tmp_path, monkeypatch, activation):
    manifest = Bundle.open(bundle).manifest
    labels = ("no\u2028 entry", "straße") if activation.startswith("binary") else ("no\u2028 entry", "straße", "c")
    stored = np.array([[200]] if activation.startswith("binary") else [[3, 200, 90]], np.uint8)
    output = TensorSpec("uint8", stored.shape, 1 / 256 if activation in ("none", "binary") else 0.1, 10)
    manifest = replace(manifest, labels=labels, output=output, activation=activation)
    cv2.imwrite(str(tmp_path / "image.jpg"), photo(50, 60))
    (tmp_path / "labels.txt").write_text("\n".join(labels) + "\n", encoding="utf-8")
    ((label, score),) = execute(manifest, tmp_path, monkeypatch, Interpreter(stored))
    expected = ACTIVATIONS[activation](dequantize(stored.ravel(), output))
    assert label == labels[int(expected.argmax())]
    assert score == pytest.approx(float(expected.max()), abs=1e-6)


def test_coral_code_predicts_as_the_bundle_does(bundle, golden_images, tmp_path, monkeypatch):
    from ai_edge_litert.interpreter import Interpreter as LiteRT

    opened = Bundle.open(bundle)
    shutil.copy(bundle / "labels.txt", tmp_path)
    for path in golden_images[:3]:
        shutil.copy(path, tmp_path / "image.jpg")  # OpenCV detects the format by the content
        actual = LiteRT(model_content=opened.model)
        actual.allocate_tensors()
        ((label, score),) = execute(opened.manifest, tmp_path, monkeypatch, Interpreter(np.zeros(10), actual))
        expected = Classifier(opened).classify(read_image(path))
        assert (label, score) == (expected.label, pytest.approx(expected.score, abs=1e-6))


MICRO = """
#pragma once
#include <cstdint>
#include <cstddef>
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "model.h"
struct TfLiteTensor { union { std::uint8_t* uint8; std::int8_t* int8; float* f; } data; };
namespace tflite {
struct Model {};
inline const Model* GetModel(const void*) { return nullptr; }
extern unsigned char given[sizeof(edgerec::Input) * edgerec::kInputSize];
extern unsigned char answer[sizeof(edgerec::Output) * edgerec::kLabelCount];
class MicroInterpreter {
 public:
  template <class Resolver> MicroInterpreter(const Model*, const Resolver&, std::uint8_t*, std::size_t) {
    input_.data.uint8 = given;
    output_.data.uint8 = answer;
  }
  TfLiteStatus AllocateTensors() { return kTfLiteOk; }
  TfLiteStatus Invoke() { return kTfLiteOk; }
  TfLiteTensor* input(int) { return &input_; }
  TfLiteTensor* output(int) { return &output_; }
 private:
  TfLiteTensor input_, output_;
};
}
"""
RESOLVER = """
#pragma once
enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };
namespace tflite {
template <unsigned int N> class MicroMutableOpResolver { public: %s };
}
"""
MAIN = """
#include <cstdio>
namespace tflite { alignas(16) unsigned char given[sizeof(edgerec::Input) * edgerec::kInputSize];
alignas(16) unsigned char answer[sizeof(edgerec::Output) * edgerec::kLabelCount]; }
int main() {
  static unsigned char pixels[edgerec::kInputSize];
  if (std::fread(pixels, 1, sizeof pixels, stdin) != sizeof pixels) return 99;
  reinterpret_cast<edgerec::Output*>(tflite::answer)[7] = 100;
  const int best = classify(pixels);
  std::fwrite(tflite::given, 1, sizeof tflite::given, stdout);
  return best;
}
"""


@pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed")
@pytest.mark.parametrize(
    "tensors",
    [(UINT8, "uint8"), (SIGNED, "int8"), ((Normalize(3.0, 58.0), TensorSpec("float32", (1, 9, 8, 3))), "float32")],
)
def test_microcontroller_code_gives_the_model_the_pixels_of_the_training(bundle, tmp_path, tensors):
    """The function is compiled against a stand-in for TensorFlow Lite Micro that records the input."""
    (normalize, spec), kind = tensors
    opened = Bundle.open(bundle)
    spec = replace(spec, shape=(1, 9, 8, 3))
    preprocess = PreprocessSpec(9, 8, 3)
    output = TensorSpec(kind, (1, 10), *(() if kind == "float32" else (1 / 256, 0)))
    manifest = replace(opened.manifest, input=spec, output=output, normalize=normalize, preprocess=preprocess)
    micro = tmp_path / "tensorflow" / "lite" / "micro"
    (tmp_path / "tensorflow" / "lite" / "schema").mkdir(parents=True)
    micro.mkdir()
    for name, content in sources.sources(opened.model, manifest).items():
        (tmp_path / name).write_bytes(content)
    adds = [
        line.split(".")[1].split("(")[0]
        for line in (tmp_path / "model_operators.h").read_text().splitlines()
        if ".Add" in line
    ]
    (micro / "micro_mutable_op_resolver.h").write_text(
        RESOLVER % " ".join(f"TfLiteStatus {name}() {{ return kTfLiteOk; }}" for name in adds)
    )
    (micro / "micro_interpreter.h").write_text(MICRO)
    (tmp_path / "tensorflow" / "lite" / "schema" / "schema_generated.h").write_text("")
    (tmp_path / "main.cc").write_text(code("\n".join(sources.usage(opened.model, manifest)), "cpp") + MAIN)
    command = ["g++", "-std=c++17", "-Wall", "-Werror", "-I.", "model.cc", "main.cc", "-o", "classify"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    pixels = apply(photo(100, 80), preprocess)
    result = subprocess.run(
        [tmp_path / "classify"], input=pixels.tobytes(), capture_output=True, check=False, timeout=30
    )
    table = pixel_table(normalize, spec)
    assert result.stdout == (pixels if table is None else table[pixels]).tobytes()
    assert result.returncode == 7


NODE_PROGRAM = """
globalThis.ImageData = class {
  constructor(width, height) {
    Object.assign(this, { width, height, data: new Uint8ClampedArray(width * height * 4) });
  }
};
const { readFileSync, writeFileSync } = require("fs");
const [width, height] = process.argv.slice(2).map(Number);
const image = new ImageData(width, height), WASM_FOLDER = "wasm";
image.data.set(readFileSync("image.rgba"));
const FilesetResolver = { forVisionTasks: async (folder) => folder };
const ImageClassifier = {
  createFromOptions: async (files, options) => ({
    classify: (input) => {
      writeFileSync("prepared.rgba", input.data);
      return { classifications: [{ categories: [{ categoryName: options.baseOptions.modelAssetPath, score: 0.5 }] }] };
    },
  }),
};
(async () => { CODE })();
"""


@pytest.mark.skipif(not shutil.which("node"), reason="Node.js is not installed")
@pytest.mark.parametrize(
    ("fit", "interpolation", "version", "channels"),
    [
        ("crop", "linear", 2, 3),
        ("stretch", "linear", 2, 3),
        ("pad", "linear", 2, 3),
        ("stretch", "linear", 1, 3),
        ("pad", "nearest", 2, 3),
        ("crop", "linear", 2, 1),
    ],
)
def test_web_code_prepares_the_pixels_of_the_training(bundle, tmp_path, fit, interpolation, version, channels):
    preprocess = PreprocessSpec(40, 56, channels, fit, interpolation, version)
    manifest = replace(Bundle.open(bundle).manifest, preprocess=preprocess)
    (tmp_path / "app.js").write_text(
        NODE_PROGRAM.replace("CODE", code("\n".join(apps.usage(manifest, Target.load("web"))), "js"))
    )
    for rows, columns in ((300, 451), (37, 900), (640, 90), (40, 56), (80, 57), (13, 7)):
        image = photo(rows, columns)
        alpha = np.full((rows, columns, 1), 255, np.uint8)
        (tmp_path / "image.rgba").write_bytes(np.concatenate([image, alpha], axis=2).tobytes())
        command = ["node", "app.js", str(columns), str(rows)]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
        assert result.returncode == 0, result.stderr
        assert "0.5" in result.stdout
        prepared = np.frombuffer((tmp_path / "prepared.rgba").read_bytes(), np.uint8).reshape(40, 56, 4)
        expected = np.broadcast_to(apply(image, preprocess), (40, 56, 3))
        assert np.array_equal(prepared[:, :, :3], expected), (rows, columns)
        assert (prepared[:, :, 3] == 255).all()


def test_readme_describes_how_mediapipe_differs_from_the_training(bundle):
    """Kotlin is not executed here, so the README must not claim equal pixels."""
    manifest = Bundle.open(bundle).manifest
    text = " ".join(apps.usage(manifest, Target.load("android")))
    size = f"{manifest.preprocess.width}×{manifest.preprocess.height}"
    assert f"MediaPipe resizes images to {size} pixels. Unlike edgerec, it does not average" in text
    for target in ("android", "web"):
        for channels in (1, 3):
            changed = replace(manifest, preprocess=replace(manifest.preprocess, channels=channels))
            said = "accepts only RGB images" in " ".join(apps.usage(changed, Target.load(target)))
            assert said is (channels == 1)
