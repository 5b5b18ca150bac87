"""`hybridna score-variants` from the command line: exit codes, messages, streams."""

import gzip
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pysam
import pysam.bcftools
import pytest
from genome_files import bgzip, put
from toys import random_model

from hybridna_cli.app import run
from hybridna_core.checkpoint import save_model
from hybridna_core.data.inputs import BGZF_EOF

BASES = "".join(random.Random(3).choices("ACGT", k=3000))
FASTA = f">chr1\n{BASES}\n>chr2\n{BASES[:500]}\n".encode()
# Position from 1 -> a base that is not there.
WRONG = {i: "ACGT"[("ACGT".index(base) + 1) % 4] for i, base in enumerate(BASES, start=1)}
HEADER = b"##fileformat=VCFv4.2\n##contig=<ID=chr1>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def line(pos, ref=None, alt=None, info=".", contig="chr1"):
    ref = BASES[pos - 1] if ref is None else ref
    alt = "ACGT"["ACGT".index(ref) - 1] if alt is None else alt
    return f"{contig}\t{pos}\t.\t{ref}\t{alt}\t.\t.\t{info}\n".encode()


GOOD = HEADER + line(1500) + line(1600, alt="ACGT") + line(1700, alt="*") + line(1800, alt=".")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "toy"
    save_model(folder, random_model())
    return str(folder)


