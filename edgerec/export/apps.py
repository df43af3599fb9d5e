"""What a bundle's README says where an app takes the .tflite file alone."""

from __future__ import annotations

from edgerec.contract.manifest import Manifest
from edgerec.contract.target import Target


def usage(manifest: Manifest, target: Target) -> list[str]:
    """The part of the README that says how the app takes the file."""
    file = manifest.delegate_model or manifest.model
    lines = [
        f"The app takes `{file}`, with the labels and what pixels become inside of it (TFLite metadata).",
        "",
    ]
    if target.delegate:
        lines += _coral(manifest, file)
    elif target.arch:
        lines += _android(file)
    else:
        lines += _web(file)
    return [*lines, "On a desk, `edgerec verify .` checks the bundle and `edgerec predict . picture.jpg` answers.", ""]


def _coral(manifest: Manifest, file: str) -> list[str]:
    grey = manifest.preprocess.channels == 1
    shape = "[..., np.newaxis]" if grey else ""
    lines = [
        "```python",
        "import numpy as np",
        "from PIL import Image",
        "from pycoral.adapters import classify, common",
        "from pycoral.utils.edgetpu import make_interpreter",
        "",
        f'interpreter = make_interpreter("{file}")',
        "interpreter.allocate_tensors()",
        f'picture = Image.open("picture.jpg").convert("{"L" if grey else "RGB"}")',
        f"common.set_input(interpreter, np.asarray(picture.resize(common.input_size(interpreter))){shape})",
        "interpreter.invoke()",
        "best = classify.get_classes(interpreter, top_k=1)[0]",
        'print(open("labels.txt").read().splitlines()[best.id], best.score)',
        "```",
        "",
    ]
    if not manifest.delegate_model:
        lines += [
            "It was not compiled: run `edgetpu_compiler -s model.tflite` (x86-64 Debian or Ubuntu) and take",
            "`model_edgetpu.tflite`.",
            "",
        ]
    return lines


def _android(file: str) -> list[str]:
    return [
        "Put it into `app/src/main/assets` and add `com.google.mediapipe:tasks-vision` to the dependencies:",
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
        "Serve it beside the page, with the package `@mediapipe/tasks-vision`:",
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
