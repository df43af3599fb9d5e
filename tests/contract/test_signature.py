"""Tests of signing bundles and checking their signatures."""

from __future__ import annotations

import errno
import json
import os
import pty
import shutil
import subprocess
import sys
import time
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import pytest

from edgerec import (
    Bundle,
    Camera,
    CameraConfig,
    ClassificationServer,
    Classifier,
    ServeConfig,
    benchmark,
    export_bundle,
    predict,
    run_camera,
    sign_bundle,
    verify,
    verify_emulated,
)
from edgerec.contract.manifest import Manifest
from edgerec.contract.signature import RefusedSignatureError, check_signature, refuse_downgrade, signed_header
from edgerec.contract.signing import create_signature
from edgerec.errors import BundleError, ConfigError, SignatureError
from tests.conftest import error_line

SIGNATURE = "manifest.json.sig"


def ssh_keygen(*arguments: object) -> None:
    subprocess.run(["ssh-keygen", "-q", *map(str, arguments)], check=True, capture_output=True)


def public_key(key: Path) -> str:
    return " ".join(key.with_name(f"{key.name}.pub").read_text().split()[:2])


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """Return a folder with three keys, and a file of allowed signers that contains alice's key."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("alice", "mallory", "authority"):
        ssh_keygen("-t", "ed25519", "-N", "", "-f", folder / name)
    (folder / "allowed").write_text(f"alice@example.com {public_key(folder / 'alice')}\n")
    return folder


@pytest.fixture(scope="session")
def signed_bundle(bundle, keys, tmp_path_factory):
    path = tmp_path_factory.mktemp("signed") / "signed"
    shutil.copytree(bundle, path)
    sign_bundle(path, keys / "alice", serial=7)
    return path


@pytest.fixture
def signed(signed_bundle, tmp_path):
    """Return a copy of a bundle that alice has signed."""
    path = tmp_path / "signed"
    shutil.copytree(signed_bundle, path)
    return path


def allow(folder: Path, line: str) -> Path:
    path = folder / "signers"
    path.write_text(f"{line}\n")
    return path


def problem_of(path, allowed, **options) -> str:
    with pytest.raises(SignatureError) as caught:
        Bundle.open(path, allowed_signers=allowed, **options)
    message = str(caught.value)
    assert message.isprintable()
    return caught.value.problem


@contextmanager
def agent(key: Path, passphrase: str, folder: Path):
    """Run ssh-agent with an encrypted key, and yield the agent's environment variables."""
    socket, askpass = folder / "agent.sock", folder / "askpass"
    askpass.write_text(f"#!/bin/sh\necho {passphrase}\n")
    askpass.chmod(0o700)
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL)
    try:
        for _ in range(1000):
            if socket.exists():
                break
            time.sleep(0.01)
        variables = {"SSH_AUTH_SOCK": str(socket)}
        loading = {**os.environ, **variables, "SSH_ASKPASS": str(askpass), "SSH_ASKPASS_REQUIRE": "force"}
        subprocess.run(["ssh-add", str(key)], check=True, capture_output=True, env=loading, stdin=subprocess.DEVNULL)
        yield variables
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_signed_bundle_is_accepted(bundle, keys, tmp_path, suffix):
    path = tmp_path / f"copy{suffix}"
    Bundle.open(bundle).copy(path)
    before = int(time.time())
    report = sign_bundle(path, keys / "alice")
    opened = Bundle.open(path, allowed_signers=keys / "allowed")
    assert opened.signer.principal == "alice@example.com"
    assert opened.signer.key_type == "ED25519"
    assert opened.signer.fingerprint == report.fingerprint
    assert before <= opened.signer.serial == opened.signer.signed_s == opened.manifest.serial <= time.time()
    assert opened.added() == []
    assert opened.manifest.files == Bundle.open(bundle).manifest.files
    assert verify(path, allowed_signers=keys / "allowed").signer == opened.signer


