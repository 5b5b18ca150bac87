"""Designs beside real sequences: each number against its plain definition, scipy, or `predict`.

sequences made by hand -> evaluate_design -> rows -> the same numbers by other means
"""

import csv
import itertools
import logging

import numpy as np
import pytest
from plain import edit_distance
from tables import write_table
from toys import SMALL, random_model

from hybridna_core.checkpoint import save_model
from hybridna_core.commands.evaluate_design import evaluate_design, table_columns
from hybridna_core.commands.finetune import finetune
from hybridna_core.commands.generate import generate
from hybridna_core.commands.predict import predict
from hybridna_core.data import reporter
from hybridna_core.data.designs import read_designs
from hybridna_core.design_measures import compare_real, draw, mean_distance, nearest_distances
from hybridna_core.errors import DataError, ModelError, UsageError
from hybridna_core.model.hybrid import HybridLM
from hybridna_core.task_files import save_labelled_model
from hybridna_core.tokenizer import LabelPosition, reverse_complement

FILL = "ACACACACACAC"
# Sites of HepG2, of K562 and of none, one each, 45 bases.
SITES = {"300": "CAAAGTCCA", "030": "AGATAAGG", "003": "CCAGATGG"}


def make(label, seed, count):
    """Sequences of 45 bases around one to three sites of a line."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        parts = [SITES[label]] * int(random.integers(1, 4))
        text = "AC".join(parts)
        found.append(("".join(random.choice(list("ACGT"), 45 - len(text))) + text)[:45])
    return found


def read_table(path):
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


def spectrum(texts):
    """Shares of 4-mers, by slicing."""
    words = ["".join(letters) for letters in itertools.product("ACGT", repeat=4)]
    counts = {word: 0 for word in words}
    for text in texts:
        for i in range(len(text) - 3):
            counts[text[i : i + 4]] += 1
    total = sum(counts.values())
    return np.array([counts[word] / total for word in words])


def gc(texts):
    return float(np.mean([sum(base in "GC" for base in text) / len(text) for text in texts]))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Designs of two labels, a table of real sequences with measurements, designs without labels."""
    folder = tmp_path_factory.mktemp("designs")
    designs = {label: make(label, seed, 7) for seed, label in enumerate(("300", "030"))}
    (folder / "made.fa").write_text("".join(
        f">{label}_{i} status=ok label={label}\n{text[:20]}\n{text[20:]}\n"
        for label, texts in designs.items() for i, text in enumerate(texts)
    ))  # fmt: skip
    blind = make("003", 5, 4)
    (folder / "blind.fa").write_text("".join(f">{i} any words\n{text.lower()}\n" for i, text in enumerate(blind)))
    real = [(text, label) for seed, label in enumerate(("300", "030", "003", "000"), start=10)
            for text in make("300" if label == "000" else label, seed, 6)]  # fmt: skip
    noise = np.random.default_rng(3).normal(0, 0.1, (len(real), 3))
    measured = (reporter.activity([text for text, _ in real]) + noise).round(4)
    rows = [
        (f"r{i}", text, label, *values) for i, ((text, label), values) in enumerate(zip(real, measured, strict=True))
    ]
    write_table(folder / "real.tsv", rows, ("name", "sequence", "label", "a", "b", "c"))
    return folder, designs, blind, real, measured


def by_set(summary):
    return {(row["label"], row["set"]): row for row in summary.rows}


