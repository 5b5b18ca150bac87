"""`hybridna bench`: the table on stdout, and the same as JSON."""

import csv
import io
import json

from hybridna_cli import bench
from hybridna_cli.app import run
from hybridna_core.commands.bench import TASKS
from hybridna_core.context_lengths import Point

SIZES = ["--hidden-size", "64", "--layers", "1", "--state-size", "16", "--repeats", "1"]


def test_table_and_json_say_the_same(capsys, tmp_path):
    path = tmp_path / "bench.json"
    work = ["--task", "embed", "--length", "50", "--length", "30", "--count", "2", "--summary-json", str(path)]
    assert run(["bench", *work, *SIZES]) == 0
    captured = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(captured.out), delimiter="\t"))
    found = json.loads(path.read_text())
    assert [(row["case"], row["tokens"], row["count"]) for row in rows] == [("embed", "50", "2"), ("embed", "30", "2")]
    for row, due in zip(rows, found["rows"], strict=True):
        seconds = [
            row[name] for name in ("hybridna_s", "fastest", "slowest", "other_s", "other_fastest", "other_slowest")
        ]
        assert seconds == [f"{value:.4f}" for value in due["hybridna"] + due["other"]]
        assert row["ratio"] == f"{due['ratio']:.2f}" and row["regions_per_s"] == f"{due['per_second']:.4g}"
    assert found["device"] == "cpu" and "device cpu" in captured.err
    assert found["beside"] in captured.err and found["versions"]["torch"] in captured.err


def test_a_point_without_figures_says_why(capsys, monkeypatch):
    good = Point("hybrid", 10, "ok", (2.0, 1.0, 4.0), 3, 5.0, 2.5, 5 * 2**20, 2**28)
    monkeypatch.setattr("hybridna_core.context_lengths.time_lengths", lambda *_: [good, Point("x", 10, "skipped: why")])
    assert run(["bench", "--task", "lengths", *SIZES, "--limit", "3"]) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert first.split("\t") == ["hybrid", "10", "2.000", "1.000", "4.000", "3", "5", "2.50", "5", "256", "ok"]
    assert second.split("\t") == ["x", "10", *[""] * 8, "skipped: why"]
    assert len(header.split("\t")) == 11


def test_an_unknown_task_names_the_nearest(capsys):
    assert run(["bench", "--task", "length"]) == 2
    assert "did you mean lengths?" in capsys.readouterr().err


def test_a_device_that_a_task_does_not_take_or_that_is_not_there(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    work = ["--device", "cuda", "--length", "20", *SIZES]
    assert run(["bench", "--task", "embed", *work]) == 2
    assert "--device: embed is timed on the CPU; forward, train, lengths run on CUDA too" in capsys.readouterr().err
    assert run(["bench", "--task", "lengths", *work]) == 5
    assert "no device cuda" in capsys.readouterr().err


def test_help_names_every_task():
    assert all(f"{name}" in bench.TASKS for name in TASKS)
