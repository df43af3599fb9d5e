"""Limits on the size of a bundle and its files, so that a malicious bundle cannot fill the device's memory."""

from __future__ import annotations

from pathlib import Path

from edgerec.contract.signature import MAX_SIGNATURE_BYTES
from edgerec.errors import BundleError

# Maximum total size of all files in a bundle, in bytes.
MAX_BUNDLE_BYTES = 1 << 30
MAX_MANIFEST_BYTES = 4 << 20


def check_file_size(bundle: Path, name: str, size_bytes: int, max_bytes: int) -> None:
    """Raise :class:`BundleError` if a file in a bundle is larger than ``max_bytes``."""
    if size_bytes > max_bytes:
        raise BundleError(
            f"{bundle}: {name} has {size_bytes:,} bytes, but the limit is {MAX_BUNDLE_BYTES >> 20} MiB for all files "
            f"in a bundle, {MAX_MANIFEST_BYTES >> 20} MiB for the manifest and {MAX_SIGNATURE_BYTES >> 10} KiB for its "
            "signature: do not use this bundle, it may be malicious"
        )
