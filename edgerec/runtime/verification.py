"""Create and verify golden vectors, i.e. test images in a bundle with their expected scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgerec.contract.bundle import Bundle
from edgerec.contract.decision import UNKNOWN
from edgerec.contract.image_decoding import MAX_PIXELS, decode
from edgerec.contract.manifest import ModelSpec, NoveltySpec
from edgerec.contract.preprocess import Image, encode_png
from edgerec.contract.signature import Signer
from edgerec.errors import BundleError, SignatureError
from edgerec.runtime.classifier import Classifier
from edgerec.runtime.interpreter import Fingerprint, fingerprint
from edgerec.utils.atomic import sha256
from edgerec.utils.bounded_parsing import parse_json
from edgerec.utils.text import to_json

GOLDEN = "golden/golden.json"

# Maximum difference between the scores of two machines, in quantization steps of the int8 output.
# MobileNetV2 0.35 scores differed by 13 quantization steps between an x86-64 CPU and a Cortex-A72.
UNITS_OTHER_MACHINE = 16
# Maximum difference between the scores of two runtimes or delegates, in quantization steps of the int8 output.
# In tests, the scores of tflite-runtime and LiteRT differed by up to 48 quantization steps.
UNITS_OTHER_RUNTIME = 50
# Relative tolerance for reconstruction errors, because NumPy versions add numbers in different orders.
MEAN_TOLERANCE = 1e-9
# Maximum difference between float scores of two CPUs, and of a CPU and a delegate that may use float16.
FLOAT_OTHER_MACHINE, FLOAT_DELEGATE = 1e-3, 1e-2


@dataclass(frozen=True)
class GoldenResult:
    """Comparison of a model's scores on this machine with the golden scores of an image.

    Differences are in quantization steps of the output. If the output is float32 or an activation follows, they are
    differences between scores. For an autoencoder, they are differences between reconstruction errors, and the labels
    are ``known`` and ``unknown``.

    Attributes:
        difference, tolerance: largest difference from a golden score, and its tolerance.
        margin: difference between the two best golden scores. For an autoencoder, distance of the golden error from the
            threshold.
        deficit: difference between the best golden score and the golden score of ``label``, or 0 if the label is the
            same.
    """

    image: str
    model: str
    label: str
    golden_label: str
    difference: float
    tolerance: float
    margin: float
    deficit: float

    @property
    def decisive(self) -> bool:
        """Whether the margin exceeds the tolerance, i.e. whether every runtime must predict the same label."""
        return self.margin > self.tolerance


@dataclass(frozen=True)
class VerifyReport:
    """Result of :func:`verify`.

    Attributes:
        files: number of files in the manifest whose digest is correct.
        warnings: one sentence for each changed, removed or added file that the runtime does not use.
        made_on, here: fingerprints of the exporting machine and of this machine. If they are equal, scores must be
            bit-identical.
        delegate: shared library that ran the models, or an empty string for the CPU.
        exact: whether every score is bit-identical to the golden score.
        max_difference, tolerance: largest difference from a golden score, and its tolerance.
        golden: results for each image and each model.
        signed: whether the bundle has a signature.
        signer: the signer of the bundle, or None if the signature was not checked.
    """

    bundle: str
    files: int
    target: str
    variant: str
    made_on: Fingerprint
    here: Fingerprint
    tolerance: float
    exact: bool
    max_difference: float
    golden: tuple[GoldenResult, ...]
    delegate: str = ""
    warnings: tuple[str, ...] = ()
    signed: bool = False
    signer: Signer | None = None

    @property
    def images(self) -> int:
        """Number of golden images."""
        return len({result.image for result in self.golden})

    @property
    def same_labels(self) -> int:
        """Number of golden images for which every model predicts the golden label."""
        return self.images - len({result.image for result in self.golden if result.label != result.golden_label})

    @property
    def decisive(self) -> int:
        """Number of decisive golden images, for which every runtime must predict the same label."""
        return self.images - len({result.image for result in self.golden if not result.decisive})

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-serializable dictionary."""
        counts = {"images": self.images, "same_labels": self.same_labels, "decisive": self.decisive}
        return {"ok": True} | counts | asdict(self)


