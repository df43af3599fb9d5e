"""Generate README sections for apps that use only the .tflite file of a bundle."""

from __future__ import annotations

import numpy as np

from edgerec.contract.manifest import Manifest
from edgerec.contract.preprocess import PreprocessSpec
from edgerec.contract.target import Target
from edgerec.contract.tensors import pixel_table

_FIT_FIRST = {
    "crop": "center-crop each image to the input's aspect ratio",
    "pad": "pad each image with black to the input's aspect ratio",
}

# Each preprocessing version has its own code for halving images that are larger than twice the input size.
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
# This code must compute the same scores as edgerec.contract.tensors.ACTIVATIONS.
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
    """Return the README lines that explain how to use the model file in an app."""
    file = manifest.delegate_model or manifest.model
    lines = [
        f"Your app needs only `{file}`, whose TFLite metadata contains the labels and the normalization.",
        "",
    ]
    if target.delegate:
        lines += _coral(manifest, file)
    elif target.arch:
        lines += _android(file)
    else:
        lines += _web(manifest.preprocess, file)
    if target.arch and not target.delegate:
        lines += _mediapipe_fit(manifest.preprocess)
    return [
        *lines,
        "On a computer, `edgerec verify .` checks the bundle and `edgerec predict . image.jpg` classifies an image.",
        "",
    ]


def _mediapipe_fit(spec: PreprocessSpec) -> list[str]:
    lines = [
        f"MediaPipe resizes images to {spec.width}×{spec.height} pixels. Unlike edgerec, it does not average pixels",
        "when it shrinks large images, so its predictions can differ from those of `edgerec predict`. To avoid this,",
        "resize images to this size before you classify them. edgerec's tests do not run this code.",
        "",
    ]
    lines += _grayscale(spec)
    if spec.fit != "stretch":
        lines += [
            f"The model was trained with `fit = {spec.fit}`, but MediaPipe stretches images. Therefore,",
            f"{_FIT_FIRST[spec.fit]} before classifying it.",
            "",
        ]
    return lines


def _coral(manifest: Manifest, file: str) -> list[str]:
    lines = [
        "This code requires PyCoral, NumPy and OpenCV (`python3 -m pip install opencv-python-headless`). It",
        "preprocesses images in the same way as training. It has not been tested on a Coral board, so compare its",
        "predictions with those of `edgerec predict`.",
        "",
        "```python",
        *_python(manifest, file),
        "```",
        "",
    ]
    if not manifest.delegate_model:
        lines += [
            "The model has not been compiled for the Edge TPU. Run `edgetpu_compiler -s model.tflite` on x86-64 Debian",
            "or Ubuntu, and use the resulting `model_edgetpu.tflite` instead.",
            "",
        ]
    return lines


def _python(manifest: Manifest, file: str) -> list[str]:
    """Return Python 3.7 code that classifies an image with the same arithmetic as edgerec."""
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
    """Return the Python equivalent of :func:`edgerec.contract.preprocess.apply`.

    The code computes ``pixels`` from the BGR image ``image``.
    """
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
    if pixel_table(manifest.normalize, manifest.input) is not None:
        mean, std, spec = manifest.normalize.mean, manifest.normalize.std, manifest.input
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
        "Copy the file to `app/src/main/assets`, and add `com.google.mediapipe:tasks-vision` to your dependencies:",
        "",
        "```kotlin",
        f'val classifier = ImageClassifier.createFromFile(context, "{file}")',
        "val result = classifier.classify(BitmapImageBuilder(bitmap).build())",
        "val best = result.classificationResult().classifications()[0].categories()[0]",
        "println(best.categoryName() + best.score())",
        "```",
        "",
    ]


def _grayscale(spec: PreprocessSpec) -> list[str]:
    if spec.channels == 3:
        return []
    return [
        "The model expects grayscale images, but MediaPipe's Python package accepts only RGB images. If your app",
        "reports an error about the number of channels, train the model with `--set data.channels=3`.",
        "",
    ]


