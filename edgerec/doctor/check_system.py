"""Check the operating system, clock and locale."""

from __future__ import annotations

import locale
import os
import platform
import re
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from edgerec.doctor.check_result import CheckResult, note, ok, problem
from edgerec.runtime.video_devices import ROOT, read_text
from edgerec.utils.parallel import available_cpus

# The clock is wrong if the system time is earlier than the release date of edgerec.
_RELEASED_S = 1_761_955_200  # 2025-11-01
_DAY_S = 86_400


@dataclass(frozen=True)
class System:
    """A machine's operating system, hardware, user and clock.

    Attributes:
        os: ``Linux``, ``Darwin`` or ``Windows``.
        title: display name of the operating system.
        machine: the kernel's CPU architecture.
        bits: word size of programs, 32 or 64. A 64-bit kernel can run 32-bit programs.
        board: name of the single-board computer; empty for other machines.
        kernel: release of the Linux kernel, e.g. ``6.12.47+rpt-rpi-v8``; empty on other systems.
        processors: number of CPU cores that this process may use.
        avx: whether an x86 CPU has AVX; None for other CPUs.
        root: whether this process runs as root.
        user: name of the user, for commands in messages.
        groups: the current session's groups.
        member_of: groups that the user will have after logging in again.
        now_s: system time as a Unix timestamp.
        installed_s: installation time of edgerec as a Unix timestamp.
        encoding: encoding of the terminal or of file names; empty if both are UTF-8.
    """

    os: str = "Linux"
    title: str = "Linux"
    machine: str = "x86_64"
    bits: int = 64
    board: str = ""
    kernel: str = ""
    processors: int = 4
    avx: bool | None = None
    root: bool = False
    user: str = ""
    groups: tuple[str, ...] = ()
    member_of: tuple[str, ...] = ()
    now_s: float = _RELEASED_S
    installed_s: float = _RELEASED_S
    encoding: str = ""

    @property
    def arch(self) -> str:
        """CPU architecture of programs, which may differ from the architecture of the kernel."""
        return arch(self.machine, self.bits)

    @property
    def sudo(self) -> str:
        """Prefix for commands that require root permissions: ``sudo``, or an empty string for root."""
        return "" if self.root else "sudo "

    @property
    def pi(self) -> bool:
        """Whether this machine is a Raspberry Pi."""
        return self.board.startswith("Raspberry Pi")

    def join(self, group: str) -> str:
        """Return a command that adds the user to a group.

        If the user is already a member, return a command that starts a session in which the membership is active.
        """
        if group in self.member_of:
            return f"exec su - {self.user or '$USER'}"  # A new group membership is only active in a new session.
        return f"sudo usermod -aG {group} {self.user or '$USER'}   # then log out and in again"


def arch(machine: str, bits: int) -> str:
    """Return the CPU architecture of programs, which are 32-bit on some machines with a 64-bit kernel.

    Args:
        machine: the kernel's CPU architecture.
        bits: word size of the programs.
    """
    return "armv7l" if bits == 32 and machine in ("aarch64", "armv8l") else machine


def own_bits() -> int:
    """Return the word size of the Python interpreter in bits."""
    return struct.calcsize("P") * 8


def collect(root: Path = ROOT) -> System:
    """Return information about this machine's operating system, hardware, user and clock.

    Args:
        root: folder that contains ``proc``.
    """
    groups, member_of = _groups()
    return System(
        os=platform.system(),
        title=_title(),
        machine=platform.machine(),
        bits=own_bits(),
        board=read_text(root / "proc/device-tree/model"),
        kernel=read_text(root / "proc/sys/kernel/osrelease"),
        processors=available_cpus(),
        avx=_avx(),
        root=hasattr(os, "geteuid") and os.geteuid() == 0,
        user=os.environ.get("USER", "") if re.fullmatch(r"[\w.-]+", os.environ.get("USER", "")) else "",
        groups=groups,
        member_of=member_of,
        now_s=time.time(),
        installed_s=Path(__file__).stat().st_mtime,
        encoding=_encoding(),
    )


def check(system: System) -> list[CheckResult]:
    """Check the operating system, the clock and the locale."""
    count = f"{system.processors} CPU core{'s' if system.processors > 1 else ''}"
    result = [ok("system", ", ".join(filter(None, [system.board, system.title, system.arch, count])))]
    if system.bits == 32 and system.machine in ("aarch64", "armv8l", "x86_64"):
        detail = (
            f"pip may install packages for {system.machine}, because the kernel is 64-bit although programs are 32-bit"
        )
        fix = 'pip install --no-deps edgerec tflite-runtime && pip install typer "numpy<2"'
        result.append(note("system", detail, fix))
    if system.now_s < max(system.installed_s, _RELEASED_S) - _DAY_S:
        today = time.strftime("%Y-%m-%d", time.gmtime(system.now_s))
        fix = f"{system.sudo}timedatectl set-ntp true" if system.os == "Linux" else ""
        detail = f"the clock is wrong ({today} is before edgerec was installed), so TLS connections and pip will fail"
        result.append(problem("clock", detail, fix))
    if system.encoding:
        fix = "set PYTHONUTF8=1" if system.os == "Windows" else "export LC_ALL=C.UTF-8"
        detail = (
            f"some labels and file names cannot be printed, because the encoding is {system.encoding} instead of UTF-8"
        )
        result.append(note("locale", detail, fix))
    return result


def _title() -> str:
    if platform.system() == "Linux":
        try:
            return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
        except OSError:
            return "Linux"
    if platform.system() == "Darwin":
        return f"macOS {platform.mac_ver()[0]}"
    return f"{platform.system()} {platform.release()}"


def _groups() -> tuple[tuple[str, ...], tuple[str, ...]]:
    try:
        import grp
        import pwd
    except ImportError:  # Windows
        return (), ()
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
        all_groups = grp.getgrall()
    except (KeyError, OSError):  # The user ID may be missing from a container's /etc/passwd.
        return (), ()
    session = set(os.getgroups()) | {os.getegid()}
    return (
        tuple(group.gr_name for group in all_groups if group.gr_gid in session),
        tuple(group.gr_name for group in all_groups if user in group.gr_mem),
    )


def _avx() -> bool | None:
    flags = re.search(r"^flags\s*:(.*)$", read_text(ROOT / "proc/cpuinfo"), re.M)
    if platform.machine() not in ("x86_64", "AMD64") or flags is None:
        return None
    return "avx" in flags[1].split()


def _encoding() -> str:
    for name in (
        getattr(sys.stdout, "encoding", None),
        locale.getpreferredencoding(False),
        sys.getfilesystemencoding(),
    ):
        if name and name.lower().replace("-", "").replace("_", "") not in ("utf8", "cp65001"):
            return str(name)
    return ""