def make_golden(classifier: Classifier, images: Sequence[tuple[str, Image]]) -> dict[str, bytes]:
    """Compute golden vectors for a bundle, and return the file contents keyed by file name.

    For each image, the files contain a PNG image, the digest of the preprocessed pixels, the scores, and, if the bundle
    has an autoencoder, the reconstruction error.

    Raises:
        BundleError: a score is NaN or infinite.
    """
    files, vectors = {}, list[dict[str, Any]]()
    for number, (origin, image) in enumerate(images):
        name = f"golden/{number:03d}.png"
        files[name] = encode_png(image)
        vectors.append(
            {
                "image": name,
                "from": origin,
                "pixels_sha256": _pixels_sha256(classifier, image),
                "scores": [scores.tolist() for scores in classifier.stored_scores(image)],
            }
        )
        if not all(np.isfinite(scores).all() for scores in vectors[-1]["scores"]):
            raise BundleError(
                f"the model returned scores that are not numbers (NaN) for the golden image {origin}: train or convert "
                "the model again"
            )
        if classifier.autoencoder is not None:
            vectors[-1]["error"] = classifier.error(classifier.pixels(image))
    content = {"made_on": fingerprint().to_dict(), "vectors": vectors}
    files[GOLDEN] = (to_json(content, indent=1) + "\n").encode()
    return files


def golden_images(bundle: Bundle) -> dict[str, Image]:
    """Return golden images keyed by file name, with at most :data:`MAX_PIXELS` pixels in total.

    Raises:
        BundleError: there are no golden images.
    """
    images: dict[str, Image] = {}
    for name in sorted(bundle.files):
        image = decode(bundle.files[name]) if name.endswith(".png") else None
        if image is not None and sum(each.size for each in (image, *images.values())) <= 3 * MAX_PIXELS:
            images[name] = image
    if not images:
        raise BundleError(f"{bundle.path} has no golden images: export the bundle again")
    return images


