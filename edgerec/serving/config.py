"""Settings for a classification server, validated on creation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgerec.errors import AddressError, ConfigError
from edgerec.utils.host_port import parse_host_port

DEFAULT_ADDRESS = "127.0.0.1:8080"


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """All settings for :func:`~edgerec.serving.run.serve`.

    Attributes:
        bundle: the bundle's folder or .zip.
        address: ``HOST:PORT``, ``HOST`` or ``PORT`` to listen on. Port 0 selects a free port.
        token: token that clients must send, at least 8 characters, or ``env:NAME`` or ``@FILE`` to read it from. None
            uses the environment variable ``EDGEREC_SERVE_TOKEN``. If there is no token and other machines can reach the
            address, a random token is generated and printed.
        workers: number of images that are classified in parallel, each with its own interpreter. 0 uses one worker per
            CPU, divided by ``threads``; with a delegate, one worker.
        threads: number of interpreter threads per worker.
        max_body_bytes: maximum size of a request's body. Bodies of requests that are being received or processed may
            take four times as much memory in total.
        max_queued: maximum number of images that wait or are being classified. Further requests are rejected with the
            status 503.
        reduced_decoding: whether to decode JPEG images at 1/2, 1/4 or 1/8 of their size if the model's input is that
            much smaller. This is faster, but some labels change.
        delegate, delegate_options, fallback, threshold: see :class:`~edgerec.runtime.classifier.Classifier`.
        allowed_signers, revoked_keys: files of SSH keys that check the bundle's signature; see :meth:`Bundle.open`.
    """

    bundle: str | Path
    address: str = DEFAULT_ADDRESS
    token: str | None = field(default=None, repr=False)
    workers: int = 0
    threads: int = 1
    max_body_bytes: int = 32_000_000
    max_queued: int = 256
    reduced_decoding: bool = False
    delegate: str | None = None
    delegate_options: Mapping[str, str] = field(default_factory=dict)
    fallback: bool = False
    threshold: float | None = None
    allowed_signers: str | Path | None = None
    revoked_keys: str | Path | None = None

    def __post_init__(self) -> None:
        _ = self.host_port
        for name, least in {"workers": 0, "threads": 1, "max_body_bytes": 1, "max_queued": 1}.items():
            if getattr(self, name) < least:
                raise ConfigError(f"ServeConfig.{name}", f"is {getattr(self, name)}; expected at least {least}")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ConfigError("ServeConfig.threshold", f"is {self.threshold}; expected 0 to 1")

    @property
    def host_port(self) -> tuple[str, int]:
        """Host and port parsed from :attr:`address`."""
        host, port = DEFAULT_ADDRESS.split(":")
        try:
            return parse_host_port(self.address, host, int(port))
        except AddressError:
            raise ConfigError(
                "ServeConfig.address",
                f"is {self.address!r}; expected HOST:PORT, such as {DEFAULT_ADDRESS}, with a port from 0 to 65535",
            ) from None