@pytest.mark.parametrize("key_type", ["rsa", "ecdsa"])
def test_other_key_types_are_supported(signed, tmp_path, key_type):
    ssh_keygen("-t", key_type, "-N", "", "-f", tmp_path / "key")
    sign_bundle(signed, tmp_path / "key", overwrite=True)
    allowed = allow(tmp_path, f"key@example.com {public_key(tmp_path / 'key')}")
    assert Bundle.open(signed, allowed_signers=allowed).signer.key_type == key_type.upper()


def test_key_in_an_agent_signs_without_its_file(signed, tmp_path, monkeypatch):
    """Only the public key file is needed, because the agent has the decrypted private key."""
    ssh_keygen("-t", "ed25519", "-N", "a passphrase", "-f", tmp_path / "key")
    with agent(tmp_path / "key", "'a passphrase'", tmp_path) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        (tmp_path / "key").unlink()
        sign_bundle(signed, tmp_path / "key.pub", overwrite=True)
    allowed = allow(tmp_path, f"key@example.com {public_key(tmp_path / 'key')}")
    assert Bundle.open(signed, allowed_signers=allowed).signer


def test_passphrase_is_asked_for_on_the_terminal(signed, keys, tmp_path):
    ssh_keygen("-t", "ed25519", "-N", "a passphrase", "-f", tmp_path / "key")
    command = ["edgerec", "sign", str(signed), "--key", str(tmp_path / "key"), "--overwrite"]
    environment = {**os.environ, "SSH_AUTH_SOCK": "", "SSH_ASKPASS": "/bin/false", "DISPLAY": ":99"}
    process, terminal = pty.fork()
    if process == 0:
        os.execve(sys.executable, [sys.executable, "-m", *command], environment)
    output = b""
    with suppress(OSError):  # Reading the terminal fails after the program has exited.
        while data := os.read(terminal, 4096):
            if b"Enter passphrase" in output + data and b"Enter passphrase" not in output:
                os.write(terminal, b"a passphrase\n")
            output += data
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0, output
    assert output.count(b"Enter passphrase") == 1
    assert b"a passphrase" not in output
    allowed = allow(tmp_path, f"key@example.com {public_key(tmp_path / 'key')}")
    assert Bundle.open(signed, allowed_signers=allowed).signer


def test_encrypted_key_without_terminal_and_agent_is_refused(signed, tmp_path, monkeypatch):
    ssh_keygen("-t", "ed25519", "-N", "a passphrase", "-f", tmp_path / "key")
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "none"))
    monkeypatch.setenv("SSH_ASKPASS", "/bin/false")
    content = (signed / "manifest.json").read_bytes()
    with pytest.raises(SignatureError, match="passphrase is missing or wrong; add the key to ssh-agent"):
        sign_bundle(signed, tmp_path / "key", overwrite=True)
    assert (signed / "manifest.json").read_bytes() == content


def test_keys_that_cannot_sign_are_refused(signed, keys, tmp_path):
    shutil.copy(keys / "alice", tmp_path / "readable")
    shutil.copy(keys / "alice.pub", tmp_path / "readable.pub")
    (tmp_path / "readable").chmod(0o644)
    shutil.copy(keys / "alice.pub", tmp_path / "alone.pub")
    (tmp_path / "text").write_text("text")
    for name, message in {
        "missing": "does not exist: create one with ssh-keygen",
        "readable": "other users can read it; run chmod 600",
        "alone.pub": "neither beside it nor in ssh-agent",
        "text": "it is not an SSH key, or its public key is missing",
    }.items():
        with pytest.raises(SignatureError, match=message) as caught:
            sign_bundle(signed, tmp_path / name, overwrite=True)
        assert caught.value.problem == "key"


def test_unsigned_bundle_is_refused(bundle, keys):
    assert problem_of(bundle, keys / "allowed") == "unsigned"


@pytest.mark.parametrize("name", ["manifest.json", "model.tflite", "README.md", "golden/000.png"])
def test_bundle_that_was_altered_after_signing_is_refused(signed, keys, name):
    content = (signed / name).read_bytes()
    (signed / name).write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    with pytest.raises(BundleError, match=r"altered after it was signed|changed or damaged"):
        Bundle.open(signed, allowed_signers=keys / "allowed")


