"""Train image classifiers, compress them to int8, and run them on small devices.

>>> from edgerec import Classifier                                    # doctest: +SKIP
>>> Classifier.open("signs-rpi").classify(image).label                # doctest: +SKIP
'three'
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgerec._version import __version__

# Maps public names to their modules, which are imported on first use so that devices never import training code.
_PUBLIC = {
    "Bundle": "edgerec.contract.bundle",
    "Camera": "edgerec.camera",
    "CameraConfig": "edgerec.camera.config",
    "ClassificationServer": "edgerec.serving.run",
    "Classifier": "edgerec.runtime",
    "DeployOptions": "edgerec.deploy",
    "Device": "edgerec.deploy",
    "EdgerecError": "edgerec.errors",
    "Novelty": "edgerec.export",
    "Recipe": "edgerec.recipe",
    "Run": "edgerec.train.run",
    "ServeConfig": "edgerec.serving.config",
    "Target": "edgerec.contract.target",
    "adopt": "edgerec.importing.adopt",
    "architecture": "edgerec.catalog.architectures",
    "architectures": "edgerec.catalog.architectures",
    "benchmark": "edgerec.runtime.benchmark",
    "build": "edgerec.workflow",
    "check_data": "edgerec.data.checks",
    "compare": "edgerec.compress.compare",
    "create_app": "edgerec.serving.app",
    "deploy_bundle": "edgerec.deploy",
    "deploy_to_fleet": "edgerec.deploy",
    "device_status": "edgerec.deploy",
    "diff_runs": "edgerec.train.run_overview",
    "distill": "edgerec.train.distill",
    "ensemble": "edgerec.export",
    "evaluate": "edgerec.train.evaluate",
    "export_bundle": "edgerec.export",
    "fit": "edgerec.train.fit",
    "fleet_status": "edgerec.deploy",
    "import_tflite": "edgerec.export",
    "inspect": "edgerec.tflite.inspection",
    "list_runs": "edgerec.train.run_overview",
    "pack_data": "edgerec.data.tfrecord_writer",
    "parity": "edgerec.compress.layer_comparison.diagnose",
    "pixel_cache": "edgerec.data.cache_limit",
    "predict": "edgerec.camera.predict",
    "quantize": "edgerec.compress",
    "read_devices": "edgerec.deploy",
    "read_image": "edgerec.runtime.classifier",
    "recommendations": "edgerec.catalog.recommendations",
    "serve": "edgerec.serving.run",
    "remove": "edgerec.deploy",
    "rollback": "edgerec.deploy",
    "show_data": "edgerec.data.contact_sheet",
    "tune": "edgerec.tuning",
    "run_camera": "edgerec.camera.run",
    "run_doctor": "edgerec.doctor",
    "sign_bundle": "edgerec.contract.signing",
    "verify": "edgerec.runtime",
    "verify_emulated": "edgerec.emulation",
    "write_report": "edgerec.report",
}

__all__ = [
    "Bundle",
    "Camera",
    "CameraConfig",
    "ClassificationServer",
    "Classifier",
    "DeployOptions",
    "Device",
    "EdgerecError",
    "Novelty",
    "Recipe",
    "Run",
    "ServeConfig",
    "Target",
    "__version__",
    "adopt",
    "architecture",
    "architectures",
    "benchmark",
    "build",
    "check_data",
    "compare",
    "create_app",
    "deploy_bundle",
    "deploy_to_fleet",
    "device_status",
    "diff_runs",
    "distill",
    "ensemble",
    "evaluate",
    "export_bundle",
    "fit",
    "fleet_status",
    "import_tflite",
    "inspect",
    "list_runs",
    "pack_data",
    "parity",
    "pixel_cache",
    "predict",
    "quantize",
    "read_devices",
    "read_image",
    "recommendations",
    "remove",
    "rollback",
    "run_camera",
    "run_doctor",
    "serve",
    "show_data",
    "sign_bundle",
    "tune",
    "verify",
    "verify_emulated",
    "write_report",
]

if TYPE_CHECKING:
    from edgerec.camera import Camera
    from edgerec.camera.config import CameraConfig
    from edgerec.camera.predict import predict
    from edgerec.camera.run import run_camera
    from edgerec.catalog.architectures import architecture, architectures
    from edgerec.catalog.recommendations import recommendations
    from edgerec.compress import quantize
    from edgerec.compress.compare import compare
    from edgerec.compress.layer_comparison.diagnose import parity
    from edgerec.contract.bundle import Bundle
    from edgerec.contract.signing import sign_bundle
    from edgerec.contract.target import Target
    from edgerec.data.cache_limit import pixel_cache
    from edgerec.data.checks import check_data
    from edgerec.data.contact_sheet import show_data
    from edgerec.data.tfrecord_writer import pack_data
    from edgerec.deploy import (
        DeployOptions,
        Device,
        deploy_bundle,
        deploy_to_fleet,
        device_status,
        fleet_status,
        read_devices,
        remove,
        rollback,
    )
    from edgerec.doctor import run_doctor
    from edgerec.emulation import verify_emulated
    from edgerec.errors import EdgerecError
    from edgerec.export import Novelty, ensemble, export_bundle, import_tflite
    from edgerec.importing.adopt import adopt
    from edgerec.recipe import Recipe
    from edgerec.report import write_report
    from edgerec.runtime import Classifier, verify
    from edgerec.runtime.benchmark import benchmark
    from edgerec.runtime.classifier import read_image
    from edgerec.serving.app import create_app
    from edgerec.serving.config import ServeConfig
    from edgerec.serving.run import ClassificationServer, serve
    from edgerec.tflite.inspection import inspect
    from edgerec.train.distill import distill
    from edgerec.train.evaluate import evaluate
    from edgerec.train.fit import fit
    from edgerec.train.run import Run
    from edgerec.train.run_overview import diff_runs, list_runs
    from edgerec.tuning import tune
    from edgerec.workflow import build


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'edgerec' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
