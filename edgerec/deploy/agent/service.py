"""Control the camera's systemd service, and read its state and its log."""

from __future__ import annotations

import contextlib
import glob
import grp
import os
import re

from edgerec.deploy.agent.errors import AgentError
from edgerec.deploy.agent.files import read_bytes, remove_path
from edgerec.deploy.agent.processes import last_line, run

UNIT = "edgerec.service"
STATUS_FILE = "/run/edgerec/status.json"
LOG_LINES = 30
MAX_LINE_CHARACTERS = 500
# journalctl prints this text in front of the cursor, which identifies an entry of the journal.
CURSOR = "-- cursor: "
JOURNALCTL = ["journalctl", "--unit", UNIT, "--output", "cat", "--quiet", "--no-pager"]


def systemctl(*arguments: str, step: str = "switch") -> None:
    done = run(["systemctl", *arguments])
    if done.code:
        raise AgentError("systemctl {} failed: {}".format(" ".join(arguments), last_line(done.errors)), step)


def unit_state() -> dict[str, str]:
    """Return the properties that systemd reports for the camera service, keyed by name."""
    names = "ActiveState,SubState,MainPID,NRestarts,Result,InvocationID,ExecMainStatus"
    done = run(["systemctl", "show", UNIT, "--property=" + names])
    return dict(line.split("=", 1) for line in done.output.splitlines() if "=" in line)


def uninstall_unit(unit_file: str) -> None:
    """Stop the camera service, and delete its unit file."""
    run(["systemctl", "disable", "--now", "--quiet", UNIT])
    remove_path(unit_file)
    run(["systemctl", "daemon-reload"])


def log_position() -> str:
    """Return the position after the last line of the service's log, or an empty string if the log is empty."""
    # Use the cursor of one of the service's own entries: with the cursor of another unit's entry, journalctl may skip
    # the service's next entry. Unlike a timestamp, a cursor is unaffected by clock changes during the trial period.
    lines = run([*JOURNALCTL, "--lines", "1", "--show-cursor"]).output.splitlines()
    return lines[-1][len(CURSOR) :] if lines and lines[-1].startswith(CURSOR) else ""


def service_log(position: str) -> list[str]:
    """Return the last lines of the service's log after a position, including systemd's messages about the service.

    Args:
        position: result of :func:`log_position`. Older lines are returned only if journalctl cannot find the position.
    """
    # With a cursor, the option --lines would select the first lines after the cursor, not the last ones.
    done = run([*JOURNALCTL, "--after-cursor", position]) if position else None
    if done is None or done.code:
        done = run([*JOURNALCTL, "--lines", str(LOG_LINES)])
    return [line[:MAX_LINE_CHARACTERS] for line in done.output.splitlines()][-LOG_LINES:]


def service_groups(unit: str, unit_folder: str) -> list[int]:
    """Return the IDs of the groups that systemd adds to the camera service, e.g. to access an accelerator.

    Args:
        unit: content of the service's unit file. Drop-in files of ``systemctl edit`` are read from the device.
        unit_folder: folder of the unit file.
    """
    names: list[str] = []
    drop_ins = sorted(glob.glob(os.path.join(unit_folder, UNIT + ".d", "*.conf")))
    for text in [unit, *((read_bytes(path) or b"").decode("utf-8", "replace") for path in drop_ins)]:
        for value in re.findall(r"^SupplementaryGroups=(.*)$", text, re.MULTILINE):
            names = names + value.split() if value.strip() else []
    groups = []
    for name in names:
        # Ignore a missing group, because systemd reports it when it starts the service.
        with contextlib.suppress(KeyError):
            groups.append(int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid)
    return groups


def boot_id() -> str:
    """Return an ID that changes when the device restarts."""
    # read_bytes() cannot be used, because the kernel does not accept a large buffer for this file.
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read(64).strip()
