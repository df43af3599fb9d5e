"""Implement the ``edgerec serve`` command."""

from __future__ import annotations

from pathlib import Path

import typer

from edgerec.cli.options import (
    MODEL_PANEL,
    REDUCED_DECODING_HELP,
    AllowedSignersOption,
    DelegateOption,
    DelegateOptionsOption,
    FallbackOption,
    RevokedKeysOption,
    ThresholdOption,
    parse_delegate_options,
)
from edgerec.cli.output import show_log
from edgerec.errors import ConfigError

# Error messages name the command-line option instead of the configuration field.
_OPTIONS = {"ServeConfig.address": "--listen", "ServeConfig.max_body_bytes": "--max-body"}

_LIMITS = "Limits"


def serve(
    bundle: Path = typer.Argument(..., metavar="BUNDLE", help="Bundle folder or .zip file."),
    listen: str = typer.Option(
        "127.0.0.1:8080",
        metavar="HOST:PORT",
        help="Address to listen on. 0.0.0.0:8080 accepts requests from other machines, which must send a token. Port 0 "
        "selects a free port.",
    ),
    token: str | None = typer.Option(
        None,
        metavar="TOKEN",
        help="Token that clients must send: at least 8 characters, env:NAME or @FILE. [default: EDGEREC_SERVE_TOKEN. "
        "If it is not set, a loopback address needs no token; otherwise a token is generated and printed]",
    ),
    workers: int = typer.Option(
        0,
        min=0,
        max=256,
        metavar="N",
        help="Number of images that are classified in parallel. [default: one per CPU; 1 with a delegate]",
        rich_help_panel=MODEL_PANEL,
        show_default=False,
    ),
    threads: int = typer.Option(
        1, min=1, max=256, metavar="N", help="Number of interpreter threads per worker.", rich_help_panel=MODEL_PANEL
    ),
    threshold: float | None = ThresholdOption,
    reduced_decoding: bool = typer.Option(
        False, "--reduced-decoding", help=REDUCED_DECODING_HELP, rich_help_panel=MODEL_PANEL
    ),
    delegate: str | None = DelegateOption,
    delegate_option: list[str] = DelegateOptionsOption,
    fallback: bool = FallbackOption,
    max_body: str = typer.Option(
        "32MB", metavar="SIZE", help="Maximum size of a request's body.", rich_help_panel=_LIMITS
    ),
    max_queue: int = typer.Option(
        256,
        min=1,
        metavar="N",
        help="Maximum number of images that wait or are being classified. Further requests get the status 503.",
        rich_help_panel=_LIMITS,
    ),
    allowed_signers: Path | None = AllowedSignersOption,
    revoked_keys: Path | None = RevokedKeysOption,
) -> None:
    """Classify images that programs send over HTTP.

    POST /classify takes an image and returns its prediction as JSON. The server runs until Ctrl-C is pressed.
    """
    from edgerec.serving.config import ServeConfig
    from edgerec.serving.run import serve as run_server
    from edgerec.utils.byte_sizes import parse_size

    try:
        max_body_bytes = parse_size(max_body)
    except ValueError:
        raise typer.BadParameter(f"--max-body must be a size such as 32MB or 1GiB, got {max_body!r}") from None
    try:
        config = ServeConfig(
            bundle=bundle,
            address=listen,
            token=token,
            workers=workers,
            threads=threads,
            max_body_bytes=max_body_bytes,
            max_queued=max_queue,
            delegate=delegate,
            delegate_options=parse_delegate_options(delegate_option),
            reduced_decoding=reduced_decoding,
            fallback=fallback,
            threshold=threshold,
            allowed_signers=allowed_signers,
            revoked_keys=revoked_keys,
        )
    except ConfigError as error:
        raise typer.BadParameter(f"{_OPTIONS.get(error.field, error.field)} {error.problem}") from None
    show_log()
    run_server(config)
