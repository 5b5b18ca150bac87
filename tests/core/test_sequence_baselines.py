"""Simple models of sequences: features against counting by hand, choices on the validation rows, all three tasks."""

import itertools

import numpy as np
import pytest
from tables import draw

from hybridna_core import sequence_baselines as simple
from hybridna_core.task_metrics import measure_one
from hybridna_core.tokenizer import reverse_complement


def test_kmers_by_counting_words():
    texts = ["ACGTNACG", "TTTTT", "A", ""]
    for both in (False, True):
        found = simple.count_kmers(texts, 3, both).toarray()
        words = ["".join(word) for k in (1, 2, 3) for word in itertools.product("ACGT", repeat=k)]
        assert found.shape == (4, 4 + 16 + 64)
        for row, text in zip(found, texts, strict=True):
            strands = (text, reverse_complement(text)) if both else (text,)
            due = [sum(s[i : i + len(w)] == w for s in strands for i in range(len(s))) for w in words]
            assert row.tolist() == due


def test_places_and_gc():
    assert simple.one_hot(["ACN", "TTG"]).tolist() == [[1, 0, 0, 0, 0, 1] + [0] * 6, [0, 0, 0, 1] * 2 + [0, 0, 1, 0]]
    assert simple.one_hot(["AC", "ACG"]) is None
    assert simple.gc_content(["GGCA", "NNGA", "NN"]).tolist() == [[0.75], [0.5], [0]]


def split(rows, labels):
    edges = [0, len(rows) // 2, 3 * len(rows) // 4, len(rows)]
    parts = list(zip(("train", "valid", "test"), itertools.pairwise(edges), strict=True))
    return {n: rows[a:b] for n, (a, b) in parts}, {n: np.asarray(labels[a:b]) for n, (a, b) in parts}


def run(task, rows, labels, metric):
    sequences, targets = split(rows, labels)
    found = {one.name: one for one in simple.run_baselines(task, sequences, targets, metric)}
    return {n: measure_one(task, metric, targets["test"], one.test) for n, one in found.items()}, found


def test_each_baseline_learns_what_it_can_see():
    random = np.random.default_rng(0)
    # By composition: k-mers see it, and places do.
    drawn = draw(160, 3, shortest=20, longest=20)
    rows, labels = [text for text, _ in drawn], np.array([int(label) for _, label in drawn])
    values, found = run("classification", rows, labels, "mcc")
    assert set(values) == {"majority", "GC", "one-hot", "k-mers"} and values["majority"] == 0
    assert values["k-mers"] > 0.9 and values["one-hot"] > 0.8 and values["GC"] < 0.5
    assert found["k-mers"].chosen.startswith("k ")
    # By place alone: the tenth base says it, whatever else stands there.
    rows = ["".join(random.choice(list("ACGT"), 20)) for _ in range(400)]
    labels = np.array([int(row[9] in "AC") for row in rows])
    values, _ = run("classification", rows, labels, "mcc")
    assert values["one-hot"] > 0.95 > 0.5 > values["k-mers"]
    # By GC, of three classes.
    shares = random.choice([0.1, 0.5, 0.9], 300)
    rows = ["".join(random.choice(list("ACGT"), 40, p=[(1 - g) / 2, g / 2, g / 2, (1 - g) / 2])) for g in shares]
    values, _ = run("classification", rows, (shares * 2).round().astype(int), "mcc")
    assert values["GC"] > 0.9


def test_regression_and_several_labels():
    random = np.random.default_rng(1)
    rows = ["".join(random.choice(list("ACGT"), 30)) for _ in range(300)]
    rows[0] = rows[0][:20]
    content = np.array([[row.count("G") + 2 * row.count("AC")] for row in rows], dtype=float)
    values, _ = run("regression", rows, (content - content.mean()) / content.std(), "pearson")
    assert set(values) == {"mean", "GC", "k-mers"} and np.isnan(values["mean"])
    assert values["k-mers"] > 0.95 > values["GC"] > 0.1
    labels = np.array([[row.count("A") > 7, row.count("C") > 7, False] for row in rows], dtype=np.float32)
    values, found = run("multilabel", rows, labels, "auroc")
    assert values["k-mers"] > 0.9 and values["majority"] == pytest.approx(0.5)
    assert found["k-mers"].test.shape == (75, 3)


def test_a_label_that_every_row_or_none_has():
    texts = [text for text, _ in draw(30, 0, shortest=12, longest=12)]
    sequences = {"train": texts, "valid": texts, "test": texts}
    labels = np.array([[1, 0, i % 2] for i in range(30)], dtype=np.float32)
    found = simple.run_baselines("multilabel", sequences, dict.fromkeys(sequences, labels), "auroc")
    for baseline in list(found)[1:]:
        assert (baseline.test[:, 0] > 10).all() and (baseline.test[:, 1] < -10).all()


def test_many_rows_are_drawn_and_many_cells_left_out(monkeypatch):
    monkeypatch.setattr(simple, "ROWS_LIMIT", 20)
    monkeypatch.setattr(simple, "ONE_HOT_CELLS", 10)
    drawn = draw(160, 3, shortest=20, longest=20)
    values, _ = run("classification", [t for t, _ in drawn], np.array([int(c) for _, c in drawn]), "mcc")
    assert "one-hot" not in values and values["k-mers"] > 0.5
