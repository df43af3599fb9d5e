"""Run a bundle on images in an emulated system, and write the scores to result.json.

The emulated system may contain a different version of edgerec, so the script only uses functions that open a bundle and
classify images.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgerec.emulation.score_comparison import ImageResult


def pixels_and_scores(classifier: Any, content: bytes) -> ImageResult | None:
    """Return the digest of an image's preprocessed pixels, and the scores from each model.

    The result is None if the image cannot be decoded.
    """
    from edgerec.contract.image_decoding import decode

    # Older versions of edgerec have no ``Classifier.levels``.
    image = decode(content, classifier.levels) if hasattr(classifier, "levels") else decode(content)
    if image is None:
        return None
    pixels = b"".join(model_input.tobytes() for model_input in classifier.pixels(image))
    scores = [scores.tolist() for scores in classifier.stored_scores(image)]
    return {"pixels": hashlib.sha256(pixels).hexdigest(), "scores": scores}


def import_errors(modules: list[str]) -> dict[str, str]:
    """Import modules, and return any import errors, keyed by module name."""
    errors = {}
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # an import can raise any exception
            errors[name] = f"{type(error).__name__}: {error}"
    return errors


def trust_models(bundle: str) -> None:
    """Make edgerec load the models without testing them in child processes first.

    The test is unnecessary because this process is already isolated, and an emulated process cannot start child
    processes.
    """
    from edgerec.contract.bundle import Bundle

    try:
        from edgerec.tflite.probing import trust
    except ImportError:  # older versions of edgerec have no ``trust`` function
        return
    for name, content in Bundle.open(bundle).files.items():
        if name.endswith(".tflite"):
            trust(content)


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Return the import errors, the runtime, the result of ``edgerec verify`` and the scores for all images."""
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
        result["images"] = {
            path.name: pixels_and_scores(classifier, path.read_bytes())
            for path in sorted(Path(job["images"]).iterdir())
        }
        verify(job["bundle"], delegate="")
    except EdgerecError as error:
        result["verify"] = str(error)
    return result


if __name__ == "__main__":
    here = Path(sys.argv[1])
    Path(here / "result.json").write_text(json.dumps(run_job(json.loads((here / "job.json").read_text()))))