def verify(
    path: str | Path,
    *,
    delegate: str | None = None,
    delegate_options: Mapping[str, str] | None = None,
    allowed_signers: str | Path | None = None,
    revoked_keys: str | Path | None = None,
) -> VerifyReport:
    """Check a bundle's digests, tensors and golden vectors on this machine.

    Files that the runtime does not use, e.g. README.md, only cause warnings if they were changed, removed or added.

    With the same runtime, version and CPU as on the exporting machine, every score must be bit-identical. Otherwise,
    and with a delegate, there are three rules:

    1. Scores must agree within a tolerance that was measured for such differences.
    2. The golden score of the predicted label must be at most this tolerance below the best golden score. Therefore,
       the label of each decisive image must be the same. An image is decisive if its two best golden scores are further
       apart than the tolerance. :attr:`VerifyReport.decisive` is the number of these images, and a warning is returned
       if they are not more than half of the images.
    3. The label must be the same for more than half of all images. This rule finds wrong models whose scores are so
       similar that no image is decisive. It is not stricter, because two runtimes disagreed on up to 24 % of the images
       with an inaccurate model.

    Args:
        path: the bundle's folder or .zip.
        delegate: a delegate's shared library, ``gpu``, or ``none`` for the CPU. None uses the bundle's delegate and
            the file compiled for it, as the camera does.
        delegate_options: delegate options, e.g. ``{"device": "usb:1"}``.
        allowed_signers, revoked_keys: files of SSH keys that check the signature; see :meth:`Bundle.open`. With allowed
            signers, files that were added to the bundle are refused instead of reported as warnings.

    Raises:
        BundleError: a check failed; the message describes the first failure.
        SignatureError: the bundle is not signed by an allowed signer, or was changed after it was signed.
        DelegateError: the delegate cannot be loaded.
    """
    bundle = Bundle.open(path, allowed_signers=allowed_signers, revoked_keys=revoked_keys)
    manifest, added = bundle.manifest, bundle.added()
    if bundle.signer and added:
        raise SignatureError(
            "altered", f"{path}: the signature does not cover {added[0]}, which was added to the bundle: delete it"
        )
    delegate = manifest.delegate_for(delegate)
    classifier = Classifier(bundle, delegate=delegate, delegate_options=delegate_options)
    made_on, vectors = read_golden(bundle)
    here = fingerprint()
    tolerances = [tolerance(made_on, here, spec, delegate) for spec in manifest.models]
    results = tuple(
        result
        for vector in vectors
        for result in (
            *_recompute(bundle, classifier, vector, tolerances),
            *_recomputed_error(bundle, classifier, vector, made_on, here, delegate),
        )
    )
    where = f"{here.runtime} {here.version} on {here.machine}{f' with {delegate}' if delegate else ''}"
    for result in results:
        if not result.difference <= result.tolerance:  # also NaN
            raise BundleError(
                f"{path}: {result.image}: scores of {result.model} differ by {result.difference:g} from the "
                "golden scores, "
                f"but at most {result.tolerance:g} is allowed. The label is {result.label!r} with {where}, and was "
                f"{result.golden_label!r} with {made_on.runtime} {made_on.version} on {made_on.machine}: export "
                "the bundle "
                "again, or report this with both runtime versions"
            )
        if result.deficit > result.tolerance:
            raise BundleError(
                f"{path}: {result.image}: {result.model} predicts {result.label!r} on this machine, but predicted "
                f"{result.golden_label!r} on the machine that exported the bundle: export the bundle again, or report "
                "this with both runtime versions"
            )
    largest = max(result.difference for result in results)
    unused = sorted({spec.delegate_model for spec in manifest.networks} - {""}) if not delegate else []
    report = VerifyReport(
        bundle=str(path),
        files=len(manifest.files) - len(bundle.warnings),
        target=manifest.target,
        variant=manifest.variant,
        made_on=made_on,
        here=here,
        tolerance=max(tolerances),
        exact=largest == 0,
        max_difference=largest,
        golden=results,
        delegate=delegate,
        signed=bundle.signature is not None,
        signer=bundle.signer,
        warnings=(
            *bundle.warnings,
            *(f"{path}: {name} is not part of the bundle" for name in added),
            *(f"{path}: {name} was not run, because the bundle was verified on the CPU" for name in unused),
        ),
    )
    if 2 * report.decisive <= report.images and not report.exact:
        report = replace(report, warnings=(*report.warnings, _indecisive(report)))
    if 2 * report.same_labels <= report.images:
        raise BundleError(
            f"{path}: with {where}, only {report.same_labels} of {report.images} golden images have the same predicted "
            "label as on the machine that exported the bundle: export the bundle again"
        )
    return report


def _indecisive(report: VerifyReport) -> str:
    return (
        f"{report.bundle}: the labels of only {report.decisive} of {report.images} golden images must be the same on "
        "every runtime, because the best scores of the other images are too similar: measure the accuracy on this "
        "machine with edgerec evaluate BUNDLE --data FOLDER"
    )


def read_golden(bundle: Bundle) -> tuple[Fingerprint, list[Mapping[str, Any]]]:
    """Return the fingerprint of the machine that exported a bundle, and the bundle's golden vectors.

    Each golden vector has the keys ``image``, ``pixels_sha256`` and ``scores``, a float64 array ``(models, labels)``.

    Raises:
        BundleError: the bundle has no golden vectors, or they are damaged.
    """
    content = bundle.files.get(GOLDEN)
    if content is None:
        raise BundleError(f"{bundle.path} has no golden vectors ({GOLDEN}): export the bundle again")
    try:
        values = parse_json(content)
        made_on, vectors = Fingerprint(**values["made_on"]), list(values["vectors"])
        if not vectors:
            raise ValueError("the file contains no golden vectors")
        for vector in vectors:
            # A bundle with only one model may store its scores without the model axis.
            vector["scores"] = np.atleast_2d(np.asarray(vector["scores"], np.float64))
            shape, expected = vector["scores"].shape, (len(bundle.manifest.models), len(bundle.manifest.labels))
            if shape != expected:
                raise ValueError(f"the scores have the shape {shape}, expected (models, labels) = {expected}")
            if vector["image"] not in bundle.files:
                raise ValueError(f"{vector['image']!r} is not in the bundle")
            if "pixels_sha256" not in vector:
                raise ValueError(f"the golden image {vector['image']} has no digest")
            if bundle.manifest.novelty is not None and not 0 <= float(vector["error"]) < math.inf:
                raise ValueError(
                    f"the reconstruction error of {vector['image']} is {vector['error']}, expected 0 or more"
                )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise BundleError(f"{bundle.path}/{GOLDEN} is damaged ({error}): export the bundle again") from None
    return made_on, vectors


