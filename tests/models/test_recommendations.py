"""``edgerec models --target``: recommended architectures for a target, and their estimated latency."""

from __future__ import annotations

import json

import pytest

from edgerec import recommendations
from edgerec.contract.target import target_names
from edgerec.errors import RecipeError, TargetError


@pytest.mark.parametrize("target", target_names())
def test_every_target_supports_its_recommended_architectures(target):
    rows = recommendations(target)
    chosen = [row for row in rows if row.data]
    assert {row.report.name for row in chosen} >= {"simple_cnn", "resnet8", "mobilenet_v2"}
    assert not [row.refusal for row in rows if row.refusal]
    assert all((row.estimated_ms is not None) == (target == "rpi") for row in rows)


def test_targets_with_more_memory_get_larger_networks():
    def networks(target):
        return {
            (row.report.name, row.report.width, row.report.input_size) for row in recommendations(target) if row.data
        }

    assert ("mobilenet_v2", 1.0, 160) in networks("rpi")
    assert ("mobilenet_v2", 1.0, 160) not in networks("microcontroller")
    assert ("mobilenet_v2", 0.35, 96) in networks("microcontroller")


def test_models_command_states_the_device_of_the_estimate(invoke):
    result = invoke("models", "--target", "rpi")
    assert result.returncode == 0
    assert "larger color images, ImageNet weights: mobilenet_v2, width 1, 160 px" in result.stdout
    assert "ms: latency for one image, estimated for a Raspberry Pi 4, all its cores" in result.stdout
    assert "This is an estimate" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    result = invoke("models", "--target", "microcontroller")
    assert "No latency estimate is available for microcontroller" in result.stdout
    assert " ms " not in result.stdout


def test_recommendation_for_other_input_size_is_measured(invoke):
    result = invoke("models", "--target", "rpi", "--input-size", 8, "--json")
    (row,) = json.loads(result.stdout)
    assert (row["report"]["name"], row["report"]["input_size"]) == ("vgg_small", 8)
    assert 0 < row["estimated_ms"] < 1


def test_recommendations_refuse_invalid_arguments(invoke):
    with pytest.raises(TargetError, match="unknown target 'rpy'; did you mean 'rpi'"):
        recommendations("rpy")
    with pytest.raises(RecipeError, match="--input-size must be from 8 to 1024 pixels, got 4"):
        recommendations("rpi", input_size=4)
    result = invoke("models", "resnet8", "--target", "rpi")
    assert (result.returncode, "can only be combined with --input-size and --json" in result.stderr) == (2, True)