def test_every_number_by_its_plain_definition(files, tmp_path, caplog):
    from scipy.spatial.distance import jensenshannon
    from scipy.stats import pearsonr

    folder, designs, blind, real, measured = files
    summary = evaluate_design(
        str(folder / "made.fa"), tmp_path / "t.tsv", real=folder / "real.tsv", oracle="simulated",
        beside=[f"blind={folder / 'blind.fa'}"], value_column=("a", "b", "c"), markdown=tmp_path / "t.md",
        sequences=tmp_path / "s.tsv",
    )  # fmt: skip
    assert "the oracle is the simulated assay, for trying out only" in caplog.text
    found = by_set(summary)
    assert list(found) == [
        (label, name) for label in ("300", "030") for name in ("designs", "real", "real, any label", "blind")
    ]
    texts = [text for text, _ in real]
    for label, line in (("300", 0), ("030", 1)):
        others = [i for i in range(3) if i != line]
        like = [text for text, its in real if its == label]
        sets = {"designs": designs[label], "real": like, "real, any label": texts, "blind": blind}
        for name, members in sets.items():
            row, values = found[label, name], reporter.activity(members)
            target = values[:, line]
            assert (row["n"], row["of"], row["distinct"], row["length"]) == (
                len(members),
                len(members),
                len(set(members)),
                "45",
            )
            assert row["target"] == reporter.LINES[line]
            assert row["top_1"] == pytest.approx(max(target)) and row["top_100"] == pytest.approx(np.mean(target))
            assert row["mean"] == pytest.approx(sum(target) / len(target))
            assert row["sd"] == pytest.approx((sum((target - target.mean()) ** 2) / (len(target) - 1)) ** 0.5)
            assert row["specificity"] == pytest.approx(
                np.mean([v[line] - (v[others[0]] + v[others[1]]) / 2 for v in values])
            )
            assert row["specificity_100"] == pytest.approx(row["specificity"])
            for i, output in enumerate(reporter.LINES):
                assert row[f"mean_{output}"] == pytest.approx(values[:, i].mean())
            due = [edit_distance(a, b) for a, b in itertools.combinations(members, 2)]
            assert row["diversity"] == pytest.approx(np.mean(due)) and row["pairs"] == len(due)
            assert row["diversity_100"] == pytest.approx(np.mean(due))
            is_real = name.startswith("real")
            due = [min(min(edit_distance(text, other), edit_distance(reverse_complement(text), other))
                       for other in texts if not (is_real and other is text)) for text in members]  # fmt: skip
            assert row["nearest_real"] == pytest.approx(np.mean(due)) and row["nearest_real_min"] == min(due)
            assert row["gc"] == pytest.approx(gc(members))
            if name != "real":
                assert row["gc_difference"] == pytest.approx(gc(members) - gc(like))
                divergence = jensenshannon(spectrum(members), spectrum(like), base=2) ** 2
                assert row["kmer_divergence"] == pytest.approx(divergence)
            assert row["fidelity"] is None and row["why"] == "fidelity: no --model"
            if is_real:
                here = [i for i, (_, its) in enumerate(real) if name != "real" or its == label]
                assert row["measured"] == pytest.approx(measured[here, line].mean())
                assert row["oracle_r"] == pytest.approx(pearsonr(target, measured[here, line]).statistic)
            else:
                assert row["measured"] is None and row["oracle_r"] is None
    lines = read_table(tmp_path / "t.tsv")
    assert list(lines[0]) == table_columns(reporter.LINES)
    assert [line["top_1"] for line in lines] == [f"{row['top_1']:.4g}" for row in summary.rows]
    assert lines[0]["fidelity"] == "NA"
    shown = [line.strip("| ").split(" | ") for line in (tmp_path / "t.md").read_text().splitlines()]
    assert [shown[0], *shown[2:]] == [line.split("\t") for line in (tmp_path / "t.tsv").read_text().splitlines()]
    each = read_table(tmp_path / "s.tsv")
    assert len(each) == 2 * (7 + 6 + 24 + 4) and each[0]["name"] == "300_0" and each[0]["sequence"] == designs["300"][0]
    assert float(each[0]["HepG2"]) == pytest.approx(reporter.activity(designs["300"][:1])[0, 0], rel=1e-3)


