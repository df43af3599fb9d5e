"""README sections for apps that use only the .tflite file of a bundle."""

from __future__ import annotations

import numpy as np

from edgerec.contract.manifest import Manifest
from edgerec.contract.preprocess import PreprocessSpec
from edgerec.contract.target import Target
from edgerec.contract.tensors import pixel_table

_FIT_FIRST = {
    "crop": "crop the center of each image to the aspect ratio of the input",
    "pad": "pad each image with black to the aspect ratio of the input",
}

# Code that halves an image while it is at least twice as large as the target, by the version of the preprocessing.
_PYTHON_HALVINGS = {
    version: [
        "while True:",
        *steps,
        "    rows, columns = image.shape[0] // (1 + tall), image.shape[1] // (1 + wide)",
        "    image = image[: rows * (1 + tall), : columns * (1 + wide)]",
        "    image = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)",
    ]
    for version, steps in {
        1: [
            "    tall = wide = image.shape[0] >= 2 * height and image.shape[1] >= 2 * width",
            "    if not tall:",
            "        break",
        ],
        2: [
            "    tall, wide = image.shape[0] >= 2 * height, image.shape[1] >= 2 * width",
            "    if not (tall or wide):",
            "        break",
        ],
    }.items()
}
# Code for the functions in edgerec.contract.tensors.ACTIVATIONS.
_PYTHON_SIGMOID = ["scores = 0.5 + 0.5 * np.tanh(scores / 2)"]
_PYTHON_BINARY = ["scores = np.concatenate([1 - scores, scores])"]
_PYTHON_ACTIVATIONS = {
    "none": [],
    "softmax": ["scores = np.exp(scores - scores.max())", "scores = scores / scores.sum()"],
    "sigmoid": _PYTHON_SIGMOID,
    "binary": _PYTHON_BINARY,
    "binary_sigmoid": [*_PYTHON_SIGMOID, *_PYTHON_BINARY],
}


def usage(manifest: Manifest, target: Target) -> list[str]:
    """Return the lines of the README that describe how the app uses the model file."""
    file = manifest.delegate_model or manifest.model
    lines = [
        f"The app needs only `{file}`, which contains the labels and the normalization (TFLite metadata).",
        "",
    ]
    if target.delegate:
        lines += _coral(manifest, file)
    elif target.arch:
        lines += _android(file)
    else:
        lines += _web(file)
    if not target.delegate:
        lines += _mediapipe_fit(manifest.preprocess)
    check = "On a computer, `edgerec verify .` checks the bundle and `edgerec predict . image.jpg` classifies an image."
    return [*lines, check, ""]


def _mediapipe_fit(spec: PreprocessSpec) -> list[str]:
    lines = [
        f"MediaPipe resizes images to {spec.width}×{spec.height} pixels, but not as in training, where large images",
        "are averaged first. Therefore its predictions can differ from those of `edgerec predict`. To avoid this,",
        "resize the image to this size before you classify it. The tests of edgerec do not execute this code.",
        "",
    ]
    if spec.channels == 1:
        lines += [
            "The model takes grayscale images. MediaPipe's Python package accepts only RGB images, so train with",
            "`--set data.channels=3` if the app reports an error.",
            "",
        ]
    if spec.fit != "stretch":
        lines += [
            f"The model was trained with fit = {spec.fit}, but MediaPipe stretches images: {_FIT_FIRST[spec.fit]}",
            "before you classify it.",
            "",
        ]
    return lines


def _coral(manifest: Manifest, file: str) -> list[str]:
    lines = [
        "The code needs PyCoral, NumPy and OpenCV (`python3 -m pip install opencv-python-headless`). The model gets",
        "the same pixels as in training. The code was never run on a Coral board: compare its predictions with those",
        "of `edgerec predict`.",
        "",
        "```python",
        *_python(manifest, file),
        "```",
        "",
    ]
    if not manifest.delegate_model:
        lines += [
            "The model was not compiled. Run `edgetpu_compiler -s model.tflite` (on x86-64 Debian or Ubuntu) and use",
            "`model_edgetpu.tflite`.",
            "",
        ]
    return lines


