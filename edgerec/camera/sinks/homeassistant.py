"""Home Assistant messages for MQTT discovery (https://www.home-assistant.io/integrations/mqtt/)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any

from edgerec._version import __version__
from edgerec.camera.frame import region_name
from edgerec.camera.sinks.events import safe_name, source_name
from edgerec.contract.decision import UNKNOWN
from edgerec.contract.manifest import Manifest

# Maximum number of labels that are listed as options of the Home Assistant sensor.
MAX_CHOICES = 100


def device_id(manifest: Manifest, prefix: str) -> str:
    """Return the Home Assistant device ID of a bundle. The discovery topics of its entities contain this ID."""
    return safe_name(f"edgerec-{prefix}-{manifest.name}")


def discovery(
    manifest: Manifest,
    prefix: str,
    source: str,
    sources: Collection[str] = (),
    regions: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the discovery messages for a source, keyed by topic without the discovery prefix.

    Each source has a label sensor, a score sensor and a binary sensor that shows whether the source is live. The label
    sensor has the whole decision as attributes. If a source has named regions, each region has its own label and score
    sensors. All entities of a bundle belong to one device.

    Args:
        manifest: the bundle's manifest.
        prefix: prefix of the camera's topics.
        source: source name as entered by the user.
        sources: all sources of the camera, which are used to create unique topics and IDs.
        regions: region names, keyed by source.
    """
    device, name, regions = device_id(manifest, prefix), source_name(source, sources), regions or {}
    state = f"{prefix}/{name}/state"
    choices = list(dict.fromkeys([*manifest.labels, UNKNOWN]))
    common: dict[str, Any] = {
        "availability_topic": f"{prefix}/status",
        "device": {
            "identifiers": [device],
            "name": manifest.name,
            "manufacturer": "edgerec",
            "model": f"{manifest.variant} for {manifest.target}",
            "sw_version": __version__,
        },
        "origin": {"name": "edgerec", "sw_version": __version__},
    }
    live = {
        "name": f"{name} live",
        "state_topic": state,
        "value_template": "{{ 'ON' if value_json.state == 'live' else 'OFF' }}",
        "json_attributes_topic": state,
        "device_class": "connectivity",
        "entity_category": "diagnostic",
    }
    entities: list[tuple[str, str, dict[str, Any]]] = []
    display_names = {*sources, *chain.from_iterable((region_name(s, r) for r in own) for s, own in regions.items())}
    for region in regions.get(source, ()):
        # Make the name unique, because a source and region joined with a hyphen may equal the name of another source.
        unique_name = source_name(region_name(source, region), display_names)
        sensors = _sensors(f"{name} {region}", f"{prefix}/{name}/{region}/decision", choices)
        entities += [("sensor", f"{unique_name}-{suffix}", sensor) for suffix, sensor in sensors.items()]
    if not entities:
        sensors = _sensors(name, f"{prefix}/{name}/decision", choices)
        entities += [("sensor", f"{name}-{suffix}", sensor) for suffix, sensor in sensors.items()]
    entities.append(("binary_sensor", f"{name}-live", live))
    return {
        f"{kind}/{device}/{object_id}/config": {"unique_id": f"{device}-{object_id}", **entity, **common}
        for kind, object_id, entity in entities
    }


def _sensors(name: str, topic: str, choices: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the label and score sensors for the decisions published to a topic."""
    label: dict[str, Any] = {
        "name": f"{name} label",
        "state_topic": topic,
        "value_template": "{{ value_json.label }}",
        "json_attributes_topic": topic,
        "icon": "mdi:cctv",
    }
    if len(choices) <= MAX_CHOICES:
        label |= {"device_class": "enum", "options": choices}
    score = {
        "name": f"{name} score",
        "state_topic": topic,
        "value_template": "{{ (value_json.score * 100) | round(1) }}",
        "unit_of_measurement": "%",
        "state_class": "measurement",
        "icon": "mdi:percent",
    }
    return {"label": label, "score": score}