def test_real_sequences_beside_each_other_are_the_floor(files):
    """As many as there are designs, at most half, are held against the others: one of the ways to cut three off six."""
    from scipy.spatial.distance import jensenshannon

    folder, _, _, real, _ = files
    row = by_set(evaluate_design(folder / "made.fa", real=folder / "real.tsv", oracle="simulated"))["300", "real"]
    like = [text for text, its in real if its == "300"]
    due = []
    for part in itertools.combinations(like, 3):
        rest = [text for text in like if text not in part]
        divergence = jensenshannon(spectrum(part), spectrum(rest), base=2) ** 2
        due.append((pytest.approx(gc(part) - gc(rest)), pytest.approx(divergence)))
    assert (row["gc_difference"], row["kmer_divergence"]) in due
    assert compare_real(like, 2, 0) != compare_real(like, 3, 0) == compare_real(like, 50, 0)
    assert compare_real(like[:1], 3, 0) is None


def test_labels_that_ask_for_several_or_for_nothing(files, tmp_path, caplog):
    folder, designs, *_ = files
    made = write_table(tmp_path / "m.tsv", [(text, ".") for text in designs["300"]], ("sequence", "label"))
    row = by_set(evaluate_design(made, real=folder / "real.tsv", oracle="simulated", label=["330"]))["330", "designs"]
    values = reporter.activity(designs["300"])
    assert row["target"] == "HepG2+K562" and row["mean"] == pytest.approx(values[:, :2].mean())
    assert row["specificity"] == pytest.approx((values[:, :2].mean(axis=1) - values[:, 2]).mean())
    # No real sequence has this label: nothing to compare with, said and not guessed.
    assert row["gc_difference"] is None and "comparison: no real sequence with label 330" in row["why"]
    assert "no real sequence has label 330" in caplog.text
    row = by_set(evaluate_design(made, real=folder / "real.tsv", oracle="simulated", label=["000"]))["000", "designs"]
    assert row["target"] == "HepG2+K562+SK-N-SH" and row["specificity"] is None
    assert "specificity: label 000 asks the same of all" in row["why"]


def test_the_best_hundred_and_what_is_drawn(tmp_path):
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("ACGT"), 60)) for _ in range(130)]
    made = write_table(tmp_path / "m.tsv", [(text,) for text in texts], ("sequence",))
    real = write_table(tmp_path / "r.tsv", [(text, "300") for text in make("300", 1, 5)])
    options = {"real": real, "oracle": "simulated", "label": ["300"]}
    row = by_set(evaluate_design(made, **options))["300", "designs"]
    target = reporter.activity(texts)[:, 0]
    best = sorted(range(130), key=lambda i: (-target[i], i))[:100]
    assert row["top_100"] == pytest.approx(sum(sorted(target)[-100:]) / 100)
    due = np.mean([edit_distance(texts[i], texts[j]) for i, j in itertools.combinations(best[:100], 2)])
    assert row["diversity_100"] == pytest.approx(due) and row["diversity_100"] != row["diversity"]
    few = by_set(evaluate_design(made, max_sequences=20, pairs=50, **options))["300", "designs"]
    assert (few["n"], few["of"], few["pairs"]) == (20, 130, 50)
    again = by_set(evaluate_design(made, max_sequences=20, pairs=50, **options))["300", "designs"]
    other = by_set(evaluate_design(made, max_sequences=20, pairs=50, seed=1, **options))["300", "designs"]
    assert few == again and few != other
    assert set(draw(texts, 20, 0)) < set(texts) and len(set(draw(texts, 20, 0))) == 20


def test_pairs_that_are_drawn_have_the_mean_of_all():
    texts = ["A" * i for i in range(12)]
    assert mean_distance(texts, 66, 0) == (pytest.approx(143 / 33), 66)
    drawn, count = mean_distance(texts, 65, 0)
    assert count == 65 and drawn != pytest.approx(143 / 33)
    # No sequence is paired with itself, and all pairs are as likely.
    means = [mean_distance(["A", "AA", "AAAA"], 2, seed)[0] for seed in range(3000)]
    assert min(means) == 1 and np.mean(means) == pytest.approx(2, abs=0.06)
    assert mean_distance(["A"], 5, 0) == (None, 0)


