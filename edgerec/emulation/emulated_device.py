"""Boot emulated devices in QEMU. The devices run Debian with systemd and an SSH server."""

from __future__ import annotations

import json
import logging
import os
import platform
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgerec.emulation.debian import call, require_program
from edgerec.emulation.device_image import DeviceImage
from edgerec.errors import TargetError
from edgerec.utils.child_process import Outcome, run_program

log = logging.getLogger(__name__)

# Time limit in seconds for booting a device, which takes about 45 s on an idle machine with two cores.
BOOT_TIMEOUT_S = 600.0
FORWARD_TIMEOUT_S = 120.0
# Time limit in seconds for a command to the emulator, such as saving a snapshot.
CONTROL_TIMEOUT_S = 600.0
MEMORY_MIB = 1024
_MACHINES = {
    "amd64": ("qemu-system-x86_64", "qemu-system-x86", ("-M", "q35", "-cpu", "max"), "ttyS0"),
    "arm64": ("qemu-system-aarch64", "qemu-system-arm", ("-M", "virt", "-cpu", "cortex-a72"), "ttyAMA0"),
}


class EmulatedDevice:
    """A context manager that boots an emulated device with its own disk, and stops the device on exit.

    The device has no network access. Only this machine can connect to the device, over SSH.

    Attributes:
        folder: folder with the device's disk, SSH configuration and console output.
        ssh_config: OpenSSH configuration file. ``ssh -F FILE device`` logs in as root.
    """

    def __init__(self, image: DeviceImage, folder: Path) -> None:
        """Create the device's disk and SSH key without booting the device.

        Args:
            image: disk image, which is not modified, because the device writes to an overlay.
            folder: folder for the device's files. If the folder already contains a disk, the disk is reused.

        Raises:
            TargetError: QEMU is not installed, or the disk cannot be created.
        """
        program, package, self._machine, self._console = _MACHINES[image.architecture]
        self._program = require_program(program, package)
        self._image, self.folder = image, folder
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._disk = folder / "disk.qcow2"
        if not self._disk.exists():
            qemu_img = require_program("qemu-img", "qemu-utils")
            options = ("-q", "-f", "qcow2", "-F", "qcow2", "-b", image.disk.resolve())
            done = call([qemu_img, "create", *options, self._disk], timeout_s=60)
            if done.code:
                raise TargetError(
                    f"cannot create the disk of the emulated device ({done.error_line}): check the free space in "
                    f"{folder}"
                )
        # OpenSSH rejects a private key that other users can read.
        self._key = folder / "id_ed25519"
        shutil.copyfile(image.key, self._key)
        self._key.chmod(0o600)
        self.ssh_config = folder / "ssh_config"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.cut_power()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut_power()

    @property
    def console(self) -> str:
        """Console output of all boots of the device, including the kernel's messages."""
        path = self.folder / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def running(self) -> bool:
        """Whether the emulator is running."""
        return self._process is not None and self._process.poll() is None

    def start(self, timeout_s: float = BOOT_TIMEOUT_S, *, snapshot: str = "") -> None:
        """Boot the device, and wait until systemd has started all services.

        Args:
            timeout_s: time limit in seconds.
            snapshot: name of a snapshot of :meth:`save_snapshot` from which to resume, or an empty string to boot.

        Raises:
            TargetError: the emulator failed, or the device did not boot in time.
        """
        port = _free_port()
        self._write_ssh_config(port)
        command = [
            *(self._program, *self._machine, *self._accelerator(), "-smp", "2", "-m", str(MEMORY_MIB)),
            *("-display", "none", "-monitor", "none", "-qmp", "stdio", "-no-reboot"),
            *(("-loadvm", snapshot) if snapshot else ()),
            *(
                "-chardev",
                f"file,id=console,path={self.folder / 'console.log'},append=on",
                "-serial",
                "chardev:console",
            ),
            *("-kernel", self._image.kernel, "-initrd", self._image.initrd),
            *("-append", f"root=/dev/vda rw console={self._console}"),
            *("-drive", f"file={self._disk},format=qcow2,if=none,id=disk,cache=writeback"),
            *("-device", "virtio-blk-pci,drive=disk"),
            *("-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"),
            *("-device", "virtio-net-pci,netdev=net,romfile="),
        ]
        with (self.folder / "qemu.log").open("ab") as log_file:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                start_new_session=True,
            )
        deadline_s = time.monotonic() + timeout_s
        while True:
            done = self.run(["systemctl", "is-system-running", "--wait"], timeout_s=min(60.0, timeout_s))
            if done.stdout.strip() in ("running", "degraded"):
                return
            if not self.running:
                reason = (self.folder / "qemu.log").read_text(errors="replace").strip().splitlines()
                raise TargetError(f"the emulator failed: {reason[-1] if reason else 'it printed no message'}")
            if time.monotonic() > deadline_s:
                raise TargetError(
                    f"the emulated device did not boot within {timeout_s:g} s: see {self.folder / 'console.log'}"
                )
            time.sleep(0.5)

    def cut_power(self) -> None:
        """Simulate a power failure by killing the emulator. Data that has not been written to the disk is lost."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGKILL)
            self._end()

    def save_snapshot(self, name: str) -> None:
        """Save a snapshot of the running device, including its memory, in its disk file.

        Raises:
            TargetError: the emulator cannot save the snapshot.
        """
        message = self._control("human-monitor-command", {"command-line": f"savevm {name}"})
        if message:
            raise TargetError(f"cannot save the state of the emulated device: {message}")

    def set_network(self, *, connected: bool) -> None:
        """Connect or disconnect the device's network cable.

        Raises:
            TargetError: the emulator cannot change the state of the network.
        """
        message = self._control("set_link", {"name": "net", "up": connected})
        if message:
            raise TargetError(f"cannot change the network of the emulated device: {message}")

    def _control(self, command: str, arguments: Mapping[str, Any]) -> str:
        """Send a command to QEMU over the QEMU Machine Protocol, and return the result or error message."""
        self._execute("qmp_capabilities", {})  # QEMU accepts other commands only after this one.
        return self._execute(command, arguments)

    def _execute(self, command: str, arguments: Mapping[str, Any]) -> str:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise TargetError("the emulated device is not running: start it first")
        # If the emulator does not respond, it is killed, so that its output ends.
        timer = threading.Timer(CONTROL_TIMEOUT_S, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps({"execute": command, "arguments": dict(arguments)}).encode() + b"\n")
            process.stdin.flush()
            for line in process.stdout:
                answer = json.loads(line)
                if "error" in answer:
                    return str(answer["error"]["desc"])
                if "return" in answer:
                    return str(answer["return"] or "").strip()
        except BrokenPipeError:
            pass  # The emulator has ended.
        finally:
            timer.cancel()
        raise TargetError(f"the emulator ended during the command {command}: see {self.folder / 'qemu.log'}")

    def _end(self) -> None:
        """Wait until the emulator has exited, and close its pipes."""
        if self._process is not None:
            self._process.communicate()
            self._process = None

    def shut_down(self, timeout_s: float = 120.0) -> None:
        """Shut down the device, and wait until the emulator has exited.

        Raises:
            TargetError: the device did not shut down in time.
        """
        self.run(["systemctl", "poweroff"], timeout_s=30)
        if self._process is not None:
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                raise TargetError(f"the emulated device did not shut down within {timeout_s:g} s") from None
            self._end()

    def run(self, command: Sequence[str], *, timeout_s: float = 120.0, **options: Any) -> Outcome:
        """Run a command on the device as root over SSH.

        Args:
            command: program and arguments.
            timeout_s: time limit in seconds.
            options: arguments of :func:`~edgerec.utils.child_process.run_program`, e.g. ``content`` for stdin.
        """
        ssh = require_program("ssh", "openssh-client")
        return run_program([ssh, "-F", self.ssh_config, "device", shlex.join(command)], timeout_s=timeout_s, **options)

    @contextmanager
    def forwarded_port(self, inside: int, outside: int, *, timeout_s: float = FORWARD_TIMEOUT_S) -> Iterator[None]:
        """Return a context manager for a remote port forwarding (``ssh -R``) from the device to this machine.

        Programs on the device can e.g. connect to an MQTT broker on this machine.

        Args:
            inside: port on the device. Programs on the device connect to this port of 127.0.0.1.
            outside: port on this machine.
            timeout_s: time limit in seconds for setting up the forwarding.

        Raises:
            TargetError: the port is already in use on the device, or the device does not respond.
        """
        ssh = require_program("ssh", "openssh-client")
        remote = f"127.0.0.1:{inside}:127.0.0.1:{outside}"
        options = ("-N", "-o", "ExitOnForwardFailure=yes", "-R", remote)
        process = subprocess.Popen(
            [ssh, "-F", self.ssh_config, *options, "device"], stdin=subprocess.DEVNULL, start_new_session=True
        )
        deadline_s = time.monotonic() + timeout_s
        try:
            while self.run(["sh", "-c", f"ss -Hltn sport = :{inside} | grep -q ."], timeout_s=timeout_s).code:
                if process.poll() is not None:
                    raise TargetError(f"the emulated device cannot forward port {inside}: the port is in use")
                if time.monotonic() > deadline_s:
                    raise TargetError(
                        f"the emulated device did not forward port {inside} within {timeout_s:g} s: see "
                        f"{self.folder / 'console.log'}"
                    )
                time.sleep(0.2)
            yield
        finally:
            process.terminate()
            process.wait()

    def _accelerator(self) -> tuple[str, ...]:
        """Return the command-line options of QEMU for KVM if ``EDGEREC_KVM=1`` is set, or for emulation otherwise.

        KVM is not used by default, because the guest hangs under some nested hypervisors that provide ``/dev/kvm``.
        """
        native = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine()) == self._image.architecture
        if native and os.environ.get("EDGEREC_KVM") == "1" and os.access("/dev/kvm", os.R_OK | os.W_OK):
            return ("-accel", "kvm", "-cpu", "host")
        return ("-accel", "tcg,thread=multi")

    def _write_ssh_config(self, port: int) -> None:
        settings = {
            "HostName": "127.0.0.1",
            "Port": port,
            "User": "root",
            "IdentityFile": self._key,
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "ConnectTimeout": 30,
            # The host key is not checked, because the connection does not leave this machine.
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
        }
        lines = ["Host device", *(f"  {key} {value}" for key, value in settings.items())]
        self.ssh_config.write_text("\n".join(lines) + "\n")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
