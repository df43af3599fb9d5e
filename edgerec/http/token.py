"""Read or generate the access token of a server."""

from __future__ import annotations

import os
import secrets
import sys

from edgerec.errors import EdgerecError
from edgerec.http.server_address import is_loopback
from edgerec.utils.secret_references import read_secret, secret_variable

# Minimum length of an access token in characters.
MIN_TOKEN_LENGTH = 8


def configured_token(value: str | None, variable: str, host: str, server: str) -> str | None:
    """Return the token from the settings or the environment, or None if no token is configured.

    Args:
        value: the token, or ``env:NAME`` or ``@FILE`` to read it from. None or an empty string uses the environment
            variable.
        variable: name of the environment variable.
        host: address on which the server listens.
        server: name of the server for error messages.

    Raises:
        EdgerecError: a token is required but not configured, and a generated token would be written to the system's
            journal.
        AddressError: the token cannot be read.
    """
    token = read_secret(value) if value else secret_variable(variable) or None
    if token is None and not is_loopback(host) and _logs_to_journal():
        raise EdgerecError(
            f"{server} on {host} needs a token, and a generated token would be written to the system's journal: "
            f"set {variable}, or {variable}_FILE to a file with mode 0600"
        )
    return token


def required_token(token: str | None, host: str, server: str) -> str | None:
    """Return the token that clients must send, or None if no token is required.

    A random token is generated if ``token`` is None and ``host`` is not a loopback address.

    Raises:
        EdgerecError: the token is too short.
    """
    if token is not None and len(token) < MIN_TOKEN_LENGTH:
        raise EdgerecError(
            f"{server}'s token must have at least {MIN_TOKEN_LENGTH} characters, got {len(token)}: use a longer one"
        )
    return token if token is not None or is_loopback(host) else secrets.token_urlsafe(24)


def _logs_to_journal() -> bool:
    """Return True if stderr is connected to the systemd journal."""
    try:
        stderr = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"
