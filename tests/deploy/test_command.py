"""Tests of the output, JSON results and errors of ``edgerec deploy`` for one device."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace

import pytest

from edgerec import Bundle
from tests.cli.test_terminal import terminal
from tests.conftest import error_line

ROLLBACK_PROGRAM = """
import subprocess, sys
subprocess.run([sys.executable, "-m", "edgerec", "deploy", "--rollback", "root@test-device"])
"""


@pytest.fixture
def deploy(edgerec, device):
    """Return a function that runs ``edgerec deploy`` with the test device's SSH configuration."""
    return lambda *arguments: edgerec("deploy", *arguments, "--ssh-config", device.ssh_config, timeout=300)


@pytest.mark.nightly
def test_command_deploys_rolls_back_and_removes(deploy, make_bundle):
    done = deploy(make_bundle(number=1), "root@test-device")
    assert done.returncode == 0, done.stderr
    steps = [line.split()[0] for line in done.stdout.splitlines()]
    assert steps == ["connect", "check", "plan", "send", "install", "verify", "switch", "monitor", "prune", "done"]
    first = json.loads(deploy(make_bundle(number=1), "root@test-device", "--json").stdout)
    assert (first["device"], first["changed"]) == ("root@test-device", False)
    assert deploy(make_bundle(number=2), "root@test-device").returncode == 0
    back = json.loads(deploy("--rollback", "root@test-device", "--json").stdout)
    assert back["release"] == first["release"]
    assert (
        deploy("--remove", "root@test-device").stdout.splitlines()[-1] == "removed  all releases from root@test-device"
    )


def test_failed_deployment_prints_the_log_of_the_service_and_one_error_line(deploy, make_bundle):
    failed = deploy(make_bundle(crash=10), "root@test-device")
    assert failed.returncode == 1
    *log, error = failed.stderr.splitlines()
    assert "root@test-device: error: the model of this bundle crashes" in log
    outcome = "the service was stopped, because the service crashed with exit code 1"
    assert error.startswith(f"error: root@test-device: {outcome}")


def test_failed_deployment_with_json_prints_the_step_and_the_log(deploy, make_bundle):
    failed = deploy(make_bundle(verify="scores differ"), "root@test-device", "--json")
    assert failed.returncode == 1
    result = json.loads(failed.stdout)
    assert result["step"] == "verify"
    assert "scores differ" in result["reason"]


def test_dry_run_prints_the_planned_steps(deploy, make_bundle):
    done = deploy(make_bundle(number=1), "root@test-device", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "no changes were made (--dry-run)" in done.stdout
    assert "install release" in done.stdout


def test_bundle_without_a_service_is_refused(deploy, make_bundle, tmp_path):

    bundle = Bundle.open(make_bundle(number=1))
    files = {name: content for name, content in bundle.files.items() if name != "edgerec.service"}
    Bundle.write(tmp_path / "other", replace(bundle.manifest, files={}), files)
    error = error_line(deploy(tmp_path / "other", "root@test-device"))
    assert "which has no service; export it again with --target" in error


def test_missing_allowed_signers_are_reported_before_connecting(edgerec, make_bundle, tmp_path):
    missing, no_ssh = tmp_path / "missing", tmp_path / "config"
    no_ssh.write_text("Host *\n    ProxyCommand false\n")
    options = ("--ssh-config", no_ssh, "--allowed-signers", missing)
    error = error_line(edgerec("deploy", make_bundle(number=1), "root@unreachable", *options))
    assert error == f"error: {missing} cannot be read (No such file or directory): check the path"


@pytest.mark.skipif(sys.platform != "linux", reason="the stand-in for ssh finds the terminal in /proc")
def test_progress_bar_does_not_erase_a_question_of_ssh(tmp_path, monkeypatch):
    ssh = tmp_path / "ssh"
    ssh.write_text(
        "#!/bin/sh\nexec 3>/proc/$PPID/fd/2\nprintf 'Enter passphrase: ' >&3\nsleep 0.5\necho '(the user types)' >&3\n"
        "exit 255\n"
    )
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "Enter passphrase: (the user types)" in terminal(100, "-c", ROLLBACK_PROGRAM)
