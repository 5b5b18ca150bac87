"""The log of a training run: cut at the snapshot on resume, never a reason to stop."""

import json

import pytest
from genome_files import warnings_of

from hybridna_core.train.log import Log


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_log_is_cut_at_the_snapshot(tmp_path):
    path = tmp_path / "log.jsonl"
    first = Log(path, 0)
    for step in (10, 20, 30):
        first.write(step=step, bits_per_base=2.0 / step)
        first.write(step=step, valid={"bug": 1.9})
    first.close()
    with path.open("a") as handle:
        handle.write('{"step": 3')
    again = Log(path, 20)
    assert [entry["step"] for entry in lines(path)] == [10, 10, 20, 20]
    assert again.valid_at(20) == {"bug": 1.9} and again.valid_at(10) is None and again.valid_at(30) is None
    again.write(step=30)
    again.close()
    assert [entry["step"] for entry in lines(path)] == [10, 10, 20, 20, 30]
    before = path.stat().st_ino
    Log(path, 30).close()
    assert path.stat().st_ino == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("rest", ["\0\0\0\n", "[]\n", '{"step": "x"}\n', '"text"\n', '{"stp": 3}\n', "\xff\n"])
def test_lines_that_are_none_of_ours_are_dropped(tmp_path, rest):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n' + rest.encode("latin-1") + b'{"step": 2}\n')
    Log(path, 9).close()
    assert lines(path) == [{"step": 1}, {"step": 2}]


def test_a_log_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    log = Log(tmp_path / "log.jsonl", 0)
    log._handle.close()
    with open("/dev/full", "w") as full:
        log._handle = full
        log.write(step=1)
        log.sync()
        log.close()
    (said,) = warnings_of(caplog, "log")
    assert said == f"{tmp_path / 'log.jsonl'}: a line could not be written: No space left on device"
