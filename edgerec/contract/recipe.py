"""A recipe: everything needed to repeat a training and its compression. People write it as TOML."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args, get_origin, get_type_hints

from edgerec.command_line import command
from edgerec.contract.content import reason
from edgerec.contract.files import user_path
from edgerec.contract.image_files import Levels
from edgerec.contract.preprocess import PREPROCESS_VERSION, UNRECORDED_VERSION, Fit, Interpolation, PreprocessSpec
from edgerec.contract.tensors import NORMALISATIONS, Normalise
from edgerec.errors import RecipeError, unknown

Check = Callable[[Any], bool]
# A data set's name, .npz file or folder, or several of them, which are merged.
DataSource = str | Sequence[str]

# Value of model.arch and model.weights that stands for a choice by the images and the target.
AUTO = "auto"
# Keys that training resolves, with the value that asks it to. A run's recipe.toml has none of these values.
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

# How a run can be compressed; compress/methods.py says what each does.
METHODS = (
    "qat",
    "ptq",
    "float16",
    "dynamic",
    "int16x8",
    "mixed",
    "channels",
    "channels+qat",
    "prune",
    "prune+qat",
    "cluster",
    "cluster+qat",
    "prune+cluster+qat",
    "auto",
)


def _key(default: Any, about: str, expected: str, check: Check) -> Any:
    """A recipe key: its default, its comment, and the values it takes, in words and as a test."""
    return field(default=default, metadata={"about": about, "expected": expected, "check": check})


def _number(default: float, about: str, low: float, high: float) -> Any:
    return _key(default, about, f"{low:g} to {high:g}", lambda value: low <= value <= high)


def _choice(default: str, about: str, choices: Iterable[str]) -> Any:
    known = tuple(choices)
    return _key(default, about, ", ".join(known), known.__contains__)


def _flag(default: bool, about: str) -> Any:
    return _key(default, about, "true or false", lambda value: True)


def _text(default: str, about: str) -> Any:
    return _key(default, about, "text", lambda value: True)


def _texts(default: str, about: str, expected: str) -> Any:
    """A recipe key that takes a string, or a list of strings."""

    def check(value: str | tuple[Any, ...]) -> bool:
        return isinstance(value, str) or (len(value) > 1 and all(isinstance(one, str) and one for one in value))

    return _key(default, about, expected, check)


@dataclass(frozen=True)
class DataSection:
    """The images, how they become pixels, and how they are split."""

    source: str | tuple[str, ...] = _texts(
        "digits",
        "digits, mnist, fashion_mnist, cifar10, cifar100, a .npz file or an image folder; or a list of several",
        "text or a list of different texts",
    )
    input_size: int = _key(
        0,
        "side of the model's square input in pixels; 0 = the pictures' own size, at most 96",
        "0 or 8 to 1024",
        lambda value: value == 0 or 8 <= value <= 1024,
    )
    channels: int = _key(0, "3 = RGB, 1 = grey, 0 = as the data set is", "0, 1 or 3", lambda value: value in (0, 1, 3))
    fit: str = _choice(
        "crop", "a picture of another shape is cut (crop), squeezed (stretch) or framed (pad)", get_args(Fit)
    )
    interpolation: str = _choice("linear", "how pictures are resized", get_args(Interpolation))
    preprocess_version: int = _key(
        0,
        "version of the resizing: 2 = each axis shrinks without aliasing, 1 = that of older runs, 0 = the newest",
        f"0 to {PREPROCESS_VERSION}",
        lambda value: 0 <= value <= PREPROCESS_VERSION,
    )
    normalise: str = _choice(
        "unit", "pixels become [0, 1] (unit) or [-1, 1) (signed), or stay 0 to 255 (pixels)", NORMALISATIONS
    )
    black_level: int = _number(0, "value that becomes black in files with 16 bits per sample", -32768, 65534)
    white_level: int = _number(
        0,
        "value that becomes white there, e.g. 4095 for 12 bits; 0 = both levels are determined from the data",
        0,
        65535,
    )
    group_by: str = _text(
        "", "regular expression: images with the same match in their path below the class folder stay together"
    )
    val_fraction: float = _number(0.1, "fraction of the images for validation", 0.01, 0.5)
    test_fraction: float = _number(
        0.15, "fraction of the images held out for the test, if the data has no test split", 0.01, 0.5
    )
    strict: bool = _flag(False, "refuse files that are no pictures instead of skipping them")

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
        """The values that become black and white in files with 16 bits per sample; None if the data determines them."""
        return Levels(self.black_level, self.white_level) if self.white_level else None

    @property
    def places(self) -> tuple[str, ...]:
        """The data sets that are merged; usually one."""
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def title(self) -> str:
        """The names or paths of the data sets, for messages."""
        return " + ".join(self.places)

    @property
    def without_folders(self) -> DataSection:
        """A copy in which the data sets have names, but no paths, so that others may see it."""
        return replace(self, source=one_or_tuple(Path(place).name for place in self.places))


@dataclass(frozen=True)
class AugmentSection:
    """Random changes of the training pictures; 0 or false turns one off."""

    flip: bool = _flag(False, "mirror left and right")
    shift: float = _number(0.1, "move by up to this part of the side", 0, 0.5)
    rotate_deg: float = _number(10.0, "turn by up to this many degrees", 0, 180)
    zoom: float = _number(0.1, "enlarge or shrink by up to this part", 0, 0.9)
    brightness: float = _number(0.1, "lighten or darken by up to this part of the range", 0, 1)
    contrast: float = _number(0.1, "raise or lower the contrast by up to this part", 0, 1)
    crop: float = _number(0.0, "cut out a part and enlarge it, losing up to this part of the area", 0, 0.95)
    saturation: float = _number(0.0, "more or less colourful by up to this part; not for grey pictures", 0, 1)
    hue_deg: float = _number(0.0, "turn all colours by up to this angle; not for grey pictures", 0, 180)
    motion_blur: float = _number(0.0, "smear along a line of up to this part of the side", 0, 0.3)
    exposure_stops: float = _number(0.0, "expose by up to this many stops more or less", 0, 4)
    gamma: float = _number(0.0, "bend the tones by an exponent of up to 1 plus this, or one over it", 0, 3)
    noise: float = _number(0.0, "sensor noise with a deviation of up to this part of the range", 0, 0.5)
    jpeg: int = _number(0, "store as JPEG with a quality from this to 100", 0, 100)
    cutout: float = _number(0.0, "cover a square with this part of the side", 0, 0.9)
    mixup: float = _number(0.0, "blend pairs of pictures and their labels; Beta's alpha, 0.2 is usual", 0, 10)
    cutmix: float = _number(0.0, "paste a part of one picture into another; Beta's alpha, 1 is usual", 0, 10)
    randaugment: int = _number(0, "so many more changes per picture, drawn from RandAugment's fourteen", 0, 8)
    randaugment_strength: float = _number(0.3, "of randaugment's changes; 1 is the strongest that it knows", 0, 1)

    @property
    def mixes(self) -> bool:
        """Whether pictures are mixed, so that labels become shares of classes."""
        return bool(self.mixup or self.cutmix)

    @property
    def unmixed(self) -> AugmentSection:
        """The same without mixing: each picture has one label."""
        return replace(self, mixup=0.0, cutmix=0.0)

    @property
    def active(self) -> dict[str, Any]:
        """The keys that change something, with their values."""
        chosen = {item.name: getattr(self, item.name) for item in fields(self)}
        if not self.randaugment:
            del chosen["randaugment_strength"]
        return {name: value for name, value in chosen.items() if value}


def one_or_tuple(places: Iterable[str]) -> str | tuple[str, ...]:
    """Return data sets as :attr:`DataSection.source` has them: a string if it is one, otherwise a tuple."""
    every = (places,) if isinstance(places, str) else tuple(places)
    return every[0] if len(every) == 1 else every


NOT_AUGMENTED = AugmentSection(**{name: type(value)(0) for name, value in vars(AugmentSection()).items()})


@dataclass(frozen=True)
class ModelSection:
    """The network."""

    arch: str = _text(
        AUTO,
        "auto: chosen by the images and the target; or a name from edgerec models, a function of yours "
        "(my_net.py:build), or backbone (the network in the weights file)",
    )
    width: float = _key(
        0.0,
        "factor on the number of channels; 0 = chosen by arch auto, otherwise 1",
        "0 or 0.05 to 4",
        lambda value: value == 0 or 0.05 <= value <= 4,
    )
    dropout: float = _number(0.0, "part of the activations dropped before the dense layers", 0, 0.9)
    weights: str = _text(
        AUTO,
        "initial weights: none (random), imagenet (downloaded by Keras), a run, a .keras or .h5 file, or auto: "
        "imagenet if arch auto chooses a network that has them and they can be downloaded, otherwise none",
    )
    target: str = _text("", "target that arch auto chooses a network for (edgerec targets); empty: any")

    @property
    def pretrained(self) -> bool:
        """Whether training starts from weights of ImageNet or of a file."""
        return self.weights not in ("none", AUTO)


@dataclass(frozen=True)
class TrainSection:
    """The fitting."""

    epochs: int = _number(0, "training epochs; 0 = 15 to 60 by the number of training images", 0, 100000)
    batch_size: int = _number(0, "pictures per step; 0 = 16 to 128 by the amount of data", 0, 65536)
    optimizer: str = _choice("adam", "sgd has Nesterov momentum 0.9 and wants a rate of 0.05 to 0.2", ("adam", "sgd"))
    learning_rate: float = _number(0.002, "the highest learning rate", 1e-8, 10)
    weight_decay: float = _number(
        0.0, "decoupled weight decay of kernels, times the learning rate; 0.005 suits sgd, 0.01 to 0.1 adam", 0, 1
    )
    schedule: str = _choice(
        "cosine",
        "learning rate over the run; plateau halves it when validation stalls",
        ("cosine", "constant", "plateau"),
    )
    warmup_epochs: float = _number(
        0.5, "epochs over which the learning rate rises from zero, at the start of each stage", 0, 1000
    )
    restarts: str = _text(
        "", "epochs before which the schedule starts again, as 10, 20; train --resume --epochs +N adds one"
    )
    class_weights: str = _choice(
        "none", "balanced gives rare classes the weight of frequent ones", ("none", "balanced")
    )
    early_stopping: int = _number(
        0, "end a stage after this many epochs without a better validation; 0 = never", 0, 100000
    )
    device: str = _choice("auto", "auto takes a GPU when TensorFlow sees one", ("auto", "cpu", "gpu"))
    mixed_precision: bool = _flag(False, "compute in float16 (GPU) or bfloat16 (some CPUs) where it is safe")
    xla: bool = _flag(False, "compile the step by XLA: slower to start, often faster on a GPU")
    accumulate: int = _number(1, "compute a batch's gradients in so many parts, for less memory", 1, 4096)
    max_hours: float = _number(0.0, "finish with the best epoch before so many hours are over; 0 = no limit", 0, 1e6)
    price_per_hour: float = _number(0.0, "of this machine, to tell the cost so far and to come", 0, 1e6)
    workers_wait_s: float = _number(600.0, "how long workers of TF_CONFIG wait for each other at the start", 1, 86400)
    tensorboard: bool = _flag(False, "write a log for TensorBoard into the run")


@dataclass(frozen=True)
class TransferSection:
    """How a training begins that has weights to start from (model.weights)."""

    frozen: float = _number(0.1, "part of the epochs in which the classes' layer learns alone", 0, 1)
    unfreeze: float = _number(
        0.25, "part of the epochs over which the layers before join it, the last ones first", 0, 1
    )
    rate: float = _number(0.3, "learning rate from then on, as part of train.learning_rate", 1e-6, 1)
    freeze_bn: bool = _flag(True, "batch normalisation keeps the statistics that came with the weights")


@dataclass(frozen=True)
class DistillSection:
    """Learning from what other runs answer (edgerec distill)."""

    teachers: str = _text("", "runs whose mean answer the model learns, separated by commas; none: labels alone")
    weight: float = _number(0.7, "part of the loss that is the distance to that answer; the rest is the labels'", 0, 1)
    temperature: float = _number(4.0, "softens the answers: how alike classes look counts for more", 0.1, 100)


@dataclass(frozen=True)
class CompressSection:
    """Pruning, clustering and quantization."""

    method: str = _choice("auto", "how to compress; auto takes ptq, or qat where ptq loses too much", METHODS)
    channels: float = _number(0.4, "part of the int8 time, as estimated, that channels saves by removing some", 0, 0.9)
    sparsity: float = _number(0.5, "part of the weights that prune sets to zero", 0, 0.98)
    schedule: str = _choice(
        "polynomial", "the sparsity rises over half of the pruning, or is there at once", ("polynomial", "constant")
    )
    weight_bits: int = _number(8, "bits that qat takes of each int8 weight: fewer make a smaller download", 5, 8)
    clusters: int = _number(16, "different values that cluster leaves in each layer's weights", 2, 256)
    skip: str = _text("", "layers that prune and cluster leave alone: names or patterns, as 'logits, conv2d*'")
    float_layers: str = _text("", "layers that mixed leaves float: names or patterns, as for skip")
    epochs: int = _number(3, "passes of each fine-tuning: prune, cluster and qat", 1, 100000)
    learning_rate: float = _number(
        0.0,
        "of the fine-tuning; 0 = a part of train.learning_rate by the method: 0.01 for qat, all after pruning",
        0,
        10,
    )
    teacher_weight: float = _number(
        1.0, "part of the fine-tuning's loss that is the distance to the float model's answers; the rest: labels", 0, 1
    )
    calibration: str = _text("stratified", "what ptq sees: a recipe in calibration/, a .toml file, or a set's folder")
    max_drop: float = _number(1.0, "points of test top-1 that a variant may lose before it is refused", 0, 100)


@dataclass(frozen=True)
class Recipe:
    """All sections, complete and checked when built; :func:`dataclasses.replace` makes another."""

    seed: int = _number(0, "random seed of the split, the weights, the order and the augmentation", 0, 2**31 - 1)
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

        The recipe in a run's folder that records no preprocessing version has that of older runs (:attr:`unversioned`).
        """
        try:
            with open(user_path(path), "rb") as file:
                values = tomllib.load(file)
        except FileNotFoundError:
            write = f"{command('recipe')} > {shlex.quote(str(path))}"
            raise RecipeError(f"{path} does not exist: write a complete one with {write}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path} is not TOML: {reason(path, error)}") from None
        of_run = user_path(path).with_name("split.json").is_file()
        base = base or cls()
        return cls.from_dict(values, str(path), base=base.unversioned if of_run else base)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "recipe", *, base: Recipe | None = None) -> Recipe:
        """Build a recipe from nested dictionaries; missing keys keep the values of ``base``.

        Raises:
            RecipeError: an unknown key or a wrong value; the message names ``where`` and the path of the key.
        """
        return _merge(base or cls(), values, where, "")

    @property
    def unversioned(self) -> Recipe:
        """The same recipe with the preprocessing version and white level of runs that do not record them."""
        data = replace(self.data, preprocess_version=UNRECORDED_VERSION, white_level=Levels().white)
        return replace(self, data=data)

    def override(self, assignments: Mapping[str, Any], where: str = "--set") -> Recipe:
        """A copy with dotted keys replaced: ``{"train.epochs": 3}``."""
        recipe = self
        for path, value in assignments.items():
            section, _, key = path.rpartition(".")
            nested = {section: {key: value}} if section else {key: value}
            recipe = _merge(recipe, nested, where, "")
        return recipe

    @property
    def unresolved(self) -> list[str]:
        """Dotted keys that training has yet to choose."""
        values = self.to_dict()
        return [key for key, value in UNRESOLVED.items() if value == _at(values, key)]

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries, the inverse of :meth:`from_dict`."""
        return {
            item.name: {key.name: getattr(value, key.name) for key in fields(value)} if is_dataclass(value) else value
            for item in fields(self)
            for value in [getattr(self, item.name)]
        }

    def to_toml(self, comments: bool = False) -> str:
        """TOML text, with a comment on every key if wanted."""
        lines = _toml_lines(self, comments)
        for item in fields(self):
            section = getattr(self, item.name)
            if is_dataclass(section):
                about = f"  # {type(section).__doc__}" if comments else ""
                lines += ["", f"[{item.name}]{about}", *_toml_lines(section, comments)]
        return "\n".join(lines) + "\n"

    @property
    def preprocess(self) -> PreprocessSpec:
        """What the model sees; only once ``input_size`` and ``channels`` are known (not 0)."""
        return self.data.preprocess

    @property
    def wherever(self) -> Recipe:
        """The same without its data's place, which each machine may have elsewhere."""
        return replace(self, data=replace(self.data, source=""))

    @property
    def normalise(self) -> Normalise:
        """From pixels to the model's real numbers."""
        return Normalise.named(self.data.normalise)


