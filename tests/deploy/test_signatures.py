"""Tests that a device can require signatures of allowed signers and refuses older bundles."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest

from edgerec import Bundle, DeployOptions, deploy_bundle, device_status, rollback, sign_bundle
from edgerec.errors import DeployError

OPTIONS = DeployOptions(settle_s=0)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Return the paths of an allowed key, of a key that is not allowed, and of the file allowed_signers."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("release", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "allowed_signers").write_text(f"release@example.com {(folder / 'release.pub').read_text()}")
    return folder / "release", folder / "other", folder / "allowed_signers"


@pytest.fixture(scope="module")
def signed(make_bundle, tmp_path_factory):
    """Return a function that signs a copy of a bundle, and returns the path of the copy."""
    folder = tmp_path_factory.mktemp("signed")

    def sign(key, serial, **behavior):
        path = folder / f"{key.name}-{serial}"
        if not path.exists():
            Bundle.open(make_bundle(**behavior)).copy(path)
            sign_bundle(path, key, serial=serial)
        return path

    return sign


@pytest.fixture
def installed(device, keys, signed):
    """Yield a device that requires signatures, and check after the test that its signed release is still running."""
    options = replace(OPTIONS, allowed_signers=keys[2], require_signature=True, allow_downgrade=True)
    release = deploy_bundle(signed(keys[0], 100), device.device, options).release
    yield device
    status = device_status(device.device)
    assert (status.release, status.service, status.require_signature) == (release, "active", True)


def test_unsigned_bundle_is_refused(installed, make_bundle):
    with pytest.raises(DeployError, match="is not signed, but a signature is required"):
        deploy_bundle(make_bundle(number=2), installed.device, OPTIONS)


def test_missing_signers_are_reported_before_anything_is_sent(make_device, signed, keys):
    new = make_device()
    with pytest.raises(DeployError, match="the device has no file of allowed signers; add --allowed-signers FILE"):
        deploy_bundle(signed(keys[0], 100), new.device, replace(OPTIONS, require_signature=True))
    assert new.run("ls /opt/edgerec") == ""


def test_bundle_signed_with_another_key_is_refused(installed, signed, keys):
    with pytest.raises(
        DeployError, match=r"was signed by the key SHA256:.* which is not in /etc/edgerec/allowed_signers"
    ):
        deploy_bundle(signed(keys[1], 200), installed.device, OPTIONS)


def test_older_signed_bundle_is_refused_unless_allowed(installed, signed, keys):
    with pytest.raises(DeployError, match="has the serial number 50, but the device has already accepted 100"):
        deploy_bundle(signed(keys[0], 50), installed.device, OPTIONS)
    downgraded = deploy_bundle(signed(keys[0], 50), installed.device, replace(OPTIONS, allow_downgrade=True))
    assert downgraded.changed
    assert deploy_bundle(signed(keys[0], 100), installed.device, OPTIONS).changed


def test_new_signers_are_installed_only_with_a_release_that_they_signed(installed, signed, keys, tmp_path):
    before = installed.run("cat /etc/edgerec/allowed_signers")
    other = tmp_path / "allowed_signers"
    other.write_text(f"other@example.com {keys[1].with_suffix('.pub').read_text()}")
    with pytest.raises(DeployError, match="was signed by the key"):
        deploy_bundle(signed(keys[0], 300), installed.device, replace(OPTIONS, allowed_signers=other))
    assert installed.run("cat /etc/edgerec/allowed_signers") == before


def test_rollback_to_an_unsigned_release_is_refused(make_device, make_bundle, signed, keys):
    device = make_device()
    deploy_bundle(make_bundle(number=2), device.device, OPTIONS)
    options = replace(OPTIONS, allowed_signers=keys[2], require_signature=True)
    release = deploy_bundle(signed(keys[0], 100), device.device, options).release
    message = r"the previous release .* is not signed, but a signature is required: use a bundle that was signed"
    with pytest.raises(DeployError, match=message):
        rollback(device.device, OPTIONS)
    assert device_status(device.device).release == release
    assert rollback(device.device, replace(OPTIONS, require_signature=False)).changed


def test_rollback_to_an_older_signed_release_is_accepted_unless_it_was_changed(make_device, signed, keys):
    device = make_device()
    options = replace(OPTIONS, allowed_signers=keys[2], require_signature=True)
    old = deploy_bundle(signed(keys[0], 50), device.device, options).release
    new = deploy_bundle(signed(keys[0], 100), device.device, options).release
    assert rollback(device.device, OPTIONS).release == old
    device.run(f"sed -i 's/$/ /' /opt/edgerec/releases/{new}/bundle/behavior.json")
    with pytest.raises(DeployError, match=r"behavior\.json of the previous release .* differs from the signed"):
        rollback(device.device, OPTIONS)
