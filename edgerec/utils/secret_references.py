"""Read secrets from environment variables or files, because other users can see command-line arguments."""

from __future__ import annotations

import logging
import os
import stat
import sys
from collections.abc import Mapping, Sequence

from edgerec.errors import AddressError
from edgerec.utils.url_redaction import has_secret

log = logging.getLogger(__name__)

MAX_BYTES = 4096


def read_secret(value: str, environment: Mapping[str, str] | None = None) -> str:
    """Read a secret from the environment variable or file that ``value`` refers to.

    Args:
        value: ``env:NAME`` for an environment variable, or ``@FILE`` for a file with one line, which other users of the
            system must not be able to read (mode 0600 or 0640). Any other value is returned unchanged.
        environment: environment variables. None uses those of this process.

    Raises:
        AddressError: the variable or the file does not exist or is empty, or other users can read the file.
    """
    if name := referenced_variable(value):
        secret = (os.environ if environment is None else environment).get(name, "").strip()
        if not secret:
            raise AddressError(
                f"the environment variable {name} is not set: set it, or use @FILE to read the secret from a file"
            )
    elif value.startswith("@"):
        secret = _file_content(os.path.expanduser(value[1:]))
    else:
        return value
    if len(secret.splitlines()) != 1:
        raise AddressError(f"{value} has several lines: put the secret on a single line")
    return secret


def secret_variable(name: str, environment: Mapping[str, str] | None = None) -> str:
    """Return a secret from the environment variable ``name``, or from the file that ``name_FILE`` names.

    Return an empty string if neither variable is set.

    Raises:
        AddressError: the file cannot be read, or other users can read it.
    """
    values = os.environ if environment is None else environment
    path = values.get(f"{name}_FILE", "")
    return values.get(name, "") or (_file_content(path) if path else "")


def is_reference(value: str) -> bool:
    """Return whether ``value`` is ``env:NAME`` or ``@FILE`` instead of the secret itself."""
    return value.startswith("@") or bool(referenced_variable(value))


def warn_about_secrets(addresses: Sequence[str], secrets: Sequence[str] = ()) -> None:
    """Log a warning if this process's arguments contain a secret, because other users can read them.

    Args:
        addresses: addresses that may contain passwords.
        secrets: other secrets. Empty strings and references, ``env:NAME`` or ``@FILE``, are ignored.
    """
    literal = [secret for secret in secrets if secret and not is_reference(secret)]
    for value in [*filter(has_secret, addresses), *literal]:
        if any(value in argument for argument in sys.argv[1:]):
            log.warning(
                "a password or token on the command line can be read by all users of this machine in the process "
                "list: put it into an environment variable or a file with mode 0600, and use env:NAME or @FILE "
                "instead of an address"
            )
            return


def referenced_variable(value: str) -> str:
    """Return the environment variable's name if ``value`` has the form ``env:NAME``, otherwise an empty string."""
    kind, _, name = value.partition(":")
    return name if kind == "env" and name.isidentifier() else ""


def _file_content(path: str) -> str:
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file name"
        raise AddressError(f"the secret in {path} cannot be read ({reason}): check the path") from None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise AddressError(f"the secret in {path} cannot be read: it is not a file")
        if os.name == "posix" and status.st_mode & 0o037:
            raise AddressError(
                f"the secret in {path} is rejected, because other users can access the file (mode "
                f"{stat.S_IMODE(status.st_mode):04o}): run chmod 600 {path}"
            )
        content = file.read(MAX_BYTES + 1)
    try:
        secret = content.decode().strip()
    except UnicodeDecodeError:
        secret = ""
    if not secret or len(content) > MAX_BYTES:
        raise AddressError(f"the secret in {path} cannot be used: the file must contain exactly one line of text")
    return secret
