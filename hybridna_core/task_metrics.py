"""What a prediction is worth: measures of each kind of task, by scikit-learn.

task, truth, outputs of a head -> probabilities -> {name: number}; NaN where a measure has no meaning
"""

import numpy as np

from hybridna_core.errors import UsageError, nearest

# The measure that the best step is chosen by, first, and the others.
MEASURES = {
    "classification": ("mcc", "f1", "accuracy", "auroc", "auprc", "loss"),
    "multilabel": ("auroc", "auprc", "f1", "loss"),
    "regression": ("pearson", "spearman", "r2", "mse", "loss"),
    "generation": ("bits_per_base", "accuracy"),
}
LESS_IS_BETTER = frozenset(("loss", "mse", "bits_per_base"))


def choose_metric(task, metric=None):
    """Return the measure that a task goes by; raise UsageError for one that it does not have."""
    known = MEASURES[task]
    if metric is None:
        return known[0]
    if metric not in known:
        close = nearest(metric, known)
        hint = f"did you mean {close}?" if close else f"one of {', '.join(known)}"
        raise UsageError(f"{task} has no measure {metric!r}", where="--metric", hint=hint)
    return metric


def is_better(metric, value, than):
    """Say whether a measure is better than another one; NaN is better than nothing at all."""
    if than is None or np.isnan(than):
        return than is None or not np.isnan(value)
    return value < than if metric in LESS_IS_BETTER else value > than


def probabilities(task, outputs):
    """Turn a head's outputs into probabilities: softmax, or one for each label. (n, k) -> (n, k) float64"""
    outputs = np.asarray(outputs, dtype=np.float64)
    if task == "multilabel":
        return 1 / (1 + np.exp(-np.clip(outputs, -700, 700)))
    weights = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def measure(task, truth, outputs, scale=None):
    """Measure a head's outputs against what is true; return {name: float}, NaN where it is not defined.

    truth    (n,) class numbers, (n, labels) 0 and 1, or (n, columns) standardised numbers
    outputs  (n, k) as the head gives them
    scale    (columns,) standard deviations, for a mean square error in the labels' own unit
    """
    if task == "regression":
        return _measure_regression(np.asarray(truth, dtype=np.float64), np.asarray(outputs, np.float64), scale)
    chance = probabilities(task, outputs)
    truth = np.asarray(truth)
    return _measure_labels(truth, chance) if task == "multilabel" else _measure_classes(truth, chance)


def _measure_classes(truth, chance):
    """Measure classes: F1 is the mean over classes; AUROC, AUPRC of the second class, or each against the rest."""
    import sklearn.metrics as learn

    guess, classes = chance.argmax(axis=1), chance.shape[1]
    one_hot = np.eye(classes)[truth]
    pairs = [(one_hot[:, i], chance[:, i]) for i in (range(classes) if classes > 2 else [1])]
    return {
        "mcc": measure_one("classification", "mcc", truth, chance),
        "f1": float(learn.f1_score(truth, guess, average="macro", labels=range(classes), zero_division=0)),
        "accuracy": float((truth == guess).mean()),
        "auroc": _mean(_ranked(learn.roc_auc_score, *pair) for pair in pairs),
        "auprc": _mean(_ranked(learn.average_precision_score, *pair) for pair in pairs),
        "loss": _log_loss(truth, chance),
    }


def _log_loss(truth, chance):
    """Mean of -log of what the true classes were given; nats."""
    return float(-np.log(np.maximum(chance[np.arange(len(truth)), truth], 1e-300)).mean())


def _measure_labels(truth, chance):
    """Measure several labels at once, each by itself; those with one class only are left out of the mean."""
    import sklearn.metrics as learn

    pairs = list(zip(truth.T, chance.T, strict=True))
    picked = np.where(truth > 0.5, chance, 1 - chance)
    return {
        "auroc": _mean(_ranked(learn.roc_auc_score, *pair) for pair in pairs),
        "auprc": _mean(_ranked(learn.average_precision_score, *pair) for pair in pairs),
        "f1": _mean(float(learn.f1_score(t > 0.5, c > 0.5, zero_division=0)) for t, c in pairs),
        "loss": float(-np.log(np.maximum(picked, 1e-300)).mean()),
    }


def _ranked(function, truth, chance):
    """Measure a ranking; NaN where there is only one class, or a number is none."""
    return float(function(truth, chance)) if 0 < truth.mean() < 1 else float("nan")


