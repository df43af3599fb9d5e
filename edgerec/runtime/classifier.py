"""Classify images with a bundle's model."""

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
from edgerec.contract.image_decoding import Levels, decode, read_image_file, why_unreadable
from edgerec.contract.manifest import Manifest, ModelSpec, NoveltySpec
from edgerec.contract.preprocess import Image, apply
from edgerec.contract.reduced_decoding import ReductionChooser, jpeg_reduction
from edgerec.errors import BundleError, DataError, DelegateError, RecipeError, unknown
from edgerec.runtime.autoencoder import Autoencoder
from edgerec.runtime.image_model import ImageModel

log = logging.getLogger(__name__)


class Classifier:
    """Classifies images with a bundle. Not thread-safe: use one classifier per thread.

    Attributes:
        manifest: the bundle's manifest, with the changes requested by the constructor's arguments.
        invalid: number of images for which a model returned NaN or infinite scores.
        models: the model, or all models of an ensemble.
        autoencoder: detects images that belong to none of the classes, regardless of their scores. None if the bundle
            has no autoencoder.

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
        """Load an opened bundle's models.

        Args:
            bundle: the bundle, as returned by :meth:`Bundle.open`.
            threads: number of interpreter threads. 0 uses the number in the bundle.
            delegate: a delegate's shared library, such as ``libedgetpu.so.1``, ``gpu`` for LiteRT's GPU accelerator,
                or ``none`` for the CPU. None uses the bundle's delegate. If the bundle has a model file that was
                compiled for the delegate, the delegate runs this file.
            delegate_options: delegate options, e.g. ``{"device": "usb:1"}``.
            fallback: whether to log a warning and use the CPU if the delegate cannot be loaded, instead of raising
                :class:`DelegateError`.
            threshold: minimum score in [0, 1] for all labels. Overrides the bundle's thresholds.
            decision: fields of :class:`DecisionSpec` that override the bundle's.

        Raises:
            BundleError: a model does not match the manifest.
            DelegateError: the delegate cannot be loaded, or there are options but no delegate.
            RecipeError: ``threshold`` or ``decision`` is invalid.
        """
        manifest = bundle.manifest
        delegate = manifest.delegate_for(delegate)

        def load_models(delegate: str) -> tuple[ImageModel, ...]:
            return tuple(
                _load_model(bundle, spec, threads=threads, delegate=delegate, delegate_options=delegate_options)
                for spec in manifest.networks
            )

        try:
            models = load_models(delegate)
        except DelegateError as error:
            if not fallback:
                raise
            log.warning("%s; running on the CPU instead, which is slower", error)
            models = load_models("")
        self.models = models[: len(manifest.models)]
        self.autoencoder = models[-1] if isinstance(models[-1], Autoencoder) else None
        if delegate_options and not delegate:
            raise DelegateError("delegate options require a delegate: specify its library with --delegate")
        self.manifest = replace(manifest, decision=changed_decision(manifest.decision, threshold, decision))
        self._specs, self._novelty = manifest.networks, manifest.novelty
        self.invalid = 0

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        allowed_signers: str | Path | None = None,
        revoked_keys: str | Path | None = None,
        **options: Any,
    ) -> Classifier:
        """Open the bundle (a folder or .zip file) at ``path``.

        Args:
            path: the bundle's folder or .zip.
            allowed_signers, revoked_keys: files of SSH keys that check the signature; see :meth:`Bundle.open`.
            options: arguments of the constructor.
        """
        return cls(Bundle.open(path, allowed_signers=allowed_signers, revoked_keys=revoked_keys), **options)

    @property
    def levels(self) -> Levels:
        """Black and white levels for 16-bit images, for use with :func:`read_image`."""
        return self.manifest.levels

    def classify(self, image: Image, spec: DecisionSpec | None = None) -> Classification:
        """Classify a uint8 image of any size: RGB of shape ``(H, W, 3)`` or grayscale of shape ``(H, W)``.

        Args:
            image: the image.
            spec: decision settings for this image. None uses those of :attr:`manifest`.
        """
        pixels, spec = self.pixels(image), spec or self.manifest.decision
        novelty = self.error(pixels) / self._novelty.threshold if self._novelty and spec.novelty else None
        result = decide(self.scores(pixels), self.manifest.labels, spec, novelty)
        if not result.finite:
            if not self.invalid:
                log.warning(
                    "the model returned scores that are not numbers (NaN), so these images are labeled unknown: check "
                    "the bundle with edgerec verify, and export it again"
                )
            self.invalid += 1
        return result

    def pixels(self, image: Image) -> tuple[Image, ...]:
        """Preprocess an image for each model. Return uint8 arrays of shape ``(height, width, channels)``.

        If the bundle has an autoencoder, the last array is for the autoencoder.
        """
        if len(self._specs) == 1:
            return (apply(image, self._specs[0].preprocess),)
        pixels = {preprocess: apply(image, preprocess) for preprocess in {spec.preprocess for spec in self._specs}}
        return tuple(pixels[spec.preprocess] for spec in self._specs)

    def scores(self, pixels: Sequence[Image]) -> npt.NDArray[np.float32]:
        """Return the models' combined scores in [0, 1] as a float32 array of shape ``(classes,)``.

        Args:
            pixels: an image's pixels for each model, as returned by :meth:`pixels`.
        """
        scores = [model.scores(model_pixels) for model, model_pixels in zip(self.models, pixels, strict=False)]
        return scores[0] if len(scores) == 1 else COMBINATIONS[self.manifest.combine](np.stack(scores))

    def novelty(self, pixels: Sequence[Image]) -> float | None:
        """Return the anomaly score of an image preprocessed with :meth:`pixels`.

        The anomaly score is the reconstruction error divided by its threshold. It is None if the bundle has no
        autoencoder, or if the novelty check is disabled in the decision settings.
        """
        if self._novelty is None or not self.manifest.decision.novelty:
            return None
        return self.error(pixels) / self._novelty.threshold

    def error(self, pixels: Sequence[Image]) -> float:
        """Return the autoencoder's reconstruction error for an image preprocessed with :meth:`pixels`.

        Raises:
            BundleError: the bundle has no autoencoder.
        """
        if self.autoencoder is None:
            raise BundleError(
                "the bundle has no autoencoder: export it again with edgerec export RUN --novelty AUTOENCODER_RUN"
            )
        return self.autoencoder.error(pixels[-1])

    def stored_scores(self, image: Image) -> tuple[npt.NDArray[Any], ...]:
        """Return each model's output in the dtype of its output tensor.

        If the manifest contains an activation, return float32 scores in [0, 1] instead.
        """
        return tuple(
            model.invoke(pixels) if spec.activation == "none" else model.scores(pixels)
            for spec, model, pixels in zip(self._specs, self.models, self.pixels(image), strict=False)
        )


def changed_decision(
    spec: DecisionSpec, threshold: float | None = None, changes: Mapping[str, Any] | None = None
) -> DecisionSpec:
    """Return a copy of the decision settings with some fields replaced.

    Args:
        spec: the decision settings.
        threshold: minimum score in [0, 1] for all labels. None keeps the thresholds.
        changes: fields of :class:`DecisionSpec` to replace.

    Raises:
        RecipeError: a field does not exist, or a value is out of range.
    """
    fields = dict(changes or {})
    if unknown_key := next((key for key in fields if key not in spec.to_dict()), None):
        raise RecipeError(unknown("decision setting", unknown_key, spec.to_dict()))
    if threshold is not None:
        fields |= {"threshold": threshold, "thresholds": {}}
    try:
        return replace(spec, **fields)
    except ValueError as error:
        raise RecipeError(str(error)) from None


def _load_model(bundle: Bundle, spec: ModelSpec, *, threads: int, delegate: str, **options: Any) -> ImageModel:
    name = spec.delegate_model if delegate and spec.delegate_model else spec.model
    model_class = Autoencoder if isinstance(spec, NoveltySpec) else ImageModel
    model = model_class(
        bundle.files[name],
        spec.normalize,
        activation=spec.activation,
        threads=threads or bundle.manifest.threads,
        delegate=delegate,
        where=f"{bundle.path}/{name}",
        **options,
    )
    for tensor, actual, expected in (("input", model.input, spec.input), ("output", model.output, spec.output)):
        if actual != expected:
            raise BundleError(
                f"{bundle.path}: the {tensor} of {name} is {actual}, but the manifest says {expected}: export the "
                "bundle again"
            )
    return model


def read_image(
    path: str | Path, levels: Levels | None = None, choose_reduction: ReductionChooser | None = None
) -> Image:
    """Read an image file as a uint8 RGB array of shape ``(H, W, 3)``, rotated according to its EXIF orientation.

    Args:
        path: the file.
        levels: black and white levels of a file with more than 8 bits per sample, see :attr:`Classifier.levels`. None
            uses the bit depth in the file header, or the smallest bit depth that holds the largest sample.
        choose_reduction: function that returns the factor by which to reduce a JPEG file of a given size when decoding
            it, such as :meth:`Manifest.largest_reduction`. None decodes at full size.

    Raises:
        DataError: the file cannot be read, or is not an image.
    """
    path = Path(path)
    try:
        content = read_image_file(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    reduction, _ = jpeg_reduction(content, choose_reduction)
    image = decode(content, levels, reduction=reduction)
    if image is None:
        raise DataError(f"{path} is not a readable image: {why_unreadable(content)}")
    return image
