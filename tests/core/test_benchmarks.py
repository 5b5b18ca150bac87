"""Readers of benchmark folders, on made ones; the published settings and figures."""

import numpy as np
import pytest
from tables import draw, lay_out_task, write_table

from hybridna_core.data.benchmarks import (
    BENCHMARKS,
    find_tasks,
    read_protocol,
    read_published,
    read_tables,
    read_variant_table,
    split_by_sequence,
)
from hybridna_core.data.genome import open_genome
from hybridna_core.data.labelled import Columns, Row, Table
from hybridna_core.errors import DataError, SystemFault, UsageError
from hybridna_core.tokenizer import reverse_complement


def texts(table):
    return [row.sequence for row in table.rows]


def labels(table):
    return [row.labels for row in table.rows]


def test_published_settings():
    one = read_protocol("gue", "GUE/prom/prom_core_tata")
    assert (one.epochs, one.batch_size, one.warmup_steps, one.metric, one.group_size) == (10, 32, 50, "mcc", 3)
    assert read_protocol("gue", "virus/covid").metric == "f1"
    mouse = read_protocol("gue", "mouse/2")
    assert (mouse.max_steps, mouse.epochs, mouse.batch_size, mouse.group_size) == (1000, None, 8, 5)
    assert read_protocol("gue", "EMP/H3").group_size == 10
    # A task that nobody names has the benchmark's metric and no group.
    assert read_protocol("gue", "mine")[:2] == ("-", "mcc") and read_protocol("gue", "notprom/x").group == "-"
    bend = read_protocol("bend", "histone_modification")
    assert (bend.freeze, bend.head, bend.lr, bend.epochs, bend.metric) == (True, "cnn", 3e-3, 100, "auroc")
    assert read_protocol("lrb", "pathogenic_omim").metric == "auprc"
    for name in BENCHMARKS:
        assert read_protocol(name, "x").batch_size > 0
    groups = {"gue": 7, "bend": 3, "lrb": 1}
    for name, count in groups.items():
        rows = read_published(name)
        assert len({row["group"] for row in rows}) == count
        assert all(0 < row["value"] < 1 and row["from"] for row in rows)
    known = {read_protocol("gue", task).group for task in ("EMP/H3", "tf/0", "mouse/0", "splice/reconstructed",
             "virus/covid", "prom/prom_core_all", "prom/prom_300_all")}  # fmt: skip
    assert known == {row["group"] for row in read_published("gue")}


