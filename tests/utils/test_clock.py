"""Conversion of monotonic times to Unix times."""

from __future__ import annotations

import time

import pytest

from edgerec.camera.source_state import SourceState, StateChange
from edgerec.utils.clock import unix_s


def test_a_state_change_has_the_same_time_in_every_output():
    change = StateChange("camera", SourceState.LIVE, time.monotonic())
    assert len({change.to_dict()["since_s"] for _ in range(1000)}) == 1


def test_the_conversion_agrees_with_the_system_clock():
    assert unix_s(time.monotonic()) == pytest.approx(time.time(), abs=0.2)


@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
def test_the_conversion_follows_a_clock_that_was_set(monkeypatch, step_s):
    now_s, before_s, clock = time.monotonic(), unix_s(time.monotonic()), time.time
    monkeypatch.setattr(time, "time", lambda: clock() + step_s)
    assert unix_s(now_s) - before_s == pytest.approx(step_s, abs=0.3)
    monkeypatch.undo()
    assert unix_s(now_s) == pytest.approx(before_s, abs=0.3)
