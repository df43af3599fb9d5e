"""Parse a network address of the form HOST:PORT."""

from __future__ import annotations

import re

from edgerec.errors import AddressError

# An IPv6 address is in brackets, and a number without a host is a port.
_ADDRESS = re.compile(
    r"(?:\[(?P<ipv6>[0-9a-fA-F:.]+(?:%[\w.-]+)?)\]|(?P<host>(?!\d+$|\d+:)[\w.-]+))?:?(?P<port>\d{1,5})?", re.ASCII
)


def parse_host_port(text: str, default_host: str | None = None, default_port: int | None = None) -> tuple[str, int]:
    """Parse ``HOST:PORT``, ``HOST``, ``PORT``, ``[IPV6]:PORT`` or an empty string, and return the host and the port.

    Args:
        text: the address.
        default_host: the host if ``text`` has none. If this is None, ``text`` must contain a host.
        default_port: the port if ``text`` has none. If this is None, ``text`` must contain a port.

    Raises:
        AddressError: ``text`` has another form, lacks a required part, or the port is greater than 65535.
    """
    match = _ADDRESS.fullmatch(text.strip())
    host = (match and (match["ipv6"] or match["host"])) or default_host
    port = int(match["port"]) if match and match["port"] else default_port
    if match is None or host is None or port is None or port > 65535:
        example = f"{default_host or '10.0.0.1'}:{default_port or 12345}"
        raise AddressError(f"{text!r} is not a valid network address: use HOST:PORT, such as {example}")
    return host, port
