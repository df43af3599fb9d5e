"""Deploy bundles to several devices in parallel, optionally to a few canary devices first."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edgerec.camera.interrupts import Interrupts
from edgerec.deploy.devices_file import FleetDevice
from edgerec.deploy.operation import DeployOptions, DeployResult, Listener, Step
from edgerec.deploy.release import deploy_bundle
from edgerec.deploy.worker_threads import start_worker
from edgerec.errors import DeployError, EdgerecError

log = logging.getLogger(__name__)

State = Literal["updated", "unchanged", "planned", "failed", "canceled", "not started", "unknown"]
CANARY_TAG = "canary"
DEFAULT_PARALLEL, MAX_PARALLEL = 4, 64
# Steps during which a deployment can be canceled, because the device has not been changed yet.
CANCELABLE = ("connect", "check", "plan", "send")
_POLL_S = 0.2

# Type of a function that performs an operation, e.g. a deployment or rollback, on one device.
Operation = Callable[[FleetDevice, DeployOptions, Listener], DeployResult]


class _CanceledError(Exception):
    """Raised to cancel a deployment that has not changed the device yet."""


@dataclass(frozen=True)
class DeviceOutcome:
    """Result of the deployment to one device of a fleet.

    Attributes:
        device: name of the device.
        state: ``updated``, ``unchanged`` (the release was already running), ``planned`` (a dry run found steps to
            perform), ``failed``, ``canceled`` (the user stopped the deployment before the device was changed), ``not
            started`` (another device failed before), or ``unknown`` (the user stopped waiting; the device finishes by
            itself).
        result: result of a successful deployment.
        error: reason why the device was not updated, or an empty string.
        step: name of the step that failed, or an empty string.
        restored: whether the previous release was restored.
        log: last lines that the service on the device logged.
        seconds: duration of the deployment.
    """

    device: str
    state: State
    result: DeployResult | None = None
    error: str = ""
    step: str = ""
    restored: bool = False
    log: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def succeeded(self) -> bool:
        """Whether the device runs the release, or a dry run found no problem."""
        return self.state in ("updated", "unchanged", "planned")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-serializable dictionary."""
        result = self.result.to_dict() if self.result else None
        return {**vars(self), "log": list(self.log), "result": result}


def deploy_to_fleet(
    bundle: Path | str | None,
    devices: Sequence[FleetDevice],
    options: DeployOptions = DeployOptions(),
    *,
    parallel: int = DEFAULT_PARALLEL,
    canary: int = 0,
    listener: Listener = bool,
    finished: Callable[[DeviceOutcome], object] = bool,
    stop: threading.Event | None = None,
) -> list[DeviceOutcome]:
    """Deploy a bundle to several devices.

    If the deployment to a device fails, the previous release of this device is restored, and the deployments to the
    other devices continue. If the deployment to a canary device fails, no other device is updated.

    In the main thread, Ctrl-C cancels all deployments that have not changed their device yet. When the other
    deployments have finished, ``KeyboardInterrupt`` is raised. After a second Ctrl-C, this function no longer waits for
    the devices, which complete their deployments without the host.

    Args:
        bundle: the bundle's folder or .zip file. None deploys the bundle in ``devices.toml`` to each device.
        devices: the devices.
        options: options of the deployment. A device's own configuration file is used if ``options.config`` is None.
        parallel: maximum number of devices that are updated at the same time.
        canary: number of canary devices, which are updated first. Devices with the tag ``canary`` are chosen first, in
            the order of ``devices``.
        listener: function that is called with each step of each device. Only one thread at a time calls the function.
        finished: function that is called with each outcome, in the thread of the caller.
        stop: event that cancels the deployments when it is set, in the same way as Ctrl-C.

    Returns:
        The outcomes, in the order of ``devices``.

    Raises:
        DeployError: a device has no bundle.
        KeyboardInterrupt: the user stopped the deployment. ``finished`` has been called for each device.
    """
    bundles = {entry.name: _bundle_for(bundle, entry) for entry in devices}

    def deploy(entry: FleetDevice, options: DeployOptions, listener: Listener) -> DeployResult:
        options = options if options.config else replace(options, config=entry.config)
        return deploy_bundle(bundles[entry.name], entry.device, options, listener)

    return run_on_fleet(
        deploy, devices, options, parallel=parallel, canary=canary, listener=listener, finished=finished, stop=stop
    )