def test_missing_file_of_a_signed_bundle_is_refused(signed, keys):
    (signed / "README.md").unlink()
    assert Bundle.open(signed).warnings
    with pytest.raises(BundleError, match=r"README\.md is missing"):
        Bundle.open(signed, allowed_signers=keys / "allowed")


def test_verify_refuses_a_file_that_the_signature_does_not_cover(signed, keys):
    (signed / "wheels" / "numpy-99-py3-none-any.whl").write_bytes(b"")
    assert verify(signed).warnings
    with pytest.raises(SignatureError, match="does not cover wheels/numpy-99"):
        verify(signed, allowed_signers=keys / "allowed")


def test_consistent_change_of_file_and_manifest_is_refused(signed, keys):
    """The digest in the manifest matches the changed file, but the signature does not match the changed manifest."""
    opened = Bundle.open(signed)
    Bundle.write(signed, opened.manifest, {**opened.files, "README.md": b"other"}, overwrite=True)
    (signed / SIGNATURE).write_bytes(opened.signature)
    assert Bundle.open(signed).warnings == ()
    assert problem_of(signed, keys / "allowed") == "altered"


def test_signature_of_another_bundle_is_refused(signed, keys, bundle, tmp_path):
    Bundle.open(bundle).copy(tmp_path / "other")
    sign_bundle(tmp_path / "other", keys / "alice")
    shutil.copy(tmp_path / "other" / SIGNATURE, signed / SIGNATURE)
    assert problem_of(signed, keys / "allowed") == "altered"


def test_key_that_is_not_allowed_is_refused_with_its_fingerprint(signed, keys):
    fingerprint = sign_bundle(signed, keys / "mallory", overwrite=True).fingerprint
    with pytest.raises(SignatureError, match=r"not in .*allowed") as caught:
        Bundle.open(signed, allowed_signers=keys / "allowed")
    assert caught.value.problem == "not-allowed"
    assert fingerprint in str(caught.value)


def test_signature_for_another_namespace_is_refused(signed, keys):
    (signed / SIGNATURE).unlink()
    ssh_keygen("-Y", "sign", "-n", "git", "-f", keys / "alice", signed / "manifest.json")
    assert problem_of(signed, keys / "allowed") == "namespace"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ('namespaces="git"', "namespace"),
        ('namespaces="git,edgerec-bundle"', ""),
        ('valid-before="20200101"', "expired"),
        ('valid-after="20200101"', ""),
        ('valid-after="20990101"', "not-yet-valid"),
        ('valid-before="20990101"', ""),
    ],
)
def test_options_of_an_allowed_signer_apply(signed, keys, tmp_path, options, problem):
    allowed = allow(tmp_path, f"alice@example.com {options} {public_key(keys / 'alice')}")
    if problem:
        assert problem_of(signed, allowed) == problem
    else:
        assert Bundle.open(signed, allowed_signers=allowed).signer.principal == "alice@example.com"


def test_bundle_that_was_signed_before_its_key_expired_is_accepted(signed, keys, tmp_path, monkeypatch):
    """A key must be valid at the time of signing, but may expire later."""
    allowed = allow(tmp_path, f'alice@example.com valid-before="20220101" {public_key(keys / "alice")}')
    assert problem_of(signed, allowed) == "expired"
    monkeypatch.setattr(time, "time", lambda: 1_600_000_000.5)
    sign_bundle(signed, keys / "alice", serial=7, overwrite=True)
    assert Bundle.open(signed, allowed_signers=allowed).signer.signed_s == 1_600_000_000


@pytest.mark.parametrize("principals", ["*", "*@example.com", "bob@example.com,al?ce@example.com", "!bob,*"])
def test_principals_can_be_patterns_and_lists(signed, keys, tmp_path, principals):
    allowed = allow(tmp_path, f"# signers\n\nnot a key\n{principals} {public_key(keys / 'alice')}")
    signer = Bundle.open(signed, allowed_signers=allowed).signer
    assert signer.principal in principals.split(",")
    assert not signer.principal.startswith("!")


