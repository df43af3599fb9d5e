"""Parse the address that a server listens on."""

from __future__ import annotations

import re

from edgerec.errors import AddressError

# A host in brackets is an IPv6 address. A number alone is a port.
_ADDRESS = re.compile(
    r"(?:\[(?P<ipv6>[0-9a-fA-F:.]+(?:%[\w.-]+)?)\]|(?P<host>(?!\d+$|\d+:)[\w.-]+))?:?(?P<port>\d{1,5})?", re.ASCII
)


def parse_host_port(text: str, default_host: str, default_port: int) -> tuple[str, int]:
    """Parse ``HOST:PORT``, ``HOST``, ``PORT``, ``[IPV6]:PORT`` or an empty string, and return the host and the port.

    Args:
        text: the address.
        default_host: the host if ``text`` has none.
        default_port: the port if ``text`` has none.

    Raises:
        AddressError: ``text`` has another form, or the port is greater than 65535.
    """
    match = _ADDRESS.fullmatch(text.strip())
    if match is None or int(match["port"] or 0) > 65535:
        raise AddressError(
            f"{text!r} is not an address to listen on: use HOST:PORT, such as {default_host}:{default_port}"
        )
    return match["ipv6"] or match["host"] or default_host, int(match["port"]) if match["port"] else default_port
