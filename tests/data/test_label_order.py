"""Tests that labels in another order than the model's outputs are refused unless the order is chosen explicitly."""

from __future__ import annotations

import json
import logging

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from edgerec import adopt, evaluate
from edgerec.cli.app import app
from edgerec.errors import DataError
from edgerec.importing.adopt import open_or_adopt
from edgerec.train.backend import keras
from edgerec.train.label_order import label_order

COLORS = {"apple": (220, 20, 20), "berry": (20, 20, 220), "cress": (20, 220, 20), "date": (220, 220, 220)}


def write_images(folder, names, images=12, size=12):
    """Write one folder per class with noisy images of one color, and return the folder."""
    rng = np.random.default_rng(0)
    for name, color in zip(names, COLORS.values(), strict=False):
        (folder / name).mkdir(parents=True)
        for index in range(images):
            image = np.clip(rng.normal(color, 12, (size, size, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / name / f"{index}.png"), image[:, :, ::-1])
    return folder


def color_model(order, scales=True, size=12):
    """Return a color classifier whose output ``i`` is the color ``order[i]``.

    Its input is 0…255 if ``scales`` is true, otherwise 0…1.
    """
    layers = keras().layers
    colors = np.array([list(COLORS.values())[i] for i in order], np.float32) / 255
    model = keras().Sequential(
        [
            keras().Input((size, size, 3)),
            *([layers.Rescaling(1 / 255)] if scales else []),
            layers.GlobalAveragePooling2D(),
            layers.Dense(len(order), activation="softmax"),
        ]
    )
    # The model predicts the nearest color c of a pixel x, because -|x - c|² equals 2 x·c - c·c up to a common constant.
    model.layers[-1].set_weights([40 * 2 * colors.T, -40 * (colors**2).sum(axis=1)])
    return model


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images", list(COLORS))


@pytest.mark.parametrize("scales", [True, False])
@pytest.mark.parametrize("order", [(1, 2, 3, 0), (0, 1, 3, 2)])
def test_other_label_order_is_refused_with_a_suggestion(tmp_path, images, order, scales):
    color_model(order, scales).save(tmp_path / "m.keras")
    expected = ", ".join(list(COLORS)[i] for i in order)
    with pytest.raises(
        DataError,
        match=rf"not in the order of the data's classes.* are correct with the order: {expected}\. .*--labels folders",
    ):
        adopt(tmp_path / "m.keras", str(images), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_label_order_can_be_chosen_explicitly(tmp_path, images, caplog):
    color_model((1, 0, 2, 3)).save(tmp_path / "m.keras")
    (tmp_path / "order.txt").write_text("berry\napple\ncress\ndate\n")
    run = adopt(tmp_path / "m.keras", str(images), tmp_path / "right", labels=tmp_path / "order.txt")
    assert (run.labels, run.metrics["accuracy"]) == (("berry", "apple", "cress", "date"), 1.0)
    with caplog.at_level(logging.WARNING, "edgerec"):
        run = adopt(tmp_path / "m.keras", str(images), tmp_path / "sorted", labels="folders")
    assert run.labels == tuple(COLORS)
    assert "do not match the order of its labels" in caplog.text


def test_command_line_refuses_and_accepts_label_orders(tmp_path, images):
    color_model((1, 0, 2, 3)).save(tmp_path / "m.keras")
    call = [
        "quantize",
        str(tmp_path / "m.keras"),
        "--data",
        str(images),
        "--method",
        "ptq",
        "--out",
        str(tmp_path / "r"),
    ]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 1
    assert "24 of 48 images are classified correctly; 48 are correct with the order" in " ".join(result.output.split())
    assert CliRunner().invoke(app, [*call, "--labels", "folders"]).exit_code == 0


def test_two_swapped_classes_are_refused(tmp_path):
    images = write_images(tmp_path / "images", ["a", "b"], images=6)
    color_model((1, 0)).save(tmp_path / "m.keras")
    with pytest.raises(DataError, match="0 of 12 images are classified correctly; 12 are correct with the order: b, a"):
        adopt(tmp_path / "m.keras", str(images), tmp_path / "run")


def test_labels_of_an_npz_file_are_checked(tmp_path):
    rng = np.random.default_rng(0)
    classes = np.arange(48) % 4
    pixels = np.clip(rng.normal(np.array(list(COLORS.values()))[classes, None, None], 12, (48, 12, 12, 3)), 0, 255)
    np.savez(tmp_path / "d.npz", x_train=pixels.astype(np.uint8), y_train=classes)
    color_model((3, 0, 1, 2)).save(tmp_path / "m.keras")
    with pytest.raises(DataError, match="are correct with the order: 3, 0, 1, 2"):
        adopt(tmp_path / "m.keras", str(tmp_path / "d.npz"), tmp_path / "run")


def test_model_without_correct_predictions_is_refused(tmp_path):
    """The images of a class have all colors except that of the class, so that no label order is right."""
    classes = np.arange(24) % 4
    shown = (classes + 1 + np.arange(24) // 4 % 3) % 4
    noise = np.random.default_rng(2).integers(0, 20, (24, 12, 12, 3)).astype(np.uint8)  # no two images are equal
    pixels = noise + np.array(list(COLORS.values()), np.uint8)[shown, None, None]
    np.savez(tmp_path / "d.npz", x_train=pixels, y_train=classes)
    color_model((0, 1, 2, 3)).save(tmp_path / "m.keras")
    with pytest.raises(DataError, match=r"0 of 24 images are classified correctly.*--labels folders"):
        adopt(tmp_path / "m.keras", str(tmp_path / "d.npz"), tmp_path / "run")


@pytest.mark.parametrize(
    "name",
    [
        "labels.txt",
        "class_indices.json",
        "m_labels.txt",
        "retrained_labels.txt",
        "dict.txt",
        "id2label.json",
        "coco.names",
    ],
)
def test_label_file_next_to_the_model_is_used(tmp_path, images, name):
    """The label file has another order than the class folders."""
    model = color_model((0, 1, 2, 3))
    model.save(tmp_path / "m.keras")
    other_labels = ["apple", "cress", "berry", "date"]
    text = (
        json.dumps({label: i for i, label in enumerate(other_labels)})
        if name.endswith("json")
        else "\n".join(other_labels)
    )
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=rf"{name} next to the model has a different order .*--labels folders"):
        adopt(tmp_path / "m.keras", str(images), tmp_path / "run")
    assert adopt(tmp_path / "m.keras", str(images), tmp_path / "run", labels="folders").labels == tuple(COLORS)
    same = list(COLORS)
    text = json.dumps({label: i for i, label in enumerate(same)}) if name.endswith("json") else "\n".join(same)
    (tmp_path / name).write_text(text)
    assert adopt(tmp_path / "m.keras", str(images), tmp_path / "again").labels == tuple(COLORS)


def test_inaccurate_model_with_the_right_label_order_is_accepted(tmp_path):
    rng = np.random.default_rng(1)
    classes = np.arange(96) % 4
    shown = np.where(rng.random(96) < 0.6, rng.integers(0, 4, 96), classes)
    noise = np.random.default_rng(2).integers(0, 20, (96, 12, 12, 3)).astype(np.uint8)  # no two images are equal
    pixels = noise + np.array(list(COLORS.values()), np.uint8)[shown, None, None]
    np.savez(tmp_path / "d.npz", x_train=pixels, y_train=classes)
    color_model((0, 1, 2, 3)).save(tmp_path / "m.keras")
    run = adopt(tmp_path / "m.keras", str(tmp_path / "d.npz"), tmp_path / "run")
    assert run.metrics["accuracy"] < 0.9


def test_evaluate_of_a_tflite_file_refuses_another_label_order(tmp_path, images):
    import tensorflow as tf

    model = tmp_path / "m.tflite"
    model.write_bytes(tf.lite.TFLiteConverter.from_keras_model(color_model((1, 0, 2, 3))).convert())
    with pytest.raises(DataError, match="are correct with the order: berry, apple, cress, date"):
        evaluate(model, str(images), normalize="pixels")
    assert evaluate(model, str(images), normalize="pixels", labels="folders").accuracy == 0.5
    (tmp_path / "order.txt").write_text("berry\napple\ncress\ndate\n")
    call = ["evaluate", str(model), "--data", str(images), "--normalize", "pixels", "--json"]
    result = CliRunner().invoke(app, [*call, "--labels", str(tmp_path / "order.txt")])
    assert json.loads(result.stdout)["accuracy"] == 1.0


@pytest.mark.parametrize("output", [0, 1])
def test_constant_model_does_not_suggest_another_label_order(output):
    classes = np.repeat([0, 1], [30, 70])
    order = label_order({"unit": np.full(100, output)}, classes, ("rare", "frequent"))
    assert not order.clear
    swapped = label_order({"unit": 1 - classes}, classes, ("rare", "frequent"))
    assert swapped.clear
    assert swapped.labels == ("frequent", "rare")


@pytest.mark.parametrize("name", ["flower_labels.txt", "labels_flowers.txt"])
def test_labels_that_may_belong_to_another_model_cause_a_warning(tmp_path, images, name, caplog):
    color_model((0, 1, 2, 3)).save(tmp_path / "m.keras")
    (tmp_path / name).write_text("daisy\nrose\ntulip\nviolet\n")
    assert adopt(tmp_path / "m.keras", str(images), tmp_path / "run").labels == tuple(COLORS)
    assert f"{name} next to the model has different labels (daisy, rose, tulip, violet)" in caplog.text


def test_number_of_outputs_decides_how_label_files_are_read(tmp_path, images):
    """Labels on a single line, as in DeepStream, can only be separated if the number of outputs is known."""
    color_model((1, 0, 2, 3)).save(tmp_path / "m.keras")
    (tmp_path / "order.txt").write_text("berry,apple,cress,date\n")
    run = adopt(tmp_path / "m.keras", str(images), tmp_path / "run", labels=tmp_path / "order.txt")
    assert run.labels == ("berry", "apple", "cress", "date")
    assert run.metrics["accuracy"] == 1.0
    reopened = open_or_adopt(tmp_path / "m.keras", str(images), tmp_path / "run", labels=tmp_path / "order.txt")
    assert reopened.path == run.path
    (tmp_path / "short.txt").write_text("berry\napple\ncress\n")
    with pytest.raises(DataError, match=r"has 3 labels, but .*m\.keras needs 4"):
        adopt(tmp_path / "m.keras", str(images), tmp_path / "other", labels=tmp_path / "short.txt")
