"""`hybridna finetune` and `hybridna predict` from the command line: exit codes, messages, outputs."""

import json

import pytest
from tables import draw, lay_out_task, write_table
from toys import SMALL

from hybridna_cli.app import run
from hybridna_core.checkpoint import save_model
from hybridna_core.model.hybrid import HybridLM

QUICK = ["--device", "cpu", "--epochs", "1", "--freeze", "--batch-size", "16"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "base", HybridLM(SMALL, seed=1))


@pytest.fixture
def call(tmp_path, capfd, monkeypatch, base):
    """Run a command in a folder with a small task; return exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    lay_out_task(tmp_path / "task", 32, 12, 12)

    def call(command, *words):
        model = ["-m", str(base)] if command == "finetune" else []
        code = run([command, *map(str, words), *model, *(QUICK if command == "finetune" else ["--device", "cpu"])])
        streams = capfd.readouterr()
        assert "Traceback" not in streams.err
        return code, streams.out, streams.err

    return call


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    """A finished folder."""
    folder = tmp_path_factory.mktemp("tuned")
    lay_out_task(folder / "task", 32, 12, 12)
    assert run(["finetune", str(folder / "task"), "-o", str(folder / "out"), "-m", str(base), *QUICK]) == 0
    return folder / "out"


def test_from_a_folder_to_predictions(call, tmp_path):
    code, out, err = call("finetune", "task", "-o", "out", "--seeds", 2, "--summary-json", "s.json")
    assert code == 0 and out == "" and "valid_mcc" in err and "step 2: mcc" in err
    table = json.loads((tmp_path / "s.json").read_text())
    assert table["rows"] == {"train": 32, "valid": 12, "test": 12} and len(table["by_seed"]) == 2
    code, out, err = call("predict", "out", "task/test.csv")
    lines = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and len(lines) == 13 and lines[0] == ["row", "name", "status", "prediction", "p_0", "p_1"]
    for row in lines[1:]:
        assert float(row[4]) + float(row[5]) == pytest.approx(1) and row[3] == str(int(float(row[5]) > 0.5))
    assert "predicted 12" in err and "mcc" in err
    code, _, err = call("finetune", "task", "-o", "out")
    assert code == 2 and err.splitlines()[-1].endswith("out: exists; give another name, or --force to replace it")


def test_predictions_do_not_depend_on_batch_order_or_labels(call, tuned, tmp_path):
    rows = draw(20, 7, longest=200)
    write_table("a.tsv", rows)
    write_table("b.tsv", [(text,) for text, _ in rows[::-1]], header=("sequence",))
    found = {}
    for name, table, words in (
        ("1", "a.tsv", [1]),
        ("3", "a.tsv", [3]),
        ("auto", "a.tsv", ["auto"]),
        ("b", "b.tsv", [2]),
    ):
        code, _, _ = call("predict", tuned, table, "-o", f"out-{name}.tsv", "--batch-size", *words)
        assert code == 0
        found[name] = (tmp_path / f"out-{name}.tsv").read_text().splitlines()[1:]
    assert found["1"] == found["3"] == found["auto"]
    plain = [line.split("\t")[1:] for line in found["1"]]
    assert [line.split("\t")[1:] for line in found["b"]] == plain[::-1]


def test_rows_that_cannot_be_predicted_keep_their_place(call, tuned):
    write_table("a.csv", [("ACGTA", "0"), ("", "1"), ("ACXT", "1"), ("A" * 5000, "0"), ("GGG", "9")])
    code, out, err = call("predict", tuned, "a.csv")
    lines = [line.split("\t") for line in out.splitlines()[1:]]
    assert code == 0 and [line[2] for line in lines] == ["ok", "empty", "bad_letters", "too_long", "ok"]
    assert lines[1][3] == "" and lines[1][4] == "nan" and "nothing is measured: a.csv:6: class '9'" in err
    code, out, err = call("predict", tuned, "a.csv", "-o", "p.tsv", "--label-column", "label")
    assert code == 3 and "a.csv:6: class '9' is not among those trained on; they are 0, 1" in err
    code, out, err = call("predict", tuned, "a.csv", "--strict")
    assert code == 3 and "3 of 5 sequences have no prediction" in err
    write_table("none.csv", [("", "0")])
    code, out, err = call("predict", tuned, "none.csv", "-o", "q.tsv")
    assert code == 3 and "none of 1 sequences can be read (empty 1)" in err


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("ACGT", "1"), ("ACGA", "")], "train.csv:3: the label is missing (label is ''); leave such rows out"),
        ([("ACGT", "1"), ("ACGA", "1")], "train.csv: one class only ('1'); two or more are needed to tell apart"),
        ([("ACGT", "1"), ("", "0")], "train.csv: 1 of 2 rows cannot be used (empty 1); at most 5 % are left out"),
        ([("ACGT", "1"), ("AXGT", "0")], "train.csv: 1 of 2 rows cannot be used (bad_letters 1)"),
        ([("ACGT", "1"), ("A" * 4096, "0")], "train.csv: 1 of 2 rows cannot be used (too_long 1)"),
    ],
)  # fmt: skip
def test_tables_that_nothing_can_be_learned_from(call, tmp_path, rows, words):
    write_table("train.csv", rows)
    code, _, err = call("finetune", "train.csv", "-o", "out")
    assert code == 3 and f"hybridna finetune: error: {words}" in err and not (tmp_path / "out").exists()


def test_labels_that_are_no_numbers(call, tmp_path):
    write_table("train.csv", [("ACGT", "1"), ("ACGA", "much")])
    code, _, err = call("finetune", "train.csv", "-o", "out", "--task", "regression")
    assert code == 3 and "train.csv:3: label 'much' is no finite number" in err and not (tmp_path / "out").exists()


def test_a_class_unseen_in_training(call, tmp_path):
    write_table("dev.csv", [("ACGTT", "0"), ("ACGAA", "2")])
    code, _, err = call("finetune", "task/train.csv", "--valid", "dev.csv", "-o", "out")
    assert code == 3 and "dev.csv:3: class '2' is not among those trained on; they are 0, 1" in err
    assert not (tmp_path / "out").exists()


def test_the_same_sequence_in_train_and_test(call, tmp_path):
    from hybridna_core.tokenizer import reverse_complement

    first, second = draw(32, 0)[:2]
    write_table("test.csv", [first, (reverse_complement(second[0]), "1"), ("ACACACACACACACAC", "1")])
    words = "test.csv: 2 of 3 sequences, or their reverse complements, stand in training too"
    code, _, err = call("finetune", "task/train.csv", "--test", "test.csv", "-o", "out", "--strict")
    assert code == 3 and f"error: {words}; take them out, or leave out --strict" in err
    assert not (tmp_path / "out").exists()
    code, _, err = call("finetune", "task/train.csv", "--test", "test.csv", "-o", "out")
    assert code == 0 and f"warning: {words}" in err and "warning: no validation rows" in err


def test_an_adapter_for_another_base(call, tmp_path):
    code, _, _ = call("finetune", "task", "-o", "adapter", "--adapter-only")
    other = save_model(tmp_path / "other", HybridLM(SMALL, seed=2))
    assert code == 0 and call("predict", "adapter", "task/test.csv", "-o", "p.tsv")[0] == 0
    code, _, err = call("predict", "adapter", "task/test.csv", "-o", "q.tsv", "--base", other)
    assert code == 4 and "the adapter is for weights" in err and not (tmp_path / "q.tsv").exists()


def test_regions_of_a_genome(call, tuned):
    from pathlib import Path

    Path("g.fa").write_text(">c1\nACGTTTGCAAACGTACGT\n")
    Path("r.bed").write_text("c1\t0\t9\tx\nc1\t9\t18\ty\t0\t-\n")
    code, out, _ = call("predict", tuned, "r.bed", "-f", "g.fa")
    lines = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and lines[0][:7] == ["row", "contig", "start", "end", "name", "strand", "status"]
    assert lines[2][1:7] == ["c1", "9", "18", "y", "-", "ok"]
    code, _, err = call("predict", tuned, "r.bed")
    assert code == 2 and "give -f FASTA" in err