def test_a_sequence_is_not_its_own_neighbour():
    known = ["AACC", "AACG", "TTTT"]
    assert nearest_distances(known, [0, 1, 2], known).tolist() == [1, 1, 2]
    assert nearest_distances(["AAAA", "GGTT"], [None, None], known).tolist() == [0, 0]
    assert np.isnan(nearest_distances(["AC"], [0], ["AC"])).all()


# --- Models ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """A fine-tuned regression model with two outputs, and its base."""
    folder = tmp_path_factory.mktemp("oracle")
    base = save_model(folder / "base", HybridLM(SMALL, seed=1))
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("ACGT"), 20)) for _ in range(24)]
    rows = [(text, text.count("A") / 20, 10 + text.count("G")) for text in texts]
    table = write_table(folder / "t.tsv", rows, ("sequence", "fast", "slow"))
    finetune(table, folder / "out", model=base, task="regression", label_column=("fast", "slow"), freeze=True,
             epochs=1, batch_size=8, device="cpu")  # fmt: skip
    return folder / "out", base, texts


def test_a_regression_model_is_an_oracle(oracle, tmp_path):
    folder, base, texts = oracle
    rows = [(text, "04" if i % 2 else "40") for i, text in enumerate(texts)]
    made, real = write_table(tmp_path / "m.tsv", rows[:9]), write_table(tmp_path / "r.tsv", rows[9:])
    summary = evaluate_design(made, real=real, oracle=folder, device="cpu", batch_size=4)
    assert summary.outputs == ("fast", "slow") and summary.oracle == "out" and len(summary.oracle_sha256) == 64
    predict(folder, made, tmp_path / "p.tsv", device="cpu")
    told = read_table(tmp_path / "p.tsv")
    due = [float(line["slow"]) for line, (_, label) in zip(told, rows, strict=False) if label == "04"]
    row = by_set(summary)["04", "designs"]
    assert row["target"] == "slow" and row["top_1"] == pytest.approx(max(due), rel=1e-6)
    assert row["mean"] == pytest.approx(np.mean(due), rel=1e-6)
    with pytest.raises(
        DataError, match=r"r3.tsv:2: label '300' has 3 digits, the oracle gives 2 numbers; .* fast, slow"
    ):
        evaluate_design(made, real=write_table(tmp_path / "r3.tsv", [("ACGT", "300")]), oracle=folder, device="cpu")
    with pytest.raises(ModelError, match="no head to predict with"):
        evaluate_design(made, real=real, oracle=base, device="cpu")


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """A folder of a random network that knows labels of three digits."""
    network = random_model(4, labels=[LabelPosition(line, 4) for line in reporter.LINES], layer_types=("mamba",))
    folder = tmp_path_factory.mktemp("generator") / "toy"
    save_labelled_model(folder, network, {"300": 5, "030": 2, "003": 3}, length=45, card="", extra={})
    return folder


def test_fidelity_is_the_share_that_predict_gives_the_label(files, generator, tmp_path):
    folder, designs, *_ = files
    options = {"real": folder / "real.tsv", "oracle": "simulated", "model": generator, "device": "cpu"}
    found = by_set(evaluate_design(folder / "made.fa", sequences=tmp_path / "s.tsv", **options))
    shares = set()
    for label, texts in designs.items():
        table = write_table(tmp_path / f"{label}.tsv", [(text,) for text in texts], ("sequence",))
        predict(generator, table, tmp_path / f"{label}.p.tsv", device="cpu")
        told = [line["prediction"] for line in read_table(tmp_path / f"{label}.p.tsv")]
        assert found[label, "designs"]["fidelity"] == told.count(label) / len(texts)
        assert found[label, "designs"]["why"] == ""
        shares.add(told.count(label))
        each = [line for line in read_table(tmp_path / "s.tsv")
                if (line["label"], line["set"]) == (label, "designs")]  # fmt: skip
        assert [line["likeliest"] for line in each] == told
    assert shares != {0}
    with pytest.raises(UsageError, match=r"label '400': digit 4 for HepG2 is unknown; labels are 3 digits"):
        evaluate_design(folder / "blind.fa", label=["400"], **options)
    row = by_set(evaluate_design(folder / "blind.fa", label=["333"], **options))["333", "designs"]
    assert row["fidelity"] is None and "fidelity: label 333 was not in the model's training" in row["why"]
    with pytest.raises(ModelError, match="knows no labels"):
        evaluate_design(folder / "made.fa", **options | {"model": save_model(tmp_path / "b", HybridLM(SMALL, seed=1))})


