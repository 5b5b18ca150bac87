"""saturate: the numbers of score-variants, one line per change, in order, with an index; what is left out is told."""

import random
from pathlib import Path

import pysam
import pytest
from genome_files import put, warnings_of
from toys import random_model

import hybridna_core
from hybridna_core.commands import saturate as module
from hybridna_core.commands.saturate import saturate
from hybridna_core.commands.score_variants import score_variants
from hybridna_core.data.inputs import read_chunks
from hybridna_core.errors import DataError, SystemFault, UsageError

SEQUENCE = "".join(random.Random(6).choices("ACGT", k=600))
CONTIGS = {"chr1": SEQUENCE[:300] + "AAAA" + SEQUENCE[300:], "chr2": SEQUENCE[:30] + "N" + SEQUENCE[30:45], "one": "G"}
COLUMNS = ["#chrom", "pos", "ref", "alt", "llr", "edge", "status"]


@pytest.fixture(scope="module")
def model():
    return random_model(4)


@pytest.fixture(autouse=True)
def genome(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return put(tmp_path, "".join(f">{name}\n{text}\n" for name, text in CONTIGS.items()).encode(), "ref.fa")


def run(regions, model, output="out.tsv", **options):
    return saturate(regions, "ref.fa", output, model=model, **{"window": 64, "force": True, **options})


def rows(path="out.tsv"):
    """Lines of a table as lists, the column names first, ## lines left out."""
    lines = b"".join(read_chunks(path)).decode().splitlines()
    return [line.split("\t") for line in lines if not line.startswith("##")]


def test_the_numbers_of_score_variants(model):
    summary = run("chr1:297-306", model, deletions=True, per_strand=True)
    names, *found = rows()
    assert names == [*COLUMNS, "fwd", "rev"] and len(found) == summary.alleles == summary.scored == 40
    header = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    lines = [f"{chrom}\t{pos}\t.\t{ref}\t{alt}\t.\t.\t.\n" for chrom, pos, ref, alt, *_ in found]
    Path("all.vcf").write_text(header + "".join(lines))
    score_variants("all.vcf", "ref.fa", "all.tsv", model=model, window=64, stride=8, per_strand=True)
    names, *due = rows("all.tsv")
    assert names == [*COLUMNS[:4], "id", *COLUMNS[4:], "fwd", "rev"]
    assert [row[:4] + row[5:] for row in due] == found
    # Each base to each other one, then the next one away: sorted by position.
    assert [row[3] for row in found if row[1] == "298" and len(row[2]) == 1] == list("ACGT".replace(SEQUENCE[297], ""))
    assert [int(row[1]) for row in found] == sorted(int(row[1]) for row in found)
    # One contig without one of the four As, however it is spelt.
    away = [row[4] for row in found if len(row[2]) == 2 and row[2][1] == "A" and 300 <= int(row[1]) <= 303]
    assert len(away) == 4 and len(set(away)) == 1


def test_contig_ends_and_unknown_bases(model):
    summary = run("chr2", model, deletions=True)
    found = rows()[1:]
    first, last = SEQUENCE[:2], SEQUENCE[43:45]
    assert found[0][:4] == ["chr2", "1", first, first[1]] and found[0][5] == "1"
    assert ["chr2", "45", last, last[0]] in [row[:4] for row in found]
    marked = [row[1:6] for row in found if row[6] == "ambiguous_ref"]
    before, behind = SEQUENCE[29], SEQUENCE[30]
    assert marked == [
        ["30", before + "N", before, ".", "."], ["31", "N", ".", ".", "."], ["31", "N" + behind, "N", ".", "."]
    ]  # fmt: skip
    assert len(found) == summary.alleles == 3 * 45 + 46 + 1 and summary.statuses["ambiguous_ref"] == 3
    # A contig of one base cannot be deleted from a VCF's point of view.
    assert run("one", model, deletions=True).alleles == 3


def test_index(model):
    Path("r.bed").write_text("chr1\t9\t12\nchr1\t299\t304\nchr2\t4\t5\n")
    run("r.bed", model, "out.tsv.gz", write_index=True, deletions=True)
    with pysam.TabixFile("out.tsv.gz") as table:
        assert list(table.contigs) == ["chr1", "chr2"] and len(list(table.fetch())) == 4 * 9
        found = [line.split("\t") for line in table.fetch("chr1", 301, 302)]
        assert {row[1] for row in found} == {"302"} and len(found) == 4
    assert rows("out.tsv.gz")[1:] == [line.split("\t") for line in pysam.TabixFile("out.tsv.gz").fetch()]
    for output in ("out.tsv", "-"):
        with pytest.raises(UsageError, match="--write-index: an index is made for a bgzip table"):
            run("r.bed", model, output, write_index=True)
    for text, line in (("chr1\t9\t12\nchr1\t3\t4\n", 2), ("chr1\t3\t4\nchr2\t3\t4\nchr1\t9\t12\n", 3)):
        Path("r.bed").write_text(text)
        with pytest.raises(DataError, match=rf"r\.bed:{line}: records are not sorted"):
            run("r.bed", model, "new.tsv.gz", write_index=True)
        assert not list(Path().glob("new.tsv.gz*"))


def test_regions_keep_their_order_and_doubles(model):  # B20, B21
    Path("r.bed").write_text("chr1\t90\t92\nchr1\t20\t21\nchr1\t90\t92\n")
    summary = run("r.bed", model)
    found = rows()[1:]
    assert [int(row[1]) for row in found] == [91] * 3 + [92] * 3 + [21] * 3 + [91] * 3 + [92] * 3
    assert found[:6] == found[-6:] and (summary.regions, summary.bases, summary.left_out) == (3, 5, {})
    run("chr1:21-21", model, "one.tsv")
    assert rows("one.tsv")[1:] == found[6:9]


def test_regions_that_do_not_fit_are_told(model, caplog):  # B9, B11, B12
    Path("r.bed").write_text("chr1\t5\t5\nchr1\t600\t700\nchr9\t1\t2\nchr1\t5\t6\n")
    summary = run("r.bed", model)
    assert summary.left_out == {"empty_region": 1, "out_of_range": 1, "unknown_contig": 1}
    assert (summary.regions, summary.alleles) == (4, 3) and len(rows()) == 4
    assert len(warnings_of(caplog, "out_of_range")) == len(warnings_of(caplog, "unknown_contig")) == 1
    assert run("r.bed", model, clip=True).bases == 5
    with pytest.raises(DataError, match="3 regions were left out, 0 alleles have no score") as caught:
        run("r.bed", model, strict=True)
    assert caught.value.exit_code == 3
    with pytest.raises(DataError, match="0 regions were left out, 1 alleles have no score"):
        run("chr2:31-32", model, strict=True)


def test_dry_run_counts_what_is_read(model, monkeypatch):
    due = run("chr1:280-288", model, deletions=True)
    monkeypatch.setattr(module, "load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    monkeypatch.setattr(module, "read_config", lambda name: model.config)
    Path("out.tsv").unlink()
    summary = run("chr1:280-288", "base", deletions=True, dry_run=True)
    assert (summary.tokens, summary.alleles) == (due.tokens, due.alleles) and not Path("out.tsv").exists()
    assert summary.memory.startswith("about ") and "memory" not in due.to_dict()


def test_neighbours_share(model):
    """The reference is read once for eight places; alone each would read it for itself."""
    tokens = {stride: run("chr1:201-240", model, window=128, stride=stride).tokens for stride in (1, 8)}
    # Per direction and place 1 + 64 before, 64 of the reference, three times 64 of the alternatives.
    assert tokens[1] == 2 * 40 * (65 + 64 + 3 * 64)
    assert tokens[8] == 2 * (6 * 129 + 3 * (40 * 64 + 5 * 28))


def test_header_lines(model):
    run("chr1:5-6", model)
    run("chr1:5-6", model, "plain.tsv", no_version=True)
    first, second, third = Path("out.tsv").read_text().splitlines()[:3]
    assert first.startswith("##hybridna=<ID=run,Version=") and 'Horizon=32,Stride=8,Strands="both"' in first
    assert 'ReferenceMD5="chr1:' in first and "Prefix" not in first
    words = "saturate --fasta-ref ref.fa --model toy --window 64 --horizon 32 --stride 8 chr1:5-6"
    assert second == f"##hybridna_saturateCommand={words}"
    assert third.split("\t") == COLUMNS
    assert Path("plain.tsv").read_text().splitlines() == Path("out.tsv").read_text().splitlines()[2:]


def test_genome_that_changes_while_running(model, monkeypatch):
    original = module.change_base

    def meddle(*arguments):
        Path("ref.fa").write_text(Path("ref.fa").read_text() + "\n")
        return original(*arguments)

    monkeypatch.setattr(module, "change_base", meddle)
    with pytest.raises(DataError, match="changed since the start"):
        run("chr1:5-6", model)
    assert not Path("out.tsv").exists()


def test_output_rules(model):
    for output in ("out.vcf", "out.txt", "out"):
        with pytest.raises(UsageError, match=r"the output is a table; end its name in \.tsv or \.tsv\.gz"):
            run("chr1:5-6", model, output)
    Path("r.tsv").write_text("chr1\t5\t6\n")
    with pytest.raises(UsageError, match=r"the output is the input r\.tsv"):
        run("r.tsv", model, "r.tsv")
    with pytest.raises(UsageError, match="exists already; give --force"):
        run("chr1:5-6", model, "r.tsv", force=False)
    Path("folder").mkdir()
    with pytest.raises(UsageError, match="the output is a folder"):
        run("chr1:5-6", model, "folder")
    with pytest.raises(SystemFault, match=r"the folder .*absent does not exist"):
        run("chr1:5-6", model, "absent/out.tsv")
    if Path("/dev/full").exists():
        with pytest.raises(SystemFault, match="No space left"):
            run("chr1:5-6", model, "/dev/full")
    for options, option in (({"stride": 0}, "stride"), ({"window": 0}, "window"), ({"horizon": 65}, "horizon")):
        with pytest.raises(UsageError, match=f"--{option}: is "):
            run("chr1:5-6", model, **options)


def test_region_strings(model):
    for text, words in (
        ("chr3:1-5", "no contig 'chr3'"), ("chr1:0-5", "begins at 0"), ("chr1:1-605", "passes the end"),
        ("chr1:x", "is not a whole number"), ("absent.fa", "no contig"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            run(text, model)
    assert hybridna_core.saturate is saturate
