"""Parse URLs, and redact secrets in URLs before they are shown or logged."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from urllib.parse import unquote, urljoin, urlsplit

from edgerec.errors import AddressError
from edgerec.utils.text import is_printable

DEFAULT_PORTS = {"http": 80, "https": 443, "rtsp": 554, "rtsps": 322, "mqtt": 1883, "mqtts": 8883}
MASK = "***"
# Only these query parameters are displayed, because all others may contain secrets.
_PUBLIC_PARAMETERS = re.compile(
    "action|ch|chan|channel|chn|cmd|cam|camera|codec|fps|framerate|height|idx|index|mode|profile|quality|rate|res|"
    "resolution|rotation|size|stream|streamtype|subtype|track|type|unicast|videocodec|width",
    re.IGNORECASE,
)
_PUBLIC_VALUE = re.compile(r"[\w.,-]{0,20}", re.ASCII)
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
# The @ of this source is followed by the frame rate.
_SYNTHETIC = re.compile(r"synthetic:\d{1,5}x\d{1,5}@\d{1,5}(\.\d{1,3})?", re.ASCII)
_HOST = re.compile(r"\[[0-9A-Fa-f:.%]+\]|[^:\[\]@\s]+")
_SECRET_WORD = re.compile(r"(?:pass|pwd|secret|token|auth|key|user|login)[^=]*=", re.IGNORECASE)
_ESCAPES = "in a user name or password, write / as %2F, ? as %3F, # as %23, @ as %40 and : as %3A"


@dataclass(frozen=True)
class Url:
    """A parsed URL. ``str(url)`` and ``repr(url)`` contain no secrets.

    Attributes:
        scheme: scheme in lowercase, e.g. ``https``.
        host: host name or IP address, without brackets. International names are encoded with IDNA.
        port: port number. If the address has none, the scheme's default port.
        path: percent-encoded path, may be empty.
        query: percent-encoded query without the question mark.
        user, password: decoded user name and password, or empty strings.
        raw: the complete address, including secrets.
    """

    scheme: str
    host: str
    port: int
    path: str = field(repr=False)
    query: str = field(default="", repr=False)
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    raw: str = field(default="", repr=False, compare=False)

    def __str__(self) -> str:
        return redacted(self.raw)

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port of the server."""
        return self.scheme, self.host, self.port

    @property
    def identity(self) -> str:
        """URL without user name and password. URLs of the same resource have the same identity."""
        return f"{self.scheme}://{self.netloc}{self.path}?{self.query}"

    @property
    def netloc(self) -> str:
        """Host and port, with brackets around an IPv6 address."""
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def target(self) -> str:
        """Path and query of the URL, as in an HTTP request line."""
        return (self.path or "/") + (f"?{self.query}" if self.query else "")

    @classmethod
    def parse(cls, address: str, *schemes: str) -> Url:
        """Parse ``SCHEME://[USER[:PASSWORD]@]HOST[:PORT][/PATH][?QUERY]``, where the scheme is one of ``schemes``.

        Raises:
            AddressError: the address is not valid, or is ambiguous because of an ``@``, ``/``, ``?`` or ``#`` in a
                password. The message contains no part of the address.
        """
        match = _URL.fullmatch(address)
        if match is None or match[1].lower() not in schemes:
            raise AddressError(f"the address must begin with {' or '.join(f'{name}://' for name in schemes)}")
        if " " in address or not is_printable(address):
            raise AddressError("the address contains a space or a control character: write a space as %20")
        if _ambiguous(match[2]):
            raise AddressError(
                f"the address is ambiguous, because an @ after the host may be part of a password: {_ESCAPES}, and in "
                "a path, write @ as %40"
            )
        try:
            parts = urlsplit(address)
            host = (parts.hostname or "").encode("idna").decode()
            port = DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
        except (ValueError, UnicodeError):
            host, port = "", 0
        if not host or not port:
            raise AddressError(f"the address has an invalid host or port: {_ESCAPES}")
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        return cls(parts.scheme, host, port, parts.path, parts.query, user, password, address)

    def with_credentials(self, account: Url) -> Url:
        """Return a copy of this URL with the user name and password of another URL."""
        user = _authority(account.raw.partition("://")[2]).rpartition("@")[0]
        raw = f"{self.scheme}://{user}@{self.netloc}{self.path}" + (f"?{self.query}" if self.query else "")
        return replace(self, user=account.user, password=account.password, raw=raw)

    def redirected(self, location: str, *schemes: str) -> Url:
        """Resolve a redirect's ``location`` against this URL. Raise :class:`AddressError` if the result is invalid."""
        try:
            address = urljoin(self.raw, location)
        except ValueError:
            address = ""
        return Url.parse(address, *schemes)


def redacted(address: str) -> str:
    """Remove secrets from a URL before it is displayed or logged. The URL need not be valid.

    User, password and fragment are removed, and so are all parameters that are not known to be harmless. If it is not
    clear where the password ends, only the scheme is kept.
    """
    match = _URL.fullmatch(address)
    if _SYNTHETIC.fullmatch(address):
        return address
    if match is None:
        return _redacted_text(address)
    scheme, rest = match[1], match[2]
    authority = _authority(rest)
    host, colon, port = _split_port(authority.rpartition("@")[2])
    if _ambiguous(rest) or not _HOST.fullmatch(host) or not ((port.isascii() and port.isdigit()) or not colon):
        return f"{scheme}://{MASK}"
    path, question, query = rest[len(authority) :].partition("#")[0].partition("?")
    path = "/".join(re.sub(r"([=;]).*", rf"\1{MASK}", segment, flags=re.DOTALL) for segment in path.split("/"))
    return f"{scheme}://{host}{colon}{port}{path}{question}{_redacted_query(query)}"


def has_secret(address: str) -> bool:
    """Return whether a URL contains a password or query parameters that may be secret."""
    match = _URL.fullmatch(address)
    return match is not None and (MASK in redacted(address) or ":" in _authority(match[2]).rpartition("@")[0])


def _authority(rest: str) -> str:
    """Return a URL's authority (user, password, host and port) from the part after ``://``."""
    return re.split(r"[/?#\\]", rest, maxsplit=1)[0]


def _ambiguous(rest: str) -> bool:
    """Return whether the end of the password is ambiguous, because the URL contains an ``@`` after the host."""
    return "@" in rest[len(_authority(rest)) :]


def _split_port(netloc: str) -> tuple[str, str, str]:
    end = netloc.find("]") + 1
    host, colon, port = netloc[end:].partition(":")
    return netloc[:end] + host, colon, port


def _redacted_query(query: str) -> str:
    shown, masked = [], False
    for parameter in re.split("[&;]", query) if query else ():
        name, _, value = parameter.partition("=")
        if _PUBLIC_PARAMETERS.fullmatch(name) and _PUBLIC_VALUE.fullmatch(value):
            shown.append(parameter)
        else:
            masked = True
    return "&".join([*shown, *([MASK] if masked else [])])


def _redacted_text(text: str) -> str:
    """Redact a string that is not a valid URL, e.g. because its scheme is missing."""
    before, at, _ = text.rpartition("@")
    if at and ":" in before:
        return MASK
    path, question, query = text.partition("?")
    if question and "=" in query:
        return f"{_redacted_text(path)}?{MASK}"
    match = _SECRET_WORD.search(text)
    return f"{text[: match.start()]}{MASK}" if match else text
