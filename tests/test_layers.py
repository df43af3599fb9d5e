"""Imports point one way, and the half that runs on a device never loads the half that trains."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "edgerec"

# Packages of edgerec that each layer may import, besides itself, errors, optional, command_line and utils.
ALLOWED: dict[str, set[str]] = {
    "utils": set(),
    "contract": set(),
    "data": {"contract", "runtime"},
    "models": {"contract"},
    "train": {"contract", "data", "models", "runtime"},
    "compress": {"contract", "data", "models", "train", "runtime"},
    "export": {"contract", "data", "models", "train", "compress", "runtime"},
    "tuning": {"contract", "data", "models", "train", "compress", "export", "runtime"},
    "runtime": {"contract"},
    "camera": {"contract", "runtime"},
}
HEAVY = ("tensorflow", "tf_keras", "keras", "tensorflow_model_optimization", "sklearn", "matplotlib", "scipy", "optuna")


def imported(path: Path) -> set[str]:
    """The sub-packages of edgerec that a file imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        names |= {m.split(".")[1] for m in modules if m.startswith("edgerec.")}
    return names - {"errors", "optional", "command_line", "utils"}


@pytest.mark.parametrize("layer", ALLOWED)
def test_imports_point_one_way(layer):
    for path in (PACKAGE / layer).rglob("*.py"):
        wrong = imported(path) - ALLOWED[layer] - {layer}
        assert not wrong, f"{path.relative_to(PACKAGE)} imports {wrong}"


def test_nobody_imports_the_command_line():
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "cli" and path.name != "__main__.py":
            assert "cli" not in imported(path), path


def test_device_half_loads_nothing_heavy():
    code = (
        "import sys, edgerec, edgerec.contract, edgerec.runtime, edgerec.camera, edgerec.cli.app\n"
        "edgerec.Classifier, edgerec.Camera, edgerec.Bundle, edgerec.Recipe, edgerec.verify, edgerec.predict\n"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_loads_neither_numpy_nor_opencv():
    code = (
        "import sys\nsys.argv = ['edgerec', '--help']\nfrom edgerec.cli.app import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([m for m in ('numpy', 'cv2', 'ai_edge_litert', 'rich.progress') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_public_names_exist():
    import edgerec

    for name in edgerec.__all__:
        assert getattr(edgerec, name) is not None
