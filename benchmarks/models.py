"""Measure the figures that ``edgerec models`` shows: size and cost of every architecture as full int8.

    python benchmarks/models.py [--only NAME …] [--recommended] [--write docs/models.md]

Builds the architectures with random weights, converts them, and writes edgerec/models/figures.json. Existing figures
are measured again only with ``--only``, because all architectures together take half an hour. ``--recommended`` instead
writes edgerec/models/recommended.json, with the networks that ``--arch auto`` chooses at their width and input size.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from edgerec.catalog.architectures import FIGURES, ArchitectureReport, architectures, measured
from edgerec.catalog.recommendations import FIGURES as RECOMMENDED
from edgerec.catalog.recommendations import default_input_px, key
from edgerec.contract.target import Target, target_names
from edgerec.models import ARCHITECTURES
from edgerec.models.automatic import rules_for
from edgerec.train.backend import keras

KEPT = ("parameters", "macs", "int8_bytes", "methods", "targets", "pi4_ms")
HEADER = """# Architectures

These are the values of `edgerec train --arch NAME`. `edgerec models` prints the same list. `edgerec models NAME
--input-size 64 --width 0.5` prints the cost of an architecture at another size, and the targets that can run it. The
figures are for 96×96 RGB images, 10 classes, width 1, random weights and post-training quantization. They are measured
by `python benchmarks/models.py --write docs/models.md`. docs/architectures.md shows the quantization of each
architecture.

"""
FOOTER = """
- **methods**: supported compression methods. Recurrent networks support only `ptq`.
- **not on**: targets that cannot run the architecture at this size. `edgerec models NAME` prints the reason. A smaller
  width or input size may work.
- VGG16 has no batch normalization, so with random weights it learns little in a short training.
- EfficientNet is implemented without stochastic depth. Its only dropout is `model.dropout`.

## Choosing an architecture

Without `--arch`, or with `--arch auto`, `edgerec train` chooses the architecture, its width, the input size and the
initial weights. The log states the choice and the reason, and the run's `recipe.toml` records the chosen values. The
first matching row of this table applies (`edgerec/models/automatic.py`):

| images | choice |
|---|---|
| up to 40 px, grayscale | `simple_cnn` |
| up to 40 px, at least 5,000 images | `resnet8`; with 50 classes or more `resnet14` |
| up to 40 px, fewer images | `simple_cnn` |
| larger, color, `--target` with more memory than a microcontroller | `mobilenet_v2` 1, 160 px, ImageNet weights |
| larger, color | `mobilenet_v2` 0.35, 96 px, ImageNet weights |
| larger, at least 10,000 images or 50 classes | `mobilenet_v1` 0.5, 96 px, random weights |
| larger | `mobilenet_v2` 0.35, 96 px, random weights |

- Keras downloads the ImageNet weights once. If the download fails, a warning states the reason, and the last two rows
  apply.
- Options that you set are kept. `--input-size` determines whether images count as small. `--width` replaces the width
  in the table. `--weights none` rules out ImageNet weights. `--weights RUN` uses the architecture of the run, and
  `--weights FILE` uses the network in the file (`--arch backbone`).
- If the number of training epochs is not set, it is chosen so that the training has about 6,000 steps, with at least 15
  and at most 60 epochs. This rule applies to every architecture.
- Augmentation is not chosen automatically. In particular, `augment.flip` is off, because mirrored digits, letters and
  signs may have another meaning. Set `augment.flip` if mirroring does not change the label of your images.

`edgerec models --target rpi` lists the recommended networks for a target, and the size and cost of all networks on this
target. The time per image is an estimate for a Raspberry Pi 4, computed from the operators. Other targets have no such
estimate. `--input-size 64` builds and converts the recommended networks at another input size.
[results.md](results.md) compares `auto` with the former defaults.

## ImageNet weights

