"""Send missing files to the content store of a device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from edgerec.deploy.replies import PlanReply, invalid_reply
from edgerec.deploy.session import Session
from edgerec.deploy.ssh import ConnectionLostError
from edgerec.errors import DeployError
from edgerec.utils.atomic import sha256

CHUNK_BYTES = 1 << 18
# Maximum time in seconds to wait for the end of the transfer after the device has stored all files.
WRITER_S = 10.0


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


def missing_files(label: str, reply: PlanReply, contents: Contents) -> dict[str, int]:
    """Read the list of missing files from a device's reply to the request ``plan``.

    Args:
        label: display name of the device.
        reply: the reply.
        contents: all files of the deployment.

    Returns:
        A dictionary that maps the digest of each missing file to the number of bytes already received.

    Raises:
        DeployError: the list contains an unknown file, or an impossible number of bytes.
    """
    missing = reply["missing"]
    if not all(
        digest in contents.sizes and 0 <= offset <= contents.sizes[digest] for digest, offset in missing.items()
    ):
        raise _unexpected_reply(label, "the list of missing files", "plan")
    return missing


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
            # Without this call, the other thread would wait for the device until the time limit.
            session.kill()

    writer = threading.Thread(target=write_all, daemon=True)
    writer.start()
    try:
        stored_bytes = received_bytes = 0
        waiting = {digest: contents.sizes[digest] - offset for digest, offset in missing.items()}
        while waiting:
            reply = session.reply()
            if "received" in reply:
                number = reply["received"]
                # The number must increase, because otherwise a faulty device could send replies forever.
                if type(number) is not int or not received_bytes < number <= max(waiting.values()):
                    raise _unexpected_reply(session.label, "the number of received bytes")
                received_bytes = number
                progress(stored_bytes + received_bytes)
                continue
            digest = str(reply.get("stored"))
            if digest not in waiting:
                raise _unexpected_reply(session.label, "the digest of a stored file")
            received_bytes = 0
            stored_bytes += waiting.pop(digest)
            progress(stored_bytes)
    except ConnectionLostError:
        if not errors:
            raise
    finally:
        stopped.set()
    writer.join(WRITER_S)
    if writer.is_alive():
        session.kill()
        raise invalid_reply(session.label, "a file was reported as stored before the device received it", "send")
    if errors:
        raise DeployError(
            f"cannot read a file to send ({errors[0]}): check that the bundle and the downloaded wheels exist",
            step="send",
        )


def _unexpected_reply(label: str, content: str, step: str = "send") -> DeployError:
    return invalid_reply(label, f"{content} does not match the deployment", step)
