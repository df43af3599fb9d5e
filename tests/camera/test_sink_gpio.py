"""Tests of the GPIO actions with gpiozero's simulated pins."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import pytest

pytest.importorskip("gpiozero", reason='no gpiozero (pip install "edgerec[gpio]")')

import gpiozero
from gpiozero import Device
from gpiozero.pins.mock import MockFactory

from edgerec import CameraConfig, run_camera
from edgerec.camera.actions import Action
from edgerec.camera.config import ActionConfig, RegionConfig
from edgerec.camera.sinks.gpio import GpioActions
from edgerec.errors import EdgerecError
from tests.camera.test_region_sinks import region_result
from tests.network import state_change, wait_for


@pytest.fixture(autouse=True)
def pins(monkeypatch):
    """Replace the pins of this machine with simulated pins."""
    factory = MockFactory()
    monkeypatch.setattr(Device, "pin_factory", factory)
    yield factory
    factory.close()


def sink_with(*configs):
    return GpioActions([Action(config, config.source) for config in configs])


def voltages(pin):
    """Return the initial state of a pin and all later states."""
    return [bool(state.state) for state in pin.states]


def test_warnings_of_gpiozero_about_pin_libraries_are_not_shown(monkeypatch, recwarn):
    def fail(*arguments, **options):
        warnings.warn("Falling back from lgpio", gpiozero.PinFactoryFallback, stacklevel=1)
        raise gpiozero.BadPinFactory("Unable to load any default pin factory!")

    monkeypatch.setattr(gpiozero, "DigitalOutputDevice", fail)
    with pytest.raises(EdgerecError, match=r"GPIO pin 17 cannot be used .*GPIOZERO_PIN_FACTORY=mock"):
        sink_with(ActionConfig("go", gpio=17))
    assert not recwarn.list


def test_pin_follows_the_labels(pins):
    sink, pin = sink_with(ActionConfig(("go",), gpio=17)), pins.pin(17)
    observed = []
    for since_s, label in enumerate(("stop", "go", "go", "stop", "go")):
        sink.write(region_result("door", label, since_s=since_s))
        observed.append(bool(pin.state))
    assert observed == [False, True, True, False, True]
    sink.close()
    assert not pin.state


def test_pin_that_is_active_low_is_inverted(pins):
    sink, pin = sink_with(ActionConfig("go", gpio="GPIO17", active_high=False)), pins.pin(17)
    assert pin.state
    sink.write(region_result("door", "go"))
    assert not pin.state
    sink.close()
    assert voltages(pin)[-1]


def test_pin_is_on_if_any_region_shows_the_label(pins):
    sink, pin = sink_with(ActionConfig("go", gpio=17)), pins.pin(17)
    observed = []
    for since_s, (region, label) in enumerate([("door", "go"), ("window", "go"), ("door", "stop"), ("window", "stop")]):
        sink.write(region_result(region, label, since_s=since_s))
        observed.append(bool(pin.state))
    assert observed == [True, True, True, False]
    sink.close()


def test_pin_of_a_region_ignores_other_regions_and_sources(pins):
    sink, pin = sink_with(ActionConfig("go", gpio=17, region="door", source="camera")), pins.pin(17)
    for result in (
        region_result("window", "go"),
        region_result(None, "go"),
        region_result("door", "go", source="yard"),
    ):
        sink.write(result)
        assert not pin.state
    sink.write(region_result("door", "go"))
    assert pin.state
    sink.close()


def test_pulse_switches_the_pin_on_once_per_decision(pins):
    sink, pin = sink_with(ActionConfig("go", gpio=17, pulse_s=0.01)), pins.pin(17)
    for since_s, label in enumerate(("stop", "go")):
        sink.write(region_result("door", label, since_s=since_s))
    wait_for(lambda: voltages(pin) == [False, True, False])
    sink.write(region_result("door", "go", since_s=1))
    sink.write(region_result("door", "stop", since_s=2))
    sink.write(region_result("door", "go", since_s=3))
    wait_for(lambda: voltages(pin) == [False, True, False, True, False])
    sink.close()


def test_pulse_ends_when_the_camera_ends(pins):
    sink, pin = sink_with(ActionConfig("go", gpio=17, pulse_s=3000)), pins.pin(17)
    sink.write(region_result("door", "go"))
    wait_for(lambda: pin.state)
    sink.close()
    assert not pin.state


@pytest.mark.parametrize("state", ["lost", "ended"])
def test_pin_is_switched_off_when_its_source_is_lost(pins, state):
    sink, pin = sink_with(ActionConfig("go", gpio=17)), pins.pin(17)
    kept_sink, kept = sink_with(ActionConfig("go", gpio=18, off_when_lost=False)), pins.pin(18)
    for each in (sink, kept_sink):
        each.write(region_result("door", "go"))
        for change in ("stale", "connecting", "live"):
            each.state(state_change(change))
        each.state(state_change(state, "yard"))
        assert (pin.state, kept.state)[each is kept_sink]
        each.state(state_change(state))
    assert (bool(pin.state), bool(kept.state)) == (False, True)
    sink.write(region_result("door", "go", since_s=1))  # The source is live again.
    assert pin.state
    for each in (sink, kept_sink):
        each.close()
    assert (bool(pin.state), bool(kept.state)) == (False, False)


def test_pin_stays_on_for_another_source(pins):
    sink, pin = sink_with(ActionConfig("go", gpio=17)), pins.pin(17)
    sink.write(region_result("door", "go"))
    sink.write(region_result(None, "go", source="yard"))
    sink.state(state_change("lost"))
    assert pin.state
    sink.state(state_change("lost", "yard"))
    assert not pin.state
    sink.close()


def test_pin_that_cannot_be_used_is_reported_and_the_others_are_released(pins):
    with pytest.raises(EdgerecError, match=r"the GPIO pin 99 cannot be used \(.*\): check its number"):
        sink_with(ActionConfig("go", gpio=17), ActionConfig("go", gpio=99))
    sink_with(ActionConfig("go", gpio=17)).close()  # The pin must be available again.


def test_pins_of_a_camera_with_regions(pins, bundle, video):
    pin, states = pins.pin(17), []

    class Observer:
        """A sink that records the state of the pin at the end."""

        closed = False

        def write(self, result):
            pass

        def state(self, change):
            pass

        def close(self):
            wait_for(lambda: not pin.state)
            states.extend(voltages(pin))

    config = CameraConfig(
        bundle=bundle,
        sources=str(video),
        output="none",
        regions=(RegionConfig("whole", (0, 0, 1, 1)),),
        actions=(ActionConfig(("0", "2", "4"), gpio=17, region="whole"),),
        decision={"smoothing": "none"},
    )
    report = run_camera(config, [Observer()])
    assert (report.classified, report.exit_code) == (30, 0)
    assert states[0] is False
    assert True in states
    assert states[-1] is False


def test_camera_on_a_machine_without_pins_ends_with_one_line(bundle, video, tmp_path):
    path = tmp_path / "camera.toml"
    path.write_text(
        f"bundle = {json.dumps(str(bundle))}\nsources = {json.dumps(str(video))}\noutput = 'none'\n"
        "[[action]]\non = 'any'\ngpio = 17\nactive_high = false\npulse_s = 0.5\noff_when_lost = false\n"
    )
    (action,) = CameraConfig.from_file(path).actions
    assert action == ActionConfig("any", gpio=17, active_high=False, pulse_s=0.5, off_when_lost=False)
    command = [sys.executable, "-m", "edgerec", "camera", "--config", str(path)]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert "the GPIO pin 17 cannot be used" in process.stderr.splitlines()[-1]
