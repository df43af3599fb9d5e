"""A test device that runs an SSH server in its own mount and process namespaces on this machine."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from edgerec import Device
from tests.deploy.network_namespaces import NetworkPlace
from tests.network import free_port

SERVICE_MANAGER = Path(__file__).with_name("service_manager.py")
# This script mounts the folders that a deployment changes in memory, so that this machine is not changed.
_SCRIPT = """
set -e
work=$1 size=$2 sudo=$3
mount -t tmpfs tmpfs "$work/memory"
cd "$work/memory"
for folder in etc opt; do
  mkdir "$folder.upper" "$folder.work"
  mount -t overlay overlay -o "lowerdir=/$folder,upperdir=$PWD/$folder.upper,workdir=$PWD/$folder.work" "/$folder"
done
mkdir dev
for node in null zero full random urandom tty; do : >"dev/$node" && mount --bind "/dev/$node" "dev/$node"; done
mkdir dev/pts dev/shm
mount --bind /dev/pts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
: >dev/video0
mount --rbind dev /dev
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/sshd /etc/systemd/system /etc/edgerec /opt/edgerec
mount -t tmpfs -o "size=$size,mode=755" tmpfs /opt/edgerec
echo "pi:x:1234:1234::/tmp:/bin/sh" >>/etc/passwd
echo "pi:*:20000::::::" >>/etc/shadow
[ ! -d /etc/sudoers.d ] || printf 'Defaults secure_path=%s\n%s\n' "$PATH" "$sudo" >/etc/sudoers.d/pi
# Mount the programs below /run, because the user pi cannot enter the test's folder.
mkdir /run/bin
mount --bind "$work/bin" /run/bin
: >/run/authorized_keys
mount --bind "$work/authorized_keys" /run/authorized_keys
# Hide the file ~/.bashrc of this machine, because its commands could change the PATH.
[ ! -e ~/.bashrc ] || mount --bind /dev/null ~/.bashrc
for path in "$work"/shadow/*; do
  [ ! -e "$path" ] || mount --bind "$path" "/$(basename "$path" | tr : /)"
done
/run/bin/service_manager.py &
exec /usr/sbin/sshd -D -e -f "$work/sshd_config"
"""


class TestDevice:
    """A context manager that runs a test device on this machine.

    Attributes:
        folder: folder with the device's keys, programs and SSH configuration.
        device: the device's address.
    """

    __test__ = False

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "",
        size: str = "1g",
        sudo: bool = True,
        python: str = "",
        place: NetworkPlace = NetworkPlace("127.0.0.1"),
    ) -> None:
        """Create a device without starting it.

        Args:
            folder: an empty folder.
            name: display name of the device.
            size: size of the file system of /opt/edgerec, e.g. ``1g``.
            sudo: whether the user ``pi`` can use sudo without a password.
            python: shell script that replaces the Python interpreters in /usr/bin, or an empty string.
            place: network address of the device. The default is the loopback interface.
        """
        self.folder, self._size, self._place = folder, size, place
        self._sudo = "pi ALL=(ALL) NOPASSWD: ALL" if sudo else ""
        for each in ("bin", "memory", "shadow"):
            (folder / each).mkdir(parents=True)
        program = folder / "bin" / "service_manager.py"
        interpreter = os.path.realpath(sys.executable)
        program.write_text(f"#!{interpreter} -S\n{SERVICE_MANAGER.read_text()}")
        program.chmod(0o755)
        for each in ("systemctl", "systemd-run", "journalctl"):
            (folder / "bin" / each).symlink_to(program.name)
        if python:
            for path in Path("/usr/bin").glob("python3.*"):
                if re.fullmatch(r"python3\.\d+", path.name):
                    self.replace_program(f"../shadow/usr:bin:{path.name}", python)
        for key in ("host_key", "key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
        shutil.copyfile(folder / "key.pub", folder / "authorized_keys")
        self.ssh_config = folder / "ssh_config"
        self.device = Device("root@test-device", name=name, ssh_config=self.ssh_config, connect_timeout_s=60)

    def replace_program(self, name: str, script: str) -> None:
        """Replace the program ``name`` on the device with a shell script."""
        path = self.folder / "bin" / name
        path.unlink(missing_ok=True)  # The path may be a symbolic link to the service manager.
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def __enter__(self) -> TestDevice:
        folder, address = self.folder, self._place.address
        # A device with its own network address can use a fixed port.
        port = 2222 if self._place.enter else free_port()
        (folder / "sshd_config").write_text(
            f"ListenAddress {address}:{port}\nHostKey {folder}/host_key\nAuthorizedKeysFile /run/authorized_keys\n"
            f"PidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\n"
            f"MaxStartups 100\nSetEnv PATH=/run/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
        )
        known_host = (folder / "host_key.pub").read_text()
        (folder / "known_hosts").write_text(f"[{address}]:{port} {known_host}")
        self.ssh_config.write_text(
            f"Host test-device\n  HostName {address}\n  Port {port}\n  IdentityFile {folder}/key\n"
            f"  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known_hosts\n  StrictHostKeyChecking yes\n"
        )
        self._log = (folder / "sshd.log").open("ab")
        environment = {**os.environ, "PATH": "/run/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        namespaces = [*self._place.enter, "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._process = subprocess.Popen(
            [*namespaces, "sh", "-c", _SCRIPT, "sh", folder, self._size, self._sudo],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=environment,
        )
        deadline_s = time.monotonic() + 60
        while "Server listening" not in self.log:
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline_s, self.log
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    @property
    def log(self) -> str:
        """Output of the SSH server on the device."""
        return (self.folder / "sshd.log").read_text()

    def run(self, command: str) -> str:
        """Run a shell command on the device, and return its standard output."""
        ssh = [*self._place.reach, "ssh", "-F", self.ssh_config, "test-device", command]
        done = subprocess.run(ssh, capture_output=True, text=True, timeout=60, check=True, stdin=subprocess.DEVNULL)
        return done.stdout

    def end_connections(self) -> None:
        """Close all SSH connections to the device to simulate a network failure."""
        for pid in _descendants(self._process.pid):
            with suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sshd: root"):
                    os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    """Return the process IDs of all descendants of a process."""
    children = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            children += [int(child) for child in (thread / "children").read_text().split()]
    return [each for child in children for each in (child, *_descendants(child))]
