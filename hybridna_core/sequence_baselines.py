"""What simple models make of a task, to stand beside a network: k-mers, bases by place, GC, the commonest class.

sequences -> counts or one-hot -> regression whose strength is chosen on validation rows -> outputs as a head gives them
"""

import warnings
from typing import NamedTuple

import numpy as np

from hybridna_core.task_metrics import is_better, measure_one
from hybridna_core.tokenizer import A, T, encode, reverse_complement_ids

# Tried on validation rows: the longest k-mers counted, and inverse strengths of the penalty.
LONGEST_KMERS = (3, 4, 5, 6)
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
# Penalties of ridge regressions, on features of variance 1.
RIDGES = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
# Training rows that baselines are fitted on, and cells of one-hot features; what is longer or more has no such row.
ROWS_LIMIT, ONE_HOT_CELLS = 50_000, 2**28


class Baseline(NamedTuple):
    """One baseline's outputs, as a head gives them, and what was chosen for it."""

    name: str
    valid: np.ndarray
    test: np.ndarray
    chosen: str


def count_kmers(sequences, longest, both_strands=False):
    """Count all words of 1 to `longest` bases; a word with an unknown base counts nowhere.

    returns  sparse (n, 4 + 16 + ... + 4^longest) float32; with both strands, those of the reverse complement are added
    """
    import scipy.sparse

    rows, columns, first = [], [], 0
    encoded = [encode(text) for text in sequences]
    for k in range(1, longest + 1):
        for number, ids in enumerate(encoded):
            for strand in (ids, reverse_complement_ids(ids)) if both_strands else (ids,):
                if len(strand) < k:
                    continue
                words = np.lib.stride_tricks.sliding_window_view(strand.astype(np.int64), k)
                words = words[((words >= A) & (words <= T)).all(1)]
                columns.append((words - A) @ (4 ** np.arange(k)[::-1]) + first)
                rows.append(np.full(len(words), number))
        first += 4**k
    row, column = (np.concatenate(part) if part else np.zeros(0, int) for part in (rows, columns))
    return scipy.sparse.csr_matrix((np.ones(len(row), np.float32), (row, column)), shape=(len(sequences), first))


def one_hot(sequences):
    """Return (n, 4 * bases) float32 with a 1 where a base stands; None where lengths differ or
    they are too many. Unknown bases have none."""
    if len({len(text) for text in sequences}) != 1 or 4 * len(sequences) * len(sequences[0]) > ONE_HOT_CELLS:
        return None
    ids = np.stack([encode(text) for text in sequences])
    return (ids[..., None] == np.arange(A, T + 1)).reshape(len(ids), -1).astype(np.float32)


def gc_content(sequences):
    """Return (n, 1) shares of G and C among the known bases."""
    known = [max(1, len(text) - text.count("N")) for text in sequences]
    return np.array([[(t.count("G") + t.count("C")) / n] for t, n in zip(sequences, known, strict=True)])


def run_baselines(task, sequences, targets, metric):
    """Yield the Baselines of a task; what is chosen is chosen on the validation rows by `metric`.

    task       classification, multilabel or regression
    sequences  {train, valid, test: list of str}
    targets    {train, valid: as `encode_labels` gives them}
    """
    fit = _fit_ridges if task == "regression" else _fit_logistic
    simple = _predict_commonest(task, targets["train"], {name: len(sequences[name]) for name in sequences})
    if len(sequences["train"]) > ROWS_LIMIT:
        drawn = np.sort(np.random.default_rng(0).permutation(len(sequences["train"]))[:ROWS_LIMIT])
        sequences = {**sequences, "train": [sequences["train"][i] for i in drawn]}
        targets = {**targets, "train": np.asarray(targets["train"])[drawn]}
    yield Baseline("mean" if task == "regression" else "majority", simple["valid"], simple["test"], "")
    together = [text for name in ("train", "valid", "test") for text in sequences[name]]
    edges = np.cumsum([0] + [len(sequences[name]) for name in ("train", "valid", "test")])
    yield _choose("GC", fit, task, {"": gc_content(together)}, edges, targets, metric)
    placed = one_hot(together)
    if placed is not None:
        yield _choose("one-hot", fit, task, {"": placed}, edges, targets, metric)
    sizes = {}
    for words, both in (("", False), (" both strands", True)):
        counted = count_kmers(together, max(LONGEST_KMERS), both)
        sizes |= {f"k {k}{words}": counted[:, : sum(4**j for j in range(1, k + 1))] for k in LONGEST_KMERS}
    yield _choose("k-mers", fit, task, sizes, edges, targets, metric)


