"""The texts in a bundle: model card and commands."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from edgerec.contract.manifest import Manifest
from edgerec.contract.preprocess import PreprocessSpec
from edgerec.contract.target import Target
from edgerec.errors import TargetError
from edgerec.export import apps, sources
from edgerec.export.service import service_files


def requirements(target: Target) -> str:
    """The bundle's requirements.txt."""
    return "".join(f"{_filled(line)}\n" for line in target.requirements)


def readme(manifest: Manifest, target: Target, figures: dict[str, Any] | None, content: bytes = b"") -> str:
    """The bundle's README.md: what to type, then the model card.

    Args:
        manifest: of the bundle.
        target: where it goes.
        figures: of the variant on the held-out pictures, as :class:`edgerec.train.evaluate.Figures` gives them; None
            for an imported model or an ensemble, of which nobody measured any.
        content: the first model, of which sources are made.
    """
    if figures is not None:
        card = _card(manifest, figures)
    else:
        card = _ensemble_card(manifest) if manifest.members else _imported_card(manifest)
    return "\n".join([*_beginning(manifest, target, content), *card, *_novelty(manifest), ""])


def _beginning(manifest: Manifest, target: Target, content: bytes) -> list[str]:
    """What it is, and how the target takes it."""
    if target.kind == "bundle":
        return _commands(manifest, target)
    title = [f"# {manifest.name}", "", f"An image classifier for: {target.title}.", ""]
    return [*title, *(sources.usage(content, manifest) if target.kind == "c" else apps.usage(manifest, target))]


def _commands(manifest: Manifest, target: Target) -> list[str]:
    lines = [
        f"# {manifest.name}",
        "",
        f"An image classifier for: {target.title} ({', '.join(target.arch)}).",
        "Copy this folder there, open a terminal in it, and type:",
        "",
        "```sh",
        *(_filled(line) for line in target.commands),
        "```",
        "",
    ]
    if target.system_packages:
        lines += [f"Needed first, once: `sudo apt install {' '.join(target.system_packages)}`.", ""]
    if target.service:
        lines += _service("Dockerfile" in service_files(target))
    return [
        *lines,
        "`edgerec verify .` checks that the model gives the same scores there as where it was exported;",
        "`edgerec predict . image.jpg` classifies an image.",
        "`edgerec camera` with `--web`, `--mqtt` or `--metrics` needs",
        '`pip install --find-links wheels "edgerec[web,mqtt,prometheus]"`.',
        "The folder `wheels` contains the edgerec that exported this bundle; pip downloads all other packages.",
        "",
    ]


