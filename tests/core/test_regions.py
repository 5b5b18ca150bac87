"""BED and region strings: coordinates, statuses, and each fault of group B that a reader meets."""

import gzip
import os
import shutil
import tracemalloc

import pytest
from genome_files import bgzip, put, warnings_of

from hybridna_core.data.genome import open_genome
from hybridna_core.data.inputs import BGZF_EOF
from hybridna_core.data.regions import Region, is_bed_name, parse_region, read_bed
from hybridna_core.errors import DataError, HybriDNAError, SystemFault, UsageError

FASTA = b">chr1\n" + b"ACGTACGTAC\n" * 10 + b">chr2\n" + b"ACGTACGTAC\n" * 2 + b">MT\nACGT\n"


@pytest.fixture
def genome(tmp_path):
    with open_genome(put(tmp_path, FASTA)) as opened:
        yield opened


def read(tmp_path, content, genome=None, name="r.bed", **options):
    content = content.encode() if isinstance(content, str) else content
    return list(read_bed(put(tmp_path, content, name), genome, **options))


def refuse(tmp_path, content, *words, kind=DataError, genome=None, **options):
    with pytest.raises(kind) as caught:
        read(tmp_path, content, genome, **options)
    for word in words:
        assert word in str(caught.value)


def test_columns_and_coordinates(tmp_path, genome):
    found = read(tmp_path, "chr1\t0\t10\tfirst\t7\t-\textra\nchr2\t19\t20\nchr1\t5\t6\tn\t0\t.\n", genome)
    assert found == [
        Region("chr1", 0, 10, "-", "first", "7", "ok", 1),
        Region("chr2", 19, 20, "+", ".", ".", "ok", 2),
        Region("chr1", 5, 6, "+", "n", "0", "ok", 3),
    ]
    assert found[0].length == 10


def test_compressed_is_the_same_as_plain(tmp_path):
    content = b"chr1\t0\t10\tx\nchr2\t1\t2\n" * 50
    plain = read(tmp_path, content)
    assert len(plain) == 100
    assert read(tmp_path, bgzip(content), name="b.bed.gz") == plain
    assert read(tmp_path, gzip.compress(content), name="g.bed.gz") == plain
    two = gzip.compress(content[:300]) + gzip.compress(content[300:])
    assert read(tmp_path, two, name="two.bed.gz") == plain


def test_standard_input(tmp_path, monkeypatch):
    path = put(tmp_path, b"chr1\t0\t10\n", "r.bed")
    with open(path) as handle:
        monkeypatch.setattr("sys.stdin", handle)
        assert [r.end for r in read_bed("-")] == [10]
        assert not handle.closed
    with pytest.raises(UsageError, match="standard input is closed"):
        list(read_bed("-"))


def test_terminal_is_no_input(monkeypatch):
    leader, follower = os.openpty()
    with open(follower) as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        with pytest.raises(UsageError, match="standard input is a terminal"):
            list(read_bed("-"))
    os.close(leader)


@pytest.mark.parametrize("content", ["", "# only\n\n#comments\n", "track name=x\nbrowser position chr1:1-2\n"])
def test_b1_b2_no_regions(tmp_path, caplog, content):
    assert read(tmp_path, content) == []
    assert warnings_of(caplog, "empty-input") == [f"{tmp_path}/r.bed: 0 regions"]


def test_b2_comments_and_tracks_are_skipped(tmp_path):
    content = "browser position chr1\ntrack name=x\n#c\nchr1\t1\t2\n\ntrack\tname=y\n  \nchr1\t3\t4\n"
    assert [(r.start, r.line) for r in read(tmp_path, content)] == [(1, 4), (3, 8)]
    assert [r.contig for r in read(tmp_path, "tracks\t1\t2\nbrowser1\t1\t2\n")] == ["tracks", "browser1"]


