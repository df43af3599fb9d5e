"""Weight decay reduces only kernels, independently of the gradient, also on several devices and after a resume."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys

import numpy as np
import pytest

from edgerec import Recipe, fit
from edgerec.recipe import NOT_AUGMENTED

RATE, DECAY, STEPS = 0.01, 0.5, 4
SETTINGS = {
    **{f"augment.{key}": value for key, value in vars(NOT_AUGMENTED).items()},
    "model.arch": "vgg_small",
    "model.width": 0.25,
    "train.epochs": 3,
    "train.batch_size": 8,
    "train.schedule": "constant",
    "train.warmup_epochs": 0.0,
    "train.learning_rate": RATE,
    "train.weight_decay": DECAY,
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Settings for images without blue, so that the gradient of the first kernel's blue weights is exactly zero."""
    path = tmp_path_factory.mktemp("data") / "no_blue.npz"
    images = np.random.default_rng(0).integers(0, 256, (48, 8, 8, 3), np.uint8)
    images[..., 2] = 0
    classes = np.arange(48) % 2
    parts = {"train": slice(32), "val": slice(32, 40), "test": slice(40, 48)}
    np.savez(
        path,
        **{
            f"{x}_{name}": a[part] for name, part in parts.items() for x, a in zip("xy", (images, classes), strict=True)
        },
    )
    return SETTINGS | {"data.source": str(path)}


def blue_weights(model) -> np.ndarray:
    """The weights of the first kernel for the blue channel, which only weight decay changes."""
    return next(layer for layer in model.layers if layer.weights).get_weights()[0][:, :, 2]


def train_run(settings, path, stop_after=None, **options) -> list[np.ndarray]:
    """Train, and return the blue weights after each epoch."""
    after = []

    class Stop(Exception):
        pass

    def on_epoch(number, model):
        after.append(blue_weights(model))
        if number == stop_after:
            raise Stop

    with contextlib.suppress(Stop):
        fit(Recipe().override(settings), path, on_epoch=on_epoch, **options)
    return after


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_kernel_without_gradient_shrinks_by_rate_times_decay(settings, optimizer, tmp_path):
    first, _, third = train_run(settings | {"train.optimizer": optimizer}, tmp_path / "run")
    assert third == pytest.approx(first * (1 - RATE * DECAY) ** (2 * STEPS), rel=1e-4)


def test_decay_is_the_same_after_a_resume_with_gradient_accumulation(settings, tmp_path):
    settings = settings | {"train.accumulate": 2}
    [first] = train_run(settings, tmp_path / "run", stop_after=1)
    _, kernel = train_run(settings, tmp_path / "run", resume=True)
    assert kernel == pytest.approx(first * (1 - RATE * DECAY) ** (2 * STEPS), rel=1e-4)


def test_only_kernels_decay():
    from edgerec.contract.tensors import Normalize
    from edgerec.models import build
    from edgerec.train.backend import keras
    from edgerec.train.optimizer import optimizer, restored_optimizer

    for arch in ("mobilenet_v1", "lstm"):
        section = Recipe().override({"model.arch": arch, "model.width": 0.25}).model
        model = build(keras(), section, (32, 32, 3), 10, Normalize.named("unit"))
        for variable in model.trainable_variables:
            variable.assign(np.full(variable.shape, 0.5))
        zeros = [np.zeros(variable.shape, np.float32) for variable in model.trainable_variables]
        adam = optimizer("adam", RATE, DECAY)
        adam.apply_gradients(zip(zeros, model.trainable_variables, strict=True))
        restored_optimizer(adam, model.trainable_variables).apply_gradients(
            zip(zeros, model.trainable_variables, strict=True)
        )
        after = {variable.name: np.unique(variable.numpy()) for variable in model.trainable_variables}
        decayed = {name for name, values in after.items() if not np.array_equal(values, [0.5])}
        assert decayed == {name for name in after if name.rpartition("/")[2] in ("kernel:0", "recurrent_kernel:0")}
        for name in decayed:
            assert after[name] == pytest.approx([0.5 * (1 - RATE * DECAY) ** 2])


@pytest.mark.nightly
def test_decay_on_two_devices_is_the_same_as_on_one(settings, tmp_path):
    program = f"""
import json, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from edgerec import Recipe, fit
after = []
def on_epoch(number, model):
    kernel = next(layer for layer in model.layers if layer.weights).weights[0]
    after.append([copy.numpy()[:, :, 2].ravel().tolist() for copy in kernel.values])
fit(Recipe().override(json.loads(sys.argv[1])), {str(tmp_path / "run")!r}, on_epoch=on_epoch)
print(json.dumps(after))
"""
    command = [sys.executable, "-c", program, json.dumps(settings)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    first, _, third = json.loads(result.stdout.splitlines()[-1])
    assert len(first) == 2  # each device has its own copy of the kernel
    for one, three in zip(first, third, strict=True):
        assert three == pytest.approx(np.multiply(one, (1 - RATE * DECAY) ** (2 * STEPS)).tolist(), rel=1e-4)
