"""Tests of installing, updating, rolling back and removing releases on a device with an SSH server."""

from __future__ import annotations

import functools
import re
import shutil
from dataclasses import replace

import pytest

from edgerec import DeployOptions, deploy_bundle, device_status, remove, rollback
from edgerec.errors import ConfigError, DeployError

OPTIONS = DeployOptions(settle_s=0)
MAX_REPEATED_BYTES = 100_000


def deploy(bundle, device, **options):
    return deploy_bundle(bundle, device.device, replace(OPTIONS, **options))


@pytest.fixture(scope="module")
def first(device, make_bundle):
    """Return the result of the first deployment to the device."""
    return deploy(make_bundle(number=1), device)


@pytest.fixture
def installed(device, first, make_bundle):
    """Return the test device after the first deployment."""
    deploy(make_bundle(number=1), device)
    return device


def running_release(device):
    """Return the digest of the release that is running on the device."""
    status = device_status(device.device)
    assert status.service == "active"
    assert status.camera["bundle"].startswith(status.release)
    assert not status.on_trial
    return status.release


def test_first_deployment_starts_the_camera(device, first):
    status = device_status(device.device)
    assert first.changed
    assert (status.release, status.target) == (first.release, "desktop-linux")
    assert status.camera["frames"] >= 10
    assert running_release(device) == first.release
    assert device.run("cat /etc/edgerec/camera.toml").count('\nsources = ["auto"]\n') == 1


def test_repeated_deployment_changes_nothing_and_sends_little(installed, first, make_bundle):
    invocation = installed.run("systemctl show edgerec --property=InvocationID")
    result = deploy(make_bundle(number=1), installed)
    assert not result.changed
    assert result.release == first.release
    assert result.sent_bytes < MAX_REPEATED_BYTES
    assert installed.run("systemctl show edgerec --property=InvocationID") == invocation


def test_update_and_rollback_switch_between_two_releases(installed, first, make_bundle):
    update = deploy(make_bundle(number=2), installed)
    assert update.changed
    assert update.previous == first.release
    assert running_release(installed) == update.release
    back = rollback(installed.device, OPTIONS)
    assert (back.release, back.previous) == (first.release, update.release)
    assert running_release(installed) == first.release


def test_releases_with_equal_requirements_share_a_virtual_environment(installed, make_bundle):
    deploy(make_bundle(number=2), installed)
    assert len(installed.run("ls /opt/edgerec/venvs").split()) == 1
    assert len(installed.run("ls /opt/edgerec/releases").split()) == 2


def test_dry_run_lists_the_steps_and_changes_nothing(installed, first, make_bundle):
    before = installed.run("find /opt/edgerec -newermt 2000-01-01 | sort; cat /opt/edgerec/state.json")
    result = deploy(make_bundle(number=3), installed, dry_run=True)
    names = [step.name for step in result.steps if step.state == "planned"]
    assert names == ["send", "install", "verify", "switch", "monitor", "prune"]
    assert not result.changed
    assert installed.run("find /opt/edgerec -newermt 2000-01-01 | sort; cat /opt/edgerec/state.json") == before


def steps_of(result):
    """Return the steps after the check of the device, with texts in which the digests of the releases are names."""
    names = {result.release or "no-release": "NEW", result.previous or "no-release": "OLD"}
    lines = [f"{step.name} {step.state}: {step.text}" for step in result.steps if step.name not in ("connect", "check")]
    return [functools.reduce(lambda line, name: line.replace(name, names[name]), names, line) for line in lines]


TRIAL = [
    "monitor planned: wait up to 60 s until the service classifies frames, and monitor it for another 0 s",
    "prune planned: keep up to 3 releases, and delete older ones",
]
VERIFY = "verify planned: compute the scores of the golden images on the device"


def test_dry_run_of_a_first_deployment_writes_nothing_to_the_device(make_device, make_bundle):
    new = make_device()
    plan, send, *more = steps_of(deploy(make_bundle(), new, dry_run=True))
    assert plan == "plan done: release NEW, 1 package"
    assert re.fullmatch(r"send planned: send \d+ files, [\d,]+ bytes", send)
    assert more == [
        "install planned: install release NEW and 1 package in a new virtual environment",
        VERIFY,
        "switch planned: start the first release NEW with a new configuration",
        *TRIAL,
    ]
    assert steps_of(remove(new.device, replace(OPTIONS, dry_run=True))) == ["plan skipped: nothing is installed"]
    assert new.run("ls -A /opt/edgerec; ls -A /etc/edgerec") == ""


