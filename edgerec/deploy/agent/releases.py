"""Install a release, verify it on the device, and discard a damaged release."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from typing import Any

from edgerec.deploy.agent.environments import create_venv, is_complete_venv, used_venvs
from edgerec.deploy.agent.errors import AgentError
from edgerec.deploy.agent.files import file_digest, read_bytes, remove_folder, remove_path, write_file, write_json
from edgerec.deploy.agent.installation import Installation
from edgerec.deploy.agent.job_log import JobLog
from edgerec.deploy.agent.processes import MAX_OUTPUT_BYTES, last_line, run_as_nobody
from edgerec.deploy.agent.service import UNIT, service_groups


def safe_name(name: str) -> str:
    """Check that a relative path stays inside the bundle's folder, and return the path.

    Raises:
        AgentError: the path could refer to a file outside the bundle's folder.
    """
    parts = name.split("/")
    if not name or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise AgentError(f"the path {name!r} leaves the bundle's folder: do not use this bundle", "install")
    return name


def install(installation: Installation, job: dict[str, Any], log: JobLog) -> None:
    """Install a job's release and its virtual environment unless both are already installed."""
    release, venv = job["release"], os.path.join(installation.venvs, job["venv"])
    if installation.is_complete(release) and is_complete_venv(venv):
        log.step("install", "skipped", "the release is already installed")
        return
    log.step("install", "running", "creating the virtual environment")
    create_venv(installation, venv, job, log)
    folder = installation.release_path(release)
    # The folder of the current release is kept, because the running camera may still use its files.
    if release != installation.current():
        remove_path(folder)
    partial = os.path.join(folder, ".new")
    for name, digest in job["files"].items():
        path = os.path.join(folder, "bundle", safe_name(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        remove_path(partial)
        os.link(installation.store_path(digest), partial)
        os.replace(partial, path)
    # os.replace() does not remove a hard link if the destination is a hard link to the same file.
    remove_path(partial)
    os.symlink(os.path.join("..", "..", "venvs", job["venv"]), partial)
    os.replace(partial, os.path.join(folder, "venv"))
    if not os.path.exists(os.path.join(folder, UNIT)):
        write_file(os.path.join(folder, UNIT), job["unit"].encode())
    os.sync()
    log.step("install", "done", f"release {release}")


def verify(installation: Installation, job: dict[str, Any], log: JobLog) -> None:
    """Verify a bundle's scores with the delegate that the camera will use, and mark the release as complete."""
    folder = installation.release_path(job["release"])
    log.step("verify", "running", "computing the scores of the golden images")
    config = read_bytes(installation.config_file) if job["config"] is None else job["config"].encode()
    configured = re.search(rb'^\s*delegate\s*=\s*"([^"\\]*)"', config or b"", re.MULTILINE)
    delegate = ["--delegate", configured[1].decode() or "none"] if configured else []
    command = [folder + "/venv/bin/edgerec", "verify", folder + "/bundle", "--json", *delegate]
    done = run_as_nobody(command, service_groups(job["unit"], installation.unit_folder))
    report: Any = None
    with contextlib.suppress(ValueError):
        report = json.loads(done.output) if done.complete else None
    if not isinstance(report, dict):
        report = {}
    if done.code or not report:
        reason = report.get("reason") or last_line(done.errors)
        if not done.complete:
            reason = f"the output of the verification exceeds {MAX_OUTPUT_BYTES:,} bytes; do not use this bundle"
        raise AgentError(f"the bundle failed verification on the device: {reason}", "verify")
    info = {
        "installed_s": time.time(),
        "name": job["name"],
        "target": job["target"],
        "venv": job["venv"],
        "signer": job["signer"],
        "verification": report,
    }
    write_json(os.path.join(folder, "release.json"), info)
    log.step("verify", "done", "the scores of the golden images are as expected")


def discard(installation: Installation, job: dict[str, Any]) -> None:
    """Mark a damaged release as incomplete, so that the next deployment reinstalls the release.

    Each file of a release is a hard link to a file in the store, so damaged files are also deleted from the store.
    The virtual environment may be damaged too, and is deleted unless another release uses the environment.
    """
    release = job["release"]
    for digest in job["files"].values():
        path = installation.store_path(digest)
        if os.path.exists(path) and file_digest(path) != digest:
            os.unlink(path)
    remove_path(installation.release_path(release, "release.json"))
    if release != installation.current():
        remove_path(installation.release_path(release))
    if job["venv"] not in used_venvs(installation):
        remove_folder(os.path.join(installation.venvs, job["venv"]))
