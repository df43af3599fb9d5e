"""Tests of the arguments of ``edgerec deploy`` for several devices."""

from __future__ import annotations

import re

import pytest

from tests.network import free_port


@pytest.fixture
def fleet_folder(tmp_path, monkeypatch):
    """Change to a folder with a devices.toml file that lists unreachable devices, and return the folder."""
    monkeypatch.chdir(tmp_path)
    ports = free_port(), free_port()
    (tmp_path / "devices.toml").write_text(
        "".join(
            f"[[device]]\nname = '{name}'\nhost = 'root@127.0.0.1'\nport = {port}\ntags = ['{tag}']\n"
            for name, tag, port in zip(("door", "gate"), ("a", "b"), ports, strict=True)
        )
    )
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rollback", "runs/bundle", "door"], "'runs/bundle' is a bundle: specify a name in devices.toml or"),
        (["--remove", "bundle.zip"], "'bundle.zip' is a bundle: specify a name in devices.toml or"),
        ([], "BUNDLE DEVICE is missing: specify an address such as pi@door or a name in devices.toml, or select"),
        (["bundle"], "the device after 'bundle' is missing: specify an address such as pi@door or a name in"),
        (["--rollback"], "DEVICE is missing: specify an address such as pi@door or a name in devices.toml, or select"),
        (["bundle", "door", "door"], "the device 'door' is specified twice: specify each device once"),
        (["bundle", "--all", "--tag", "a"], "--all cannot be combined with --tag"),
        (["--rollback", "--remove", "--all"], "--rollback cannot be combined with --remove"),
    ],
)
def test_invalid_arguments_are_usage_errors(invoke, fleet_folder, words, message):
    result = invoke("deploy", *words)
    assert result.returncode == 2
    assert message in re.sub(r"\W*\n\W*", " ", result.stderr)


@pytest.mark.parametrize("address", ["door", "root@door.zip"])
def test_device_with_the_same_name_as_a_bundle_is_used(invoke, fleet_folder, address):
    (fleet_folder / "door").mkdir()
    (fleet_folder / "door" / "manifest.json").touch()
    result = invoke("deploy", "--rollback", address)
    assert result.returncode == 1
    assert "cannot connect to" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bundle", "--tag", "c"], "unknown tag 'c' (choices: a, b)"),
        (["bundle", "dor", "--devices", "devices.toml"], "unknown device 'dor'; did you mean 'door'?"),
        (["bundle", "--all", "--devices", "other.toml"], "other.toml does not exist"),
        (["--all"], "there is no bundle for door: specify BUNDLE"),
    ],
)
def test_errors_in_the_selection_are_reported_in_one_line(invoke, fleet_folder, words, message):
    result = invoke("deploy", *words)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--all"], ["door", "gate"]),
        (["--tag", "b"], ["gate"]),
        (["gate", "door"], ["door", "gate"]),
        (["gate", "root@127.0.0.1"], ["gate", "root@127.0.0.1"]),
    ],
)
def test_selected_devices_are_rows_of_the_table(invoke, fleet_folder, bundle, words, names):
    result = invoke("deploy", bundle, *words)
    assert result.returncode == 1
    assert [line.split()[0] for line in result.stdout.splitlines()[1 : len(names) + 1]] == names
    assert result.stdout.splitlines()[-1] == f"done     0 of {len(names)} devices succeeded"


@pytest.mark.parametrize("words", [["dor"], ["dor", "gate"], ["dor", "--json"], ["dor", "gate", "--json"]])
def test_misspelled_name_is_corrected_if_the_device_cannot_be_reached(invoke, fleet_folder, bundle, words):
    for operation in (["--rollback"], [bundle]):
        result = invoke("deploy", *operation, *words)
        assert result.returncode == 1
        assert "; did you mean 'door' in devices.toml?" in result.stdout + result.stderr


def test_address_that_is_similar_to_no_name_gets_no_hint(invoke, fleet_folder, bundle):
    result = invoke("deploy", bundle, "kitchen.invalid")
    assert result.returncode == 1
    assert "cannot connect to kitchen.invalid" in result.stderr
    assert "did you mean" not in result.stderr


def test_a_single_device_can_be_specified_by_its_name(invoke, fleet_folder, bundle):
    result = invoke("deploy", bundle, "gate")
    assert result.returncode == 1
    assert "cannot connect to gate: connection refused" in result.stderr
