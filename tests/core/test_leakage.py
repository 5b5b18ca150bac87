"""What a run has read: against windows counted one by one, k-mers as text, and what cannot be told."""

import itertools
import shutil

import numpy as np
import pytest
import torch
from genome_files import bgzip, put, warnings_of
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import TINY_RUN, lay_out

from hybridna_core.commands import leakage as module
from hybridna_core.commands.leakage import leakage
from hybridna_core.commands.pretrain import pretrain
from hybridna_core.data import overlap
from hybridna_core.data.overlap import Read, find_kmers, kmers, read_sequences
from hybridna_core.errors import DataError, ModelError, UsageError
from hybridna_core.run_config import read_run
from hybridna_core.tokenizer import encode, reverse_complement
from hybridna_core.train.corpora import make_corpora, open_species, places_of

# Few windows, so that some of the genomes is never read.
SHORT = ["stage.0.steps=3", "stage.1.steps=2", "mixture.max_passes=1e9"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a finished run of 5 steps, and the places of its windows."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    path = lay_out(folder)
    pretrain(path, device="cpu", set=SHORT)
    config = read_run(path, SHORT)
    species = open_species(config)
    return folder / "out", list(places_of(config, make_corpora(config, species), 0, 5))


def table(path):
    header, *rows = (line.split("\t") for line in path.read_text().splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


def sequences(folder):
    """{(species, contig): text} of a run's genomes."""
    found = {}
    for name in ("bug", "bee"):
        for record in (folder / f"{name}.fa").read_text().split(">")[1:]:
            header, text = record.split("\n", 1)
            found[name, header.split()[0]] = text.replace("\n", "")
    return found


def read_bases(places, species, contig, length):
    """How often each base of a contig was read, counted window by window."""
    times = np.zeros(length, dtype=int)
    for place in places:
        if (place.species, place.contig) == (species, contig):
            times[place.start : place.end] += 1
    return times


# --- Intervals -------------------------------------------------------------------------------------------------------


def test_bed_rows_are_those_counted_base_by_base(run, tmp_path):
    folder, places = run
    lengths = {("bug", "c1"): 3000, ("bug", "c2"): 2000, ("bee", "c1"): 1500}
    rng = np.random.default_rng(0)
    lines, due = [], []
    for i in range(150):
        contig = "c2" if i % 3 == 0 else "c1"
        start = int(rng.integers(0, 1400))
        end = start + int(rng.integers(1, 100))
        lines.append(f"{contig}\t{start}\t{end}\tr{i}\n")
        for (species, name), length in lengths.items():
            if name != contig:
                continue
            times = read_bases(places, species, contig, length)[start:end]
            windows = sum(
                (p.species, p.contig) == (species, contig) and p.start < end and start < p.end for p in places
            )
            share = np.count_nonzero(times) / (end - start)
            due.append([contig, f"r{i}", species, "seen" if share else "unseen", windows, times.sum(), f"{share:.4f}"])
    bed = put(tmp_path, "".join(lines).encode(), "e.bed")
    summary = leakage(folder, bed, str(tmp_path / "out.tsv"))
    keys = ("contig", "name", "species", "status", "windows", "bases_read", "share")
    assert [[row[k] for k in keys] for row in table(tmp_path / "out.tsv")] == [[str(v) for v in row] for row in due]
    statuses = [row[3] for row in due]
    assert {"seen", "unseen"} == set(statuses)
    assert summary.rows == {s: statuses.count(s) for s in dict.fromkeys(statuses)}
    assert (summary.kind, summary.steps, summary.windows) == ("BED", 5, 3 * 4 + 2 * 2) and len(places) == 16


def test_the_first_steps_alone_and_one_species(run, tmp_path, caplog):
    folder, places = run
    bed = put(tmp_path, b"c1\t0\t1500\nc2\t0\t2000\n", "e.bed")
    leakage(folder, bed, str(tmp_path / "a.tsv"), steps=1, species="bug")
    assert not warnings_of(caplog, "several-species")
    for row in table(tmp_path / "a.tsv"):
        times = read_bases(places[:4], "bug", row["contig"], 3000)[: int(row["end"])]
        assert int(row["bases_read"]) == times.sum() and row["species"] == "bug"
    leakage(folder, bed, str(tmp_path / "b.tsv"), steps=0)
    assert {row["status"] for row in table(tmp_path / "b.tsv")} == {"unseen"}
    (said,) = warnings_of(caplog, "several-species")
    assert said == f"{bed}: 2 species have a contig c1: a row for each; --species names one"


def test_what_was_held_out_was_never_read(run, tmp_path):
    folder, _ = run
    leakage(folder, put(tmp_path, b"c2\t0\t900\n", "e.bed"), str(tmp_path / "o.tsv"), strict=True)
    assert [row["status"] for row in table(tmp_path / "o.tsv")] == ["unseen"]


def vcf(*lines):
    head = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    return (head + "".join("\t".join(map(str, line)) + "\t.\t.\t.\n" for line in lines)).encode()


def test_vcf_records(run, tmp_path):
    folder, places = run
    text = sequences(folder.parent)["bug", "c2"]
    times = read_bases(places, "bug", "c2", 2000)
    seen, unseen = int(np.flatnonzero(times)[0]), int(np.flatnonzero(times == 0)[-1])
    lines = [
        ("c2", seen + 1, "rs1", text[seen], "T"), ("c2", unseen + 1, ".", text[unseen], "G,C"),
        ("c2", seen, ".", text[seen - 1 : seen + 2], "A"), ("c2", 2001, ".", "A", "T"), ("c2", 0, ".", "N", "T"),
        ("c2", "x", ".", "A", "T"), ("chr9", 5, ".", "A", "T"),
    ]  # fmt: skip
    for name, content in (("e.vcf", vcf(*lines)), ("e.vcf.gz", bgzip(vcf(*lines)))):
        summary = leakage(folder, put(tmp_path, content, name), str(tmp_path / f"{name}.tsv"))
        rows = table(tmp_path / f"{name}.tsv")
        assert [(r["start"], r["status"], r["windows"]) for r in rows[:3]] == [
            (str(seen), "seen", str(times[seen])), (str(unseen), "unseen", "0"),
            (str(seen - 1), "seen", str(times[seen])),
        ]  # fmt: skip
        assert rows[0]["name"] == "rs1" and rows[2]["share"] == "0.6667"
        assert [r["status"] for r in rows[3:]] == ["out_of_range", "out_of_range", "bad_pos", "unknown_contig"]
        assert summary.rows == {"seen": 2, "unseen": 1, "out_of_range": 2, "bad_pos": 1, "unknown_contig": 1}


def test_another_assembly_is_noticed(run, tmp_path):
    text = sequences(run[0].parent)["bug", "c2"]
    other = {"A": "C", "C": "G", "G": "T", "T": "A"}
    lines = [("c2", i + 1, ".", other[text[i]] if i % 2 else text[i], "N") for i in range(60)]
    with pytest.raises(DataError, match="30 of 60 reference alleles differ from the genomes of the run; is it another"):
        leakage(run[0], put(tmp_path, vcf(*lines), "e.vcf"), str(tmp_path / "o.tsv"))
    assert not (tmp_path / "o.tsv").exists()
    lines = [(*line[:3], text[line[1] - 1], "N") if i > 15 else line for i, line in enumerate(lines)]
    leakage(run[0], put(tmp_path, vcf(*lines), "e.vcf"), str(tmp_path / "o.tsv"))


def test_contigs_that_no_species_has(run, tmp_path):
    bed = put(tmp_path, b"chrc2\t1000\t2000\nchrc2\t5\t9\n", "e.bed")
    with pytest.raises(DataError, match="no species has any of its contigs") as caught:
        leakage(run[0], bed, str(tmp_path / "o.tsv"))
    assert caught.value.exit_code == 3 and str(caught.value).startswith(f"{bed}:1: ")
    renames = put(tmp_path, b"chrc2 c2\n", "names")
    leakage(run[0], bed, str(tmp_path / "o.tsv"), rename_chrs=renames)
    assert table(tmp_path / "o.tsv")[0]["status"] == "seen"


def test_strict_and_min_share(run, tmp_path):
    bed = put(tmp_path, b"c2\t1000\t2000\nc2\t0\t100\n", "e.bed")
    with pytest.raises(DataError, match=r"1 of 2 rows were seen in training or not compared \(seen 1\)") as caught:
        leakage(run[0], bed, str(tmp_path / "o.tsv"), strict=True)
    assert caught.value.exit_code == 3 and len(table(tmp_path / "o.tsv")) == 2
    leakage(run[0], bed, str(tmp_path / "p.tsv"), strict=True, min_share=0.99)


# --- Sequences -------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(text=st.text("ACGTN", max_size=80), k=st.integers(1, 32))
def test_kmers_are_those_of_the_text(text, k):
    found, places = kmers(encode(text), k)
    due = [(i, text[i : i + k]) for i in range(len(text) - k + 1) if "N" not in text[i : i + k]]
    assert places.tolist() == [i for i, _ in due]
    words = [min(word, reverse_complement(word)) for _, word in due]
    numbers = [int("".join(str("ACGT".index(b)) for b in word), 4) for word in words]
    assert found.tolist() == numbers


def test_sequences_against_what_was_read(run, tmp_path, monkeypatch):
    folder, places = run
    texts = sequences(folder.parent)
    k = 20
    words = set()
    for place in places:
        window = texts[place.species, place.contig][place.start : place.end]
        words |= {window[i : i + k] for i in range(len(window) - k + 1)}
    words |= {reverse_complement(word) for word in words}
    window = next(p for p in places if p.species == "bee")
    whole = texts["bee", "c1"][window.start : window.end]
    records = {
        "whole": whole, "backwards": reverse_complement(whole).lower(), "half": whole[:40] + "ACGT" * 30,
        "held": texts["bug", "c2"][:900], "new": "".join(np.random.default_rng(9).choice(list("ACGT"), 3000)),
        "bug": texts["bug", "c1"], "short": whole[:19], "n": "N" * 50, "gap": whole[:30] + "N" + whole[31:],
    }  # fmt: skip
    fasta = "".join(f">{name} words\n{text[:70]}\n{text[70:]}\n" for name, text in records.items())
    due = []
    for name, text in records.items():
        parts = [text.upper()[i : i + k] for i in range(len(text) - k + 1)]
        parts = [part for part in parts if "N" not in part]
        seen = sum(part in words for part in parts)
        status = "seen" if seen else "unseen"
        if not parts:
            status = "too_short" if len(text) < k else "too_many_n"
        due.append([name, str(len(text)), status, str(len(parts)), str(seen) if parts else "."])
    for at_once in (2**24, 100, 1000):
        monkeypatch.setattr(overlap, "KMERS_AT_ONCE", at_once)
        monkeypatch.setattr(overlap, "PIECE", 50 if at_once == 100 else 2**21)
        leakage(folder, put(tmp_path, fasta.encode(), "e.fa"), str(tmp_path / "o.tsv"), kmer=k, force=True)
        rows = table(tmp_path / "o.tsv")
        assert [[r[c] for c in ("name", "length", "status", "kmers", "kmers_seen")] for r in rows] == due
    shares = {r["name"]: r["share"] for r in rows}
    assert shares["whole"] == shares["backwards"] == "1.0000" and shares["new"] == "0.0000" and shares["n"] == "."


def test_words_across_the_end_of_a_contig_were_never_read():
    class Store:
        def ids(self, start, end):
            return encode("ACGTACGGTTCA"[start:end])

    # Two windows side by side, of two contigs as it may be.
    read = Read(Store(), [(np.array([0, 6]), 6)])
    assert read.starts.tolist() == [0, 6]
    wanted = np.unique(kmers(encode("TACGGTT"), 4)[0])
    due = {int(word) for window in ("ACGTAC", "GGTTCA") for word in kmers(encode(window), 4)[0]}
    found = find_kmers(wanted, [read], 4).tolist()
    assert found == [int(word) in due for word in wanted] and True in found and False in found


def test_fasta_that_is_none(tmp_path):
    for content, words in ((b"ACGT\n", "text before the first"), (b">a\nAC GT\n", "letters only"), (b">\nA\n", "name")):
        with pytest.raises(DataError, match=words):
            list(read_sequences(put(tmp_path, content)))


# --- What cannot be told ---------------------------------------------------------------------------------------------


def test_folders_and_options_that_do_not_do(run, tmp_path):
    bed = put(tmp_path, b"c1\t0\t9\n", "e.bed")
    with pytest.raises(ModelError, match="not the folder of a run"):
        leakage(tmp_path, bed)
    for options, words in (
        ({"kmer": 7}, "--kmer: is 7"), ({"kmer": 33}, "is 33"), ({"min_share": 1.0}, "--min-share"),
        ({"steps": 6}, "--steps: is 6, but 5 steps were done"), ({"species": "cow"}, "no species 'cow'"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            leakage(run[0], bed, str(tmp_path / "o.tsv"), **options)
    with pytest.raises(DataError, match="looks like PDF, not VCF, BED or FASTA"):
        leakage(run[0], put(tmp_path, b"%PDF-1.4 something", "x"), str(tmp_path / "o.tsv"))
    with pytest.raises(UsageError, match="the output is the input"):
        leakage(run[0], bed, bed, force=True)
    assert not (tmp_path / "o.tsv").exists()


def test_another_run_file_or_genome_is_noticed(run, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(run[0].parent, folder)
    bed = put(tmp_path, b"c2\t0\t9\n", "e.bed")
    # The record still leads to the first folder's run file.
    leakage(folder / "out", bed, str(tmp_path / "o.tsv"))
    leakage(folder / "out", bed, str(tmp_path / "o.tsv"), run_file=str(folder / "run.toml"), force=True)
    (folder / "run.toml").write_text("seed = 1\n" + TINY_RUN)
    with pytest.raises(DataError, match="are not those that were trained on"):
        leakage(folder / "out", bed, str(tmp_path / "o.tsv"), run_file=str(folder / "run.toml"), force=True)
    (folder / "run.toml").write_text(TINY_RUN)
    (folder / "bug.fa").write_text((folder / "bug.fa").read_text().replace("A", "C", 1))
    with pytest.raises(DataError, match="the genomes, or what is held out of them, are not those"):
        leakage(folder / "out", bed, str(tmp_path / "o.tsv"), run_file=str(folder / "run.toml"), force=True)


def test_merging():
    found = Read(None, [(np.array([5, 0, 30]), 10), (np.array([12]), 4)])
    assert list(itertools.chain(*zip(found.starts.tolist(), found.ends.tolist(), strict=True))) == [0, 16, 30, 40]
    assert found.covered(0, 50) == 26 and found.covered(14, 31) == 3 and found.windows(14, 31) == (3, 4)
    assert module.SEQUENCE_COLUMNS[0] == "name"
