"""Build disk images for emulated devices. An image contains a Debian system with systemd and an SSH server."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgerec.emulation.debian import call, require_program, run_mmdebstrap
from edgerec.emulation.root_file_system import PYTHONS
from edgerec.errors import TargetError
from edgerec.utils.atomic import cache_folder, replacing_folder, sha256
from edgerec.utils.lock import Lock

log = logging.getLogger(__name__)

# Time limit in seconds for each command. Installing packages under emulation takes tens of minutes.
BUILD_TIMEOUT_S = 7200
DISK_BYTES = 4 << 30
ARCHITECTURES = ("amd64", "arm64")
PACKAGES = (
    *("dbus", "iproute2", "kmod", "openssh-server", "python3", "python3-venv", "systemd-sysv", "systemd-timesyncd"),
    "udev",
)
# Configuration files of the device, which e.g. load the kernel module vivid to simulate a camera.
_FILES = {
    "etc/fstab": "/dev/vda / ext4 defaults 0 1\n",
    "etc/hostname": "edgerec-device\n",
    "etc/modules-load.d/camera.conf": "vivid\n",
    "etc/modprobe.d/camera.conf": "options vivid n_devs=1 node_types=0x1\n",
    "etc/systemd/network/wired.network": "[Match]\nName=e*\n\n[Network]\nDHCP=yes\n",
    "etc/ssh/sshd_config.d/device.conf": "PasswordAuthentication no\nUseDNS no\n",
}
# Configuration of initramfs-tools, which must exist before the kernel is installed. The initial RAM disk contains only
# the modules that the device requires to boot. With all modules, creating it under emulation takes tens of minutes.
_INITRAMFS_FILES = {
    "etc/initramfs-tools/conf.d/device.conf": "MODULES=list\n",
    "usr/share/initramfs-tools/modules.d/device": "virtio_pci\nvirtio_blk\next4\n",
}


@dataclass(frozen=True)
class DeviceImage:
    """A disk image of a Debian system, with the kernel and the initial RAM disk to boot the system.

    Attributes:
        folder: folder with the image files, which must not be modified, because the disks of devices are based on them.
        architecture: Debian architecture name, ``amd64`` or ``arm64``.
        release: Debian release codename.
    """

    folder: Path
    architecture: str
    release: str

    @property
    def disk(self) -> Path:
        """Path of the disk image in qcow2 format."""
        return self.folder / "disk.qcow2"

    @property
    def kernel(self) -> Path:
        """Path of the Linux kernel."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """Path of the initial RAM disk."""
        return self.folder / "initrd"

    @property
    def key(self) -> Path:
        """Path of the private SSH key for logging in as root on emulated devices."""
        return self.folder / "id_ed25519"


def find_device_image(architecture: str, release: str = "bookworm", cache: Path | None = None) -> DeviceImage:
    """Return a disk image from the cache, or build the image if it is not in the cache.

    Building an image requires mmdebstrap, mkfs.ext4, qemu-img and ssh-keygen. If this machine cannot run programs for
    ``architecture``, it also requires arch-test, and a binfmt_misc registration for QEMU, such as that of Debian's
    qemu-user-static.

    Args:
        architecture: Debian architecture name, ``amd64`` or ``arm64``.
        release: Debian release codename.
        cache: folder that contains the images, or None to use a subfolder of edgerec's cache folder.

    Raises:
        TargetError: the image cannot be built.
    """
    if architecture not in ARCHITECTURES or release not in PYTHONS:
        raise TargetError(
            f"cannot build an image of Debian {release} for {architecture}: choose {' or '.join(PYTHONS)} and "
            f"{' or '.join(ARCHITECTURES)}"
        )
    digest = sha256(repr((PACKAGES, sorted((_FILES | _INITRAMFS_FILES).items()), DISK_BYTES)).encode())[:12]
    folder = (cache or cache_folder() / "devices") / f"{release}-{architecture}-{digest}"
    with Lock(folder, wait=True):
        if not folder.is_dir():
            log.info("building a Debian %s image for %s in %s (only required once)", release, architecture, folder)
            with replacing_folder(folder) as partial:
                _build(DeviceImage(partial, architecture, release))
    return DeviceImage(folder, architecture, release)


def _build(image: DeviceImage) -> None:
    keygen = require_program("ssh-keygen", "openssh-client")
    image.folder.mkdir(parents=True, exist_ok=True)
    _checked([keygen, "-q", "-t", "ed25519", "-N", "", "-C", "edgerec-device", "-f", image.key])
    root = image.folder / "root"
    try:
        _install(image, root)
        _add_files(image, root)
        _write_disk(image, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _install(image: DeviceImage, root: Path) -> None:
    """Install Debian and the required packages into the folder ``root``."""
    if os.geteuid() != 0:
        raise TargetError("cannot build a device image without root permissions: run the command with sudo")
    files = image.folder / "files"
    for name, content in _INITRAMFS_FILES.items():
        _write(files / name, content)
    run_mmdebstrap(
        image.release,
        image.architecture,
        [*PACKAGES, f"linux-image-{image.architecture}"],
        root,
        ("--mode=root", "--variant=minbase", f'--setup-hook=cp -r {shlex.quote(str(files))}/. "$1"'),
        timeout_s=BUILD_TIMEOUT_S,
    )
    shutil.rmtree(files)


def _add_files(image: DeviceImage, root: Path) -> None:
    for name, content in _FILES.items():
        _write(root / name, content)
    authorized_keys = root / "root/.ssh/authorized_keys"
    _write(authorized_keys, image.key.with_suffix(".pub").read_text())
    authorized_keys.parent.chmod(0o700)
    # Enable the services with symbolic links, because systemctl would have to run under emulation.
    wanted = root / "etc/systemd/system/multi-user.target.wants"
    for unit in ("ssh.service", "systemd-networkd.service"):
        link = wanted / unit
        if not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(f"/lib/systemd/system/{unit}")
    for name, path in (("vmlinuz", image.kernel), ("initrd.img", image.initrd)):
        files = sorted((root / "boot").glob(f"{name}-*"))
        if not files:
            raise TargetError(f"Debian's kernel package for {image.architecture} contains no {name}: report this error")
        shutil.copyfile(files[-1], path)
    for folder in ("var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(root / folder, ignore_errors=True)
        (root / folder).mkdir(parents=True)


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def _write_disk(image: DeviceImage, root: Path) -> None:
    raw = image.folder / "disk.raw"
    with raw.open("wb") as file:
        file.truncate(DISK_BYTES)
    _checked([require_program("mkfs.ext4", "e2fsprogs"), "-q", "-d", root, raw])
    _checked([require_program("qemu-img", "qemu-utils"), "convert", "-O", "qcow2", raw, image.disk])
    raw.unlink()


def _checked(command: Sequence[str | Path]) -> None:
    done = call(command, timeout_s=BUILD_TIMEOUT_S)
    if done.code:
        raise TargetError(
            f"{Path(command[0]).name} failed while building a device image: {done.error_line}: check the free disk "
            "space"
        )
