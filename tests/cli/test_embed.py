"""`hybridna embed` from the command line: exit codes, messages, streams."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from genome_files import bgzip, put
from toys import random_model

from hybridna_cli.app import run
from hybridna_core.checkpoint import save_model

BASES = "".join(np.random.default_rng(1).choice(list("ACGT"), 6000))
FASTA = f">chr1\n{BASES}\n>chr2\n{'N' * 40}{BASES[:40]}\n".encode()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "toy"
    save_model(folder, random_model())
    return str(folder)


@pytest.fixture
def call(tmp_path, model, capfd, monkeypatch):
    """Run `embed` on the lines of a BED file; return exit code, stdout and the error lines of stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYBRIDNA_FASTA", raising=False)
    put(tmp_path, FASTA, "genome.fa")

    def call(bed=b"chr1\t0\t10\n", *options, fasta="genome.fa", output="out.tsv", name="r.bed"):
        if bed is not None:
            put(tmp_path, bed if isinstance(bed, bytes) else bed.encode(), name)
        argv = ["embed", name, "-q", "-m", model, "--device", "cpu", *options]
        argv += [] if fasta is None else ["-f", fasta]
        argv += [] if output is None else ["-o", output]
        code = run(argv)
        streams = capfd.readouterr()
        assert "Traceback" not in streams.err
        return code, streams.out, streams.err

    return call


def rows(path="out.tsv"):
    with open(path, encoding="utf-8") as handle:
        header, *lines = handle.read().splitlines()
    return [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]


def test_every_format(call):
    bed = "chr1\t0\t100\ta\t1\t-\nchr1\t5\t20\n"
    assert call(bed) == (0, "", "hybridna embed: warning: genome.fa: no index (.fai); building it\n")
    assert [(r["name"], r["strand"], r["status"]) for r in rows()] == [("a", "-", "ok"), (".", "+", "ok")]
    expected = np.float32([[float(r[f"embedding_{i}"]) for i in range(32)] for r in rows()])
    for suffix in ("npz", "parquet"):
        assert call(bed, output=f"out.{suffix}") == (0, "", "")
    with np.load("out.npz") as table:
        assert np.array_equal(table["embedding"], expected)


def test_standard_output(call):
    code, out, err = call(output=None)
    assert (code, err.count("\n")) == (0, 1)
    assert out.startswith("contig\tstart\tend\t") and out.count("\n") == 2


def test_fasta_from_the_environment(call, monkeypatch):
    code, _, err = call(fasta=None)
    assert code == 2 and "HYBRIDNA_FASTA" in err
    monkeypatch.setenv("HYBRIDNA_FASTA", "genome.fa")
    assert call(fasta=None)[0] == 0


def test_summary(call, model, capfd):
    assert call("chr1\t0\t9\nchr9\t0\t9\n", "--summary-json", "s.json")[0] == 0
    with open("s.json") as handle:
        summary = json.load(handle)
    assert (summary["regions"], summary["embedded"]) == (2, 1)
    assert summary["statuses"] == {"ok": 1, "unknown_contig": 1}
    assert run(["embed", "r.bed", "-f", "genome.fa", "-m", model, "-o", "out2.npz"]) == 0
    err = capfd.readouterr().err
    assert "regions 2, embedded 1" in err and "unknown_contig 1" in err


@pytest.mark.parametrize(
    ("bed", "code", "words"),
    [
        ("", 0, "r.bed: 0 regions"),
        ("# only\ntrack name=x\n", 0, "0 regions"),
        ("chrom\tstart\tend\nchr1\t1\t2\n", 3, "r.bed:1: line 1 is not a region"),
        ("chr1\t1\n", 3, "r.bed:1: 2 columns"),
        ("chr1 1 2\n", 3, "tabs"),
        ("chr1\tten\t20\n", 3, "column 2 (start): 'ten' is not a whole number"),
        ("chr1\t1\t1e3\n", 3, "column 3 (end)"),
        ("chr1\t-1\t5\n", 3, "BED counts from 0"),
        ("chr1\t9\t5\n", 3, "start 9 is after end 5"),
        ("chr1\t1\t99999999999999999999\n", 3, "over 64 bits"),
        ("chr8\t1\t5\nchr9\t1\t5\n", 3, "did you mean chr"),
        ("1\t1\t5\n2\t1\t5\n", 3, "--rename-chrs"),
        ("chr1\t1\t5\tn\t0\t*\n", 3, "strand '*'"),
        ("chr1\t1\t5", 0, "does not end in a newline"),
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
    kind = "error" if code else "warning"
    assert f"hybridna embed: {kind}: r.bed" in err
    assert os.path.exists("out.tsv") == (code == 0)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("chr1\t5\t5", "empty_region"),
        ("chr1\t5990\t6001", "out_of_range"),
        ("chr9\t0\t5", "unknown_contig"),
        ("chr1\t0\t4096", "too_long"),
        ("chr2\t0\t40", "too_many_n"),
        ("chr2\t30\t80", "too_many_n"),
    ],
)
def test_marked_regions(call, line, status):
    bed = f"chr1\t0\t10\n{line}\nchr1\t0\t10\n"
    assert call(bed)[0] == 0
    assert [r["status"] for r in rows()] == ["ok", status, "ok"] and rows()[1]["embedding_0"] == ""
    code, _, err = call(bed, "--strict", "--force")
    assert code == 3 and f"({status} 1)" in err
    assert len(rows()) == 3