def run_on_fleet(
    operation: Operation,
    devices: Sequence[FleetDevice],
    options: DeployOptions = DeployOptions(),
    *,
    parallel: int = DEFAULT_PARALLEL,
    canary: int = 0,
    listener: Listener = bool,
    finished: Callable[[DeviceOutcome], object] = bool,
    stop: threading.Event | None = None,
) -> list[DeviceOutcome]:
    """Perform an operation, such as a rollback, on several devices.

    Args:
        operation: function that performs the operation on one device.
        devices: the devices.
        options: options of the operation.
        parallel, canary, listener, finished, stop: see :func:`deploy_to_fleet`.

    Returns:
        The outcomes, in the order of ``devices``.

    Raises:
        KeyboardInterrupt: the user stopped the operation. ``finished`` has been called for each device.
    """
    if parallel < 1 or canary < 0:
        raise ValueError(f"parallel is {parallel} (expected at least 1) and canary is {canary} (expected at least 0)")
    rollout = _Rollout(operation, devices, options, listener, finished, stop or threading.Event())
    order = sorted(range(len(devices)), key=lambda index: CANARY_TAG not in devices[index].tags)
    first, rest = order[:canary], order[canary:]
    with Interrupts(rollout.interrupt):
        rollout.run(first, parallel)
        failed = [devices[index].name for index in first if rollout.outcomes[index].state == "failed"]
        if failed:
            rollout.skip(rest, "not started", f"the deployment to the canary {', '.join(failed)} failed")
        else:
            rollout.run(rest, parallel)
    return [rollout.outcomes[index] for index in range(len(devices))]


def _bundle_for(bundle: Path | str | None, entry: FleetDevice) -> Path:
    path = entry.bundle if bundle is None else Path(bundle)
    if path is None:
        raise DeployError(
            f"there is no bundle for {entry.name}: specify BUNDLE, or add the key bundle to its table in devices.toml"
        )
    return path


class _Rollout:
    """Run an operation on several devices in threads, and collect the outcomes."""

    def __init__(
        self,
        operation: Operation,
        devices: Sequence[FleetDevice],
        options: DeployOptions,
        listener: Listener,
        finished: Callable[[DeviceOutcome], object],
        stop: threading.Event,
    ) -> None:
        self.outcomes: dict[int, DeviceOutcome] = {}
        self._operation, self._devices, self._options = operation, devices, options
        self._listener, self._finished, self._stop = listener, finished, stop
        self._listener_lock = threading.Lock()
        self._abandoned = self._stop_reported = False

    def run(self, indexes: Sequence[int], parallel: int) -> None:
        """Run the operation on a batch of devices, and wait for the outcomes."""
        waiting = list(reversed(indexes))
        results = queue.SimpleQueue[tuple[int, DeviceOutcome | BaseException]]()
        running: set[int] = set()
        errors: list[BaseException] = []
        while waiting or running:
            if self._stop.is_set():
                self._report_stop(running)
                self.skip(reversed(waiting), "canceled", "the deployment was stopped")
                waiting.clear()
            while waiting and len(running) < parallel:
                running.add(index := waiting.pop())
                start_worker(self._deploy, index, results, "edgerec-deploy")
            if self._abandoned:
                self.skip(sorted(running), "unknown", "the device finishes by itself: run edgerec devices")
                return
            try:
                index, outcome = results.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            running.discard(index)
            if isinstance(outcome, BaseException):
                self._stop.set()
                errors.append(outcome)
            else:
                self._add(index, outcome)
        for error in errors:
            raise error

    def interrupt(self) -> None:
        """Cancel the operation. If this method is called again, stop waiting for the devices."""
        self._abandoned = self._stop.is_set()
        self._stop.set()

    def skip(self, indexes: Iterable[int], state: State, reason: str) -> None:
        """Record an outcome for each device that is not updated."""
        for index in indexes:
            self._add(index, DeviceOutcome(self._devices[index].name, state, error=reason))

    def _report_stop(self, running: set[int]) -> None:
        if running and not self._stop_reported:
            names = ", ".join(self._devices[index].name for index in sorted(running))
            log.info("stopping: waiting for %s. Press Ctrl-C again to let the devices finish by themselves", names)
        self._stop_reported = True

    def _add(self, index: int, outcome: DeviceOutcome) -> None:
        self.outcomes[index] = outcome
        self._finished(outcome)

    def _deploy(self, index: int) -> DeviceOutcome:
        entry, start_s = self._devices[index], time.monotonic()
        # ssh must not ask for passwords, because several ssh processes share the terminal.
        entry = replace(entry, device=replace(entry.device, interactive=False))

        def seconds() -> float:
            return round(time.monotonic() - start_s, 3)

        def listen(step: Step) -> None:
            if self._stop.is_set() and step.name in CANCELABLE:
                raise _CanceledError
            with self._listener_lock:
                if not self._abandoned:
                    self._listener(step)

        try:
            result = self._operation(entry, self._options, listen)
        except _CanceledError:
            reason = "the deployment was stopped before the device was changed"
            return DeviceOutcome(entry.name, "canceled", error=reason, seconds=seconds())
        except DeployError as error:
            return DeviceOutcome(
                entry.name,
                "failed",
                error=_without_name(str(error), entry.name),
                step=error.step,
                restored=error.restored,
                log=error.log,
                seconds=seconds(),
            )
        except (EdgerecError, OSError) as error:
            return DeviceOutcome(entry.name, "failed", error=str(error), seconds=seconds())
        planned = any(step.state == "planned" for step in result.steps)
        state: State = "planned" if planned else "updated" if result.changed else "unchanged"
        return DeviceOutcome(entry.name, state, result, seconds=seconds())


def _without_name(message: str, name: str) -> str:
    return message.removeprefix(f"{name}: ").removeprefix(f"cannot connect to {name}: ")
