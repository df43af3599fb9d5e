"""What training needs, where TensorFlow is installed."""

from __future__ import annotations

from edgerec.doctor.finding import Finding, note, ok, problem
from edgerec.doctor.packages import Packages, numbers
from edgerec.doctor.system import System
from edgerec.utils.child_process import ask_python

_GPUS = "import json, tensorflow as tf; print(json.dumps(len(tf.config.list_physical_devices('GPU'))))"
# The first that edgerec is tested with, and that has Keras 3 beside tf_keras.
_TENSORFLOW = (2, 19)


def look(packages: Packages, nvidia: bool) -> int | None:
    """How many GPUs TensorFlow sees; asked only where there is one, as it takes seconds. None was not asked."""
    if "tensorflow" not in packages or not nvidia:
        return None
    count, _ = ask_python(_GPUS, timeout_s=90)
    return count if isinstance(count, int) else 0


def findings(packages: Packages, system: System, gpus: int | None) -> list[Finding]:
    """Versions that must be equal, the processor, the GPU. Nothing where TensorFlow is not installed."""
    version = packages.versions.get("tensorflow")
    if version is None:
        return []
    found = []
    if system.avx is False:
        mend = "pip uninstall -y tensorflow && pip install ai-edge-litert   # train on another machine"
        found.append(problem("training", "TensorFlow's wheels need AVX, which this processor lacks", mend))
    if numbers(version) < _TENSORFLOW:
        found.append(problem("training", f"TensorFlow {version} is too old", 'pip install --upgrade "edgerec[train]"'))
    minor = ".".join(version.split(".")[:2])
    keras = packages.versions.get("tf-keras")
    if keras is None:
        found.append(
            problem("training", "tf_keras is missing: pruning and QAT need it", f'pip install "tf_keras~={minor}.0"')
        )
    elif numbers(keras)[:2] != numbers(version)[:2]:
        detail = f"tf_keras {keras} is not for TensorFlow {version}"
        found.append(problem("training", detail, f'pip install "tf_keras~={minor}.0"'))
    if 0 < packages.major("keras") < 3:
        detail = f"Keras {packages.versions['keras']} is too old beside TensorFlow {version}"
        found.append(problem("training", detail, 'pip install --upgrade "keras>=3"'))
    if "tensorflow-model-optimization" not in packages:
        mend = "pip install tensorflow-model-optimization"
        found.append(problem("training", "tensorflow-model-optimization is missing: quantize needs it", mend))
    if gpus == 0:
        detail = (
            "TensorFlow does not see the GPU that nvidia-smi sees: CUDA's libraries are missing, or of other versions"
        )
        found.append(note("training", detail, 'pip install "edgerec[train-gpu]"'))
    if not any(finding.state == "problem" for finding in found):
        with_ = f", {gpus} GPU{'s' if gpus > 1 else ''}" if gpus else ""
        found.insert(0, ok("training", f"TensorFlow {version}, tf_keras {keras}{with_}"))
    return found
