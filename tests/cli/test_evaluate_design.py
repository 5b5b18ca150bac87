"""`hybridna evaluate design` from the command line: table, summary, exit codes and messages."""

import json

import pytest
from tables import write_table

from hybridna_cli.app import run
from hybridna_core.data.reporter import activity

MADE = (">a label=300 status=ok\nTTCAAAGTCCATT\n>b label=300 status=ok\nTTACACACACATT\n"
        ">c label=030 status=ok\nTTAGATAAGGATT\n")  # fmt: skip
REAL = [("TTCAAAGTCCAAA", "300"), ("GGGGGGGGGGGGG", "300"), ("TTTTTTTTTTTTT", "000")]


@pytest.fixture
def call(tmp_path, capfd, monkeypatch):
    """Run a command in a folder with designs and real sequences; return exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made.fa").write_text(MADE)
    (tmp_path / "empty.fa").write_text("")
    write_table(tmp_path / "real.tsv", REAL)

    def call(*words):
        code = run(["evaluate", "design", *map(str, words)])
        streams = capfd.readouterr()
        assert "Traceback" not in streams.err
        return code, streams.out, streams.err

    return call


def test_table_and_summary(call, tmp_path):
    words = ["made.fa", "--real", "real.tsv", "--oracle", "simulated"]
    code, out, err = call(*words, "--beside", "other=made.fa", "--summary-json", "s.json")
    assert code == 0
    header, *rows = (line.split("\t") for line in out.splitlines())
    cells = {(row[0], row[1]): dict(zip(header, row, strict=True)) for row in rows}
    assert [name for label, name in cells if label == "300"] == ["designs", "real", "real, any label", "other"]
    one = cells["300", "designs"]
    assert (
        one["top_1"] == f"{activity(['TTCAAAGTCCATT'])[0, 0]:.4g}" and one["n"] == "2" and one["nearest_real"] != "NA"
    )
    assert cells["300", "other"] == one | {"set": "other"}
    assert cells["030", "real"]["n"] == "0" and cells["030", "real"]["top_1"] == "NA"
    assert "warning: the oracle is the simulated assay, for trying out only: no activity here was measured" in err
    assert "warning: no real sequence has label 030" in err
    assert "designs 3, real 3, labels 2, oracle simulated" in err.splitlines()[-1]
    summary = json.loads((tmp_path / "s.json").read_text())
    assert [(row["label"], row["set"]) for row in summary["rows"]] == list(cells)
    code, out, _ = call(*words, "--label", "300", "-o", "t.md", "--sequences", "s.tsv", "-q")
    assert (code, out) == (0, "") and (tmp_path / "t.md").read_text().startswith("| label | set | n |")
    assert len((tmp_path / "s.tsv").read_text().splitlines()) == 1 + 2 + 2 + 3


def test_several_files_are_one_set(call, tmp_path):
    (tmp_path / "more.fa").write_text(">d label=300\nTTTTTTTTTTTTT\n")
    code, out, _ = call("made.fa", "more.fa", "--real", "real.tsv", "--oracle", "simulated", "-q")
    assert code == 0 and out.splitlines()[1].split("\t")[:4] == ["300", "designs", "3", "3"]


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["empty.fa"], 3, "empty.fa: no sequence found; was the download complete?"),
        (["mad.fa"], 5, "mad.fa: no such file; did you mean made.fa?"),
        (["."], 5, ".: is a folder; give a file"),
        (["-"], 2, "-: standard input cannot be read at random; give a file"),
        (["made.fa", "--real", "rael.tsv"], 5, "rael.tsv: no such file; did you mean real.tsv?"),
        (
            ["made.fa", "--label-column", "lable"],
            3,
            "real.tsv:1: no column 'lable' for the labels; did you mean 'label'?",
        ),
        (["made.fa", "--label", "44"], 2, "--label: label '44' has 2 digits, the oracle gives 3 numbers"),
        (["made.fa", "--label", "003"], 3, "made.fa: no design has label 003; they have 300, 030"),
        (["made.fa", "--oracle", "absent"], 4, "absent: no such model folder"),
        (["made.fa", "-m", "base"], 4, "base: this model knows no labels"),
        (["made.fa", "-o", "t.csv"], 2, "t.csv: the name tells no table format; end it in .tsv or .md"),
        (["made.fa", "-o", "real.tsv", "--force"], 2, "real.tsv: the output is the input real.tsv"),
        (["made.fa", "-o", "no/t.tsv"], 5, "no does not exist; make it first (mkdir -p)"),
        (["made.fa", "--beside", "made.fa"], 2, "--beside: is 'made.fa', must be NAME=FILE"),
        (["made.fa", "--pears", "3"], 2, "no option called '--pears'; did you mean '--pairs'?"),
    ],
)
def test_what_does_not_do(call, words, code, text):
    named = {word for word in words if word.startswith("--")}
    words = [*words, *([] if "--real" in named else ["--real", "real.tsv"])]
    words += [] if "--oracle" in named else ["--oracle", "simulated"]
    found, out, err = call(*words)
    errors = [line for line in err.splitlines() if ": error: " in line]
    assert (found, out, len(errors)) == (code, "", 1)
    assert errors[0].startswith("hybridna evaluate design: error: ") and text in errors[0]