def parse_assignment(text: str) -> tuple[str, Any]:
    """Read ``section.key=value``; the value is TOML, or plain text where it is none."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise RecipeError(f"{text!r} is no assignment; expected key=value, as train.epochs=3")
    try:
        return path.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
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
        # JSON's texts, numbers and truth values are TOML's.
        line = f"{item.name} = {json.dumps(value, ensure_ascii=False)}".replace("\x7f", "\\u007f")
        if comments:
            about, expected = item.metadata["about"], item.metadata["expected"]
            known = "" if expected in ("text", "true or false") else f" ({expected})"
            line = f"{line:<28} # {about}{known}"
        lines.append(line)
    return lines


# Keys whose value can be a path, or paths separated by commas.
_PATHS = ("data.source", "model.arch", "model.weights", "distill.teachers", "compress.calibration")


def _expanded(value: str) -> str:
    """Expand ``~`` in a path, or in paths separated by commas."""
    return ",".join(str(user_path(part)) if part.startswith("~") else part for part in value.split(","))


def _merge(section: Any, values: Mapping[str, Any], where: str, path: str) -> Any:
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
            value = float(min(value, 10**300))
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
    """Return the message for an unknown key; keys of the same name in other sections are suggested first."""
    name = key.rpartition(".")[2]
    sections = ((item.name, value) for item in fields(Recipe) if is_dataclass(value := getattr(Recipe(), item.name)))
    same_name = [f"{section}.{name}" for section, value in sections if name in {item.name for item in fields(value)}]
    if same_name:
        return f"unknown recipe key {key!r}; did you mean {' or '.join(map(repr, same_name))}?"
    return unknown("recipe key", key, choices)


def _check(section: Any, path: str) -> None:
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
