"""Run commands when a decision changes."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from edgerec.camera.actions import Action
from edgerec.camera.frame import Result
from edgerec.camera.sinks.events import DecisionChanges, source_of
from edgerec.camera.source_state import SourceState, StateChange
from edgerec.errors import EdgerecError
from edgerec.utils.child_process import run_program
from edgerec.utils.clock import unix_s
from edgerec.utils.text import printable

log = logging.getLogger(__name__)

# Maximum time in seconds to wait for queued commands when the sink of a live camera is closed.
FLUSH_S = 5.0
# Maximum number of bytes of a command's output to keep for error messages.
OUTPUT_BYTES = 8192
MAX_REASON = 300
# Minimum time in seconds between two warnings about the same action.
WARN_S = 60.0
# Environment variables that are not passed to commands: edgerec's secrets, and variables that systemd sets.
_SECRET = re.compile(r"EDGEREC_\w*(?:TOKEN|PASSWORD|SECRET|KEY)(?:_FILE)?")
_OF_SERVICE = frozenset({"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "CREDENTIALS_DIRECTORY"})


@dataclass(frozen=True)
class _Run:
    """A command in the queue, with its additional environment variables."""

    index: int
    variables: dict[str, str]


class CommandActions:
    """Runs the commands of actions in a background thread, one at a time.

    For a live camera, a newer decision of the same source or region replaces a queued command of the same action.

    Attributes:
        succeeded: number of commands that exited with code 0.
        dropped: number of commands that failed or were discarded when the sink was closed.
        replaced: number of queued commands that were replaced because of a newer decision.
    """

    closed = False
    name = "actions"
    loss = ("command", "failed")
    uses_images = False

    def __init__(self, actions: Sequence[Action], *, live: bool = True, secrets: Collection[str] = ()) -> None:
        """Start a thread that runs the commands of actions.

        Args:
            actions: actions with a command.
            live: whether newer decisions replace queued commands. Otherwise, e.g. for a video file, :meth:`write` waits
                for the queue, and :meth:`close` runs all queued commands.
            secrets: names of environment variables with secrets, which are not passed to commands.

        Raises:
            EdgerecError: the program of an action does not exist.
        """
        self.succeeded = self.dropped = self.replaced = 0
        self._actions = list(actions)
        for action in self._actions:
            command = action.config.command or ()
            if not shutil.which(command[0]):
                raise EdgerecError(
                    f"cannot run an action: its program {printable(command[0])} was not found or is not executable; "
                    "install it, or specify its path"
                )
        self._live, self._secrets = live, frozenset(secrets)
        self._changes = DecisionChanges()
        # Last label of each source and region, keyed by source and display name.
        self._previous: dict[tuple[str, str], str] = {}
        self._waiting: dict[tuple[int, str], _Run] = {}
        self._changed = threading.Condition()
        self._finishing, self._stop = False, threading.Event()
        self._warned_s: dict[tuple[int, str], float] = {}
        self._thread = threading.Thread(target=self._work, name="edgerec-actions", daemon=True)
        self._thread.start()

    def write(self, result: Result) -> None:
        """Queue the commands that a new decision triggers."""
        decision, name = result.decision, source_of(result)
        if decision is None or not self._changes.is_new(result):
            return
        frame = result.frame
        source = frame.source or frame.origin
        previous, self._previous[source, name] = self._previous.get((source, name), ""), decision.label
        variables = {
            "EDGEREC_LABEL": decision.label,
            "EDGEREC_PREVIOUS_LABEL": previous,
            "EDGEREC_SCORE": f"{decision.score:.4f}",
            "EDGEREC_SOURCE": source,
            "EDGEREC_REGION": frame.region.name if frame.region else "",
            "EDGEREC_TIME": f"{unix_s(decision.since_s):.3f}",
        }
        for index, action in enumerate(self._actions):
            if action.applies_to(result) and action.includes(decision.label):
                self._put((index, name), _Run(index, variables))

    def state(self, change: StateChange) -> None:
        """Discard the previous labels of a lost source."""
        if change.state is SourceState.LOST:
            for key in [key for key in self._previous if key[0] == change.source]:
                del self._previous[key]

    def close(self) -> None:
        """Run the queued commands. For a live camera, kill the current command after 5 s and discard the rest."""
        with self._changed:
            self._finishing = True
            self._changed.notify_all()
        self._thread.join(FLUSH_S if self._live else None)
        self.abandon()
        with self._changed:
            if self._waiting:
                self.dropped += len(self._waiting)
                log.warning("%d commands of actions were not run before the camera ended", len(self._waiting))

    def abandon(self) -> None:
        """Kill the current command and discard the queued ones. May be called from any thread."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(FLUSH_S / 5)

    def _put(self, key: tuple[int, str], run: _Run) -> None:
        with self._changed:
            if not self._live:
                self._changed.wait_for(lambda: key not in self._waiting or self._stop.is_set())
                if self._stop.is_set():
                    self.dropped += 1
                    return
            elif self._waiting.pop(key, None) is not None:
                self.replaced += 1
                self._warn(run.index, "replaced", f"is too slow: {self.replaced} commands were replaced so far")
            self._waiting[key] = run
            self._changed.notify_all()

    def _work(self) -> None:
        while not self._stop.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._finishing or self._stop.is_set())
                if not self._waiting or self._stop.is_set():
                    return
                run = self._waiting.pop(next(iter(self._waiting)))
                self._changed.notify_all()
            try:
                reason = self._run(run)
            except Exception as error:  # An error must not stop the thread that runs later commands.
                reason = f"failed ({error})"
            if reason:
                self.dropped += 1
                self._warn(
                    run.index,
                    "failed",
                    f"{reason}; {self.dropped} of {self.dropped + self.succeeded} commands failed so far",
                )
            else:
                self.succeeded += 1

    def _run(self, run: _Run) -> str:
        """Run a command and return the reason for its failure, or an empty string if the command succeeded."""
        config = self._actions[run.index].config
        with _OutputTail() as tail:
            outcome = run_program(
                config.command or (),
                timeout_s=config.timeout_s,
                stop=self._stop,
                stdin=subprocess.DEVNULL,
                stdout=tail.descriptor,
                stderr=tail.descriptor,
                env={**self._environment(), **run.variables},
            )
        if outcome.failure or not outcome.code:
            return outcome.failure
        return f"exited with code {outcome.code}{f': {tail.last_line}' if tail.last_line else ''}"

    def _environment(self) -> dict[str, str]:
        hidden = self._secrets | _OF_SERVICE
        return {name: value for name, value in os.environ.items() if name not in hidden and not _SECRET.fullmatch(name)}

    def _warn(self, index: int, kind: str, text: str) -> None:
        now = time.monotonic()
        if now - self._warned_s.get((index, kind), -WARN_S) >= WARN_S:
            self._warned_s[index, kind] = now
            command = self._actions[index].config.command or ("",)
            number = self._actions[index].index
            log.warning("the command %s of action[%d] %s", printable(Path(command[0]).name), number, text)


