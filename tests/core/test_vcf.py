"""VCF and BCF in and out: every byte kept, every broken structure told, rows of faults.md group C.

bytes on disk -> VcfReader -> Records -> VcfWriter -> the same bytes but for what was added
"""

import gzip
import os
import threading
import zlib
from pathlib import Path

import pysam
import pysam.bcftools
import pytest
from genome_files import bgzip, block, put, warnings_of

from hybridna_core.data import inputs
from hybridna_core.data.inputs import BGZF_EOF
from hybridna_core.data.vcf import Header, Record, VcfReader, check_index, merge_regions, read_regions
from hybridna_core.data.vcf_output import BgzfWriter, VcfWriter, build_index, choose_output_type
from hybridna_core.errors import DataError, HybriDNAError, SystemFault, UsageError

HEADER = (
    b"##fileformat=VCFv4.2\n"
    b'##INFO=<ID=DP,Number=1,Type=Integer,Description="a \\"depth\\", of reads">\n'
    b'##INFO=<ID=END,Number=1,Type=Integer,Description="End">\n'
    b'##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n'
    b"##contig=<ID=1,length=1000>\n##contig=<ID=HLA-A*01:01,length=50,assembly=x>\n"
    b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
)
LINES = [
    b"1\t10\trs1\tA\tC,G\t.\tPASS\tDP=3",
    b"1\t20\t.\tAC\tA\t30\t.\t.",
    b"1\t30\t.\tT\t<DEL>\t.\tPASS\tEND=400;DP=1",
    b"1\t500\t.\tG\t.\t1e-3\tPASS\tDP=2",
]
TEXT = HEADER + b"".join(line + b"\n" for line in LINES)


def read_all(path, **options):
    with VcfReader(str(path), **options) as reader:
        return reader.header, list(reader.records())


def refusal(path, kind=DataError, **options):
    with pytest.raises(kind) as caught:
        read_all(path, **options)
    return str(caught.value).removeprefix(str(path))


def copy(source, target, kind, added="X=1"):
    with VcfReader(str(source)) as reader, open(target, "wb") as handle:
        header = reader.header.extended(['##INFO=<ID=X,Number=1,Type=Integer,Description="x">'])
        with VcfWriter(handle, kind, header) as writer:
            for record in reader.records():
                writer.write_record(record, added)
    return str(target)


@pytest.fixture
def vcf(tmp_path):
    return put(tmp_path, TEXT, "in.vcf")


@pytest.fixture
def indexed(tmp_path):
    path = put(tmp_path, bgzip(TEXT), "in.vcf.gz")
    pysam.tabix_index(path, preset="vcf", force=True, keep_original=True)
    return path


@pytest.fixture
def bcf(tmp_path, vcf):
    path = str(tmp_path / "in.bcf")
    pysam.bcftools.view("-Ob", "-o", path, vcf, catch_stdout=False)
    return path


# --- Reading ---------------------------------------------------------------------------------------------------------


def test_header_and_records(vcf):
    header, records = read_all(vcf)
    assert header.contigs == {"1": 1000, "HLA-A*01:01": 50}
    assert header.ids("INFO") == ["DP", "END"] and header.ids("FORMAT") == ["GT"]
    assert next(header.declarations("INFO")).fields["Description"] == 'a \\"depth\\", of reads'
    assert [record.number for record in records] == [8, 9, 10, 11]
    first, _, third, last = records
    assert (first.contig, first.pos, first.ref, first.alts) == ("1", 10, "A", ["C", "G"])
    assert third.info("END") == "400" and third.info("DP") == "1" and third.info("ND") is None
    assert last.alts == []


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bgzip])
def test_plain_gzip_and_bgzip_read_alike(tmp_path, pack):
    header, records = read_all(put(tmp_path, pack(TEXT), "in.vcf"))
    assert header.to_bytes() == HEADER
    assert b"".join(b"\t".join(record.columns) + b"\n" for record in records) == TEXT[len(HEADER) :]


def test_bcf_reads_as_its_text(vcf, bcf):
    assert [r.columns for r in read_all(bcf)[1]] == [line.replace(b"1e-3", b"0.001").split(b"\t") for line in LINES]


