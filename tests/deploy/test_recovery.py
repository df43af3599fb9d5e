"""Tests of deployments after interruptions, with damaged releases, and during other deployments."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import shutil
import signal
import stat
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest

from edgerec import Bundle, DeployOptions, deploy_bundle, device_status, remove, sign_bundle
from edgerec.deploy.agent import boot_check, jobs, monitor, service, store
from edgerec.deploy.agent.boot_check import check_boot
from edgerec.deploy.agent.cleanup import delete_incomplete, prune
from edgerec.deploy.agent.errors import AgentError
from edgerec.deploy.agent.files import read_bytes, read_json, write_file, write_json
from edgerec.deploy.agent.installation import Installation
from edgerec.deploy.agent.locking import acquire_lock, lock_session
from edgerec.deploy.agent.processes import Finished
from edgerec.deploy.agent.releases import discard, install
from edgerec.deploy.agent.service import UNIT
from edgerec.deploy.agent.session import remove_agent
from edgerec.deploy.agent.trial import accept, finish_commit, point_to, switch, undo_switch
from edgerec.errors import DeployError

OPTIONS = DeployOptions(settle_s=0)


def deploy(bundle, device, **options):
    return deploy_bundle(bundle, device.device, replace(OPTIONS, **options))


def test_no_session_can_lock_the_device_before_a_started_job(make_device, make_bundle):
    device = make_device()
    deploy(make_bundle(number=1), device)
    device.replace_program(
        "systemd-run",
        ": >/run/started; while [ ! -e /run/continue ]; do sleep 0.1; done\n"
        'job() { shift 4; setsid "$@" & }; job "$@" </dev/null >/dev/null 2>&1',
    )
    results = []
    thread = threading.Thread(target=lambda: results.append(deploy(make_bundle(number=2), device)), daemon=True)
    thread.start()
    device.run("while [ ! -e /run/started ]; do sleep 0.1; done")
    with pytest.raises(DeployError, match="another deployment is in progress"):
        deploy(make_bundle(number=3), device)
    device.run(": >/run/continue")
    thread.join(60)
    assert results[0].changed
    assert device_status(device.device).release == results[0].release


def test_damaged_release_is_installed_again(make_device, make_bundle):
    device = make_device()
    first = deploy(make_bundle(number=1), device).release
    deploy(make_bundle(number=2), device)
    file = f"/opt/edgerec/releases/{first}/bundle/behavior.json"
    damaged = json.dumps({"verify": "model.tflite is damaged", "crash": 1})
    device.run(f"rm {file}; echo '{damaged}' >{file}")
    with pytest.raises(DeployError, match=r"model\.tflite is damaged"):
        deploy(make_bundle(number=1), device)
    assert deploy(make_bundle(number=1), device).release == first


def test_damaged_virtual_environment_is_created_again(make_device, make_bundle):
    device = make_device()
    deploy(make_bundle(number=1), device)
    device.run(
        "rm /opt/edgerec/current; cd /opt/edgerec/venvs/*/lib/python*/site-packages; "
        "echo 'raise ImportError(\"damaged package\")' >small_edgerec.py"
    )
    with pytest.raises(DeployError, match="damaged package"):
        deploy(make_bundle(number=1), device)
    assert deploy(make_bundle(number=1), device).changed


@pytest.fixture
def installation(tmp_path):
    """Return an installation with two complete releases, each with its own virtual environment."""
    installation = Installation(str(tmp_path / "opt"), str(tmp_path / "etc"), str(tmp_path / "units"))
    installation.create_folders()
    for number, release in enumerate(("1" * 16, "2" * 16)):
        folder = tmp_path / "opt" / "releases" / release
        folder.mkdir()
        (folder / "release.json").write_text(json.dumps({"venv": release, "installed_s": number}))
        venv = tmp_path / "opt" / "venvs" / release
        venv.mkdir()
        (venv / ".complete").touch()
    point_to(installation, "2" * 16)
    return installation


@pytest.mark.parametrize(
    ("current", "other_user", "kept"), [("", False, False), ("", True, True), ("1" * 16, False, True)]
)
def test_virtual_environment_of_a_release_that_fails_its_verification_is_deleted_unless_it_is_used(
    installation, tmp_path, current, other_user, kept
):
    venv = tmp_path / "opt" / "venvs" / ("1" * 16)
    release = tmp_path / "opt" / "releases" / ("1" * 16)
    (release / "venv").symlink_to(venv)
    if other_user:
        write_json(str(release.with_name("2" * 16) / "release.json"), {"venv": venv.name, "installed_s": 1})
    point_to(installation, current)
    discard(installation, {"release": release.name, "files": {}, "venv": venv.name})
    assert (venv / ".complete").exists() == kept
    assert (release.parent.parent / "venvs" / ("2" * 16) / ".complete").exists()


def interrupted(*arguments, **options):
    raise KeyboardInterrupt


@contextlib.contextmanager
def power_failure(monkeypatch, number):
    """Interrupt the code in the context after it has synchronized a folder with the disk ``number + 1`` times."""
    calls, fsync = itertools.count(), os.fsync

    def fsync_and_fail(descriptor):
        fsync(descriptor)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) and next(calls) == number:
            interrupted()

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(os, "fsync", fsync_and_fail)
        yield


def test_release_is_not_complete_after_its_removal_was_interrupted(installation, monkeypatch, tmp_path):
    log = SimpleNamespace(step=lambda *arguments: None)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            jobs.remove(installation, {}, log)
    assert installation.complete_releases() == []
    installation.create_folders()
    delete_incomplete(installation)
    assert sorted(path.name for path in (tmp_path / "opt").iterdir()) == ["releases", "store", "venvs"]


def test_agent_is_not_removed_during_another_deployment(installation):
    write_file(installation.agent_file, b"")
    shutil.rmtree(installation.releases)
    point_to(installation, "")
    with acquire_lock(installation, "another host", 0):
        assert not remove_agent(installation, "host")
        assert os.path.exists(installation.agent_file)
    assert remove_agent(installation, "host")
    assert sorted(os.listdir(installation.prefix)) == ["store", "venvs"]


@pytest.mark.parametrize(
    "name", ["agent_file", "new_signers_file", "job_file", "state_file", "trial_file", "current_link"]
)
def test_incomplete_file_is_removed_with_the_agent(installation, monkeypatch, name):
    shutil.rmtree(installation.prefix)
    os.mkdir(installation.prefix)
    is_link = name == "current_link"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            point_to(installation, "1" * 16) if is_link else write_file(getattr(installation, name), b"content")
    assert os.listdir(installation.prefix)
    assert remove_agent(installation, "host")
    assert not os.path.exists(installation.prefix)


def test_lock_of_a_removed_installation_does_not_admit_two_deployments(installation):
    holder = acquire_lock(installation, "first", 0)
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(acquire_lock, installation, "second", 60)
        shutil.rmtree(installation.prefix)
        holder.close()
        with waiting.result(), pytest.raises(AgentError, match=r"started by second at"):
            acquire_lock(installation, "third", 0)


def test_virtual_environment_is_not_complete_after_its_removal_was_interrupted(installation, monkeypatch, tmp_path):
    prune(installation, 1)
    venv = tmp_path / "opt" / "venvs" / "unused"
    venv.mkdir()
    (venv / ".complete").touch()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prune(installation, 1)
    assert not (venv / ".complete").exists()
    delete_incomplete(installation)
    assert [path.name for path in venv.parent.iterdir()] == ["2" * 16]


@pytest.mark.parametrize("interruption", range(6))
def test_release_is_kept_only_together_with_its_serial_number(installation, monkeypatch, interruption):
    old, new = "1" * 16, "2" * 16
    trial = {"release": new, "previous": old, "boot_id": "another boot"}
    write_json(installation.trial_file, trial)
    job = {"require_signature": True, "signers": "keys"}
    with power_failure(monkeypatch, interruption):
        accept(installation, new, old, 7, job)
        finish_commit(installation)
    check_boot(installation)
    state = installation.state()
    assert (installation.current(), state.get("serial"), state.get("require_signature")) == (new, 7, True)
    assert read_bytes(installation.signers_file) == b"keys"
    assert not os.path.exists(installation.trial_file)


def test_release_is_not_kept_if_the_power_fails_before_it_is_accepted(installation, monkeypatch):
    old, new = "1" * 16, "2" * 16
    write_json(installation.trial_file, {"release": new, "previous": old, "boot_id": "another boot"})
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            accept(installation, new, old, 7, {"require_signature": True})
    check_boot(installation)
    assert (installation.current(), installation.state()) == (old, {})


@pytest.mark.parametrize("interruption", range(10))
def test_failed_trial_of_the_current_release_restores_its_unit(installation, monkeypatch, interruption):
    release = "2" * 16
    os.mkdir(installation.unit_folder)
    for path in (installation.unit_file, installation.release_path(release, UNIT)):
        write_file(path, b"old")

    for module in (service, boot_check):
        monkeypatch.setattr(module, "run", lambda *arguments: Finished(0, "", ""))
    with power_failure(monkeypatch, interruption):
        switch(installation, {"release": release, "unit": "new", "config": None})
        assert read_bytes(installation.unit_file) == b"new"
        undo_switch(installation, read_json(installation.trial_file))
    monkeypatch.setattr(boot_check, "boot_id", lambda: "after the power failure")
    check_boot(installation)
    assert read_bytes(installation.unit_file) == b"old"
    assert read_bytes(installation.release_path(release, UNIT)) == b"old"
    assert not os.path.exists(installation.trial_file)


def test_damaged_file_in_the_store_is_sent_again_after_a_failed_verification(installation, monkeypatch):
    release, content = "2" * 16, b"content"
    digest = hashlib.sha256(content).hexdigest()
    write_file(installation.store_path(digest), b"damaged")

    def fail(*arguments):
        raise AgentError("verification failed")

    monkeypatch.setattr(jobs, "verify", fail)
    job = {"release": release, "files": {"model.tflite": digest}, "wheels": {}, "require_signature": None}
    with pytest.raises(AgentError):
        jobs.deploy(installation, {**job, "venv": release}, SimpleNamespace(step=lambda *arguments: None))
    assert store.missing_files(installation, {digest: len(content)}) == {digest: 0}


def test_virtual_environment_of_the_current_release_is_kept_although_its_verification_failed(installation):
    current = "2" * 16
    os.symlink(f"../../venvs/{current}", installation.release_path(current, "venv"))
    discard(installation, {"release": current, "files": {}, "venv": current})
    prune(installation, 1)
    assert os.path.exists(installation.release_path(current, "venv", ".complete"))


@pytest.mark.parametrize("on_trial", [False, True])
def test_remains_of_a_failed_installation_are_removed_before_the_space_is_checked(installation, on_trial):
    remains = os.path.join(installation.venvs, "incomplete", "lib")
    os.makedirs(remains)
    write_file(installation.old_config_file, b"old")
    if on_trial:  # The old configuration is still required to undo the trial.
        write_json(installation.trial_file, {"release": "2" * 16})
    locks = lock_session(installation, "host")
    assert os.path.exists(remains) == os.path.exists(installation.old_config_file) == on_trial
    assert len(installation.complete_releases()) == 2
    for lock in locks:
        lock.close()


def test_session_does_not_time_out_while_it_checks_a_received_file(installation, monkeypatch):
    content = b"content"
    remaining_s = []
    file_digest = store.file_digest

    def slow_digest(path):
        remaining_s.append(signal.getitimer(signal.ITIMER_REAL)[0])
        return file_digest(path)

    monkeypatch.setattr(store, "file_digest", slow_digest)
    digest = hashlib.sha256(content).hexdigest()
    try:
        store.receive_file(installation, digest, len(content), 0, io.BytesIO(content).read, print)
    finally:
        signal.alarm(0)
    assert remaining_s == [0]
    assert read_bytes(installation.store_path(digest)) == content


def test_interrupted_repair_of_the_current_release_keeps_its_files(installation, monkeypatch):
    release, log = "2" * 16, SimpleNamespace(step=lambda *arguments: None)
    contents = {"labels.txt": b"labels", "folder/model.tflite": b"model"}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    for name, content in contents.items():
        write_file(installation.store_path(digests[name]), content)
    os.makedirs(installation.release_path(release, "bundle"))
    labels = installation.release_path(release, "bundle", "labels.txt")
    os.link(installation.store_path(digests["labels.txt"]), labels)
    os.symlink(f"../../venvs/{release}", installation.release_path(release, "venv"))
    write_file(installation.release_path(release, UNIT), b"old")
    os.unlink(installation.release_path(release, "release.json"))
    job = {"release": release, "venv": release, "files": digests, "wheels": {}, "unit": "new"}
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", interrupted)
        with pytest.raises(KeyboardInterrupt):
            install(installation, job, log)
    assert read_bytes(labels) == b"labels"
    assert os.path.exists(installation.release_path(release, "venv", ".complete"))
    install(installation, job, log)
    for name, content in contents.items():
        assert read_bytes(installation.release_path(release, "bundle", name)) == content
    assert sorted(os.listdir(installation.release_path(release))) == ["bundle", UNIT, "venv"]
    assert read_bytes(installation.release_path(release, UNIT)) == b"old"


def test_failed_first_deployment_leaves_no_configuration(make_device, make_bundle, tmp_path):
    device = make_device()
    config = tmp_path / "camera.toml"
    config.write_text('sources = ["video.avi"]\noutput = "none"\n')
    with pytest.raises(DeployError):
        deploy(make_bundle(crash=3), device, config=config)
    assert "camera.toml" not in device.run("ls /etc/edgerec")


def test_restored_configuration_has_its_permissions(make_device, make_bundle, tmp_path):
    device = make_device()
    config = tmp_path / "camera.toml"
    config.write_text('sources = ["video.avi"]\noutput = "none"\n')
    deploy(make_bundle(number=1), device)
    device.run("chmod 600 /etc/edgerec/camera.toml")
    with pytest.raises(DeployError):
        deploy(make_bundle(crash=3), device, config=config)
    assert device.run("stat -c %a /etc/edgerec/camera.toml").strip() == "600"
    assert "auto" in device.run("cat /etc/edgerec/camera.toml")
    assert "previous" not in device.run("ls /etc/edgerec")


def test_camera_starts_although_the_agent_is_damaged(make_device, make_bundle):
    device = make_device()
    release = deploy(make_bundle(number=1), device).release
    device.run("echo 'raise SystemExit(1)' >/opt/edgerec/agent.pyz && systemctl restart edgerec")
    device.run("until systemctl is-active edgerec; do sleep 0.1; done")
    assert device_status(device.device).release == release


def test_previous_release_starts_with_its_own_unit_after_a_restart(make_device, make_bundle):
    device = make_device()
    old = deploy(make_bundle(number=1), device).release
    new = deploy(make_bundle(number=2), device).release
    trial = json.dumps({"release": new, "previous": old, "boot_id": "another boot"})
    unit = "/etc/systemd/system/edgerec.service"
    device.run(f"echo '{trial}' >/opt/edgerec/trial.json && sed -i 's/--status-file/--unknown/' {unit}")
    device.run("systemctl daemon-reload && systemctl restart edgerec")
    device.run(f"while [ -e /opt/edgerec/trial.json ]; do sleep 0.1; done; ! grep unknown {unit}")
    device.run("while ! pgrep -f -- '[c]amera.*--status-file' || pgrep -f -- '[c]amera.*--unknown'; do sleep 0.1; done")
    assert device_status(device.device).release == old


def test_old_process_that_restarts_before_the_update_is_not_mistaken_for_the_new_one(monkeypatch):
    units = [
        {"InvocationID": "restarted", "ActiveState": "deactivating", "SubState": "stop-sigterm", "MainPID": "1"},
        {"InvocationID": "new", "ActiveState": "active", "SubState": "running", "MainPID": "2"},
    ]
    frames = itertools.count(10)
    monkeypatch.setattr(monitor, "POLL_S", 0)
    monkeypatch.setattr(monitor, "unit_state", lambda: units.pop(0) if len(units) > 1 else units[0])
    monkeypatch.setattr(monitor, "read_json", lambda path: {"pid": 2, "bundle": "1" * 64, "frames": next(frames)})
    log = SimpleNamespace(step=lambda *arguments: None)
    assert monitor.monitor("1" * 16, "old", 60, 0, log) > 10


def test_release_that_was_installed_without_its_signature_is_accepted_with_it(make_device, make_bundle, tmp_path):
    device = make_device()
    key, bundle, unsigned = tmp_path / "key", tmp_path / "bundle", tmp_path / "unsigned"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    signers = tmp_path / "allowed_signers"
    signers.write_text(f"release@example.com {key.with_suffix('.pub').read_text()}")
    Bundle.open(make_bundle(number=1)).copy(bundle)
    sign_bundle(bundle, key)
    Bundle.open(bundle).copy(unsigned)
    (unsigned / "manifest.json.sig").unlink()
    deploy(unsigned, device)
    assert deploy(bundle, device, allowed_signers=signers, require_signature=True).changed


def test_deployment_after_an_interrupted_removal_succeeds(make_device, make_bundle):
    device = make_device()
    deploy(make_bundle(number=1), device)
    remove(device.device, OPTIONS)
    device.run("mkdir -p /opt/edgerec/releases.removed/x /opt/edgerec/venvs.removed/y")
    assert deploy(make_bundle(number=1), device).changed
    assert ".removed" not in device.run("ls /opt/edgerec")


def test_camera_that_skips_frames_without_motion_is_healthy(make_device, make_bundle):
    assert deploy(make_bundle(motion=True), make_device()).changed


def test_commands_in_the_unit_of_a_bundle_are_not_run(make_device, make_bundle, tmp_path):
    bundle = Bundle.open(make_bundle(number=1))
    unit = bundle.files["edgerec.service"].replace(b"[Service]\n", b"[Service]\nExecStartPost=+/bin/touch /root/x\n")
    Bundle.write(tmp_path / "bundle", bundle.manifest, {**bundle.files, "edgerec.service": unit})
    device = make_device()
    deploy(tmp_path / "bundle", device)
    assert "ExecStartPost" not in device.run("cat /etc/systemd/system/edgerec.service")
