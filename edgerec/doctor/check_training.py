"""Check whether training is possible if TensorFlow is installed."""

from __future__ import annotations

from edgerec.doctor.check_packages import Packages, numbers
from edgerec.doctor.check_result import CheckResult, note, ok, problem
from edgerec.doctor.check_system import System
from edgerec.utils.child_process import ask_python

_GPUS = "import json, tensorflow as tf; print(json.dumps(len(tf.config.list_physical_devices('GPU'))))"
_MIN_TENSORFLOW = (2, 19)


def count_gpus(packages: Packages, nvidia: bool) -> int | None:
    """Return the number of GPUs that TensorFlow can use, or None if TensorFlow or an NVIDIA GPU is missing.

    If there is no NVIDIA GPU, TensorFlow is not imported, because the import is slow.
    """
    if "tensorflow" not in packages or not nvidia:
        return None
    count, _ = ask_python(_GPUS, timeout_s=90)
    return count if isinstance(count, int) else 0


def check(packages: Packages, system: System, gpus: int | None) -> list[CheckResult]:
    """Check TensorFlow, the CPU and the GPU. Return an empty list if TensorFlow is not installed."""
    version = packages.versions.get("tensorflow")
    if version is None:
        return []
    result = []
    if system.avx is False:
        fix = "pip uninstall -y tensorflow && pip install ai-edge-litert   # train on another machine"
        result.append(problem("training", "TensorFlow's wheels require AVX, which this CPU does not support", fix))
    if numbers(version) < _MIN_TENSORFLOW:
        result.append(problem("training", f"TensorFlow {version} is too old", 'pip install --upgrade "edgerec[train]"'))
    minor = ".".join(version.split(".")[:2])
    keras = packages.versions.get("tf-keras")
    if keras is None:
        fix = f'pip install "tf_keras~={minor}.0"'
        result.append(problem("training", "tf_keras, which is required for training, is not installed", fix))
    elif numbers(keras)[:2] != numbers(version)[:2]:
        detail = f"tf_keras {keras} does not match TensorFlow {version}"
        result.append(problem("training", detail, f'pip install "tf_keras~={minor}.0"'))
    if 0 < packages.major("keras") < 3:
        detail = f"Keras {packages.versions['keras']} is too old for TensorFlow {version}"
        result.append(problem("training", detail, 'pip install --upgrade "keras>=3"'))
    if "tensorflow-model-optimization" not in packages:
        fix = "pip install tensorflow-model-optimization"
        result.append(
            problem("training", "tensorflow-model-optimization, which edgerec quantize requires, is not installed", fix)
        )
    if gpus == 0:
        detail = (
            "TensorFlow cannot use the GPU listed by nvidia-smi, because CUDA libraries are missing or incompatible"
        )
        result.append(note("training", detail, 'pip install "edgerec[train-gpu]"'))
    if not any(one.state == "problem" for one in result):
        gpu_text = f", {gpus} GPU{'s' if gpus > 1 else ''}" if gpus else ""
        result.insert(0, ok("training", f"TensorFlow {version}, tf_keras {keras}{gpu_text}"))
    return result
