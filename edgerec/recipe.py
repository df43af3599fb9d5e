"""Recipes: all settings that are needed to repeat a training and the compression of its model, stored as TOML."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args, get_origin, get_type_hints

from edgerec.compression_methods import METHODS
from edgerec.contract.content import reason
from edgerec.contract.image_files import Levels
from edgerec.contract.preprocess import PREPROCESS_VERSION, UNRECORDED_VERSION, Fit, Interpolation, PreprocessSpec
from edgerec.contract.tensors import NORMALISATIONS, Normalise
from edgerec.errors import RecipeError, unknown
from edgerec.utils.atomic import user_path
from edgerec.utils.bounded import parse_toml, read_toml
from edgerec.utils.command_line import command

Check = Callable[[Any], bool]
# Name, .npz file or folder of a data set, or a list of several data sets, which are merged.
DataSource = str | Sequence[str]

# Value of model.arch and model.weights that lets edgerec choose according to the images and the target.
AUTO = "auto"
# Keys that training resolves automatically, and the value that requests this. recipe.toml of a run contains the
# resolved values only.
UNRESOLVED: dict[str, Any] = {
    "data.input_size": 0,
    "data.channels": 0,
    "data.preprocess_version": 0,
    "data.white_level": 0,
    "model.arch": AUTO,
    "model.width": 0.0,
    "model.weights": AUTO,
    "train.epochs": 0,
    "train.batch_size": 0,
}


def _key(default: Any, about: str, expected: str, check: Check) -> Any:
    """Declare a recipe key with its default, help text, description of the accepted values, and validation function."""
    return field(default=default, metadata={"about": about, "expected": expected, "check": check})


def _number(default: float, about: str, low: float, high: float) -> Any:
    return _key(default, about, f"{low:g} to {high:g}", lambda value: low <= value <= high)


def _choice(default: str, about: str, choices: Iterable[str]) -> Any:
    known = tuple(choices)
    return _key(default, about, ", ".join(known), known.__contains__)


def _flag(default: bool, about: str) -> Any:
    return _key(default, about, "true or false", lambda value: True)


def _text(default: str, about: str) -> Any:
    return _key(default, about, "a string", lambda value: True)


def _texts(default: str, about: str, expected: str) -> Any:
    """Declare a recipe key whose value is a string or a list of strings."""

    def check(value: str | tuple[Any, ...]) -> bool:
        return isinstance(value, str) or (len(value) > 1 and all(isinstance(one, str) and one for one in value))

    return _key(default, about, expected, check)


@dataclass(frozen=True)
class DataSection:
    """The images, their preprocessing and their split."""

    source: str | tuple[str, ...] = _texts(
        "digits",
        "digits, mnist, fashion_mnist, cifar10, cifar100, a .npz file or an image folder; or a list of several",
        "a string or a list of different strings",
    )
    input_size: int = _key(
        0,
        "height and width of the model's input in pixels; 0 = the size of the images, at most 96",
        "0 or 8 to 1024",
        lambda value: value == 0 or 8 <= value <= 1024,
    )
    channels: int = _key(0, "3 = RGB, 1 = grayscale, 0 = as in the data", "0, 1 or 3", lambda value: value in (0, 1, 3))
    fit: str = _choice(
        "crop", "conversion of images that are not square: crop the center, stretch, or pad with black", get_args(Fit)
    )
    interpolation: str = _choice("linear", "interpolation method for resizing images", get_args(Interpolation))
    preprocess_version: int = _key(
        0,
        "version of the resizing algorithm: 2 = without aliasing on either axis, 1 = as in older runs, 0 = the latest",
        f"0 to {PREPROCESS_VERSION}",
        lambda value: 0 <= value <= PREPROCESS_VERSION,
    )
    normalise: str = _choice(
        "unit",
        "range of the model's input values: 0 to 1 (unit), -1 to 1 (signed) or 0 to 255 (pixels)",
        NORMALISATIONS,
    )
    black_level: int = _number(0, "value that becomes black in images with 16 bits per sample", -32768, 65534)
    white_level: int = _number(
        0,
        "value that becomes white in images with 16 bits per sample; 0 = determine both levels from the data",
        0,
        65535,
    )
    group_by: str = _text(
        "", "regular expression; images with the same match in their path below the class folder are in the same split"
    )
    val_fraction: float = _number(0.1, "fraction of the images for the validation set, if the data has none", 0.01, 0.5)
    test_fraction: float = _number(
        0.15, "fraction of the images for the test set, if the data has no test split", 0.01, 0.5
    )
    strict: bool = _flag(False, "fail if files are not readable images, instead of skipping them")

    def __post_init__(self) -> None:
        integers = type(self.black_level) is int and type(self.white_level) is int
        if integers and self.white_level and self.black_level >= self.white_level:
            raise RecipeError(
                f"data.black_level is {self.black_level}, expected a value below data.white_level ({self.white_level})"
            )

    @property
    def preprocess(self) -> PreprocessSpec:
        """Preprocessing of the model's input; ``input_size`` and ``channels`` must be known (not 0)."""
        size, fit, interpolation = self.input_size, cast(Fit, self.fit), cast(Interpolation, self.interpolation)
        version = self.preprocess_version or PREPROCESS_VERSION
        white_level = self.white_level or Levels().white
        return PreprocessSpec(size, size, self.channels, fit, interpolation, version, self.black_level, white_level)

    @property
    def levels(self) -> Levels | None:
        """Values that become black and white in files with 16 bits per sample; None to determine them from the data."""
        return Levels(self.black_level, self.white_level) if self.white_level else None

    @property
    def sources(self) -> tuple[str, ...]:
        """Names or paths of the data sets in ``source``, as a tuple that usually has one element."""
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def title(self) -> str:
        """Names or paths of the data sets, joined for messages."""
        return " + ".join(self.sources)

    @property
    def without_folders(self) -> DataSection:
        """Copy of the section with folder names instead of paths, for files that are shared with others."""
        return replace(self, source=one_or_tuple(Path(source).name for source in self.sources))


