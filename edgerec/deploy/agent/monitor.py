"""Wait until the camera service is healthy with a new release."""

from __future__ import annotations

import time
from typing import Any

from edgerec.deploy.agent.errors import AgentError
from edgerec.deploy.agent.files import read_json
from edgerec.deploy.agent.job_log import JobLog
from edgerec.deploy.agent.service import STATUS_FILE, unit_state

# Number of frames after which the service is considered healthy.
MIN_FRAMES = 10
POLL_S = 0.5


def monitor(release: str, old_invocation: str | None, healthy_within_s: float, settle_s: float, log: JobLog) -> int:
    """Wait until the camera service is healthy and has stayed healthy for ``settle_s`` seconds.

    The service is healthy if it is active, has classified frames with the new release, and has not restarted. Frames
    that settings such as ``motion`` or ``max_fps`` skip are also counted towards the required number of frames.

    Returns:
        The number of classified frames.

    Raises:
        AgentError: the service did not become healthy in time, or did not stay healthy.
    """
    start_s = time.monotonic()
    invocation, healthy_s, healthy_frames, reason = "", None, 0, "the service did not start"
    while True:
        passed_s = time.monotonic() - start_s
        unit, camera = unit_state(), read_json(STATUS_FILE)
        # While systemd stops the service, its process may be the old one, even if the invocation ID is new.
        is_stopping = unit.get("ActiveState") == "deactivating"
        if unit.get("InvocationID") not in ("", None, old_invocation) and not is_stopping:
            invocation = invocation or unit["InvocationID"]
            # systemd assigns a new invocation ID to each automatic restart.
            if unit["InvocationID"] != invocation or unit.get("SubState") in ("auto-restart", "failed"):
                raise AgentError(f"the service {_crash_reason(unit)}")
        elif unit.get("ActiveState") == "failed":
            raise AgentError(f"the service {_crash_reason(unit)}")
        frames = skipped = 0
        own = str(camera.get("pid")) == unit.get("MainPID") and str(camera.get("bundle", "")).startswith(release)
        if invocation and own:
            frames, skipped = camera.get("frames", 0), camera.get("skipped", 0)
        log.step("monitor", "running", f"{frames} frames classified", int(passed_s), int(healthy_within_s))
        healthy = unit.get("ActiveState") == "active" and frames > 0 and frames + skipped >= MIN_FRAMES
        if healthy and healthy_s is None:
            healthy_s, healthy_frames = passed_s, frames + skipped
        if healthy_s is not None and passed_s >= healthy_s + settle_s:
            if healthy and frames + skipped > healthy_frames:
                return frames
            reason = f"the service stopped processing frames after {healthy_frames} frames: check its log"
        elif healthy_s is None:
            reason = _waiting_reason(unit, camera if own else {}, frames, invocation, healthy_within_s)
        if passed_s > healthy_within_s + (settle_s if healthy_s is not None else 0):
            raise AgentError(reason)
        time.sleep(POLL_S)


def _crash_reason(unit: dict[str, str]) -> str:
    reasons = {
        "watchdog": "hung, so that its watchdog restarted it",
        "oom-kill": "needed too much memory",
        "timeout": "did not start in time",
        "exit-code": "crashed with exit code {}".format(unit.get("ExecMainStatus", "unknown")),
    }
    return reasons.get(unit.get("Result", ""), "crashed ({})".format(unit.get("Result", "unknown")))


def _waiting_reason(
    unit: dict[str, str], camera: dict[str, Any], frames: int, invocation: str, healthy_within_s: float
) -> str:
    """Return the reason why the camera service did not become healthy within ``healthy_within_s`` seconds."""
    if not invocation or unit.get("ActiveState") != "active":
        state = unit.get("ActiveState", "unknown")
        return f"the service did not start within {healthy_within_s:g} s ({state}): check its log"
    classified = f"only {frames} frames were classified in {healthy_within_s:g} s"
    sources = camera.get("sources")
    for source in sources if isinstance(sources, list) else []:
        if isinstance(source, dict) and source.get("reason"):
            return f"{classified} ({source.get('name')}: {source['reason']}): check the camera"
    return f"{classified}, but at least {MIN_FRAMES} are required: check the camera"
