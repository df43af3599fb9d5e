"""README sections for apps that use only the .tflite file of a bundle."""

from __future__ import annotations

from edgerec.contract.manifest import Manifest
from edgerec.contract.preprocess import PreprocessSpec
from edgerec.contract.target import Target

# Pillow calls that fit an image to ``size``. Pillow's Hamming filter is the closest to edgerec's "linear".
_PILLOW_FIT = {
    "crop": "ImageOps.fit(image, size, {filter})",
    "stretch": "image.resize(size, {filter})",
    "pad": "ImageOps.pad(image, size, {filter})",
}
_PILLOW_FILTERS = {"linear": "Image.HAMMING", "nearest": "Image.NEAREST"}
_FIT_FIRST = {
    "crop": "crop the center of each image to the aspect ratio of the input",
    "pad": "pad each image with black to the aspect ratio of the input",
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
    if spec.fit == "stretch":
        return []
    lines = [
        f"The model was trained with fit = {spec.fit} at {spec.width}×{spec.height} pixels, but MediaPipe stretches",
        f"images: {_FIT_FIRST[spec.fit]} before you classify it.",
    ]
    return [*lines, ""]


def _coral(manifest: Manifest, file: str) -> list[str]:
    spec = manifest.preprocess
    shape = "[..., np.newaxis]" if spec.channels == 1 else ""
    fitted = _PILLOW_FIT[spec.fit].format(filter=_PILLOW_FILTERS[spec.interpolation])
    lines = [
        "```python",
        "import numpy as np",
        "from PIL import Image" if spec.fit == "stretch" else "from PIL import Image, ImageOps",
        "from pycoral.adapters import classify, common",
        "from pycoral.utils.edgetpu import make_interpreter",
        "",
        f'interpreter = make_interpreter("{file}")',
        "interpreter.allocate_tensors()",
        f'image = Image.open("image.jpg").convert("{"L" if spec.channels == 1 else "RGB"}")',
        "size = common.input_size(interpreter)",
        f"image = {fitted}",
        f"common.set_input(interpreter, np.asarray(image){shape})",
        "interpreter.invoke()",
        "best = classify.get_classes(interpreter, top_k=1)[0]",
        'print(open("labels.txt").read().splitlines()[best.id], best.score)',
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