@dataclass(frozen=True)
class AugmentSection:
    """Random changes of the training images; 0 or false turns a change off."""

    flip: bool = _flag(False, "mirror horizontally")
    shift: float = _number(0.1, "shift by up to this fraction of the width and height", 0, 0.5)
    rotate_deg: float = _number(10.0, "rotate by up to this many degrees", 0, 180)
    zoom: float = _number(0.1, "enlarge or shrink by up to this fraction", 0, 0.9)
    brightness: float = _number(0.1, "change the brightness by up to this fraction of the range", 0, 1)
    contrast: float = _number(0.1, "change the contrast by up to this fraction", 0, 1)
    crop: float = _number(0.0, "crop and enlarge, removing up to this fraction of the area", 0, 0.95)
    saturation: float = _number(
        0.0, "change the saturation by up to this fraction; no effect on grayscale images", 0, 1
    )
    hue_deg: float = _number(0.0, "rotate the hue by up to this many degrees; no effect on grayscale images", 0, 180)
    motion_blur: float = _number(0.0, "motion blur with a length of up to this fraction of the width", 0, 0.3)
    exposure_stops: float = _number(0.0, "change the exposure by up to this many stops", 0, 4)
    gamma: float = _number(0.0, "gamma correction: gamma is drawn from [1/(1+g), 1+g]", 0, 3)
    noise: float = _number(0.0, "sensor noise with a standard deviation of up to this fraction of the range", 0, 0.5)
    jpeg: int = _number(0, "compress as JPEG with a quality from this to 100", 0, 100)
    cutout: float = _number(0.0, "cover a square whose side is this fraction of the width", 0, 0.9)
    mixup: float = _number(
        0.0, "blend pairs of images and labels; value of alpha for the beta distribution, usually 0.2; 0 = off", 0, 10
    )
    cutmix: float = _number(
        0.0,
        "paste a patch of one image into another; value of alpha for the beta distribution, usually 1; 0 = off",
        0,
        10,
    )
    randaugment: int = _number(0, "number of RandAugment transforms per image; each is drawn from 14 transforms", 0, 8)
    randaugment_strength: float = _number(0.3, "strength of the RandAugment transforms; 1 = maximum", 0, 1)

    @property
    def mixes(self) -> bool:
        """Whether mixup or cutmix is on, so that labels are soft (a probability for each class)."""
        return bool(self.mixup or self.cutmix)

    @property
    def unmixed(self) -> AugmentSection:
        """Copy of the section without mixup and cutmix, so that each image has a single label."""
        return replace(self, mixup=0.0, cutmix=0.0)

    @property
    def active(self) -> dict[str, Any]:
        """Keys and values of the augmentations that are turned on."""
        chosen = {item.name: getattr(self, item.name) for item in fields(self)}
        if not self.randaugment:
            del chosen["randaugment_strength"]
        return {name: value for name, value in chosen.items() if value}


