"""The ledger of faults: which test shows what a user gets for each bad input (faults.tsv).

faults.tsv: row of the catalogue, outcome, test -> every row is there, every test is there
"""

import ast
import functools
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEDGER = ROOT / "tests" / "faults.tsv"
# Rows of the catalogue that what is built must show: A FASTA, B BED, C VCF, D models, E training, F generation,
# G environment.
ROWS = [f"{group}{i}" for group, last in zip("ABCD", (38, 24, 38, 19), strict=True) for i in range(1, last + 1)]
ROWS += [f"E{i}" for i in range(1, 31)] + [f"F{i}" for i in range(1, 18)]
ROWS += [f"G{i}" for i in (1, *range(3, 17), *range(18, 29))]
OUTCOMES = re.compile(r"STOP\(([2-6]|137)\)|MARK|WARN|accepted|rebuilt|listed|in place|RESUME|exit 1(30|41|43)")


def read_ledger():
    """Return (row, outcome, test or `-`, reason) of each line."""
    header, *lines = LEDGER.read_text("utf-8").splitlines()
    assert header.split("\t") == ["row", "outcome", "test", "reason"]
    return [(*line.split("\t"), "")[:4] for line in lines]


@functools.cache
def find_tests(path):
    """Return the names of a file's tests: `test_x`, or `TestY::test_x` in a class."""
    found = set()
    for node in ast.parse((ROOT / path).read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
    return {name for name in found if name.split("::")[-1].startswith("test_")}


def check_ledger(lines, tests_of=find_tests):
    """Return what is wrong with a ledger, as texts."""
    wrong, tests = [], defaultdict(list)
    for row, outcome, test, reason in lines:
        if row not in ROWS:
            wrong.append(f"{row} is no row to show")
        if not OUTCOMES.fullmatch(outcome):
            wrong.append(f"{row}: {outcome!r} is no outcome")
        tests[row].append(test)
        if test == "-":
            if not reason.strip():
                wrong.append(f"{row}: neither a test nor a reason")
            continue
        path, _, name = test.partition("::")
        if not (ROOT / path).is_file():
            wrong.append(f"{row}: no file {path}")
        elif name not in tests_of(path):
            wrong.append(f"{row}: {path} has no {name}")
    wrong += [f"{row} is absent" for row in ROWS if row not in tests]
    wrong += [f"{row}: a test and a reason for none" for row, names in tests.items() if "-" in names and len(names) > 1]
    wrong += [f"{line[0]}: {line[2]} stands twice" for line in set(lines) if lines.count(line) > 1]
    return wrong


def test_every_row_has_a_test_or_a_reason():
    lines = read_ledger()
    assert check_ledger(lines) == []
    assert [row for row, _, test, _ in lines if test == "-"] == ["D15", "E18", "G19"]
    order = [ROWS.index(row) for row, *_ in lines]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: [line for line in lines if line[0] != "B7"], "B7 is absent"),
        (lambda lines: [*lines, ("G28", "accepted", "-", "")], "G28: neither a test nor a reason"),
        (lambda lines: [*lines, ("G28", "accepted", "-", "later")], "G28: a test and a reason for none"),
        (lambda lines: [*lines, ("G99", "accepted", "-", "later")], "G99 is no row to show"),
        (lambda lines: [*lines, ("G28", "STOP", "-", "later")], "G28: 'STOP' is no outcome"),
        (lambda lines: [*lines, ("G28", "MARK", "tests/cli/test_app.py::test_no", "")], "tests/cli/test_app.py has no"),
        (lambda lines: [*lines, ("G28", "MARK", "tests/test_no.py::test_no", "")], "G28: no file tests/test_no.py"),
        (lambda lines: [*lines, lines[0]], "A1: tests/core/test_genome.py::"),
    ],
)
def test_the_check_finds_what_is_wrong(change, words):
    assert any(words in text for text in check_ledger(change(read_ledger())))
