"""Wheels for devices."""

from __future__ import annotations

from edgerec import __version__
from edgerec.emulation.device_wheels import own_wheel
from edgerec.export.wheel import edgerec_wheel


def test_own_wheel_is_preferred_to_a_bundled_wheel_of_the_same_version(tmp_path):
    name, content = edgerec_wheel()
    other = name.replace("-py3-", "-1-py3-")
    wheel = own_wheel(f"edgerec=={__version__}\n", tmp_path, {name: b"bundled", other: b"bundled"})
    assert wheel.read_bytes() == content


def test_bundled_wheel_of_another_version_is_used(tmp_path):
    wheel = own_wheel("edgerec==0.0.1\n", tmp_path, {"wheels/edgerec-0.0.1-py3-none-any.whl": b"bundled"})
    assert wheel.read_bytes() == b"bundled"


def test_bundled_wheel_of_a_version_with_the_same_prefix_is_used(tmp_path):
    name = f"wheels/edgerec-{__version__}.post1-py3-none-any.whl"
    wheel = own_wheel(f"edgerec[headless]=={__version__}.post1\n", tmp_path, {name: b"bundled"})
    assert wheel.read_bytes() == b"bundled"
