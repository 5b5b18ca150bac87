"""Measures of predictions, against what can be worked out and against other libraries."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as learn

from hybridna_core.errors import UsageError
from hybridna_core.task_metrics import choose_metric, interval, is_better, measure, measure_one, probabilities


def test_two_classes():
    # Logits whose second class has chances 0.9, 0.2, 0.6, 0.3.
    chance = np.array([0.9, 0.2, 0.6, 0.3])
    outputs = np.log(np.column_stack([1 - chance, chance]))
    assert np.allclose(probabilities("classification", outputs)[:, 1], chance)
    found = measure("classification", [1, 0, 0, 1], outputs)
    assert found["accuracy"] == 0.5 and found["mcc"] == 0 and found["f1"] == 0.5
    # Of the four pairs, 0.9 is above both negatives, 0.3 above one.
    assert found["auroc"] == 0.75
    assert found["loss"] == pytest.approx(-np.log([0.9, 0.8, 0.4, 0.3]).mean())


def test_three_classes_agree_with_scikit_learn():
    random = np.random.default_rng(0)
    truth, outputs = random.integers(3, size=50), random.normal(size=(50, 3))
    found = measure("classification", truth, outputs)
    chance = probabilities("classification", outputs)
    assert found["auroc"] == pytest.approx(learn.roc_auc_score(truth, chance, multi_class="ovr"))
    assert found["mcc"] == pytest.approx(learn.matthews_corrcoef(truth, chance.argmax(1)))
    assert found["f1"] == pytest.approx(learn.f1_score(truth, chance.argmax(1), average="macro"))


def test_several_labels():
    truth = np.array([[1, 0, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0]])
    outputs = np.array([[2.0, 1, -1], [1, 1, 3], [3, -1, 1], [-1, 2, -2]])
    found = measure("multilabel", truth, outputs)
    # The second label has no positive and is left out of the mean.
    assert found["auroc"] == 1.0 and found["auprc"] == 1.0
    assert found["loss"] == pytest.approx(learn.log_loss(truth.ravel(), probabilities("multilabel", outputs).ravel()))


def test_numbers():
    random = np.random.default_rng(1)
    truth = random.normal(size=(40, 2)).round(1)
    outputs = truth + random.normal(size=(40, 2))
    found = measure("regression", truth, outputs, scale=[2.0, 3.0])
    assert found["pearson"] == pytest.approx(np.mean([stats.pearsonr(*x)[0] for x in zip(truth.T, outputs.T)]))  # noqa: B905
    assert found["spearman"] == pytest.approx(np.mean([stats.spearmanr(*x)[0] for x in zip(truth.T, outputs.T)]))  # noqa: B905
    assert found["r2"] == pytest.approx(learn.r2_score(truth, outputs))
    assert found["mse"] == pytest.approx(((outputs - truth) ** 2 * [4.0, 9.0]).mean())


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_what_is_not_defined_is_nan(task):
    truth = {"classification": [1, 1], "multilabel": [[1], [1]], "regression": [[0.5], [0.5]]}[task]
    outputs = np.array([[0.0, 1.0], [0.5, 0.2]]) if task == "classification" else np.array([[0.1], [0.7]])
    found = measure(task, truth, outputs)
    name = "pearson" if task == "regression" else "auroc"
    assert math.isnan(found[name]) and math.isfinite(found["loss"])


def test_which_is_better():
    assert is_better("mcc", 0.5, 0.4) and not is_better("mcc", 0.4, 0.4) and is_better("loss", 0.4, 0.5)
    assert is_better("mcc", math.nan, None) and is_better("mcc", -1.0, math.nan)
    assert not is_better("mcc", math.nan, 0.1) and not is_better("mcc", math.nan, math.nan)
    assert choose_metric("regression") == "pearson" and choose_metric("classification", "f1") == "f1"
    with pytest.raises(UsageError, match="did you mean auroc"):
        choose_metric("multilabel", "auroc_")


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_measures_from_counts_are_those_of_scikit_learn(classes):
    import sklearn.metrics as learn

    random = np.random.default_rng(classes)
    for n in (7, 60):
        truth = random.integers(classes, size=n)
        truth[:2] = 0, 1
        outputs = random.normal(size=(n, classes)) + 1.5 * np.eye(classes)[truth]
        guess = outputs.argmax(1)
        found = {name: measure_one("classification", name, truth, outputs) for name in ("mcc", "f1", "accuracy")}
        assert found["mcc"] == pytest.approx(learn.matthews_corrcoef(truth, guess))
        labels = range(classes)
        assert found["f1"] == pytest.approx(
            learn.f1_score(truth, guess, average="macro", labels=labels, zero_division=0)
        )
        assert found["accuracy"] == pytest.approx(learn.accuracy_score(truth, guess))
    constant = np.tile([1.0, *[0.0] * (classes - 1)], (n, 1))
    assert measure_one("classification", "mcc", truth, constant) == 0
    assert np.isnan(measure_one("classification", "mcc", np.zeros(4, int), outputs[:4]))


@pytest.mark.parametrize(("task", "columns"), [("classification", 2), ("classification", 4), ("multilabel", 3)])
def test_one_measure_is_that_of_all(task, columns):
    random = np.random.default_rng(columns)
    for n in (9, 80):
        truth = random.integers(columns, size=n)
        truth[:columns] = range(columns)
        # Ties, and a label that no row has.
        outputs = random.integers(-2, 3, size=(n, columns)).astype(float)
        if task == "multilabel":
            truth = np.eye(columns)[truth]
            truth[:, 0] = 0
        due = measure(task, truth, outputs)
        for name in due:
            assert measure_one(task, name, truth, outputs) == pytest.approx(due[name], nan_ok=True), name


def test_intervals_by_the_normal_approximation():
    random = np.random.default_rng(0)
    truth = random.integers(2, size=400)
    right = random.random(400) < 0.8
    outputs = np.eye(2)[np.where(right, truth, 1 - truth)]
    low, high = interval("classification", "accuracy", truth, [outputs])
    share, half = right.mean(), 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 400)
    assert low == pytest.approx(share - half, abs=0.008) and high == pytest.approx(share + half, abs=0.008)
    # The mean of two trainings that err in different rows is surer than one.
    other = np.eye(2)[np.where(random.random(400) < 0.8, truth, 1 - truth)]
    both = interval("classification", "accuracy", truth, [outputs, other])
    assert both[1] - both[0] < 0.85 * (high - low)
    # Other measures by drawing rows, too; the same seed, the same bounds.
    scores = random.normal(size=(60, 1))
    given = "regression", "pearson", scores + random.normal(size=(60, 1)), [scores]
    bounds = interval(*given, draws=200)
    assert bounds == interval(*given, draws=200) and 0 < bounds[0] < measure_one(*given[:3], scores) < bounds[1] < 1
    assert np.isnan(interval("classification", "mcc", np.zeros(9, int), [np.ones((9, 2))], draws=5)).all()
