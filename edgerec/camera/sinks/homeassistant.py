"""Home Assistant messages for MQTT discovery (https://www.home-assistant.io/integrations/mqtt/)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from edgerec._version import __version__
from edgerec.camera.sinks.events import safe_name, source_name
from edgerec.contract.decision import UNKNOWN
from edgerec.contract.manifest import Manifest

# Maximum number of labels that are listed as options of the Home Assistant sensor.
MAX_CHOICES = 100


def discovery(manifest: Manifest, prefix: str, source: str, sources: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Return a source's retained discovery messages, keyed by topic without the discovery prefix.

    Each source has three entities: a sensor with the label, which has the whole decision as attributes; a sensor with
    the score; and a binary sensor that shows whether the source is live. All sources of a bundle belong to one device.

    Args:
        manifest: the bundle's manifest.
        prefix: prefix of the camera's topics.
        source: source name as entered by the user.
        sources: all of the camera's sources, needed to give each one unique topics and IDs.
    """
    device, name = safe_name(f"edgerec-{prefix}-{manifest.name}"), source_name(source, sources)
    decision, state = f"{prefix}/{name}/decision", f"{prefix}/{name}/state"
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
    label: dict[str, Any] = {
        "name": f"{name} label",
        "state_topic": decision,
        "value_template": "{{ value_json.label }}",
        "json_attributes_topic": decision,
        "icon": "mdi:cctv",
    }
    if len(choices) <= MAX_CHOICES:
        label |= {"device_class": "enum", "options": choices}
    score = {
        "name": f"{name} score",
        "state_topic": decision,
        "value_template": "{{ (value_json.score * 100) | round(1) }}",
        "unit_of_measurement": "%",
        "state_class": "measurement",
        "icon": "mdi:percent",
    }
    live = {
        "name": f"{name} live",
        "state_topic": state,
        "value_template": "{{ 'ON' if value_json.state == 'live' else 'OFF' }}",
        "json_attributes_topic": state,
        "device_class": "connectivity",
        "entity_category": "diagnostic",
    }
    return {
        f"{kind}/{device}/{name}-{suffix}/config": {"unique_id": f"{device}-{name}-{suffix}", **entity, **common}
        for kind, suffix, entity in (
            ("sensor", "label", label),
            ("sensor", "score", score),
            ("binary_sensor", "live", live),
        )
    }
