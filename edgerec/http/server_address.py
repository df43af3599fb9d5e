"""Create a server's listening socket, and determine the server's URL."""

from __future__ import annotations

import errno
import ipaddress
import socket

from edgerec.errors import EdgerecError


def is_loopback(host: str) -> bool:
    """Return True if ``host`` is a loopback address, i.e. reachable only from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def allowed_names(host: str) -> frozenset[str] | None:
    """Return the host names allowed in the Host header, or None if ``host`` is not a loopback address."""
    return frozenset({"localhost", "127.0.0.1", "::1", host.lower()}) if is_loopback(host) else None


def listen(host: str, port: int, server: str) -> socket.socket:
    """Return a listening TCP socket.

    Args:
        host: host name or IP address to listen on.
        port: port to listen on. 0 selects a free port.
        server: name of the server for error messages.

    Raises:
        EdgerecError: the address or the port cannot be used.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        raise EdgerecError(
            f"{server} cannot listen on {host!r}, because it has no IP address: use 127.0.0.1 or 0.0.0.0"
        ) from None
    # Prefer IPv4, because clients expect localhost to mean 127.0.0.1.
    family, kind, _, _, address = min(addresses, key=lambda found: found[0] != socket.AF_INET)
    listener = socket.socket(family, kind)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise EdgerecError(f"{server} cannot listen on port {port} of {host}: {_advice(error, port)}") from None
    return listener


def server_url(host: str, port: int) -> str:
    """Return a server's URL, which contains this machine's network address if the server listens on all addresses."""
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
        return "the address does not belong to this machine; use 127.0.0.1 or 0.0.0.0"
    return f"{error.strerror}"


def _network_address() -> str:
    # Connecting a UDP socket sends no data, but selects the local address that other machines can reach.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()