def one_or_tuple(sources: Iterable[str]) -> str | tuple[str, ...]:
    """Return data sets in the form of :attr:`DataSection.source`: a string for one data set, otherwise a tuple."""
    names = (sources,) if isinstance(sources, str) else tuple(sources)
    return names[0] if len(names) == 1 else names


NOT_AUGMENTED = AugmentSection(**{name: type(value)(0) for name, value in vars(AugmentSection()).items()})


@dataclass(frozen=True)
class ModelSection:
    """The architecture and its initial weights."""

    arch: str = _text(
        AUTO,
        "architecture: auto (chosen for the images and the target), a name from edgerec models, your own function "
        "(my_net.py:build), or backbone (the network in the weights file)",
    )
    width: float = _key(
        0.0,
        "factor for the number of channels; 0 = chosen by arch auto, 1 for other architectures",
        "0 or 0.05 to 4",
        lambda value: value == 0 or 0.05 <= value <= 4,
    )
    dropout: float = _number(0.0, "dropout rate before the dense layers", 0, 0.9)
    weights: str = _text(
        AUTO,
        "initial weights: none (random), imagenet (downloaded by Keras), a run, a .keras or .h5 file, or auto "
        "(imagenet if arch auto chooses a network with ImageNet weights and they can be downloaded, otherwise none)",
    )
    target: str = _text("", "target for which arch auto chooses a network, see edgerec targets; empty = any")

    @property
    def pretrained(self) -> bool:
        """Whether training starts from ImageNet weights, or from the weights in a file or run."""
        return self.weights not in ("none", AUTO)


@dataclass(frozen=True)
class TrainSection:
    """Training: duration, optimizer, learning rate and device."""

    epochs: int = _number(
        0, "number of training epochs; 0 = 15 to 60, depending on the number of training images", 0, 100000
    )
    batch_size: int = _number(
        0, "number of images per training step; 0 = 16 to 128, depending on the number of training images", 0, 65536
    )
    optimizer: str = _choice(
        "adam", "adam, or sgd with Nesterov momentum 0.9, which needs a learning rate of 0.05 to 0.2", ("adam", "sgd")
    )
    learning_rate: float = _number(0.002, "highest learning rate of the schedule", 1e-8, 10)
    weight_decay: float = _number(
        0.0,
        "decoupled weight decay of kernels, multiplied by the learning rate; try 0.005 for sgd, 0.01 to 0.1 for adam",
        0,
        1,
    )
    schedule: str = _choice(
        "cosine",
        "learning-rate schedule; plateau halves the rate when the validation loss stalls",
        ("cosine", "constant", "plateau"),
    )
    warmup_epochs: float = _number(
        0.5,
        "number of warm-up epochs, over which the learning rate rises from zero at the start of each stage",
        0,
        1000,
    )
    restarts: str = _text(
        "", "epochs after which the schedule restarts, such as 10, 20; train --resume --epochs +N adds a restart"
    )
    class_weights: str = _choice("none", "balanced = all classes contribute equally to the loss", ("none", "balanced"))
    early_stopping: int = _number(
        0, "early stopping: end a stage after this many epochs without a better validation result; 0 = never", 0, 100000
    )
    device: str = _choice("auto", "device to train on; auto = a GPU if TensorFlow finds one", ("auto", "cpu", "gpu"))
    mixed_precision: bool = _flag(False, "mixed precision: float16 on GPUs, bfloat16 on CPUs that support it")
    xla: bool = _flag(
        False, "compile the training step with XLA, which starts more slowly and is often faster on a GPU"
    )
    accumulate: int = _number(
        1,
        "gradient accumulation: number of micro-batches into which each batch is divided, to save memory",
        1,
        4096,
    )
    max_hours: float = _number(
        0.0, "time limit in hours; training stops before it and keeps the best epoch; 0 = no limit", 0, 1e6
    )
    price_per_hour: float = _number(
        0.0, "price of this machine per hour, used to show the cost of training; 0 = do not show it", 0, 1e6
    )
    workers_wait_s: float = _number(
        600.0, "seconds that the workers of a TF_CONFIG cluster wait for each other at the start", 1, 86400
    )
    tensorboard: bool = _flag(False, "write a TensorBoard log into the run")