@pytest.mark.parametrize("header", ["chrom\tstart\tend", "chrom\tchromStart\tchromEnd\tname", "a\t\t"])
def test_b3_column_header(tmp_path, header):
    refuse(tmp_path, f"{header}\nchr1\t1\t2\n", "r.bed:1: line 1 is not a region", "start a header line with '#'")
    refuse(tmp_path, f"chr1\t1\t2\n{header}\n", "r.bed:2: column 2 (start)", "not a whole number")


def test_b4_few_columns(tmp_path):
    refuse(tmp_path, "chr1\t1\t2\nchr1\t5\n", "r.bed:2: 2 columns, at least three")
    refuse(tmp_path, "hello\n", "r.bed:1: 1 column, at least three")


def test_b5_blanks(tmp_path):
    refuse(tmp_path, "chr1 1 2\n", "r.bed:1: columns are separated by blanks", "tabs")


@pytest.mark.parametrize("text", ["ten", "10.5", "1e3", "1,000", "", " 10", "+10", "١٠", "1_0", "0x10"])
def test_b6_no_whole_number(tmp_path, text):
    refuse(tmp_path, f"chr1\t1\t20\nchr1\t{text}\t2000\n", "r.bed:2: column 2 (start)", "not a whole number")
    refuse(tmp_path, f"chr1\t1\t{text}\n", "r.bed:1: column 3 (end)", "not a whole number")


def test_b7_negative(tmp_path):
    refuse(tmp_path, "chr1\t-1\t5\n", "r.bed:1: column 2 (start): -1 is negative", "BED counts from 0")


def test_b8_reversed(tmp_path):
    refuse(tmp_path, "chr1\t9\t5\n", "r.bed:1: start 9 is after end 5")


def test_b9_empty_region(tmp_path, genome):
    content = "chr1\t5\t5\nchr9\t5\t5\nchr1\t100\t100\nchr1\t900\t900\nchr1\t1\t2\n"
    statuses = [r.status for r in read(tmp_path, content, genome)]
    assert statuses == ["empty_region", "unknown_contig", "empty_region", "empty_region", "ok"]
    assert [r.status for r in read(tmp_path, content)] == ["empty_region"] * 4 + ["ok"]


@pytest.mark.parametrize("number", [str(2**63), str(2**64), "9" * 30, "9" * 5000])
def test_b10_over_64_bits(tmp_path, number):
    refuse(tmp_path, f"chr1\t1\t{number}\n", "r.bed:1: column 3 (end)", "over 64 bits")
    assert read(tmp_path, f"chr1\t1\t{2**63 - 1}\n")[0].end == 2**63 - 1


def test_b11_past_the_contig(tmp_path, genome):
    content = "chr2\t15\t21\nchr2\t15\t20\nchr2\t20\t25\n"
    assert [r.status for r in read(tmp_path, content, genome)] == ["out_of_range", "ok", "out_of_range"]
    clipped = read(tmp_path, content, genome, clip=True)
    assert [(r.start, r.end, r.status) for r in clipped] == [
        (15, 20, "ok"),
        (15, 20, "ok"),
        (20, 25, "out_of_range"),
    ]


def test_b12_unknown_contigs(tmp_path, genome):
    statuses = [r.status for r in read(tmp_path, "chr3\t1\t2\nchr1\t1\t2\n1\t1\t2\n", genome)]
    assert statuses == ["unknown_contig", "ok", "unknown_contig"]
    refuse(tmp_path, "chr3\t1\t2\nx\t1\t2\n", "r.bed:1", "no region has a contig of", "did you mean", genome=genome)


def test_b13_other_naming(tmp_path, genome):
    content = "1\t1\t2\nchrM\t1\t2\n2\t0\t5\n"
    refuse(tmp_path, content, "named otherwise", "(1, there chr1)", "--rename-chrs", genome=genome)
    renames = {"1": "chr1", "2": "chr2", "chrM": "MT"}
    found = read(tmp_path, content, genome, renames=renames)
    assert [(r.contig, r.status) for r in found] == [("chr1", "ok"), ("MT", "ok"), ("chr2", "ok")]


