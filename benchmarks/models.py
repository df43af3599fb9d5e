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

What `edgerec train --arch NAME` takes. `edgerec models` shows the same list, `edgerec models NAME --input-size 64
--width 0.5` what one costs at another size, and which target runs it. The figures are for 96×96 RGB pictures, 10
classes and width 1, with random weights, quantized after training; `python benchmarks/models.py --write docs/models.md`
measures them. docs/architectures.md shows how each goes through quantization.

"""
FOOTER = """
- **methods**: `qat`, `ptq` and what comes before them; a recurrent network is for `ptq` alone.
- **not on**: targets that cannot run it at this size; `edgerec models NAME` says why. A smaller one may fit.
- VGG16 without batch normalisation hardly learns from random weights in a short schedule.
- EfficientNet is without its random dropping of whole blocks; `model.dropout` is the only one.

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
estimate. `--input-size 64` builds and converts the recommended networks at another input size. [results.md](results.md)
compares `auto` with the former defaults.

## ImageNet's weights

`--weights imagenet` takes those of Keras' application, which Keras downloads once, for the widths that the list gives.
They go into layers of the same names. What they expect of pixels becomes a fixed 1×1 depthwise convolution at the head
of the model (`imagenet_range`), so a device has nothing to normalise. VGG16 and ResNet50 learned on pictures in the
order B G R: the kernel of their first convolution is turned, and the model takes R G B as all others. In int8 that head
has one scale for three channels: for MobileNets every pixel value keeps a number of its own; for the others a step is
about 1.1 pixel values, and a tenth of neighbouring values fall together.

## A network of your own

```python
# my_net.py
def build(keras, inputs, section):
    \"\"\"Said by edgerec models my_net.py:build.\"\"\"
    x = keras.layers.Conv2D(round(32 * section.width), 3, activation="relu")(inputs)
    x = keras.layers.MaxPooling2D()(x)
    return keras.layers.GlobalAveragePooling2D()(x)
```

`edgerec train --arch my_net.py:build` (or `package.module:build`, from the working directory or wherever Python looks)
runs this file and puts classes and softmax behind what the function gives, a tensor `(batch, n)`.

- `keras` is tf_keras, and the only Keras to use; `inputs` is float32 `(batch, height, width, channels)`, normalised as
  the recipe says; `section` is the recipe's `[model]`: `width`, `dropout`, `weights`.
- Only layers that Keras has, and arithmetic (`x * 2 - 1`): no layers or functions of your own, no `Lambda`, no model
  inside the model. The run then opens anywhere, without your file, and nothing out of it is ever run.
- The file is run by `edgerec train` and `edgerec models` alone, because you name it there or in your recipe. So look at
  a recipe that somebody gave you, as you would at a program.
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
