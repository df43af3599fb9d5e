"""Insert the paths on a device into a systemd unit."""

from __future__ import annotations

import re

CONFIG_FILE = "/etc/edgerec/camera.toml"
STATUS_FILE = "/run/edgerec/status.json"


def service_unit(unit: str, prefix: str, python: str) -> str:
    """Return a systemd unit that runs the current release on a device.

    Before the camera starts, the unit runs the agent, which restores the previous release if the device was restarted
    during a deployment. The camera starts even if the agent fails.

    Args:
        unit: content of the unit for the bundle's target.
        prefix: installation folder on the device.
        python: path of the Python interpreter that runs the agent.
    """
    current = f"{prefix}/current"
    program = f"{current}/venv/bin/edgerec"
    options = f"--config {CONFIG_FILE} --status-file {STATUS_FILE}"
    start = (
        f"ExecStartPre=-+{python} {prefix}/agent.pyz boot-check --prefix {prefix}\n"
        f"ExecStart={program} camera {current}/bundle {options}"
    )
    lines = [line for line in unit.splitlines() if not re.match(r'ExecStartPre=|Environment="?OPTIONS=', line)]
    text = "\n".join(lines) + "\n"
    text = re.sub(r"^ExecStart=.*$", lambda _: start, text, count=1, flags=re.MULTILINE)
    text = re.sub(r"^Documentation=.*$", f"Documentation=file:{current}/bundle/README.md", text, flags=re.MULTILINE)
    if "RuntimeDirectory=" not in text:
        text = text.replace("[Service]\n", "[Service]\nRuntimeDirectory=edgerec\nRuntimeDirectoryMode=0755\n", 1)
    return text
