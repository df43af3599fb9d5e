"""``arch = "auto"`` chooses the network, the initial weights and the number of epochs for the images and the target."""

from __future__ import annotations

import logging
import shutil
import urllib.request

import cv2
import numpy as np
import pytest

from edgerec import Recipe
from edgerec.contract.target import Target
from edgerec.errors import RecipeError, RunError, TargetError
from edgerec.models import ARCHITECTURES
from edgerec.models.automatic import RULES, Situation, choose, suitable_epochs
from edgerec.recipe import UNRESOLVED
from edgerec.train.automatic_recipe import resolved
from edgerec.train.backend import keras, prepare
from edgerec.train.distill import student_recipe
from edgerec.train.fit import fit, was_begun
from edgerec.train.transfer import network as untrained
from edgerec.utils.progress import ignore
from tests.conftest import error_line

OFFLINE = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
V2_FILE = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_{}_no_top.h5"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder without downloaded weights, on a machine without a network.

    urllib reads the proxy variables only once, when it creates its global opener. A new opener is therefore created
    for this test, and removed afterwards, because it would send the requests of later tests to a missing proxy.
    """
    monkeypatch.setattr(urllib.request, "_opener", None)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "home" / ".keras" / "models"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def photos(tmp_path):
    """Two classes of 20 color images of 64×64 pixels."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(20):
            image = rng.integers(0, 255, (64, 64, 3), np.uint8)
            cv2.imwrite(str(tmp_path / "photos" / label / f"{number}.png"), image)
    return tmp_path / "photos"


def resolve_recipe(source, **changes):
    """Return the resolved recipe for a data set."""
    return resolved(Recipe().override({"data.source": str(source)} | changes), ignore)[0]


def network(recipe):
    return recipe.model.arch, recipe.model.width, recipe.model.weights, recipe.data.input_size


@pytest.mark.parametrize(
    ("situation", "arch", "width"),
    [
        (Situation(28, 1, 60_000, 10), "simple_cnn", 1.0),
        (Situation(32, 3, 50_000, 10), "resnet8", 1.0),
        (Situation(32, 3, 50_000, 100), "resnet14", 1.0),
        (Situation(32, 3, 600, 10), "simple_cnn", 1.0),
        (Situation(100, 3, 600, 10), "mobilenet_v2", 0.35),
        (Situation(100, 1, 20_000, 10), "mobilenet_v1", 0.5),
        (Situation(100, 3, 600, 10, input_px=28), "simple_cnn", 1.0),
        (Situation(100, 3, 600, 10, input_px=16), "resnet8", 1.0),
        (Situation(100, 3, 600, 10, input_px=8), "vgg_small", 0.5),
    ],
)
def test_rules_without_imagenet_weights_depend_on_images_and_target(situation, arch, width):
    rule = choose(situation, imagenet=False)
    assert (rule.arch, rule.width) == (arch, width)


def test_rules_with_imagenet_weights_depend_on_the_target():
    for target, width, size in (
        (None, 0.35, 96),
        ("microcontroller", 0.35, 96),
        ("rpi", 1.0, 160),
        ("coral-usb", 1.0, 160),
    ):
        situation = Situation(640, 3, 600, 10, Target.load(target) if target else None)
        rule = choose(situation, imagenet=None)
        assert (rule.arch, rule.width, rule.max_input_px, rule.imagenet) == ("mobilenet_v2", width, size, True)


def test_every_rule_can_be_built():
    for rule in RULES:
        known = ARCHITECTURES[rule.arch]
        assert not rule.imagenet or rule.width in known.imagenet.widths
        assert rule.max_input_px >= known.least_size_px


def test_run_records_the_chosen_network(run):
    model = run.recipe.model
    assert (model.arch, model.width, model.weights) == ("simple_cnn", 1.0, "none")
    assert not run.recipe.unresolved
    assert set(UNRESOLVED) == set(Recipe().unresolved)
    assert was_begun(Recipe().override({"train.epochs": 4, "compress.epochs": 1, "compress.max_drop": 3.0}), run.path)


def test_photographs_without_network_get_a_mobilenet_with_random_weights(home, photos, caplog, capsys):
    with caplog.at_level(logging.INFO, logger="edgerec"):
        assert network(resolve_recipe(photos)) == ("mobilenet_v2", 0.35, "none", 64)
    assert "weights of mobilenet_v2 could not be downloaded" in caplog.text
    assert "arch auto: mobilenet_v2, width 0.35, random weights, 64 px input, because" in caplog.text
    assert capsys.readouterr().out == ""  # stdout is for --json, so Keras must not print its download message there


