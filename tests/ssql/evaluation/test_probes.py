import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import accuracy_score, mean_absolute_error, r2_score

from ssql.evaluation.probes import (
    Outcome,
    fit_heads,
    most_frequent,
    outcome_of,
    resamples,
    retained,
    scores,
    with_full_precision_heads,
)

RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.normal(size=(400, 8))
TRAIN, TEST = slice(0, 200), slice(200, 400)
CLASSES = (FEATURES[:, 0] + RANDOM.normal(size=400) > 0.3).astype(np.int64)
NUMBERS = (3 * FEATURES[:, 1] + RANDOM.normal(size=400) + 50).astype(np.float32)


def probed(answers: np.ndarray, noise: float = 0.0):
    """Outcome and score rows of the linear head, its features behind noise."""
    features = FEATURES + noise * RANDOM.normal(size=FEATURES.shape)
    heads = fit_heads(features[TRAIN], answers[TRAIN])
    metric = next(iter(heads))
    outcome = outcome_of(heads[metric], features[TEST], answers[TEST], most_frequent(answers[TRAIN]))
    return heads[metric].predict(features[TEST]), outcome


def test_accuracy_with_wilsons_interval():
    said, outcome = probed(CLASSES)
    (score,) = scores("linear", outcome, outcome)
    share = accuracy_score(CLASSES[TEST], said)
    assert score["value"] == pytest.approx(100 * share)
    # Wilson (1927), z = 1.96, 200 clips.
    centre, z2 = (share + 1.96**2 / 400) / (1 + 1.96**2 / 200), 1.96**2
    half = np.sqrt(share * (1 - share) / 200 + z2 / (4 * 200**2)) * 1.96 / (1 + z2 / 200)
    assert (score["low"], score["high"]) == pytest.approx((100 * (centre - half), 100 * (centre + half)), abs=0.01)
    assert score["chance"] == pytest.approx(100 * (CLASSES[TEST] == most_frequent(CLASSES[TRAIN])).mean())
    assert (score["retained"], score["retained_low"], score["retained_high"]) == (1, 1, 1)


def test_numbers_are_scored_by_r2_and_by_error_in_their_unit():
    said, outcome = probed(NUMBERS)
    r2, mae = scores("r2", outcome, outcome, unit="dB")
    assert r2["value"] == pytest.approx(r2_score(NUMBERS[TEST], said), rel=1e-5)
    assert mae["value"] == pytest.approx(mean_absolute_error(NUMBERS[TEST], said), rel=1e-5)
    assert (r2["metric"], r2["unit"], mae["metric"], mae["unit"]) == ("r2", "", "mae", "dB")
    reference = bootstrap(
        (np.abs(NUMBERS[TEST] - said),), np.mean, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert (mae["low"], mae["high"]) == pytest.approx((reference.low, reference.high), rel=0.02)


def test_what_is_retained_is_skill_above_chance_over_the_same_at_full_precision():
    for answers in (CLASSES, NUMBERS):
        _, full = probed(answers)
        _, noisy = probed(answers, noise=1.0)
        kept = retained(noisy, full)
        if answers is CLASSES:
            chance = 1 - full.baseline.mean()
            expected = (1 - noisy.loss.mean() - chance) / (1 - full.loss.mean() - chance)
        else:
            variance = NUMBERS[TEST].var()
            expected = (1 - noisy.loss.mean() / variance) / (1 - full.loss.mean() / variance)
        assert kept["retained"] == pytest.approx(expected, rel=1e-4)
        assert kept["retained_low"] < kept["retained"] < kept["retained_high"]
        assert kept["retained_high"] < 1


def test_nothing_is_retained_of_no_skill():
    _, full = probed(RANDOM.integers(0, 4, 400))
    assert retained(full, full)["retained"] is None


def test_resamples_pair_the_clips():
    weights = resamples(50)
    assert weights.shape == (1000, 50)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert resamples(50) is weights


def test_full_precision_heads_stand_beside_the_linear_ones():
    quantized, full = {"linear": "q", "knn": "k"}, {"linear": "f", "knn": "g"}
    tried = with_full_precision_heads(quantized, full)
    assert list(tried.items()) == [("linear", "q"), ("linear_fp_head", "f"), ("knn", "k")]
    assert with_full_precision_heads({"r2": "q"}, {"r2": "f"}) == {"r2": "q", "r2_fp_head": "f"}


def test_what_has_no_error_to_lower_has_no_share_retained():
    right = Outcome(np.zeros(3), np.zeros(3), True)  # every test clip is of the class most frequent in training
    assert retained(right, right) == {"retained": None, "retained_low": None, "retained_high": None}
    (row,) = scores("linear", right, right)
    assert (row["value"], row["chance"], row["retained"]) == (100, 100, None)


def test_a_few_clips_have_resamples_of_one_class():
    outcome = Outcome(np.array([0.0, 0.0, 1.0]), np.array([1.0, 0.0, 1.0]), True)
    (row,) = scores("linear", outcome, outcome)
    assert all(np.isfinite(row[key]) for key in ("value", "low", "high"))
    numbers = Outcome(np.array([0.5, 0.5, 0.5]), np.array([1.0, 0.0, 1.0]), False)
    r2, _ = scores("r2", numbers, numbers)
    assert r2["value"] == pytest.approx(0.25)
    assert np.isfinite([r2["low"], r2["high"]]).all()
