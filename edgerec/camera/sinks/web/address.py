"""Parse the address of the web page, listen on it, and build the page's URL."""

from __future__ import annotations

import errno
import ipaddress
import socket

from edgerec.errors import EdgerecError

HOST, PORT = "127.0.0.1", 8000


def parse_address(text: str) -> tuple[str, int]:
    """Parse ``HOST:PORT``, ``HOST``, ``PORT`` or ``[IPV6]:PORT``, and return host and port.

    The default host is 127.0.0.1, and the default port is 8000.

    Raises:
        ValueError: ``text`` has another form, or the port is greater than 65535.
    """
    text = text.strip()
    if text.isdigit():
        host, port = "", text
    elif text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    else:
        host, _, port = text.partition(":")
    if (port and not port.isdigit()) or int(port or 0) > 65535 or "/" in host:
        raise ValueError(f"{text!r} is not an address: use HOST:PORT, e.g. 127.0.0.1:8000 or 0.0.0.0:8000")
    return host or HOST, int(port) if port else PORT


def is_loopback(host: str) -> bool:
    """Return whether ``host`` can be reached only from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Port 0 selects a free port.

    Raises:
        EdgerecError: it is not possible to listen on this address or port. The message says what to do.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError):
        raise EdgerecError(
            f"the web page cannot listen on {host!r}, because this is not an address: use 127.0.0.1 or 0.0.0.0"
        ) from None
    listener = socket.socket(family, kind)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise EdgerecError(f"the web page cannot listen on port {port} of {host}: {_advice(error, port)}") from None
    return listener


def link(host: str, port: int) -> str:
    """Return the URL of the page. If the server listens on all addresses, use this machine's address in the network."""
    if host in ("0.0.0.0", "::"):
        host = _network_address()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def _advice(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        other_port = port + 1 if port < 65535 else 8000
        return f"another program uses the port; choose another port, e.g. {other_port}, or 0 for any free port"
    if error.errno == errno.EACCES:
        return "ports below 1024 require special permissions; choose a higher port, e.g. 8000"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine does not have this address; use 127.0.0.1 or 0.0.0.0"
    return f"{error.strerror}"


def _network_address() -> str:
    # Connecting a datagram socket sends no data, but selects the address that would be used for the connection.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()
