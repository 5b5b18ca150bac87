"""Measures of a score against known classes or numbers: numbers only.

scores, classes, strata -> pairs ranked -> AUROC; scores, effects -> ranks -> Spearman's correlation; clusters drawn
anew -> their intervals; features -> logistic regression
"""

import numpy as np


def auroc(scores, positive, *, strata=None, weights=None):
    """Return the chance that a positive scores above a negative, ties counting half; NaN without any pair.

    scores    (n,) float
    positive  (n,) bool
    strata    (n,) of anything that sorts: only pairs of one stratum are compared, and each pair counts alike
    weights   (n,) how often each counts; 1 when None
    """
    return float(_ranked(scores, positive, strata)(weights))


def auroc_interval(scores, positive, clusters, *, strata=None, draws=1000, level=0.95, seed=0):
    """Return the bounds of a bootstrap interval of `auroc`, clusters being drawn whole; NaN where no draw has a pair.

    clusters  (n,) of anything that sorts, such as the gene that a variant lies in
    level     share of the draws between the bounds
    """
    return _bootstrap(_ranked(scores, positive, strata), clusters, draws, level, seed)


def spearman(scores, effects, *, strata=None, weights=None):
    """Return the correlation of the ranks of two numbers, ties sharing theirs; NaN where one of them is constant.

    scores, effects  (n,) float
    strata           (n,) of anything that sorts: the mean of the correlations within each stratum, which count by size;
                     those of fewer than three rows, or where one of the two is constant, are left out
    weights          (n,) how often each counts; 1 when None
    """
    return float(_correlated(scores, effects, strata)(weights))


def spearman_interval(scores, effects, clusters, *, strata=None, draws=1000, level=0.95, seed=0):
    """Return the bounds of a bootstrap interval of `spearman`, as `auroc_interval` does."""
    return _bootstrap(_correlated(scores, effects, strata), clusters, draws, level, seed)


def _bootstrap(found, clusters, draws, level, seed):
    """Bounds between which a function of weights lies when clusters are drawn with replacement."""
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    count = int(cluster.max(initial=-1)) + 1
    random = np.random.default_rng(seed)
    drawn = [found(np.bincount(random.integers(count, size=count), minlength=count)[cluster]) for _ in range(draws)]
    drawn = [value for value in drawn if not np.isnan(value)]
    if not drawn:
        return float("nan"), float("nan")
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _ranked(scores, positive, strata):
    """Sort once; return a function of weights that counts the pairs won."""
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN")
    _, stratum = np.unique(np.zeros(len(scores)) if strata is None else np.asarray(strata), return_inverse=True)
    order = np.lexsort((scores, stratum))
    sorted_scores, sorted_strata = scores[order], stratum[order]
    changed = np.ones(len(order), dtype=bool)
    changed[1:] = (np.diff(sorted_scores) != 0) | (np.diff(sorted_strata) != 0)
    # One step per different score of a stratum, in order.
    step = np.empty(len(order), dtype=np.int64)
    step[order] = np.cumsum(changed) - 1
    steps = int(changed.sum())
    stratum_of_step = sorted_strata[changed]

    def count(weights):
        weights = np.ones(len(scores)) if weights is None else np.asarray(weights, dtype=np.float64)
        high = np.bincount(step, weights * positive, minlength=steps)
        low = np.bincount(step, weights * ~positive, minlength=steps)
        lows = np.bincount(stratum_of_step, low)
        below = np.cumsum(low) - low - (np.cumsum(lows) - lows)[stratum_of_step]
        pairs = np.sum(np.bincount(stratum_of_step, high) * lows)
        return np.sum(high * (below + low / 2)) / pairs if pairs else np.nan

    return count


def _correlated(scores, effects, strata):
    """Sort once; return a function of weights that correlates the ranks."""
    columns = [np.asarray(values, dtype=np.float64) for values in (scores, effects)]
    if any(np.isnan(values).any() for values in columns):
        raise ValueError("scores or effects hold NaN")
    size = len(columns[0])
    _, stratum = np.unique(np.zeros(size) if strata is None else np.asarray(strata), return_inverse=True)
    count = int(stratum.max(initial=-1)) + 1
    # One step per different value of a stratum, in order.
    steps = [np.unique(np.stack([stratum, np.unique(v, return_inverse=True)[1]]), axis=1, return_inverse=True)
             for v in columns]  # fmt: skip
    steps = [(pairs[0], step.reshape(-1)) for pairs, step in steps]

    def measure(weights):
        weights = np.ones(size) if weights is None else np.asarray(weights, dtype=np.float64)
        total = np.bincount(stratum, weights, minlength=count)
        ranks = []
        for stratum_of_step, step in steps:
            here = np.bincount(step, weights, minlength=len(stratum_of_step))
            rank = np.cumsum(here) - here / 2 - (np.cumsum(total) - total)[stratum_of_step]
            # The mean rank is half of all.
            ranks.append(rank[step] - total[stratum] / 2)
        products = [
            np.bincount(stratum, weights * a * b, minlength=count)
            for a, b in (ranks, (ranks[0], ranks[0]), (ranks[1], ranks[1]))
        ]
        spread = np.sqrt(products[1] * products[2])
        # Ranks are halves, so that what is no constant varies by more than rounding does.
        used = (spread > 1e-6) & (total >= 3)
        return np.average(products[0][used] / spread[used], weights=total[used]) if used.any() else np.nan

    return measure


