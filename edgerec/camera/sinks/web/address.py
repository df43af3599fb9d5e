"""Where the page is: reading an address, taking its port, and the link to it."""

from __future__ import annotations

import errno
import ipaddress
import socket

from edgerec.errors import EdgerecError

HOST, PORT = "127.0.0.1", 8000


def parse_address(text: str) -> tuple[str, int]:
    """``HOST:PORT``, ``HOST``, ``PORT`` or ``[IPV6]:PORT`` as typed; what is missing is 127.0.0.1 and 8000.

    Raises:
        ValueError: it is none of these.
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
        raise ValueError(f"{text!r} is no address: expected HOST:PORT, as 127.0.0.1:8000 or 0.0.0.0:8000")
    return host or HOST, int(port) if port else PORT


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; 0 takes any free port. Raises :class:`EdgerecError` with what to do."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError):
        raise EdgerecError(
            f"the web page cannot listen on {host!r}, which is no address: 127.0.0.1 or 0.0.0.0 will do"
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
    """The page's address as others type it; for all addresses of the machine, the one towards the network."""
    if host in ("0.0.0.0", "::"):
        host = _outward()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def _advice(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        another = port + 1 if port < 65535 else 8000
        return f"another program uses it; choose another, as {another}, or 0 for any that is free"
    if error.errno == errno.EACCES:
        return "ports below 1024 need special rights; choose a higher one, as 8000"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine does not have that address; 127.0.0.1 or 0.0.0.0 will do"
    return f"{error.strerror}"


def _outward() -> str:
    # Connecting a datagram socket sends nothing: the system only says which of its addresses it would use.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()
