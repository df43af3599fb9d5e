"""The classifier that a bundle holds: an image in, an answer out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.contract.bundle import Bundle
from edgerec.contract.decision import COMBINATIONS, Classification, DecisionSpec, decide
from edgerec.contract.image_files import Levels, decode, read_image_file, why_unreadable
from edgerec.contract.manifest import Manifest, ModelSpec, NoveltySpec
from edgerec.contract.preprocess import Image, apply
from edgerec.errors import BundleError, DataError, DelegateError, RecipeError, unknown
from edgerec.runtime.anomaly import Autoencoder
from edgerec.runtime.model import ImageModel

log = logging.getLogger(__name__)


class Classifier:
    """Classifies images with a bundle. Not thread-safe: use one classifier per thread.

    Attributes:
        manifest: manifest of the bundle, with the changes that the arguments of the constructor request.
        invalid: number of images for which a model returned NaN or infinite scores.
        models: the model, or all models of an ensemble. Each one preprocesses the image and returns scores.
        autoencoder: detects unknown images regardless of their scores; None if the bundle has no autoencoder.

    >>> Classifier.open("signs-rpi").classify(image).label   # doctest: +SKIP
    'three'
    """

    manifest: Manifest
    invalid: int
    models: tuple[ImageModel, ...]
    autoencoder: Autoencoder | None

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int = 0,
        delegate: str | None = None,
        delegate_options: Mapping[str, str] | None = None,
        fallback: bool = False,
        threshold: float | None = None,
        decision: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare an opened bundle.

        Args:
            bundle: what :meth:`Bundle.open` gave.
            threads: interpreter threads; 0 takes the bundle's number.
            delegate: shared library of a delegate to use, such as ``libedgetpu.so.1``; ``gpu`` for LiteRT's own;
                an empty text runs on the processor; None does what the bundle was made for. With a delegate, the
                file compiled for it is used where the bundle has one.
            delegate_options: what the delegate takes, by name, as ``{"device": "usb:1"}``.
            fallback: run on the processor where the delegate does not load, and log that; without it that is an
                error.
            threshold: another ``unknown`` threshold than the bundle's, in [0, 1]; for all labels.
            decision: other fields of :class:`DecisionSpec` than the bundle's.

        Raises:
            BundleError: the model is not what the manifest says.
            DelegateError: the delegate does not load.
        """
        manifest = bundle.manifest
        delegate = manifest.delegate if delegate is None else delegate

        def opened(delegate: str) -> tuple[ImageModel, ...]:
            return tuple(
                _opened(bundle, spec, threads=threads, delegate=delegate, delegate_options=delegate_options)
                for spec in manifest.networks
            )

        try:
            found = opened(delegate)
        except DelegateError as error:
            if not fallback:
                raise
            log.warning("%s; running on the processor, slower", error)
            found = opened("")
        self.models = found[: len(manifest.models)]
        self.autoencoder = found[-1] if isinstance(found[-1], Autoencoder) else None
        if delegate_options and not delegate:
            raise DelegateError("there are options for a delegate, and no delegate: name its library with --delegate")
        changes = dict(decision or {})
        if strange := next((key for key in changes if key not in manifest.decision.to_dict()), None):
            raise RecipeError(unknown("decision", strange, manifest.decision.to_dict()))
        if threshold is not None:
            changes |= {"threshold": threshold, "thresholds": {}}
        try:
            changed = DecisionSpec.from_dict(manifest.decision.to_dict() | changes)
        except (TypeError, ValueError) as error:
            raise RecipeError(str(error).removeprefix("DecisionSpec.__init__() ")) from None
        self.manifest = replace(manifest, decision=changed)
        self._specs, self._novelty = manifest.networks, manifest.novelty
        self.invalid = 0

    @classmethod
    def open(cls, path: str | Path, **options: Any) -> Classifier:
        """Open the bundle (folder or .zip) at ``path``; options as for the constructor."""
        return cls(Bundle.open(path), **options)

    @property
    def levels(self) -> Levels:
        """Sample values that become black and white in images with 16 bits per sample. Pass them to read_image."""
        return self.manifest.levels

    def classify(self, image: Image) -> Classification:
        """Classify one image, uint8 ``(H, W, 3)`` RGB or ``(H, W)`` grey, of any size."""
        pixels = self.pixels(image)
        result = decide(self.scores(pixels), self.manifest.labels, self.manifest.decision, self.novelty(pixels))
        if not result.finite:
            if not self.invalid:
                log.warning(
                    "the model gives scores that are not numbers (NaN), so images are unknown: check it with edgerec "
                    "verify, and export it again"
                )
            self.invalid += 1
        return result

    def pixels(self, image: Image) -> tuple[Image, ...]:
        """What each model, and last the autoencoder, sees of an image: uint8 ``(height, width, channels)``."""
        made = {spec: apply(image, spec) for spec in {spec.preprocess for spec in self._specs}}
        return tuple(made[spec.preprocess] for spec in self._specs)

    def scores(self, pixels: Sequence[Image]) -> npt.NDArray[np.float32]:
        """float32 ``(classes,)`` in [0, 1] of all models together, for what :meth:`pixels` gave."""
        found = [model.scores(seen) for model, seen in zip(self.models, pixels, strict=False)]
        return found[0] if len(found) == 1 else COMBINATIONS[self.manifest.combine](np.stack(found))

    def novelty(self, pixels: Sequence[Image]) -> float | None:
        """How new the picture is for what :meth:`pixels` gave, as in :class:`Classification`; None where the bundle
        has no autoencoder, or its decision lets every picture through."""
        if self._novelty is None or not self.manifest.decision.novelty:
            return None
        return self.error(pixels) / self._novelty.threshold

    def error(self, pixels: Sequence[Image]) -> float:
        """The autoencoder's reconstruction error for what :meth:`pixels` gave."""
        if self.autoencoder is None:
            raise BundleError(
                "the bundle has no autoencoder: edgerec export RUN --novelty AUTOENCODER_RUN gives it one"
            )
        return self.autoencoder.error(pixels[-1])

    def stored_scores(self, image: Image) -> tuple[npt.NDArray[Any], ...]:
        """The output as each model stores it, in the output's dtype; behind an activation, the scores."""
        return tuple(
            model.invoke(pixels) if spec.activation == "none" else model.scores(pixels)
            for spec, model, pixels in zip(self._specs, self.models, self.pixels(image), strict=False)
        )


