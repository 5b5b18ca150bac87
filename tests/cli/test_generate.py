"""`hybridna generate` as a user types it: FASTA out, exit codes and messages of rows F1 to F14, and of D and G."""

import json
import os

import pytest
import torch
from toys import random_model

from hybridna_cli.app import run
from hybridna_core.checkpoint import save_model
from hybridna_core.tokenizer import LabelPosition


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of a small model that knows the labels 00 to 44."""
    path = tmp_path_factory.mktemp("models") / "yeast"
    save_model(path, random_model(5, labels=[LabelPosition("complex", 5), LabelPosition("defined", 5)]))
    return str(path)


def generate(folder, *words):
    return run(["generate", "-m", folder, *words])


def test_fasta_on_stdout_and_the_summary_on_stderr(folder, capsysbinary):
    assert generate(folder, "--label", "44", "-n", "3", "--length", "100", "--seed", "7") == 0
    out, err = capsysbinary.readouterr()
    records = out.decode().strip().split(">")[1:]
    assert len(records) == 3
    for i, record in enumerate(records):
        head, *lines = record.splitlines()
        assert head.split()[0] == f"design_{i + 1}"
        fields = dict(pair.split("=") for pair in head.split()[1:])
        assert fields.keys() == {
            "status", "label", "log_prob", "length", "gc", "longest_homopolymer", "forbidden_sites", "nearest_design",
            "design_distance", "method", "seed", "model",
        }  # fmt: skip
        assert fields["label"] == "44" and fields["seed"] == "7" and fields["model"].startswith("yeast:")
        sequence = "".join(lines)
        assert len(sequence) == 100 and set(sequence) <= set("ACGT")
        assert float(fields["gc"]) == pytest.approx(sum(sequence.count(b) for b in "GC") / 100, abs=6e-4)
    assert err.decode().startswith("hybridna generate: sequences 3, bases 300, mean_log_prob -")


def test_to_a_file_with_summary_json(folder, tmp_path, capsys):
    out, summary = tmp_path / "out.fa", tmp_path / "summary.json"
    words = ["--prompt", "acgt", "--beams", "4", "-n", "2", "--length", "20", "-o", str(out), "-q"]
    assert generate(folder, *words, "--summary-json", str(summary)) == 0
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    assert out.read_text().count(" method=beam num_beams=4 ") == 2
    assert [line[:4] for line in out.read_text().splitlines()[1::2]] == ["ACGT", "ACGT"]
    table = json.loads(summary.read_text())
    assert (table["sequences"], table["bases"], table["marked"]) == (2, 48, {})


def test_the_same_command_gives_the_same_bytes(folder, tmp_path):
    files = [tmp_path / name for name in ("a.fa", "b.fa", "c.fa")]
    for path, n in zip(files, ("5", "5", "2"), strict=True):
        assert generate(folder, "-n", n, "--length", "30", "-o", str(path), "-q") == 0
    a, b, c = (path.read_text() for path in files)
    assert a == b
    # With others beside them the same sequences have other neighbours.
    assert a.splitlines()[1:4:2] == c.splitlines()[1::2]


@pytest.mark.parametrize("words, code, line", [
    (["--label", "300"], 2, "label '300' does not fit this model; labels are 2 digits (complex 0-4, defined 0-4)"),
    (["--label", "45"], 2, "label '45': digit 5 for defined is unknown; labels are 2 digits"),
    (["--prompt", "ACNT"], 2, "--prompt: letter 'N' at position 3 is not A, C, G or T"),
    (["--prompt", "ACGT", "--length", "4092"], 2, "--length: 4,092 bases after 5 tokens are more than the model reads"),
    (["--length", "0"], 2, "--length: is 0, must be at least 1"),
    (["--length", "-3"], 2, "--length: is -3, must be at least 1"),
    (["--length", "1000000001"], 2, "--length: is 1,000,000,001, at most 1,000,000,000 bases are generated"),
    (["--num-beams", "0"], 2, "--num-beams: is 0, must be at least 1"),
    (["--num-beams", "5", "--length", "1"], 2, "--num-beams: is 5, but only 4 sequences of 1 bases exist"),
    (["--num-beams", "900000000", "--length", "40"], 2, "--num-beams: 900,000,000 sequences of 40 bases need about "),
    (["--temperature", "0"], 2, "--temperature: is 0.0, must be above 0 and finite; --num-beams 1 takes"),
    (["--temperature", "nan"], 2, "--temperature: is nan"),
    (["--top-p", "1.01"], 2, "--top-p: is 1.01"),
    (["--top-k", "0"], 2, "--top-k: is 0"),
    (["--num-beams", "2", "--temperature", "1"], 2, "--temperature: is for sampling, but --num-beams asks for beam"),
    (["--num-beams", "2", "-n", "3"], 2, "--num-sequences: is 3, but a search with 2 beams returns at most 2"),
    (["--seed", "-1"], 2, "--seed: is -1, must be 0 to 2^64 - 1"),
    (["--seed", "18446744073709551616"], 2, "--seed: is 18446744073709551616, must be 0 to 2^64 - 1"),
    (["-n", "1000000000000"], 2, "--num-sequences: 1,000,000,000,000 sequences of 200 bases are over 1,0"),
    (["--prompts", "absent.fa"], 5, "absent.fa: no such file"),
    (["--prompts", "-"], 2, "-: standard input cannot be read at random; give a file"),
    (["--prompts", "x.fa", "--prompt", "A"], 2, "--prompts: one of --prompt and --prompts, not both"),
    (["-o", "absent/out.fa"], 5, "absent/out.fa: the folder "),
    (["-o", "."], 2, ".: the output is a folder; give a file name inside it"),
    (["--num-beams", "4", "--beam-groups", "2", "--diversity-penalty", "nan"], 2, "--diversity-penalty: is nan, must"),
    (["--num-beams", "4", "--diversity-penalty", "1"], 2, "--diversity-penalty: is between groups of beams; give --b"),
    (["--gc", "0.6"], 2, "--gc: is '0.6', must be two shares; such as 0.4:0.6"),
    (["--forbid", "EcoR"], 2, "--forbid: 'EcoR' is neither IUPAC letters nor an enzyme; did you mean Eco"),
    (["--template", "NNX"], 2, "--template: letter 'X' at position 3 of 'NNX' is no IUPAC letter"),
    (["--template", "NNN", "--length", "5"], 2, "--template: has 3 letters, but 5 bases are generated; --length 3"),
    (["--require", "TATA@500"], 2, "--require: TATA@500 does not fit into 200 bases"),
    (["--table", "x.csv"], 2, "x.csv: the table is a TSV; end its name in .tsv"),
    (["--table", "a.tsv", "-o", "./a.tsv"], 2, "a.tsv: two outputs have one name; give each its own"),
    (["--report", "x.pdf"], 2, "x.pdf: the report is HTML; end its name in .html"),
    (["--reference", "absent.fa"], 5, "absent.fa: no such file"),
    (["--dtype", "float12"], 2, "float12"),
    (["--device", "cpu:9"], 2, "device 'cpu:9' is unknown; one of auto, cpu, cuda"),
])  # fmt: skip
def test_faults(folder, tmp_path, monkeypatch, capsys, words, code, line):
    monkeypatch.chdir(tmp_path)
    assert generate(folder, *words) == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("hybridna generate: error: ") and line in captured.err
    assert list(tmp_path.iterdir()) == []


def test_f11_unsatisfiable_before_the_model_loads(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hybridna_core.commands.generate.load_model", None)
    monkeypatch.chdir(tmp_path)
    assert (
        generate(folder, "--gc", "0.9:1", "--max-homopolymer", "4", "--require", "AAWAA,WWWWW", "--length", "40") == 2
    )
    line = "no sequence of 40 bases satisfies --gc 0.9:1 and --require AAWAA; loosen one of them\n"
    assert capsys.readouterr().err == f"hybridna generate: error: {line}"


def test_a_dry_run_loads_no_model_and_writes_nothing(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hybridna_core.commands.generate.load_model", None)
    monkeypatch.chdir(tmp_path)
    assert generate(folder, "--num-beams", "50", "--length", "30", "--gc", "0.4:0.6", "--dry-run", "-o", "x.fa") == 0
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("hybridna generate: sequences 10, bases 300, seconds ")
    assert "memory about " in captured.err and "time about " in captured.err
    assert list(tmp_path.iterdir()) == []
    assert generate(folder, "--label", "45", "--dry-run") == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_g1_no_cuda_device(folder, capsys):
    assert generate(folder, "--device", "cuda") == 5
    assert "--device cpu" in capsys.readouterr().err


def test_f12_a_model_that_computes_nan(tmp_path, capsys):
    model = random_model(5)
    # Finite in the file, infinite once read: the loader cannot see it.
    model.lm_head.weight[8] = 3e38
    save_model(tmp_path / "broken", model)
    assert generate(str(tmp_path / "broken"), "--length", "9") == 6
    assert "the model's prediction is not finite; check its weights" in capsys.readouterr().err


def test_d1_no_such_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert generate("nosuchmodel") == 4
    assert "no such model folder" in capsys.readouterr().err
    assert generate(str(tmp_path)) == 4
    assert os.listdir(tmp_path) == []


def test_c37_an_output_that_exists_is_kept(folder, tmp_path, capsys):
    out = tmp_path / "out.fa"
    out.write_text("kept")
    assert generate(folder, "-o", str(out), "--length", "5") == 2
    assert "the output exists already; give --force to replace it" in capsys.readouterr().err
    assert out.read_text() == "kept"
    assert generate(folder, "-o", str(out), "--length", "5", "--force") == 0
    assert out.read_text().startswith(">design_1 ")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_g8_full_disk(folder, capsys):
    assert generate(folder, "-o", "/dev/full", "--length", "5") == 5
    assert "/dev/full: writing failed: No space left on device; free some space" in capsys.readouterr().err


def test_f7_a_temperature_close_to_0_takes_the_likeliest(folder, capsys):
    words = ["--length", "30", "-q"]
    assert generate(folder, "--num-beams", "1", *words) == 0
    greedy = capsys.readouterr().out.splitlines()[1]
    assert generate(folder, "--temperature", "1e-320", "-n", "3", *words) == 0
    assert capsys.readouterr().out.splitlines()[1::2] == [greedy] * 3


def test_f14_prompts_of_any_letters_are_marked(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.fa").write_text(">a\nACGT\n>protein\nMKVE\n>iupac\nACRA\n>lower\nacgt\n")
    assert generate(folder, "--prompts", "p.fa", "-n", "1", "--length", "5", "-q") == 0
    out = capsys.readouterr().out
    names = [line.split()[:2] for line in out.splitlines() if line.startswith(">")]
    assert names == [[">a_1", "status=ok"], [">protein", "status=bad_prompt"], [">iupac", "status=bad_prompt"],
                     [">lower_1", "status=ok"]]  # fmt: skip
    assert out.splitlines()[1] == out.splitlines()[-1]
    (tmp_path / "rna.fa").write_text(">a\nACGU\n")
    assert generate(folder, "--prompts", "rna.fa", "-o", "out.fa") == 3
    assert "rna.fa:2:4: U, so this looks like RNA; give --rna to read U as T" in capsys.readouterr().err
    assert not (tmp_path / "out.fa").exists()
    assert generate(folder, "--prompts", "rna.fa", "--rna", "-n", "1", "--length", "5", "-q") == 0
    assert capsys.readouterr().out.splitlines()[1] == out.splitlines()[1]


def test_f14_marked_prompts_are_counted(folder, tmp_path, capsysbinary):
    fasta = tmp_path / "prompts.fa"
    fasta.write_text(">a\nACGT\n>b\nNNA\n")
    assert generate(folder, "--prompts", str(fasta), "-n", "2", "--length", "5") == 0
    out, err = capsysbinary.readouterr()
    names = [line.split()[:2] for line in out.decode().splitlines() if line.startswith(">")]
    assert names == [[">a_1", "status=ok"], [">a_2", "status=ok"], [">b", "status=bad_prompt"]]
    assert "sequences 2, bad_prompt 1, bases 18" in err.decode()
