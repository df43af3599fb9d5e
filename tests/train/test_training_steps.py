"""The cosine schedule ends at zero, and gradient accumulation gives the gradients of the whole batch."""

from __future__ import annotations

import numpy as np
import pytest

from edgerec.train.backend import keras
from edgerec.train.optimizer import learning_rate, optimizer
from edgerec.train.training_step import compile_classifier


@pytest.mark.parametrize("warmup", [0, 20])
def test_cosine_schedule_falls_to_zero(warmup):
    rate = learning_rate(0.5, "cosine", 100, warmup)
    rates = [float(rate(step)) for step in range(101)]
    assert rates[warmup] == pytest.approx(0.5)
    assert rates[(100 + warmup) // 2] == pytest.approx(0.25)
    assert rates[100] == pytest.approx(0, abs=1e-6)
    assert all(after <= before for before, after in zip(rates[warmup:], rates[warmup + 1 :], strict=False))


@pytest.mark.parametrize("weighted", [False, True])
def test_accumulated_gradients_are_the_mean_of_the_batch(weighted):
    rng = np.random.default_rng(0)
    pixels, classes = rng.random((8, 5), np.float32), np.arange(8) % 3
    weights = rng.random(8).astype(np.float32) if weighted else None
    steps = []
    for micro_batches in (1, 4):
        keras().utils.set_random_seed(0)
        model = keras().Sequential([keras().Input((5,)), keras().layers.Dense(3, "softmax")])
        before = model.get_weights()
        compile_classifier(model, optimizer("sgd", 0.1), 1, micro_batches=micro_batches)
        model.train_on_batch(pixels, classes, sample_weight=weights)
        steps.append([after - old for after, old in zip(model.get_weights(), before, strict=True)])
    for single_step, accumulated in zip(*steps, strict=True):
        assert np.abs(single_step).max() > 1e-3
        np.testing.assert_allclose(accumulated, single_step, rtol=1e-4, atol=1e-7)
