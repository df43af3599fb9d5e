"""What a service manager is told: that the camera runs, that it is alive, and that it ends (systemd's sd_notify)."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

from edgerec.camera.source_state import StateChange
from edgerec.utils.text import printable

log = logging.getLogger(__name__)

# A manager that does not read must not stop the camera.
SEND_S = 0.2


class Service:
    """Sends states to the socket that systemd named, as ``man sd_notify`` describes them; without one, nothing.

    It has no thread of its own: the watchdog is fed by whoever does the work, when it did some.
    """

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        """Open nothing yet.

        Args:
            address: of a datagram socket; one that begins with ``@`` is in Linux' abstract namespace. Empty: nobody
                listens.
            watchdog_s: how long the service manager waits for a sign of life; 0 wants none.
        """
        # The manager's advice is half of its timeouts; more often tells it nothing, and costs.
        self._every_s = watchdog_s / 4
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._watched = watchdog_s > 0
        self._last_s = 0.0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Service:
        """As ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` say."""
        values = os.environ if environment is None else environment
        micros, process = values.get("WATCHDOG_USEC", ""), values.get("WATCHDOG_PID", "")
        ours = not process or process == str(os.getpid())
        return cls(values.get("NOTIFY_SOCKET", ""), int(micros) / 1e6 if micros.isdecimal() and ours else 0.0)

    def ready(self) -> None:
        """The camera is set up, whether its sources give pictures yet or not."""
        self._send("READY=1")

    def alive(self) -> None:
        """The work goes on. May be called for each frame: most calls send nothing."""
        now = time.monotonic()
        if self._watched and now - self._last_s >= self._every_s:
            self._last_s = now
            self._send("WATCHDOG=1")

    def tell(self, change: StateChange) -> None:
        """A source's state, which ``systemctl status`` shows."""
        words = f"{change.source}: {change.state}{f' ({change.reason})' if change.reason else ''}"
        self._send("STATUS=" + printable(words))

    def stopping(self) -> None:
        """No more frames; what is left to do is to finish."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.settimeout(SEND_S)
                out.sendto(message.encode(errors="replace"), self._address)
        except (OSError, ValueError, AttributeError) as error:  # AttributeError: no such sockets on Windows
            log.debug("the service manager did not take %s: %s", message, error)
