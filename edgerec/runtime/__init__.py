"""Run, verify and benchmark bundles on a device. TensorFlow is never imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

# Lazy imports let edgerec doctor run even if NumPy cannot be imported.
_PUBLIC = {"Classifier": "edgerec.runtime.classifier", "verify": "edgerec.runtime.verification"}

__all__ = ["Classifier", "verify"]

if TYPE_CHECKING:
    from edgerec.runtime.classifier import Classifier
    from edgerec.runtime.verification import verify


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'edgerec.runtime' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)
