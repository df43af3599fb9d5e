"""Follow RTSP redirects before FFmpeg does, because FFmpeg would send the password to the redirect target."""

from __future__ import annotations

import email
import email.message
import re
import ssl
import time

from edgerec.camera.sources.http import CONNECT_S, MAX_REDIRECTS, RESPONSE_S, authorization, connect
from edgerec.errors import AddressError, SourceError
from edgerec.utils.url_redaction import Url

_MAX_HEAD_BYTES = 65536


def without_redirects(url: Url) -> Url:
    """Return the stream's final address, without the password if a redirect leads to another server.

    Raises:
        SourceError: the server cannot be reached, does not respond in time, or redirects to an address that cannot be
            used. All other errors are reported by FFmpeg when it opens the stream.
    """
    current_url, credentials = url, ""
    if not (url.user or url.password):
        return url
    for _ in range(2 * MAX_REDIRECTS):  # Each address may require a second request with credentials.
        try:
            status, headers = _describe(current_url, credentials)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or ("timed out" if isinstance(error, OSError) else "not RTSP")
            raise SourceError(
                f"{url} cannot be opened ({reason}): check the address and that the stream is running"
            ) from None
        location = headers.get("Location", "")
        if 300 <= status < 400 and location:
            try:
                current_url, credentials = current_url.redirected(location, "rtsp", "rtsps"), ""
            except AddressError as error:
                raise SourceError(
                    f"{url} redirects to an address that is not supported ({error}): use the final address"
                ) from None
            if current_url.origin != url.origin:
                return current_url
            current_url = current_url.with_credentials(url)
        elif status == 401 and not credentials:
            credentials = authorization(
                url, current_url, headers.get_all("WWW-Authenticate") or [], "DESCRIBE", _request_uri(current_url)
            )
            if not credentials:
                break
        else:
            break
    else:  # FFmpeg would follow further redirects and send the password to their targets.
        raise SourceError(f"{url} redirects too often: use the final address of the stream")
    return current_url


def _request_uri(url: Url) -> str:
    return f"{url.scheme}://{url.netloc}{url.target if url.path or url.query else ''}"


def _describe(url: Url, credentials: str) -> tuple[int, email.message.Message]:
    """Send a DESCRIBE request and return the response's status and headers."""
    deadline_s = time.monotonic() + CONNECT_S + RESPONSE_S
    lines = [f"DESCRIBE {_request_uri(url)} RTSP/1.0", "CSeq: 1", "Accept: application/sdp", "User-Agent: edgerec"]
    if credentials:
        lines.append(f"Authorization: {credentials}")
    with connect(url.host, url.port, time.monotonic() + CONNECT_S) as plain:
        connection = plain
        if url.scheme == "rtsps":
            context = ssl.create_default_context()
            # Like FFmpeg, do not verify the certificate.
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = context.wrap_socket(plain, server_hostname=url.host)
        with connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            response = b""
            while b"\r\n\r\n" not in response and len(response) < _MAX_HEAD_BYTES:
                connection.settimeout(max(0.001, deadline_s - time.monotonic()))
                if not (received := connection.recv(4096)):
                    break
                response += received
    status_line, _, fields = response.partition(b"\r\n")
    status = re.match(rb"RTSP/\d\.\d (\d{3})\b", status_line)
    if status is None:
        raise ValueError("not RTSP")
    return int(status[1]), email.message_from_string(fields.decode("latin-1"))
