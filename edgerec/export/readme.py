"""Generate the README.md of a bundle, which contains the commands for the target and a model card."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from edgerec.contract.manifest import Manifest
from edgerec.contract.preprocess import PreprocessSpec
from edgerec.contract.target import Target
from edgerec.errors import TargetError
from edgerec.export import app_snippets as apps
from edgerec.export import tflm as sources
from edgerec.export.systemd import CSI_PACKAGES, service_files

_APT_INSTALL = "sudo apt-get install --no-install-recommends"


def requirements(target: Target) -> str:
    """Return the content of the bundle's requirements.txt."""
    return "".join(f"{_filled(line)}\n" for line in target.requirements)


def readme(manifest: Manifest, target: Target, figures: dict[str, Any] | None, content: bytes = b"") -> str:
    """Return the bundle's README.md: the commands, then the model card.

    Args:
        manifest: the bundle's manifest.
        target: the device.
        figures: results of the variant on the test images, see
            :class:`edgerec.train.metrics.EvaluationReport`, or None for an imported model or an ensemble.
        content: the first model, from which C++ sources are generated.
    """
    if figures is not None:
        card = _card(manifest, figures)
    else:
        card = _ensemble_card(manifest) if manifest.members else _imported_card(manifest)
    return "\n".join([*_beginning(manifest, target, content), *card, *_novelty(manifest), ""])


def _beginning(manifest: Manifest, target: Target, content: bytes) -> list[str]:
    """Return the title, and the instructions for using the bundle on the target."""
    if target.kind == "bundle":
        return _commands(manifest, target)
    title = [f"# {manifest.name}", "", f"An image classifier for: {target.title}.", ""]
    return [*title, *(sources.usage(content, manifest) if target.kind == "c" else apps.usage(manifest, target))]


def _commands(manifest: Manifest, target: Target) -> list[str]:
    lines = [
        f"# {manifest.name}",
        "",
        f"An image classifier for: {target.title} ({', '.join(target.arch)}).",
        "Copy this folder to the device, and open a terminal in the folder.",
        *_system_packages(target),
        "Then type:",
        "",
        "```sh",
        *(_filled(line) for line in target.commands),
        "```",
        "",
    ]
    if target.service:
        lines += _service("Dockerfile" in service_files(target))
    return [
        *lines,
        "`edgerec verify .` checks that the model gives the same scores on this device as on the machine that exported",
        "the bundle. `edgerec predict . image.jpg` classifies an image.",
        "",
        "The options `--web`, `--mqtt` and `--metrics` of `edgerec camera` need more packages:",
        '`pip install --find-links wheels "edgerec[web,mqtt,prometheus]"`.',
        "The folder `wheels` contains the version of edgerec that exported this bundle. pip downloads all other",
        "packages.",
        "",
    ]


def _system_packages(target: Target) -> list[str]:
    lines = []
    if target.system_packages:
        lines += [f"First install the system packages: `{_APT_INSTALL} {' '.join(target.system_packages)}`."]
    if "picamera2" in target.sources:
        lines += [
            "",
            f"For a camera module (CSI) of a Raspberry Pi, also type `{_APT_INSTALL} {' '.join(CSI_PACKAGES)}`.",
            "`--source auto` uses the camera module if there is one, otherwise the first USB camera.",
            "",
        ]
    if "edgetpu" in target.delegate:
        lines += [
            "The Edge TPU needs libedgetpu, which Debian does not have. Download the package `libedgetpu1-std` for the",
            "CPU from https://github.com/feranick/libedgetpu/releases, and type",
            "`sudo apt install ./libedgetpu1-std_*.deb`. Google's own package (16.0) was built with TensorFlow 2.5 and",
            "crashes with newer runtimes, according to public reports. No combination was tested on hardware by the",
            "authors of edgerec. `edgerec doctor` finds known problems. `edgerec verify .` runs the model on the Edge",
            "TPU, and compares scores and labels.",
            "",
        ]
    return lines


def _service(container: bool) -> list[str]:
    """Return the section about install.sh and its service; ``container`` is True if the bundle has a Dockerfile."""
    lines = [
        "Instead of these commands, a script can install everything into `/opt/edgerec`. It asks before it installs",
        "system packages, and refuses a wheel of this bundle that was changed:",
        "",
        "```sh",
        "sudo sh install.sh              # --dry-run shows the steps, --undo removes everything",
        "sudo sh install.sh --service    # also starts the camera at boot",
        "```",
        "",
        "To install without a network, add the wheels of the other packages to the folder `wheels`.",
        "`sh install.sh --prefix DIR` needs no root if the system packages are installed.",
        "",
        "## Where the predictions are",
        "",
        "The service shows them on a web page. `install.sh` prints its address, which includes the page's token.",
        "The page can be opened only on the device. From another computer, type",
        "`ssh -L 8000:127.0.0.1:8000 USER@DEVICE` there and open that address.",
        "`/etc/default/edgerec` (readable by root) has the token and the options of `edgerec camera`. Change the",
        "options there, then type `sudo systemctl restart edgerec`:",
        "",
        "- `--web 0.0.0.0:8000` serves the page to the network; it asks for the token.",
        "- `--csv /var/lib/edgerec/predictions.csv --csv-append` writes one row per frame.",
        "- `--save changes --save-dir /var/lib/edgerec/images` saves an image whenever the prediction changes.",
        "- `--mqtt` and `--webhook` send each new decision to another machine (`edgerec camera --help`).",
        "",
        "`journalctl -u edgerec` shows errors and the states of the camera, but no predictions.",
        "",
    ]
    if container:
        lines += ["The first lines of `Dockerfile` describe how to run the bundle in a container.", ""]
    return lines


