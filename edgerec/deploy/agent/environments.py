"""Create each release's virtual environment, which contains edgerec and the packages that edgerec requires."""

from __future__ import annotations

import os
import re
from typing import Any

from edgerec.deploy.agent.errors import AgentError
from edgerec.deploy.agent.files import remove_path, write_file, write_json
from edgerec.deploy.agent.installation import Installation
from edgerec.deploy.agent.job_log import JobLog
from edgerec.deploy.agent.ownership import give_to_nobody, return_to_root
from edgerec.deploy.agent.processes import INSTALL_TIMEOUT_S, last_line, run, run_as_nobody

COMPLETE = ".complete"
WHEEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]*\.whl")


def is_complete_venv(path: str) -> bool:
    """Return whether a virtual environment is completely installed. Only root can mark an environment as complete."""
    try:
        return os.lstat(os.path.join(path, COMPLETE)).st_uid == os.geteuid()
    except OSError:
        return False


def used_venvs(installation: Installation) -> set[str]:
    """Return the names of the virtual environments of all complete releases and of the current release."""
    releases = [installation.release_info(name) for name in installation.complete_releases()]
    venvs = {release.get("venv", "") for release in releases}
    # The current release may be marked as incomplete.
    if installation.current():
        venvs.add(os.path.basename(os.path.realpath(os.path.join(installation.current_link, "venv"))))
    return venvs


def create_venv(installation: Installation, venv: str, job: dict[str, Any], log: JobLog) -> None:
    """Create a virtual environment and install a job's wheels in it, unless it is already complete."""
    if is_complete_venv(venv):
        return
    remove_path(venv)
    options = ["--system-site-packages"] if job["system_packages"] else []
    done = run([job["python"], "-m", "venv", *options, venv], INSTALL_TIMEOUT_S)
    if done.code:
        reason = last_line(done.errors + done.output)
        raise AgentError(
            f"Python cannot create a virtual environment ({reason}): run sudo apt-get install python3-venv",
            "install",
        )
    # A wheel can replace modules that pip imports after the wheel was unpacked, so pip must not run as root.
    give_to_nobody(venv)
    # The wheels are hard links to files in the store, so the owner of these files must remain root.
    links = venv + "/wheels"
    os.mkdir(links)
    for name, digest in job["wheels"].items():
        if not WHEEL.fullmatch(name):
            raise AgentError(
                f"the host sent {name!r}, which is not a valid wheel file name: update edgerec on the host",
                "install",
            )
        os.link(installation.store_path(digest), os.path.join(links, name))
    wheels = [os.path.join(links, name) for name in sorted(job["wheels"])]
    log.step("install", "running", f"installing {len(wheels)} packages")
    pip = [venv + "/bin/python", "-m", "pip", "--disable-pip-version-check", "--no-input", "--no-cache-dir"]
    done = run_as_nobody([*pip, "install", "--quiet", "--no-index", "--no-deps", *wheels])
    if done.code:
        reason = last_line(done.errors + done.output)
        raise AgentError(
            f"pip cannot install the packages ({reason}): check the free disk space, and deploy the bundle again",
            "install",
        )
    # A wheel may contain a file with the name .complete.
    for path in (links, os.path.join(venv, COMPLETE)):
        remove_path(path)
    return_to_root(venv)
    write_json(os.path.join(venv, "wheels.json"), job["wheels"])
    os.sync()
    write_file(os.path.join(venv, COMPLETE), b"")
