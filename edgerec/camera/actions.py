"""Settings for actions that run a command or switch an output pin when a decision changes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgerec.camera.frame import Result
from edgerec.contract.decision import UNKNOWN
from edgerec.errors import ConfigError, unknown

ANY = "any"
MAX_ACTIONS = 64
MAX_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class ActionConfig:
    """An action that runs a command or switches a GPIO pin when a decision changes.

    Attributes:
        on: label, or list of labels, for which the action is performed. The string ``any`` means every label,
            including ``unknown``.
        source: the source, as in the list of sources. None means all sources.
        region: name of the region. None means all regions, and sources without regions.
        command: program and its arguments, such as ``["/usr/bin/aplay", "bell.wav"]``. The program is started
            directly, and not by a shell. Environment variables such as ``EDGEREC_LABEL`` describe the decision.
        timeout_s: time limit for the command in seconds. After this time, the command and its child processes are
            killed.
        gpio: output pin, as a number of the Broadcom numbering such as 17, or a name that gpiozero accepts, such as
            ``BOARD11``.
        active_high: whether the pin has a high voltage when it is on. Otherwise, it has a low voltage when it is on.
        pulse_s: switch the pin on for this many seconds when the decision changes to one of the labels. None switches
            the pin on as long as the decision is one of the labels.
        off_when_lost: switch the pin off when the source is lost. Otherwise, the pin keeps its state until the next
            decision. It is always switched off when the camera ends.
    """

    on: str | tuple[str, ...]
    source: str | None = field(default=None, repr=False, metadata={"content": "source"})
    region: str | None = None
    command: tuple[str, ...] | None = None
    timeout_s: float = 10.0
    gpio: int | str | None = None
    active_high: bool = True
    pulse_s: float | None = None
    off_when_lost: bool = True

    def __post_init__(self) -> None:
        for name in ("on", "command"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        if not self.on:
            raise ConfigError("ActionConfig.on", "is empty; expected a label, a list of labels, or any")
        if self.command is None and self.gpio is None:
            raise ConfigError("ActionConfig.command", "and gpio are both missing: set one of them")
        if self.command is not None and self.gpio is not None:
            raise ConfigError("ActionConfig.command", "and gpio exclude each other: set only one of them")
        if self.command is not None and (isinstance(self.command, str) or not self.command or not self.command[0]):
            raise ConfigError(
                "ActionConfig.command",
                f"is {self.command!r}; expected a list with the program and its arguments, such as "
                '["/usr/bin/aplay", "bell.wav"]',
            )
        if not 0 < self.timeout_s <= MAX_TIMEOUT_S:
            raise ConfigError("ActionConfig.timeout_s", f"is {self.timeout_s}; expected more than 0, up to 3600")
        if self.pulse_s is not None and not 0 < self.pulse_s <= MAX_TIMEOUT_S:
            raise ConfigError("ActionConfig.pulse_s", f"is {self.pulse_s}; expected more than 0, up to 3600")

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Labels that trigger the action, or None if every label triggers the action."""
        if isinstance(self.on, str):
            return None if self.on == ANY else (self.on,)
        return self.on


@dataclass(frozen=True)
class Action:
    """An action whose source is given by its name. The configuration may contain the source's address instead.

    Attributes:
        config: settings of the action.
        source: name of the source, or None for all sources.
        index: index of the action in the camera's list of actions.
    """

    config: ActionConfig
    source: str | None
    index: int = 0

    def applies_to(self, result: Result) -> bool:
        """Return whether the action applies to the source and region of ``result``. The label is not checked."""
        frame = result.frame
        region = frame.region.name if frame.region else None
        return self.source in (None, frame.source) and self.config.region in (None, region)

    def includes(self, label: str) -> bool:
        """Return True if a change to ``label`` triggers the action."""
        labels = self.config.labels
        return labels is None or label in labels


def resolved_actions(
    actions: Iterable[ActionConfig],
    uris: Sequence[str],
    names: Sequence[str],
    regions: Mapping[str, Sequence[str]],
    labels: Collection[str],
) -> list[Action]:
    """Check all actions and resolve their sources.

    Args:
        actions: settings of the actions.
        uris: URIs of the sources, which may contain passwords.
        names: names of the sources, in the same order.
        regions: names of the regions of each source, keyed by source.
        labels: labels of the bundle.

    Raises:
        ConfigError: a source, a region of the source or a label does not exist, or two actions use the same pin.
    """
    known, pins, result = {*labels, UNKNOWN}, set[Any](), []
    for index, action in enumerate(actions):
        field_name = f"CameraConfig.actions[{index}]"
        if missing := next((label for label in action.labels or () if label not in known), None):
            raise ConfigError(f"{field_name}.on", f"has an {unknown('label', missing, known)}")
        if action.gpio is not None:
            if action.gpio in pins:
                raise ConfigError(f"{field_name}.gpio", f"is {action.gpio!r} in two actions: use each pin only once")
            pins.add(action.gpio)
        source = action.source
        if source is not None and source not in names:
            if source not in uris:
                # The error message omits the source, which may contain a password.
                raise ConfigError(
                    f"{field_name}.source", f"is not a source of the camera; expected one of {', '.join(names)}"
                )
            source = names[uris.index(source)]
        possible = {region for name in names if source in (None, name) for region in regions.get(name, ())}
        if action.region is not None and action.region not in possible:
            if possible:
                problem = f"; expected one of {', '.join(sorted(possible))}"
            elif any(regions.values()):
                problem = f", but the source {source} has no regions: add a table [[region]] for this source"
            else:
                problem = ", but the configuration has no regions: add a table [[region]] with this name"
            raise ConfigError(f"{field_name}.region", f"is {action.region!r}{problem}")
        result.append(Action(action, source, index))
    return result
