"""Load targets, i.e. descriptions of devices that run exported models, from TOML files in ``targets/``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgerec.contract.toml_settings import from_settings, read_settings, setting
from edgerec.errors import TargetError, unknown
from edgerec.utils.package_data import find_shipped, shipped_names

Kind = Literal["bundle", "model", "c"]
TensorType = Literal["uint8", "int8", "float32"]
# Supported platforms and the latest supported Python 3 minor version of each runtime's wheels.
WHEELS = {
    "ai-edge-litert": ({("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64"), ("Windows", "AMD64")}, 14),
    "tflite-runtime": ({("Linux", "x86_64"), ("Linux", "aarch64"), ("Linux", "armv7l")}, 11),
}


def _count() -> Any:
    return setting(0, "", "0 or more", lambda value: value >= 0)


@dataclass(frozen=True)
class Target:
    """Capabilities of a type of device, and the commands that install a bundle on it.

    ``docs/reference/targets.md`` describes a target's TOML file.

    Attributes:
        name: name of the file without its suffix.
        title: display name of the target.
        arch: supported CPU architectures as ``platform.machine`` returns them. If empty, all are supported.
        types: supported data types of activations: ``int8``, and on some devices also ``float32``.
        kind: format of the export: ``bundle`` runs with edgerec, ``model`` is a .tflite file for an app, and ``c`` is
            C source code for firmware.
        systems: display names of the supported operating systems.
        python: supported Python versions, e.g. ``3.11``.
        runtimes: pip requirements of the interpreter packages, in order of preference.
        inputs: data types that the model's input may have.
        outputs: data types that the model's output may have.
        operators: dictionary that maps each supported builtin operator to its highest supported version, where 0 means
            any version. If empty, all of the runtime's operators are supported.
        rules: additional restrictions on operators: ``edgetpu``, or empty.
        memory_bytes: smallest memory size of this type of device, or 0 if it is unknown.
        parameter_bytes: on-chip memory for the model's weights, or 0 if there is no such limit.
        threads: number of interpreter threads. 0 lets the runtime choose.
        compiler: program that must compile the .tflite file, or empty.
        delegate: shared library that runs the compiled file, or empty. A bundle loads it by itself only if it is one
            of :data:`~edgerec.contract.manifest.DELEGATES`. Others must be passed with ``--delegate``.
        sources: supported sources of images: ``opencv`` (USB cameras), ``picamera2``, ``stream``, ``file``.
        requirements: lines of the bundle's requirements.txt, in which ``{edgerec}`` stands for this version of
            edgerec. If empty, the bundle has no such file.
        commands: shell commands to run on the device, in order. ``{name}`` stands for the bundle's name.
        system_packages: Debian packages that the commands require.
        service: whether the bundle contains ``install.sh`` and a systemd service.
    """

    name: str
    title: str
    arch: tuple[str, ...]
    types: tuple[Literal["int8", "float32"], ...]
    kind: Kind = "bundle"
    systems: tuple[str, ...] = ()
    python: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()
    inputs: tuple[TensorType, ...] = ("uint8", "int8", "float32")
    outputs: tuple[TensorType, ...] = ("uint8", "int8", "float32")
    operators: Mapping[str, int] = field(
        default_factory=dict,
        metadata={
            "expected": "a table that maps operators to their highest supported version (0 for any version)",
            "is_valid": lambda versions: all(version >= 0 for version in versions.values()),
        },
    )
    rules: Literal["", "edgetpu"] = ""
    memory_bytes: int = _count()
    parameter_bytes: int = _count()
    threads: int = _count()
    compiler: str = ""
    delegate: str = ""
    sources: tuple[Literal["opencv", "picamera2", "stream", "file"], ...] = ()
    requirements: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    system_packages: tuple[str, ...] = ()
    service: bool = False

    @classmethod
    def load(cls, name: str) -> Target:
        """Load the built-in target ``name``, or a TOML file if ``name`` ends in ``.toml``.

        Raises:
            TargetError: the target does not exist, its file is not TOML, or a key or value is invalid.
        """
        path, values = _read(name, ())
        target = from_settings(cls, values, str(path), "target", TargetError, other_keys=["like"], name=path.stem)
        if problem := _contradiction(target):
            raise TargetError(f"{path}: {problem}")
        return target

    @classmethod
    def of_manifest(cls, name: str) -> Target:
        """Load the target named in a manifest. Raise :class:`TargetError` if it is not a built-in target.

        A target file names programs that edgerec executes, e.g. a compiler, so a bundle must not contain one.
        """
        if name not in target_names():
            raise TargetError(
                f"the bundle was exported for the target {name!r}, which is not a built-in target; pass its file with "
                "--target FILE.toml"
            )
        return cls.load(name)

    @property
    def manifest_delegate(self) -> str:
        """Delegate to record in a bundle's manifest, or an empty string if manifests must not name the delegate."""
        # This import requires NumPy, which may be missing when edgerec doctor runs.
        from edgerec.contract.manifest import DELEGATES

        return self.delegate if self.delegate in DELEGATES else ""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-serializable dictionary."""
        return {
            key: list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
            for key, value in vars(self).items()
        }


def target_names() -> list[str]:
    """Return the sorted names of the built-in targets."""
    return shipped_names("targets")


def _read(name: str, descendants: tuple[str, ...]) -> tuple[Path, dict[str, Any]]:
    """Return a target file's path and values. Missing values are taken from the target named by the key ``like``.

    ``descendants`` are the targets whose key ``like`` has led to this file. They are used to detect cycles.
    """
    path = find_shipped("targets", name)
    if path is None:
        if name.endswith(".toml"):
            raise TargetError(f"the target file {name} does not exist: check its path")
        raise TargetError(unknown("target", name, target_names()))
    values = read_settings(path, TargetError, "check its path")
    like = values.pop("like", None)
    if like is None:
        return path, values
    # The key ``like`` accepts only built-in targets, so that a target file cannot refer to other files.
    if like not in target_names() or like in descendants:
        raise TargetError(f"{path}: like: {unknown('target', str(like), target_names())}")
    return path, _read(like, (*descendants, path.stem))[1] | values


def _contradiction(target: Target) -> str | None:
    """Return an error message if the target's fields contradict each other, otherwise None."""
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
    """Return an error message if no runtime provides a wheel for one of the architectures or Python versions.

    Targets with a runtime that is not in ``WHEELS`` are not checked.
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
