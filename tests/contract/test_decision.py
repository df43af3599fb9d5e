"""Predictions, smoothing of predictions over a stream, and calibration of scores and thresholds."""

from __future__ import annotations

import numpy as np
import pytest

from edgerec.contract.decision import UNKNOWN, DecisionSpec, calibrated, decide, fit_temperature, fit_thresholds
from edgerec.contract.smoothing import Decider

LABELS = ("cat", "dog", "owl")


def scores(*values):
    return np.array(values, np.float32)


CAT, DOG = scores(0.8, 0.15, 0.05), scores(0.1, 0.85, 0.05)


def labels_of(spec, frames, step_s=0.1):
    decider = Decider(spec, LABELS)
    return [decider.update(frame, number * step_s) for number, frame in enumerate(frames)]


def test_without_smoothing_each_frame_has_its_own_decision():
    decisions = labels_of(DecisionSpec(), [CAT, DOG, DOG, CAT])
    assert [decision.label for decision in decisions] == ["cat", "dog", "dog", "cat"]
    assert [decision.changed for decision in decisions] == [True, True, False, True]
    assert [decision.since_s for decision in decisions] == pytest.approx([0, 0.1, 0.1, 0.3])
    assert decisions[1].score == pytest.approx(0.85)


def test_smoothing_ignores_a_single_deviating_frame():
    frames = [CAT] * 5 + [DOG] + [CAT] * 5 + [DOG] * 10
    for spec in (DecisionSpec(smoothing="mean", memory=5), DecisionSpec(smoothing="vote", memory=5, votes=3)):
        decisions = [decision.label for decision in labels_of(spec, frames)]
        assert decisions[:5] == ["cat"] * 5
        assert decisions[6:10].count("cat") >= 3
        assert decisions[-5:] == ["dog"] * 5
    assert "dog" not in [d.label for d in labels_of(DecisionSpec(smoothing="vote", memory=5, votes=3), frames)][:11]


def test_mean_smoothing_is_an_exponential_moving_average():
    decisions = labels_of(DecisionSpec(smoothing="mean", memory=3), [CAT, DOG])
    assert decisions[1].score == pytest.approx(0.5 * 0.15 + 0.5 * 0.85)


def test_hysteresis_keeps_the_current_label_if_scores_are_close():
    close_scores = [scores(0.48, 0.47, 0.05), scores(0.47, 0.48, 0.05)] * 3
    assert {decision.label for decision in labels_of(DecisionSpec(hysteresis=0.05), close_scores)} == {"cat"}
    assert {decision.label for decision in labels_of(DecisionSpec(), close_scores)} == {"cat", "dog"}


def test_label_is_unknown_below_its_threshold():
    spec = DecisionSpec(threshold=0.5, thresholds={"dog": 0.9})
    assert decide(CAT, LABELS, spec).label == "cat"
    unsure = decide(DOG, LABELS, spec)
    assert (unsure.label, unsure.index, unsure.score) == (UNKNOWN, -1, pytest.approx(0.85))
    decisions = labels_of(spec, [CAT, DOG, CAT])
    assert [(d.label, d.index) for d in decisions] == [("cat", 0), (UNKNOWN, -1), ("cat", 0)]
    weak = scores(0.46, 0.3, 0.24)
    steady = DecisionSpec(threshold=0.5, hysteresis=0.1)
    assert [d.label for d in labels_of(steady, [CAT, weak])] == ["cat", "cat"]
    assert [d.label for d in labels_of(steady, [weak, CAT])] == [UNKNOWN, "cat"]


def test_decision_lasts_at_least_the_minimum_duration():
    decisions = labels_of(DecisionSpec(least_s=0.25), [CAT, DOG, CAT, DOG, DOG, DOG])
    assert [decision.label for decision in decisions] == ["cat", "cat", "cat", "dog", "dog", "dog"]
    assert [decision.changed for decision in decisions] == [True, False, False, True, False, False]


def test_temperature_is_at_least_1_if_all_predictions_are_correct():
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]], np.float32)
    assert fit_temperature(scores, np.array([0, 1, 0])) == 1
    assert fit_temperature(scores, np.array([0, 1, 1])) != 1


def test_fitted_temperature_is_the_factor_of_the_logits():
    """If calibrated logits are multiplied by a factor, temperature scaling must find this factor."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (20_000, 5))
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    classes = np.array([rng.choice(5, p=p) for p in true])
    for factor in (0.5, 1.0, 1.5):
        overconfident = np.exp(logits * factor)
        overconfident = (overconfident / overconfident.sum(1, keepdims=True)).astype(np.float32)
        assert fit_temperature(overconfident, classes) == pytest.approx(factor, rel=0.08)


def test_calibration_preserves_the_order_and_the_sum():
    model_scores = scores(0.9, 0.1, 0.0)
    for temperature in (0.5, 2.0):
        fitted = calibrated(model_scores, temperature)
        assert fitted.sum() == pytest.approx(1)
        assert list(np.argsort(-fitted)) == [0, 1, 2]
    assert calibrated(model_scores, 2.0)[0] < 0.9 < calibrated(model_scores, 0.5)[0]
    assert calibrated(model_scores, 1.0) is model_scores


def test_fitted_thresholds_reach_the_requested_precision():
    rng = np.random.default_rng(1)
    classes = rng.integers(0, 3, 3000)
    noisy = np.eye(3)[classes] * 2 + rng.normal(0, 1.2, (3000, 3))
    model_scores = (np.exp(noisy) / np.exp(noisy).sum(1, keepdims=True)).astype(np.float32)
    best = model_scores.argmax(1)
    fitted = fit_thresholds(model_scores, classes, LABELS, 0.95)
    for index, label in enumerate(LABELS):
        predicted = (best == index) & (model_scores[:, index] >= fitted[label])
        assert (classes[predicted] == index).mean() >= 0.95
        # The threshold is the lowest possible one: with a lower threshold, the precision is not reached.
        lower = (best == index) & (model_scores[:, index] >= fitted[label] - 0.05)
        assert (classes[lower] == index).mean() < 0.95
        assert 0.1 < predicted.sum() / (best == index).sum() < 0.95
    assert fit_thresholds(model_scores, (classes + 1) % 3, LABELS, 0.99) == dict.fromkeys(LABELS, 1.0)
    assert fit_thresholds(model_scores[:0], classes[:0], LABELS, 0.9) == dict.fromkeys(LABELS, 1.0)


@pytest.mark.parametrize(
    "fields",
    [
        {"threshold": 2},
        {"threshold": float("nan")},
        {"temperature": 0},
        {"thresholds": {"cat": -1}},
        {"thresholds": [1]},
        {"smoothing": "often"},
        {"memory": 0},
        {"votes": 6, "memory": 5, "smoothing": "vote"},
        {"hysteresis": "much"},
        {"least_s": -1},
        {"other": 1},
    ],
)
def test_invalid_decision_settings_are_refused(fields):
    with pytest.raises((ValueError, TypeError)):
        DecisionSpec(**fields)


def test_decision_spec_is_unchanged_after_writing_and_reading_json():
    spec = DecisionSpec(threshold=0.5, thresholds={"cat": 0.7}, smoothing="vote", temperature=1.3)
    assert DecisionSpec(**spec.to_dict()) == spec