def test_uncompressed_bcf(tmp_path, vcf):
    path = str(tmp_path / "u.bcf")
    pysam.bcftools.view("-Ou", "-o", path, vcf, catch_stdout=False)
    raw = b"".join(inputs.read_chunks(path))
    assert [r.pos for r in read_all(put(tmp_path, raw, "raw.bcf"))[1]] == [10, 20, 30, 500]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "the file is empty; was the download complete?"),  # C1
        (b"<!DOCTYPE html><html>", "looks like an HTML page (a failed download?), not VCF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "looks like a Git LFS pointer"),
        (b">chr1\nACGT\n", "looks like FASTA, not VCF"),
        (b"##gff-version 3\nx\n", "looks like GFF, not VCF"),
        (b"1\t10\t.\tA\tC\t.\t.\t.\n", "not VCF: it begins with '1 10 . A C . . .'; a VCF begins with ##fileformat"),
        (b"##fileformat=VCFv4.2\n", "no #CHROM line; is the file complete?"),  # C3
    ],
)
def test_not_a_vcf(tmp_path, content, message):
    assert message in refusal(put(tmp_path, content, "in.vcf"))
    if content:
        assert message in refusal(put(tmp_path, bgzip(content), "in.vcf.gz"))


@pytest.mark.parametrize(
    "line, message",
    [
        (b"1\t10\t.\tA\tC\t.\t.\t.", ":2: a record before the #CHROM line; the header is not complete"),
        (b"#CHROM POS ID REF ALT QUAL FILTER INFO", ":2: the #CHROM line has blanks instead of tabs"),
        (b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTR\tINFO", ":2: the line of column names is wrong at 'FILTR'"),
        (b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER", ":2: the line of column names is wrong at its end"),
        (b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tGT", ":2: the line of column names is wrong at 'GT'"),
        (b"#chrom\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO", ":2: the line of column names is wrong at '#chrom'"),
        (b"##\0", ":2: binary content (a NUL byte) in the header"),
    ],
)
def test_line_of_column_names(tmp_path, line, message):  # C3
    assert refusal(put(tmp_path, b"##fileformat=VCFv4.3\n" + line + b"\n", "in.vcf")).startswith(message)


@pytest.mark.parametrize("first", [b"", b"##fileformat=\n", b"##fileformat=XYZ\n"])
def test_missing_fileformat_is_read_as_4_2(tmp_path, first, caplog):  # C2
    header, records = read_all(put(tmp_path, first + TEXT.split(b"\n", 1)[1], "in.vcf"))
    assert header.to_bytes() == HEADER and len(records) == 4
    assert "read as VCF 4.2" in warnings_of(caplog, "fileformat")[0]


def test_fileformat_that_is_not_first_comes_first(tmp_path):
    lines = HEADER.split(b"\n")
    header, _ = read_all(put(tmp_path, b"\n".join([lines[1], lines[0], *lines[2:]]), "in.vcf"))
    assert header.to_bytes() == HEADER


def test_byte_order_mark(tmp_path, caplog):
    header, records = read_all(put(tmp_path, b"\xef\xbb\xbf" + TEXT, "in.vcf"))
    assert header.to_bytes() == HEADER and len(records) == 4
    assert "byte-order mark" in warnings_of(caplog, "byte-order-mark")[0]


@pytest.mark.parametrize(
    "line, message",
    [
        (b"1\t10\t.\tA\tC\t.\t.\n", ":8: 7 columns, at least eight are needed"),  # C26
        (b"1 10 . A C . . .\n", ":8: 1 column, at least eight are needed; columns are separated by tabs"),
        (b"1\t10\t.\tA", ":8: the file ends inside line 8; fetch it again"),  # C27
        (b"1\t10\t.\tAC\tG\t.\t.\t.\0\n", ":8: binary content (a NUL byte)"),
        (b"\n" + LINES[0] + b"\n", ":8: an empty line between records; remove it"),
    ],
)
def test_broken_line(tmp_path, line, message):
    assert refusal(put(tmp_path, HEADER + line, "in.vcf")) == message


def test_last_line_without_newline(tmp_path, caplog):
    path = put(tmp_path, TEXT[:-1], "in.vcf")
    assert len(read_all(path)[1]) == 4
    assert warnings_of(caplog, "no-newline") == [f"{path}:11: the file does not end in a newline; is it complete?"]


def test_empty_lines_at_the_end_are_left_out(tmp_path):
    assert len(read_all(put(tmp_path, TEXT + b"\n\r\n\n", "in.vcf"))[1]) == 4


def test_header_alone(tmp_path):  # C4
    assert read_all(put(tmp_path, HEADER, "in.vcf"))[1] == []
    assert read_all(put(tmp_path, HEADER[:-1], "in.vcf"))[1] == []


@pytest.mark.parametrize("count", [1, 2, 6])
def test_bgzip_cut_or_damaged(tmp_path, count):  # C29
    whole = bgzip(TEXT)
    # Cut between two lines, so that nothing but the end block tells.
    size = len(TEXT) - sum(len(line) + 1 for line in LINES[-count:]) if count < 4 else len(TEXT)
    assert "the BGZF end block is missing" in refusal(put(tmp_path, block(TEXT[:size]), "a.gz"))
    assert "cut inside" in refusal(put(tmp_path, whole[: len(whole) - 28 - count], "b.gz"))
    flipped = bytearray(whole)
    flipped[len(whole) // 2 + count] ^= 1
    assert str(tmp_path) not in refusal(put(tmp_path, bytes(flipped), "c.gz"))


def test_missing_end_block_can_be_allowed(tmp_path, indexed):
    path = put(tmp_path, bgzip(TEXT)[: -len(BGZF_EOF)], "in2.vcf.gz")
    assert "give --allow-missing-eof" in refusal(path)
    assert len(read_all(path, allow_missing_eof=True)[1]) == 4


@pytest.mark.parametrize("cut", [1, 9, 60])
def test_plain_gzip_cut(tmp_path, cut):  # C30
    assert "gzip data are cut" in refusal(put(tmp_path, gzip.compress(TEXT)[:-cut], "in.vcf.gz"))


def test_bcf_damage(tmp_path, bcf):  # C31
    raw = b"".join(inputs.read_chunks(bcf))
    old = put(tmp_path, b"BCF\x04" + raw[4:], "old.bcf")
    assert refusal(old) == ": a BCF of an old version; convert it with an old bcftools"
    cut = refusal(put(tmp_path, bgzip(raw[:-7]), "cut.bcf"))
    assert cut.startswith(": near record 4: ")
    # The first record names contig 77.
    start = 9 + int.from_bytes(raw[5:9], "little")
    table = raw[: start + 8] + (77).to_bytes(4, "little") + raw[start + 12 :]
    assert refusal(put(tmp_path, bgzip(table), "contig.bcf")).startswith(": near record 2: ")
    assert (
        refusal(put(tmp_path, bgzip(raw[: start // 2]), "header.bcf")) == ": header: cannot be read; is the file whole?"
    )
    content = Path(bcf).read_bytes()
    assert "the BGZF end block is missing" in refusal(put(tmp_path, content[: -len(BGZF_EOF)], "eof.bcf"))


def test_no_end_is_made_up_or_taken(tmp_path):
    # As pysam's writer does for symbolic alleles without END, and with one that says what REF does.
    declared = b"##INFO=<ID=END,Number=1,Type=Integer,Description=e>\n"
    head = b"##fileformat=VCFv4.2\n##FILTER=<ID=PASS,Description=p>\n##contig=<ID=1,length=100>\n%s"
    head += b"##INFO=<ID=SVLEN,Number=1,Type=Integer,Description=l>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    for between, infos in ((b"", (b".", b"SVLEN=-5")), (declared, (b"END=10", b"END=20", b"."))):
        lines = b"".join(b"1\t10\t.\tA\t%s\t.\t.\t%s\n" % (alt, i) for alt in (b"<DEL>", b"C") for i in infos)
        made = str(tmp_path / "out.bcf")
        with VcfReader(put(tmp_path, head % between + lines, "in.vcf")) as reader, open(made, "wb") as handle:
            header = reader.header.extended(["##INFO=<ID=X,Number=1,Type=Integer,Description=x>"])
            with VcfWriter(handle, "b", header) as writer:
                for record in reader.records():
                    writer.write_record(record, "X=1")
        build_index(made, f"{made}.csi", "b")
        due = [b"X=1" if info == b"." else info + b";X=1" for info in infos] * 2
        for regions in (None, [("1", 0, 50), ("1", 60, 70), ("none", 0, 9)]):
            with VcfReader(made, regions=regions) as reader:
                assert ("END" in reader.header.ids("INFO")) == bool(between)
                assert [r.columns[7] for r in reader.records()] == due


def test_line_beyond_the_limit(tmp_path, monkeypatch):  # C34
    monkeypatch.setattr(inputs, "LINE_BYTES_LIMIT", 10_000)
    path = put(tmp_path, TEXT + b"1\t600\t.\tA\t" + b"C" * 3_000_000 + b"\t.\t.\t.\n", "in.vcf")
    assert refusal(path).endswith(":12: a line of over 10,000 bytes")


def test_many_alts_and_samples(tmp_path):  # C34
    alts = b",".join([b"C", b"G", b"T"] * 3334)
    wide = b"1\t600\t.\tA\t" + alts + b"\t.\t.\t.\tGT" + b"\t0/1" * 100_000
    _, records = read_all(put(tmp_path, TEXT + wide + b"\n", "in.vcf"))
    assert len(records[-1].alts) == 10_002
    assert records[-1].with_info("X=1") == wide.replace(b"\t.\tGT", b"\tX=1\tGT") + b"\n"


def test_file_that_is_not_there(tmp_path, vcf):
    assert "did you mean" in refusal(str(tmp_path / "im.vcf"), SystemFault)
    refusal(str(tmp_path), SystemFault)


# --- Regions ---------------------------------------------------------------------------------------------------------


def positions(path, regions, **options):
    return [record.pos for record in read_all(path, regions=read_regions(regions), **options)[1]]


@pytest.mark.parametrize(
    "regions, expected",
    [
        ("1:10-20", [10, 20]), ("1:11-19", []), ("1:21-21", [20]), ("1:22-29", []), ("1:300-301", [30]),
        ("1", [10, 20, 30, 500]), ("1:390-600,1:15-35", [20, 30, 500]), ("HLA-A*01:01:1-9", []),
    ],
)  # fmt: skip
def test_regions_keep_what_overlaps(vcf, indexed, bcf, regions, expected):
    # A text stream is filtered; a bgzip VCF and a BCF go through their index, with the same result.
    assert positions(vcf, regions) == expected
    assert positions(indexed, regions) == expected
    pysam.bcftools.index(bcf, catch_stdout=False)
    assert positions(bcf, regions) == expected


def test_region_without_index(tmp_path, bcf):  # C32
    path = put(tmp_path, bgzip(TEXT), "in.vcf.gz")
    regions = read_regions("1:1-5")
    message = refusal(path, SystemFault, regions=regions)
    assert message == f": regions need an index, and there is none; make one: tabix -p vcf {path}"
    assert refusal(bcf, SystemFault, regions=regions).endswith(f"bcftools index {bcf}")


def test_stale_index(indexed):  # C32
    os.utime(indexed + ".tbi", (1, 1))
    message = refusal(indexed, regions=read_regions("1:1-5"))
    assert message.startswith(".tbi: older than ")


def test_index_of_another_file(tmp_path, indexed):  # C32
    longer = TEXT + b"".join(b"1\t%d\t.\tA\tC\t.\t.\t.\n" % pos for pos in range(600, 900))
    for content in (longer, HEADER + LINES[0] + b"\n"):
        path = put(tmp_path, bgzip(content), "other.vcf.gz")
        put(tmp_path, Path(indexed + ".tbi").read_bytes(), "other.vcf.gz.tbi")
        assert refusal(path, regions=read_regions("1:1-5")).startswith(".tbi: is not the index of ")
    put(tmp_path, b"no index", "other.vcf.gz.tbi")
    assert refusal(path, regions=read_regions("1:1-5")).startswith(".tbi: damaged, or no index")


@pytest.mark.parametrize("csi", [False, True])
def test_index_is_recognised(tmp_path, csi):
    path = put(tmp_path, bgzip(TEXT), "in.vcf.gz")
    pysam.tabix_index(path, preset="vcf", force=True, keep_original=True, csi=csi)
    assert check_index(path) == path + (".csi" if csi else ".tbi")
    assert positions(path, "1:15-25") == [20]


def test_region_files(tmp_path, vcf):
    bed = put(tmp_path, b"1\t9\t10\n1\t25\t40\n", "a.bed")
    table = put(tmp_path, b"# x\n1\t10\t10\n1\t26\t40\n\n", "a.txt")
    assert read_regions(None, bed) == read_regions(None, table) == [("1", 9, 10), ("1", 25, 40)]
    assert read_regions("1:500-600", bed) == [("1", 9, 10), ("1", 25, 40), ("1", 499, 600)]
    assert read_regions(None, put(tmp_path, b"1\t10\n", "b.txt")) == [("1", 9, 10)]
    for line in (b"1\n", b"1\tx\t4\n", b"1\t0\t4\n", b"1\t9\t4\n", b"1 9 12\n"):
        with pytest.raises(DataError, match="no region"):
            read_regions(None, put(tmp_path, line, "c.txt"))
    assert read_regions() is None and merge_regions([]) == []


# --- Writing ---------------------------------------------------------------------------------------------------------


def expected_text(text=TEXT):
    head, _, rest = text.partition(b"#CHROM")
    lines = (b"#CHROM" + rest).split(b"\n")
    extra = b'##INFO=<ID=X,Number=1,Type=Integer,Description="x">\n'
    added = [
        b"\t".join([*c[:7], b"X=1" if c[7] == b"." else c[7] + b";X=1", *c[8:]])
        for c in (x.split(b"\t") for x in lines[1:-1])
    ]
    return head + extra + b"\n".join([lines[0], *added, b""])


def test_text_is_kept_byte_for_byte(tmp_path):  # C25, C33
    odd = (
        b"zz\t7\t\xff\xfe;x\tA\tC\tabc\tq10;s 50\tUNDECLARED=caf\xe9;DP=nan;FLAG\tXX:YY\t./.:\xff\t0|1\textra\n"
        b"1\t8\t.\tA\tC\t.\t.\tDP=3;;END=x;\n"
    )
    path = put(tmp_path, TEXT + odd, "in.vcf")
    copied = Path(copy(path, tmp_path / "out.vcf", "v")).read_bytes()
    assert copied == expected_text(TEXT + odd).replace(b"END=x;;X=1", b"END=x;X=1")


def test_crlf_is_kept(tmp_path):  # C33
    path = put(tmp_path, TEXT.replace(b"\n", b"\r\n"), "in.vcf")
    copied = Path(copy(path, tmp_path / "out.vcf", "v")).read_bytes()
    assert copied == expected_text().replace(b"\n", b"\r\n")
    # BCF has no line ends to keep.
    written = pysam.bcftools.view("--no-version", copy(path, tmp_path / "out.bcf", "b"))
    assert "\r" not in written and "DP=3;X=1\n" in written


@pytest.mark.parametrize("kind", ["z", "b", "u"])
def test_other_types_hold_the_same(tmp_path, vcf, kind):
    text = pysam.bcftools.view("--no-version", copy(vcf, tmp_path / "out.vcf", "v"))
    assert pysam.bcftools.view("--no-version", copy(vcf, tmp_path / "out", kind)) == text
    with pysam.VariantFile(str(tmp_path / "out")) as file:
        assert [record.info["X"] for record in file] == [1, 1, 1, 1]


def test_bgzip_blocks_are_whole(tmp_path):
    data = os.urandom(200_000) + bytes(300_000)
    with open(tmp_path / "x.gz", "wb") as handle:
        writer = BgzfWriter(handle)
        for start in range(0, len(data), 7919):
            writer.write(data[start : start + 7919])
        writer.close()
    assert b"".join(inputs.read_chunks(str(tmp_path / "x.gz"))) == data
    assert zlib.crc32(gzip.decompress((tmp_path / "x.gz").read_bytes())) == zlib.crc32(data)


@pytest.mark.parametrize(
    "line, message",
    [
        (b"9\t10\t.\tA\tC\t.\t.\t.", "contig '9' is not declared"),
        (b"1\t10\t.\tA\tC\t.\tq10\t.", "FILTER 'q10' is not declared"),
        (b"1\t10\t.\tA\tC\t.\t.\tDP=1;ZZ=2", "INFO 'ZZ' is not declared"),
        (b"1\t10\t.\tA\tC\t.\t.\t.\tGT:AD\t0/1:2", "FORMAT 'AD' is not declared"),
        (b"1\tx\t.\tA\tC\t.\t.\t.", "POS or QUAL is no number"),
        (b"1\t10\t.\tA\tC\thigh\t.\t.", "POS or QUAL is no number"),
    ],
)
def test_bcf_cannot_hold_what_is_undeclared(tmp_path, line, message):
    path = put(tmp_path, HEADER + line + b"\n", "in.vcf")
    with pytest.raises(DataError, match=message) as caught:
        copy(path, tmp_path / "out.bcf", "b")
    assert "-O z" in str(caught.value)
    copy(path, tmp_path / "out.vcf", "v")


def test_index_of_the_output(tmp_path, vcf):
    for kind, suffix in (("z", ".tbi"), ("z", ".csi"), ("b", ".csi")):
        path = copy(vcf, tmp_path / f"out{suffix}.x", kind)
        build_index(path, path + suffix, kind)
        with VcfReader(path, regions=[("1", 9, 10)]) as reader:
            assert [record.pos for record in reader.records()] == [10]


def test_header_lines_are_added_and_taken_out():
    header = Header(HEADER.decode().splitlines())
    longer = header.extended(['##INFO=<ID=X,Number=1,Type=String,Description="a=b,c">'])
    assert longer.lines[-1].startswith("#CHROM") and longer.ids("INFO") == ["DP", "END", "X"]
    assert longer.without(lambda d: d.fields.get("ID") == "X").lines == header.lines


def test_info_is_appended_and_replaced():
    record = Record(1, b"1\t2\t.\tA\tC\t.\t.\tHD_ST=ok;DP=2;HD_STX=1".split(b"\t"), b"")
    assert record.with_info("Y=2", (b"HD_ST",)).endswith(b"\tDP=2;HD_STX=1;Y=2\n")
    alone = Record(1, b"1\t2\t.\tA\tC\t.\t.\tHD_ST=ok".split(b"\t"), b"\r")
    assert alone.with_info("Y=2", (b"HD_ST",)).endswith(b"\t.\tY=2\r\n")


@pytest.mark.parametrize(
    "output, given, expected",
    [
        ("-", None, "v"), ("-", "b", "b"), ("a.vcf", None, "v"), ("a.VCF.GZ", None, "z"), ("a.vcf.bgz", None, "z"),
        ("a.bcf", None, "b"), ("a.vcf", "z", "z"), ("a.txt", "u", "u"), ("/dev/null", None, "v"), (None, None, "v"),
    ],
)  # fmt: skip
def test_suffix_decides_the_type(output, given, expected):
    assert choose_output_type(output, given) == expected


def test_unknown_type_or_suffix():
    with pytest.raises(UsageError, match="one of v"):
        choose_output_type("-", "q")
    with pytest.raises(UsageError, match=r"did you mean \.vcf"):
        choose_output_type("out.vfc")
    with pytest.raises(UsageError, match="give -O"):
        choose_output_type("out")


def test_pipe_as_input_and_early_end(tmp_path):  # C38
    """A producer that dies: BGZF by its end block, text by a line cut short."""
    for data, message in ((bgzip(TEXT)[: -len(BGZF_EOF)], "end block"), (TEXT[:-20], "ends inside line 11")):
        pipe = str(tmp_path / f"pipe{len(data)}")
        os.mkfifo(pipe)
        feeder = threading.Thread(target=Path(pipe).write_bytes, args=(data,))
        feeder.start()
        with pytest.raises(DataError, match=message):
            read_all(pipe)
        feeder.join()


def test_real_files_read_through(shared_data):
    """Every file of the specification's and other projects' suites ends in records or in one error of ours."""
    outcomes = {"read": 0, "refused": 0}
    for path in sorted((shared_data / "edge_vcf").rglob("*")):
        if path.is_file() and not path.name.endswith((".tbi", ".csi", ".idx", ".gzi")):
            try:
                read_all(path)
                outcomes["read"] += 1
            except HybriDNAError:
                outcomes["refused"] += 1
    assert outcomes == {"read": 845, "refused": 36}
