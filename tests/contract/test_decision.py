"""A stream's answer is steadier than its frames', and says how sure it is."""

from __future__ import annotations

import numpy as np
import pytest

from edgerec.contract.decision import (
    UNKNOWN,
    Decider,
    DecisionSpec,
    calibrated,
    decide,
    fit_temperature,
    fit_thresholds,
)

LABELS = ("cat", "dog", "owl")


def scores(*values):
    return np.array(values, np.float32)


CAT, DOG = scores(0.8, 0.15, 0.05), scores(0.1, 0.85, 0.05)


def labels_of(spec, frames, step_s=0.1):
    decider = Decider(spec, LABELS)
    return [decider.update(frame, number * step_s) for number, frame in enumerate(frames)]


def test_without_smoothing_each_frame_decides():
    made = labels_of(DecisionSpec(), [CAT, DOG, DOG, CAT])
    assert [decision.label for decision in made] == ["cat", "dog", "dog", "cat"]
    assert [decision.changed for decision in made] == [True, True, False, True]
    assert [decision.since_s for decision in made] == pytest.approx([0, 0.1, 0.1, 0.3])
    assert made[1].score == pytest.approx(0.85)


def test_one_odd_frame_changes_no_smoothed_answer():
    frames = [CAT] * 5 + [DOG] + [CAT] * 5 + [DOG] * 10
    for spec in (DecisionSpec(smoothing="mean", memory=5), DecisionSpec(smoothing="vote", memory=5, votes=3)):
        made = [decision.label for decision in labels_of(spec, frames)]
        assert made[:5] == ["cat"] * 5
        assert made[6:10].count("cat") >= 3
        assert made[-5:] == ["dog"] * 5
    assert "dog" not in [d.label for d in labels_of(DecisionSpec(smoothing="vote", memory=5, votes=3), frames)][:11]


def test_the_mean_is_the_exponential_one():
    made = labels_of(DecisionSpec(smoothing="mean", memory=3), [CAT, DOG])
    assert made[1].score == pytest.approx(0.5 * 0.15 + 0.5 * 0.85)


def test_hysteresis_keeps_what_is_nearly_as_good():
    near = [scores(0.48, 0.47, 0.05), scores(0.47, 0.48, 0.05)] * 3
    assert {decision.label for decision in labels_of(DecisionSpec(hysteresis=0.05), near)} == {"cat"}
    assert {decision.label for decision in labels_of(DecisionSpec(), near)} == {"cat", "dog"}


def test_unknown_below_the_threshold_of_the_label():
    spec = DecisionSpec(threshold=0.5, thresholds={"dog": 0.9})
    assert decide(CAT, LABELS, spec).label == "cat"
    unsure = decide(DOG, LABELS, spec)
    assert (unsure.label, unsure.index, unsure.score) == (UNKNOWN, -1, pytest.approx(0.85))
    made = labels_of(spec, [CAT, DOG, CAT])
    assert [(d.label, d.index) for d in made] == [("cat", 0), (UNKNOWN, -1), ("cat", 0)]
    weak = scores(0.46, 0.3, 0.24)
    steady = DecisionSpec(threshold=0.5, hysteresis=0.1)
    assert [d.label for d in labels_of(steady, [CAT, weak])] == ["cat", "cat"]
    assert [d.label for d in labels_of(steady, [weak, CAT])] == [UNKNOWN, "cat"]


def test_an_answer_stays_its_least_time():
    made = labels_of(DecisionSpec(least_s=0.25), [CAT, DOG, CAT, DOG, DOG, DOG])
    assert [decision.label for decision in made] == ["cat", "cat", "cat", "dog", "dog", "dog"]
    assert [decision.changed for decision in made] == [True, False, False, True, False, False]


def test_temperature_does_not_sharpen_scores_without_an_error():
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]], np.float32)
    assert fit_temperature(scores, np.array([0, 1, 0])) == 1
    assert fit_temperature(scores, np.array([0, 1, 1])) != 1


def test_temperature_is_found_again():
    """Scores made too sure by a known factor are brought back by it."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (20_000, 5))
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    classes = np.array([rng.choice(5, p=p) for p in true])
    for factor in (0.5, 1.0, 1.5):
        sure = np.exp(logits * factor)
        sure = (sure / sure.sum(1, keepdims=True)).astype(np.float32)
        assert fit_temperature(sure, classes) == pytest.approx(factor, rel=0.08)


def test_calibration_keeps_the_order_and_the_sum():
    given = scores(0.9, 0.1, 0.0)
    for temperature in (0.5, 2.0):
        found = calibrated(given, temperature)
        assert found.sum() == pytest.approx(1)
        assert list(np.argsort(-found)) == [0, 1, 2]
    assert calibrated(given, 2.0)[0] < 0.9 < calibrated(given, 0.5)[0]
    assert calibrated(given, 1.0) is given


def test_thresholds_reach_the_precision_that_is_wanted():
    rng = np.random.default_rng(1)
    classes = rng.integers(0, 3, 3000)
    noisy = np.eye(3)[classes] * 2 + rng.normal(0, 1.2, (3000, 3))
    given = (np.exp(noisy) / np.exp(noisy).sum(1, keepdims=True)).astype(np.float32)
    best = given.argmax(1)
    found = fit_thresholds(given, classes, LABELS, 0.95)
    for index, label in enumerate(LABELS):
        answered = (best == index) & (given[:, index] >= found[label])
        assert (classes[answered] == index).mean() >= 0.95
        # And not higher than need be: with a few more answers it would not be reached.
        lower = (best == index) & (given[:, index] >= found[label] - 0.05)
        assert (classes[lower] == index).mean() < 0.95
        assert 0.1 < answered.sum() / (best == index).sum() < 0.95
    assert fit_thresholds(given, (classes + 1) % 3, LABELS, 0.99) == dict.fromkeys(LABELS, 1.0)
    assert fit_thresholds(given[:0], classes[:0], LABELS, 0.9) == dict.fromkeys(LABELS, 1.0)


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
def test_what_is_no_decision_is_refused(fields):
    with pytest.raises((ValueError, TypeError)):
        DecisionSpec.from_dict(fields)


def test_it_travels_as_json():
    spec = DecisionSpec(threshold=0.5, thresholds={"cat": 0.7}, smoothing="vote", temperature=1.3)
    assert DecisionSpec.from_dict(spec.to_dict()) == spec
