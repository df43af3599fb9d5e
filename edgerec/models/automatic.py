"""Choose an architecture for ``model.arch = "auto"`` based on the images, their number and the target.

The first rule of :data:`RULES` that matches a data set decides. The rules were selected by validation accuracy.
docs/results.md has the measurements, and ``benchmarks/defaults.py`` repeats them.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgerec.contract.target import Target
from edgerec.models import least_size_px

# Maximum width and height of small images, such as those of MNIST (28 pixels) and CIFAR-10 (32 pixels).
SMALL_PX = 40
# Targets with less memory than this, in bytes, are treated as microcontrollers.
# Without a target, the model must be small enough for a microcontroller.
SMALL_MEMORY_BYTES = 16 << 20
# The number of epochs is chosen so that training has about this many steps.
UPDATES = 6000
FEWEST_EPOCHS, MOST_EPOCHS = 15, 60


@dataclass(frozen=True)
class Situation:
    """Properties of the data set and the target, used to choose an architecture.

    Attributes:
        side_px: shorter side of a typical image, in pixels.
        channels: 1 for grayscale, 3 for RGB.
        images: number of images, not counting a test split that the data set defines itself.
        classes: number of classes.
        target: the target that will run the model, or None for any target.
        input_px: side of the model's input in pixels, or 0 if the rules choose the side.
    """

    side_px: int
    channels: int
    images: int
    classes: int
    target: Target | None = None
    input_px: int = 0

    @property
    def small(self) -> bool:
        """True if the model's input size is at most :data:`SMALL_PX`."""
        return (self.input_px or self.side_px) <= SMALL_PX

    @property
    def large_target(self) -> bool:
        """True if a target is set and is not a microcontroller."""
        return self.target is not None and not 0 < self.target.memory_bytes < SMALL_MEMORY_BYTES

    def __str__(self) -> str:
        color = "grayscale" if self.channels == 1 else "RGB"
        where = f"target {self.target.name}" if self.target else "any target"
        return f"{self.images:,} {color} images of about {self.side_px} px, {self.classes} classes, {where}"


@dataclass(frozen=True)
class Rule:
    """An architecture, the conditions under which it is chosen, and the reason for the choice.

    Attributes:
        arch, width: values of ``model.arch`` and ``model.width``.
        reason: reason for the choice, as the end of a sentence "… because".
        imagenet: whether training starts from ImageNet weights.
        small: whether the images must be small (up to :data:`SMALL_PX`), or None for any size.
        channels: 1 or 3, or 0 for both.
        min_images, min_classes: minimum number of images and of classes.
        large_target: whether a target must be set that is not a microcontroller.
        max_input_px: maximum side of the model's input in pixels. Larger images are scaled down.
    """

    arch: str
    width: float
    reason: str
    imagenet: bool = False
    small: bool | None = None
    channels: int = 0
    min_images: int = 0
    min_classes: int = 0
    large_target: bool = False
    max_input_px: int = 96

    @property
    def data(self) -> str:
        """Short description of the data sets that the rule applies to."""
        size = "small " if self.small else "larger "
        color = {0: "", 1: "grayscale ", 3: "color "}[self.channels]
        text = f"{size}{color}images"
        text += f", at least {self.min_images:,}" if self.min_images else ""
        text += f", at least {self.min_classes} classes" if self.min_classes else ""
        return text + (", ImageNet weights" if self.imagenet else "")

    def matches(self, situation: Situation) -> bool:
        """Return whether the rule applies to a data set and target."""
        return (
            self.small in (None, situation.small)
            and (not situation.input_px or situation.input_px >= least_size_px(self.arch))
            and self.channels in (0, situation.channels)
            and situation.images >= self.min_images
            and situation.classes >= self.min_classes
            and (situation.large_target or not self.large_target)
        )


PRETRAINED = "ImageNet features need few images"
RULES = (
    Rule("simple_cnn", 1.0, "small grayscale images need no deeper network", small=True, channels=1),
    Rule("resnet14", 1.0, "many classes need a deeper residual network", small=True, min_images=5000, min_classes=50),
    Rule("resnet8", 1.0, "many small color images are enough for a residual network", small=True, min_images=5000),
    Rule("simple_cnn", 1.0, "few small images are not enough for a deeper network", small=True),
    Rule("resnet8", 1.0, "simple_cnn needs a larger input", small=True),
    Rule("vgg_small", 0.5, "all other networks need a larger input", small=True),
    Rule("mobilenet_v2", 1.0, PRETRAINED, imagenet=True, channels=3, large_target=True, max_input_px=160),
    Rule("mobilenet_v2", 0.35, PRETRAINED, imagenet=True, channels=3),
    Rule("mobilenet_v1", 0.5, "many classes need more channels", min_classes=50),
    Rule("mobilenet_v1", 0.5, "many images are enough for more channels", min_images=10_000),
    Rule("mobilenet_v2", 0.35, "a small network with batch normalization learns from few images"),
)


def choose(situation: Situation, *, imagenet: bool | None) -> Rule:
    """Return the first rule that applies to the data set and the target.

    Args:
        situation: the images and the target.
        imagenet: whether to start from ImageNet weights. None lets the rules choose.
    """
    allowed = [rule for rule in RULES if imagenet in (None, rule.imagenet)]
    for rule in allowed:
        if rule.matches(situation):
            return rule
    return allowed[-1]


def rules_for(target: Target, input_px: int = 0) -> list[Rule]:
    """Return the rules that can be chosen for a target, in the order of :data:`RULES`.

    Args:
        target: the target that will run the model.
        input_px: side of the model's input in pixels. 0 uses the side that each rule chooses.
    """
    sides = (input_px,) if input_px else (SMALL_PX, SMALL_PX + 1)
    counts = {1, *(rule.min_images for rule in RULES)}
    classes = {2, *(rule.min_classes for rule in RULES)}
    deciding = {
        choose(Situation(side, channels, images, count, target, input_px), imagenet=imagenet)
        for side in sides
        for channels in (1, 3)
        for images in counts
        for count in classes
        for imagenet in (None, False)
    }
    return [rule for rule in RULES if rule in deciding]


def suitable_epochs(updates_per_epoch: int) -> int:
    """Return a suitable number of epochs, given the number of steps per epoch."""
    return min(max(round(UPDATES / max(1, updates_per_epoch)), FEWEST_EPOCHS), MOST_EPOCHS)
