"""Import optional packages, and suggest a command that installs a missing package."""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

from edgerec.errors import MissingExtraError

# Display name of each optional module, and the edgerec extra that installs the module.
_PACKAGES = {
    "cv2": ("OpenCV", "headless"),
    "flatbuffers": ("flatbuffers", "train"),
    "tensorflow": ("TensorFlow", "train"),
    "tf_keras": ("tf_keras", "train"),
    "keras": ("Keras 3", "train"),
    "h5py": ("h5py", "train"),
    "tensorboard": ("TensorBoard", "tensorboard"),
    "tensorflow_model_optimization": ("tensorflow-model-optimization", "train"),
    "scipy": ("SciPy", "train"),
    "sklearn": ("scikit-learn", "train"),
    "threadpoolctl": ("scikit-learn", "train"),
    "matplotlib": ("matplotlib", "plots"),
    "jinja2": ("Jinja2", "train"),
    "markupsafe": ("MarkupSafe", "train"),
    "starlette": ("Starlette", "web"),
    "uvicorn": ("uvicorn", "web"),
    "python_multipart": ("python-multipart", "serve"),
    "paho": ("paho-mqtt", "mqtt"),
    "optuna": ("Optuna", "tune"),
    "sqlalchemy": ("SQLAlchemy", "tune"),
    "psycopg": ("psycopg", "tune"),
    "prometheus_client": ("prometheus-client", "prometheus"),
    "pillow_heif": ("pillow-heif", "heic"),
    "gpiozero": ("gpiozero", "gpio"),
}


@functools.cache
def _set_environment(package: str) -> None:
    """Set the environment variables that a package reads only once, when it is imported."""
    if package in ("tensorflow", "tf_keras"):
        # TensorFlow enables oneDNN only on CPUs with VNNI, but oneDNN also speeds up training on other CPUs.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    if package == "cv2":
        # Even a small file can contain an image that takes gigabytes of memory.
        os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "200000000")


def require(module: str) -> Any:
    """Import ``module``, or raise :class:`MissingExtraError` with the command that installs it."""
    package = module.partition(".")[0]
    _set_environment(package)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        name, extra = _PACKAGES[package]
        raise MissingExtraError(f'{name} is required but not installed: run pip install "edgerec[{extra}]"') from None
    except ImportError as error:
        if package == "cv2" and ".so" in str(error):
            raise MissingExtraError(
                f"OpenCV cannot be imported, because a system library is missing ({error}): "
                "run apt install libgl1 libglib2.0-0, or replace it with pip install opencv-python-headless"
            ) from None
        raise
