"""Tests of the status that a device reports."""

from __future__ import annotations

from edgerec import Device
from edgerec.deploy import DeviceStatus
from tests.deploy.test_malicious_devices import STATUS


def test_status_contains_the_values_of_the_reply():
    status = DeviceStatus.from_reply(Device("pi@door", "door"), STATUS).to_dict()
    assert status.pop("device") == "door"
    assert status.keys() < STATUS.keys()
    assert status == {key: STATUS[key] for key in status}