def _javascript(spec: PreprocessSpec) -> list[str]:
    """Return the JavaScript equivalent of :func:`edgerec.contract.preprocess.apply` for ImageData."""
    rows, columns = spec.height, spec.width
    size = f"{rows}, width = {columns}"
    lines = ["function prepare(image) {", "  let top = 0, left = 0, rows = image.height, columns = image.width;"]
    if spec.fit == "crop":
        lines += [
            f"  rows = Math.max(1, Math.min(image.height, Math.floor((image.width * {rows}) / {columns})));",
            f"  columns = Math.max(1, Math.min(image.width, Math.floor((image.height * {columns}) / {rows})));",
            "  top = (image.height - rows) >> 1, left = (image.width - columns) >> 1;",
        ]
    if spec.fit == "pad":
        size = (
            f"rows * {columns} < columns * {rows} ? Math.floor((rows * {columns}) / columns) || 1 : {rows},\n"
            f"    width = rows * {columns} < columns * {rows} ? {columns} : Math.floor((columns * {rows}) / rows) || 1"
        )
    lines += [
        f"  const height = {size};",
        "  let pixels = fill(rows, columns, (y, x, c) => image.data[((top + y) * image.width + left + x) * 4 + c]);",
    ]
    if spec.interpolation == "nearest":
        lines += [
            "  const from = pixels, tall = 1 / (height / rows), wide = 1 / (width / columns);",
            "  const at = (i, scale, last) => Math.min(Math.floor(i * scale), last);",
            "  const pick = (y, x, c) => get(from, at(y, tall, rows - 1), at(x, wide, columns - 1), c);",
            "  pixels = fill(height, width, pick);",
        ]
    else:
        lines += _javascript_linear(spec.version)
    gray = "(9798 * get(pixels, y, x, 0) + 19235 * get(pixels, y, x, 1) + 3735 * get(pixels, y, x, 2) + 16384) >> 15"
    value = gray if spec.channels == 1 else "get(pixels, y, x, c)"
    return [
        *lines,
        f"  const result = new ImageData({columns}, {rows});",
        f"  const y0 = ({rows} - height) >> 1, x0 = ({columns} - width) >> 1;",
        "  for (let i = 3; i < result.data.length; i += 4) result.data[i] = 255;",
        f"  fill(height, width, (y, x, c) => (result.data[((y0 + y) * {columns} + x0 + x) * 4 + c] = {value}));",
        "  return result;",
        "}",
        "",
        "function fill(rows, columns, value) {",
        "  const data = new Uint8Array(rows * columns * 3);",
        "  for (let y = 0, i = 0; y < rows; y++)",
        "    for (let x = 0; x < columns; x++) for (let c = 0; c < 3; c++) data[i++] = value(y, x, c);",
        "  return { rows, columns, data };",
        "}",
        "const get = (pixels, y, x, c) => pixels.data[(y * pixels.columns + x) * 3 + c];",
        "const round = (n) => Math.round(n) - (n % 1 === 0.5 && Math.round(n) % 2);  // half to even",
    ]


def _javascript_linear(version: int) -> list[str]:
    tall, wide = "pixels.rows >= 2 * height", "pixels.columns >= 2 * width"
    if version == 1:
        tall = wide = f"{tall} && {wide}"
    return [
        "  for (;;) {  // halve the image, with the rounding of OpenCV's INTER_AREA",
        f"    const from = pixels, dy = {tall} ? 2 : 1, dx = {wide} ? 2 : 1;",
        "    if (dy * dx === 1) break;",
        "    pixels = fill(Math.floor(from.rows / dy), Math.floor(from.columns / dx), (y, x, c) => {",
        "      let sum = 0;",
        "      for (let j = 0; j < dy; j++) for (let i = 0; i < dx; i++) sum += get(from, y * dy + j, x * dx + i, c);",
        "      return dy * dx === 4 ? (sum + 2) >> 2 : round(sum / 2);",
        "    });",
        "  }",
        "  const weights = (from, to) =>  // of OpenCV's INTER_LINEAR_EXACT, in units of 1/256",
        "    Array.from({ length: to }, (_, i) => {",
        "      const at = (1 / (to / from)) * (i + 0.5) - 0.5, low = Math.floor(at);",
        "      if (low < 0) return [0, 0, 0];",
        "      return low >= from - 1 ? [from - 1, from - 1, 0] : [low, low + 1, round((at - low) * 256)];",
        "    });",
        "  const from = pixels, tall = weights(from.rows, height), wide = weights(from.columns, width);",
        "  pixels = fill(height, width, (y, x, c) => {",
        "    const [above, below, down] = tall[y], [before, after, right] = wide[x];",
        "    const row = (y) => (256 - right) * get(from, y, before, c) + right * get(from, y, after, c);",
        "    return ((256 - down) * row(above) + down * row(below) + 32768) >> 16;",
        "  });",
    ]


def _web(spec: PreprocessSpec, file: str) -> list[str]:
    fit = "" if spec.fit == "stretch" else f" (fit = {spec.fit})"
    return [
        "Put the file on your page's web server, and use the package `@mediapipe/tasks-vision`. `image` is an",
        "`ImageData` object, for example one returned by a canvas's `getImageData` method. `prepare` resizes the image",
        f"as in training{fit}, so that MediaPipe does not have to. edgerec's tests run `prepare`, but not MediaPipe.",
        "",
        *_grayscale(spec),
        "```js",
        *_javascript(spec),
        "",
        "const files = await FilesetResolver.forVisionTasks(WASM_FOLDER);",
        "const classifier = await ImageClassifier.createFromOptions(files, {",
        f'  baseOptions: {{ modelAssetPath: "{file}" }}, maxResults: 1,',
        "});",
        "const best = classifier.classify(prepare(image)).classifications[0].categories[0];",
        "console.log(best.categoryName, best.score);",
        "```",
        "",
    ]
