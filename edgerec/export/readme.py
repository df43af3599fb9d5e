"""Generate a bundle's README.md, with instructions for the target and a model card."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from edgerec.contract.manifest import Manifest
from edgerec.contract.preprocess import PreprocessSpec
from edgerec.contract.target import Target
from edgerec.errors import TargetError
from edgerec.export import app_snippets, tflm
from edgerec.export.install_and_service_files import CSI_PACKAGES, install_files
from edgerec.train.run_files import EvaluationRecord

_APT_INSTALL = "sudo apt-get install --no-install-recommends"
# How to install a bundle from another computer.
_DEPLOYMENT = (
    "To install it on the device over SSH and start the camera at boot, run `edgerec deploy BUNDLE USER@DEVICE` on",
    "your computer. BUNDLE is this folder. To install it without this command, follow the steps below.",
    "",
)


def requirements(target: Target) -> str:
    """Return the contents of a bundle's requirements.txt."""
    return "".join(f"{_filled(line)}\n" for line in target.requirements)


def readme(manifest: Manifest, target: Target, figures: EvaluationRecord | None, content: bytes = b"") -> str:
    """Return the contents of a bundle's README.md.

    Args:
        manifest: the bundle's manifest.
        target: the bundle's target.
        figures: the variant's metrics on the test images (see :class:`edgerec.train.metrics.EvaluationReport`), or None
            for an imported model or an ensemble, whose accuracy was not measured.
        content: the .tflite file. Only required if C++ sources are generated from it.
    """
    if figures is not None:
        card = _card(manifest, figures)
    else:
        card = _ensemble_card(manifest) if manifest.members else _imported_card(manifest)
    return "\n".join([*_beginning(manifest, target, content), *card, *_novelty(manifest), ""])


def _beginning(manifest: Manifest, target: Target, content: bytes) -> list[str]:
    """Return the title and the instructions for using the bundle on the target."""
    if target.kind == "bundle":
        return _commands(manifest, target)
    title = [f"# {manifest.name}", "", f"An image classifier for: {target.title}.", ""]
    return [*title, *(tflm.usage(content, manifest) if target.kind == "c" else app_snippets.usage(manifest, target))]


def _commands(manifest: Manifest, target: Target) -> list[str]:
    lines = [
        f"# {manifest.name}",
        "",
        f"An image classifier for: {target.title} ({', '.join(target.arch)}).",
        # edgerec deploy cannot download wheels for 32-bit ARM.
        *(_DEPLOYMENT if target.service and "armv7l" not in target.arch else ()),
        "Copy this folder to the device, and open a terminal in it there.",
        *_system_packages(target),
        "Then run these commands:",
        "",
        "```sh",
        *(_filled(line) for line in target.commands),
        "```",
        "",
    ]
    if target.service:
        lines += _service("Dockerfile" in install_files(target))
    lines += [
        "`edgerec verify .` checks that the model computes the same scores on this device as on the machine that",
        "exported the bundle. `edgerec predict . image.jpg` classifies an image.",
        "",
    ]
    if not target.service:
        lines += [
            "The `--web`, `--mqtt` and `--metrics` options of `edgerec camera` require additional packages:",
            '`pip install --find-links wheels "edgerec[web,mqtt,prometheus]"`.',
        ]
    return [
        *lines,
        "The `wheels` folder contains the version of edgerec that exported this bundle. pip downloads all other",
        "packages.",
        "",
    ]


def _system_packages(target: Target) -> list[str]:
    lines = []
    if target.system_packages:
        lines += [f"First, install these system packages: `{_APT_INSTALL} {' '.join(target.system_packages)}`."]
    if "picamera2" in target.sources:
        lines += [
            "",
            f"For a Raspberry Pi camera module (CSI), also run `{_APT_INSTALL} {' '.join(CSI_PACKAGES)}`.",
            "`--source auto` uses the camera module if there is one, otherwise the first USB camera.",
            "",
        ]
    if "edgetpu" in target.delegate:
        lines += [
            "The Edge TPU requires libedgetpu, which is not available in Debian. Download `libedgetpu1-std` for the",
            "device's CPU from https://github.com/feranick/libedgetpu/releases, and install it with",
            "`sudo apt install ./libedgetpu1-std_*.deb`. Google's own package (16.0), which was built with TensorFlow",
            "2.5, reportedly crashes with newer runtimes. Neither package has been tested with edgerec on hardware.",
            "`edgerec doctor` finds known problems. `edgerec verify .` runs the model on the Edge TPU and compares its",
            "scores and labels with those of the machine that exported the bundle.",
            "",
        ]
    return lines