@pytest.fixture
def arguments(tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYBRIDNA_FASTA", raising=False)
    put(tmp_path, FASTA, "genome.fa")

    def arguments(*options, name="in.vcf", fasta="genome.fa", output="out.vcf"):
        argv = ["score-variants", name, "-m", model, "--device", "cpu", "--window", "64", *options]
        return argv + ([] if fasta is None else ["-f", fasta]) + ([] if output is None else ["-o", output])

    return arguments


@pytest.fixture
def call(tmp_path, arguments, capfd):
    """Run `score-variants` on a VCF of these bytes; return exit code and stderr."""

    def call(vcf=GOOD, *options, name="in.vcf", **others):
        if vcf is not None:
            put(tmp_path, vcf, name)
        code = run(arguments(*options, name=name, **others))
        stderr = capfd.readouterr().err
        assert "Traceback" not in stderr
        return code, stderr

    return call


def error_of(stderr):
    """The one error line, without its beginning."""
    lines = [x for x in stderr.splitlines() if ": error: " in x]
    assert len(lines) == 1 and lines[0].startswith("hybridna score-variants: error: ")
    return lines[0].removeprefix("hybridna score-variants: error: ")


def statuses(path="out.vcf"):
    return re.findall(r"HD_ST=([^;\n]*)", Path(path).read_text())


def test_score_and_summary(call):
    code, stderr = call(GOOD, "--summary-json", "s.json", "--per-strand")
    assert code == 0 and statuses() == ["ok", "ok", "spanning", "no_alt"]
    assert "records 4, alleles 4, scored 2, ok 2, spanning 1, no_alt 1" in stderr
    summary = json.loads(Path("s.json").read_text())
    assert summary["alleles"] == sum(summary["statuses"].values()) == 4 and summary["horizon"] == 32
    assert call(GOOD, "-q", "--force")[1] == ""


def test_skipped_and_fail_on(call):
    code, stderr = call(GOOD, "--skipped", "skipped.tsv", "--fail-on", "no_alt")
    assert code == 3 and "1 of 4 alleles ended as --fail-on names (no_alt 1)" in error_of(stderr)
    assert [line.split("\t")[5] for line in Path("skipped.tsv").read_text().splitlines()[1:]] == ["spanning", "no_alt"]
    assert statuses() == ["ok", "ok", "spanning", "no_alt"]
    code, stderr = call(GOOD, "--force", "--fail-on", "spaning")
    assert code == 2 and "did you mean spanning?" in error_of(stderr)


# --- faults.md group C: structure broken -> stop with exit code 3, nothing written -----------------------------------


@pytest.mark.parametrize(
    "vcf, message",
    [
        (b"", "in.vcf: the file is empty; was the download complete?"),  # C1
        (b"<!DOCTYPE html>\n<html>", "in.vcf: looks like an HTML page (a failed download?), not VCF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "looks like a Git LFS pointer"),
        (FASTA, "in.vcf: looks like FASTA, not VCF"),
        (b"##fileformat=VCFv4.2\n" + line(10), "in.vcf:2: a record before the #CHROM line"),  # C3
        (GOOD.replace(b"\tPOS", b" POS"), "in.vcf:3: the #CHROM line has blanks instead of tabs"),
        (GOOD.replace(b"\tPOS", b"\tPOSE"), "in.vcf:3: the line of column names is wrong at 'POSE'"),
        (GOOD + b"chr1\t5\t.\tA\n", "in.vcf:8: 4 columns, at least eight are needed"),  # C26
        (GOOD + b"chr1\t5\t.\tACG", "in.vcf:8: the file ends inside line 8; fetch it again"),  # C27
        (bgzip(GOOD)[: -len(BGZF_EOF)], "in.vcf: the BGZF end block is missing"),  # C29
        (bgzip(GOOD)[:-40], "in.vcf: cut inside"),
        (bgzip(GOOD)[:40] + b"!" + bgzip(GOOD)[41:], "is damaged (checksum or length differs)"),
        (gzip.compress(GOOD, mtime=0)[:-20], "in.vcf: gzip data are cut"),  # C30
        (b"BCF\x04\x00", "in.vcf: a BCF of an old version"),  # C31
        (b"BCF\x02\x02\x05\x00\x00\x00ab", "in.vcf: header: cannot be read"),
        (HEADER + line(5, contig="1") + line(6, contig="MT"), "no record has a contig of genome.fa"),  # C22
        (HEADER + b"".join(line(p, WRONG[p], "G") for p in range(9, 40)), "31 of the first 31 records"),  # C11
    ],
)  # fmt: skip
def test_stops_with_3(call, vcf, message):
    Path("out.vcf").write_text("old")
    code, stderr = call(vcf, "--force")
    assert code == 3 and message in error_of(stderr)
    assert Path("out.vcf").read_text() == "old"
    assert {p.name for p in Path().iterdir()} <= {"in.vcf", "out.vcf", "genome.fa", "genome.fa.fai"}


# --- one record unusable -> marked, exit 0, or 3 under --strict ------------------------------------------------------


@pytest.mark.parametrize(
    "record, status, warning",
    [
        (b"chr1\t1x\t.\tA\tC\t.\t.\t.\n", "bad_pos", "POS '1x' is not a position"),  # C5
        (b"chr1\t-1\t.\tA\tC\t.\t.\t.\n", "bad_pos", "POS '-1' is not a position"),
        (b"chr1\t99999999999999999999\t.\tA\tC\t.\t.\t.\n", "bad_pos", "is not a position"),
        (b"chr1\t0\t.\tN\tC\t.\t.\t.\n", "out_of_range", None),  # C6
        (b"chr1\t3001\t.\tA\tC\t.\t.\t.\n", "out_of_range", "passes the end of the contig (3,000 bp)"),
        (b"chr1\t9\t.\t.\tC\t.\t.\t.\n", "bad_ref", "REF '.' is no bases"),  # C7
        (b"chr1\t9\t.\t\tC\t.\t.\t.\n", "bad_ref", "REF '' is no bases"),
        (line(1500).lower(), "ok", None),  # C8
        (b"chr1\t9\t.\tR\tC\t.\t.\t.\n", "ambiguous_ref", None),  # C9
        (line(9, WRONG[9], BASES[8]), "ref_mismatch", f"REF is {WRONG[9]}, genome.fa has {BASES[8]}"),  # C10
        (line(9, alt="."), "no_alt", None), (line(9, alt="*"), "spanning", None),  # C12
        (line(9, alt="<NON_REF>"), "symbolic", None), (line(9, alt="<CNV>"), "symbolic", None),  # C13
        (line(9, alt="G]chr2:5]"), "breakend", None), (line(900, alt="<DEL>", info="END=2000"), "ok", None),
        (line(9, alt=f"{BASES[8]}A,,*"), "ok,bad_alt,spanning", "ALT '' is no allele"),  # C14, C16
        (line(9, alt="A C"), "bad_alt", "ALT 'A C' is no allele"),  # C14
        (line(9, alt=BASES[8]), "no_change", None),  # C15
        (line(1500, alt="A" * 40), "too_long", None),  # C19
        (line(9, contig="chrQ"), "unknown_contig", "contig chrQ is not in genome.fa"),  # C22
    ],
)  # fmt: skip
def test_marks_and_goes_on(call, record, status, warning):
    vcf = HEADER + line(1400) + record + line(1450)
    code, stderr = call(vcf)
    assert code == 0 and statuses() == ["ok", status, "ok"]
    warned = [x for x in stderr.splitlines() if ": warning: " in x and "genome.fa.fai" not in x and "index" not in x]
    assert len(warned) == (warning is not None) and (warning or "") in "".join(warned)
    code, stderr = call(vcf, "--strict", "--force")
    assert code == (0 if status == "ok" else 3) and len(statuses()) == 3
    if code:
        assert "alleles have no score" in error_of(stderr)


def test_mismatch_stops_when_asked(call):  # C10
    code, stderr = call(HEADER + line(9, WRONG[9], BASES[8]), "--check-ref", "e")
    assert code == 3 and error_of(stderr).startswith(f"in.vcf:4: chr1:9: REF is {WRONG[9]}, genome.fa has {BASES[8]}")
    assert not Path("out.vcf").exists()


def test_warnings_are_ten_of_a_kind(call):
    code, stderr = call(HEADER + b"chr1\tx\t.\tA\tC\t.\t.\t.\n" * 25)
    assert code == 0 and stderr.count("is not a position") == 10 and "15 more of this kind: bad_pos" in stderr


@pytest.mark.parametrize(
    "vcf, message",
    [
        (HEADER, "in.vcf: no records"),  # C4
        (GOOD.split(b"\n", 1)[1], "##fileformat is missing or empty; read as VCF 4.2"),  # C2
        (GOOD[:-1], "in.vcf:7: the file does not end in a newline"),
        (GOOD.replace(b"<ID=chr1>", b"<ID=chr1,length=7>"), "7 bp in the header and 3,000 in genome.fa"),  # C23
    ],
)
def test_warns_and_is_right(call, vcf, message):
    code, stderr = call(vcf)
    assert code == 0 and f"warning: {message}" in stderr.replace("in.vcf: ##", "##").replace(
        "in.vcf: contig chr1 has ", ""
    )
    with pysam.VariantFile("out.vcf") as file:
        assert "HD_LLR" in file.header.info


def test_contig_length_is_an_error_under_strict(call):  # C23
    code, stderr = call(GOOD.replace(b"<ID=chr1>", b"<ID=chr1,length=7>"), "--strict")
    assert code == 3 and "another genome build?" in error_of(stderr)


def test_plain_gzip_and_crlf_are_accepted(call):  # C28, C33
    assert call(GOOD, output="a.vcf")[0] == 0
    assert call(gzip.compress(GOOD), output="b.vcf")[0] == 0
    assert call(GOOD.replace(b"\n", b"\r\n"), output="c.vcf")[0] == 0
    assert Path("a.vcf").read_bytes() == Path("b.vcf").read_bytes() == Path("c.vcf").read_bytes().replace(b"\r", b"")


def test_missing_end_block_can_be_allowed(call):
    assert call(bgzip(GOOD)[: -len(BGZF_EOF)], "--allow-missing-eof")[0] == 0


# --- wrong command line, files that are not there --------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        (["--check-ref", "q"], "--check-ref: is 'q'"), (["--horizon", "65"], "--horizon: is 65"),
        (["--stride", "0"], "--stride: is 0"), (["-O", "x"], "--output-type: is 'x'"),
        (["--info-prefix", "9"], "--info-prefix: '9' cannot begin a VCF key"), (["-W"], "--write-index: an index"),
        (["-r", "chr1:9-3"], "region 'chr1:9-3' ends before it begins"), (["--window", "99999"], "--window: is 99,999"),
        (["--horizn", "3"], "no option called '--horizn'; did you mean '--horizon'?"),
    ],
)  # fmt: skip
def test_wrong_options(call, options, message):
    code, stderr = call(GOOD, *options)
    assert code == 2 and message in error_of(stderr) and not Path("out.vcf").exists()


