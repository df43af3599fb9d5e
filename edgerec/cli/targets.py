"""Implement the ``edgerec targets`` command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from edgerec.cli.output import JsonOption, pairs, say, show_json

if TYPE_CHECKING:
    from edgerec.contract.target import Target


def targets(
    name: str = typer.Argument(
        "", metavar="NAME", help="Target to describe: a name or a .toml file. [default: list all targets]"
    ),
    json: bool = JsonOption,
) -> None:
    """List the available targets or describe one of them."""
    from edgerec.contract.target import Target, target_names

    if name:
        target = Target.load(name)
        show_json(target.to_dict()) if json else _describe(target)
        return
    all_targets = [Target.load(target_name) for target_name in target_names()]
    if json:
        show_json([target.to_dict() for target in all_targets])
        return
    pairs([(target.name, target.title) for target in all_targets])


_KINDS = {"bundle": "bundle for edgerec", "model": "model file for an app", "c": "C++ sources for firmware"}


def _describe(target: Target) -> None:
    lines = {
        "kind": _KINDS[target.kind],
        "CPUs": ", ".join(target.arch) or "any",
        "systems": ", ".join(target.systems),
        "python": ", ".join(target.python),
        "runtimes": ", ".join(target.runtimes),
        "activations": ", ".join(target.types),
        "input": ", ".join(target.inputs),
        "output": ", ".join(target.outputs),
        "operators": f"{len(target.operators)}, listed by --json"
        if target.operators
        else "all operators supported by the runtime",
        "rules": {"edgetpu": "Edge TPU restrictions", "": ""}[target.rules],
        "memory": _bytes(target.memory_bytes),
        "parameters": _bytes(target.parameter_bytes) and f"{_bytes(target.parameter_bytes)} on the chip",
        "threads": str(target.threads or ""),
        "compiler": target.compiler,
        "delegate": target.delegate,
        "sources": ", ".join(target.sources),
        "packages": ", ".join(target.system_packages),
    }
    say(f"{target.name}: {target.title}")
    pairs([(name, value) for name, value in lines.items() if value], "  ", 12)
    for index, line in enumerate(target.commands):
        say(f"  {'' if index else 'commands':<12}{line.replace('=={edgerec}', '')}")


def _bytes(count: int) -> str:
    if not count:
        return ""
    unit, size = ("MiB", 2**20) if count >= 2**20 else ("KiB", 2**10)
    return f"{count / size:g} {unit}"
