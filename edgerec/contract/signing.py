"""Sign bundles with ssh-keygen and an SSH key."""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgerec.contract.bundle import MANIFEST, Bundle
from edgerec.contract.manifest import MAX_SERIAL, Manifest
from edgerec.contract.signature import (
    MAX_SIGNATURE_BYTES,
    NAMESPACE,
    TIMEOUT_S,
    RefusedSignatureError,
    environment,
    format_time,
    run_ssh_keygen,
    signing_key,
)
from edgerec.errors import BundleError, ConfigError, OutputExistsError, SignatureError
from edgerec.utils.atomic import read_at_most, user_path

log = logging.getLogger(__name__)

# Maximum time in seconds for the user to enter a passphrase or touch a security key.
PROMPT_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class SignReport:
    """Result of :func:`sign_bundle`.

    Attributes:
        bundle: path of the bundle.
        serial: serial number in the manifest.
        signed_s: Unix time of signing in the manifest.
        key_type: type of the key, such as ``ED25519``.
        fingerprint: SHA-256 fingerprint of the key.
    """

    bundle: str
    serial: int
    signed_s: int
    key_type: str
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-serializable dictionary."""
        return asdict(self)

    @property
    def signed_at(self) -> str:
        """Time of signing as text, in UTC."""
        return format_time(self.signed_s)

    def __str__(self) -> str:
        """Return two lines with the key, the time of signing and the serial number."""
        key = f"{self.fingerprint} ({self.key_type})"
        return f"signed   {self.bundle} with the key {key} on {self.signed_at}\nserial   {self.serial}"


def sign_bundle(path: str | Path, key: str | Path, *, serial: int | None = None, overwrite: bool = False) -> SignReport:
    """Sign a bundle, and store a serial number and the time of signing in its manifest.

    Args:
        path: the bundle's folder or .zip file, which is modified.
        key: file of an SSH private key, or of a public key whose private key is in ssh-agent. If the private key is
            encrypted and not in the agent, ssh-keygen asks for the passphrase on the terminal.
        serial: serial number from 0 to 10¹⁸ − 1, which must increase with each release. None uses the current Unix time
            in seconds.
        overwrite: whether to replace an existing signature.

    Raises:
        BundleError: the bundle is damaged.
        ConfigError: ``serial`` is out of range.
        OutputExistsError: the bundle is already signed, and ``overwrite`` is False.
        SignatureError: the key cannot be used.
    """
    bundle = Bundle.open(path)
    if bundle.signature is not None and not overwrite:
        raise OutputExistsError(f"{path} is already signed: add --overwrite to replace the signature")
    if bundle.warnings:
        raise BundleError(f"cannot sign a damaged bundle: {bundle.warnings[0]}")
    for name in bundle.added():
        log.warning("%s: the signature does not cover %s, because it is not part of the bundle", path, name)
    manifest = with_serial(bundle.manifest, serial)
    content = manifest.to_json().encode()
    signature = create_signature(content, key)
    key_type, fingerprint = signing_key(content, signature)
    bundle.replace_manifest(content, signature)
    return SignReport(str(path), manifest.serial, manifest.signed_s, key_type, fingerprint)


def signing_report(path: str | Path) -> SignReport:
    """Return the key, the time and the serial number of a bundle's signature, without checking if the key is trusted.

    Raises:
        BundleError: the bundle is damaged or not signed.
        RefusedSignatureError: the signature is damaged or does not match the bundle.
    """
    bundle = Bundle.open(path)
    if bundle.signature is None:
        raise BundleError(f"{path} is not signed: sign the bundle with edgerec sign")
    manifest = bundle.manifest
    key_type, fingerprint = signing_key(bundle.manifest_content, bundle.signature)
    return SignReport(str(path), manifest.serial, manifest.signed_s or 0, key_type, fingerprint)


def check_serial(serial: int | None) -> None:
    """Check that a serial number is valid. None is valid, and selects the current Unix time in seconds.

    Raises:
        ConfigError: ``serial`` is out of range.
    """
    if serial is not None and not 0 <= serial < MAX_SERIAL:
        raise ConfigError("serial", f"is {serial}; expected 0 to {MAX_SERIAL - 1}")


def with_serial(manifest: Manifest, serial: int | None = None) -> Manifest:
    """Return a copy of a manifest with a serial number and the current time.

    If ``serial`` is None, the serial number is the current Unix time in seconds.
    """
    check_serial(serial)
    now_s = int(time.time())
    return replace(manifest, serial=now_s if serial is None else serial, signed_s=now_s)


def check_key(key: str | Path) -> Path:
    """Return the path of the file with a private key.

    Raises:
        SignatureError: the file does not exist.
    """
    path = user_path(key)
    if not path.is_file():
        raise SignatureError("key", f"the key {key} does not exist: create one with ssh-keygen -t ed25519 -f {key}")
    return path


def create_signature(content: bytes, key: str | Path) -> bytes:
    """Return an OpenSSH signature of a manifest's content.

    Args:
        content: content of manifest.json.
        key: file of a private or public SSH key; see :func:`sign_bundle`.

    Raises:
        SignatureError: the key cannot be used.
    """
    key = check_key(key)
    with tempfile.TemporaryDirectory(prefix="edgerec-") as folder:
        file = Path(folder) / MANIFEST
        file.write_bytes(content)
        arguments = ["-Y", "sign", "-q", "-n", NAMESPACE, "-f", str(key), str(file)]
        messages = _run_with_terminal(arguments) if _has_terminal() else _run_without_terminal(arguments)
        signature = file.with_name(f"{file.name}.sig")
        if not signature.exists():
            raise SignatureError("key", f"cannot sign with the key {key}: {_reason(messages, key)}")
        return read_at_most(signature, MAX_SIGNATURE_BYTES)


def _has_terminal() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def _run_without_terminal(arguments: list[str]) -> str:
    try:
        return run_ssh_keygen(arguments, "sign the bundle").stderr
    except RefusedSignatureError as error:
        raise SignatureError("key", str(error)) from None


def _run_with_terminal(arguments: list[str]) -> str:
    """Run ssh-keygen on the terminal, where it may ask for a passphrase, and return its error messages."""
    try:
        process = subprocess.Popen(["ssh-keygen", *arguments], stderr=subprocess.PIPE, env=environment())
    except OSError:
        return _run_without_terminal(arguments)
    with process:
        try:
            return process.communicate(timeout=PROMPT_TIMEOUT_S)[1].decode(errors="replace")
        except BaseException as error:
            process.terminate()  # Unlike kill(), terminate() lets ssh-keygen restore the terminal's echo.
            try:
                process.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                raise SignatureError(
                    "key", f"no passphrase was entered within {PROMPT_TIMEOUT_S:g} s: sign the bundle again"
                ) from None
            raise


def _reason(messages: str, key: Path) -> str:
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    known = {
        "incorrect passphrase": "the passphrase is missing or wrong; add the key to ssh-agent with ssh-add, or run the "
        "command in a terminal",
        "are too open": f"other users can read it; run chmod 600 {key}",
        "No private key found": "its private key is neither beside it nor in ssh-agent; add it with ssh-add",
        "agent refused operation": "ssh-agent refused to sign; confirm the request, or add the key again with ssh-add",
        "load public key": "it is not an SSH key, or its public key is missing; run "
        f"ssh-keygen -y -f {key} > {key}.pub",
    }
    for text, reason in known.items():
        if any(text in line for line in lines):
            return reason
    return f"{lines[-1] if lines else 'ssh-keygen wrote no signature'}; check the key with ssh-keygen -l -f {key}"
