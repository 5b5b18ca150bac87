"""Metrics against scikit-learn, against counting every pair, and on cases that can be worked out."""

import math

import numpy as np
import pytest

from hybridna_core.metrics import auroc, auroc_interval, cross_validate, fit_logistic, spearman, spearman_interval


def draw(seed, n=300, values=25):
    random = np.random.default_rng(seed)
    positive = random.random(n) < 0.3
    # Few values, so that there are ties.
    return random.integers(0, values, n) + 3.0 * positive, positive, random.integers(0, 6, n)


def pairs(scores, positive, strata):
    won = total = 0.0
    for a in np.flatnonzero(positive):
        for b in np.flatnonzero(~positive):
            if strata[a] == strata[b]:
                total += 1
                won += 1.0 if scores[a] > scores[b] else 0.5 * (scores[a] == scores[b])
    return won / total


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_that_of_scikit_learn(seed):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    scores, positive, _ = draw(seed)
    assert auroc(scores, positive) == pytest.approx(sklearn_metrics.roc_auc_score(positive, scores), abs=1e-12)
    weights = np.random.default_rng(seed).integers(0, 4, len(scores))
    due = sklearn_metrics.roc_auc_score(positive, scores, sample_weight=weights)
    assert auroc(scores, positive, weights=weights) == pytest.approx(due, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_strata_compare_only_their_own_pairs(seed):
    scores, positive, strata = draw(seed)
    scores = scores + 100 * strata * (2 * positive - 1)
    assert auroc(scores, positive, strata=strata) == pytest.approx(pairs(scores, positive, strata), abs=1e-12)
    named = np.array([f"type {s}" for s in strata])
    assert auroc(scores, positive, strata=named) == auroc(scores, positive, strata=strata)


def test_auroc_by_hand():
    assert auroc([3.0, 2.0, 1.0], [True, False, False]) == 1.0
    assert auroc([1.0, 1.0], [True, False]) == 0.5
    assert auroc([1.0, 2.0, 3.0], [True, False, True]) == 0.5
    assert math.isnan(auroc([1.0, 2.0], [True, True]))
    assert math.isnan(auroc([1.0, 2.0], [True, False], strata=["a", "b"]))
    with pytest.raises(ValueError, match="NaN"):
        auroc([1.0, math.nan], [True, False])


@pytest.mark.parametrize("seed", range(5))
def test_spearman_is_that_of_scipy(seed):
    stats = pytest.importorskip("scipy.stats")
    scores, positive, _ = draw(seed)
    effects = np.random.default_rng(seed + 10).integers(0, 9, len(scores)) + 4 * positive
    assert spearman(scores, effects) == pytest.approx(stats.spearmanr(scores, effects).statistic, abs=1e-12)
    # A weight of three is a row that stands three times.
    weights = np.random.default_rng(seed).integers(0, 4, len(scores))
    due = stats.spearmanr(np.repeat(scores, weights), np.repeat(effects, weights)).statistic
    assert spearman(scores, effects, weights=weights) == pytest.approx(due, abs=1e-12)


def test_spearman_within_strata():
    stats = pytest.importorskip("scipy.stats")
    scores, positive, strata = draw(1)
    effects = np.random.default_rng(7).normal(size=len(scores)) + positive + 50 * strata
    effects[strata == 3] = 1.0
    sizes, found = [], []
    for stratum in (0, 1, 2, 4, 5):
        here = strata == stratum
        sizes.append(here.sum())
        found.append(stats.spearmanr(scores[here], effects[here]).statistic)
    named = np.array([f"element {s}" for s in strata])
    assert spearman(scores, effects, strata=named) == pytest.approx(np.average(found, weights=sizes), abs=1e-12)
    assert abs(spearman(scores, effects) - spearman(scores, effects, strata=named)) > 0.05
    # Strata of two tell nothing.
    assert math.isnan(spearman([1.0, 2.0, 1.0, 2.0], [1.0, 2.0, 2.0, 1.0], strata=[0, 0, 1, 1]))


def test_spearman_by_hand():
    assert spearman([1.0, 5.0, 9.0], [-3.0, -2.0, 7.0]) == pytest.approx(1.0, abs=1e-15)
    assert spearman([1.0, 5.0, 9.0], [3.0, 2.0, -7.0]) == pytest.approx(-1.0, abs=1e-15)
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4.
    assert spearman([0.0, 1.0, 1.0, 2.0], [1.0, 2.0, 3.0, 4.0]) == pytest.approx(4.5 / math.sqrt(4.5 * 5), abs=1e-12)
    assert math.isnan(spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))
    assert math.isnan(spearman([1.0, 2.0, 3.0], [0.1, 0.1, 0.1]))
    with pytest.raises(ValueError, match="NaN"):
        spearman([1.0, 2.0], [1.0, math.nan])


