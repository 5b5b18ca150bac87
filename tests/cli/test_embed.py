"""`hybridna embed` from the command line: exit codes, messages, streams."""

import gzip
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
    ("line", "status", "words"),
    [
        ("chr1\t5\t5", "empty_region", "start and end are both 5; marked empty_region"),
        (
            "chr1\t5990\t6001",
            "out_of_range",
            "6,001 is past the end of chr1 (6,000 bp); marked out_of_range; --clip cuts such regions",
        ),
        (
            "chr9\t0\t5",
            "unknown_contig",
            "contig chr9 is not in genome.fa; marked unknown_contig; did you mean chr2? give --rename-chrs FILE",
        ),
        ("chr1\t0\t4096", "too_long", "region of 4,096 bases, 4,095 bases are read at once; marked too_long"),
        ("chr2\t0\t40", "too_many_n", "region of 40 bases, 40 are unknown; marked too_many_n"),
        ("chr2\t30\t80", "too_many_n", "region of 50 bases, 10 are unknown; marked too_many_n"),
    ],
)
def test_marked_regions(call, line, status, words):
    bed = f"chr1\t0\t10\n{line}\nchr1\t0\t10\n"
    code, _, err = call(bed)
    assert code == 0 and err.splitlines()[1:] == [f"hybridna embed: warning: r.bed:2: {words}"]
    assert [r["status"] for r in rows()] == ["ok", status, "ok"] and rows()[1]["embedding_0"] == ""
    code, _, err = call(bed, "--strict", "--force")
    assert code == 3 and f"({status} 1)" in err
    assert len(rows()) == 3


def test_marks_are_told_ten_times_and_regions_that_cannot_be_clipped_at_all(call):
    code, _, err = call("chr1\t5\t5\n" * 12 + "chr1\t6000\t6001\n", "--clip")
    assert code == 0 and err.count("start and end are both") == 10
    assert "warning: r.bed:13: 6,001 is past the end of chr1 (6,000 bp); marked out_of_range\n" in err
    assert "2 more of this kind: empty_region" in err


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
        (b">a\n>b\n\n", "x.fa", 3, "x.fa: no contig has any bases"),
        (b"hello\n>a\nACGT\n", "x.fa", 3, "x.fa:1: text before the first '>'"),
        (b">a\nACGT\nAE\n", "x.fa", 3, "--other-letters n"),
        (b">a\nAC-T\n", "x.fa", 3, "x.fa:2:3: '-' inside a sequence"),
        (b">a\nAC\0T\n", "x.fa", 3, "binary content at byte offset 5"),
        (b">a\nACGT\nACGT\r\n", "x.fa", 3, "dos2unix"),
        (b">a\nACGT\n\nACGT\n", "x.fa", 3, "blank line inside"),
        (b">a b\nACGT\n>a c\nACGT\n", "x.fa", 3, "same name up to the first blank"),
        (gzip.compress(FASTA, mtime=0), "x.fa.gz", 3, "gunzip -c x.fa.gz | bgzip > NEW.fa.gz"),
        (bgzip(FASTA, 500)[:-28], "x.fa.gz", 3, "--allow-missing-eof"),
        (bgzip(FASTA, 500)[:-90], "x.fa.gz", 3, "cut inside a block"),
        (b"##fileformat=VCFv4.2\n", "x.fa", 3, "looks like VCF, not FASTA"),
    ],
)
def test_fasta_faults(call, tmp_path, content, name, code, words):
    if content is not None:
        put(tmp_path, content, name)
    put(tmp_path, b"kept", "out.tsv")
    found, out, err = call(b"chr1\t0\t10\n", "--force", fasta=name)
    assert (found, out) == (code, "") and words in err
    assert err.splitlines()[-1].startswith("hybridna embed: error: ") and err.count(": error: ") == 1
    assert sorted(os.listdir()) == sorted({"genome.fa", "r.bed", "out.tsv", *([name] if content is not None else [])})
    with open("out.tsv") as handle:
        assert handle.read() == "kept"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"rubbish\n", "genome.fa.fai:1: not a line of a FASTA index"),
        (b"", "genome.fa.fai: the index is empty"),
        (b"chr1\t-6000\t6\t6000\t6001\n", "genome.fa.fai:1: not a line of a FASTA index"),
        (b"chr1\t" + b"9" * 30 + b"\t6\t6000\t6001\n", "genome.fa.fai:1: not a line of a FASTA index"),
        (b"chr1\t6000\t6\t6000\t6001\nchr2\t80\t999999\t80\t81\n", "the file is shorter than its index says"),
    ],
)
def test_index_faults(call, tmp_path, content, words):
    put(tmp_path, content, "genome.fa.fai")
    code, _, err = call()
    assert code == 3 and words in err and "--rebuild-index" in err and not os.path.exists("out.tsv")
    assert call(b"chr1\t0\t10\n", "--rebuild-index")[0] == 0


