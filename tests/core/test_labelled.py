"""Tables of sequences with labels: reading, marking, label schemes."""

import gzip
import logging

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from hybridna_core.data.genome import open_genome
from hybridna_core.data.labelled import (
    Columns,
    Row,
    Table,
    count_shared,
    encode_labels,
    learn_scheme,
    read_labelled,
    split_table,
    usable,
)
from hybridna_core.errors import DataError, UsageError


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def table(task, *labels):
    """A scheme's table: a row for each tuple of labels."""
    rows = [Row("ACGT", label if isinstance(label, tuple) else (label,), line=i + 2) for i, label in enumerate(labels)]
    names = ("label",) if len(rows[0].labels) == 1 else tuple(f"y{i}" for i in range(len(rows[0].labels)))
    made = Table("t.csv", rows, names, ("name",))
    return learn_scheme(task, made, rows), made


# --- Reading ---------------------------------------------------------------------------------------------------------

PLAIN = "sequence,label\nACGT,1\nttgn,0\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", PLAIN),
        ("a.tsv", PLAIN.replace(",", "\t")),
        ("a.txt", PLAIN.replace(",", "\t")),
        ("a.csv", PLAIN.replace("\n", "\r\n")),
        ("a.csv", "\ufeff" + PLAIN),
        ("a.csv", PLAIN + "\n\n"),
        ("a.csv", PLAIN.rstrip("\n")),
        ("a.csv.gz", gzip.compress(PLAIN.encode(), mtime=0)),
        ("a.csv", 'Label,other,"Sequence"\n1,"x, y",ACGT\n0,, ttgn \n'),
    ],
)
def test_one_table_in_many_coats(write, name, text):
    found = read_labelled(write(name, text))
    assert [(row.sequence, row.labels, row.status, row.line) for row in found.rows] == [
        ("ACGT", ("1",), "ok", 2), ("TTGN", ("0",), "ok", 3)
    ]  # fmt: skip


def test_parquet(tmp_path):
    columns = {"id": ["a", "b"], "sequence": ["ACGT", None], "label": [1, 0]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    found = read_labelled(tmp_path / "a.parquet")
    assert [(r.sequence, r.labels, r.status, r.line, r.keys) for r in found.rows] == [
        ("ACGT", ("1",), "ok", 1, ("a",)), ("", ("0",), "empty", 2, ("b",))
    ]  # fmt: skip
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"bad\.parquet: not Parquet"):
        read_labelled(tmp_path / "bad.parquet")


@pytest.fixture
def genome(write):
    path = write("g.fa", ">c1\nACGTTTGCAN\n>c2\nGGGG\n")
    with open_genome(path) as genome:
        yield genome


def test_regions_take_their_bases_from_a_genome(write, genome):
    path = write("r.bed", "c1\t0\t4\tyes\nc1\t4\t8\tno\t0\t-\nc9\t0\t3\tno\nc2\t2\t9\tyes\n")
    found = read_labelled(path, genome=genome)
    assert [(row.sequence, row.labels, row.status) for row in found.rows] == [
        ("ACGT", ("yes",), "ok"), ("GCAA", ("no",), "ok"), ("", ("no",), "unknown_contig"),
        ("", ("yes",), "out_of_range"),
    ]  # fmt: skip
    assert found.rows[1].keys == ("c1", 4, 8, "no", "-")
    with pytest.raises(UsageError, match="give -f FASTA"):
        read_labelled(path)
    with pytest.raises(UsageError, match="BED has no column 'label'"):
        read_labelled(path, Columns(labels=("label",)), genome=genome)


def test_a_table_of_regions(write, genome):
    text = "chromosome\tstart\tend\tsplit\tlabel\nc1\t0\t4\ttrain\t1\nc2\t0\t3\tvalid\t0\nc2\t3\t3\ttest\t0\n"
    # Whether or not its name says BED.
    for name in ("r.bed", "r.tsv"):
        found = read_labelled(write(name, text), Columns(split="split"), genome=genome)
        assert [(row.sequence, row.split, row.status) for row in found.rows] == [
            ("ACGT", "train", "ok"), ("GGG", "valid", "ok"), ("", "test", "empty_region")
        ]  # fmt: skip
    parts = split_table(found)
    assert [[row.line for row in part.rows] for part in parts] == [[2], [3], [4]]
    with pytest.raises(DataError, match=r"r\.bed:2: column start: '-1' is not a whole number"):
        read_labelled(write("r.bed", text.replace("c1\t0", "c1\t-1")), genome=genome)


def test_which_columns(write):
    path = write("a.tsv", "seq80\texpr\tsplit\tlabel\nACGT\t1.5\ttrain\t04\nACGA\t2.5\tval\t31\n")
    found = read_labelled(path, Columns("seq80", ("expr", "label"), "split"))
    assert found.labels == ("expr", "label") and found.rows[0].labels == ("1.5", "04")
    assert [part and len(part.rows) for part in split_table(found)] == [1, 1, None]
    with pytest.raises(DataError, match=r"a\.tsv:1: no column 'sequence' for the sequences; its columns are seq80"):
        read_labelled(path)
    with pytest.raises(DataError, match="no column 'exp' for the labels; did you mean 'expr'"):
        read_labelled(path, Columns("seq80", ("exp",)))
    assert read_labelled(write("b.tsv", "sequence\nACGT\n"), need_labels=False).labels == ()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "sequence,label\n", "no row"),
        ("a.csv", ">c1\nACGT\n", "looks like FASTA, not a table"),
        ("a.csv", "sequence,label\nACGT,1\nACGT\n", r"a\.csv:3: 1 columns, the header has 2"),
        ("a.csv", b"sequence,label\nAC\xff,1\n", r"a\.csv:2: not UTF-8"),
        ("a.csv", b"sequence,label\nAC\0,1\n", "NUL byte"),
        ("a.csv.gz", gzip.compress(PLAIN.encode(), mtime=0)[:-9], "gzip data are cut"),
    ],
)
def test_tables_that_are_broken(write, name, text, words):
    with pytest.raises(DataError, match=words):
        read_labelled(write(name, text))