def _service(has_dockerfile: bool) -> list[str]:
    lines = [
        "Instead of running these commands, you can use `install.sh`, which installs the bundle in `/opt/edgerec`. The",
        "script asks before it installs system packages, and does not install wheels that were modified after export.",
        "",
        "```sh",
        "sudo sh install.sh              # add --dry-run to show the steps, or --undo to remove the installation",
        "sudo sh install.sh --service    # also start the camera at boot",
        "```",
        "",
        "To install without a network connection, add wheels for all required packages to the `wheels` folder.",
        "If the system packages are already installed, `sh install.sh --prefix DIR` does not need root permissions.",
        "",
        "## Where to find the predictions",
        "",
        "The service shows its predictions on a web page. `install.sh` prints the page's address, which includes an",
        "access token. The page can only be opened on the device itself. To open it on another computer, run",
        "`ssh -L 8000:127.0.0.1:8000 USER@DEVICE` on that computer, and open the same address there.",
        "",
        "The file `/etc/edgerec/camera.toml` is the configuration of the camera. After changing it, run",
        "`sudo systemctl restart edgerec`. Useful keys:",
        "",
        '- `address = "0.0.0.0:8000"` in `[web]` makes the page available on the network. Visitors are asked for the',
        "  token.",
        "- `[csv]` writes one row per frame to the file `path`, e.g. `/var/lib/edgerec/predictions.csv`. Add",
        '  `existing = "append"` to continue the file after a restart.',
        "- `[images]` saves images to `folder`, e.g. `/var/lib/edgerec/images`. The service can write only to",
        "  `/var/lib/edgerec` and `/var/cache/edgerec`.",
        "- `[mqtt]` and `[webhook]` send each new decision to the `url` of another machine.",
        "",
        "`edgerec camera . --write-config all.toml` writes a file with all keys and their explanations.",
        "",
        "The file `/etc/edgerec/secrets.env`, which only root can read, contains the token of the web page and other",
        "secrets as environment variables. In `camera.toml`, `env:NAME` refers to the variable `NAME`, for example",
        '`sources = ["env:CAMERA"]`.',
        "",
        "`journalctl -u edgerec` shows errors and camera state changes, but not the predictions.",
        "",
    ]
    if has_dockerfile:
        lines += ["To run the bundle in a container, see the instructions at the top of `Dockerfile`.", ""]
    lines += ["To install the bundle on many devices with Ansible, see `ansible/playbook.yml`.", ""]
    return lines


def _card(manifest: Manifest, figures: EvaluationRecord) -> list[str]:
    recipe = manifest.provenance["recipe"]
    model, data_role, reference = f"{recipe['model']['arch']}, width {recipe['model']['width']:g}", "Trained on", ""
    if adopted := manifest.provenance.get("adopted"):
        model = f"{adopted['file']}, trained with another tool (SHA-256 {adopted['sha256'][:16]}…)"
        data_role = "Compressed with"
        reference = (
            "" if adopted["truth"] == "labels" else f" (unlabeled, so top-1 is the agreement with {adopted['truth']})"
        )
    lines = [
        "## Model card",
        "",
        f"- Model: {model}, variant {manifest.variant}",
        _input(manifest),
        f"- {data_role}: {recipe['data']['source']} (digest {manifest.provenance['data_digest'][:16]})",
        f"- Measured on: {figures['images']} test images{reference}",
        "",
        "| model | top-1 accuracy | agreement with float Keras | bytes | gzip bytes |",
        "|---|---|---|---|---|",
    ]
    for row in manifest.metrics["forms"]:
        lines.append(
            f"| {row['name']} | {row['top1']:.2%} | {row['agreement']:.2%} "
            f"| {row['size_bytes'] or '–'} | {row['gzip_bytes'] or '–'} |"
        )
    lines += ["", "| label | precision | recall | F1 | images |", "|---|---|---|---|---|"]
    rows: Mapping[str, Mapping[str, Any]] = figures["per_class"]
    for label, row in rows.items():
        lines.append(f"| {label} | {row['precision']:.3f} | {row['recall']:.3f} | {row['f1']:.3f} | {row['support']} |")
    limits = (
        "The model knows only these labels. It predicts one of them for any other image, too, unless the bundle was "
        "exported with a threshold or an autoencoder (`--novelty`). The metrics are valid only for images similar to "
        "the test images."
    )
    return [*lines, "", limits]