def test_dry_run_describes_an_update_a_rollback_and_a_removal(installed, first, make_bundle, tmp_path):
    config = tmp_path / "camera.toml"
    config.write_text('output = "none"\n')
    assert steps_of(deploy(make_bundle(number=1), installed, dry_run=True)) == [
        "plan skipped: release NEW is already running"
    ]
    plan, send, *more = steps_of(deploy(make_bundle(number=3), installed, dry_run=True))
    assert (plan, send[:19]) == ("plan done: release NEW, 1 package", "send planned: send ")
    assert more == [
        "install planned: install release NEW in the existing virtual environment",
        VERIFY,
        "switch planned: switch from release OLD to NEW",
        *TRIAL,
    ]
    deploy(make_bundle(number=3), installed)
    again = [
        "plan done: release NEW is already installed",
        "send skipped: all files are already on the device",
        "install skipped: the release is already installed",
        VERIFY,
    ]
    switch = "switch planned: switch from release OLD to NEW"
    assert steps_of(deploy(make_bundle(number=1), installed, dry_run=True)) == [*again, switch, *TRIAL]
    restart = "switch planned: restart release NEW with a new configuration"
    same = deploy(make_bundle(number=3), installed, config=config, dry_run=True)
    assert steps_of(replace(same, previous="")) == [*again, restart, *TRIAL]
    back = rollback(installed.device, replace(OPTIONS, dry_run=True))
    assert back.release == first.release
    assert steps_of(back) == [switch, *TRIAL]
    assert steps_of(remove(installed.device, replace(OPTIONS, dry_run=True))) == [
        "switch planned: stop and remove the service",
        "prune planned: remove all releases",
    ]


def test_configuration_is_replaced_only_if_the_new_release_is_healthy(installed, make_bundle, tmp_path):
    config = tmp_path / "camera.toml"
    config.write_text('sources = ["video.avi"]\noutput = "none"\n')
    with pytest.raises(DeployError):
        deploy(make_bundle(crash=3), installed, config=config)
    assert "video.avi" not in installed.run("cat /etc/edgerec/camera.toml")
    assert deploy(make_bundle(number=1), installed, config=config).changed
    assert "video.avi" in installed.run("cat /etc/edgerec/camera.toml")
    assert not deploy(make_bundle(number=1), installed, config=config).changed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sources = [", "TOML"),
        ("sorces = ['0']", "sources"),
        ("sources = ['rtsp://user:secret@camera/1']", "password"),
        ("sources = ['0']", 'no display: add output = "none"'),
        ("output = 'none'\nbundel = 'b'", "bundel is unknown; did you mean 'bundle'"),
        (
            "output = 'none'\nbundle = 'b'",
            "bundle has no effect on a device, because .*: delete this key",
        ),
        ("output = 'none'\nstatus_file = 's.json'", "status_file has no effect on a device.*: delete this key"),
    ],
)
def test_unusable_configuration_is_refused_before_connecting(tmp_path, device, make_bundle, text, message):
    config = tmp_path / "camera.toml"
    config.write_text(f"{text}\n")
    config.chmod(0o600)
    with pytest.raises(ConfigError, match=message) as caught:
        deploy(make_bundle(), device, config=config)
    assert str(config) in str(caught.value)
    assert "secret" not in str(caught.value)


def test_old_releases_are_pruned_but_not_the_previous_one(installed, make_bundle):
    releases = [deploy(make_bundle(number=number), installed, keep=1).release for number in (4, 5, 6)]
    status = device_status(installed.device)
    assert (status.release, status.previous) == (releases[2], releases[1])
    assert set(status.releases) == set(releases[1:])
    # A file in the store with only one hard link does not belong to a release.
    assert installed.run("ls /opt/edgerec/store")
    assert installed.run("find /opt/edgerec/store -type f -links 1") == ""


@pytest.mark.skipif(shutil.which("sudo") is None, reason="sudo is not installed")
def test_user_with_sudo_can_deploy_and_see_the_status(make_device, make_bundle):
    pi = replace(make_device().device, address="pi@test-device")
    result = deploy_bundle(make_bundle(number=1), pi, OPTIONS)
    assert result.changed
    assert device_status(pi).camera["bundle"].startswith(result.release)
    assert remove(pi, OPTIONS).changed


def test_rollback_without_a_previous_release_is_refused(make_device, make_bundle):
    new = make_device()
    with pytest.raises(DeployError, match="no previous release"):
        rollback(new.device, OPTIONS)
    deploy(make_bundle(), new)
    with pytest.raises(DeployError, match="no previous release"):
        rollback(new.device, OPTIONS)


def test_removal_stops_the_service_and_keeps_only_the_configuration(make_device, make_bundle):
    new = make_device()
    deploy(make_bundle(), new)
    result = remove(new.device, OPTIONS)
    assert result.changed
    assert "edgerec.service" not in new.run("ls /etc/systemd/system")
    assert new.run("ls /etc/edgerec").split() == ["camera.toml", "secrets.env"]
    assert new.run("systemctl show edgerec --property=ActiveState").strip() == "ActiveState=inactive"
    assert new.run("ls -A /opt/edgerec") == ""
    assert not remove(new.device, OPTIONS).changed
    assert deploy(make_bundle(), new).changed
