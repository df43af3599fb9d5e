"""Tensors, decisions, recipes and targets."""

from __future__ import annotations

import numpy as np
import pytest

from edgerec.contract.decision import DecisionSpec, decide
from edgerec.contract.tensors import NORMALIZATIONS, Normalize, TensorSpec, dequantize, pixel_table, quantize
from edgerec.errors import RecipeError
from edgerec.recipe import Recipe, parse_assignment
from edgerec.utils.package_data import shipped_names


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_named_normalizations_do_not_change_pixels_of_uint8_inputs(name):
    normalize = Normalize.named(name)
    spec = TensorSpec("uint8", (1, 8, 8, 3), float(np.float32(1 / normalize.std)), int(normalize.mean))
    assert pixel_table(normalize, spec) is None


def test_int8_input_is_the_pixel_minus_128():
    table = pixel_table(Normalize.named("unit"), TensorSpec("int8", (1, 8, 8, 3), 1 / 255, -128))
    assert np.array_equal(table, np.arange(256) - 128)


def test_float_input_is_normalized():
    table = pixel_table(Normalize.named("signed"), TensorSpec("float32", (1, 8, 8, 3)))
    assert table.dtype == np.float32
    assert table[0] == -1
    assert table[128] == 0


def test_quantize_rounds_half_to_even_and_saturates():
    spec = TensorSpec("int8", (1, 2), 0.5, 1)
    assert quantize(np.array([0.25, 0.75, 1000, -1000]), spec).tolist() == [1, 3, 127, -128]
    assert dequantize(np.array([3, -1], np.int8), spec).tolist() == [1.0, -1.0]


@pytest.mark.parametrize("fields", [{"dtype": "int4"}, {"scale": 0.0}, {"scale": -1.0}])
def test_invalid_tensor_spec_is_refused(fields):
    with pytest.raises(ValueError, match="tensor"):
        TensorSpec(**({"dtype": "int8", "shape": (1, 2), "scale": 1.0} | fields))


def test_categories_are_sorted_and_low_scores_are_unknown():
    scores = np.array([0.1, 0.6, 0.3], np.float32)
    prediction = decide(scores, ("a", "b", "c"), DecisionSpec(top_k=2))
    assert (prediction.label, prediction.index) == ("b", 1)
    assert [category.label for category in prediction.categories] == ["b", "c"]
    unsure = decide(scores, ("a", "b", "c"), DecisionSpec(threshold=0.7))
    assert (unsure.label, unsure.index, unsure.score) == ("unknown", -1, pytest.approx(0.6))


def test_recipe_is_unchanged_after_writing_and_reading_toml(tmp_path):
    recipe = Recipe().override({"data.source": 'a "b" \\ ö', "train.epochs": 3, "augment.flip": True, "seed": 7})
    for comments in (False, True):
        (tmp_path / "recipe.toml").write_text(recipe.to_toml(comments))
        assert Recipe.from_toml(tmp_path / "recipe.toml") == recipe


def test_every_recipe_key_has_a_comment():
    lines = [line for line in Recipe().to_toml(comments=True).splitlines() if line]
    assert len(lines) > 30
    assert all("# " in line for line in lines)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.epoch", 3, "did you mean 'train.epochs'"),
        ("trian.epochs", 3, "did you mean 'train'"),
        ("train.epochs", -1, "train.epochs is -1, expected 0 to"),
        ("train.epochs", "many", "train.epochs is 'many'"),
        ("train.epochs", True, "train.epochs is True"),
        ("data.fit", "zoom", "expected crop, stretch, pad"),
        ("train.learning_rate", float("nan"), "train.learning_rate is nan"),
        ("data", 3, r"expected a table \[data\]"),
        ("compress.sparsity", 1.0, "compress.sparsity is 1.0"),
    ],
)
def test_error_for_invalid_recipe_contains_the_key(key, value, message):
    with pytest.raises(RecipeError, match=message):
        Recipe().override({key: value})


def test_assignment_value_is_toml_or_a_string():
    assert parse_assignment("train.epochs=3") == ("train.epochs", 3)
    assert parse_assignment("data.source=my images") == ("data.source", "my images")
    assert parse_assignment("augment.flip=true") == ("augment.flip", True)
    with pytest.raises(RecipeError, match="is not an assignment"):
        parse_assignment("train.epochs")


def test_stratified_calibration_recipe_is_shipped():
    assert "stratified" in shipped_names("calibration")
