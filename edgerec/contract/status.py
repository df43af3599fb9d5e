"""Format of the status file that ``edgerec camera`` writes."""

from __future__ import annotations

from typing import Any, TypedDict, cast

from edgerec.utils.bounded_parsing import parse_json
from edgerec.utils.json_types import check_type

VERSION = 1
MAX_STATUS_BYTES = 64 << 10


class SourceStatus(TypedDict):
    """State of a source.

    Attributes:
        name: the source's name, without passwords.
        state: ``connecting``, ``live``, ``stale``, ``lost`` or ``ended``.
        reason: reason for the state, or an empty string.
    """

    name: str
    state: str
    reason: str


class LastDecision(TypedDict):
    """The camera's latest decision, or the latest prediction if the source has no smoothed decisions.

    Attributes:
        source: the source's name, followed by ``/`` and the name of the region if there is one.
        label: the decision's label.
        score: the decision's score in [0, 1].
        at_s: capture time of the frame, as Unix time in seconds.
    """

    source: str
    label: str
    score: float
    at_s: float


class CameraStatus(TypedDict):
    """Content of the status file.

    Attributes:
        version: version of the file format.
        pid: process ID of the camera.
        bundle: SHA-256 digest of the bundle's manifest.json as hexadecimal digits.
        name: name of the bundle.
        started_s: time at which the camera started, as Unix time in seconds.
        updated_s: time at which the file was written, as Unix time in seconds.
        frames: number of classified frames. Each named region of a frame counts separately.
        skipped: number of frames that were not classified because of settings such as ``max_fps`` and ``motion``.
        fps: number of results per second during the last 10 s, over all sources and regions.
        invalid: number of frames whose scores were NaN or infinite.
        temperature_c: CPU temperature in degrees Celsius, or None if it is unknown.
        throttled: reasons why the device is throttled now.
        sources: state of each source.
        last: the latest decision, or None before the first frame.
    """

    version: int
    pid: int
    bundle: str
    name: str
    started_s: float
    updated_s: float
    frames: int
    skipped: int
    fps: float
    invalid: int
    temperature_c: float | None
    throttled: list[str]
    sources: list[SourceStatus]
    last: LastDecision | None


def parse_status(content: bytes) -> CameraStatus:
    """Parse a status file.

    Raises:
        ValueError: the content is not a status file of a supported version.
    """
    return check_status(parse_json(content, max_bytes=MAX_STATUS_BYTES))


def check_status(values: Any) -> CameraStatus:
    """Check the format of a parsed status file and return its content.

    Raises:
        ValueError: the values are not a status file of a supported version.
    """
    check_type(values, CameraStatus, "status")
    if values["version"] != VERSION:
        raise ValueError(f"status.version is {values['version']}, expected {VERSION}")
    return cast("CameraStatus", values)
