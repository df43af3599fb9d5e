"""Check the signatures of bundles before they are installed, and of installed releases before a rollback."""

from __future__ import annotations

import json
import os
from typing import Any

from edgerec.contract.signature import SIGNATURE, RefusedSignatureError, check_signature, refuse_downgrade
from edgerec.deploy.agent.errors import AgentError
from edgerec.deploy.agent.files import file_digest, read_bytes, write_file
from edgerec.deploy.agent.installation import Installation
from edgerec.deploy.agent.releases import safe_name


def check_bundle(installation: Installation, job: dict[str, Any]) -> tuple[str, int]:
    """Check the signature of a bundle if a signature is required.

    Returns:
        The signer and serial number of the bundle, or ``("", 0)`` if no signature is required.

    Raises:
        AgentError: the bundle was modified, was not signed by an allowed signer, or is too old.
    """
    if not _requires_signature(installation, job):
        return "", 0
    state = installation.state()
    manifest = read_bytes(installation.store_path(job["files"]["manifest.json"])) or b""
    signed = job["files"].get(SIGNATURE)
    signers = installation.signers_file
    if job["signers"] is not None:
        signers = installation.new_signers_file
        write_file(signers, job["signers"].encode())
    try:
        signature = read_bytes(installation.store_path(signed)) if signed else None
        signer = check_signature(manifest, signature, signers)
        if not job["allow_downgrade"]:
            refuse_downgrade(signer.serial, state.get("serial", 0))
    except RefusedSignatureError as error:
        raise AgentError(str(error), "verify") from None
    # Only the manifest is signed, so the digest of each file must match its digest in the manifest.
    listed = json.loads(manifest)["files"]
    for name, digest in job["files"].items():
        if name not in ("manifest.json", SIGNATURE) and listed.get(name) != digest:
            raise AgentError(f"{name} differs from the signed manifest: copy the signed bundle again", "verify")
    return str(signer), signer.serial


def check_installed_release(installation: Installation, job: dict[str, Any], release: str) -> None:
    """Check the signature and the file digests of an installed release if a signature is required.

    Raises:
        AgentError: the release was modified, or was not signed by an allowed signer.
    """
    if not _requires_signature(installation, job):
        return
    folder = installation.release_path(release, "bundle")
    manifest = read_bytes(os.path.join(folder, "manifest.json")) or b""
    try:
        check_signature(
            manifest,
            read_bytes(os.path.join(folder, SIGNATURE)),
            installation.signers_file,
            where=f"the previous release {release}",
        )
    except RefusedSignatureError as error:
        raise AgentError(str(error), "verify") from None
    for name, digest in json.loads(manifest)["files"].items():
        path = os.path.join(folder, safe_name(name))
        if not os.path.isfile(path) or file_digest(path) != digest:
            raise AgentError(
                f"{name} of the previous release {release} differs from the signed manifest: deploy a bundle instead",
                "verify",
            )


def add_signature(installation: Installation, job: dict[str, Any]) -> None:
    """Store a bundle's signature in the installed release. An existing signature is replaced."""
    digest = job["files"].get(SIGNATURE)
    if digest is None or not installation.is_complete(job["release"]):
        return
    signature = read_bytes(installation.store_path(digest))
    path = installation.release_path(job["release"], "bundle", SIGNATURE)
    if signature is not None and signature != read_bytes(path):
        write_file(path, signature)


def _requires_signature(installation: Installation, job: dict[str, Any]) -> bool:
    """Return whether a signature is required. The setting in the job overrides the setting on the device."""
    required = job["require_signature"]
    return bool(installation.state().get("require_signature") if required is None else required)
