"""Imports go in one direction, without cycles, and the device packages never load the training packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "edgerec"

# Tiers of packages and top-level modules. A module may import its own package and lower tiers. Within a tier, packages
# may import each other, except that camera and doctor may not.
TIERS = (
    {"_version", "errors", "utils"},
    {"contract", "http"},
    {"tflite"},
    {"runtime"},
    {"recipe", "recipe_sections", "compression_methods", "camera", "doctor", "serving"},
    {"data", "models"},
    {"train", "importing"},
    {"compress"},
    {"catalog"},
    {"tuning", "export", "report"},
    {"emulation", "workflow"},
    {"deploy"},
    {"cli"},
    {"__main__"},
)
TIER = {name: number for number, names in enumerate(TIERS) for name in names}
DEVICE = {"_version", "errors", "utils", "contract", "tflite", "runtime", "camera", "doctor", "http", "serving"}
HEAVY = ("tensorflow", "tf_keras", "keras", "tensorflow_model_optimization", "sklearn", "matplotlib", "scipy", "optuna")


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports(name: str) -> set[str]:
    """Return the modules of edgerec that a module imports anywhere, also within functions."""
    return _imported(name, ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))))


def imports_at_load(name: str) -> set[str]:
    """Return the modules of edgerec that are loaded first when a module is loaded, including their packages."""
    modules = _imported(name, _statements_at_load(ast.parse(MODULES[name].read_text(encoding="utf-8"))))
    packages = {str(parent).replace("/", ".") for m in modules for parent in PurePosixPath(m.replace(".", "/")).parents}
    return (modules | packages) - {name, "edgerec", "."} - set(_packages(name))


def _packages(module: str) -> list[str]:
    return [module[:index] for index, letter in enumerate(module) if letter == "."]


def _statements_at_load(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        type_checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not (type_checking or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            yield child
            yield from _statements_at_load(child)


def _imported(name: str, nodes: Iterable[ast.AST]) -> set[str]:
    modules = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                modules.add(submodule if submodule in MODULES else node.module)
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"{name} has a relative import in line {node.lineno}")
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return {module for module in modules if module.split(".")[0] == "edgerec"}


GRAPH = {name: imports(name) for name in MODULES}


def package(module: str) -> str:
    return module.split(".")[1]


def test_every_package_belongs_to_a_tier():
    assert {package(name) for name in MODULES if name != "edgerec"} == set(TIER)


def test_no_module_imports_the_top_package():
    assert not [name for name, modules in GRAPH.items() if "edgerec" in modules]


def test_imports_go_from_higher_to_lower_tiers():
    violations = [
        f"{name} imports {module}"
        for name, modules in GRAPH.items()
        if name != "edgerec"
        for module in modules
        if TIER[package(module)] > TIER[package(name)]
        or ({package(name), package(module)} == {"camera", "doctor"})
        or (package(name) in DEVICE and package(module) not in DEVICE)
    ]
    assert not violations


@pytest.mark.parametrize("of", [imports, imports_at_load])
def test_there_are_no_import_cycles(of):
    """Importing ``edgerec.a.b`` also loads the package ``edgerec.a``, which may import other modules."""
    try:
        TopologicalSorter({name: of(name) for name in MODULES if name != "edgerec"}).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' <- '.join(error.args[1])}")


def test_device_packages_load_no_heavy_module():
    code = (
        "import sys, edgerec, edgerec.contract, edgerec.runtime, edgerec.camera, edgerec.cli.app\n"
        "edgerec.Classifier, edgerec.Camera, edgerec.Bundle, edgerec.Recipe, edgerec.verify, edgerec.predict\n"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_help_loads_neither_numpy_nor_opencv():
    code = (
        "import sys\nsys.argv = ['edgerec', '--help']\nfrom edgerec.cli.app import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"print([m for m in {('numpy', 'cv2', 'ai_edge_litert', 'rich', *HEAVY)} if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_public_names_exist():
    import edgerec

    for name in edgerec.__all__:
        assert getattr(edgerec, name) is not None


def test_no_public_name_is_hidden_by_a_package():
    """Importing the package ``edgerec.x`` sets the attribute ``x`` of ``edgerec``."""
    import edgerec

    assert not set(edgerec.__all__) & {package(name) for name in MODULES if name != "edgerec"}
