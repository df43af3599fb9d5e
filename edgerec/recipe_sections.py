"""Recipe sections: data, augmentation, model, training, transfer learning, distillation and compression."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast, get_args

from edgerec.compression_methods import METHODS
from edgerec.contract.image_decoding import Levels
from edgerec.contract.preprocess import PREPROCESS_VERSION, Fit, Interpolation, PreprocessSpec
from edgerec.contract.tensors import NORMALIZATIONS
from edgerec.contract.toml_settings import any_value, choice, number, setting
from edgerec.errors import RecipeError

# A data source is the name, .npz file or folder of a data set, or a list of data sets to merge.
DataSource = str | Sequence[str]

# Recipe value that requests an automatic choice, based on the images and the target.
AUTO = "auto"


def _strings(default: str, help_text: str, expected: str) -> Any:
    def is_valid(value: str | tuple[Any, ...]) -> bool:
        return isinstance(value, str) or (len(value) > 1 and all(isinstance(one, str) and one for one in value))

    return setting(default, help_text, expected, is_valid)


@dataclass(frozen=True)
class DataSection:
    """Data settings: the images, their preprocessing and their split."""

    source: str | tuple[str, ...] = _strings(
        "digits",
        "digits, mnist, fashion_mnist, cifar10, cifar100, a .npz file or an image folder; or a list of several",
        "a string or a list of different strings",
    )
    input_size: int = setting(
        0,
        "height and width of the model's input in pixels; 0 = the image size, at most 96",
        "0 or 8 to 1024",
        lambda value: value == 0 or 8 <= value <= 1024,
    )
    channels: int = setting(
        0, "3 = RGB, 1 = grayscale, 0 = as in the data", "0, 1 or 3", lambda value: value in (0, 1, 3)
    )
    fit: str = choice("crop", "how to make images square: crop the center, stretch, or pad with black", get_args(Fit))
    interpolation: str = choice("linear", "interpolation method for resizing images", get_args(Interpolation))
    preprocess_version: int = setting(
        0,
        "version of the resizing algorithm: 2 = without aliasing on either axis, 1 = as in older runs, 0 = the latest",
        f"0 to {PREPROCESS_VERSION}",
        lambda value: 0 <= value <= PREPROCESS_VERSION,
    )
    normalize: str = choice(
        "unit",
        "range of the model's input values: 0 to 1 (unit), -1 to 1 (signed) or 0 to 255 (pixels)",
        NORMALIZATIONS,
    )
    black_level: int = number(0, "sample value that maps to black in 16-bit images", -32768, 65534)
    white_level: int = number(
        0,
        "sample value that maps to white in 16-bit images; 0 = determine both levels from the data",
        0,
        65535,
    )
    group_by: str = any_value(
        "", "regular expression; images with the same match in their path below the class folder are in the same split"
    )
    val_fraction: float = number(0.1, "fraction of images for the validation set, if the data has none", 0.01, 0.5)
    test_fraction: float = number(0.15, "fraction of images for the test set, if the data has none", 0.01, 0.5)
    strict: bool = any_value(False, "fail if files are not readable images, instead of skipping them")

    def __post_init__(self) -> None:
        integers = type(self.black_level) is int and type(self.white_level) is int
        if integers and self.white_level and self.black_level >= self.white_level:
            raise RecipeError(
                f"data.black_level is {self.black_level}, but must be below data.white_level ({self.white_level})"
            )

    @property
    def preprocess(self) -> PreprocessSpec:
        """Preprocessing of the model's input. Requires nonzero ``input_size`` and ``channels``."""
        size, fit, interpolation = self.input_size, cast(Fit, self.fit), cast(Interpolation, self.interpolation)
        version = self.preprocess_version or PREPROCESS_VERSION
        white_level = self.white_level or Levels().white
        return PreprocessSpec(size, size, self.channels, fit, interpolation, version, self.black_level, white_level)

    @property
    def levels(self) -> Levels | None:
        """Black and white levels of 16-bit images, or None to determine them from the data."""
        return Levels(self.black_level, self.white_level) if self.white_level else None

    @property
    def sources(self) -> tuple[str, ...]:
        """Names or paths of the data sets, as a tuple even if there is only one."""
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def title(self) -> str:
        """Names or paths of the data sets, joined with ``+`` for messages."""
        return " + ".join(self.sources)

    @property
    def without_folders(self) -> DataSection:
        """Copy of the section with only the last component of each path, because folder names may be private."""
        return replace(self, source=one_or_tuple(Path(source).name for source in self.sources))