def _python(manifest: Manifest, file: str) -> list[str]:
    """Return Python 3.7 code that classifies an image with the same arithmetic as edgerec, but without edgerec."""
    return [
        "import cv2",
        "import numpy as np",
        "from pycoral.utils.edgetpu import make_interpreter",
        "",
        f'interpreter = make_interpreter("{file}")',
        "interpreter.allocate_tensors()",
        'image = cv2.imread("image.jpg")',
        *_python_resize(manifest.preprocess),
        *_python_input(manifest),
        "interpreter.invoke()",
        *_python_scores(manifest),
        'labels = open("labels.txt", encoding="utf-8").read().split("\\n")',
        "best = int(scores.argmax())",
        "print(labels[best], scores[best])",
    ]


def _python_resize(spec: PreprocessSpec) -> list[str]:
    """Return the code for :func:`edgerec.contract.preprocess.apply`, from ``image`` (BGR) to ``pixels``."""
    rows, columns = spec.height, spec.width
    size = [f"height, width = {rows}, {columns}"]
    if spec.fit == "crop":
        size = [
            "rows, columns = image.shape[:2]",
            f"height = max(1, min(rows, columns * {rows} // {columns}))",
            f"width = max(1, min(columns, rows * {columns} // {rows}))",
            "top, left = (rows - height) // 2, (columns - width) // 2",
            "image = image[top : top + height, left : left + width]",
            *size,
        ]
    elif spec.fit == "pad":
        size = [
            "rows, columns = image.shape[:2]",
            f"height = {rows} if rows * {columns} >= columns * {rows} else max(1, rows * {columns} // columns)",
            f"width = {columns} if rows * {columns} < columns * {rows} else max(1, columns * {rows} // rows)",
        ]
    interpolation = "NEAREST" if spec.interpolation == "nearest" else "LINEAR_EXACT"
    color = "BGR2GRAY" if spec.channels == 1 else "BGR2RGB"
    lines = [
        *size,
        *(_PYTHON_HALVINGS[spec.version] if spec.interpolation == "linear" else []),
        f"image = cv2.resize(image, (width, height), interpolation=cv2.INTER_{interpolation})",
        f"pixels = cv2.cvtColor(image, cv2.COLOR_{color}).reshape(height, width, {spec.channels})",
    ]
    if spec.fit == "pad":
        lines += [
            f"padded = np.zeros({spec.shape}, np.uint8)",
            f"top, left = ({rows} - height) // 2, ({columns} - width) // 2",
            "padded[top : top + height, left : left + width] = pixels",
            "pixels = padded",
        ]
    return lines


def _python_input(manifest: Manifest) -> list[str]:
    lines = []
    if pixel_table(manifest.normalise, manifest.input) is not None:
        mean, std, spec = manifest.normalise.mean, manifest.normalise.std, manifest.input
        limits = np.iinfo(spec.dtype)
        lines = [
            f"table = np.rint((np.arange(256) - {mean!r}) / {std!r} / {spec.scale!r}) + {spec.zero_point}",
            f"pixels = np.clip(table, {limits.min}, {limits.max}).astype(np.{spec.dtype})[pixels]",
        ]
    return [*lines, 'interpreter.set_tensor(interpreter.get_input_details()[0]["index"], pixels[np.newaxis])']


def _python_scores(manifest: Manifest) -> list[str]:
    spec = manifest.output
    return [
        'output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).ravel()',
        f"scores = (output.astype(np.float64) - {spec.zero_point}) * {spec.scale!r}",
        *_PYTHON_ACTIVATIONS[manifest.activation],
    ]


def _android(file: str) -> list[str]:
    return [
        "Copy the file to `app/src/main/assets` and add `com.google.mediapipe:tasks-vision` to the dependencies:",
        "",
        "```kotlin",
        f'val classifier = ImageClassifier.createFromFile(context, "{file}")',
        "val result = classifier.classify(BitmapImageBuilder(bitmap).build())",
        "val best = result.classificationResult().classifications()[0].categories()[0]",
        "println(best.categoryName() + best.score())",
        "```",
        "",
    ]


def _web(file: str) -> list[str]:
    return [
        "Serve the file with the page, and use the package `@mediapipe/tasks-vision`:",
        "",
        "```js",
        "const files = await FilesetResolver.forVisionTasks(WASM_FOLDER);",
        "const classifier = await ImageClassifier.createFromOptions(files, {",
        f'  baseOptions: {{ modelAssetPath: "{file}" }}, maxResults: 1,',
        "});",
        "const best = classifier.classify(image).classifications[0].categories[0];",
        "console.log(best.categoryName, best.score);",
        "```",
        "",
    ]