def test_what_generate_writes_is_read(files, generator, tmp_path, caplog):
    folder, *_ = files
    (tmp_path / "p.fa").write_text(">one\nACGT\n>two\nACNT\n>three\nTTTT\n")
    generate(str(tmp_path / "d.fa"), model=generator, label="300", prompts=str(tmp_path / "p.fa"), num_sequences=2,
             length=41, table=str(tmp_path / "d.tsv"), device="cpu")  # fmt: skip
    fasta, table = (read_designs(tmp_path / name).rows for name in ("d.fa", "d.tsv"))
    assert [row[:2] + row[5:] for row in fasta] == [row[:2] + row[5:] for row in table]
    assert [row.keys for row in fasta] == [("one_1",), ("one_2",), ("three_1",), ("three_2",)]
    assert caplog.text.count("1 prompts without designs are left out") == 2
    options = {"real": folder / "real.tsv", "oracle": "simulated"}
    a, b = (evaluate_design(tmp_path / name, **options).rows for name in ("d.fa", "d.tsv"))
    assert a == b and a[0]["n"] == 4


# --- Faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "made.fa: no sequence found; was the download complete?"),
        (">a status=bad_prompt\nACNT\n", "made.fa: no design; is it the right file?"),
        (">a\nACGT\nEFIL\n", "made.fa: 1 of 1 rows cannot be used"),
        (">a\n>b\n\n", "made.fa: 2 of 2 rows cannot be used"),
        (">a label=3x0\nACGT\n", "made.fa:1: label '3x0' is no row of digits"),
        ("name\tlabel\na\t300\n", "made.fa:1: no column 'sequence' for the sequences"),
        ("sequence\tlabel\n", "made.fa: no row; is it the right file?"),
        (
            ">a label=300\nACGT\n>b\nACGT\n>c label=030\nAC\n",
            "made.fa: some designs name no label, and there are several",
        ),
        ("@a\nACGT\n+\nIIII\n", "made.fa: looks like FASTQ, not a table"),
    ],
)
def test_designs_that_do_not_do(files, tmp_path, text, words):
    (tmp_path / "made.fa").write_text(text)
    with pytest.raises(DataError) as caught:
        evaluate_design(tmp_path / "made.fa", tmp_path / "t.tsv", real=files[0] / "real.tsv", oracle="simulated")
    assert words in str(caught.value) and not (tmp_path / "t.tsv").exists()


def test_labels_that_do_not_do(files, tmp_path):
    folder, *_ = files
    options = {"real": folder / "real.tsv", "oracle": "simulated"}
    with pytest.raises(UsageError, match="the designs name no label; give --label"):
        evaluate_design(folder / "blind.fa", **options)
    with pytest.raises(DataError, match="no design has label 003; they have 300, 030"):
        evaluate_design(folder / "made.fa", label=["003"], **options)
    with pytest.raises(UsageError, match=r"--label: label '44' has 2 digits, the oracle gives 3 numbers; .* SK-N-SH"):
        evaluate_design(folder / "blind.fa", label=["44"], **options)
    with pytest.raises(UsageError, match="--label: label 'high' is no row of digits"):
        evaluate_design(folder / "blind.fa", label=["high"], **options)


