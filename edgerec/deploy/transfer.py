"""Send missing files to the content store of a device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from edgerec.deploy.session import Session
from edgerec.errors import DeployError
from edgerec.utils.atomic import sha256

CHUNK_BYTES = 1 << 18


class Contents:
    """A collection of files to send, which are identified by their SHA-256 digests."""

    def __init__(self) -> None:
        """Create an empty collection."""
        self._contents: dict[str, bytes | Path] = {}
        self.sizes: dict[str, int] = {}

    def add(self, content: bytes | Path) -> str:
        """Add bytes or a file to the collection, and return the SHA-256 digest."""
        data = content.read_bytes() if isinstance(content, Path) else content
        digest = sha256(data)
        self._contents[digest], self.sizes[digest] = content, len(data)
        return digest

    def read(self, digest: str) -> bytes:
        """Return the content of the file with the SHA-256 digest ``digest``."""
        content = self._contents[digest]
        return content.read_bytes() if isinstance(content, Path) else content


def send_contents(
    session: Session, contents: Contents, missing: Mapping[str, int], progress: Callable[[int], object]
) -> None:
    """Send missing files to a device, and wait until the device has verified and stored all of them.

    Args:
        session: session that holds the device's lock.
        contents: collection that contains the missing files.
        missing: dictionary that maps the digest of each missing file to the number of bytes already received.
        progress: function that is called with the number of bytes received by the device.

    Raises:
        ConnectionLostError: the connection was lost. The next deployment resumes the transfer.
        DeployError: the device cannot store a file, e.g. because its disk is full, or a file on the host is missing.
    """
    errors: list[BaseException] = []
    stopped = threading.Event()

    def write_all() -> None:
        try:
            for digest, offset in missing.items():
                data = contents.read(digest)
                session.send("receive", digest=digest, size=len(data), offset=offset)
                for start in range(offset, len(data), CHUNK_BYTES):
                    if stopped.is_set():
                        return
                    session.write(data[start : start + CHUNK_BYTES])
        except OSError as error:
            errors.append(error)

    writer = threading.Thread(target=write_all, daemon=True)
    writer.start()
    try:
        stored = stored_bytes = 0
        while stored < len(missing):
            reply = session.reply()
            if "received" in reply:
                progress(stored_bytes + reply["received"])
                continue
            stored += 1
            stored_bytes += contents.sizes[reply["stored"]] - missing[reply["stored"]]
            progress(stored_bytes)
    finally:
        stopped.set()
    writer.join(60)
    if errors:
        raise DeployError(
            f"cannot read a file to send ({errors[0]}): check that the bundle and the downloaded wheels exist",
            step="send",
        )
