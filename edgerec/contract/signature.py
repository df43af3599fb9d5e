"""Check OpenSSH signatures of bundles with ssh-keygen.

This module uses only the standard library, imports nothing from edgerec and supports Python 3.9, because the agent on a
device contains this module.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SIGNATURE = "manifest.json.sig"
NAMESPACE = "edgerec-bundle"
MAX_SIGNATURE_BYTES = 64 << 10
MAX_SIGNERS_BYTES = 1 << 20
# Timeout in seconds for ssh-keygen, because loading the program from an SD card can take seconds.
TIMEOUT_S = 30.0
# Maximum number of principals to try for a key.
MAX_PRINCIPALS = 16

_HEADER = re.compile(rb'\{\s*"schema": \d{1,9},\s*"serial": (\d{1,18}),\s*"signed_s": (\d{1,10}),')
_GOOD = re.compile(r'^Good "[^"]*" signature (?:for (.*) )?with (\S+) key (SHA256:\S+)$', re.MULTILINE)


class RefusedSignatureError(ValueError):
    """Raised when a bundle is not signed by an allowed signer or its signature cannot be checked.

    Attributes:
        problem: ``unsigned``, ``damaged``, ``altered``, ``namespace``, ``not-allowed``, ``expired``, ``not-yet-valid``,
            ``revoked``, ``downgrade``, or ``unchecked`` if ssh-keygen or a file of keys is missing or unusable.
    """

    def __init__(self, problem: str, message: str) -> None:
        super().__init__(message)
        self.problem = problem


@dataclass(frozen=True)
class Signer:
    """The signer of a bundle.

    Attributes:
        principal: the signer's name in the file of allowed signers, which may be a pattern such as ``*@example.com``.
        key_type: type of the key, such as ``ED25519``.
        fingerprint: fingerprint of the key, such as ``SHA256:…``, as printed by ``ssh-keygen -l``.
        serial: serial number of the bundle, or 0 if the bundle has none.
        signed_s: Unix time of signing as stated by the signer, or None.
    """

    principal: str
    key_type: str
    fingerprint: str
    serial: int = 0
    signed_s: int | None = None

    def __str__(self) -> str:
        """Return the principal, the key and the time of signing as one line of text."""
        when = "" if self.signed_s is None else f" on {format_time(self.signed_s)}"
        return f"{self.principal} ({self.key_type} {self.fingerprint}){when}"


def format_time(unix_s: int) -> str:
    """Format a Unix time, e.g. as ``2026-11-30 10:00:00 UTC``."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(unix_s))


def signed_header(manifest: bytes) -> tuple[int, int | None]:
    """Read the serial number and the time of signing from a signed manifest, without parsing its JSON.

    Returns:
        The serial number (0 if missing) and the Unix time of signing in seconds (None if missing).
    """
    match = _HEADER.match(manifest)
    return (int(match[1]), int(match[2])) if match else (0, None)


def check_signature(
    manifest: bytes,
    signature: bytes | None,
    allowed_signers: str | Path,
    *,
    revoked_keys: str | Path | None = None,
    where: str = "the bundle",
) -> Signer:
    """Check that a manifest was signed by an allowed signer, and return the signer.

    The validity period of a key (``valid-after``, ``valid-before``) is compared with the time of signing in the
    manifest. A bundle is therefore still accepted after its signer's key has expired, and on a device without a clock.

    Args:
        manifest: content of manifest.json. The caller must use exactly these bytes afterwards.
        signature: content of manifest.json.sig, or None if this file is missing.
        allowed_signers: file in the format of ``ssh-keygen``, with a principal and a public key per line.
        revoked_keys: file with revoked public keys, or a key revocation list.
        where: path of the bundle for error messages.

    Raises:
        RefusedSignatureError: the signature is missing, invalid or not by an allowed signer, or cannot be checked.
    """
    lists = {"allowed_signers": _read_keys(allowed_signers, "allowed signers")}
    if revoked_keys is not None:
        lists["revoked_keys"] = _read_keys(revoked_keys, "revoked keys")
    if signature is None:
        raise RefusedSignatureError(
            "unsigned",
            f"{where} is not signed, but a signature is required: use a bundle that was signed with edgerec sign",
        )
    serial, signed_s = signed_header(manifest)
    with _private_files({**lists, "signature": signature}) as files:
        check = _Check(manifest, files, signed_s, where, str(allowed_signers))
        for principal in check.principals():
            good = check.verify(principal, revoked="revoked_keys" in files)
            if good:
                return Signer(good[1], good[2], good[3], serial, signed_s)
        raise check.refusal()


def signing_key(manifest: bytes, signature: bytes, where: str = "the bundle") -> tuple[str, str]:
    """Return the type and fingerprint of the key that signed a manifest, even if the key is not allowed.

    Raises:
        RefusedSignatureError: the signature is damaged, does not match the manifest, or cannot be checked.
    """
    with _private_files({"signature": signature}) as files:
        return _signing_key(manifest, files["signature"], where)