def test_gue_folders(tmp_path, caplog):
    lay_out_task(tmp_path / "GUE" / "prom" / "prom_core_tata", 20, 8, 8)
    lay_out_task(tmp_path / "GUE" / "mouse" / "0", 20, 8, 8)
    lay_out_task(tmp_path / "GUE" / "tf" / "0", 20, 8, 8)
    (tmp_path / "GUE" / "tf" / "0" / "train.csv").unlink()
    found = find_tasks("gue", tmp_path / "GUE")
    assert list(found) == ["mouse/0", "prom/prom_core_tata"] and "tf/0: no training table" in caplog.text
    assert list(find_tasks("gue", tmp_path / "GUE", ["prom_core_tata"])) == ["prom/prom_core_tata"]
    assert list(find_tasks("gue", tmp_path / "GUE" / "mouse" / "0")) == ["0"]
    with pytest.raises(UsageError, match="did you mean 'prom_core_tata'"):
        find_tasks("gue", tmp_path / "GUE", ["prom_core_tat"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no task"):
        find_tasks("gue", tmp_path / "empty")
    with pytest.raises(SystemFault, match="no such file"):
        find_tasks("gue", tmp_path / "absent")
    tables = read_tables("gue", found["mouse/0"])
    assert [len(tables[name].rows) for name in ("train", "valid", "test")] == [20, 8, 8]
    assert [len(read_tables("gue", found["mouse/0"], limit=5)["train"].rows)] == [5]
    assert texts(read_tables("gue", found["mouse/0"], limit=5)["train"]) == texts(
        read_tables("gue", found["mouse/0"], limit=5)["train"]
    )


def test_genomic_benchmarks_folders(tmp_path):
    for part, count in (("train", 40), ("test", 6)):
        for number, (text, label) in enumerate(draw(count, len(part))):
            folder = tmp_path / "human_or_worm" / part / ("worm" if label == "1" else "human")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.txt").write_text(text)
    (tmp_path / "notes").mkdir()
    found = find_tasks("genomic-benchmarks", tmp_path)
    assert list(found) == ["human_or_worm"]
    tables = read_tables("genomic-benchmarks", found["human_or_worm"])
    assert len(tables["train"].rows) + len(tables["valid"].rows) == 40 and tables["valid"].rows
    assert {label for part in tables.values() for label in labels(part)} == {("human",), ("worm",)}
    assert not set(texts(tables["train"])) & set(texts(tables["valid"]))
    (tmp_path / "human_or_worm" / "test" / "human" / "x.txt").write_bytes(b"\xff\x00")
    with pytest.raises(DataError, match="not plain text"):
        read_tables("genomic-benchmarks", found["human_or_worm"])


@pytest.fixture
def genome(tmp_path):
    random = np.random.default_rng(5)
    contigs = {name: "".join(random.choice(list("ACGT"), 3000)) for name in ("chr1", "chr2")}
    path = tmp_path / "genome.fa"
    path.write_text("".join(f">{name}\n{bases}\n" for name, bases in contigs.items()))
    with open_genome(path) as opened:
        yield opened, contigs


def test_bend_folders(tmp_path, genome, caplog):
    import h5py

    genome, contigs = genome
    folder = tmp_path / "bend"
    folder.mkdir()
    rows = [(f"chr{1 + i % 2}", 40 * i, 40 * i + 32, "train" if i < 30 else "valid" if i < 36 else "test")
            for i in range(44)]  # fmt: skip
    write_table(folder / "histone_modification.bed", rows, ("chromosome", "start", "end", "split"))
    marks = np.random.default_rng(0).integers(2, size=(44, 3)).astype(np.int8)
    with h5py.File(folder / "histone_modification.hdf5", "w") as handle:
        handle["labels"] = marks
    listed = [(*row, ",".join(str(j) for j in range(3) if marks[i, j]) or "-") for i, row in enumerate(rows)]
    write_table(folder / "cpg_methylation.bed", listed, ("chromosome", "start", "end", "split", "label"))
    write_table(folder / "gene_finding.bed", rows, ("chromosome", "start", "end", "split"))
    found = find_tasks("bend", folder)
    assert list(found) == ["histone_modification", "cpg_methylation"]
    assert "gene_finding.bed: a label per base" in caplog.text
    tables = read_tables("bend", found["histone_modification"], genome=genome)
    assert [len(tables[name].rows) for name in tables] == [30, 6, 8] and tables["test"].labels == (
        "track1", "track2", "track3")  # fmt: skip
    assert [list(map(int, cells)) for cells in labels(tables["valid"])] == marks[30:36].tolist()
    assert texts(tables["test"])[1] == contigs["chr2"][40 * 37 : 40 * 37 + 32]
    other = read_tables("bend", found["cpg_methylation"], genome=genome)
    assert labels(other["test"])[0] == (listed[36][4],)
    with pytest.raises(UsageError, match="give -f FASTA"):
        read_tables("bend", found["histone_modification"])
    with h5py.File(folder / "histone_modification.hdf5", "w") as handle:
        handle["labels"] = marks[:40]
    with pytest.raises(DataError, match="40 rows of labels, the table beside it has 44"):
        read_tables("bend", found["histone_modification"], genome=genome)
    (folder / "histone_modification.hdf5").write_bytes(b"not HDF5")
    with pytest.raises(DataError, match="no labels can be read"):
        read_tables("bend", found["histone_modification"], genome=genome)
    (folder / "histone_modification.hdf5").unlink()
    with pytest.raises(SystemFault, match="no such file"):
        read_tables("bend", found["histone_modification"], genome=genome)


def test_tables_are_cut_by_their_sequences(tmp_path):
    drawn = draw(200, 1)
    path = write_table(tmp_path / "all.tsv", [*drawn, *((reverse_complement(t), c) for t, c in drawn[:60])])
    tables = read_tables("table", path)
    counts = [len(tables[name].rows) for name in ("train", "valid", "test")]
    assert sum(counts) == 260 and 30 < counts[2] < 75 and counts[1] > 5
    whole = {name: {min(t, reverse_complement(t)) for t in texts(tables[name])} for name in tables}
    assert not whole["train"] & whole["test"] and not whole["train"] & whole["valid"]
    assert texts(read_tables("table", path, seed=1)["test"]) != texts(tables["test"])
    rows = [(*row, ("train", "val", "test")[i % 3]) for i, row in enumerate(drawn)]
    path = write_table(tmp_path / "split.csv", rows, ("sequence", "label", "part"))
    tables = read_tables("table", path, columns=Columns(split="part"))
    assert texts(tables["valid"]) == [text for text, _ in drawn[1::3]]
    path = write_table(tmp_path / "none.csv", [(*row, "train") for row in drawn], ("sequence", "label", "part"))
    with pytest.raises(DataError, match="no row is for the test"):
        read_tables("table", path, columns=Columns(split="part"))
    with pytest.raises(DataError, match="too few"):
        split_by_sequence(Table("x", [Row("A", ("1",))], ("label",), ("name",)), 0.5, "")


def test_variant_tables(tmp_path):
    header = ("CHROM", "POS", "REF", "ALT", "label", "tissue", "split")
    rows = [("chr1", 10, "a", "G", 1, "Liver", "train"), ("chr2", 3, "AC", "A", 0, "Lung", "test")]
    found = read_variant_table(write_table(tmp_path / "v.csv", rows, header))
    assert [one[:7] for one in found] == [("chr1", 10, "A", "G", 1, "train", "Liver"), ("chr2", 3, "AC", "A", 0, "test",
                                                                                      "Lung")]  # fmt: skip
    other = write_table(
        tmp_path / "i.csv", [(*row[:4], row[4], row[6]) for row in rows], (*header[:4], "INT_LABEL", "split")
    )
    assert [one.label for one in read_variant_table(other)] == [1, 0] and read_variant_table(other)[0].tissue == ""
    for bad, words in (
        (("chr1", "x", "A", "G", 1, "", "train"), "v.csv:2: POS 'x'"),
        (("chr1", 5, "A", "<DEL>", 1, "", "train"), "v.csv:2: 'A' to '<DEL>'"),
        (("chr1", 5, "A", "G", 2, "", "train"), "label '2'"),
        (("chr1", 5, "A", "G", 1, "train"), "6 columns, the header has 7"),
    ):
        with pytest.raises(DataError, match=words):
            read_variant_table(write_table(tmp_path / "v.csv", [bad], header))
    with pytest.raises(DataError, match="no column 'ALT'"):
        read_variant_table(write_table(tmp_path / "v.csv", rows, ("CHROM", "POS", "REF", "X", "label", "t", "split")))
    with pytest.raises(DataError, match="no row"):
        read_variant_table(write_table(tmp_path / "v.csv", [], header))