def fit_logistic(features, positive, *, penalty=1.0, steps=50):
    """Fit a logistic regression by Newton's method; return (features + 1,) coefficients, the constant last.

    features  (n, features) float
    penalty   half of it times the squared coefficients, the constant left out, is added to the summed loss
    """
    table = np.column_stack([np.asarray(features, dtype=np.float64), np.ones(len(features))])
    truth = np.asarray(positive, dtype=np.float64)
    ridge = np.full(table.shape[1], float(penalty))
    ridge[-1] = 0
    found = np.zeros(table.shape[1])
    for _ in range(steps):
        chance = 1 / (1 + np.exp(-np.clip(table @ found, -50, 50)))
        slope = table.T @ (chance - truth) + ridge * found
        # A little is added so that a constant alone can be solved for when all are of one class.
        curve = (table.T * (chance * (1 - chance))) @ table + np.diag(ridge + 1e-9)
        step = np.linalg.solve(curve, slope)
        # Newton's steps overshoot where the classes are told apart completely.
        found -= step * min(1.0, 10.0 / max(np.abs(step).max(), 1e-300))
        if np.abs(step).max() < 1e-10:
            break
    return found


def cross_validate(features, positive, clusters, *, folds=5, penalty=1.0, seed=0):
    """Predict each row by a logistic regression that saw no row of its fold; clusters stay together.

    returns  (n,) float64 log-odds, and (n,) the number of each row's fold

    Log-odds of different folds come from different fits: comparing them across folds turns a feature that tells
    nothing into one that seems to tell the opposite, as the fit saw fewest of what its fold holds most of.
    """
    features = np.asarray(features, dtype=np.float64)
    positive = np.asarray(positive, dtype=bool)
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    count = int(cluster.max(initial=-1)) + 1
    fold = np.random.default_rng(seed).permutation(count)[cluster] % folds
    found = np.zeros(len(features))
    for number in range(folds):
        here = fold == number
        if here.any():
            weights = fit_logistic(features[~here], positive[~here], penalty=penalty)
            found[here] = features[here] @ weights[:-1] + weights[-1]
    return found, fold


def nearest(sequence, others, skip=None):
    """Return the index of the text most like a sequence, the first of equals, and its edit distance; None without any.

    others  list of str
    skip    index that is left out, such as the sequence's own
    """
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import extractOne

    if skip is not None:
        others = [*others[:skip], None, *others[skip + 1 :]]
    found = extractOne(sequence, others, scorer=Levenshtein.distance)
    return None if found is None else (found[2], found[1])


def pairwise_distances(sequences):
    """Return the edit distance of every two sequences, each pair once. (n,) str -> (n (n - 1) / 2,) int32"""
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    return cdist(sequences, sequences, scorer=Levenshtein.distance)[np.triu_indices(len(sequences), 1)]


def kmer_spectrum(sequences, k):
    """Return how large a share of the k-mers of sequences each of the 4^k is, in alphabetic order; N is skipped."""
    digits = np.full(256, -1, dtype=np.int64)
    digits[[ord(base) for base in "ACGT"]] = range(4)
    counts = np.zeros(4**k)
    for sequence in sequences:
        letters = digits[np.frombuffer(sequence.encode(), dtype=np.uint8)]
        if len(letters) >= k:
            windows = np.lib.stride_tricks.sliding_window_view(letters, k)
            windows = windows[(windows >= 0).all(axis=1)]
            counts += np.bincount(windows @ 4 ** np.arange(k - 1, -1, -1), minlength=4**k)
    return counts / max(counts.sum(), 1)


def jensen_shannon(p, q):
    """Return the Jensen-Shannon distance of two distributions, 0 to 1: the root of the divergence in bits."""
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [np.nansum(np.where(x > 0, x * np.log2(x / middle), 0)) for x in (p, q)]
    return float(np.sqrt(max(0.0, sum(parts) / 2)))