def test_e26_sequences_that_cannot_be_read(write, caplog):
    good = "".join(f"ACGTACGT{'ACGT'[i % 4]},{i % 2}\n" for i in range(77))
    path = write("a.csv", "sequence,label\n,1\nACGXT,0\nACGTACGTACGTA,1\n" + good)
    with caplog.at_level(logging.WARNING):
        found = read_labelled(path, longest=12)
    assert [row.status for row in found.rows[:4]] == ["empty", "bad_letters", "too_long", "ok"]
    assert "a.csv:3: the letter 'X' is no nucleotide at position 4; marked bad_letters" in caplog.text
    assert "a.csv:4: 13 bases, 12 are read at once; marked too_long" in caplog.text
    assert len(usable(found)) == 77
    # 4 of 80 are 5 %, 5 of 81 are more.
    assert len(usable(found._replace(rows=[*found.rows[:-1], found.rows[0]]))) == 76
    with pytest.raises(DataError, match=r"5 of 82 rows cannot be used \(empty 2, bad_letters 1, too_long 2\)"):
        usable(found._replace(rows=[*found.rows, found.rows[0], found.rows[2]]))
    assert len(usable(read_labelled(path))) == 78


def test_rna(write):
    path = write("a.csv", "sequence,label\nACGU,1\n")
    assert read_labelled(path).rows[0].status == "bad_letters"
    assert read_labelled(path, rna=True).rows[0].sequence == "ACGT"


# --- Labels ----------------------------------------------------------------------------------------------------------


def test_classes_come_in_the_order_of_numbers():
    scheme, made = table("classification", "10", "2", "x", "2")
    assert scheme.classes == ("2", "10", "x")
    assert encode_labels(scheme, made, made.rows).tolist() == [1, 0, 2, 0]


def test_numbers_are_standardised():
    scheme, made = table("regression", ("1", "5e1"), ("3", "-10"))
    assert scheme.mean == (2.0, 20.0) and scheme.sd == (1.0, 30.0)
    assert encode_labels(scheme, made, made.rows).tolist() == [[-1, 1], [1, -1]]


def test_several_labels_in_columns_or_in_one():
    scheme, made = table("multilabel", ("1", "0"), ("0.0", "True"))
    assert scheme.classes == ("y0", "y1") and encode_labels(scheme, made, made.rows).tolist() == [[1, 0], [0, 1]]
    scheme, made = table("multilabel", "3,1", "-", "10")
    assert scheme.classes == ("1", "3", "10")
    assert encode_labels(scheme, made, made.rows).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("task", "labels", "words"),
    [
        ("classification", ["0", "1", ""], r"t\.csv:4: the label is missing \(label is ''\)"),
        ("regression", ["0.5", "NA"], r"t\.csv:3: the label is missing"),
        ("regression", ["0.5", "high"], r"t\.csv:3: label 'high' is no finite number"),
        ("regression", ["0.5", "inf"], r"t\.csv:3: label 'inf' is no finite number"),
        ("regression", ["2", "2"], "column label is 2 in every row"),
        ("classification", ["1", "1"], "one class only"),
        ("classification", [str(i / 7) for i in range(50)], "50 classes in 50 rows; numbers to predict"),
        ("multilabel", [("1", "0"), ("1", "2")], r"t\.csv:3: label '2' is neither 0 nor 1"),
    ],
)
def test_e25_labels_that_nothing_can_be_learned_from(task, labels, words):
    with pytest.raises(DataError, match=words):
        table(task, *labels)


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_e25_a_class_that_training_has_not_seen(task):
    scheme, made = table(task, "0", "1")
    unseen = [Row("A", ("2",), line=9)]
    with pytest.raises(DataError, match=r"t\.csv:9: class '2' is not among those trained on; they are 0, 1"):
        encode_labels(scheme, made, unseen)


def test_e27_shared_sequences_are_found_in_either_direction():
    rows = [Row("AACG"), Row("TTTT")]
    assert count_shared(rows, [Row("AACG"), Row("CGTT"), Row("AAAA"), Row("GCAA")]) == 3


def test_a_split_that_is_unknown_or_without_training(write):
    path = write("a.csv", "sequence,label,split\nACGT,1,holdout\n")
    with pytest.raises(DataError, match=r"a\.csv:2: split 'holdout' is unknown"):
        split_table(read_labelled(path, Columns(split="split")))
    path = write("a.csv", "sequence,label,split\nACGT,1,test\n")
    with pytest.raises(DataError, match="no row is for training"):
        split_table(read_labelled(path, Columns(split="split")))


def test_labels_keep_their_leading_zeros(write):
    found = read_labelled(write("a.tsv", "sequence\tlabel\nACGT\t04\n"))
    assert found.rows[0].labels == ("04",) and np.all([row.status == "ok" for row in found.rows])
