"""The agent runs on devices that have only an old Python and its standard library."""

from __future__ import annotations

import ast
import sys

import pytest

from edgerec.contract import signature
from edgerec.deploy import agent


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