def _service(container: bool) -> list[str]:
    """Return the lines about install.sh and its service; ``container``: the bundle has a Dockerfile."""
    lines = [
        "Or let the script install everything into `/opt/edgerec`. It lists system packages before it installs them:",
        "",
        "```sh",
        "sudo sh install.sh              # --dry-run shows the steps, --undo removes everything again",
        "sudo sh install.sh --service    # also starts the camera with the machine",
        "```",
        "",
        "To install without a network, add the wheels of the other packages to the folder `wheels`.",
        "`sh install.sh --prefix DIR` needs no root if the system packages are installed.",
        "",
        "## Where the predictions are",
        "",
        "The service shows them on a web page. `install.sh` prints its address, which includes the page's token.",
        "The page is served only to the device itself. From another computer, type",
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
    model, done, against = f"{recipe['model']['arch']}, width {recipe['model']['width']:g}", "Trained on", ""
    if adopted := manifest.provenance.get("adopted"):
        model = f"{adopted['file']}, trained elsewhere (SHA-256 {adopted['sha256'][:16]}…)"
        done = "Compressed with"
        against = "" if adopted["truth"] == "labels" else f" without labels: top-1 is agreement with {adopted['truth']}"
    lines = [
        "## Model card",
        "",
        f"- Model: {model}, variant {manifest.variant}",
        _input(manifest),
        f"- {done}: {recipe['data']['source']} (digest {manifest.provenance['data_digest'][:16]})",
        f"- Measured on: {figures['images']} held-out pictures{against}",
        "",
        "| form | top-1 | agrees with float Keras | bytes | gzip bytes |",
        "|---|---|---|---|---|",
    ]
    for row in manifest.metrics["forms"]:
        lines.append(
            f"| {row['name']} | {row['top1']:.2%} | {row['agreement']:.2%} "
            f"| {row['size_bytes'] or '–'} | {row['gzip_bytes'] or '–'} |"
        )
    lines += ["", "| label | precision | recall | F1 | pictures |", "|---|---|---|---|---|"]
    for label, row in figures["per_class"].items():
        lines.append(f"| {label} | {row['precision']:.3f} | {row['recall']:.3f} | {row['f1']:.3f} | {row['support']} |")
    limits = (
        "It knows these labels and nothing else: any other picture gets one of them too, "
        "unless the bundle was exported with a threshold or an autoencoder (--novelty). "
        "Its figures hold for pictures like those that it was measured on."
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
        f"- Model: {source['file']}, made elsewhere and imported as it is (SHA-256 {source['sha256'][:16]}…)",
        _input(manifest),
        f"- Input tensor: {manifest.input.dtype}, (pixel − {normalise.mean:g}) / {normalise.std:g}",
        *([f"- First layer: normalizes the pixels by {layer}; added by the import"] if layer else []),
        *([f"- First operator: converts images, because the file's input has {layout}"] if layout else []),
        f"- Scores: {after[manifest.activation]}",
        f"- Labels: {len(manifest.labels)}, in labels.txt",
        "",
        "How good it is, is not known here: measure it with `edgerec evaluate . --data FOLDER`, a folder of pictures",
        "for each label. It knows these labels and nothing else: any other picture gets one of them too.",
    ]


def _ensemble_card(manifest: Manifest) -> list[str]:
    how = {"mean": "the mean of their scores", "vote": "the part of them that answers with a label"}[manifest.combine]
    lines = [
        "## Model card",
        "",
        f"- {len(manifest.models)} models answer together; a score is {how}.",
        f"- Labels: {len(manifest.labels)}, in labels.txt",
        "",
        "| of the bundle | variant | its top-1 alone |",
        "|---|---|---|",
    ]
    for member in manifest.metrics["members"]:
        forms = member["metrics"].get("forms")
        alone = f"{forms[-1]['top1']:.2%}" if forms else "–"
        lines.append(f"| {member['name']} | {member['variant']} | {alone} |")
    return [
        *lines,
        "",
        "How good they are together: `edgerec evaluate . --data FOLDER`, a folder of pictures for each label.",
    ]


def _novelty(manifest: Manifest) -> list[str]:
    """What of the pictures is answered unknown by the autoencoder, where there is one."""
    spec = manifest.novelty
    if spec is None:
        return []
    lines = [
        "",
        "## Novelty",
        "",
        f"An autoencoder ({spec.model}, {_seen(spec.preprocess)}) makes each picture again. Where its mean squared",
        f"error is above {spec.threshold:.6g}, the picture is unlike those that it was trained on, and the answer is",
        "`unknown`, whatever the scores. A result's `novelty` is the error as a multiple of that;",
        "`edgerec camera . --decision novelty=1.5` lets more through, `novelty=0` everything.",
    ]
    about = manifest.metrics.get("novelty")
    if not about:
        return lines
    left = f"{about['known']:.4g} of {about['validation_images']} validation pictures"
    held_out = f"{about['known_held_out']:.2%} of {about['images']} held-out ones"
    return [
        *lines,
        "",
        f"The threshold leaves {left} known, and {held_out}. How many pictures of other things it finds",
        "depends on what they are: try some with `edgerec predict . PICTURES --json`.",
    ]


def _seen(spec: PreprocessSpec) -> str:
    return f"{spec.width}×{spec.height} {'RGB' if spec.channels == 3 else 'grey'}"


def _input(manifest: Manifest) -> str:
    spec = manifest.preprocess
    return f"- Input: {_seen(spec)}, {spec.fit} and {spec.interpolation} from any picture"


def _filled(line: str) -> str:
    """A target's line with the versions that this bundle was made with."""
    return line.replace("{edgerec}", _version("edgerec")).replace("{litert}", _version("ai-edge-litert"))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise TargetError(f"the target asks for the version of {package}, which is not installed here") from None
