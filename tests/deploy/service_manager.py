"""A replacement for systemd on a test device, which starts, monitors and restarts the processes of units.

Depending on its file name, this program is the server, ``systemctl``, ``systemd-run`` or ``journalctl``. Times in units
are multiplied by ``SCALE`` to make the tests faster.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

ADDRESS = "/run/service-manager"
UNITS = Path("/etc/systemd/system")
SCALE = 0.05
# Environment variable, also sent as an option, that marks requests of programs that a unit has started.
FROM_SERVICE = "--from-service"


class Service:
    """A systemd service, with its unit file, process and log."""

    def __init__(self, name):
        self.name = name
        self.log = []
        self.state, self.sub_state, self.result = "inactive", "dead", "success"
        self.restarts, self.pid, self.exit_status, self.invocation = 0, 0, 0, ""
        self._lock = threading.RLock()
        self._wanted = False
        self._process = None
        self._thread = None
        self._shown = threading.Event()
        self._values = None

    def start(self):
        with self._lock:
            if self._wanted:
                return
            self._wanted = True
            self.restarts = 0
            self._thread = threading.Thread(target=self._supervise, daemon=True)
            self._thread.start()

    def stop(self):
        with self._lock:
            self._wanted = False
            process, thread = self._process, self._thread
        self._shown.set()
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        if thread is not None:
            thread.join(20)
        self.state, self.sub_state, self.pid = "inactive", "dead", 0

    def restart(self):
        self.stop()
        self.start()

    def _supervise(self):
        while self._wanted:
            self._run_once()
            if not self._wanted:
                return
            # Wait until the state "auto-restart" was queried, so that tests do not depend on the interval of queries.
            self._shown.clear()
            self.state, self.sub_state = "activating", "auto-restart"
            self._shown.wait(self._seconds("RestartSec", 5) / SCALE)
            self.restarts += 1

    def _run_once(self):
        with self._lock:  # so that show() does not return the new invocation with the result of the previous one
            self.invocation, self.result = uuid.uuid4().hex, "success"
            self.state, self.sub_state = "activating", "start"
        unit = self._unit()
        environment = {**os.environ, FROM_SERVICE: "1"}
        for command in unit.get("ExecStartPre", []):
            code = subprocess.run(command.lstrip("-+").split(), check=False, env=environment).returncode
            if code and not command.startswith("-"):
                self.result = "exit-code"
                return
        if not self._wanted:
            return
        for folder in unit.get("RuntimeDirectory", []):
            os.makedirs(f"/run/{folder}", exist_ok=True)
        address = f"/run/notify-{self.invocation}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(address)
            notify.settimeout(0.05)
            watchdog_s = self._seconds("WatchdogSec", 45)
            environment = {
                "PATH": os.environ["PATH"],
                "NOTIFY_SOCKET": address,
                "WATCHDOG_USEC": str(int(watchdog_s * 1e6)),
            }
            try:
                self._process = subprocess.Popen(
                    unit["ExecStart"][0].split(), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
                )
            except OSError as error:
                self.result, self.exit_status = "exit-code", 203
                self.log.append(f"{unit['ExecStart'][0]}: {error.strerror}")
                return
            self.pid = self._process.pid
            threading.Thread(target=self._read_log, args=(self._process,), daemon=True).start()
            alive_s = time.monotonic()
            while self._process.poll() is None:
                try:
                    message = notify.recv(4096)
                except TimeoutError:
                    message = b""
                if b"READY=1" in message:
                    self.state, self.sub_state = "active", "running"
                if message:
                    alive_s = time.monotonic()
                if time.monotonic() - alive_s > max(watchdog_s, 1):
                    self.log.append(f"{self.name}: Watchdog timeout (limit {watchdog_s}s)!")
                    self._process.kill()
                    self._process.wait()
                    self.result = "watchdog"
        os.unlink(address)
        self.exit_status = self._process.returncode
        if self.result == "success" and self.exit_status:
            self.result = "exit-code" if self.exit_status > 0 else "signal"
        self.pid = 0

    def _read_log(self, process):
        for line in process.stderr:
            self.log.append(line.decode().rstrip())

    def reload(self):
        """Discard the cached content of the unit file, so that the file is read again."""
        self._values = None

    def _unit(self):
        if self._values is None:
            self._values = self._read_unit()
        return self._values

    def _read_unit(self):
        values = {}
        for line in (UNITS / self.name).read_text().splitlines():
            key, separator, value = line.partition("=")
            if separator and not line.startswith("#"):
                values.setdefault(key, []).append(value)
        return values

    def _seconds(self, key, default):
        return float(self._unit().get(key, [default])[0]) * SCALE

    def show(self, names):
        with self._lock:
            values = {
                "ActiveState": self.state,
                "SubState": self.sub_state,
                "MainPID": self.pid,
                "NRestarts": self.restarts,
                "Result": self.result,
                "InvocationID": self.invocation,
                "ExecMainStatus": self.exit_status,
            }
        self._shown.set()
        return "".join(f"{name}={values[name]}\n" for name in names)


class Server:
    """Handle the requests of ``systemctl``, ``systemd-run`` and ``journalctl``."""

    def __init__(self):
        self.services = {}

    def service(self, name):
        name = name if name.endswith(".service") else f"{name}.service"
        return self.services.setdefault(name, Service(name))

    def systemctl(self, words):
        options = {word for word in words if word.startswith("-")}
        verb, *names = [word for word in words if not word.startswith("-")]
        if verb == "daemon-reload":
            for service in self.services.values():
                service.reload()
            return 0, ""
        if verb == "is-system-running":
            return 0, "running\n"
        service = self.service(names[0])
        if verb in ("start", "restart", "enable") and not (UNITS / service.name).exists():
            return 5, f"Unit {service.name} not found.\n"
        if verb == "restart" and "--no-block" in options and FROM_SERVICE in options:
            # Restart the service in a thread, because the service waits for the program that requested the restart.
            threading.Thread(target=service.restart, daemon=True).start()
        elif verb == "restart":
            service.restart()
        elif verb == "start" or (verb == "enable" and "--now" in options):
            service.start()
        elif verb == "stop" or (verb == "disable" and "--now" in options):
            service.stop()
        elif verb == "show":
            names = next(word for word in options if word.startswith("--property=")).partition("=")[2]
            return 0, service.show(names.split(","))
        elif verb == "is-active":
            return (0 if service.state == "active" else 3), f"{service.state}\n"
        return 0, ""

    def journalctl(self, words):
        log = list(self.service(words[words.index("--unit") + 1]).log)
        # The cursor of an entry is its number. With a cursor, journalctl would select the first lines after the cursor.
        if "--after-cursor" in words:
            assert "--lines" not in words
            lines = log[int(words[words.index("--after-cursor") + 1]) :]
        else:
            lines = log[-int(words[words.index("--lines") + 1]) :]
        if lines and "--show-cursor" in words:
            lines.append(f"-- cursor: {len(log)}")
        return 0, "".join(f"{line}\n" for line in lines)

    def run(self, words):
        start = words.index("--unit") + 2
        subprocess.Popen(words[start:], stdin=subprocess.DEVNULL, start_new_session=True)
        return 0, ""

    def answer(self, connection):
        with connection:
            program, *words = json.loads(connection.makefile().readline())
            handler = {"systemctl": self.systemctl, "journalctl": self.journalctl, "systemd-run": self.run}[program]
            connection.sendall(json.dumps(handler(words)).encode())

    def serve(self):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(ADDRESS)
            listener.listen(64)
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=self.answer, args=(connection,), daemon=True).start()


def main():
    program = os.path.basename(sys.argv[0])
    if program == "service_manager.py":
        Server().serve()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(ADDRESS)
        words = [*sys.argv[1:], *([FROM_SERVICE] if FROM_SERVICE in os.environ else [])]
        connection.sendall(json.dumps([program, *words]).encode() + b"\n")
        code, output = json.loads(connection.makefile().read())
    (sys.stderr if code else sys.stdout).write(output)
    sys.exit(code)


if __name__ == "__main__":
    main()
