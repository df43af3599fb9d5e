"""Tests that the agent supports Python 3.9 and only needs the standard library."""

from __future__ import annotations

import ast
import sys

import pytest

from edgerec.contract import signature
from edgerec.deploy import agent, service_config


@pytest.mark.parametrize("module", [agent, signature])
def test_code_on_the_device_needs_only_python_3_9_and_the_standard_library(module):
    with open(module.__file__, encoding="utf-8") as file:
        tree = ast.parse(file.read(), feature_version=(3, 9))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", "a//b", "a\\b", "."])
def test_file_outside_the_bundle_is_refused(name):
    with pytest.raises(agent.AgentError, match="leaves the bundle's folder"):
        agent.safe_name(name)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ('output = "none"\nsources = ["auto"]', True),
        ("sources = ['auto'] # the first camera", True),
        ('sources = [\n  "rtsp://door/1", # the door\n  "auto",\n]', True),
        ('sources = ["0", "auto"]', True),
        ('# sources = ["auto"]\nsources = ["0"]', False),
        ('sources = [\n  # "auto",\n  "0",\n]\n[mqtt]\nclient = "auto"', False),
        ('sources = ["0"] # or "auto"', False),
        ("", False),
    ],
)
def test_host_and_device_agree_whether_a_configuration_uses_the_first_camera(config, expected):
    assert agent.uses_first_camera(config) == service_config.uses_first_camera(config) == expected
