"""A target: where a bundle will run, read from one file of ``targets/``."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields

from edgerec.contract.shipped import find_shipped, shipped_names
from edgerec.errors import TargetError, unknown


@dataclass(frozen=True)
class Target:
    """What a machine can run, and what a person types there.

    Attributes:
        name: the file's name.
        title: for people.
        arch: processors, as ``platform.machine`` names them.
        types: activations that it runs, ``int8`` and perhaps ``float32``.
        threads: interpreter threads; 0 lets the runtime choose.
        compiler: a program that must see the .tflite first, or empty.
        delegate: shared library that runs the compiled file, or empty.
        requirements: lines of the bundle's requirements.txt; ``{edgerec}`` is this version. Empty: no file.
        commands: what a person types on the machine, in this order; ``{name}`` is the bundle's name.
        system_packages: Debian packages that the commands need first.
    """

    name: str
    title: str
    arch: tuple[str, ...]
    types: tuple[str, ...]
    threads: int = 0
    compiler: str = ""
    delegate: str = ""
    requirements: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    system_packages: tuple[str, ...] = ()

    @classmethod
    def load(cls, name: str) -> Target:
        """Read ``targets/NAME.toml``, or a person's own file where ``name`` ends in .toml."""
        path = find_shipped("targets", name)
        if path is None:
            if name.endswith(".toml"):
                raise TargetError(f"target file {name} does not exist")
            raise TargetError(unknown("target", name, shipped_names("targets")))
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise TargetError(f"{path} is not TOML: {error}") from None
        return cls._from_values(path.stem, values, str(path))

    @classmethod
    def _from_values(cls, name: str, values: dict[str, object], where: str) -> Target:
        known = {item.name: item for item in fields(cls) if item.name != "name"}
        for key, value in values.items():
            if key not in known:
                raise TargetError(f"{where}: {unknown('target key', key, known)}")
            kind = known[key].type
            if kind == "tuple[str, ...]":
                if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                    raise TargetError(f"{where}: {key} is {value!r}, expected a list of texts")
                values[key] = tuple(value)
            elif type(value).__name__ != kind:
                raise TargetError(f"{where}: {key} is {value!r}, expected {kind}")
        if missing := [key for key in ("title", "arch", "types") if key not in values]:
            raise TargetError(f"{where}: {missing[0]} is missing")
        target = cls(name=name, **values)  # type: ignore[arg-type]
        if wrong := set(target.types) - {"int8", "float32"}:
            raise TargetError(f"{where}: types has {wrong.pop()!r}, expected int8 or float32")
        return target