def _pixels_sha256(classifier: Classifier, image: Image) -> str:
    return sha256(b"".join(pixels.tobytes() for pixels in classifier.pixels(image)))


def _recompute(
    bundle: Bundle, classifier: Classifier, vector: Mapping[str, Any], tolerances: Sequence[float]
) -> Iterator[GoldenResult]:
    image, labels = decode(bundle.files[vector["image"]]), bundle.manifest.labels
    if image is None:
        raise BundleError(f"{bundle.path}: {vector['image']} is not a readable image: export the bundle again")
    if _pixels_sha256(classifier, image) != vector["pixels_sha256"]:
        raise BundleError(
            f"{bundle.path}: {vector['image']}: preprocessing on this machine returns different pixels than on the "
            "machine that exported the bundle: report this with the OpenCV versions of both machines"
        )
    outputs = classifier.stored_scores(image)
    for spec, allowed, scores, golden in zip(
        bundle.manifest.models, tolerances, outputs, vector["scores"], strict=True
    ):
        best = np.sort(golden)[::-1]
        yield GoldenResult(
            image=vector["image"],
            model=spec.model,
            label=labels[int(scores.argmax())],
            golden_label=labels[int(golden.argmax())],
            difference=float(np.abs(scores.astype(np.float64) - golden).max()),
            tolerance=allowed,
            margin=float(best[0] - best[1]) if len(best) > 1 else math.inf,
            deficit=float(best[0] - golden[scores.argmax()]),
        )


def _recomputed_error(
    bundle: Bundle,
    classifier: Classifier,
    vector: Mapping[str, Any],
    made_on: Fingerprint,
    here: Fingerprint,
    delegate: str,
) -> Iterator[GoldenResult]:
    """Compare the reconstruction error with the golden error if the bundle has an autoencoder."""
    spec, image = bundle.manifest.novelty, decode(bundle.files[vector["image"]])
    if spec is None or image is None:
        return
    error, golden = classifier.error(classifier.pixels(image)), float(vector["error"])
    label, golden_label = ("known" if value <= spec.threshold else UNKNOWN for value in (error, golden))
    margin = abs(golden - spec.threshold)
    yield GoldenResult(
        image=vector["image"],
        model=spec.model,
        label=label,
        golden_label=golden_label,
        difference=abs(error - golden),
        tolerance=error_tolerance(made_on, here, spec, golden, delegate),
        margin=margin,
        deficit=margin if label != golden_label else 0.0,
    )


def error_tolerance(
    made_on: Fingerprint, here: Fingerprint, spec: NoveltySpec, error: float, delegate: str = ""
) -> float:
    """Return the maximum allowed difference between two machines' reconstruction errors for an image.

    ``error`` is the golden reconstruction error of the image. If each output differs by at most d, the mean of
    (e + d)² differs by at most 2·d·mean|e| + d², and mean|e| is at most the square root of the error.
    """
    difference = tolerance(made_on, here, spec, delegate) * (spec.output.scale or 1.0)
    return 2 * difference * math.sqrt(error) + difference**2 + MEAN_TOLERANCE * (1 + error)


def tolerance(made_on: Fingerprint, here: Fingerprint, spec: ModelSpec, delegate: str = "") -> float:
    """Return the maximum allowed difference between two machines' scores, in units of the model's output."""
    if made_on == here and not delegate:
        return 0.0
    if not spec.output.quantized:
        return FLOAT_DELEGATE if delegate else FLOAT_OTHER_MACHINE
    same_kernels = not delegate and {made_on.runtime, here.runtime} <= {"ai-edge-litert", "tensorflow"}
    units = UNITS_OTHER_MACHINE if same_kernels else UNITS_OTHER_RUNTIME
    # Activation functions never amplify differences between outputs.
    return units if spec.activation == "none" else units * spec.output.scale