@dataclass(frozen=True)
class TransferSection:
    """The stages of transfer learning, which are used if model.weights are trained weights."""

    frozen: float = _number(0.1, "fraction of the epochs in which only the head is trained", 0, 1)
    unfreeze: float = _number(
        0.25, "fraction of the epochs over which the other layers are unfrozen, the last ones first", 0, 1
    )
    rate: float = _number(0.3, "factor for train.learning_rate after layers other than the head are unfrozen", 1e-6, 1)
    freeze_bn: bool = _flag(True, "batch normalization keeps the statistics of the initial weights")


@dataclass(frozen=True)
class DistillSection:
    """Knowledge distillation from other runs (edgerec distill)."""

    teachers: str = _text(
        "", "teacher runs, separated by commas, whose mean output the model learns; empty = learn from labels only"
    )
    weight: float = _number(
        0.7, "weight of the distillation loss; the loss of the labels has the remaining weight", 0, 1
    )
    temperature: float = _number(
        4.0,
        "temperature of the softmax of teachers and student; a higher one gives unlikely classes more weight",
        0.1,
        100,
    )


@dataclass(frozen=True)
class CompressSection:
    """Pruning, clustering and quantization."""

    method: str = _choice(
        "auto", "compression method; auto = ptq, or qat if ptq loses too much accuracy", ("auto", *METHODS)
    )
    channels: float = _number(
        0.4, "fraction of the estimated int8 inference time that method channels saves by removing channels", 0, 0.9
    )
    sparsity: float = _number(0.5, "fraction of the weights that method prune sets to zero", 0, 0.98)
    schedule: str = _choice(
        "polynomial",
        "sparsity schedule: polynomial (rises over the first half of pruning) or constant",
        ("polynomial", "constant"),
    )
    weight_bits: int = _number(
        8, "number of bits per weight that method qat uses; files with fewer bits compress better", 5, 8
    )
    clusters: int = _number(16, "number of distinct weights per layer after method cluster", 2, 256)
    skip: str = _text(
        "", "layers that methods prune and cluster do not change: names or patterns, such as 'logits, conv2d*'"
    )
    float_layers: str = _text("", "layers that method mixed does not quantize: names or patterns, as for skip")
    epochs: int = _number(
        3, "number of fine-tuning epochs of each of the methods channels, prune, cluster and qat", 1, 100000
    )
    learning_rate: float = _number(
        0.0,
        "highest learning rate of fine-tuning; 0 = a fraction of train.learning_rate that depends on the method",
        0,
        10,
    )
    teacher_weight: float = _number(
        1.0,
        "weight of the distillation loss from the float model; the loss of the labels has the remaining weight",
        0,
        1,
    )
    calibration: str = _text(
        "stratified",
        "calibration images for ptq: a recipe in calibration/, a .toml file, or the folder of a calibration set",
    )
    max_drop: float = _number(1.0, "percentage points of test accuracy that a variant may lose", 0, 100)