def test_b14_line_ends_and_trailing_tabs(tmp_path):
    right = read(tmp_path, "chr1\t1\t2\nchr2\t3\t4\n")
    for content in ("chr1\t1\t2\r\nchr2\t3\t4\r\n", "chr1\t1\t2\t\nchr2\t3\t4\t\t\n", "chr1\t1\t2\nchr2\t3\t4"):
        assert read(tmp_path, content) == right


def test_b15_byte_order_mark(tmp_path):
    assert read(tmp_path, b"\xef\xbb\xbfchr1\t1\t2\n")[0].contig == "chr1"


def test_b16_strand(tmp_path):
    for strand in ("*", "1", "plus", "+-"):
        content = f"chr1\t1\t2\tn\t0\t{strand}\n"
        refuse(tmp_path, content, "r.bed:1: strand", repr(strand))
        assert read(tmp_path, content, use_strand=False)[0].strand == "+"


def test_b17_strand_absent(tmp_path):
    assert {r.strand for r in read(tmp_path, "chr1\t1\t2\nchr1\t1\t2\tn\t0\n")} == {"+"}


def test_b20_duplicates_stay(tmp_path):
    assert [r.line for r in read(tmp_path, "chr1\t1\t2\tx\nchr1\t1\t2\tx\nchr1\t0\t1\tx\n")] == [1, 2, 3]


def test_b21_memory_is_flat(tmp_path):
    path = str(tmp_path / "long.bed")
    with open(path, "w") as handle:
        for i in range(0, 200000, 20000):
            handle.write("".join(f"chr{j % 7}\t{j}\t{j + 100}\tname_{j}\n" for j in range(i, i + 20000)))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_bed(path)) == 200000
        # One piece of 256 KiB and its lines, where the file has 5 MiB.
        assert tracemalloc.get_traced_memory()[1] < 3 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"\xeb\xf2\x89\x87" + bytes(60), "bigBed"),
        (b"PK\x03\x04" + bytes(60), "xlsx"),
        (bgzip(b"BAM\x01" + bytes(60)), "BAM"),
        (gzip.compress(b"##fileformat=VCFv4.2\n", mtime=0), "VCF"),
        (b"##gff-version 3\nchr1\n", "GFF"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
        (b">chr1\nACGT\n", "FASTA"),
    ],
)
def test_b22_other_formats(tmp_path, content, word):
    refuse(tmp_path, content, "looks like", word, "not BED")


def test_b22_binary_without_a_name(tmp_path):
    refuse(tmp_path, b"chr1\t1\t2\n\0\0\0\n", "r.bed:2: binary content")
    refuse(tmp_path, b"chr1\t1\t2\nchr\xff\t1\t2\n", "r.bed:2: not UTF-8 at column 4")


def test_b23_truncated_compression(tmp_path):
    content = b"chr1\t0\t10\tx\nchr2\t1\t2\n" * 50
    whole = bgzip(content, 100)
    refuse(tmp_path, whole[: -len(BGZF_EOF)], "may be truncated")
    assert len(read(tmp_path, whole[: -len(BGZF_EOF)], allow_missing_eof=True)) == 100
    refuse(tmp_path, whole[:200], "cut inside")
    flipped = bytearray(whole)
    flipped[30] ^= 1
    refuse(tmp_path, bytes(flipped), "damaged")
    plain = gzip.compress(content)
    refuse(tmp_path, plain[:-10], "cut at byte")
    flipped = bytearray(plain)
    flipped[-6] ^= 1
    refuse(tmp_path, bytes(flipped), "damaged")


def test_b24_no_final_newline(tmp_path, caplog):
    assert len(read(tmp_path, "chr1\t1\t2\nchr1\t1\t2")) == 2
    assert warnings_of(caplog, "no-newline") == [
        f"{tmp_path}/r.bed:2: the file does not end in a newline; is it complete?"
    ]
    refuse(tmp_path, "chr1\t1\t2\nchr1\t1", "r.bed:2: 2 columns")