@dataclass(frozen=True)
class AugmentSection:
    """Data augmentation of the training images; 0 or false disables an augmentation."""

    flip: bool = any_value(False, "mirror horizontally")
    shift: float = number(0.1, "shift by up to this fraction of the width and height", 0, 0.5)
    rotate_deg: float = number(10.0, "rotate by up to this many degrees", 0, 180)
    zoom: float = number(0.1, "enlarge or shrink by up to this fraction", 0, 0.9)
    brightness: float = number(0.1, "change the brightness by up to this fraction of the range", 0, 1)
    contrast: float = number(0.1, "change the contrast by up to this fraction", 0, 1)
    crop: float = number(0.0, "crop and enlarge, removing up to this fraction of the area", 0, 0.95)
    saturation: float = number(0.0, "change the saturation by up to this fraction; no effect on grayscale images", 0, 1)
    hue_deg: float = number(0.0, "rotate the hue by up to this many degrees; no effect on grayscale images", 0, 180)
    motion_blur: float = number(0.0, "motion blur with a length of up to this fraction of the width", 0, 0.3)
    exposure_stops: float = number(0.0, "change the exposure by up to this many stops", 0, 4)
    gamma: float = number(0.0, "gamma correction: gamma is drawn from [1/(1+g), 1+g]", 0, 3)
    noise: float = number(0.0, "sensor noise with a standard deviation of up to this fraction of the range", 0, 0.5)
    jpeg: int = number(0, "compress as JPEG with a quality from this to 100", 0, 100)
    cutout: float = number(0.0, "cover a square whose side is this fraction of the width", 0, 0.9)
    mixup: float = number(
        0.0, "blend pairs of images and labels; value of alpha for the beta distribution, usually 0.2; 0 = off", 0, 10
    )
    cutmix: float = number(
        0.0,
        "paste a patch of one image into another; value of alpha for the beta distribution, usually 1; 0 = off",
        0,
        10,
    )
    randaugment: int = number(0, "number of RandAugment transforms per image; each is drawn from 14 transforms", 0, 8)
    randaugment_strength: float = number(0.3, "strength of the RandAugment transforms; 1 = maximum", 0, 1)

    @property
    def mixes(self) -> bool:
        """Whether mixup or cutmix is enabled, making labels soft (one probability per class)."""
        return bool(self.mixup or self.cutmix)

    @property
    def unmixed(self) -> AugmentSection:
        """Copy of the section without mixup and cutmix, so that each image has one label."""
        return replace(self, mixup=0.0, cutmix=0.0)

    @property
    def active(self) -> dict[str, Any]:
        """Values of the enabled augmentations, keyed by name."""
        chosen = {item.name: getattr(self, item.name) for item in fields(self)}
        if not self.randaugment:
            del chosen["randaugment_strength"]
        return {name: value for name, value in chosen.items() if value}


def one_or_tuple(sources: Iterable[str]) -> str | tuple[str, ...]:
    """Return a string for one data set, or a tuple for several data sets."""
    names = (sources,) if isinstance(sources, str) else tuple(sources)
    return names[0] if len(names) == 1 else names


NOT_AUGMENTED = AugmentSection(**{name: type(value)(0) for name, value in vars(AugmentSection()).items()})


@dataclass(frozen=True)
class ModelSection:
    """Model settings: architecture and initial weights."""

    arch: str = any_value(
        AUTO,
        "architecture: auto (chosen for the images and the target), a name from edgerec models, your own function "
        "(my_net.py:build), or backbone (the network in the weights file)",
    )
    width: float = setting(
        0.0,
        "width multiplier (factor for the number of channels); 0 = chosen by arch auto, 1 for other architectures",
        "0 or 0.05 to 4",
        lambda value: value == 0 or 0.05 <= value <= 4,
    )
    dropout: float = number(0.0, "dropout rate before the dense layers", 0, 0.9)
    weights: str = any_value(
        AUTO,
        "initial weights: none (random), imagenet (downloaded by Keras), a run, a .keras or .h5 file, or auto "
        "(imagenet if arch auto chooses a network with ImageNet weights and they can be downloaded, otherwise none)",
    )
    target: str = any_value("", "target for which arch auto chooses a network, see edgerec targets; empty = any")

    @property
    def pretrained(self) -> bool:
        """Whether training starts from pretrained weights (from ImageNet, a file or another run)."""
        return self.weights not in ("none", AUTO)