def _measure_regression(truth, outputs, scale):
    """Measure each column by itself and average."""
    scale = np.ones(truth.shape[1]) if scale is None else np.asarray(scale)
    error = (outputs - truth) ** 2
    spread = ((truth - truth.mean(axis=0)) ** 2).mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = np.where(spread > 0, 1 - error.mean(axis=0) / spread, np.nan)
    columns = list(zip(truth.T, outputs.T, strict=True))
    return {
        "pearson": _mean(_correlation(t, o) for t, o in columns),
        "spearman": _mean(_correlation(_ranks(t), _ranks(o)) for t, o in columns),
        "r2": _mean(r2),
        "mse": float((error * scale**2).mean()),
        "loss": float(0.5 * error.mean()),
    }


def _correlation(a, b):
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values):
    """Ranks from 0, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def _mean(values):
    """Mean of what is defined; NaN where nothing is."""
    values = np.array(list(values), dtype=np.float64)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


# --- One measure, and how sure it is ---------------------------------------------------------------------------------


def measure_one(task, metric, truth, outputs, scale=None):
    """Measure one thing alone, as `measure` does but without the rest, for bootstraps; NaN where it is not defined."""
    truth, outputs = np.asarray(truth), np.asarray(outputs, dtype=np.float64)
    if task == "classification" and metric in COUNTED:
        pairs = truth * outputs.shape[1] + outputs.argmax(axis=1)
        return COUNTED[metric](np.bincount(pairs, minlength=outputs.shape[1] ** 2).reshape(-1, outputs.shape[1]))
    if metric in RANKED and task != "regression":
        chance = probabilities(task, outputs)
        labels = truth if task == "multilabel" else np.eye(chance.shape[1])[truth]
        columns = [1] if task == "classification" and chance.shape[1] == 2 else range(chance.shape[1])
        return _mean(RANKED[metric](labels[:, i] > 0.5, chance[:, i]) for i in columns)
    if metric == "loss" and task == "classification":
        return _log_loss(truth, probabilities(task, outputs))
    if metric == "pearson":
        return _mean(_correlation(t, o) for t, o in zip(truth.T, outputs.T, strict=True))
    return measure(task, truth, outputs, scale)[metric]


def interval(task, metric, truth, outputs, scale=None, *, draws=1000, level=0.95, seed=0):
    """Return the bounds of a bootstrap interval of a measure, rows being drawn; NaN where it is not defined.

    outputs  list of (n, k), of one training each: what is drawn is their mean
    scale    as in `measure`
    """
    truth, random, found = np.asarray(truth), np.random.default_rng(seed), []
    # A hundred draws tell the bounds of many rows and labels well enough.
    for _ in range(draws if truth.size < LARGE else max(1, draws // 10)):
        drawn = random.integers(len(truth), size=len(truth))
        found.append(np.mean([measure_one(task, metric, truth[drawn], one[drawn], scale) for one in outputs]))
    found = [value for value in found if value == value]
    if not found:
        return float("nan"), float("nan")
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _count_mcc(table):
    """MCC of counts of true (rows) and told (columns) classes; NaN where one class alone is true, 0 if one is told."""
    table = table.astype(np.float64)
    true, told, total = table.sum(1), table.sum(0), table.sum()
    if (true > 0).sum() < 2:
        return float("nan")
    product = (total**2 - (true**2).sum()) * (total**2 - (told**2).sum())
    return float((np.trace(table) * total - true @ told) / np.sqrt(product)) if product > 0 else 0.0


def _count_f1(table):
    """Mean of every class's F1, 0 for one that is neither true nor told."""
    right = np.diag(table).astype(np.float64)
    both = table.sum(0) + table.sum(1)
    return float(np.mean(np.divide(2 * right, both, out=np.zeros_like(right), where=both > 0)))


def _count_accuracy(table):
    return float(np.trace(table) / table.sum())


def _rank_auroc(is_true, scores):
    """Chance that a positive is above a negative, ties counting half."""
    positive = int(is_true.sum())
    if not 0 < positive < len(is_true):
        return float("nan")
    ranks = _ranks(scores)[is_true].sum() - positive * (positive - 1) / 2
    return float(ranks / (positive * (len(is_true) - positive)))


def _rank_auprc(is_true, scores):
    """Precision at every different score, weighted by the recall that it adds."""
    if not 0 < is_true.mean() < 1:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)
    found, taken = np.cumsum(is_true[order])[last], np.arange(1, len(scores) + 1)[last]
    return float((np.diff(found, prepend=0) * found / taken).sum() / is_true.sum())


# Numbers among the labels from which on fewer are drawn.
LARGE = 50_000
RANKED = {"auroc": _rank_auroc, "auprc": _rank_auprc}
COUNTED = {"mcc": _count_mcc, "f1": _count_f1, "accuracy": _count_accuracy}
