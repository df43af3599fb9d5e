"""Script that runs inside a userland: it imports modules, runs a bundle on images, and writes result.json.

The userland may contain another version of edgerec, so the script uses only functions that open a bundle and classify.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from pathlib import Path
from typing import Any


def pixels_and_scores(classifier: Any, content: bytes) -> dict[str, Any] | None:
    """Return the digest of an image's preprocessed pixels and each model's scores; None if it cannot be decoded."""
    from edgerec.contract.preprocess import decode

    # Older versions of edgerec do not have the parameter ``levels``.
    image = decode(content, classifier.levels) if hasattr(classifier, "levels") else decode(content)
    if image is None:
        return None
    pixels = b"".join(model_input.tobytes() for model_input in classifier.pixels(image))
    scores = [scores.tolist() for scores in classifier.stored_scores(image)]
    return {"pixels": hashlib.sha256(pixels).hexdigest(), "scores": scores}


def import_errors(modules: list[str]) -> dict[str, str]:
    """Return the reasons why modules cannot be imported, by module name."""
    errors = {}
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # any error is a result
            errors[name] = f"{type(error).__name__}: {error}"
    return errors


def trust_models(bundle: str) -> None:
    """Do not test the models in child processes: this process is isolated, and an emulated process cannot start any."""
    from edgerec.contract.bundle import Bundle

    try:
        from edgerec.tflite.probing import trust
    except ImportError:  # an older version of edgerec, which does not test models
        return
    for name, content in Bundle.open(bundle).files.items():
        if name.endswith(".tflite"):
            trust(content)


def prove(job: dict[str, Any]) -> dict[str, Any]:
    """Return the results of a job: import errors, the runtime, the result of ``edgerec verify``, and all scores."""
    result: dict[str, Any] = {"imports": import_errors(job["modules"])}
    if result["imports"]:
        return result
    from edgerec._version import __version__
    from edgerec.errors import EdgerecError
    from edgerec.runtime.classifier import Classifier
    from edgerec.runtime.interpreter import fingerprint
    from edgerec.runtime.verification import verify

    result |= {"edgerec": __version__, "here": fingerprint().to_dict(), "verify": ""}
    try:
        trust_models(job["bundle"])
        classifier = Classifier.open(job["bundle"], delegate="")
        result["pictures"] = {
            path.name: pixels_and_scores(classifier, path.read_bytes())
            for path in sorted(Path(job["pictures"]).iterdir())
        }
        verify(job["bundle"], delegate="")
    except EdgerecError as error:
        result["verify"] = str(error)
    return result


if __name__ == "__main__":
    here = Path(sys.argv[1])
    Path(here / "result.json").write_text(json.dumps(prove(json.loads((here / "job.json").read_text()))))
