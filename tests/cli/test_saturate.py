"""`hybridna saturate` from the command line: exit codes, messages, streams."""

import gzip
import json
import os
import random
import subprocess
import sys

import pytest
from genome_files import bgzip, put

from hybridna_cli.app import run

BASES = "".join(random.Random(3).choices("ACGT", k=400))
FASTA = f">chr1\n{BASES}\n>chr2\n{'N' * 40}{BASES[:60]}\n".encode()
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def arguments(tmp_path, toy_model_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYBRIDNA_FASTA", raising=False)
    put(tmp_path, FASTA, "genome.fa")
    model = ["-m", str(toy_model_folder), "--device", "cpu", "--window", "32"]

    def arguments(target, *options, output="out.tsv"):
        return ["saturate", target, "-f", "genome.fa", *model, *options, *([] if output is None else ["-o", output])]

    return arguments


@pytest.fixture
def call(tmp_path, arguments, capfd):
    """Run `saturate` on a region, or on a BED of these bytes; return exit code, stdout and stderr."""

    def call(target, *options, **others):
        if "\t" in str(target) or not isinstance(target, str) or not target:
            put(tmp_path, target if isinstance(target, bytes) else target.encode(), "r.bed")
            target = "r.bed"
        code = run(arguments(target, *options, **others))
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return call


def test_a_region(call):
    code, out, err = call("chr1:100-101", output=None)
    assert code == 0 and [line.split("\t")[1:3] for line in out.splitlines()[3:]] == [
        [str(pos), BASES[pos - 1]] for pos in (100, 101) for _ in range(3)
    ]
    assert "regions 1, bases 2, alleles 6, scored 6, ok 6" in err
    code, _, _ = call(
        "chr1:100-101",
        "--deletions",
        "--per-strand",
        "-W",
        "--summary-json",
        "s.json",
        "--plot",
        "p.png",
        output="o.tsv.gz",
    )
    assert code == 0 and os.path.exists("o.tsv.gz.tbi") and os.path.getsize("p.png") > 1000
    with gzip.open("o.tsv.gz", "rt") as handle:
        assert [line for line in handle][2] == "#chrom\tpos\tref\talt\tllr\tedge\tstatus\tfwd\trev\n"
    with open("s.json") as handle:
        summary = json.load(handle)
    assert summary["alleles"] == 8 and summary["stride"] == 8 and summary["tokens"] > 0


def test_dry_run(call):
    code, _, err = call("chr1:100-200", "--dry-run")
    assert code == 0 and "alleles 303" in err and "memory about" in err and not os.path.exists("out.tsv")


@pytest.mark.parametrize(
    ("bed", "code", "words"),
    [
        ("", 0, "r.bed: 0 regions"),
        (b"# only\ntrack name=x\n", 0, "0 regions"),
        ("chrom\tstart\tend\nchr1\t1\t2\n", 3, "r.bed:1: line 1 is not a region"),
        ("chr1\t1\n", 3, "r.bed:1: 2 columns"),
        (b"chr1 1 2\n", 3, "tabs"),
        ("chr1\tten\t20\n", 3, "column 2 (start): 'ten' is not a whole number"),
        ("chr1\t-1\t5\n", 3, "BED counts from 0"),
        ("chr1\t9\t5\n", 3, "start 9 is after end 5"),
        ("chr1\t1\t99999999999999999999\n", 3, "over 64 bits"),
        ("chr8\t1\t5\nchr9\t1\t5\n", 3, "did you mean chr"),
        ("1\t1\t5\n2\t1\t5\n", 3, "--rename-chrs"),
        ("chr1\t1\t2", 0, "does not end in a newline"),
        ("chr1\t1\t5\nchr1\t1", 3, "r.bed:2: 2 columns"),
        (b"PK\x03\x04" + bytes(60), 3, "zip archive"),
        (b"\xeb\xf2\x89\x87" + bytes(60), 3, "looks like bigBed"),
        (bgzip(b"chr1\t1\t5\n" * 40)[:-28], 3, "--allow-missing-eof"),
        (bgzip(b"chr1\t1\t5\n" * 40)[:60], 3, "cut inside"),
    ],
)
def test_bed_faults(call, bed, code, words):
    found, out, err = call(bed)
    assert found == code and out == "" and words in err
    assert f"hybridna saturate: {'error' if code else 'warning'}: r.bed" in err
    assert os.path.exists("out.tsv") == (code == 0)


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("chr1\t5\t5", "empty_region", "start and end are both 5; marked empty_region"),
        ("chr1\t390\t401", "out_of_range", "401 is past the end of chr1 (400 bp); marked out_of_range; --clip cuts"),
        ("chr9\t0\t5", "unknown_contig", "contig chr9 is not in genome.fa; marked unknown_contig; did you mean chr"),
    ],
)
def test_regions_left_out(call, line, status, words):
    bed = f"chr1\t0\t1\n{line}\n"
    code, _, err = call(bed)
    assert code == 0 and words in err and f"{status} 1" in err and err.count(f"marked {status}") == 1
    assert call(bed, "--strict", "--force")[0] == 3


