"""`hybridna calibrate` and `score-variants --calibration` from the command line: exit codes and messages."""

import os
import random

import pytest
from genome_files import put

from hybridna_cli.app import run

BASES = "".join(random.Random(3).choices("ACGT", k=400))
VCF = (
    "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    + f"chr1\t200\t.\t{BASES[199]}\tA,C,G,T\t.\t.\t.\n"
)


@pytest.fixture
def call(tmp_path, toy_model_folder, monkeypatch, capfd):
    """Run a command on the small genome; return exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    put(tmp_path, f">chr1\n{BASES}\n".encode(), "genome.fa")
    put(tmp_path, VCF.encode(), "in.vcf")
    options = ["-m", str(toy_model_folder), "--device", "cpu", "-f", "genome.fa"]

    def call(command, *words, window="16"):
        code = run([command, *options, "--window", window, *words])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return call


def test_calibrate_then_score(call):
    code, _, err = call("calibrate", "-n", "1", "-o", "c.tsv")
    assert code == 0 and "alleles" in err and "fewest 1" in err
    code, out, _ = call("score-variants", "in.vcf", "--calibration", "c.tsv")
    assert code == 0 and "HD_PCT=" in out.splitlines()[-1] and "HD_PHRED=" in out.splitlines()[-1]
    code, _, err = call("score-variants", "in.vcf", "--calibration", "c.tsv", "-o", "o.vcf", window="18")
    assert code == 2 and "c.tsv: the calibration was made with --window 16, this run has 18;" in err
    assert not os.path.exists("o.vcf")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("-f", "absent.fa"), 5, "absent.fa"), (("-o", "genome.fa"), 2, "genome.fa"), (("-o", "r.bed"), 2, "table"),
        (("-o", "no/c.tsv"), 5, "does not exist"), (("--exclude-bed", "r.bed"), 3, "r.bed:1: 2 columns"),
        (("-r", "chr9"), 3, "--regions: no contig 'chr9'"), (("-n", "0"), 2, "--per-class: is 0"),
        (("--exclude-bed", "all.bed"), 3, "no known bases"), (("--device", "cuda:77"), 5, "cuda"),
    ],
)  # fmt: skip
def test_faults(call, tmp_path, words, code, text):
    put(tmp_path, b"chr1\t5\n", "r.bed")
    put(tmp_path, b"chr1\t0\t400\n", "all.bed")
    found, _, err = call("calibrate", "-n", "1", *([] if "-o" in words else ["-o", "c.tsv"]), *words)
    assert found == code and text in err and not os.path.exists("c.tsv")


def test_an_output_that_exists_and_a_file_that_is_none(call, tmp_path):
    put(tmp_path, b"x\n", "c.tsv")
    code, _, err = call("calibrate", "-n", "1", "-o", "c.tsv")
    assert code == 2 and "give --force" in err
    code, _, err = call("score-variants", "in.vcf", "--calibration", "c.tsv")
    assert code == 3 and "c.tsv: is no calibration; hybridna calibrate makes one" in err
    code, _, err = call("score-variants", "in.vcf", "--calibration", "absent.tsv")
    assert code == 5 and "absent.tsv" in err
