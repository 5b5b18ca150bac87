"""`hybridna leakage` from the command line: table, summary, exit codes."""

import json

import pytest
import torch
from runs import lay_out

from hybridna_cli.app import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run of a few steps, with BED files of what it read and did not read beside it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    lay_out(folder)
    code = run(["pretrain", str(folder / "run.toml"), "--device", "cpu", "-q", "--set", "stage.0.steps=4",
                "--set", "stage.1.steps=1"])  # fmt: skip
    torch.set_num_threads(before)
    assert code == 0
    (folder / "held.bed").write_text("c2\t0\t900\theld\n")
    (folder / "both.bed").write_text("c2\t0\t900\theld\nc2\t900\t2000\tread\nc1\t2990\t3000\tend\nc1\t1600\t1601\n")
    return folder


def call(capfd, *words):
    code = run(["leakage", *map(str, words)])
    streams = capfd.readouterr()
    assert "Traceback" not in streams.err
    return code, streams.out, streams.err


def test_table_and_summary(folder, capfd, tmp_path):
    code, out, err = call(capfd, folder / "out", folder / "held.bed", "--summary-json", tmp_path / "s.json")
    assert code == 0
    assert out == (
        "contig\tstart\tend\tname\tspecies\tstatus\twindows\tbases_read\tshare\n"
        "c2\t0\t900\theld\tbug\tunseen\t0\t0\t0.0000\n"
    )
    assert "hybridna leakage: kind BED, steps 5, windows 18, unseen 1, seconds" in err
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["rows"] == {"unseen": 1} and summary["windows"] == 18


def test_strict(folder, capfd, tmp_path):
    assert call(capfd, folder / "out", folder / "held.bed", "--strict", "-q")[::2] == (0, "")
    output = tmp_path / "o.tsv"
    code, out, err = call(capfd, folder / "out", folder / "both.bed", "--strict", "--species", "bug", "-o", output)
    assert code == 3 and out == "" and "were seen in training or not compared (seen" in err
    assert len(output.read_text().splitlines()) == 5
    code, _, err = call(capfd, folder / "out", folder / "both.bed", "-o", output)
    assert code == 2 and "--force" in err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("nowhere", "held.bed"), 4, "not the folder of a run: no sound run.json"),
        (("out", "none.bed"), 5, "no such file"),
        (("out", "held.bed", "--kmer", "40"), 2, "--kmer: is 40, must be 8 to 32"),
        (("out", "held.bed", "--steps", "99"), 2, "--steps: is 99, but 5 steps were done"),
        (("out", "held.bed", "--species", "cow"), 2, "no species 'cow' in this run; there are bug, bee"),
        (("out", "bug.fa.fai"), 3, "bug.fa.fai:1: "),
        (("out",), 2, "missing argument 'FILE'"),
    ],
)
def test_faults(folder, capfd, words, code, said):
    paths = [str(folder / word) if i < 2 else word for i, word in enumerate(words)]
    found, out, err = call(capfd, *paths)
    assert found == code and said in err and out == ""


def test_genomes_that_changed(folder, capfd):
    genome = folder / "bee.fa"
    text = genome.read_text()
    try:
        genome.write_text(text.replace("A", "C", 1))
        code, out, err = call(capfd, folder / "out", folder / "held.bed")
    finally:
        genome.write_text(text)
    assert code == 3 and "are not those that were trained on" in err and out == ""
    assert call(capfd, folder / "out", folder / "held.bed")[0] == 0