def test_real_tables_that_do_not_do(files, tmp_path):
    folder, *_ = files
    options = {"designs": folder / "made.fa", "oracle": "simulated"}
    with pytest.raises(DataError, match=r"real.tsv:1: no column 'labels' for the labels; did you mean 'label'\?"):
        evaluate_design(real=folder / "real.tsv", label_column=["labels"], **options)
    with pytest.raises(DataError, match=r"real.tsv:1: no column 'd' for the labels"):
        evaluate_design(real=folder / "real.tsv", value_column=["a", "b", "d"], **options)
    with pytest.raises(UsageError, match="--value-column: 2 columns, the oracle gives 3 numbers; they are HepG2"):
        evaluate_design(real=folder / "real.tsv", value_column=["a", "b"], **options)
    bad = write_table(tmp_path / "bad.tsv", [("ACGT", "300", "1", "x", "2")], ("sequence", "label", "a", "b", "c"))
    with pytest.raises(DataError, match=r"bad.tsv:2: label 'x' is no finite number"):
        evaluate_design(real=bad, value_column=["a", "b", "c"], **options)
    with pytest.raises(DataError, match=r"bad.tsv:2: label 'x2' is no row of digits"):
        evaluate_design(real=bad, label_column=["b", "c"], **options)
    split = write_table(tmp_path / "s.tsv", [("ACGT", "300", "train")], ("sequence", "label", "split"))
    with pytest.raises(DataError, match=r"s.tsv: no row is for testing; its split column must say test"):
        evaluate_design(real=split, split_column="split", **options)


def test_only_rows_for_testing_and_digits_in_columns(files, tmp_path):
    folder, _, _, real, _ = files
    rows = [(text, *its, "test" if i % 2 else "train") for i, (text, its) in enumerate(real)]
    table = write_table(tmp_path / "s.tsv", rows, ("sequence", "x", "y", "z", "split"))
    summary = evaluate_design(
        folder / "made.fa", real=table, oracle="simulated", label_column=("x", "y", "z"), split_column="split"
    )
    assert summary.real == 12 and by_set(summary)["300", "real"]["n"] == 3


def test_lengths_that_differ_are_told(files, tmp_path, caplog):
    folder, *_ = files
    (tmp_path / "m.fa").write_text(">a label=300\nACGTACGT\n>b label=300\nACGTACGTACGT\n")
    with caplog.at_level(logging.WARNING):
        found = by_set(evaluate_design(tmp_path / "m.fa", real=folder / "real.tsv", oracle="simulated"))
    assert found["300", "designs"]["length"] == "8-12" and found["300", "designs"]["diversity"] == 4
    assert "label 300: lengths differ (designs 8-12, real 45, real, any label 45 bases)" in caplog.text


def test_sequences_longer_than_an_oracle_reads(oracle, tmp_path):
    folder, _, texts = oracle
    real = write_table(tmp_path / "r.tsv", [(text, "04") for text in texts[:4]])
    made = write_table(tmp_path / "m.tsv", [("ACGT" * 1100, "04")])
    with pytest.raises(DataError, match=r"m.tsv: 1 of 1 rows cannot be used \(too_long 1\)"):
        evaluate_design(made, real=real, oracle=folder, device="cpu")


def test_options_that_do_not_do(files, tmp_path):
    folder, *_ = files
    options = {"designs": folder / "made.fa", "real": folder / "real.tsv", "oracle": "simulated"}
    for words, change in (
        ("--beside: is 'x.fa', must be NAME=FILE", {"beside": ["x.fa"]}),
        ("--beside: two sets are called 'real'", {"beside": ["real=x.fa"]}),
        ("--max-sequences: is 0, must be at least 1", {"max_sequences": 0}),
        ("--pairs: is 0, must be at least 1", {"pairs": 0}),
        ("--seed: is -1, must be 0 to 2^64 - 1", {"seed": -1}),
        ("t.tsv: the name tells another format; end it in .md", {"markdown": tmp_path / "t.tsv"}),
        ("t.md: the name tells another format; end it in .tsv", {"sequences": tmp_path / "t.md"}),
        ("t.md: two outputs have one name", {"output": tmp_path / "t.md", "markdown": tmp_path / "t.md"}),
        ("made.fa: the output is the input", {"output": folder / "made.fa", "force": True}),
    ):
        with pytest.raises(UsageError) as caught:
            evaluate_design(**options | change)
        assert words in str(caught.value)
