"""Names of folders for labels, in saved images and in calibration sets."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest

from edgerec.camera.config import ImageRecorderConfig
from edgerec.camera.sinks.image_recorder import ImageRecorder
from edgerec.camera.sinks.web.label_store import LabelStore
from edgerec.compress import calibration
from edgerec.data.readers import find
from edgerec.utils.names import file_name, file_names
from tests.network import result

ORDINARY = ["stop", "Golden Retriever", "Straße 30", "v1.2_a-b", "犬", "हिन्दी", "100%", "it's (new)", "x" * 200]
UNUSUAL = [
    *(
        "",
        " ",
        ".",
        "..",
        ".hidden",
        "ends.",
        "ends ",
        "../x",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "a:b",
        "a\0b",
        "a\nb",
        "a~b",
    ),
    *("con", "CON.txt", "Com1", "lpt¹", "nul .x", "NUL.", "train", "Val", "TEST", "__MACOSX", "Thumbs.db", "~$x"),
    *(
        "x" * 201,
        "x" * 3000,
        "é" * 200,
        "\U0001f436" * 100,
        "\ud800",
        "a?b",
        "a*b",
        "a|b",
        "a<b",
        "a>b",
        'a"b',
    ),
]
# Devices of Windows: a name without the part from the first dot must not be one of these.
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in "0123456789¹²³")}


def same_file(name):
    """Return the form of a name that a file system without case and with normalized accents compares."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


@pytest.mark.parametrize("label", ORDINARY)
def test_ordinary_label_is_its_own_name(label):
    assert file_name(label) == label


@pytest.mark.parametrize("label", UNUSUAL)
def test_name_is_valid_on_all_file_systems(label):
    name = file_name(label)
    assert name != label
    assert 0 < len(name.encode()) <= 200
    assert name.isprintable()
    assert not set(name) & set('/\\:*?"<>|')
    assert not name.startswith((".", " ", "~"))
    assert not name.endswith((".", " "))
    assert name.partition(".")[0].strip().lower() not in DEVICES


def test_different_labels_have_different_names():
    variants = ["Cat", "cat", "CAT", "café", "cafe\u0301", "Straße", "STRASSE"]
    labels = [*ORDINARY, *UNUSUAL, *variants, "a_b", "unknown"]
    labels += file_names(labels).values()  # a label may be the name of another label
    names = file_names(labels)
    assert len({same_file(name) for name in names.values()}) == len(names) == len(set(labels))


def test_name_depends_on_the_labels_but_not_on_their_order():
    labels = ["Cat", "dog", "cat", "a/b"]
    assert file_names(labels) == file_names(reversed(labels))
    assert file_names(labels)["dog"] == "dog"
    assert file_names(labels)["a/b"] == file_name("a/b")


@pytest.mark.parametrize(
    "labels", [("car", "train"), ("train", "test"), ("a/b", "a_b", "a:b"), ("Cat", "cat", "Unknown")]
)
def test_camera_and_web_page_use_the_same_folders(tmp_path, labels):
    album = LabelStore(tmp_path / "album", labels)
    saver = ImageRecorder(ImageRecorderConfig(tmp_path / "saved", rule="all", reserve_bytes=0), labels)
    for index, label in enumerate(labels):
        album.save(result(label).frame, index)
        saver.write(result(label))
    saver.write(result("unknown"))
    saver.close()
    folders = {path.name for path in (tmp_path / "album").iterdir()}
    unknown = file_names([*labels, "unknown"])["unknown"]
    assert folders | {unknown} == {path.name for path in (tmp_path / "saved").iterdir()}
    assert len({name.casefold() for name in (*folders, unknown)}) == len(labels) + 1
    assert set(find(str(tmp_path / "album")).labels) == folders
    assert set(find(str(tmp_path / "saved")).labels) == folders | {unknown}


def test_labels_of_a_calibration_set_have_separate_folders(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 28, 28, 3), np.uint8)
    labels = np.array(["a/b", "a:b", "a*b"])
    np.savez(tmp_path / "own.npz", x_train=images, y_train=np.arange(30) % 3, labels=labels)
    calibration.make(None, tmp_path / "set", data=str(tmp_path / "own.npz"), images=9)
    assert len([path for path in (tmp_path / "set").iterdir() if path.is_dir()]) == 3