def test_interval_of_spearman_covers_the_truth_and_minds_clusters():
    random = np.random.default_rng(3)
    inside = 0
    for seed in range(40):
        shared = random.normal(size=150)
        scores, effects = shared + random.normal(size=150), shared + random.normal(size=150)
        low, high = spearman_interval(scores, effects, np.arange(150), draws=200, seed=seed)
        # Two normal numbers that correlate by a half.
        inside += low < 6 / math.pi * math.asin(0.25) < high
    assert 33 <= inside <= 40
    alone = spearman_interval(scores, effects, np.arange(150), draws=300)
    many = spearman_interval(np.tile(scores, 4), np.tile(effects, 4), np.tile(np.arange(150), 4), draws=300)
    assert many == pytest.approx(alone, abs=1e-12)
    rows = spearman_interval(np.tile(scores, 4), np.tile(effects, 4), np.arange(600), draws=300)
    assert rows[1] - rows[0] < 0.7 * (alone[1] - alone[0])


def test_interval_covers_the_truth_and_minds_clusters():
    random = np.random.default_rng(1)
    inside = 0
    truth = 0.5 * (1 + math.erf(1.0 / 2))  # two normal scores one apart
    for seed in range(40):
        positive = random.random(200) < 0.5
        low, high = auroc_interval(random.normal(size=200) + positive, positive, np.arange(200), draws=200, seed=seed)
        inside += low < truth < high
    assert 33 <= inside <= 40
    scores, positive, _ = draw(2)
    alone = auroc_interval(scores, positive, np.arange(300), draws=300)
    # The same rows, each four times: whole clusters leave the interval as it was, single rows would halve it.
    many = auroc_interval(np.tile(scores, 4), np.tile(positive, 4), np.tile(np.arange(300), 4), draws=300)
    assert many == pytest.approx(alone, abs=1e-12)


@pytest.mark.parametrize("penalty", [0.1, 1.0, 10.0])
def test_logistic_regression_is_that_of_scikit_learn(penalty):
    sklearn_models = pytest.importorskip("sklearn.linear_model")
    random = np.random.default_rng(3)
    features = random.normal(size=(200, 4))
    positive = features @ [1.0, -2.0, 0.5, 0.0] + 0.7 + random.logistic(size=200) > 0
    due = sklearn_models.LogisticRegression(C=1 / penalty, tol=1e-12, max_iter=10_000).fit(features, positive)
    found = fit_logistic(features, positive, penalty=penalty)
    np.testing.assert_allclose(found, [*due.coef_[0], due.intercept_[0]], rtol=1e-4, atol=1e-5)


def test_regression_is_judged_on_clusters_it_did_not_see():
    random = np.random.default_rng(4)
    clusters = np.repeat(np.arange(60), 5)
    positive = random.random(60)[clusters] < 0.5
    # A feature per cluster tells the class only to a fit that saw the cluster.
    leaky = np.eye(60)[clusters]
    seen = leaky @ fit_logistic(leaky, positive)[:-1]
    assert auroc(seen, positive) == 1.0
    odds, fold = cross_validate(leaky, positive, clusters)
    assert auroc(odds, positive, strata=fold) == 0.5 and len(set(fold)) == 5
    assert all(len(set(fold[clusters == c])) == 1 for c in range(60))
    useful = positive[:, None] + random.normal(size=(300, 1))
    odds, fold = cross_validate(useful, positive, clusters)
    assert auroc(odds, positive, strata=fold) > 0.7


def test_regression_of_classes_told_apart_stays_finite():
    features = np.array([[-1.0], [-2.0], [1.0], [2.0]])
    assert np.isfinite(fit_logistic(features, [False, False, True, True], penalty=1e-3)).all()
    assert np.isfinite(fit_logistic(features, [True] * 4)).all()