def test_certificate_of_an_authority_is_accepted_until_it_expires(signed, keys, tmp_path, monkeypatch):
    shutil.copy(keys / "alice", tmp_path / "alice")
    shutil.copy(keys / "alice.pub", tmp_path / "alice.pub")
    ssh_keygen("-s", keys / "authority", "-I", "id", "-n", "alice", "-V", "+1d", tmp_path / "alice.pub")
    sign_bundle(signed, tmp_path / "alice-cert.pub", overwrite=True)
    authority = public_key(keys / "authority")
    allowed = allow(tmp_path, f"alice cert-authority {authority}")
    assert Bundle.open(signed, allowed_signers=allowed).signer.key_type == "ED25519-CERT"
    assert problem_of(signed, allow(tmp_path, f"bob cert-authority {authority}")) == "not-allowed"
    assert problem_of(signed, allow(tmp_path, f"alice {authority}")) == "not-allowed"
    monkeypatch.setattr(time, "time", lambda: 4_000_000_000.0)
    sign_bundle(signed, tmp_path / "alice-cert.pub", overwrite=True)
    assert problem_of(signed, allow(tmp_path, f"alice cert-authority {authority}")) == "not-allowed"


def test_revoked_key_is_refused(signed, keys):
    assert problem_of(signed, keys / "allowed", revoked_keys=keys / "alice.pub") == "revoked"
    assert Bundle.open(signed, allowed_signers=keys / "allowed", revoked_keys=keys / "mallory.pub").signer
    assert problem_of(signed, keys / "allowed", revoked_keys=keys / "missing") == "unchecked"
    with pytest.raises(SignatureError, match=r"also specify the file of allowed signers \(--allowed-signers\)"):
        Bundle.open(signed, revoked_keys=keys / "alice.pub")


@pytest.mark.parametrize(
    "content", [b"", b"text", b"-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n"]
)
def test_damaged_signature_is_refused(signed, keys, content):
    (signed / SIGNATURE).write_bytes(content)
    assert problem_of(signed, keys / "allowed") == "damaged"


def test_huge_signature_is_refused_only_if_it_is_checked(signed, keys):
    (signed / SIGNATURE).write_bytes(bytes(100_000))
    assert "100,000 bytes" in Bundle.open(signed).warnings[0]
    with pytest.raises(BundleError, match=r"100,000 bytes, but the limit is .* 64 KiB"):
        Bundle.open(signed, allowed_signers=keys / "allowed")


def test_signature_that_is_a_link_out_of_the_bundle_is_refused(signed, keys, tmp_path):
    (signed / SIGNATURE).rename(tmp_path / "elsewhere")
    (signed / SIGNATURE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="link to a file outside the bundle"):
        Bundle.open(signed, allowed_signers=keys / "allowed")


def test_allowed_signers_inside_the_bundle_are_refused(signed, keys, tmp_path):
    shutil.copy(keys / "allowed", signed / "allowed")
    (tmp_path / "link").symlink_to(signed / "allowed")
    for path in (signed / "allowed", tmp_path / "link"):
        with pytest.raises(SignatureError, match="inside the bundle"):
            Bundle.open(signed, allowed_signers=path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('alice@example.com namespace="git" KEY', "bad options"),
        ("alice@example.com ssh-ed25519 AAAA", "invalid key"),
        ('"alice@example.com KEY', "invalid line"),
        ("garbage", "missing key"),
    ],
)
def test_unusable_line_of_the_file_of_allowed_signers_is_named(signed, keys, tmp_path, line, reason):
    allowed = allow(tmp_path, f"# signers\n{line.replace('KEY', public_key(keys / 'alice'))}")
    with pytest.raises(SignatureError) as caught:
        Bundle.open(signed, allowed_signers=allowed)
    message = str(caught.value)
    assert f"is not in {allowed}; ssh-keygen ignores line 2 of this file ({reason}" in message
    assert ": correct this line, sign the bundle with an allowed key, or add this key" in message