def test_output_rules(call):  # C35, C36, C37
    code, stderr = call(GOOD, output="in.vcf")
    assert code == 2 and "the output is the input in.vcf" in error_of(stderr)
    assert call()[0] == 0
    code, stderr = call()
    assert code == 2 and error_of(stderr).startswith("out.vcf: the output exists already; give --force")
    code, stderr = call(None, name="out.vcf", output="again.vcf")
    assert code == 2 and "the header has the field HD_LLR already; --replace overwrites it" in error_of(stderr)
    assert call(None, "--replace", name="out.vcf", output="again.vcf")[0] == 0
    code, stderr = call(GOOD, output="nowhere/out.vcf")
    assert code == 5 and "nowhere does not exist" in error_of(stderr)
    code, stderr = call(GOOD, output="out.vfc")
    assert code == 2 and "did you mean .vcf" in error_of(stderr)


def test_files_that_are_not_there(call, monkeypatch):
    code, stderr = call(GOOD, fasta=None)
    assert code == 2 and "HYBRIDNA_FASTA" in error_of(stderr)
    monkeypatch.setenv("HYBRIDNA_FASTA", "genome.fa")
    assert call(GOOD, fasta=None)[0] == 0
    code, stderr = call(None, name="im.vcf", output="b.vcf")
    assert code == 5 and "did you mean in.vcf?" in error_of(stderr)
    code, stderr = call(GOOD, "-m", "no/such/model", output="b.vcf")
    assert code == 4 and "no such model folder" in error_of(stderr)