def _imported_card(manifest: Manifest) -> list[str]:
    source, normalize = manifest.provenance["imported"], manifest.normalize
    layer, layout = source.get("normalize"), source.get("layout")
    scores = {
        "none": "the model's output",
        "softmax": "softmax of the output",
        "sigmoid": "sigmoid of each output value",
        "binary": "the output is the score of the second label",
        "binary_sigmoid": "the sigmoid of the output is the score of the second label",
    }
    return [
        "## Model card",
        "",
        f"- Model: {source['file']}, imported from another tool (SHA-256 {source['sha256'][:16]}…)",
        _input(manifest),
        f"- Input tensor: {manifest.input.dtype}, (pixel − {normalize.mean:g}) / {normalize.std:g}",
        *([f"- First layer: added during import to normalize the pixels ({layer})"] if layer else []),
        *(
            [f"- First operator: added during import, because the original model's input has {layout}"]
            if layout
            else []
        ),
        f"- Scores: {scores[manifest.activation]}",
        f"- Labels: {len(manifest.labels)}, in labels.txt",
        "",
        "The accuracy is unknown. To measure it, run `edgerec evaluate . --data FOLDER`, where FOLDER contains one",
        "subfolder of images per label. The model knows only these labels, so it predicts one of them for any other",
        "image, too.",
    ]


def _ensemble_card(manifest: Manifest) -> list[str]:
    how = {"mean": "the mean of their scores", "vote": "the fraction of models that predict the label"}[
        manifest.combine
    ]
    lines = [
        "## Model card",
        "",
        f"- {len(manifest.models)} models are combined: each score is {how}.",
        f"- Labels: {len(manifest.labels)}, in labels.txt",
        "",
        "| bundle | variant | top-1 accuracy (this model alone) |",
        "|---|---|---|",
    ]
    for member in manifest.metrics["members"]:
        forms = member["metrics"].get("forms")
        alone = f"{forms[-1]['top1']:.2%}" if forms else "–"
        lines.append(f"| {member['name']} | {member['variant']} | {alone} |")
    return [
        *lines,
        "",
        "To measure the ensemble's accuracy, run `edgerec evaluate . --data FOLDER`, where FOLDER contains one",
        "subfolder of images per label.",
    ]


def _novelty(manifest: Manifest) -> list[str]:
    """Return the README section about the autoencoder, or an empty list if the bundle does not contain one."""
    spec = manifest.novelty
    if spec is None:
        return []
    lines = [
        "",
        "## Unfamiliar images",
        "",
        f"An autoencoder ({spec.model}, {_input_format(spec.preprocess)}) reconstructs each image. If the mean squared",
        f"reconstruction error exceeds the threshold {spec.threshold:.6g}, the image is too different from the",
        "training images, and its label is `unknown` regardless of the scores. Each result's `novelty` field contains",
        "the error divided by the threshold. `edgerec camera . --decision novelty=1.5` multiplies the threshold by",
        "1.5, and `novelty=0` disables the autoencoder.",
    ]
    about = manifest.metrics.get("novelty")
    if not about:
        return lines
    validation = f"{about['known']:.2%} of {about['validation_images']} validation images"
    test = f"{about['known_held_out']:.2%} of {about['images']} test images"
    return [
        *lines,
        "",
        f"{validation} and {test} are below this threshold. To check how many other images get",
        "the label `unknown`, run `edgerec predict . IMAGES --json`.",
    ]


def _input_format(spec: PreprocessSpec) -> str:
    return f"{spec.width}×{spec.height} {'RGB' if spec.channels == 3 else 'grayscale'}"


def _input(manifest: Manifest) -> str:
    spec = manifest.preprocess
    return (
        f"- Input: {_input_format(spec)}; images of any size are resized (fit: {spec.fit}, interpolation: "
        f"{spec.interpolation})"
    )


def _filled(line: str) -> str:
    """Replace ``{edgerec}`` and ``{litert}`` in a line with the versions installed on this machine."""
    return line.replace("{edgerec}", _version("edgerec")).replace("{litert}", _version("ai-edge-litert"))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise TargetError(
            f"the target requires {package}, whose version cannot be determined because it is not installed on this "
            f"machine: run pip install {package}"
        ) from None
