"""Targets: the kinds of machines on which bundles run. Each target is described by a TOML file in ``targets/``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from edgerec.contract.content import reason
from edgerec.errors import TargetError, unknown
from edgerec.utils.bounded import read_toml
from edgerec.utils.package_data import find_shipped, shipped_names

Kind = Literal["bundle", "model", "c"]
SOURCES = ("opencv", "picamera2", "stream", "file")
RULES = ("", "edgetpu")
_TYPES = ("int8", "float32")
_TENSORS = ("uint8", "int8", "float32")
# Systems and CPU architectures for which each runtime has wheels, as named by the module platform, and the highest
# supported minor version of Python 3.
WHEELS = {
    "ai-edge-litert": ({("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64"), ("Windows", "AMD64")}, 14),
    "tflite-runtime": ({("Linux", "x86_64"), ("Linux", "aarch64"), ("Linux", "armv7l")}, 11),
}


@dataclass(frozen=True)
class Target:
    """The capabilities of a kind of machine, and the commands that set up a bundle on it.

    ``docs/reference/targets.md`` describes the TOML file of a target.

    Attributes:
        name: name of the file without its suffix.
        title: display name of the target.
        arch: CPU architectures as ``platform.machine`` returns them; empty if the architecture does not matter.
        types: data types of activations that the machine can run: ``int8``, and also ``float32`` on some machines.
        kind: format of the export: ``bundle`` runs with edgerec, ``model`` is a .tflite file for an app, and ``c`` is
            C source code for a firmware.
        systems: display names of the supported operating systems.
        python: supported Python versions, e.g. ``3.11``.
        runtimes: pip requirements of the interpreter packages, in order of preference.
        inputs: data types that the model's input may have.
        outputs: data types that the model's output may have.
        operators: highest supported version of each builtin operator (0 means any version); empty if the machine
            supports all operators of its runtime.
        rules: additional restrictions on operators: ``edgetpu``, or empty.
        memory_bytes: memory of the machine, the smallest one if there are several models; 0 if it is not known.
        parameter_bytes: on-chip memory for the model's weights; 0 if there is no such limit.
        threads: interpreter threads; 0 lets the runtime choose.
        compiler: program that must compile the .tflite file; empty if none is needed.
        delegate: shared library that runs the compiled file, or empty. A bundle loads it by itself only if it is one
            of :data:`~edgerec.contract.manifest.DELEGATES`; others must be given with ``--delegate``.
        sources: supported sources of images: ``opencv`` (USB cameras), ``picamera2``, ``stream``, ``file``.
        requirements: lines of the bundle's requirements.txt, in which ``{edgerec}`` stands for this version of
            edgerec; empty if the bundle has no such file.
        commands: shell commands that the user runs on the machine, in this order; ``{name}`` stands for the name of
            the bundle.
        system_packages: Debian packages that must be installed before the commands can be run.
        service: whether the bundle contains ``install.sh`` and a systemd service.
    """

    name: str
    title: str
    arch: tuple[str, ...]
    types: tuple[str, ...]
    kind: Kind = "bundle"
    systems: tuple[str, ...] = ()
    python: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()
    inputs: tuple[str, ...] = _TENSORS
    outputs: tuple[str, ...] = _TENSORS
    operators: Mapping[str, int] = field(default_factory=dict)
    rules: str = ""
    memory_bytes: int = 0
    parameter_bytes: int = 0
    threads: int = 0
    compiler: str = ""
    delegate: str = ""
    sources: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    system_packages: tuple[str, ...] = ()
    service: bool = False

    @classmethod
    def load(cls, name: str) -> Target:
        """Read ``targets/NAME.toml``, or a file of the user if ``name`` ends in .toml.

        Raises:
            TargetError: the target does not exist, its file is not TOML, or a key or value is not valid.
        """
        path = find_shipped("targets", name)
        values = _read(name, ())
        target = cls(path.stem if path else name, **_checked(values, str(path)))
        if problem := _contradiction(target):
            raise TargetError(f"{path}: {problem}")
        return target

    @classmethod
    def of_manifest(cls, name: str) -> Target:
        """Load the target that a manifest names; raise :class:`TargetError` if it does not come with edgerec.

        A target names programs that edgerec executes, e.g. a compiler. Therefore a bundle cannot bring its own target.
        """
        if name not in target_names():
            raise TargetError(
                f"the bundle was exported for the target {name!r}, which does not come with edgerec: name its file "
                "with --target FILE.toml"
            )
        return cls.load(name)

    @property
    def manifest_delegate(self) -> str:
        """The delegate name to write to a bundle's manifest; empty if a manifest may not contain this delegate."""
        from edgerec.contract.manifest import DELEGATES  # imports NumPy, without which edgerec doctor must run

        return self.delegate if self.delegate in DELEGATES else ""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
            for key, value in vars(self).items()
        }


def target_names() -> list[str]:
    """Return the names of the targets that come with edgerec, sorted."""
    return shipped_names("targets")