def test_unusable_file_of_allowed_signers_is_refused(signed, keys, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(2 << 20))
    shutil.copy(keys / "allowed", tmp_path / "writable")
    (tmp_path / "writable").chmod(0o666)
    (tmp_path / "empty").touch()
    for name in ("missing", "pipe", "large", "writable", "a\0b"):
        assert problem_of(signed, tmp_path / name) == "unchecked"
    assert problem_of(signed, tmp_path / "empty") == "not-allowed"


def test_missing_ssh_keygen_is_reported_with_its_package(signed, keys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SignatureError, match="ssh-keygen is not installed: run sudo apt-get install openssh-client"):
        Bundle.open(signed, allowed_signers=keys / "allowed")
    with pytest.raises(SignatureError, match="openssh-client"):
        sign_bundle(signed, keys / "alice", overwrite=True)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'No user exists for uid 61184' >&2; exit 255", "libnss-systemd"),
        ("echo 'unknown option -- Y' >&2; exit 1", "OpenSSH 8.2 or newer"),
        ("kill -KILL $$", "ended by signal 9"),
    ],
)
def test_failure_of_ssh_keygen_is_not_reported_as_a_wrong_signature(
    signed, keys, monkeypatch, tmp_path, script, message
):
    program = tmp_path / "ssh-keygen"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SignatureError, match=message) as caught:
        Bundle.open(signed, allowed_signers=keys / "allowed")
    assert caught.value.problem == "unchecked"


def test_signature_is_checked_before_the_manifest_is_parsed(signed, keys):
    (signed / "manifest.json").write_bytes(b"{")
    assert problem_of(signed, keys / "allowed") == "altered"


def test_manifest_with_a_second_serial_number_is_refused(signed, keys):
    """The serial number in the header must equal the serial number in the parsed JSON."""
    text = (signed / "manifest.json").read_text()
    content = text.rstrip().removesuffix("}").encode() + b', "serial": 99}'
    (signed / "manifest.json").write_bytes(content)
    (signed / SIGNATURE).write_bytes(create_signature(content, keys / "alice"))
    assert problem_of(signed, keys / "allowed") == "altered"


def test_every_way_to_use_a_bundle_refuses_it_if_it_is_unsigned(bundle, keys, golden_images):
    allowed = keys / "allowed"
    for use in (
        lambda: Classifier.open(bundle, allowed_signers=allowed),
        lambda: Camera.open(bundle, "synthetic:64x64", allowed_signers=allowed),
        lambda: list(predict(bundle, golden_images, allowed_signers=allowed)),
        lambda: benchmark(bundle, seconds=0.1, allowed_signers=allowed),
        lambda: verify(bundle, allowed_signers=allowed),
        lambda: verify_emulated(bundle, "rpi", allowed_signers=allowed),
        lambda: run_camera(CameraConfig(bundle=bundle, output="none", allowed_signers=allowed)),
    ):
        with pytest.raises(SignatureError, match=r"is not signed.*: use a bundle that was signed with edgerec sign"):
            use()


def test_server_refuses_an_unsigned_bundle(bundle, keys):
    pytest.importorskip("python_multipart", reason='no python-multipart (pip install "edgerec[serve]")')
    with pytest.raises(SignatureError, match="is not signed"):
        ClassificationServer(ServeConfig(bundle=bundle, address="127.0.0.1:0", allowed_signers=keys / "allowed"))


def test_process_that_measures_the_cold_start_checks_the_signature(signed, keys):
    """The bundle may be replaced before the process opens the bundle again."""
    with pytest.raises(BundleError, match="is not signed"):
        benchmark(
            signed,
            seconds=0.1,
            allowed_signers=keys / "allowed",
            listener=lambda _: (signed / SIGNATURE).unlink(missing_ok=True),
        )


