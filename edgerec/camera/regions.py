"""Named regions of a frame, each classified independently."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from edgerec.camera.frame_filters import FrameOptions
from edgerec.contract.decision import DecisionSpec
from edgerec.errors import ConfigError, unknown

# Region names are used in MQTT topics and file names.
_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}", re.ASCII)
MAX_REGIONS = 64


@dataclass(frozen=True)
class RegionConfig:
    """A named region of a frame, which is classified independently and has its own decision.

    Attributes:
        name: name of 1 to 32 ASCII letters, digits, hyphens or underscores.
        roi: the region ``(x, y, width, height)`` in pixels of the source's frame, or as fractions of the frame if all
            four values are at most 1.
        source: the source, as in the list of sources. None applies the region to all sources.
        rotate: clockwise rotation after cropping: 0, 90, 180 or 270 degrees. None uses the rotation for all frames.
        mirror: flip the image horizontally after the rotation. None uses the setting for all frames.
        threshold: minimum score. Images with a lower score get the label ``unknown``. None uses the camera's threshold.
        decision: decision settings that override the camera's; see
            :class:`~edgerec.contract.decision.DecisionSpec`.
    """

    name: str
    roi: tuple[float, float, float, float]
    source: str | None = field(default=None, repr=False, metadata={"content": "source"})
    rotate: int | None = None
    mirror: bool | None = None
    threshold: float | None = None
    decision: Mapping[str, Any] = field(default_factory=dict, metadata={"keys": DecisionSpec})

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                "RegionConfig.name",
                f"is {self.name!r}; expected 1 to 32 ASCII letters, digits, hyphens or underscores",
            )
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ConfigError("RegionConfig.threshold", f"is {self.threshold}; expected 0 to 1")
        settings = [setting.name for setting in fields(DecisionSpec)]
        if unknown_key := next((key for key in self.decision if key not in settings), None):
            raise ConfigError("RegionConfig.decision", f"has an {unknown('setting', unknown_key, settings)}")
        try:
            self.frame_options(FrameOptions())
        except ConfigError as error:
            raise ConfigError(f"RegionConfig.{error.field.partition('.')[2]}", error.problem) from None

    def frame_options(self, options: FrameOptions) -> FrameOptions:
        """Return a copy of ``options`` with this region's position, rotation and mirroring."""
        return replace(
            options,
            roi=self.roi,
            rotate=options.rotate if self.rotate is None else self.rotate,
            mirror=options.mirror if self.mirror is None else self.mirror,
        )


def check_regions(regions: Sequence[RegionConfig], options: FrameOptions) -> None:
    """Raise :class:`ConfigError` if the regions conflict with each other or with the options for whole frames."""
    if len(regions) > MAX_REGIONS:
        raise ConfigError("CameraConfig.regions", f"has {len(regions)} regions; expected at most {MAX_REGIONS}")
    names = [region.name for region in regions]
    if duplicate := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError("CameraConfig.regions", f"has two regions with the name {duplicate!r}: rename one of them")
    if regions and options.roi is not None:
        raise ConfigError(
            "CameraConfig.regions",
            "cannot be combined with a roi for all frames: define this area as a named region, or remove the roi",
        )


def regions_of_sources(
    regions: Iterable[RegionConfig], uris: Sequence[str], names: Sequence[str]
) -> dict[str, tuple[RegionConfig, ...]]:
    """Group the regions by source name. Sources without regions are omitted.

    Args:
        regions: regions of all sources.
        uris: URIs of the sources, which may contain passwords.
        names: names of the sources, in the same order.

    Raises:
        ConfigError: a region refers to a source that does not exist.
    """
    result: dict[str, tuple[RegionConfig, ...]] = {}
    for index, region in enumerate(regions):
        if region.source is None:
            chosen = list(names)
        elif region.source in uris:
            chosen = [names[uris.index(region.source)]]
        elif region.source in names:
            chosen = [region.source]
        else:
            # The error message omits the source, which may contain a password.
            raise ConfigError(
                f"CameraConfig.regions[{index}].source",
                f"is not a source of the camera; expected one of {', '.join(names)}",
            )
        for name in chosen:
            result[name] = (*result.get(name, ()), region)
    return result
