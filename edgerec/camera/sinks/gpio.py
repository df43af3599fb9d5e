"""Switch the output pins of a single-board computer when a decision changes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from edgerec.camera.actions import Action
from edgerec.camera.frame import Result
from edgerec.camera.sinks.events import DecisionChanges, source_of
from edgerec.camera.source_state import SourceState, StateChange
from edgerec.errors import EdgerecError
from edgerec.utils.optional import require


class GpioActions:
    """Switches the GPIO pins of actions. All pins are off when the camera starts and after it has stopped."""

    closed = False
    name = "gpio"
    uses_images = False

    def __init__(self, actions: Sequence[Action]) -> None:
        """Open all pins and switch them off.

        Args:
            actions: actions with a GPIO pin.

        Raises:
            EdgerecError: a pin does not exist or cannot be used.
            MissingExtraError: gpiozero is not installed.
        """
        gpiozero = require("gpiozero")
        self._changes = DecisionChanges()
        self._outputs: list[_Output] = []
        try:
            for action in actions:
                self._outputs.append(_Output(action, gpiozero))
        except BaseException:
            self.close()
            raise

    def write(self, result: Result) -> None:
        """Switch the pins according to the decision of a result."""
        if self._changes.is_new(result):
            for output in self._outputs:
                output.update(result)

    def state(self, change: StateChange) -> None:
        """Switch off the pins of a lost source, unless ``off_when_lost`` is False."""
        if change.state in (SourceState.LOST, SourceState.ENDED):
            for output in self._outputs:
                output.lose(change.source)

    def close(self) -> None:
        """Switch off and release all pins."""
        for output in self._outputs:
            output.close()


class _Output:
    """The output pin of one action."""

    def __init__(self, action: Action, gpiozero: Any) -> None:
        self._action = action
        # Display names of the sources and regions that keep the pin on, mapped to source names.
        self._active: dict[str, str] = {}
        config = action.config
        try:
            with warnings.catch_warnings():
                # gpiozero warns about each pin library that it cannot use before it raises an error.
                warnings.simplefilter("ignore", gpiozero.PinFactoryFallback)
                self._device = gpiozero.DigitalOutputDevice(config.gpio, active_high=config.active_high)
        except Exception as error:  # The pin libraries of gpiozero have no common exception type.
            raise EdgerecError(
                f"the GPIO pin {config.gpio} cannot be used ({error}): check its number, and that this user belongs to "
                "the group gpio and the package python3-lgpio is installed. On a computer without pins, set the "
                "environment variable GPIOZERO_PIN_FACTORY=mock to use simulated pins"
            ) from None

    def update(self, result: Result) -> None:
        decision, name, pulse_s = result.decision, source_of(result), self._action.config.pulse_s
        if decision is None or not self._action.applies_to(result):
            return
        is_active = self._action.includes(decision.label)
        if pulse_s is not None:
            if is_active:
                self._device.blink(on_time=pulse_s, off_time=0, n=1)
            return
        if is_active:
            self._active[name] = result.frame.source
        else:
            self._active.pop(name, None)
        self._device.value = bool(self._active)

    def lose(self, source: str) -> None:
        config = self._action.config
        if not config.off_when_lost or self._action.source not in (None, source):
            return
        self._active = {name: active for name, active in self._active.items() if active != source}
        if config.pulse_s is None:
            self._device.value = bool(self._active)

    def close(self) -> None:
        with suppress(Exception):  # Release all pins even if releasing one of them fails.
            self._device.off()
        with suppress(Exception):
            self._device.close()
