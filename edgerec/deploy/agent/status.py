"""Report the installed releases, the digests of the files, and the camera's state to the host."""

from __future__ import annotations

import os
import re
import time
from typing import Any

from edgerec.deploy.agent.files import content_digest, free_bytes, read_bytes, read_json
from edgerec.deploy.agent.installation import AGENT, Installation
from edgerec.deploy.agent.service import STATUS_FILE, unit_state


def status(installation: Installation) -> dict[str, Any]:
    """Return the device's status. The host's type for this dictionary is ``StatusReply``."""
    current, state = installation.current(), installation.state()
    release = installation.release_info(current) if current else {}
    unit = unit_state()
    camera = read_json(STATUS_FILE) or None
    running = camera is not None and str(camera.get("pid")) == unit.get("MainPID")
    config, unit_content = read_bytes(installation.config_file), read_bytes(installation.unit_file)
    unit_prefix = re.search(re.escape(AGENT).encode() + rb" boot-check --prefix (\S+)", unit_content or b"")
    return {
        "release": current,
        "previous": installation.previous(),
        "releases": installation.complete_releases(),
        "name": release.get("name", ""),
        "target": release.get("target", ""),
        "on_trial": os.path.exists(installation.trial_file),
        "service": unit.get("ActiveState", "unknown"),
        "free_bytes": free_bytes(installation.prefix),
        "camera": camera if running else None,
        "age_s": max(0.0, time.time() - camera.get("updated_s", 0)) if running and camera else None,
        "require_signature": bool(state.get("require_signature")),
        "serial": state.get("serial", 0),
        "config": content_digest(config),
        "auto_source": uses_first_camera((config or b"").decode("utf-8", "replace")),
        "signers": content_digest(read_bytes(installation.signers_file)),
        "unit": content_digest(unit_content),
        "agent": content_digest(read_bytes(installation.agent_file)),
        # The unit of install.sh does not run the agent, so it contains no --prefix.
        "unit_prefix": unit_prefix[1].decode("ascii", "replace") if unit_prefix else "",
        "foreign_unit": unit_content is not None and installation.agent_file.encode() not in unit_content,
    }


def uses_first_camera(config: str) -> bool:
    """Return whether a camera's TOML configuration contains the source ``auto``, which selects the first camera.

    The configuration is searched with a regular expression, because ``tomllib`` requires Python 3.11.
    """
    sources = re.search(r"^\s*sources\s*=\s*(\[[^\]]*\]|.*)", config, re.MULTILINE)
    return bool(sources and re.search(r"""^[^#]*["']auto["']""", sources[1], re.MULTILINE))
