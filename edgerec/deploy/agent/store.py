"""Receive the files of a deployment, and store them by their SHA-256 digests."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from edgerec.deploy.agent.errors import AgentError
from edgerec.deploy.agent.files import CHUNK_BYTES, content_digest, file_digest, fsync_folder, size_of, write_file
from edgerec.deploy.agent.installation import Installation
from edgerec.deploy.agent.locking import IDLE_S

MAX_FILE_BYTES = 2 << 30
MAX_AGENT_BYTES = 1 << 20
# Number of bytes between two progress reports of a transfer.
REPORT_BYTES = 2 << 20


def missing_files(installation: Installation, sizes: dict[str, int]) -> dict[str, int]:
    """Find the files that are missing in the content store.

    Args:
        installation: the installation.
        sizes: dictionary that maps the digests of files to their sizes in bytes.

    Returns:
        A dictionary that maps the digest of each missing file to the number of bytes already received.
    """
    missing = {}
    for digest, size in sizes.items():
        path = installation.store_path(digest)
        if size_of(path) != size or not os.path.exists(path):
            part_bytes = size_of(path + ".part")
            missing[digest] = part_bytes if part_bytes <= size else 0
    return missing


def receive_file(
    installation: Installation,
    digest: str,
    size: int,
    offset: int,
    read: Callable[[int], bytes],
    report: Callable[[Any], None],
) -> None:
    """Receive the bytes of a file from ``offset`` to the end, and store the file if its digest matches.

    If the transfer is interrupted, the received bytes remain in a file with the suffix ``.part``.

    Args:
        installation: the installation.
        digest: SHA-256 digest of the file.
        size: size of the file in bytes.
        offset: number of bytes already received.
        read: function that reads at most the given number of bytes.
        report: function that is called with the progress.
    """
    path = installation.store_path(digest)
    part = path + ".part"
    if not 0 <= size <= MAX_FILE_BYTES:
        raise AgentError(
            f"a file of the deployment has {size:,} bytes, but the agent accepts at most {MAX_FILE_BYTES:,} bytes: "
            "deploy a smaller bundle or smaller packages",
            "send",
        )
    if not 0 <= offset <= size:
        raise AgentError(
            f"the transfer of a file of {size:,} bytes cannot be resumed at byte {offset:,}: deploy the bundle again",
            "send",
        )
    with open(part, "r+b" if os.path.exists(part) else "w+b") as file:
        file.truncate(offset)
        file.seek(offset)
        left = size - offset
        while left:
            signal.alarm(IDLE_S)
            chunk = read(min(left, CHUNK_BYTES))
            if not chunk:
                file.flush()
                os.fsync(file.fileno())
                raise EOFError
            file.write(chunk)
            left -= len(chunk)
            if (size - left) // REPORT_BYTES > (size - left - len(chunk)) // REPORT_BYTES:
                report({"received": size - offset - left})
        # Writing and checking a file has no time limit, because slow SD cards may need minutes for a large file.
        signal.alarm(0)
        file.flush()
        os.fsync(file.fileno())
    if file_digest(part) != digest:
        os.unlink(part)
        raise _damaged()
    os.replace(part, path)
    fsync_folder(installation.store)


def receive_agent(installation: Installation, digest: str, size: int, read: Callable[[int], bytes]) -> None:
    """Receive a new version of the agent, and replace the installed one if the digest matches."""
    if not 0 <= size <= MAX_AGENT_BYTES:
        raise AgentError(
            f"the host sent an agent of {size:,} bytes, but at most {MAX_AGENT_BYTES:,} bytes are accepted: update "
            "edgerec on the host",
            "send",
        )
    content = read(size)
    if len(content) < size:
        raise EOFError
    if content_digest(content) != digest:
        raise _damaged()
    write_file(installation.agent_file, content)


def _damaged() -> AgentError:
    return AgentError("a file was damaged during the transfer: deploy the bundle again", "send")
