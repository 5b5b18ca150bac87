"""`hybridna score-variants` where the surroundings fail it, and `hybridna merge` from the command line.

memory, temporary folders, threads, odd names, jobs -> exit codes, messages, the same bytes
"""

import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from genome_files import put
from toys import random_model

from hybridna_cli.app import run
from hybridna_core import scoring
from hybridna_core.checkpoint import save_model
from hybridna_core.data import partial

BASES = "".join(random.Random(3).choices("ACGT", k=900))
HEADER = "##fileformat=VCFv4.2\n##contig=<ID=chr1>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
LINES = [f"chr1\t{p}\t.\t{BASES[p - 1]}\t{'ACGT'['ACGT'.index(BASES[p - 1]) - 1]}\t.\t.\t.\n" for p in range(300, 312)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "toy"
    save_model(folder, random_model())
    return str(folder)


@pytest.fixture
def arguments(tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, f">chr1\n{BASES}\n".encode(), "ref.fa")
    put(tmp_path, (HEADER + "".join(LINES)).encode(), "in.vcf")
    for name in ("RANK", "WORLD_SIZE", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)

    def arguments(*options, name="in.vcf", output="out.vcf"):
        fixed = ["-f", "ref.fa", "-m", model, "--device", "cpu", "--window", "32"]
        return ["score-variants", *fixed, "-o", output, *options, "--", name]

    return arguments


@pytest.mark.parametrize(
    "error, message",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "CUDA out of memory"),
        (MemoryError(), "the system gave no more memory"),
    ],
)
def test_g3_g5_memory_runs_out(arguments, capfd, monkeypatch, error, message):
    assert run(arguments(output="whole.vcf")) == 0
    count = []

    def read(*words, original=scoring.read, **options):
        count.append(1)
        if len(count) > 30:
            raise error
        return original(*words, **options)

    with monkeypatch.context() as patch:
        patch.setattr(partial, "SECONDS", 0)
        patch.setattr(scoring, "read", read)
        assert run(arguments()) == 137
    stderr = capfd.readouterr().err
    assert message in stderr and "a smaller --window needs less" in stderr and "Traceback" not in stderr
    assert not Path("out.vcf").exists() and Path("out.vcf.partial/journal").exists()
    assert run(arguments()) == 0 and "goes on after" in capfd.readouterr().err
    assert Path("out.vcf").read_bytes() == Path("whole.vcf").read_bytes()


def test_g13_stopped_by_a_signal(arguments, capfd, monkeypatch):
    from hybridna_cli.app import Ended

    def read(*words, original=scoring.read, **options):
        if Path("out.vcf.partial/journal").exists():
            raise Ended(15)
        return original(*words, **options)

    with monkeypatch.context() as patch:
        patch.setattr(partial, "SECONDS", 0)
        patch.setattr(scoring, "read", read)
        assert run(arguments()) == 143
    assert "error: out.vcf: stopped by SIGTERM, kept 1 records; the same command goes" in capfd.readouterr().err
    assert run(arguments()) == 0 and not Path("out.vcf.partial").exists()


def test_g15_no_temporary_folder(arguments, monkeypatch):
    assert run(arguments(output="whole.bcf")) == 0
    monkeypatch.setenv("TMPDIR", "/no/such/folder")
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    assert run(arguments(output="out.bcf")) == 0
    assert Path("out.bcf").read_bytes() == Path("whole.bcf").read_bytes()


@pytest.mark.parametrize("threads", [1, 16])
def test_g22_threads_and_hash_seed(arguments, threads):
    """The same bytes but for sums that more threads round in another order, within 1e-5."""
    before = torch.get_num_threads()
    try:
        assert run(arguments("--threads", "1")) == 0
    finally:
        torch.set_num_threads(before)
    environment = {**os.environ, "PYTHONHASHSEED": "77", "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "hybridna_cli", *arguments("--threads", str(threads), output="other.vcf")]
    assert subprocess.run(command, env=environment, timeout=300, capture_output=True).returncode == 0
    texts = [re.split(r"(?<=HD_LLR=)([-0-9.e]+)", Path(name).read_text()) for name in ("out.vcf", "other.vcf")]
    assert texts[0][::2] == texts[1][::2] and len(texts[0][1::2]) == len(LINES)
    if threads == 1:
        assert texts[0] == texts[1]
    ours, theirs = ([float(number) for number in text[1::2]] for text in texts)
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("name", ["-out.vcf", "two\nlines.vcf", "x" * 251 + ".vcf", "blank ' and \".vcf"])
def test_g25_odd_names(arguments, name):
    os.rename("in.vcf", "-in.vcf")
    assert run(arguments(f"--output={name}", name="-in.vcf")) == 0
    assert Path(name).read_text().count("HD_ST=ok") == len(LINES)


# --- merge -----------------------------------------------------------------------------------------------------------


def test_shards_and_merge(arguments, capfd, monkeypatch):
    assert run(arguments(output="whole.vcf.gz")) == 0
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert run(arguments(output=f"part{rank}.vcf.gz")) == 0
        assert f"does shard {rank + 1}/2 alone, as RANK and WORLD_SIZE tells" in capfd.readouterr().err
    assert run(arguments("--shard", "none", output="all.vcf.gz")) == 0
    assert Path("all.vcf.gz").read_bytes() == Path("whole.vcf.gz").read_bytes()
    assert run(["merge", "-o", "out.vcf.gz", "-W", "part1.vcf.gz", "part0.vcf.gz"]) == 0
    assert "parts 2, lines 12, output out.vcf.gz" in capfd.readouterr().err
    assert Path("out.vcf.gz").read_bytes() == Path("whole.vcf.gz").read_bytes() and Path("out.vcf.gz.tbi").exists()


@pytest.mark.parametrize(
    "argv, code, message",
    [
        (["part1.vcf"], 3, "error: part1.vcf: part 2/2 is missing; give all parts of the run"),
        (["in.vcf"], 3, "error: in.vcf: is no part of a sharded run"),
        (["part3.vcf"], 5, "error: part3.vcf: no such file; did you mean part1.vcf?"),
        (["-"], 2, "error: -: standard input cannot be read at random; give a file"),
        ([], 2, "missing argument"),
        (["part1.vcf", "-o", "no/out.vcf"], 3, "part 2/2 is missing"),
    ],
)
def test_merge_faults(arguments, capfd, argv, code, message):
    assert run(arguments("--shard", "1/2", output="part1.vcf")) == 0
    capfd.readouterr()
    assert run(["merge", *argv]) == code
    stderr = capfd.readouterr().err
    assert message in stderr and "Traceback" not in stderr


def test_g24_two_commands_at_one_output(arguments, capfd):
    from hybridna_core.data.partial import hold_outputs

    with hold_outputs(["out.vcf"]) as outputs:
        outputs.begin()
        assert run(arguments()) == 2
    assert "is writing this output; wait for it, or give another -o FILE" in capfd.readouterr().err