@pytest.mark.parametrize("content", ["chr1\t0\t10\r\nchr2\t50\t60\r\n", "chr1\t0\t10\t\nchr2\t50\t60\n\n"])
def test_accepted_spellings(call, content):
    assert call("chr1\t0\t10\nchr2\t50\t60\n", output="plain.tsv")[0] == 0
    for number, bed in enumerate((content.encode(), b"\xef\xbb\xbf" + content.encode(), bgzip(content.encode()))):
        assert call(bed, output=f"{number}.tsv")[0] == 0
        assert rows(f"{number}.tsv") == rows("plain.tsv")


@pytest.mark.parametrize(
    ("content", "name", "code", "words"),
    [
        (None, "genom.fa", 5, "did you mean genome.fa?"),
        (None, ".", 5, "is a folder"),
        (None, "-", 2, "give a file"),
        (b"", "x.fa", 3, "download complete?"),
        (b"@r\nA\n+\nI\n", "x.fa", 3, "FASTQ"),
        (b">a\nMKV*\n>b\nEF\n", "x.fa", 3, "x.fa:2:4"),
        (b">a\nACGU\n", "x.fa", 3, "--rna"),
        (b">a\nAC\xff\n", "x.fa", 3, "byte offset"),
        (b">a\nACGT\nAC\nACGT\n", "x.fa", 3, "rewrap"),
        (b">a\nACGT\n>a\nACGT\n", "x.fa", 3, "line 1"),
        (b">\nACGT\n", "x.fa", 3, "without a name"),
    ],
)
def test_fasta_faults(call, tmp_path, content, name, code, words):
    if content is not None:
        put(tmp_path, content, name)
    found, out, err = call(fasta=name)
    assert (found, out) == (code, "") and words in err and not os.path.exists("out.tsv")
    assert err.splitlines()[-1].startswith("hybridna embed: error: ")


def test_output_faults(call, tmp_path):
    assert call()[0] == 0
    before = rows()
    code, _, err = call()
    assert code == 2 and "--force" in err and rows() == before
    assert call(output="none/out.tsv")[0] == 5
    assert call(output="/proc/out.tsv")[0] == 5
    assert call(output=".")[0] == 2
    assert call(output="out.csv")[0] == 2
    assert call(output="/dev/null")[0] == 0
    code, _, err = call(output="/dev/full")
    assert code == 5 and "No space left" in err
    code, _, err = call(b"chr1\t0\t10\n", "--force", name="r.tsv", output="./r.tsv")
    assert code == 2 and "the output is the input r.tsv" in err


def test_options(call):
    for options in (["--pool", "max"], ["--echo", "twice"], ["--max-n-share", "2"], ["--poll", "mean"]):
        code, _, err = call(b"chr1\t0\t10\n", *options)
        assert code == 2 and options[0] in err
    assert call(b"chr1\t0\t10\n", "--echo", "rc", "--pool", "last")[0] == 0


def test_model_faults(call):
    code, _, err = call(b"chr1\t0\t10\n", "-m", "no-such-model")
    assert code == 4 and "no-such-model" in err and not os.path.exists("out.tsv")


def test_cuda_that_is_not_there(call):
    import torch

    if torch.cuda.is_available():
        pytest.skip("a CUDA device is there")
    code, _, err = call(b"chr1\t0\t10\n", "--device", "cuda")
    assert code == 5 and "--device cpu" in err


def start(model, *arguments, **options):
    command = [sys.executable, "-m", "hybridna_cli", "embed", *arguments, "-q", "-m", model, "--device", "cpu"]
    return subprocess.run(command, check=False, stderr=subprocess.PIPE, timeout=120, **options)


def test_streams_of_a_process(tmp_path, model):
    fasta = put(tmp_path, FASTA, "genome.fa")
    bed = b"chr1\t0\t10\nchr1\t5\t15\n"
    done = start(model, "-", "-f", fasta, input=bed, stdout=subprocess.PIPE)
    assert done.returncode == 0 and done.stdout.count(b"\n") == 3
    with open("/dev/full", "wb") as full:
        done = start(model, "-", "-f", fasta, input=bed, stdout=full)
    assert done.returncode == 5 and b"No space left" in done.stderr and done.stderr.count(b"\n") == 1
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = start(model, "-", "-f", fasta, input=bed, stdout=pipe)
    assert (done.returncode, done.stderr) == (141, b"")
    with open("/dev/null", "rb") as nothing:
        done = start(model, "-", "-f", fasta, "-o", str(tmp_path / "o.npz"), stdin=nothing)
    assert done.returncode == 0 and b"0 regions" in done.stderr
