"""Tests that a failed deployment reports the correct error and leaves the previous release running."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from dataclasses import replace

import pytest

from edgerec import DeployOptions, Device, deploy_bundle, device_status
from edgerec.errors import DeployError

OPTIONS = DeployOptions(settle_s=0)


def deploy(bundle, device, **options):
    listener = options.pop("listener", bool)
    return deploy_bundle(bundle, device.device, replace(OPTIONS, **options), listener)


@pytest.fixture
def installed(device, make_bundle):
    """Yield a device with a healthy release, and check after the test that this release is still running."""
    release = deploy(make_bundle(number=1), device).release
    yield device
    status = device_status(device.device)
    assert (status.release, status.service, status.on_trial) == (release, "active", False)
    assert status.camera["bundle"].startswith(release)


def refusal(bundle, device, **options):
    with pytest.raises(DeployError) as caught:
        deploy(bundle, device, **options)
    return caught.value


@pytest.fixture
def program(installed):
    """Return a function that replaces a program on the device for the duration of the test."""
    names = []

    def replace_program(name, script):
        names.append(name)
        installed.replace_program(name, script)

    yield replace_program
    for name in names:
        (installed.folder / "bin" / name).unlink()


def test_bundle_that_fails_its_golden_images_is_not_started(installed, make_bundle):
    error = refusal(make_bundle(verify="golden/0.png has other scores"), installed)
    assert "failed verification on the device: golden/0.png has other scores" in str(error)
    assert error.step == "verify"


def test_bundle_that_crashes_at_its_tenth_frame_is_rolled_back(installed, make_bundle):
    error = refusal(make_bundle(crash=10), installed)
    assert "the service crashed with exit code 1" in str(error)
    assert "was restored" in str(error)
    assert error.restored
    assert "error: the model of this bundle crashes" in error.log


def test_log_of_a_failed_trial_contains_no_lines_of_earlier_releases(installed, make_bundle):
    new = make_bundle(crash=11)
    error = refusal(new, installed)
    digest = hashlib.sha256((new / "manifest.json").read_bytes()).hexdigest()
    assert {line for line in error.log if "started" in line} == {f"camera started with {digest[:16]}"}


def test_log_of_a_failed_trial_ends_with_its_last_lines(installed, make_bundle):
    error = refusal(make_bundle(crash=100, print=True), installed, settle_s=30)
    assert len(error.log) == 30
    assert "error: the model of this bundle crashes" in error.log


def test_failed_releases_do_not_fill_the_disk(installed, make_bundle):
    for frame in (3, 4, 5):
        refusal(make_bundle(crash=frame), installed, keep=1)
    status = device_status(installed.device)
    assert set(status.releases) <= {status.release, status.previous}


def test_bundle_that_hangs_is_rolled_back(installed, make_bundle):
    error = refusal(make_bundle(hang=5), installed)
    assert "its watchdog restarted it" in str(error)
    assert any("edgerec.service: Watchdog timeout" in line for line in error.log)
    assert error.restored


def test_stopped_process_is_rolled_back_after_it_was_healthy(installed, make_bundle):
    error = refusal(make_bundle(hang=60), installed, settle_s=30)
    assert "its watchdog restarted it" in str(error)


def test_camera_without_frames_is_rolled_back_after_the_time_limit(installed, make_bundle):
    error = refusal(make_bundle(idle=True), installed, healthy_within_s=1)
    assert "only 0 frames were classified in 1 s (camera: no signal): check the camera" in str(error)


def test_failed_first_deployment_leaves_no_service(make_device, make_bundle):
    new = make_device()
    error = refusal(make_bundle(crash=10), new)
    assert not error.restored
    status = device_status(new.device)
    assert (status.release, status.service) == ("", "inactive")
    assert deploy(make_bundle(), new).changed


def test_wrong_architecture_is_refused(installed, program, make_bundle):
    program("uname", '[ "$1" = -m ] && echo riscv64 || /usr/bin/uname "$@"')
    error = refusal(make_bundle(number=2), installed)
    assert "its architecture is riscv64, but the bundle is for x86_64 or aarch64" in str(error)


def test_clock_that_is_not_set_is_refused(installed, program, make_bundle):
    program("date", "echo 12345")
    error = refusal(make_bundle(number=2), installed)
    assert "its clock is set to the year 1970; set the clock or start time synchronization" in str(error)


def test_device_without_a_camera_is_refused(installed, make_bundle):
    installed.run("mv /dev/video0 /dev/no-video")
    error = refusal(make_bundle(number=2), installed)
    installed.run("mv /dev/no-video /dev/video0")
    assert "it has no camera, but its configuration has sources" in str(error)


def test_old_python_is_refused(make_device, make_bundle):
    old = make_device(python="case $2 in *version_info*) echo 3.7 ;; *) exit 1 ;; esac")
    assert "it has Python 3.7, but the bundle needs 3.11 or 3.12" in str(refusal(make_bundle(), old))


def test_python_without_venv_is_refused(make_device, make_bundle):
    broken = make_device(python="case $2 in *version_info*) echo 3.11 ;; *) exit 1 ;; esac")
    assert "run sudo apt-get install python3-venv" in str(refusal(make_bundle(), broken))


def test_user_without_sudo_is_refused(make_device, make_bundle):
    pi = make_device(sudo=False)
    with pytest.raises(DeployError, match="root permissions are required, but pi cannot use sudo without a password"):
        deploy_bundle(make_bundle(), replace(pi.device, address="pi@test-device"), OPTIONS)


def test_remains_of_a_failed_installation_do_not_count_as_used_space(make_device, make_bundle):
    small = make_device(size="180m")
    small.run("mkdir -p /opt/edgerec/releases/partial && head -c 150M /dev/zero >/opt/edgerec/releases/partial/file")
    assert deploy(make_bundle(), small).changed


def test_device_with_too_little_space_is_refused_before_anything_is_sent(make_device, make_bundle):
    small = make_device(size="20m")
    error = refusal(make_bundle(), small)
    assert "MB are required in /opt/edgerec, but only" in str(error)
    assert small.run("ls /opt/edgerec/store") == ""


def test_disk_that_becomes_full_during_installation_keeps_the_release(installed, make_bundle):
    def fill_disk(step):
        if step.name == "plan" and step.state == "done":
            installed.run("head -c 2G /dev/zero >/opt/edgerec/large 2>/dev/null || true")

    try:
        error = refusal(make_bundle(number=20), installed, listener=fill_disk)
    finally:
        installed.run("rm /opt/edgerec/large")
    assert "the disk of the device is full" in str(error)


def test_second_deployment_at_the_same_time_is_refused(installed, make_bundle):
    started, finish = threading.Event(), threading.Event()
    results = []

    def wait(step):
        if step.name == "plan" and step.state == "done":
            started.set()
            assert finish.wait(60)

    thread = threading.Thread(
        target=lambda: results.append(refusal(make_bundle(crash=9), installed, listener=wait)), daemon=True
    )
    thread.start()
    assert started.wait(60)
    error = refusal(make_bundle(number=2), installed)
    finish.set()
    thread.join(60)
    assert "another deployment is in progress (started by " in str(error)
    assert "If its connection was lost during the transfer, the device ends it within 2 minutes" in str(error)
    assert "crashed" in str(results[0])


def test_interrupted_transfer_resumes(installed, make_bundle):
    large = make_bundle(number=2, padding=40_000_000)
    received = []

    def disconnect(step):
        if step.name == "send" and step.done > 0:
            received.append(step.done)
            installed.end_connections()

    error = refusal(large, installed, listener=disconnect)
    assert "was lost" in str(error)
    assert error.step == "send"
    result = deploy(large, installed)
    assert result.changed
    assert result.sent_bytes < 40_000_000 - received[0] + 1_000_000
    deploy(make_bundle(number=1), installed)


def test_damaged_content_of_an_interrupted_transfer_is_not_installed(installed, make_bundle):
    damaged = make_bundle(number=3)
    digest = hashlib.sha256((damaged / "manifest.json").read_bytes()).hexdigest()
    installed.run(f"echo damaged >/opt/edgerec/store/{digest}.part")
    assert "a file was damaged during the transfer" in str(refusal(damaged, installed))
    assert deploy(damaged, installed).changed
    deploy(make_bundle(number=1), installed)


def test_remains_of_interrupted_deployments_are_removed(installed, make_bundle):
    installed.run(
        "cd /opt/edgerec && mkdir -p releases/0123456789abcdef venvs/fedcba9876543210/bin && "
        "touch -d '8 days ago' store/$(printf %064d 0).part && touch store/$(printf %064d 1).part"
    )
    deploy(make_bundle(number=2), installed)
    assert "0123456789abcdef" not in installed.run("ls /opt/edgerec/releases")
    assert "fedcba9876543210" not in installed.run("ls /opt/edgerec/venvs")
    stored = installed.run("ls /opt/edgerec/store").split()
    assert f"{0:064}.part" not in stored  # Partial files are deleted after seven days.
    assert f"{1:064}.part" in stored
    deploy(make_bundle(number=1), installed)


def test_interrupted_trial_is_undone_by_the_next_deployment(installed, make_bundle):
    old = installed.run("readlink /opt/edgerec/current").strip()
    new = deploy(make_bundle(number=2), installed).release
    boot_id = installed.run("cat /proc/sys/kernel/random/boot_id").strip()
    trial = {"release": new, "previous": old.removeprefix("releases/"), "boot_id": boot_id, "old_config": False}
    installed.run(f"echo '{json.dumps(trial)}' >/opt/edgerec/trial.json")
    refusal(make_bundle(crash=4), installed)
    assert installed.run("readlink /opt/edgerec/current").strip() == old


def test_service_of_install_sh_is_not_overwritten(make_device, make_bundle):
    other = make_device()
    other.run("echo '[Service]' >/etc/systemd/system/edgerec.service")
    assert "remove it first with sudo sh install.sh --undo" in str(refusal(make_bundle(), other))


def test_service_of_a_deployment_with_another_prefix_is_not_overwritten(installed, make_bundle):
    with pytest.raises(DeployError, match="camera service is already installed in /opt/edgerec; use --prefix"):
        deploy_bundle(make_bundle(number=2), replace(installed.device, prefix="/opt/other"), OPTIONS)


def test_deployment_continues_after_the_connection_is_lost_during_the_trial(installed, make_bundle):
    lost = []

    def disconnect(step):
        if step.name == "switch" and step.state == "done" and not lost:
            lost.append(step)
            installed.end_connections()

    result = deploy(make_bundle(number=2), installed, listener=disconnect)
    assert lost
    assert result.changed
    deploy(make_bundle(number=1), installed)


def test_deployment_continues_although_several_attempts_to_reconnect_fail(installed, make_bundle):
    """Disconnect a device whose SSH server is unreachable for some time, e.g. because the device restarts."""
    config, unreachable = installed.ssh_config, installed.folder / "unreachable"
    unreachable.write_text(re.sub(r"(Port) \d+", r"\1 1", config.read_text()))
    reachable = installed.folder / "reachable"
    shutil.copyfile(config, reachable)
    timers = []

    def disconnect(step):
        if step.name == "switch" and step.state == "done" and not timers:
            shutil.copyfile(unreachable, config)
            timers.append(threading.Timer(6, shutil.copyfile, (reachable, config)))
            timers[0].start()
            installed.end_connections()

    result = deploy(make_bundle(number=2), installed, listener=disconnect)
    timers[0].join()
    assert result.changed
    deploy(make_bundle(number=1), installed)


def test_restart_of_the_device_during_the_trial_restores_the_previous_release(installed, make_bundle):
    old = installed.run("readlink /opt/edgerec/current").strip()
    new = deploy(make_bundle(number=2), installed).release
    trial = {"release": new, "previous": old.removeprefix("releases/"), "boot_id": "another boot", "old_config": False}
    installed.run(f"echo '{json.dumps(trial)}' >/opt/edgerec/trial.json && systemctl restart edgerec")
    # The log of a job starts with the boot ID of the device.
    boot_id = installed.run("cat /proc/sys/kernel/random/boot_id").strip()
    assert json.loads(installed.run("head -n 1 /opt/edgerec/deploy.log"))["boot_id"] == boot_id
    assert installed.run("readlink /opt/edgerec/current").strip() == old
    assert installed.run("ls /opt/edgerec/trial.json 2>/dev/null || echo none").strip() == "none"
    deploy(make_bundle(number=1), installed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"address": "root@nowhere.invalid", "ssh_config": None}, "the host name nowhere.invalid is unknown"),
        ({"address": "root@127.0.0.1", "port": 1, "ssh_config": None}, "connection refused"),
        ({"address": "-oProxyCommand=touch"}, "is not the address of a device"),
        ({"prefix": "/opt/$(touch x)"}, "is invalid: use an absolute path"),
    ],
)
def test_unusable_address_is_reported(device, make_bundle, change, message):
    with pytest.raises(DeployError, match=message):
        deploy_bundle(make_bundle(), replace(device.device, **change), OPTIONS)


def test_unknown_host_key_is_reported(make_device, make_bundle):
    new = make_device()
    (new.folder / "known_hosts").write_text("")
    assert "its host key is unknown; run ssh root@test-device once" in str(refusal(make_bundle(), new))


def test_changed_host_key_is_reported(make_device, make_bundle):
    new = make_device()
    key = (new.folder / "key.pub").read_text()
    host = (new.folder / "known_hosts").read_text().split()[0]
    (new.folder / "known_hosts").write_text(f"{host} {key}")
    assert "its host key differs from the known one" in str(refusal(make_bundle(), new))


def test_denied_key_is_reported(make_device, make_bundle):
    new = make_device()
    (new.folder / "authorized_keys").write_text("")
    assert "permission denied; copy your public key" in str(refusal(make_bundle(), new))


def test_device_that_does_not_respond_is_reported(device):
    silent = Device("root@192.0.2.1", connect_timeout_s=1)
    with pytest.raises(DeployError, match=r"cannot connect to root@192\.0\.2\.1"):
        device_status(silent)
