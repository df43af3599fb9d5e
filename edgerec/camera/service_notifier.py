"""Notify the service manager that the camera has started, is running or is stopping (sd_notify protocol)."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Mapping

from edgerec.camera.source_state import StateChange
from edgerec.utils.text import printable

log = logging.getLogger(__name__)

# Timeout in seconds for sending a notification to the service manager.
SEND_S = 0.2


class ServiceNotifier:
    """Sends notifications to the service manager's socket, as described in ``man sd_notify``.

    If there is no service manager, nothing is sent. The class has no thread of its own. Instead, the thread that
    processes frames calls :meth:`alive` so that the watchdog expires if this thread hangs.
    """

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        """Create a notifier without opening a socket.

        Args:
            address: path to the service manager's datagram socket. A leading ``@`` denotes Linux's abstract namespace.
                If empty, nothing is sent.
            watchdog_s: the service manager's watchdog timeout in seconds, or 0 if there is no watchdog.
        """
        # sd_watchdog_enabled(3) recommends half the timeout. A quarter leaves more time for a slow frame.
        self._interval_s = watchdog_s / 4
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._watched = watchdog_s > 0
        # time.monotonic() can start at 0 when the device boots, so 0 would delay the first notification.
        self._last_s = -math.inf

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> ServiceNotifier:
        """Create a notifier from the environment variables NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID.

        Args:
            environment: environment variables. None means those of this process.
        """
        values = os.environ if environment is None else environment
        timeout_us, pid = values.get("WATCHDOG_USEC", ""), values.get("WATCHDOG_PID", "")
        has_watchdog = timeout_us.isdecimal() and (not pid or pid == str(os.getpid()))
        return cls(values.get("NOTIFY_SOCKET", ""), int(timeout_us) / 1e6 if has_watchdog else 0.0)

    def ready(self) -> None:
        """Report to the service manager that the camera has started, even if no source has delivered a frame yet."""
        self._send("READY=1")

    def alive(self) -> None:
        """Reset the watchdog. Can be called for every frame because notifications are rate-limited."""
        now = time.monotonic()
        if self._watched and now - self._last_s >= self._interval_s:
            self._last_s = now
            self._send("WATCHDOG=1")

    def report_state(self, change: StateChange) -> None:
        """Report a source's state as the text shown by ``systemctl status``."""
        status = f"{change.source}: {change.state}{f' ({change.reason})' if change.reason else ''}"
        self._send("STATUS=" + printable(status))

    def stopping(self) -> None:
        """Report to the service manager that the camera is stopping."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
                connection.settimeout(SEND_S)
                connection.sendto(message.encode(errors="replace"), self._address)
        except (OSError, ValueError, AttributeError) as error:  # AF_UNIX does not exist on Windows.
            log.debug("the notification %s could not be sent to the service manager: %s", message, error)
