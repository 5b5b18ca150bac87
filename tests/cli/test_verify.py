"""`hybridna verify` and `hybridna explain` from the command line."""

import random

import pytest
from genome_files import bgzip, put

from hybridna_cli.app import run
from hybridna_core.data.inputs import read_chunks

BASES = "".join(random.Random(3).choices("ACGT", k=300))
HEADER = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


@pytest.fixture
def call(tmp_path, toy_model_folder, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, f">chr1\n{BASES}\n".encode(), "genome.fa")
    lines = [f"chr1\t{pos}\t.\t{BASES[pos - 1]}\tA,C,G,T\t.\t.\t.\n" for pos in (100, 150, 200)]
    put(tmp_path, (HEADER + "".join(lines)).encode(), "in.vcf")
    model = ["-f", "genome.fa", "-m", str(toy_model_folder), "--device", "cpu"]
    assert run(["score-variants", "in.vcf", *model, "--window", "32", "-o", "out.vcf.gz", "-q"]) == 0
    capfd.readouterr()

    def call(*words):
        code = run([*words, *(model if words[0] == "verify" else [])])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return call


def test_verify(call, tmp_path):
    code, out, err = call("verify", "out.vcf.gz", "--sample", "5")
    assert code == 0 and out == "" and "records 3, scored 9, checked 5, difference " in err
    text = b"".join(read_chunks("out.vcf.gz")).replace(b";HD_EDGE", b"1;HD_EDGE")
    put(tmp_path, text.replace(b"HD_LLR=", b"HD_LLR=1"), "drift.vcf")
    code, _, err = call("verify", "drift.vcf")
    assert code == 3 and "drift.vcf: " in err and " scores are not what they were: chr1:" in err
    assert call("verify", "in.vcf")[0] == 3
    assert call("verify", "absent.vcf")[0] == 5
    assert call("verify", "out.vcf.gz", "--sample", "0")[0] == 2
    put(tmp_path, bgzip(text)[:-28], "cut.vcf.gz")
    assert call("verify", "cut.vcf.gz")[0] == 3


def test_explain(call):
    code, out, err = call("explain", "out.vcf.gz")
    assert code == 0 and err == "" and "HD_LLR = log P(alternative) - log P(reference)" in out
    assert "up to 16 known bases" in out
    code, out, err = call("explain", "in.vcf")
    assert code == 3 and out == "" and "in.vcf: the header does not say that hybridna scored this file" in err
    assert call("explain", "absent.vcf")[0] == 5