def refuse_downgrade(serial: int, highest_serial: int, where: str = "the bundle") -> None:
    """Raise :class:`RefusedSignatureError` if a bundle is older than a bundle that the device has already accepted.

    Args:
        serial: serial number of the bundle.
        highest_serial: highest serial number that the device has accepted, or 0.
        where: path of the bundle for the error message.
    """
    if serial < highest_serial:
        raise RefusedSignatureError(
            "downgrade",
            f"{where} has the serial number {serial}, but the device has already accepted {highest_serial}: deploy a "
            "newer bundle, or add --allow-downgrade",
        )


class _Check:
    """Verifies one signature with ssh-keygen, and collects its error messages."""

    def __init__(self, manifest: bytes, files: dict[str, str], signed_s: int | None, where: str, signers: str) -> None:
        self._manifest, self._files, self._where, self._signers = manifest, files, where, signers
        self._messages = ""
        # Use local time, because OpenSSH before 9.1 does not support UTC times with the suffix Z.
        self._time, self._when = [], ""
        if signed_s is not None:
            try:
                self._time = [f"-Overify-time={time.strftime('%Y%m%d%H%M%S', time.localtime(signed_s))}"]
                self._when = f" on {format_time(signed_s)}"
            except (OverflowError, OSError):  # Some 32-bit systems do not support times after 2038.
                raise self._error(
                    "damaged", f"has an invalid time of signing ({signed_s}): sign the bundle again"
                ) from None

    def principals(self) -> list[str]:
        """Return the principals of the key, except for principals that are excluded with ``!``."""
        done = self._run("find-principals", "-f", self._files["allowed_signers"], *self._time)
        lines = done.stdout.splitlines() if done.returncode == 0 else []
        return [line for line in lines if line and not line.startswith("!")][:MAX_PRINCIPALS]

    def verify(self, principal: str, *, revoked: bool) -> re.Match[str] | None:
        """Verify with ssh-keygen that ``principal`` made the signature. Return a regex match with the key, or None."""
        options = ["-r", self._files["revoked_keys"]] if revoked else []
        signers = ["-f", self._files["allowed_signers"], "-I", principal]
        done = self._run("verify", *signers, "-n", NAMESPACE, *self._time, *options)
        return _GOOD.search(done.stdout) if done.returncode == 0 else None

    def refusal(self) -> RefusedSignatureError:
        """Return an error with the reason why the signature was refused."""
        try:
            key_type, fingerprint = _signing_key(self._manifest, self._files["signature"], self._where)
        except RefusedSignatureError as error:
            return error
        key = f"the key {fingerprint} ({key_type})"
        for line, reason in re.findall(r"allowed_signers:(\d+): (.*)", self._messages):
            listed = f"line {line} of {self._signers}"
            if "not permitted for use in signature namespace" in reason:
                return self._error(
                    "namespace",
                    f"was signed by {key}, but {listed} does not permit this key to sign bundles: add {NAMESPACE} to "
                    "the namespaces in this line",
                )
            if "key has expired" in reason:
                return self._error(
                    "expired",
                    f"was signed{self._when} by {key}, which had expired then ({listed}): sign the bundle with a "
                    "current key",
                )
            if "key is not yet valid" in reason:
                return self._error(
                    "not-yet-valid",
                    f"was signed{self._when} by {key}, which was not valid yet ({listed}): sign the bundle with a "
                    "current key",
                )
        if "revoked_keys" in self._files and any(self.verify(name, revoked=False) for name in self.principals()):
            return self._error(
                "revoked",
                f"was signed by {key}, which is revoked, or the file of revoked keys is damaged: sign the bundle with "
                "another key, or correct the file",
            )
        if key_type.endswith("-CERT"):
            return self._error(
                "not-allowed",
                f"was signed by {key}, but the certificate has expired, or {self._signers} allows neither its "
                "authority nor its principals: sign the bundle with a valid certificate",
            )
        reason = f"was signed by {key}, which is not in {self._signers}"
        advice = "sign the bundle with an allowed key, or add this key to the file if you trust it"
        if ignored := re.search(r"allowed_signers:(\d+): ((?:bad|invalid|missing) .*)", self._messages):
            # The ignored line may be a malformed entry for this key, so the message mentions it.
            reason += f"; ssh-keygen ignores line {ignored[1]} of this file ({ignored[2].strip()})"
            advice = f"correct this line, {advice}"
        return self._error("not-allowed", f"{reason}: {advice}")

    def _error(self, problem: str, text: str) -> RefusedSignatureError:
        return RefusedSignatureError(problem, f"{self._where} {text}")

    def _run(self, operation: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["-Y", operation, "-s", self._files["signature"], *arguments]
        done = run_ssh_keygen(command, f"check the signature of {self._where}", self._manifest)
        self._messages += done.stderr
        return done


def _signing_key(manifest: bytes, signature_path: str, where: str) -> tuple[str, str]:
    command = ["-Y", "check-novalidate", "-n", NAMESPACE, "-s", signature_path]
    done = run_ssh_keygen(command, f"check the signature of {where}", manifest)
    good = _GOOD.search(done.stdout)
    if done.returncode == 0 and good:
        return good[2], good[3]
    if "namespace does not match" in done.stderr:
        raise RefusedSignatureError(
            "namespace",
            f"{where} has a signature for another namespace than {NAMESPACE}: sign the bundle with edgerec sign",
        )
    if "incorrect signature" in done.stderr:
        raise RefusedSignatureError(
            "altered",
            f"{where} was altered after it was signed, or has the signature of another bundle: do not use it, and "
            "copy the signed bundle again",
        )
    raise RefusedSignatureError("damaged", f"{where} has a damaged signature ({SIGNATURE}): copy the bundle again")


def run_ssh_keygen(
    arguments: Sequence[str], task: str, content: bytes = b"", timeout_s: float = TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    """Run ssh-keygen without a terminal.

    Args:
        arguments: command-line arguments.
        task: description of the task for error messages, e.g. ``check the signature of signs-rpi``.
        content: bytes to write to standard input.
        timeout_s: time limit in seconds.

    Raises:
        RefusedSignatureError: the program is missing, too old or unusable, or exceeded the time limit.
    """
    try:
        done = subprocess.run(
            ["ssh-keygen", *arguments],
            input=content,
            capture_output=True,
            check=False,
            timeout=timeout_s,
            env=environment(),
            start_new_session=True,
        )
    except FileNotFoundError:
        raise _unchecked(task, "ssh-keygen is not installed: run sudo apt-get install openssh-client") from None
    except subprocess.TimeoutExpired:
        raise _unchecked(task, f"ssh-keygen did not finish within {timeout_s:g} s: try again") from None
    except OSError as error:
        raise _unchecked(task, f"ssh-keygen cannot be started ({error.strerror}): reinstall openssh-client") from None
    stdout, stderr = (output.decode("utf-8", "replace") for output in (done.stdout, done.stderr))
    if done.returncode < 0:
        raise _unchecked(task, f"ssh-keygen was ended by signal {-done.returncode}: try again")
    if "No user exists for uid" in stderr:
        raise _unchecked(
            task,
            f"ssh-keygen requires a user account, and the user ID {os.getuid()} has none: add an account, or install "
            "libnss-systemd if a systemd service uses DynamicUser",
        )
    if re.search(r"(unknown|illegal|invalid) option|unsupported operation", stderr, re.IGNORECASE):
        raise _unchecked(task, "ssh-keygen is too old: install OpenSSH 8.2 or newer")
    return subprocess.CompletedProcess(done.args, done.returncode, stdout, stderr)


def environment() -> dict[str, str]:
    """Return environment variables that select English messages and disable graphical passphrase dialogs."""
    return {**os.environ, "LC_ALL": "C", "SSH_ASKPASS_REQUIRE": "never"}


def _unchecked(task: str, reason: str) -> RefusedSignatureError:
    return RefusedSignatureError("unchecked", f"cannot {task}, because {reason}")


def _read_keys(path: str | Path, kind: str) -> bytes:
    """Read a file of keys. For security, refuse a file that is writable by all users."""
    path = Path(os.path.expanduser(path))
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # Opening a named pipe could block forever.
            raise OSError(errno.EINVAL, "it is not a file")
        with path.open("rb") as file:
            content = file.read(MAX_SIGNERS_BYTES + 1)
    except (OSError, ValueError) as error:  # Python raises a ValueError for a path with a null character.
        reason = getattr(error, "strerror", error)
        raise RefusedSignatureError(
            "unchecked", f"cannot read the file of {kind} {path} ({reason}): check the path and its permissions"
        ) from None
    if len(content) > MAX_SIGNERS_BYTES:
        raise RefusedSignatureError(
            "unchecked", f"the file of {kind} {path} is larger than {MAX_SIGNERS_BYTES >> 10} KiB: check the path"
        )
    if os.name == "posix" and mode & stat.S_IWOTH:
        raise RefusedSignatureError(
            "unchecked", f"every user can change the file of {kind} {path}: correct its permissions with chmod o-w"
        )
    return content


@contextmanager
def _private_files(contents: dict[str, bytes]) -> Iterator[dict[str, str]]:
    """Write files to a private temporary folder, in memory if possible, and yield their paths."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(prefix="edgerec-", dir=memory if os.access(memory, os.W_OK) else None) as folder:
        paths = {}
        for name, content in contents.items():
            paths[name] = os.path.join(folder, name)
            Path(paths[name]).write_bytes(content)
        yield paths
