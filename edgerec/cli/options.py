"""Options, help texts and parsers that several commands share."""

from __future__ import annotations

from collections.abc import Sequence

import typer

MOVED_DATA_HELP = "New location of the run's images, if they were moved. [default: the location in the run's recipe]"
DELEGATE_HELP = (
    "Delegate: a shared library such as libedgetpu.so.1, gpu, or none for the CPU. [default: the bundle's delegate]"
)
DELEGATE_OPTION_HELP = "Option for the delegate, such as device=usb:1 for the second USB device. May be repeated."
THRESHOLD_HELP = "Minimum score. Images with a lower score get the label 'unknown'. [default: the bundle's threshold]"
REDUCED_DECODING_HELP = (
    "Decode JPEG images at 1/2, 1/4 or 1/8 of their size if the model's input is that much smaller. Decoding and "
    "resizing become 1.3 to 3.2 times as fast, but the scores change slightly. With four models, 90.4 to 99.9 % of the "
    "labels of real photos stayed the same, and 99.5 to 100 % of those with a score of at least 0.5."
)
ACTIVATION_HELP = (
    "Activation that converts the model's outputs to scores: none, softmax or sigmoid. [default: none if the outputs "
    "are probabilities, otherwise softmax]"
)
FIT_HELP = (
    "How to fit images whose aspect ratio differs from the input's: crop (center crop), stretch or pad (with black). "
    "[default: the method used by the tool that made the model, or stretch if the tool is not recognized]"
)

MODEL_PANEL = "Model"
ThresholdOption = typer.Option(
    None, "--threshold", min=0, max=1, metavar="SCORE", help=THRESHOLD_HELP, rich_help_panel=MODEL_PANEL
)
DelegateOption = typer.Option(None, "--delegate", metavar="NAME", help=DELEGATE_HELP, rich_help_panel=MODEL_PANEL)
DelegateOptionsOption = typer.Option(
    [], "--delegate-option", metavar="KEY=VALUE", help=DELEGATE_OPTION_HELP, rich_help_panel=MODEL_PANEL
)
FallbackOption = typer.Option(
    False, "--fallback", help="Fall back to the CPU if the delegate cannot be loaded.", rich_help_panel=MODEL_PANEL
)

SIGNATURE_PANEL = "Signature"
SERIAL_HELP = (
    "Serial number, which must increase with each release. Devices can refuse releases with a lower number. [default: "
    "the current Unix time in seconds]"
)
AllowedSignersOption = typer.Option(
    None,
    "--allowed-signers",
    metavar="FILE",
    help="Public SSH keys of allowed signers, in the format of ssh-keygen. A bundle that none of them has signed is "
    "refused. [default: do not check the signature]",
    rich_help_panel=SIGNATURE_PANEL,
)
RevokedKeysOption = typer.Option(
    None,
    "--revoked-keys",
    metavar="FILE",
    help="Revoked SSH keys. A bundle that was signed with one of them is refused.",
    rich_help_panel=SIGNATURE_PANEL,
)


def parse_key_values(texts: Sequence[str], example: str) -> dict[str, str]:
    """Parse the values of a repeated ``KEY=VALUE`` option.

    The error message for an invalid value contains ``example``.
    """
    pairs = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not key or not equals:
            raise typer.BadParameter(f"expected KEY=VALUE, such as {example}, got {text!r}")
        pairs[key] = value
    return pairs


def parse_delegate_options(texts: Sequence[str]) -> dict[str, str]:
    """Parse the values of ``--delegate-option``, which are passed to the delegate as strings."""
    return parse_key_values(texts, "device=usb:1")
