"""Find the class folders and split folders in an image folder."""

from __future__ import annotations

import itertools
import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgerec.errors import DataError
from edgerec.utils.folders import IMAGE_SUFFIXES, visible_files, visible_folders

log = logging.getLogger(__name__)

# Words in folder names and the splits that they indicate, where an empty string marks unlabeled images.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "holdout", "eval", "evaluation"), "test"),
    **dict.fromkeys(("pred", "predict", "prediction", "unlabeled", "unlabelled"), ""),
}
_GENERIC_WORDS = {"set", "data", "dataset", "images", "image", "imgs", "img", "photos", "pictures", "folder", "split"}
# Maximum depth at which nested class folders are searched for.
DEEPEST = 4


@dataclass(frozen=True)
class ClassFolder:
    """A folder that contains the images of one class.

    Attributes:
        path: path of the folder.
        label: name of the class, or empty if the images have no labels.
        split: ``train``, ``val`` or ``test``, or empty if the image folder has no split folders.
    """

    path: Path
    label: str
    split: str = ""


@dataclass(frozen=True)
class FolderLayout:
    """Class folders of an image folder, and warnings about an unusual layout."""

    folders: tuple[ClassFolder, ...]
    warnings: tuple[str, ...] = ()


def split_of(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the split and the other words in a folder name, or None if the name contains no split.

    >>> split_of("Training"), split_of("seg_test"), split_of("trousers")
    (('train', ()), ('test', ('seg',)), None)
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = [word for word in re.split(r"[\W\d_]+", spaced.casefold()) if word]
    words = [re.sub(r"(?<=.)(set|data|images|imgs)$", "", word) for word in words]
    stated = [word for word in words if word in SPLIT_WORDS]
    if len(stated) != 1:
        return None
    others = tuple(word for word in words if word not in SPLIT_WORDS and word not in _GENERIC_WORDS)
    return SPLIT_WORDS[stated[0]], others


def find_layout(root: Path, *, flat: bool = False) -> FolderLayout:
    """Find the class folders in an image folder.

    The supported layouts are ``<class>/…``, ``<split>/<class>/…`` and ``<class>/<split>/…``. Split folders may have
    any usual name, such as Training and Testing. The whole layout may be nested in further folders.

    Args:
        root: path of the image folder.
        flat: accept images without class folders, also inside split folders.

    Raises:
        DataError: there are no class folders, or the layout is ambiguous.
    """
    folder, children = root, visible_folders(root)
    for _ in range(DEEPEST):
        if splits := _splits(folder, children, flat=flat):
            if folder != root:
                log.info("%s: using the split folders in %s", root, folder)
            unused = _unused_images(root) if folder != root else ()
            return FolderLayout(splits.folders, (*unused, *splits.warnings))
        child = _only_child(children)
        if child is None or (flat and _has_images(folder)):
            break
        folder, children = child, visible_folders(child)
    children = visible_folders(root)
    if flat and not children:
        return FolderLayout((ClassFolder(root, ""),))
    if inner := _splits_in_classes(children):
        return inner
    if not flat or len(children) > 1:
        _refuse_wrong_level(root, children)
    return FolderLayout(tuple(ClassFolder(child, child.name) for child in children), tuple(_warnings(root, children)))


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in visible_files(folder))


def _has_images_below(folder: Path) -> bool:
    return _has_images(folder) or any(_has_images_below(child) for child in visible_folders(folder))


def _only_folders(folder: Path) -> bool:
    return bool(visible_folders(folder)) and not _has_images(folder)


def _only_child(children: Sequence[Path]) -> Path | None:
    """Return the only folder that contains images, or None if there are none or several."""
    with_images = itertools.islice((child for child in children if _has_images_below(child)), 2)
    first = next(with_images, None)
    return first if first is not None and next(with_images, None) is None else None


def _unused_images(folder: Path) -> tuple[str, ...]:
    if not _has_images(folder):
        return ()
    return (f"{folder}: the images directly in this folder are not used, because they belong to no class",)


def _join_names(names: Sequence[str], max_names: int = 4) -> str:
    return ", ".join(names[:max_names]) + (f" and {len(names) - max_names} more" if len(names) > max_names else "")


# Split folders


def _splits(root: Path, children: Sequence[Path], *, flat: bool) -> FolderLayout | None:
    named = {child: stated for child in children if (stated := split_of(child.name)) is not None}
    usual = Counter(others for _, others in named.values()).most_common(1)
    named = {child: stated for child, stated in named.items() if stated[1] == usual[0][0]}
    labeled = {child: split for child, (split, _) in named.items() if split}
    if not labeled:
        return None
    unrecognized = [child for child in children if child not in named and _has_images_below(child)]
    with_classes = [child for child in labeled if visible_folders(child)]
    if unrecognized and ("train" not in labeled.values() or not with_classes):
        return None  # A class name can look like a split, e.g. train (the vehicle) next to bus and car.
    _refuse_unclear(root, labeled, unrecognized)
    if not with_classes and len(labeled) == 1 and usual[0][0]:
        return None  # A class name such as "train_station" can contain the name of a split.
    if not with_classes:
        return _unlabeled_splits(root, labeled, flat=flat)
    folders, warnings = [], []
    for child, split in labeled.items():
        inner = _innermost_split_folder(child)
        classes = visible_folders(inner)
        _refuse_copy(inner, classes)
        folders += [ClassFolder(path, path.name, split) for path in classes]
        if not classes or _has_images(inner):
            warnings.append(f"{inner}: the images directly in this folder are not used, because they have no label")
    for child, (split, _) in named.items():
        if not split:
            log.info("%s: ignoring the unlabeled images in %s", root, child.name)
    return FolderLayout(tuple(folders), (*warnings, *_repeated(root, [folder.label for folder in folders])))