def test_region_needs_a_fitting_index(call):  # C32
    code, stderr = call(bgzip(GOOD), "-r", "chr1:1500-1600", name="in.vcf.gz")
    assert code == 5 and error_of(stderr).endswith("make one: tabix -p vcf in.vcf.gz")
    pysam.tabix_index("in.vcf.gz", preset="vcf", keep_original=True)
    assert call(None, "-r", "chr1:1500-1600", name="in.vcf.gz")[0] == 0 and statuses() == ["ok", "ok"]
    os.utime("in.vcf.gz.tbi", (1, 1))
    code, stderr = call(None, "-r", "chr1:1500-1600", "--force", name="in.vcf.gz")
    assert code == 3 and error_of(stderr) == "in.vcf.gz.tbi: older than in.vcf.gz; make the index anew (tabix -f)"


def test_dry_run(call):
    code, stderr = call(GOOD, "--dry-run")
    assert code == 0 and not Path("out.vcf").exists()
    assert re.search(r"scored 2, .*tokens 388, memory about .*, time about ", stderr)


# --- standard streams ------------------------------------------------------------------------------------------------


def stream(argv, **options):
    command = [sys.executable, "-m", "hybridna_cli", *argv]
    return subprocess.run(command, env=ENV, capture_output=True, timeout=120, **options)


def test_pipes_of_every_type(call, arguments):
    assert call(GOOD)[0] == 0
    expected = pysam.bcftools.view("-H", "out.vcf")
    result = stream(arguments("-q", name="-", output=None), input=GOOD)
    assert result.returncode == 0
    assert result.stdout.replace(b"HD_ -\n", b"HD_ in.vcf\n") == Path("out.vcf").read_bytes()
    pysam.bcftools.view("-Ob", "-o", "in.bcf", "in.vcf", catch_stdout=False)
    for letter in "zbu":
        result = stream(arguments("-q", "-O", letter, name="-", output=None), input=Path("in.bcf").read_bytes())
        assert result.returncode == 0, result.stderr
        Path(f"piped.{letter}").write_bytes(result.stdout)
        assert pysam.bcftools.view("-H", f"piped.{letter}") == expected