def _opened(bundle: Bundle, spec: ModelSpec, *, threads: int, delegate: str, **options: Any) -> ImageModel:
    name = spec.delegate_model if delegate and spec.delegate_model else spec.model
    kind = Autoencoder if isinstance(spec, NoveltySpec) else ImageModel
    model = kind(
        bundle.files[name],
        spec.normalise,
        activation=spec.activation,
        threads=threads or bundle.manifest.threads,
        delegate=delegate,
        where=f"{bundle.path}/{name}",
        **options,
    )
    for what, found, expected in (("input", model.input, spec.input), ("output", model.output, spec.output)):
        if found != expected:
            raise BundleError(
                f"{bundle.path}: the {what} of {name} is {found}, the manifest says {expected}: export the bundle again"
            )
    return model


def read_image(path: str | Path, levels: Levels | None = None) -> Image:
    """Read an image file as uint8 ``(H, W, 3)`` RGB, rotated according to its EXIF orientation.

    Args:
        path: the file.
        levels: the sample values that become black and white in a file with more than 8 bits per sample, see
            :attr:`Classifier.levels`. None uses the bit depth that the file states; if the file states none, the
            smallest bit depth that holds its largest value is used.

    Raises:
        DataError: the file cannot be read, or is not an image.
    """
    path = Path(path)
    try:
        content = read_image_file(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    image = decode(content, levels)
    if image is None:
        raise DataError(f"{path} is not a readable image: {why_unreadable(content)}")
    return image