def _refuse_unclear(root: Path, labeled: dict[Path, str], unrecognized: Sequence[Path]) -> None:
    if unrecognized:
        raise DataError(
            f"{root} has the split folders {_join_names([path.name for path in labeled])} and also "
            f"{unrecognized[0].name}: it is unclear whether the latter is a class. Move it elsewhere, or move all "
            "classes into one folder"
        )
    for split in ("train", "val", "test"):
        same = [path.name for path in labeled if labeled[path] == split]
        if len(same) > 1:
            raise DataError(
                f"{root} has {len(same)} folders for the split {split!r} ({_join_names(same)}): keep only one of them"
            )


def _innermost_split_folder(split: Path) -> Path:
    """Skip nested folders that repeat the name of the split, such as ``seg_train/seg_train``."""
    for _ in range(DEEPEST):
        inner = visible_folders(split)
        if len(inner) != 1 or _has_images(split) or not _only_folders(inner[0]):
            break
        if split_of(inner[0].name) != split_of(split.name) and inner[0].name.casefold() != split.name.casefold():
            break
        split = inner[0]
    return split


def _unlabeled_splits(root: Path, labeled: dict[Path, str], *, flat: bool) -> FolderLayout | None:
    if not any(_has_images(child) for child in labeled):
        return None
    if flat:
        return FolderLayout(tuple(ClassFolder(child, "", split) for child, split in labeled.items()))
    first = next(iter(labeled))
    raise DataError(
        f"{root} has the split folders {_join_names([path.name for path in labeled])}, but no class folders in them: "
        f"expected {first}/<class>/*.jpg"
    )


def _splits_in_classes(children: Sequence[Path]) -> FolderLayout | None:
    """Return the class folders of the layout ``<class>/<split>/…``, or None if the data has another layout.

    Each class folder must contain only split folders, one of them for training.
    """
    folders = []
    for child in children:
        inner = visible_folders(child)
        splits: list[str] = [
            stated[0] for path in inner if (stated := split_of(path.name)) is not None and not stated[1]
        ]
        distinct = len(set(splits)) == len(splits) == len(inner)
        if not distinct or "train" not in splits or len(splits) < 2 or _has_images(child):
            return None
        folders += [ClassFolder(path, child.name, split) for path, split in zip(inner, splits, strict=True) if split]
    return FolderLayout(tuple(folders)) if folders else None


# Class folders


def _refuse_wrong_level(root: Path, children: Sequence[Path]) -> None:
    if not children:
        where = "contains images, but no class folders" if _has_images(root) else "has no class folders"
        raise DataError(f"{root} {where}: move the images of each class into a folder {root}/<class>")
    deeper = root
    for _ in range(DEEPEST):
        inner = _only_child(visible_folders(deeper))
        if inner is None or not _only_folders(inner):
            break
        deeper = inner
    if deeper != root:
        classes = [path.name for path in visible_folders(deeper)]
        raise DataError(
            f"{root} has images in only one folder, {deeper.relative_to(root).parts[0]}, but needs two or more. "
            f"Did you mean {deeper} (with {_join_names(classes)})?"
        )
    _refuse_copy(root, children)


def _refuse_copy(root: Path, children: Sequence[Path]) -> None:
    names = {child.name.casefold() for child in children}
    for child in children:
        inside = {path.name.casefold() for path in visible_folders(child)}
        if len(inside & names) >= 2 and 2 * len(inside & names) >= len(names) - 1:
            raise DataError(
                f"{root} contains a second copy of its class folders in {child.name} "
                f"({_join_names(sorted(inside & names))}), so images would be in several classes: remove {child.name}, "
                f"or did you mean {child}?"
            )


def _warnings(root: Path, children: Sequence[Path]) -> Iterator[str]:
    names = [child.name for child in children]
    splits = [name for name in names if (stated := split_of(name)) is not None and not stated[1]]
    if len(splits) > 1:
        yield (
            f"{root}: the classes {_join_names(splits)} look like splits of a data set. If they are, each of them must "
            "contain the class folders"
        )
    yield from _repeated(root, names)
    yield from _unused_images(root)
    inner = {child.name: [path.name for path in visible_folders(child)] for child in children if _only_folders(child)}
    holders: dict[str, list[str]] = defaultdict(list)
    for name, folders in inner.items():
        for folder in folders:
            holders[folder.casefold()].append(name)
    shared = sorted(folder for folder, classes in holders.items() if len(classes) > 1)
    if len(shared) > 1:
        yield (
            f"{root}: the folders {_join_names(list(inner))} contain the same folders ({_join_names(shared)}). "
            f"{_join_names(list(inner))} are used as the classes; if the inner folders are the classes, merge them"
        )
    elif inner and len(inner) < len(children):
        name = next(iter(inner))
        yield (
            f"{root}: the class folder {name} contains only folders ({_join_names(inner[name])}), while others contain "
            f"images. All images below it belong to the class {name!r}"
        )


def _repeated(root: Path, labels: Sequence[str]) -> Iterator[str]:
    """Yield a warning for labels that differ only in case, spacing, hyphens or Unicode form."""
    spellings_of: dict[str, set[str]] = defaultdict(set)
    for label in labels:
        spellings_of[re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", label).casefold()).strip()].add(label)
    for spellings in spellings_of.values():
        if len(spellings) > 1:
            names = _join_names(sorted(map(repr, spellings)))
            yield f"{root}: the classes {names} differ only in spelling: rename one of them"