def test_missing_file(tmp_path):
    put(tmp_path, b"", "regions.bed")
    with pytest.raises(SystemFault, match=r"no such file; did you mean .*regions\.bed"):
        list(read_bed(tmp_path / "region.bed"))


def test_every_shared_edge_case_ends_well(shared_data, tmp_path):
    files = [p for p in sorted((shared_data / "edge_bed").rglob("*")) if p.is_file()]
    opened = refused = 0
    for file in files:
        try:
            for region in read_bed(file):
                assert 0 <= region.start <= region.end and region.contig
            opened += 1
        except HybriDNAError as error:
            assert error.exit_code == 3
            refused += 1
    assert opened > 80 and refused > 10


def test_shared_annotation_fits_its_genome(shared_data, tmp_path):
    for suffix in ("", ".fai", ".gzi"):
        shutil.copy(shared_data / "genomes" / "fungi" / f"scerevisiae_r64.fa.gz{suffix}", tmp_path)
    with open_genome(tmp_path / "scerevisiae_r64.fa.gz") as genome:
        found = list(read_bed(shared_data / "annotation" / "scerevisiae_r64.cds.bed.gz", genome))
        assert len(found) > 6000 and {r.status for r in found} == {"ok"}
        # The first exon of a gene of the forward strand begins with ATG.
        starts = [genome.fetch(r.contig, r.start, r.start + 3) for r in found if r.strand == "+"]
        assert starts.count("ATG") > 0.9 * len(starts)


# --- Region strings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("chr1:1-10", ("chr1", 0, 10)),
        ("chr1:100-100", ("chr1", 99, 100)),
        ("chr1:91", ("chr1", 90, 100)),
        ("chr1:91-", ("chr1", 90, 100)),
        ("chr2", ("chr2", 0, 20)),
        ("{chr2}:2-3", ("chr2", 1, 3)),
    ],
)
def test_region_string(genome, text, region):
    assert tuple(parse_region(text, genome))[:3] == region


def test_region_string_without_a_genome():
    assert tuple(parse_region("chr1:1,000-2,000"))[:3] == ("chr1", 999, 2000)
    assert parse_region("chr1").end == 2**63 - 1


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "names no contig"),
        (":1-5", "names no contig"),
        ("chr1:", "no beginning"),
        ("chr1:-5", "no beginning"),
        ("chr1:0-5", "begins at 0"),
        ("chr1:9-5", "ends before it begins"),
        ("chr1:a-5", "'a' is not a whole number"),
        ("chr1:1-101", "passes the end of chr1 (100 bp)"),
        ("chr11:1-5", "did you mean chr1?"),
        ("chr1:1-5-9", "'5-9' is not a whole number"),
    ],
)
def test_region_string_refused(genome, text, word):
    with pytest.raises(UsageError) as caught:
        parse_region(text, genome)
    assert word in str(caught.value)


def test_region_string_with_a_colon_in_the_name(tmp_path):
    with open_genome(put(tmp_path, b">chr1:1-50\nACGTACGT\n>chr1\nACGT\n>chr2:5-9\nACGT\n", "c.fa")) as genome:
        assert tuple(parse_region("chr2:5-9", genome))[:3] == ("chr2:5-9", 0, 4)
        assert tuple(parse_region("chr2:5-9:2-3", genome))[:3] == ("chr2:5-9", 1, 3)
        with pytest.raises(UsageError, match="can be read in two ways"):
            parse_region("chr1:1-50", genome)
        assert tuple(parse_region("{chr1:1-50}", genome))[:3] == ("chr1:1-50", 0, 8)
        assert tuple(parse_region("{chr1}:1-4", genome))[:3] == ("chr1", 0, 4)


def test_bed_names():
    assert [is_bed_name(p) for p in ("a.bed", "a.bed.gz", "a.txt", "bed")] == [True, True, False, False]
