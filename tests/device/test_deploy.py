"""Tests of deployments of real bundles to an emulated device with systemd and a virtual camera."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from edgerec import Bundle, deploy_bundle, device_status, remove, rollback
from edgerec.errors import DeployError
from tests.device.camera import OPTIONS
from tests.network import Mosquitto, MqttSubscriber, wait_for

CONFIG = """\
sources = ["auto"]
output = "none"
[mqtt]
url = "mqtt://127.0.0.1:1883/door"
results_per_s = 2
"""


def check_camera(device, address, release):
    """Check that the release runs as a service and classifies frames of the camera."""
    status = device_status(address)
    assert (status.release, status.service, status.on_trial) == (release, "active", False)
    assert status.camera["bundle"].startswith(release)
    assert status.camera["frames"] >= 10
    assert status.camera["last"]["label"]
    assert device.run(["systemctl", "is-active", "edgerec"]).stdout.strip() == "active"
    assert device.run(["systemctl", "is-enabled", "edgerec"]).stdout.strip() == "enabled"


def test_first_deployment_starts_the_camera_as_a_service(device, address, releases):
    first = deploy_bundle(releases[0], address, replace(OPTIONS, config=None), print)
    assert first.changed
    check_camera(device, address, first.release)


def test_decisions_arrive_at_an_mqtt_broker_on_this_machine(device, address, releases, tmp_path):
    config = tmp_path / "camera.toml"
    config.write_text(CONFIG)
    broker = Mosquitto(tmp_path).start()
    subscriber = MqttSubscriber(broker, "door/#")
    try:
        with device.forwarded_port(1883, broker.port):
            deploy_bundle(releases[0], address, replace(OPTIONS, config=config), print)
            wait_for(lambda: len(payloads(subscriber, "result")) >= 5 and payloads(subscriber, "decision"), 300)
    finally:
        subscriber.close()
        broker.stop()
    decision = json.loads(payloads(subscriber, "decision")[0])
    assert decision["label"] in Bundle.open(releases[0]).manifest.labels
    assert (subscriber.payloads("door/status") or [b""])[0] == b"online"


def payloads(subscriber, kind):
    """Return the payloads of all messages with a kind, such as ``decision``, from any source."""
    return [payload for topic, payload, _ in list(subscriber.messages) if topic.endswith(f"/{kind}")]


def test_release_is_updated_rolled_back_and_removed(device, address, releases):
    first = deploy_bundle(releases[0], address, OPTIONS, print)
    assert not deploy_bundle(releases[0], address, OPTIONS).changed
    second = deploy_bundle(releases[1], address, OPTIONS, print)
    assert second.previous == first.release
    check_camera(device, address, second.release)
    rollback(address, OPTIONS, print)
    check_camera(device, address, first.release)
    device.shut_down()
    device.start()
    device.run(["sh", "-c", "until grep -q frames /run/edgerec/status.json; do sleep 1; done"], timeout_s=300)
    assert device_status(address).camera["bundle"].startswith(first.release)
    remove(address, OPTIONS, print)
    assert device.run(["systemctl", "cat", "edgerec"]).code != 0
    assert device.run(["ls", "/opt/edgerec/releases"]).code != 0
    with pytest.raises(DeployError, match="no previous release"):
        rollback(address, OPTIONS)