@dataclass(frozen=True)
class Recipe:
    """All sections of a recipe, validated when it is built; :func:`dataclasses.replace` creates a variation."""

    seed: int = _number(
        0, "seed of the split, the initial weights, the order of the images and the augmentation", 0, 2**31 - 1
    )
    data: DataSection = field(default_factory=DataSection)
    augment: AugmentSection = field(default_factory=AugmentSection)
    model: ModelSection = field(default_factory=ModelSection)
    train: TrainSection = field(default_factory=TrainSection)
    transfer: TransferSection = field(default_factory=TransferSection)
    distill: DistillSection = field(default_factory=DistillSection)
    compress: CompressSection = field(default_factory=CompressSection)

    def __post_init__(self) -> None:
        _check(self, "")

    @classmethod
    def from_toml(cls, path: str | Path, *, base: Recipe | None = None) -> Recipe:
        """Read a recipe file; missing keys keep the values of ``base``, by default those of ``Recipe()``.

        If the file is the recipe of a run that has no recorded preprocessing version, missing keys get the values of
        :attr:`unversioned`.

        Raises:
            RecipeError: the file cannot be read, is not TOML, or contains an unknown key or an invalid value.
        """
        try:
            values = read_toml(user_path(path))
        except FileNotFoundError:
            write = f"{command('recipe')} > {shlex.quote(str(path))}"
            raise RecipeError(f"{path} does not exist: write a recipe with all keys with {write}") from None
        except OSError as error:
            raise RecipeError(f"{path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise RecipeError(f"{path} is not TOML: {reason(path, error)}") from None
        of_run = user_path(path).with_name("split.json").is_file()
        base = base or cls()
        return cls.from_dict(values, str(path), base=base.unversioned if of_run else base)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "recipe", *, base: Recipe | None = None) -> Recipe:
        """Build a recipe from nested dictionaries; missing keys keep the values of ``base``.

        Raises:
            RecipeError: a key is unknown or a value is invalid. The message contains ``where`` and the dotted key.
        """
        if not isinstance(values, Mapping):
            raise RecipeError(f"{where} is a {type(values).__name__}, expected an object with the sections of a recipe")
        return _merge(base or cls(), values, where, "")

    @property
    def unversioned(self) -> Recipe:
        """Copy of the recipe with the preprocessing version and white level of runs that do not record them."""
        data = replace(self.data, preprocess_version=UNRECORDED_VERSION, white_level=Levels().white)
        return replace(self, data=data)

    def override(self, assignments: Mapping[str, Any], where: str = "--set") -> Recipe:
        """Return a copy in which the values of some dotted keys are replaced, such as ``{"train.epochs": 3}``.

        Raises:
            RecipeError: a key is unknown or a value is invalid. The message contains ``where`` and the dotted key.
        """
        recipe = self
        for path, value in assignments.items():
            section, _, key = path.rpartition(".")
            nested = {section: {key: value}} if section else {key: value}
            recipe = _merge(recipe, nested, where, "")
        return recipe

    @property
    def unresolved(self) -> list[str]:
        """Dotted keys whose values training chooses automatically."""
        values = self.to_dict()
        return [key for key, value in UNRESOLVED.items() if value == _at(values, key)]

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as nested dictionaries, which :meth:`from_dict` reads."""
        return {
            item.name: {key.name: getattr(value, key.name) for key in fields(value)} if is_dataclass(value) else value
            for item in fields(self)
            for value in [getattr(self, item.name)]
        }

    def to_toml(self, comments: bool = False) -> str:
        """Return the recipe as TOML; if ``comments`` is true, each key has a comment with its help text."""
        lines = _toml_lines(self, comments)
        for item in fields(self):
            section = getattr(self, item.name)
            if is_dataclass(section):
                about = f"  # {type(section).__doc__}" if comments else ""
                lines += ["", f"[{item.name}]{about}", *_toml_lines(section, comments)]
        return "\n".join(lines) + "\n"

    @property
    def preprocess(self) -> PreprocessSpec:
        """Preprocessing of the model's input; ``data.input_size`` and ``data.channels`` must be known (not 0)."""
        return self.data.preprocess

    @property
    def without_source(self) -> Recipe:
        """Copy of the recipe without the path of the data, which may differ between machines."""
        return replace(self, data=replace(self.data, source=""))

    @property
    def normalise(self) -> Normalise:
        """Conversion of pixels to the real values of the model's input."""
        return Normalise.named(self.data.normalise)