def _card(manifest: Manifest, figures: dict[str, Any]) -> list[str]:
    recipe = manifest.provenance["recipe"]
    model, data_role, reference = f"{recipe['model']['arch']}, width {recipe['model']['width']:g}", "Trained on", ""
    if adopted := manifest.provenance.get("adopted"):
        model = f"{adopted['file']}, trained elsewhere (SHA-256 {adopted['sha256'][:16]}…)"
        data_role = "Compressed with"
        reference = (
            "" if adopted["truth"] == "labels" else f" without labels: top-1 is agreement with {adopted['truth']}"
        )
    lines = [
        "## Model card",
        "",
        f"- Model: {model}, variant {manifest.variant}",
        _input(manifest),
        f"- {data_role}: {recipe['data']['source']} (digest {manifest.provenance['data_digest'][:16]})",
        f"- Measured on: {figures['images']} test images{reference}",
        "",
        "| form | top-1 | agrees with float Keras | bytes | gzip bytes |",
        "|---|---|---|---|---|",
    ]
    for row in manifest.metrics["forms"]:
        lines.append(
            f"| {row['name']} | {row['top1']:.2%} | {row['agreement']:.2%} "
            f"| {row['size_bytes'] or '–'} | {row['gzip_bytes'] or '–'} |"
        )
    lines += ["", "| label | precision | recall | F1 | images |", "|---|---|---|---|---|"]
    for label, row in figures["per_class"].items():
        lines.append(f"| {label} | {row['precision']:.3f} | {row['recall']:.3f} | {row['f1']:.3f} | {row['support']} |")
    limits = (
        "The model knows only these labels: an image of anything else gets one of them too, "
        "unless the bundle was exported with a threshold or an autoencoder (--novelty). "
        "The figures hold for images like those on which they were measured."
    )
    return [*lines, "", limits]


def _imported_card(manifest: Manifest) -> list[str]:
    source, normalise = manifest.provenance["imported"], manifest.normalise
    layer, layout = source.get("normalise"), source.get("layout")
    after = {
        "none": "the model's own",
        "softmax": "softmax of its output",
        "sigmoid": "sigmoid of each output",
        "binary": "its output for the second label",
        "binary_sigmoid": "sigmoid of its output for the second label",
    }
    return [
        "## Model card",
        "",
        f"- Model: {source['file']}, made with another tool and imported (SHA-256 {source['sha256'][:16]}…)",
        _input(manifest),
        f"- Input tensor: {manifest.input.dtype}, (pixel − {normalise.mean:g}) / {normalise.std:g}",
        *([f"- First layer: normalizes the pixels by {layer}; added by the import"] if layer else []),
        *([f"- First operator: converts images, because the file's input has {layout}"] if layout else []),
        f"- Scores: {after[manifest.activation]}",
        f"- Labels: {len(manifest.labels)}, in labels.txt",
        "",
        "The accuracy is not known. To measure it, type `edgerec evaluate . --data FOLDER` with one folder of images",
        "per label. The model knows only these labels: an image of anything else gets one of them too.",
    ]


def _ensemble_card(manifest: Manifest) -> list[str]:
    how = {"mean": "the mean of their scores", "vote": "the fraction of the models that predict the label"}[
        manifest.combine
    ]
    lines = [
        "## Model card",
        "",
        f"- {len(manifest.models)} models are combined: each score is {how}.",
        f"- Labels: {len(manifest.labels)}, in labels.txt",
        "",
        "| bundle | variant | top-1 of this model alone |",
        "|---|---|---|",
    ]
    for member in manifest.metrics["members"]:
        forms = member["metrics"].get("forms")
        alone = f"{forms[-1]['top1']:.2%}" if forms else "–"
        lines.append(f"| {member['name']} | {member['variant']} | {alone} |")
    return [
        *lines,
        "",
        "To measure their combined accuracy, type `edgerec evaluate . --data FOLDER` with one folder of images per",
        "label.",
    ]


def _novelty(manifest: Manifest) -> list[str]:
    """Return the section about the autoencoder, or an empty list if the bundle has none."""
    spec = manifest.novelty
    if spec is None:
        return []
    lines = [
        "",
        "## Novelty",
        "",
        f"An autoencoder ({spec.model}, {_input_format(spec.preprocess)}) reconstructs each image. If its mean squared",
        f"error is above the threshold {spec.threshold:.6g}, the image is unlike the training images, and the label is",
        "`unknown`, whatever the scores. `novelty` in a result is the error divided by the threshold.",
        "`edgerec camera . --decision novelty=1.5` raises the threshold by half, and `novelty=0` switches it off.",
    ]
    about = manifest.metrics.get("novelty")
    if not about:
        return lines
    validation = f"{about['known']:.2%} of {about['validation_images']} validation images"
    test = f"{about['known_held_out']:.2%} of {about['images']} test images"
    return [
        *lines,
        "",
        f"{validation} and {test} are below this threshold. The fraction of other images that",
        "get the label `unknown` depends on their content: try some with `edgerec predict . IMAGES --json`.",
    ]


def _input_format(spec: PreprocessSpec) -> str:
    return f"{spec.width}×{spec.height} {'RGB' if spec.channels == 3 else 'grayscale'}"


def _input(manifest: Manifest) -> str:
    spec = manifest.preprocess
    return (
        f"- Input: {_input_format(spec)}, from images of any size (fit {spec.fit}, interpolation {spec.interpolation})"
    )


def _filled(line: str) -> str:
    """Return the line with ``{edgerec}`` and ``{litert}`` replaced by the versions that are installed here."""
    return line.replace("{edgerec}", _version("edgerec")).replace("{litert}", _version("ai-edge-litert"))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise TargetError(
            f"the target needs the version of {package}, which is not installed: run pip install {package}"
        ) from None