def test_photographs_get_a_mobilenet_with_imagenet_weights(home, photos):
    weights = keras().applications.MobileNetV2(alpha=0.35, include_top=False, input_shape=(64, 64, 3), weights=None)
    weights.save_weights(home / V2_FILE.format(224))
    weights.save_weights(home / V2_FILE.format(96))
    assert network(resolve_recipe(photos)) == ("mobilenet_v2", 0.35, "imagenet", 64)
    # Values that the user sets are not changed.
    assert network(resolve_recipe(photos, **{"model.weights": "none"})) == ("mobilenet_v2", 0.35, "none", 64)
    assert network(resolve_recipe(photos, **{"model.width": 0.3})) == ("mobilenet_v2", 0.3, "none", 64)
    assert network(resolve_recipe(photos, **{"data.input_size": 96})) == ("mobilenet_v2", 0.35, "imagenet", 96)
    assert network(resolve_recipe(photos, **{"model.arch": "resnet8"})) == ("resnet8", 1.0, "none", 64)


def test_damaged_imagenet_weights_are_reported_and_not_used(home, photos, caplog):
    (home / V2_FILE.format(224)).write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(1000))
    with caplog.at_level(logging.INFO, logger="edgerec"):
        assert network(resolve_recipe(photos))[:3] == ("mobilenet_v2", 0.35, "none")
    assert "remove the damaged file in ~/.keras/models" in caplog.text


def test_auto_with_a_weights_file_uses_its_network(run, tmp_path):
    recipe = resolve_recipe("digits", **{"model.weights": str(run.path / "model.keras")})
    assert (recipe.model.arch, recipe.data.input_size) == ("simple_cnn", 28)  # as in the run
    file = tmp_path / "model.keras"
    shutil.copyfile(run.path / "model.keras", file)
    recipe = resolve_recipe("digits", **{"model.weights": str(file)})
    assert (recipe.model.arch, recipe.data.input_size) == ("backbone", 28)
    with pytest.raises(RecipeError, match=r"model\.width 0\.5 with the network in .*, whose width is fixed"):
        resolve_recipe("digits", **{"model.weights": str(file), "model.width": 0.5})


def test_merged_data_sets_determine_the_network_together(photos, tmp_path):
    (tmp_path / "more" / "bird").mkdir(parents=True)
    for number in range(20):
        cv2.imwrite(str(tmp_path / "more" / "bird" / f"{number}.png"), np.full((96, 96, 3), 10 * number, np.uint8))
    recipe = Recipe().override({"data.source": [str(photos), str(tmp_path / "more")], "model.weights": "none"})
    assert network(resolved(recipe, ignore)[0]) == ("mobilenet_v2", 0.35, "none", 96)


def test_auto_chooses_the_architecture_of_a_student(run):
    recipe, *_ = resolved(student_recipe([run.path], "auto"), ignore)
    assert network(recipe) == ("simple_cnn", 1.0, "none", 28)


def test_random_weights_are_those_of_the_resolved_recipe(home, photos):
    """The search for ImageNet weights builds a network, which must not change the random weights of the run."""

    def first_kernel(recipe):
        prepare(recipe.train, recipe.seed)
        recipe, *_ = resolved(recipe, ignore)
        return recipe, untrained(recipe, 2).get_weights()[0]

    recipe, kernel = first_kernel(Recipe().override({"data.source": str(photos)}))
    np.testing.assert_array_equal(first_kernel(recipe)[1], kernel)


def test_epochs_depend_on_the_number_of_training_images():
    assert [suitable_epochs(updates) for updates in (1, 33, 77, 200, 352, 421, 10_000)] == [60, 60, 60, 30, 17, 15, 15]
    assert resolve_recipe("digits").train.epochs == 60
    assert resolve_recipe("digits", **{"train.epochs": 3}).train.epochs == 3


def test_unknown_target_and_unsuitable_weights_are_refused(run, tmp_path, invoke):
    with pytest.raises(TargetError, match="unknown target 'raspberry'"):
        resolve_recipe("digits", **{"model.target": "raspberry"})
    with pytest.raises(RecipeError, match="for RGB images"):
        fit(Recipe().override({"model.weights": "imagenet", "train.epochs": 1}), tmp_path / "gray")
    error = error_line(invoke("train", "--data", "digits", "--target", "rpy", "--out", tmp_path / "run"))
    assert "unknown target 'rpy'; did you mean 'rpi'" in error
    (run.path / "recipe.toml").write_text(run.recipe.override({"model.arch": "auto"}).to_toml())
    with pytest.raises(RunError, match=r"recipe.toml is damaged \(it has no value for model.arch"):
        _ = run.recipe