def test_between_two_of_bcftools(arguments, tmp_path):
    """bcftools view -Ou | hybridna score-variants - -Ou | bcftools view -i"""
    put(tmp_path, GOOD, "in.vcf")
    assert run(arguments("-q", name="in.vcf", output="whole.vcf")) == 0
    whole = [line.split("\t")[:5] for line in Path("whole.vcf").read_text().splitlines() if line[0] != "#"]
    llrs = [float(text) for text in re.findall(r"HD_LLR=([^;.][^;]*)", Path("whole.vcf").read_text())]
    assert len(llrs) == 2 and len(whole) == 4
    view = "import sys, pysam.bcftools; pysam.bcftools.view(*sys.argv[1:], catch_stdout=False)"
    commands = [
        ["-c", view, "-Ou", "in.vcf"],
        ["-m", "hybridna_cli", *arguments("-q", "-O", "u", name="-", output=None)],
        ["-c", view, "-H", "-i", f"HD_LLR<{sum(llrs) / 2:.9f}", "-"],
    ]  # fmt: skip
    data = b""
    for words in commands:
        done = subprocess.run([sys.executable, *words], input=data, capture_output=True, env=ENV, timeout=300)
        assert done.returncode == 0, done.stderr
        data = done.stdout
    found = [line.split("\t")[:5] for line in data.decode().splitlines()]
    assert found == [whole[llrs.index(min(llrs))]] and llrs[0] != llrs[1]


@pytest.mark.parametrize("cut, message", [(bgzip(GOOD)[: -len(BGZF_EOF)], b"end block"), (GOOD[:-9], b"ends inside")])
def test_stream_that_ends_early(arguments, cut, message):  # C38
    result = stream(arguments("-q", name="-", output=None), input=cut)
    assert result.returncode == 3 and message in result.stderr


def test_closed_stdin(arguments):
    result = stream(arguments("-q", name="-", output=None), preexec_fn=lambda: os.close(0))
    assert result.returncode == 2 and b"standard input is closed" in result.stderr


@pytest.mark.parametrize("letter", ["v", "z", "b"])
def test_full_and_closed_stdout(arguments, tmp_path, letter):  # G10, G11
    put(tmp_path, HEADER + b"".join(line(p) for p in range(1000, 1100)), "in.vcf")
    command = [sys.executable, "-m", "hybridna_cli", *arguments("-q", "-O", letter, "--window", "2", output=None)]
    with open("/dev/full", "wb") as full:
        result = subprocess.run(command, env=ENV, stdout=full, stderr=subprocess.PIPE, timeout=120)
    assert result.returncode == 5 and b"No space left" in result.stderr and b"Traceback" not in result.stderr
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(command, env=ENV, stdout=writer, stderr=subprocess.PIPE, timeout=120)
    os.close(writer)
    assert result.returncode == 141 and result.stderr == b"", result.stderr


def test_demo_files(call):
    """The files that ship with the repository: every kind of record, each accounted for."""
    demo = Path(__file__).parents[2] / "demo"
    put(Path(), (demo / "yeast_chrI.fa.gz").read_bytes(), "yeast.fa.gz")
    code, stderr = call((demo / "promoter_variants.vcf").read_bytes(), fasta="yeast.fa.gz")
    assert code == 0 and "records 43, alleles 44, scored 42, ok 42, spanning 1, ref_mismatch 1" in stderr
    assert "chrI:87040: REF is G, yeast.fa.gz has A; marked ref_mismatch" in stderr


PHASED = HEADER.replace(b"INFO\n", b"INFO\tFORMAT\ts1\n").replace(
    b"#CHROM", b'##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n#CHROM'
)


def test_haplotypes(call):
    def calls(*texts):
        pairs = zip((1500, 1510), texts, strict=True)
        return PHASED + b"".join(line(pos)[:-1] + b"\tGT\t" + text + b"\n" for pos, text in pairs)

    code, stderr = call(calls(b"0|1", b"0|1"), "--haplotypes")
    assert code == 0 and "clusters 1, clusters_read 1, clusters_ok 1" in stderr
    found = [row.split("\t") for row in Path("out.vcf").read_text().splitlines() if row.startswith("chr1")]
    assert {row[8] for row in found} == {"GT:HD_HAP:HD_EPI"} and len({row[9] for row in found}) == 1
    code, stderr = call(calls(b"0|1", b"0/1"), "--haplotypes", "--force")
    assert code == 3 and "in.vcf:6: chr1:1510: sample s1 is heterozygous and not phased (0/1)" in error_of(stderr)
    assert call(calls(b"0|1", b"0/1"), "--haplotypes", "-p", "s", "--force")[0] == 0
    assert call(GOOD, "--haplotypes", "--force")[0] == 3
    assert call(GOOD, "-p", "s", "--force")[0] == call(GOOD, "--haplotypes", "-p", "x", "--force")[0] == 2