@dataclass(frozen=True)
class TrainSection:
    """Training settings: epochs, optimizer, learning rate and device."""

    epochs: int = number(
        0, "number of training epochs; 0 = 15 to 60, depending on the number of training images", 0, 100000
    )
    batch_size: int = number(
        0, "number of images per training step; 0 = 16 to 128, depending on the number of training images", 0, 65536
    )
    optimizer: str = choice(
        "adam", "adam, or sgd with Nesterov momentum 0.9, which needs a learning rate of 0.05 to 0.2", ("adam", "sgd")
    )
    learning_rate: float = number(0.002, "highest learning rate of the schedule", 1e-8, 10)
    weight_decay: float = number(
        0.0,
        "decoupled weight decay of kernels, multiplied by the learning rate; try 0.005 for sgd, 0.01 to 0.1 for adam",
        0,
        1,
    )
    schedule: str = choice(
        "cosine",
        "learning-rate schedule; plateau halves the rate when the validation loss stalls",
        ("cosine", "constant", "plateau"),
    )
    warmup_epochs: float = number(
        0.5,
        "number of warm-up epochs, over which the learning rate rises from zero at the start of each stage",
        0,
        1000,
    )
    restarts: str = any_value(
        "", "epochs after which the schedule restarts, such as 10, 20; train --resume --epochs +N adds a restart"
    )
    class_weights: str = choice("none", "balanced = all classes contribute equally to the loss", ("none", "balanced"))
    early_stopping: int = number(
        0, "early stopping: end a stage after this many epochs without a better validation result; 0 = never", 0, 100000
    )
    device: str = choice("auto", "device to train on; auto = a GPU if TensorFlow finds one", ("auto", "cpu", "gpu"))
    mixed_precision: bool = any_value(False, "mixed precision: float16 on GPUs, bfloat16 on CPUs that support it")
    xla: bool = any_value(
        False, "compile the training step with XLA, which starts more slowly and is often faster on a GPU"
    )
    accumulate: int = number(
        1,
        "gradient accumulation: number of micro-batches into which each batch is divided, to save memory",
        1,
        4096,
    )
    max_hours: float = number(
        0.0, "time limit in hours; training stops before it and keeps the best epoch; 0 = no limit", 0, 1e6
    )
    price_per_hour: float = number(
        0.0, "this machine's price per hour, for showing the cost of training; 0 = do not show the cost", 0, 1e6
    )
    workers_wait_s: float = number(
        600.0, "seconds for which the workers in a TF_CONFIG cluster wait for each other at the start", 1, 86400
    )
    tensorboard: bool = any_value(False, "write a TensorBoard log into the run")


@dataclass(frozen=True)
class TransferSection:
    """Transfer learning settings, used only if model.weights selects pretrained weights."""

    frozen: float = number(0.1, "fraction of the epochs in which only the head is trained", 0, 1)
    unfreeze: float = number(
        0.25, "fraction of the epochs over which the other layers are unfrozen, the last ones first", 0, 1
    )
    rate: float = number(0.3, "factor for train.learning_rate after layers other than the head are unfrozen", 1e-6, 1)
    freeze_bn: bool = any_value(True, "batch normalization keeps the statistics of the initial weights")


@dataclass(frozen=True)
class DistillSection:
    """Settings for knowledge distillation from other runs (edgerec distill)."""

    teachers: str = any_value(
        "", "teacher runs, separated by commas, whose mean output the model learns; empty = learn from labels only"
    )
    weight: float = number(0.7, "weight of the distillation loss; the label loss has the remaining weight", 0, 1)
    temperature: float = number(
        4.0,
        "softmax temperature for teachers and student; higher values give unlikely classes more weight",
        0.1,
        100,
    )


@dataclass(frozen=True)
class CompressSection:
    """Compression settings: pruning, clustering and quantization."""

    method: str = choice(
        "auto", "compression method; auto = ptq, or qat if ptq loses too much accuracy", ("auto", *METHODS)
    )
    channels: float = number(
        0.4, "fraction of the estimated int8 inference time that method channels saves by removing channels", 0, 0.9
    )
    sparsity: float = number(0.5, "fraction of weights that method prune sets to zero", 0, 0.98)
    schedule: str = choice(
        "polynomial",
        "sparsity schedule: polynomial (rises over the first half of pruning) or constant",
        ("polynomial", "constant"),
    )
    weight_bits: int = number(
        8, "number of bits per weight for method qat; fewer bits make the file compress better", 5, 8
    )
    clusters: int = number(16, "number of distinct weights per layer after method cluster", 2, 256)
    skip: str = any_value(
        "", "layers that methods prune and cluster leave unchanged: names or patterns, such as 'logits, conv2d*'"
    )
    float_layers: str = any_value("", "layers that method mixed does not quantize: names or patterns, as for skip")
    epochs: int = number(
        3, "number of fine-tuning epochs for each of the stages channels, prune, cluster and qat", 1, 100000
    )
    learning_rate: float = number(
        0.0,
        "highest learning rate for fine-tuning; 0 = a fraction of train.learning_rate that depends on the method",
        0,
        10,
    )
    teacher_weight: float = number(
        1.0,
        "weight of the distillation loss from the float model; the label loss has the remaining weight",
        0,
        1,
    )
    calibration: str = any_value(
        "stratified",
        "calibration images for ptq: a recipe in calibration/, a .toml file, or the folder of a calibration set",
    )
    max_drop: float = number(1.0, "percentage points of test accuracy that a variant may lose", 0, 100)