`--weights imagenet` uses the weights of the corresponding Keras application, which Keras downloads once. They are
available for the widths in the table. The normalization that these weights require becomes a fixed 1×1 depthwise
convolution at the start of the model (`imagenet_range`), so a device does not need to normalize pixels. VGG16 and
ResNet50 were trained on BGR images. edgerec reverses the channels of their first convolution, so that these models also
take RGB images. In int8, the first layer has one scale for all three channels. For MobileNets, every pixel value still
has a different int8 value. For the other architectures, one step is about 1.1 pixel values, so a tenth of neighboring
pixel values have the same int8 value.

## A network of your own

```python
# my_net.py
def build(keras, inputs, section):
    \"\"\"Description that edgerec models my_net.py:build prints.\"\"\"
    x = keras.layers.Conv2D(round(32 * section.width), 3, activation="relu")(inputs)
    x = keras.layers.MaxPooling2D()(x)
    return keras.layers.GlobalAveragePooling2D()(x)
```

`edgerec train --arch my_net.py:build` executes this file, and adds a dense layer and a softmax to the tensor that the
function returns, which must have the shape `(batch, n)`. `--arch package.module:build` imports a module from the
current folder or from Python's path.

- `keras` is tf_keras; do not use another Keras. `inputs` is a float32 tensor `(batch, height, width, channels)`,
  normalized as in the recipe. `section` contains the keys of the recipe's section `[model]`, such as `width`, `dropout`
  and `weights`.
- Use only layers of Keras, and arithmetic such as `x * 2 - 1`. Custom layers and functions, `Lambda` layers and nested
  models are refused. Therefore the run can be opened without your file, and opening it executes no code.
- The file is executed only by `edgerec train`, `edgerec tune` and `edgerec models`, and only if it is named on the
  command line, in the recipe or in the search file. `--resume` alone never executes it. A recipe can therefore execute
  code: check a recipe from another person before you use it.
"""
COLUMNS = ("architecture", "", "parameters", "multiply-adds", "int8 bytes", "least px", "ImageNet", "methods", "not on")


def table(reports: Sequence[ArchitectureReport]) -> str:
    """Return the reports as Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|" + "---:|" * 4 + "---|---|---|"]
    for report in reports:
        cells = (
            f"`{report.name}`",
            report.about,
            f"{report.parameters:,}",
            f"{report.macs:,}",
            f"{report.int8_bytes:,}",
            str(report.least_size_px),
            ", ".join(f"{width:g}" for width in report.imagenet_widths) or "–",
            "all" if "prune+qat" in report.methods else ", ".join(report.methods),
            ", ".join(name for name, reason in report.targets.items() if reason) or "–",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_recommended() -> None:
    """Measure every network that ``--arch auto`` chooses for one of the targets."""
    rules = {rule for name in target_names() for rule in rules_for(Target.load(name))}
    networks = {(rule.arch, rule.width, default_input_px(rule)) for rule in rules}
    figures = {}
    for arch, width, size in sorted(networks):
        keras().backend.clear_session()
        figures[key(arch, width, size)] = measured(arch, input_size=size, width=width).to_dict()
        print(key(arch, width, size), flush=True)
    RECOMMENDED.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    """Measure the figures, and write them to files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(ARCHITECTURES),
        help="measure these architectures, even if they were measured before",
    )
    parser.add_argument("--recommended", action="store_true", help="measure the architectures that auto chooses")
    parser.add_argument("--write", type=Path, help="Markdown file to which the table is written")
    arguments = parser.parse_args()
    if arguments.recommended:
        write_recommended()
        return
    figures = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
    for name in arguments.only or [name for name in ARCHITECTURES if name not in figures]:
        keras().backend.clear_session()
        report = measured(name).to_dict()
        figures[name] = {key: report[key] for key in KEPT}
        print(name, {key: figures[name][key] for key in KEPT[:4]}, flush=True)
        ordered = {name: figures[name] for name in ARCHITECTURES if name in figures}
        FIGURES.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")
    text = table(architectures())
    print(text)
    if arguments.write:
        arguments.write.write_text(HEADER + text + FOOTER)


if __name__ == "__main__":
    main()
