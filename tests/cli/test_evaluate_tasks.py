"""`hybridna evaluate gue` and its kin from the command line: exit codes, messages, outputs."""

import json

import pytest
from tables import lay_out_task, write_table
from toys import SMALL

from hybridna_cli.app import run
from hybridna_core.checkpoint import save_model
from hybridna_core.model.hybrid import HybridLM


@pytest.fixture
def call(tmp_path, capfd, monkeypatch):
    """Run a command in a folder with a small task; return exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "base", HybridLM(SMALL, seed=1))
    lay_out_task(tmp_path / "GUE" / "mouse" / "0", 32, 12, 12)

    def call(*words):
        code = run(["evaluate", *map(str, words)])
        streams = capfd.readouterr()
        assert "Traceback" not in streams.err
        return code, streams.out, streams.err

    return call


def test_gue(call, tmp_path):
    words = ["-m", "base", "--device", "cpu", "--epochs", 1, "--lr", "1e-2", "--echo", "none,rc", "--no-baselines"]
    code, out, err = call("gue", "GUE", "-o", "out", *words, "--summary-json", "s.json", "--compare")
    assert code == 0 and out == "" and "tasks 1, trained 2" in err
    table = json.loads((tmp_path / "s.json").read_text())
    assert [row["method"] for row in table["rows"]] == ["fine-tuned, mean", "fine-tuned, mean, echo rc"]
    assert {p.name for p in (tmp_path / "out").iterdir() if p.is_file()} == {
        "evaluation.json", "results.tsv", "results.md", "results.png", "compare.tsv", "compare.md"}  # fmt: skip
    code, _, err = call("gue", "GUE", "-o", "out", *words)
    assert code == 0 and "trained 0, kept 2" in err
    code, _, err = call("bend", "GUE", "-o", "out", "-f", "x.fa")
    assert code == 3 and "holds no task laid out as bend publishes them" in err


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["gue", "GUE", "-o", "o", "--lr", "fast"], 2, "--lr: is 'fast', must be numbers with commas between"),
        (["gue", "absent", "-o", "o"], 5, "absent: no such file or folder"),
        (["gue", "GUE", "-o", "o", "--tasks", "mouse/9"], 2, "'mouse/9' is no task here"),
        (["gue", "GUE", "-o", "o", "-m", "hf:GUE"], 5, "GUE: no config.json"),
        (["gue", "GUE", "-o", "o", "--split-column", "x"], 2, "--split-column"),
        (["lrb", "GUE", "-o", "o"], 3, "holds no task laid out as lrb publishes them"),
        (["predictions", "p.tsv", "GUE/mouse/0/test.csv"], 3, "p.tsv: 1 of 1 predictions have no label, 12 of 12"),
    ],
)
def test_what_does_not_do(call, tmp_path, words, code, text):
    write_table(tmp_path / "p.tsv", [("77", "1")], ("row", "prediction"))
    found, out, err = call(*words)
    assert (found, out) == (code, "") and text in err and not (tmp_path / "o").exists()