def _read(name: str, descendants: tuple[str, ...]) -> dict[str, Any]:
    """Return the values of a target file; missing values are taken from the target that its key ``like`` names.

    Args:
        name: name of the target, or path of a .toml file.
        descendants: targets whose key ``like`` has led to this file, to detect cycles.
    """
    path = find_shipped("targets", name)
    if path is None:
        if name.endswith(".toml"):
            raise TargetError(f"the target file {name} does not exist: check its path")
        raise TargetError(unknown("target", name, target_names()))
    try:
        values = read_toml(path)
    except ValueError as error:
        raise TargetError(f"{path} is not TOML: {reason(path, error)}") from None
    except OSError as error:
        raise TargetError(f"{path} cannot be read: {error.strerror}") from None
    like = values.pop("like", None)
    if like is None:
        return values
    # Only targets that come with edgerec are accepted, so that a target file cannot refer to other files.
    if like not in target_names() or like in descendants:
        raise TargetError(f"{path}: like: {unknown('target', str(like), target_names())}")
    return _read(like, (*descendants, path.stem)) | values


def _checked(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Check the keys and types of the values in a target file, and return them with the types of the fields."""
    known = {item.name: str(item.type) for item in fields(Target) if item.name != "name"}
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise TargetError(f"{where}: {unknown('target key', key, [*known, 'like'])}")
        kind = known[key]
        if kind == "tuple[str, ...]":
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise TargetError(f"{where}: {key} is {value!r}, expected a list of strings")
            checked[key] = tuple(value)
        elif kind.startswith("Mapping"):
            if not isinstance(value, dict) or not all(type(n) is int and n >= 0 for n in value.values()):
                raise TargetError(f"{where}: {key} is {value!r}, expected operators and their highest version (0: any)")
            checked[key] = dict(value)
        elif type(value).__name__ != {"Kind": "str"}.get(kind, kind):
            expected = {"str": "a string", "Kind": "a string", "int": "an integer", "bool": "true or false"}[kind]
            raise TargetError(f"{where}: {key} is {value!r}, expected {expected}")
        elif type(value) is int and value < 0:
            raise TargetError(f"{where}: {key} is {value}, expected 0 or more")
        else:
            checked[key] = value
    if missing := [key for key in ("title", "arch", "types") if key not in checked]:
        raise TargetError(f"{where}: the key {missing[0]} is missing")
    return checked


def _contradiction(target: Target) -> str | None:
    """Return a reason why no machine can have the properties in the target file; None if there is no contradiction."""
    choices: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
        "types": (target.types, _TYPES),
        "inputs": (target.inputs, _TENSORS),
        "outputs": (target.outputs, _TENSORS),
        "sources": (target.sources, SOURCES),
        "kind": ((target.kind,), get_args(Kind)),
        "rules": ((target.rules,), RULES),
    }
    for key, (values, allowed) in choices.items():
        if wrong := [value for value in values if value not in allowed]:
            return f"{key} contains {wrong[0]!r}, expected {' or '.join(repr(name) for name in allowed if name)}"
    if not target.types:
        return "types is empty: expected int8, float32 or both"
    if "int8" in target.types and not {"int8", "uint8"}.intersection(target.inputs):
        return f"types contains int8, but inputs contains no 8-bit integer: inputs is {list(target.inputs)}"
    if target.compiler and not target.delegate:
        return f"compiler is {target.compiler!r}, but delegate is empty: name the delegate that runs the compiled file"
    if target.kind != "bundle" and (target.requirements or target.commands or target.service):
        return f"kind is {target.kind!r}, but requirements, commands and service are only for kind 'bundle'"
    if target.service and not target.requirements:
        return "service is true, but requirements is empty: list the packages that install.sh installs"
    if wrong := [version for version in target.python if not re.fullmatch(r"3\.\d{1,2}", version)]:
        return f"python contains {wrong[0]!r}, expected a version such as '3.11'"
    return _missing_wheel(target)


def _missing_wheel(target: Target) -> str | None:
    """Return an architecture or Python version of the target for which no runtime has a wheel, as a sentence; or None.

    Targets with runtimes that are not in ``WHEELS`` are not checked.
    """
    names = [re.split(r"[\s<>=!~;\[]", line, maxsplit=1)[0] for line in target.runtimes]
    known = [WHEELS[name] for name in names if name in WHEELS]
    if not known or len(known) < len(names):
        return None
    for arch in target.arch:
        if not any(arch == supported for systems, _ in known for _, supported in systems):
            return f"no runtime ({', '.join(names)}) has a wheel for {arch}: for armv7l, only tflite-runtime has one"
    for version in target.python:
        if not any(int(version.partition(".")[2]) <= last for _, last in known):
            last = max(last for _, last in known)
            return f"no runtime ({', '.join(names)}) has a wheel for Python {version}: the latest is for 3.{last}"
    return None
