"""What runs inside the userland: imports, then a bundle's answers to pictures. Gives result.json beside job.json.

It may meet any version of edgerec there: of edgerec it knows only what opens a bundle and classifies.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from pathlib import Path
from typing import Any


def answer(classifier: Any, content: bytes) -> dict[str, Any] | None:
    """The digest of the pixels that the models see of a picture file, and each model's scores; None: no picture."""
    from edgerec.contract.preprocess import decode

    # Older versions of edgerec do not have the parameter ``levels``.
    image = decode(content, classifier.levels) if hasattr(classifier, "levels") else decode(content)
    if image is None:
        return None
    pixels = b"".join(seen.tobytes() for seen in classifier.pixels(image))
    scores = [scores.tolist() for scores in classifier.stored_scores(image)]
    return {"pixels": hashlib.sha256(pixels).hexdigest(), "scores": scores}


def import_errors(modules: list[str]) -> dict[str, str]:
    """Why modules do not load, by their names."""
    found = {}
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever stands in the way is what is asked for
            found[name] = f"{type(error).__name__}: {error}"
    return found


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
    """The answers to a job: imports, runtime, ``edgerec verify``, and each picture of the folder."""
    found: dict[str, Any] = {"imports": import_errors(job["modules"])}
    if found["imports"]:
        return found
    from edgerec._version import __version__
    from edgerec.errors import EdgerecError
    from edgerec.runtime.classifier import Classifier
    from edgerec.runtime.interpreter import fingerprint
    from edgerec.runtime.verification import verify

    found |= {"edgerec": __version__, "here": fingerprint().to_dict(), "verify": ""}
    try:
        trust_models(job["bundle"])
        classifier = Classifier.open(job["bundle"], delegate="")
        found["pictures"] = {
            path.name: answer(classifier, path.read_bytes()) for path in sorted(Path(job["pictures"]).iterdir())
        }
        verify(job["bundle"], delegate="")
    except EdgerecError as error:
        found["verify"] = str(error)
    return found


if __name__ == "__main__":
    here = Path(sys.argv[1])
    Path(here / "result.json").write_text(json.dumps(prove(json.loads((here / "job.json").read_text()))))
