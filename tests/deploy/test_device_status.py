"""Tests of the status that a device reports."""

from __future__ import annotations

import pytest

from edgerec import Device
from edgerec.deploy import DeviceStatus
from edgerec.errors import DeployError

REPLY = {
    "release": "ab" * 8,
    "previous": "",
    "releases": ["ab" * 8],
    "name": "signs",
    "target": "rpi",
    "on_trial": False,
    "service": "active",
    "free_bytes": 1,
    "camera": None,
    "age_s": None,
    "require_signature": False,
}


def test_reply_of_a_newer_agent_with_additional_keys_is_accepted():
    status = DeviceStatus.from_reply(Device("pi@door", "door"), REPLY | {"new_key": 1})
    assert status.to_dict() == REPLY | {"device": "door"}


@pytest.mark.parametrize(
    "change", [{"free_bytes": "much"}, {"releases": "abc"}, {"camera": [1]}, {"release": None}, {"age_s": "1"}]
)
def test_invalid_reply_is_an_error_in_one_line(change):
    with pytest.raises(DeployError, match=r"^door sent an invalid status \(\w+ is .*\): deploy a bundle"):
        DeviceStatus.from_reply(Device("pi@door", "door"), REPLY | change)