@pytest.mark.parametrize(
    "bed",
    [
        "chr1\t7\t9\r\n", "chr1\t7\t9\t\t\n", b"\xef\xbb\xbfchr1\t7\t9\n", "track name=x\n#c\nchr1\t7\t9\n",
        "chr1\t7\t9\tn\t0\t-\n", "chr1\t7\t9\tn\t0\t*\n", bgzip(b"chr1\t7\t9\n"),
    ],
)  # fmt: skip
def test_accepted_spellings(call, bed):
    assert call("chr1:8-9", "--no-version", output="due.tsv")[0] == 0
    assert call(bed, "--no-version")[0] == 0
    with open("out.tsv") as found, open("due.tsv") as due:
        assert found.read() == due.read()


def test_unknown_bases(call):
    code, _, err = call("chr2\t0\t3\nchr2\t38\t42\n")
    assert code == 0 and "ambiguous_ref 5" in err and "too_many_n 6" in err


def test_options_that_do_not_do(call):
    for words, code, text in (
        (["--stride", "0"], 2, "--stride: is 0, must be at least 1"), (["--device", "cuda:9"], 5, "no device cuda:9"),
        (["--window", "99999"], 2, "--window: is 99,999"), (["-W"], 2, "--write-index: an index is made for"),
        (["-m", "absent"], 4, "absent"),
        (["--plot", "out.jpg"], 2, "out.jpg: the picture is a PNG; end its name in .png"),
    ):  # fmt: skip
        found, _, err = call("chr1:1-2", *words)
        assert found == code and text in err and err.count(": error: ") == 1 and not os.path.exists("out.tsv")
    assert call("chr1:1-2", output="absent/out.tsv")[0] == 5
    assert call("chr1:1-2", output=".")[0] == 2
    assert call("chr1:1-2")[0] == 0
    code, _, err = call("chr1:1-2")
    assert code == 2 and "out.tsv: the output exists already; give --force" in err


def start(words, **options):
    command = [sys.executable, "-m", "hybridna_cli", *words]
    return subprocess.run(command, capture_output="stdout" not in options, text=True, env=ENV, timeout=120, **options)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_streams_of_a_process(arguments):
    words = arguments("chr1:1-9", "-q", output=None)
    done = start(words, stdin=subprocess.DEVNULL)
    assert done.returncode == 0 and done.stdout.count("\n") == 3 + 27
    with open("/dev/full", "w") as full:
        assert start(words, stdout=full, stderr=subprocess.PIPE).returncode == 5
    read, write = os.pipe()
    os.close(read)
    done = start(words, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == 141 and done.stderr == ""
    done = start(arguments("-", "-q", output=None), input="chr1\t4\t5\n")
    assert done.returncode == 0 and done.stdout.count("\n") == 3 + 3