def _predict_commonest(task, targets, counts):
    """Give every row the same: the log share of each class, log-odds of each label, or the mean."""
    targets = np.asarray(targets)
    if task == "regression":
        row = targets.mean(0)
    elif task == "multilabel":
        share = np.clip(targets.mean(0), 1e-6, 1 - 1e-6)
        row = np.log(share / (1 - share))
    else:
        row = np.log(np.bincount(targets) / len(targets) + 1e-12)
    return {name: np.tile(row, (count, 1)) for name, count in counts.items()}


def _choose(name, fit, task, features, edges, targets, metric):
    """Fit every candidate and keep the one that does best on the validation rows."""
    best = None
    for label, table in features.items():
        scale = _scale(table[: edges[1]])
        parts = [_divide(table[edges[i] : edges[i + 1]], scale) for i in range(3)]
        for strength, valid, test in fit(task, parts, targets["train"]):
            value = measure_one(task, metric, targets["valid"], valid)
            if best is None or is_better(metric, value, best[0]):
                chosen = " ".join(word for word in (label, strength) if word)
                best = (value, Baseline(name, valid, test, chosen))
    return best[1]


def _scale(table):
    """Standard deviation of each column, 1 for one that never changes."""
    mean = np.asarray(table.mean(0)).ravel()
    squares = table.multiply(table).mean(0) if hasattr(table, "multiply") else (table**2).mean(0)
    sd = np.sqrt(np.maximum(np.asarray(squares).ravel() - mean**2, 0))
    return np.where(sd > 1e-6, sd, 1.0)


def _divide(table, scale):
    import scipy.sparse

    return table @ scipy.sparse.diags(1 / scale) if scipy.sparse.issparse(table) else table / scale


def _fit_logistic(task, parts, targets):
    """Yield (strength, outputs of validation rows, of test rows) of logistic regressions."""
    from sklearn.linear_model import LogisticRegression

    train, valid, test = parts
    targets = np.asarray(targets)
    columns = list(targets.T) if task == "multilabel" else [targets]
    for strength in STRENGTHS:
        found = []
        for column in columns:
            if len(np.unique(column)) < 2:
                sure = 20.0 if column[0] else -20.0
                found.append([np.full((part.shape[0], 1), sure) for part in (valid, test)])
                continue
            model = LogisticRegression(C=strength, max_iter=300, tol=1e-3)
            with warnings.catch_warnings():
                # Not quite at its end is as good a baseline.
                warnings.simplefilter("ignore")
                model.fit(train, column)
            if task == "multilabel":
                found.append([model.decision_function(part)[:, None] for part in (valid, test)])
            else:
                found.append([_every_class(model, part, targets) for part in (valid, test)])
        outputs = [np.concatenate(part, axis=1) for part in zip(*found, strict=True)]
        yield f"C {strength:g}", *outputs


def _every_class(model, part, targets):
    """Log-probabilities with a column for each class number."""
    outputs = np.full((part.shape[0], int(targets.max()) + 1), -30.0)
    outputs[:, model.classes_.astype(int)] = np.log(np.maximum(model.predict_proba(part), 1e-12))
    return outputs


def _fit_ridges(task, parts, targets):
    """Yield (strength, outputs of validation rows, of test rows) of ridge regressions."""
    from sklearn.linear_model import Ridge

    train, valid, test = parts
    for strength in RIDGES:
        model = Ridge(alpha=strength, solver="sparse_cg" if hasattr(train, "multiply") else "auto")
        model.fit(train, np.asarray(targets, dtype=np.float64))
        yield f"alpha {strength:g}", *(model.predict(part).reshape(part.shape[0], -1) for part in (valid, test))
