"""Tests of reading devices.toml and selecting devices."""

from __future__ import annotations

import pytest

from edgerec import Device
from edgerec.deploy.devices_file import read_devices, select_devices
from edgerec.errors import DeployError

FLEET = """
[defaults]
port = 2222
tags = ["all"]
config = "camera.toml"

[[device]]
name = "door"
host = "pi@10.0.0.5"
tags = ["canary", "entrance"]

[[device]]
name = "gate"
host = "gate-alias"
port = 22
config = "/etc/gate.toml"
bundle = "bundles/signs"
prefix = "/srv/edgerec"
"""


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a devices.toml file, and returns the path of the file."""

    def write_devices(text):
        path = tmp_path / "devices.toml"
        path.write_text(text)
        return path

    return write_devices


def test_devices_are_read_with_defaults_and_paths_relative_to_the_file(write, tmp_path):
    door, gate = read_devices(write(FLEET))
    assert door.device == Device("pi@10.0.0.5", "door", port=2222)
    assert door.tags == ("canary", "entrance")
    assert (door.config, door.bundle) == (tmp_path / "camera.toml", None)
    assert gate.device == Device("gate-alias", "gate", port=22, prefix="/srv/edgerec")
    assert gate.tags == ("all",)
    assert str(gate.config) == "/etc/gate.toml"
    assert gate.bundle == tmp_path / "bundles" / "signs"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no devices: add a table [[device]]"),
        ("[[devices]]\nname='a'", "unknown table 'devices'; did you mean 'device'?"),
        ("device = 3", "write each device as a table [[device]]"),
        ("defaults = 3", "write the defaults as a table [defaults]"),
        ("[[device]]\nname='a'", "[[device]] 1 (a): the key 'host' is missing"),
        ("[[device]]\nname='a'\nhost='b'\nprot=1", "[[device]] 1 (a): unknown device key 'prot'; did you mean 'port'?"),
        ("[[device]]\nname='a'\nhost='b'\nport='1'", "[[device]] 1 (a): port is '1', expected 1 to 65535"),
        ("[[device]]\nname='a'\nhost='b'\nconfig=1", "[[device]] 1 (a): config is 1, expected a string"),
        ("[[device]]\nname='a'\nhost='b'\nport=0", "port is 0, expected 1 to 65535"),
        ("[[device]]\nname='-a'\nhost='b'", "[[device]] 1: name is '-a', expected up to 64 letters"),
        ("[[device]]\nname='a'\nhost='-oProxyCommand=x'", "host is '-oProxyCommand=x', expected user@host"),
        ("[[device]]\nname='a'\nhost='u@-x'", "host is 'u@-x', expected user@host"),
        ("[[device]]\nname='a'\nhost='b'\nprefix='opt'", "prefix is 'opt', expected an absolute path"),
        ("[[device]]\nname='a'\nhost='b'\nprefix='/opt/../etc'", "prefix is '/opt/../etc', expected an absolute path"),
        ("[[device]]\nname='a'\nhost='b'\ntags=['x y']", "tags is ['x y'], expected a list of tags"),
        ("[[device]]\nname='a'\nhost='b'\n[defaults]\nname='c'", "[defaults]: unknown device key 'name'"),
        ("[[device]]\nname='a'\nhost='b'\n[[device]]\nname='a'\nhost='c'", "1 and 2 have the same name 'a'"),
        ("[[device]]\nname='a'\nhost='b'\n[[device]]\nname='c'\nhost='b'", "1 and 2 have the same host 'b'"),
        ("[[device", "is not TOML"),
    ],
)
def test_invalid_file_is_refused_and_the_device_is_named(write, text, message):
    path = write(text)
    with pytest.raises(DeployError) as caught:
        read_devices(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_missing_file_is_reported(tmp_path):
    with pytest.raises(DeployError, match=r"does not exist: create it, or choose another file with --devices"):
        read_devices(tmp_path / "devices.toml")


def test_devices_are_selected_by_name_and_tag_in_the_order_of_the_file(write):
    devices = read_devices(write(FLEET))
    assert select_devices(devices) == devices
    assert [device.name for device in select_devices(devices, names=["gate"])] == ["gate"]
    assert [device.name for device in select_devices(devices, tags=["entrance"])] == ["door"]
    assert [device.name for device in select_devices(devices, ["gate"], ["canary"])] == ["door", "gate"]
    with pytest.raises(DeployError, match=r"unknown device 'gates'; did you mean 'gate'\?"):
        select_devices(devices, names=["gates"])
    with pytest.raises(DeployError, match=r"unknown tag 'canari'; did you mean 'canary'\?"):
        select_devices(devices, tags=["canari"])