class _OutputTail:
    """A pipe that keeps only the end of a program's output to limit memory use.

    Attributes:
        descriptor: file descriptor to which the program writes.
        last_line: last line of the output, set at the end of the context.
    """

    def __init__(self) -> None:
        self._reader, self.descriptor = os.pipe()
        self.last_line = ""
        self._tail = b""
        self._done = threading.Event()
        if hasattr(os, "set_blocking"):  # Python supports set_blocking on Windows only since version 3.12.
            os.set_blocking(self._reader, False)
        self._thread = threading.Thread(target=self._read, name="edgerec-action-output", daemon=True)

    def __enter__(self) -> _OutputTail:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.descriptor)
        self._done.set()
        self._thread.join(1.0)
        lines = self._tail.decode(errors="replace").split("\n")
        lines = [line.strip() for line in lines if line.strip()]
        self.last_line = printable(lines[-1])[-MAX_REASON:] if lines else ""

    def _read(self) -> None:
        # A background process of the command may keep the pipe open after the command has exited.
        with os.fdopen(self._reader, "rb", buffering=0) as reader:
            while True:
                done = self._done.is_set()
                content = reader.read(OUTPUT_BYTES)
                if content:
                    self._tail = (self._tail + content)[-OUTPUT_BYTES:]
                elif content == b"" or done:
                    return
                else:
                    self._done.wait(0.02)