def test_fasta_that_is_a_pipe(call):
    os.mkfifo("pipe")
    code, _, err = call(fasta="pipe")
    assert code == 5 and "pipe: is not a regular file; write it to disk first" in err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (FASTA + b">e\n", "x.fa:5: contig e has no bases; skipped"),
        (FASTA + b">r\nACRYK\n", "contig r: 3 letters beyond A, C, G, T, N read as N (K 1, R 1, Y 1)"),
        (b"\xef\xbb\xbf" + FASTA, "begins with a byte-order mark; skipped"),
        (FASTA.lower(), ""),
        (FASTA.replace(b"\n", b"\r\n"), ""),
        (bgzip(FASTA[:3000], 700) + bgzip(FASTA[3000:], 700), ""),
    ],
)
def test_fasta_that_is_accepted(call, tmp_path, content, words):
    assert call("chr1\t0\t100\nchr2\t42\t80\n", output="plain.tsv")[0] == 0
    put(tmp_path, content, "x.fa")
    code, _, err = call(None, fasta="x.fa")
    assert code == 0 and rows() == rows("plain.tsv")
    warned = [line.split(": warning: ")[1] for line in err.splitlines()]
    assert len(warned) == 1 + bool(words) and words in err and "x.fa: no index (.fai); building it" in warned


def test_output_faults(call, tmp_path):
    assert call()[0] == 0
    before = rows()
    code, _, err = call()
    assert code == 2 and "out.tsv: the output exists already; give --force to replace it" in err and rows() == before
    code, _, err = call(b"chr1\t0\t10\n", "-m", "no-such-model", output="none/out.tsv")
    assert code == 5 and f"none/out.tsv: the folder {tmp_path}/none does not exist; make it first" in err
    assert call(output="/proc/out.tsv")[0] == 5
    assert call(output=".")[0] == 2
    assert call(output="out.csv")[0] == 2
    assert call(output="/dev/null")[0] == 0
    code, _, err = call(output="/dev/full")
    assert code == 5 and "No space left" in err
    code, _, err = call(b"chr1\t0\t10\n", "--force", output="genome.fa.fai")
    assert code == 2 and "the output is the index of the input genome.fa" in err
    code, _, err = call(output="x" * 300 + ".tsv")
    assert code == 2 and "the output's name is longer than names can be" in err
    code, _, err = call(b"chr1\t0\t10\n", "--force", name="r.tsv", output="./r.tsv")
    assert code == 2 and "the output is the input r.tsv" in err


def test_options(call):
    for options in (["--pool", "min"], ["--echo", "twice"], ["--max-n-share", "2"], ["--poll", "mean"],
                    ["--other-letters", "x"]):  # fmt: skip
        code, _, err = call(b"chr1\t0\t10\n", *options)
        assert code == 2 and options[0] in err
    assert call(b"chr1\t0\t10\n", "--echo", "rc", "--pool", "last")[0] == 0


def test_model_faults(call):
    code, _, err = call(b"chr1\t0\t10\n", "-m", "no-such-model")
    assert code == 4 and "no-such-model" in err and not os.path.exists("out.tsv")
    broken = random_model()
    # A row that is never read: [RESERVED].
    broken.model.embed_tokens.weight[5] = float("nan")
    save_model("nan", broken)
    code, _, err = call(b"chr1\t0\t10\n", "-m", "nan")
    assert code == 4 and "32 of 384 weights are NaN or infinite; --allow-nonfinite loads it all the same" in err
    code, _, err = call(b"chr1\t0\t10\n", "-m", "nan", "--allow-nonfinite")
    assert code == 0 and "warning: model.embed_tokens.weight: 32 weights are NaN or infinite" in err
    os.unlink("out.tsv")
    code, _, err = call(b"chr1\t0\t10\n", "-m", "")
    assert code == 2 and "the model's name is empty; give a bundled name or a folder" in err


def test_cuda_that_is_not_there(call):
    import torch

    if torch.cuda.is_available():
        pytest.skip("a CUDA device is there")
    code, _, err = call(b"chr1\t0\t10\n", "--device", "cuda")
    assert code == 5 and "--device cpu" in err
    code, _, err = call(b"chr1\t0\t10\n", "--device", "cuda:99999999999")
    assert code == 5 and "no device cuda:99999999999 (0 CUDA devices are there); use --device cpu" in err


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