def parse_assignment(text: str) -> tuple[str, Any]:
    """Parse ``section.key=value``. A value that is not valid TOML is read as a string."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise RecipeError(f"{text!r} is not an assignment; expected key=value, such as train.epochs=3")
    try:
        return path.strip(), parse_toml(f"value = {value}")["value"]
    except ValueError:
        return path.strip(), value.strip()


def _at(values: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.rpartition(".")
    return values[section][name]


def _toml_lines(section: Any, comments: bool) -> list[str]:
    lines = []
    for item in fields(section):
        value = getattr(section, item.name)
        if is_dataclass(value):
            continue
        # The notation of strings, numbers, booleans and lists of strings in JSON is also valid in TOML.
        line = f"{item.name} = {json.dumps(value, ensure_ascii=False)}".replace("\x7f", "\\u007f")
        if comments:
            about, expected = item.metadata["about"], item.metadata["expected"]
            choices = "" if expected in ("a string", "true or false") else f" ({expected})"
            line = f"{line:<28} # {about}{choices}"
        lines.append(line)
    return lines


# Keys whose values can be a path, or several paths separated by commas.
_PATHS = ("data.source", "model.arch", "model.weights", "distill.teachers", "compress.calibration")


def _expanded(value: str) -> str:
    """Expand ``~`` in a path, or in paths separated by commas."""
    return ",".join(str(user_path(part)) if part.startswith("~") else part for part in value.split(","))


def _merge(section: Any, values: Mapping[str, Any], where: str, path: str) -> Any:
    """Return a copy of a section, or of a recipe, in which ``values`` are replaced.

    Args:
        section: the recipe or section.
        values: new values by key; those of a section are nested.
        where: name of the source of the values, for error messages.
        path: dotted prefix of the keys, e.g. ``train.``; empty for a recipe.
    """
    known = {item.name: getattr(section, item.name) for item in fields(section)}
    changes: dict[str, Any] = {}
    for name, value in values.items():
        full = f"{path}{name}"
        if name not in known:
            raise RecipeError(f"{where}: {_unknown_key(full, [path + key for key in known])}")
        if is_dataclass(known[name]):
            if not isinstance(value, Mapping):
                raise RecipeError(f"{where}: {full} is {value!r}, expected a section [{full}]")
            value = _merge(known[name], value, where, f"{full}.")
        elif isinstance(value, int) and not isinstance(value, bool) and isinstance(known[name], float):
            value = float(max(-(10**300), min(value, 10**300)))
        elif isinstance(value, str) and full in _PATHS:
            value = _expanded(value)
        elif isinstance(value, list | tuple) and all(isinstance(one, str) for one in value) and value:
            value = one_or_tuple([_expanded(one) for one in value] if full in _PATHS else value)
        changes[name] = value
    try:
        merged = replace(section, **changes)
        if path:
            _check(merged, path)
        return merged
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None


def _unknown_key(key: str, choices: Iterable[str]) -> str:
    """Return the error message for an unknown key. It suggests keys of the same name in other sections first."""
    name = key.rpartition(".")[2]
    sections = ((item.name, value) for item in fields(Recipe) if is_dataclass(value := getattr(Recipe(), item.name)))
    same_name = [f"{section}.{name}" for section, value in sections if name in {item.name for item in fields(value)}]
    if same_name:
        return f"unknown recipe key {key!r}; did you mean {' or '.join(map(repr, same_name))}?"
    return unknown("recipe key", key, choices)


def _check(section: Any, path: str) -> None:
    """Raise :class:`RecipeError` if a value has the wrong type or is outside of the accepted range."""
    hints = get_type_hints(type(section))
    for item in fields(section):
        value = getattr(section, item.name)
        if is_dataclass(value):
            _check(value, f"{item.name}.")
            continue
        kind, expected = hints[item.name], item.metadata["expected"]
        kinds = [get_origin(one) or one for one in get_args(kind)] or [kind]
        right_type = type(value) in kinds or (kind is float and type(value) is int)
        if not right_type or not item.metadata["check"](value):
            raise RecipeError(f"{path}{item.name} is {value!r}, expected {expected}")