@pytest.mark.parametrize(
    "command",
    [
        ("verify",),
        ("predict", "IMAGE"),
        ("benchmark", "--seconds", "0.1", "--no-operators"),
        ("camera", "--source", "synthetic:64x64@30", "--headless", "--max-frames", "1"),
    ],
)
def test_commands_accept_only_bundles_of_allowed_signers(command, invoke, signed, keys, golden_images):
    name, *options = [str(golden_images[0]) if word == "IMAGE" else word for word in command]
    done = invoke(name, signed, *options, "--allowed-signers", keys / "allowed")
    assert done.returncode == 0, done.stderr
    done = invoke(name, signed, *options, "--allowed-signers", keys / "allowed", "--revoked-keys", keys / "alice.pub")
    assert "which is revoked" in error_line(done)
    sign_bundle(signed, keys / "mallory", overwrite=True)
    assert "which is not in" in error_line(invoke(name, signed, *options, "--allowed-signers", keys / "allowed"))


def test_verify_prints_the_signer(invoke, signed, keys):
    assert "the signature was not checked: add --allowed-signers FILE" in invoke("verify", signed).stdout
    done = invoke("verify", signed, "--allowed-signers", keys / "allowed")
    assert "signed by alice@example.com (ED25519 SHA256:" in done.stdout
    assert "UTC, serial number 7" in done.stdout
    signer = json.loads(invoke("verify", signed, "--allowed-signers", keys / "allowed", "--json").stdout)["signer"]
    assert (signer["principal"], signer["serial"]) == ("alice@example.com", 7)
    (signed / SIGNATURE).unlink()
    report = json.loads(invoke("verify", signed, "--allowed-signers", keys / "allowed", "--json").stdout)
    assert (report["ok"], report["problem"]) == (False, "unsigned")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"serial": 10**18}, f"serial is {10**18}; expected 0 to {10**18 - 1}"),
        ({"serial": -1}, "serial is -1; expected"),
        ({"serial": 1, "sign": None}, "serial has no effect without sign"),
    ],
)
def test_export_checks_the_serial_number_before_it_opens_the_run(keys, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        export_bundle(tmp_path / "no-run", **{"sign": keys / "alice", **options})


def test_sign_command_signs_and_replaces_only_with_overwrite(invoke, bundle, keys, tmp_path):
    path = tmp_path / "signs.zip"
    Bundle.open(bundle).copy(path)
    done = invoke("sign", path, "--key", keys / "alice", "--serial", 3)
    assert "with the key SHA256:" in done.stdout
    assert Bundle.open(path, allowed_signers=keys / "allowed").manifest.serial == 3
    assert "already signed: add --overwrite" in error_line(invoke("sign", path, "--key", keys / "alice"))
    done = invoke("sign", path, "--key", keys / "alice", "--serial", 4, "--overwrite", "--json")
    assert json.loads(done.stdout)["serial"] == 4
    assert Bundle.open(path, allowed_signers=keys / "allowed").manifest.serial == 4


def test_damaged_bundle_is_not_signed(bundle, keys, tmp_path):
    shutil.copytree(bundle, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("other")
    with pytest.raises(BundleError, match="cannot sign a damaged bundle"):
        sign_bundle(tmp_path / "copy", keys / "alice")


def test_interrupted_signing_leaves_an_intact_unsigned_bundle(signed, keys, monkeypatch):
    """The manifest and its signature are separate files, which cannot be replaced atomically."""
    before = Bundle.open(signed)

    def fail(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("edgerec.contract.bundle.write_file", fail)
    with pytest.raises(OSError, match="No space left"):
        sign_bundle(signed, keys / "alice", overwrite=True)
    opened = Bundle.open(signed)
    assert opened.signature is None
    assert (opened.manifest, opened.files, opened.warnings) == (before.manifest, before.files, ())
    monkeypatch.undo()
    sign_bundle(signed, keys / "alice")
    assert Bundle.open(signed, allowed_signers=keys / "allowed")


def test_signing_keeps_other_files_and_the_layout_of_a_zip(bundle, keys, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in bundle.rglob("*"):
            if file.is_file():
                archive.write(file, f"signs/{file.relative_to(bundle).as_posix()}")
        archive.writestr("signs/notes.txt", "notes")
    sign_bundle(tmp_path / "a.zip", keys / "alice")
    opened = Bundle.open(tmp_path / "a.zip", allowed_signers=keys / "allowed")
    assert opened.added() == ["notes.txt"]
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.read("signs/notes.txt") == b"notes"
        assert f"signs/{SIGNATURE}" in archive.namelist()
        assert len(archive.namelist()) == len(set(archive.namelist()))


@pytest.mark.parametrize("name", ["copy", "copy.zip"])
def test_copy_of_a_signed_bundle_is_signed(signed, keys, tmp_path, name):
    opened = Bundle.open(signed, allowed_signers=keys / "allowed")
    shutil.rmtree(signed)  # The copy must not depend on the bundle after the check.
    opened.copy(tmp_path / name)
    assert Bundle.open(tmp_path / name, allowed_signers=keys / "allowed").signer == opened.signer


def test_bundle_that_was_signed_with_ssh_keygen_alone_is_accepted(bundle, keys, tmp_path):
    path, manifest = tmp_path / "b", json.loads((bundle / "manifest.json").read_text())
    shutil.copytree(bundle, path)
    (path / "manifest.json").write_text(json.dumps(manifest))
    ssh_keygen("-Y", "sign", "-n", "edgerec-bundle", "-f", keys / "alice", path / "manifest.json")
    opened = Bundle.open(path, allowed_signers=keys / "allowed")
    assert (opened.signer.serial, opened.signer.signed_s) == (0, None)
    opened.copy(tmp_path / "copy")
    assert Bundle.open(tmp_path / "copy", allowed_signers=keys / "allowed").signer == opened.signer


def test_unsigned_manifest_has_no_serial_number(bundle, signed):
    assert "serial" not in json.loads((bundle / "manifest.json").read_text())
    opened = Bundle.open(signed)
    assert list(json.loads(opened.manifest_content))[:3] == ["schema", "serial", "signed_s"]
    assert Manifest.from_json(opened.manifest.to_json()) == opened.manifest
    assert signed_header(opened.manifest_content) == (7, opened.manifest.signed_s)
    written = Bundle.write(signed, opened.manifest, opened.files, overwrite=True)
    assert (written.manifest.serial, written.manifest.signed_s) == (0, 0)
    assert Bundle.open(signed).signature is None


@pytest.mark.parametrize("serial", [-1, 10**18])
def test_serial_number_out_of_range_is_refused(signed, keys, serial):
    with pytest.raises(ConfigError, match="expected 0 to"):
        sign_bundle(signed, keys / "alice", serial=serial, overwrite=True)


def test_older_release_is_refused():
    refuse_downgrade(7, 7)
    refuse_downgrade(8, 7)
    with pytest.raises(RefusedSignatureError, match=r"already accepted 7: .*--allow-downgrade") as caught:
        refuse_downgrade(6, 7)
    assert caught.value.problem == "downgrade"


@pytest.mark.slow
def test_export_signs_the_bundle(run, keys, tmp_path, invoke):
    done = invoke("export", run.path, "--out", tmp_path / "b", "--sign", keys / "alice", "--serial", 5)
    assert done.returncode == 0, done.stderr
    signer = Bundle.open(tmp_path / "b", allowed_signers=keys / "allowed").signer
    assert signer.serial == 5
    assert f"signed   {tmp_path / 'b'} with the key {signer.fingerprint} (ED25519) on 20" in done.stdout
    assert "serial   5" in done.stdout.splitlines()
    done = invoke("export", run.path, "--out", tmp_path / "c", "--sign", keys / "missing")
    assert "does not exist: create one with ssh-keygen" in error_line(done)
    assert not (tmp_path / "c").exists()


def test_mutated_signatures_and_manifests_are_refused_without_traceback(signed, keys):
    manifest, signature = ((signed / name).read_bytes() for name in ("manifest.json", SIGNATURE))
    rng = Random(0)
    accepted = 0
    for number in range(60):
        mutated = bytearray(signature if number % 2 else manifest)
        for _ in range(rng.randrange(1, 4)):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        contents = (manifest, bytes(mutated)) if number % 2 else (bytes(mutated), signature)
        with suppress(RefusedSignatureError):
            check_signature(*contents, keys / "allowed")
            accepted += 1
            assert contents[0] == manifest
    # Changes of line breaks or unused bits do not invalidate a signature.
    assert accepted < 10
