"""Outputs appear whole or not at all, never over an input, and tables hold what was put in."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridna_core.data.writers import (
    atomic_output,
    check_output,
    fasta_record,
    is_stdout,
    open_output,
    open_table,
    table_suffix,
)
from hybridna_core.errors import SystemFault, UsageError

COLUMNS = {"contig": str, "start": int, "share": float}
SUFFIXES = (".tsv", ".npz", ".parquet")


def put(path, content=b"before"):
    path.write_bytes(content)
    return str(path)


def run(code, *arguments, **options):
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options)


# --- Before any work --------------------------------------------------------------------------------------------------


def test_output_is_an_input(tmp_path):
    source = put(tmp_path / "in.tsv")
    os.link(source, tmp_path / "hard.tsv")
    os.symlink(source, tmp_path / "soft.tsv")
    for name in ("in.tsv", "hard.tsv", "soft.tsv", "../" + tmp_path.name + "/in.tsv"):
        with pytest.raises(UsageError, match="the output is the input") as caught:
            check_output(tmp_path / name, inputs=("-", None, source), force=True)
        assert caught.value.exit_code == 2
    check_output(tmp_path / "new.tsv", inputs=(source, str(tmp_path / "missing")))


def test_output_is_an_inputs_index(tmp_path):
    fasta = tmp_path / "g.fa"
    fasta.write_bytes(b">a\nA\n")
    for suffix in (".fai", ".gzi", ".tbi", ".csi"):
        with pytest.raises(UsageError, match="the output is the index of the input"):
            check_output(f"{fasta}{suffix}", inputs=(None, "-", fasta), force=True)
    check_output(f"{fasta}.txt", inputs=(fasta,))


def test_names_that_cannot_be(tmp_path):
    with pytest.raises(UsageError, match="longer than names can be"):
        check_output(tmp_path / ("x" * 256))
    check_output(tmp_path / ("x" * 255), inputs=("no\0file",))
    words = "out: writing failed: No such file or directory"
    with pytest.raises(SystemFault, match=words), atomic_output(tmp_path / "no" / "out"):
        pytest.fail("began")


def test_output_exists(tmp_path):
    path = put(tmp_path / "out.tsv")
    with pytest.raises(UsageError, match=r"exists already; give --force"):
        check_output(path)
    check_output(path, force=True)
    assert os.listdir(tmp_path) == ["out.tsv"]


def test_output_is_a_folder(tmp_path):
    for name in (str(tmp_path), str(tmp_path / "new") + "/"):
        with pytest.raises(UsageError, match="is a folder"):
            check_output(name, force=True)
    with pytest.raises(UsageError, match="no file name"):
        check_output("")


def test_output_folder_is_missing_or_cannot_be_written(tmp_path, monkeypatch):
    with pytest.raises(SystemFault, match=r"does not exist; make it first") as caught:
        check_output(tmp_path / "none" / "out.tsv")
    assert caught.value.exit_code == 5
    with pytest.raises(SystemFault, match="cannot be written to"):
        check_output("/proc/out.tsv")

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SystemFault, match="cannot be written to: Read-only file system"):
        check_output(tmp_path / "out.tsv")


def test_streams_and_devices_need_no_force(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("-", None, "/dev/stdout", "/dev/null", "/dev/full", tmp_path / "pipe"):
        check_output(name)
    assert is_stdout(None) and is_stdout("-") and is_stdout("/dev/stdout") and not is_stdout("./-")


# --- Writing ----------------------------------------------------------------------------------------------------------


def test_output_appears_when_whole(tmp_path):
    target = tmp_path / "out.vcf.gz"
    before = os.umask(0o027)
    try:
        with atomic_output(target) as temporary:
            assert os.path.dirname(temporary) == str(tmp_path) and temporary.endswith(".vcf.gz")
            assert not target.exists()
            with open(temporary, "w") as handle:
                handle.write("whole")
    finally:
        os.umask(before)
    assert target.read_text() == "whole" and os.listdir(tmp_path) == ["out.vcf.gz"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_nothing_stays_after_an_error(tmp_path, error):
    target = tmp_path / "out.txt"
    for force in (False, True):
        with pytest.raises(type(error)), open_output(target, force) as handle:
            handle.write(b"half")
            raise error
        assert os.listdir(tmp_path) == (["out.txt"] if force else [])
        put(target)
    assert target.read_bytes() == b"before"


def test_killed_run_leaves_the_old_output(tmp_path):
    target = put(tmp_path / "out.txt")
    code = (
        "import os, signal, sys; from hybridna_core.data.writers import open_output\n"
        "with open_output(sys.argv[1], True) as handle:\n"
        "    handle.write(b'half'); handle.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert run(code, target).returncode == -signal.SIGKILL
    with open(target, "rb") as handle:
        assert handle.read() == b"before"


def test_output_that_appears_meanwhile_is_kept(tmp_path):
    target = tmp_path / "out.txt"
    with pytest.raises(UsageError, match="appeared while this ran"), open_output(target) as handle:
        handle.write(b"ours")
        put(target, b"theirs")
    assert target.read_bytes() == b"theirs" and os.listdir(tmp_path) == ["out.txt"]


def test_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    put(tmp_path / "real" / "out.txt")
    os.symlink("real/out.txt", tmp_path / "link.txt")
    with open_output(tmp_path / "link.txt", force=True) as handle:
        handle.write(b"after")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real" / "out.txt").read_bytes() == b"after"
    assert os.listdir(tmp_path / "real") == ["out.txt"]


@pytest.mark.parametrize("name", ["a" * 255, "-x", "with blank\nand newline", "é.tsv", "." + "b." * 127])
def test_odd_names(tmp_path, name):
    check_output(tmp_path / name)
    with open_output(tmp_path / name) as handle:
        handle.write(b"x")
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_faults_at_the_end_count(tmp_path, monkeypatch, call):
    target = put(tmp_path / "out.txt")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    for path, force in ((tmp_path / "new.txt", False), (target, True)):
        with pytest.raises(SystemFault, match=r"No space left on device; free"), open_output(path, force) as handle:
            handle.write(b"x")
    assert os.listdir(tmp_path) == ["out.txt"]
    with open(target, "rb") as handle:
        assert handle.read() == b"before"


LIMITED = """
import os, resource, sys
from hybridna_core.data.writers import open_table
from hybridna_core.errors import SystemFault

def write(path):
    with open_table(path, {"name": str}, vector="x", width=64, meta={"a": 1}) as add:
        for i in range(300):
            add((f"row {i}",), [i] * 64)

folder, suffix = sys.argv[1:]
whole = os.path.join(folder, "whole" + suffix)
write(whole)
size, faults = os.path.getsize(whole), 0
for limit in range(0, size, max(1, size // 25)):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write(os.path.join(folder, "out" + suffix))
    except SystemFault as error:
        assert "too large" in str(error), error
        faults += 1
    assert os.listdir(folder) == ["whole" + suffix], os.listdir(folder)
print("faults", faults)
"""


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_disk_that_fills_at_any_point(tmp_path, suffix):
    # A limit on file size acts on real writes at real places, as a full disk does.
    result = run(LIMITED, tmp_path, suffix)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[1]) >= 25 and result.stderr == ""


def test_full_device(tmp_path):
    for size in (1, 10**6):
        with pytest.raises(SystemFault, match="No space left"), open_output("/dev/full") as handle:
            handle.write(b"x" * size)
    with pytest.raises(SystemFault, match="No space left"), open_table("/dev/full", COLUMNS) as add:
        add(("a", 1, 0.5))


def test_full_standard_output():
    code = (
        "from hybridna_core.data.writers import open_output; from hybridna_core.errors import SystemFault\n"
        "import os, sys\n"
        "try:\n"
        "    with open_output('-') as handle: handle.write(b'x')\n"
        "except SystemFault as error:\n"
        "    print(error, file=sys.stderr); sys.stderr.flush(); os._exit(error.exit_code)"
    )
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60
        )
    assert result.returncode == 5
    assert result.stderr == "standard output: writing failed: No space left on device; free some space and run again\n"


def test_reader_that_went_away_is_no_fault():
    code = (
        "from hybridna_core.data.writers import open_output; import os\n"
        "reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1)\n"
        "try:\n"
        "    with open_output('-') as handle: handle.write(b'x')\n"
        "except BrokenPipeError: os._exit(41)"
    )
    assert run(code).returncode == 41


def test_closed_standard_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemFault, match="standard output is closed"), open_output("-"):
        pass


def test_redirected_standard_output_is_not_cut(tmp_path):
    code = (
        "from hybridna_core.data.writers import open_output; import sys\n"
        "sys.stdout.write('first ')\n"
        "with open_output(sys.argv[1]) as handle: handle.write(b'second ')\n"
        "sys.stdout.write('third')"
    )
    for name in ("-", "/dev/stdout"):
        path = put(tmp_path / "all.txt", b"head ")
        with open(path, "ab") as handle:
            subprocess.run([sys.executable, "-c", code, name], stdout=handle, check=True, timeout=60)
        with open(path, "rb") as handle:
            assert handle.read() == b"head first second third"


def test_pipes_and_devices_are_written_in_place(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    with open_output(pipe) as handle:
        handle.write(b"through")
    reader.join(30)
    assert found == [b"through"] and stat.S_ISFIFO(pipe.stat().st_mode)
    with open_output("/dev/null") as handle:
        handle.write(b"x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


# --- Tables and FASTA -------------------------------------------------------------------------------------------------

ROWS = [("chr1", 5, 0.25), ("é long name", 2**62, float("nan")), ("", -1, 1e-300)]
VECTORS = [np.float32([1.5, -2, 1e-30]), None, np.float32([0.1, 3e38, 0])]


def write(path, **options):
    with open_table(path, COLUMNS, vector="x", width=3, meta={"b": 1, "a": "é"}, **options) as add:
        for row, vector in zip(ROWS, VECTORS, strict=True):
            add(row, vector)


def test_npz_round_trip(tmp_path):
    write(tmp_path / "t.npz")
    with np.load(tmp_path / "t.npz", allow_pickle=False) as table:
        assert table.files == ["contig", "start", "share", "x", "meta"]
        assert table["contig"].tolist() == [r[0] for r in ROWS] and table["start"].tolist() == [r[1] for r in ROWS]
        assert np.array_equal(table["share"], [r[2] for r in ROWS], equal_nan=True)
        assert table["x"].dtype == np.float32 and table["x"].shape == (3, 3)
        assert np.array_equal(table["x"][[0, 2]], [VECTORS[0], VECTORS[2]]) and np.isnan(table["x"][1]).all()
        assert json.loads(str(table["meta"])) == {"a": "é", "b": 1}


def test_parquet_round_trip(tmp_path):
    write(tmp_path / "t.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "t.parquet")
    assert table.column("contig").to_pylist() == [r[0] for r in ROWS]
    assert table.column("start").to_pylist() == [r[1] for r in ROWS]
    vectors = table.column("x").to_pylist()
    assert np.array_equal(np.float32(vectors[2]), VECTORS[2]) and np.isnan(vectors[1]).all()
    assert json.loads(table.schema.metadata[b"hybridna"]) == {"a": "é", "b": 1}


def test_tsv_round_trip(tmp_path):
    write(tmp_path / "t.tsv")
    lines = (tmp_path / "t.tsv").read_text(encoding="utf-8").split("\n")
    assert lines[0].split("\t") == ["contig", "start", "share", "x_0", "x_1", "x_2"] and lines[-1] == ""
    cells = [line.split("\t") for line in lines[1:-1]]
    assert [c[:2] for c in cells] == [[r[0], str(r[1])] for r in ROWS]
    assert cells[1][3:] == ["", "", ""] and np.array_equal(np.float32(cells[2][3:]), VECTORS[2])


@settings(max_examples=200, deadline=None)
@given(st.floats(width=32, allow_nan=False))
def test_tsv_numbers_come_back_exactly(number):
    import io

    from hybridna_core.data.writers import _TsvTable

    handle = io.BytesIO()
    _TsvTable(handle, "-", {}, "x", 1, None).add((), [number])
    assert np.float32(handle.getvalue().decode()) == np.float32(number)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_equal_runs_give_equal_bytes(tmp_path, suffix):
    write(tmp_path / f"a{suffix}")
    write(tmp_path / f"b{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_table_without_rows(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    with open_table(path, COLUMNS, vector="x", width=3):
        pass
    if suffix == ".npz":
        with np.load(path) as table:
            assert table["x"].shape == (0, 3) and table["contig"].shape == (0,)
    elif suffix == ".parquet":
        assert pyarrow.parquet.read_table(path).num_rows == 0
    else:
        assert path.read_text() == "contig\tstart\tshare\tx_0\tx_1\tx_2\n"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_many_rows(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    count = 5000
    with open_table(path, {"name": str}, vector="x", width=2) as add:
        for i in range(count):
            add((f"r{i}",), [i, -i])
    if suffix == ".npz":
        with np.load(path) as table:
            names, x = table["name"].tolist(), table["x"]
    elif suffix == ".parquet":
        table = pyarrow.parquet.read_table(path)
        names, x = table.column("name").to_pylist(), np.array(table.column("x").to_pylist())
    else:
        cells = [line.split("\t") for line in path.read_text().splitlines()[1:]]
        names, x = [c[0] for c in cells], np.float32([c[1:] for c in cells])
    assert names == [f"r{i}" for i in range(count)]
    assert np.array_equal(x, [[i, -i] for i in range(count)])


@pytest.mark.parametrize("suffix", [".tsv", ".npz"])
def test_memory_does_not_grow_with_rows(tmp_path, suffix):
    tracemalloc.start()
    try:
        with open_table(tmp_path / f"t{suffix}", {"name": str}, vector="x", width=64) as add:
            row = np.ones(64, dtype=np.float32)
            for i in range(30000):
                add((f"name of row {i}",), row)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


def test_cells_cannot_break_a_table(tmp_path):
    with open_table(tmp_path / "t.tsv", {"a": str, "b": str}) as add:
        add(("x\ty", "z\r\nw"))
    assert (tmp_path / "t.tsv").read_bytes() == b"a\tb\nx y\tz  w\n"


def test_suffix_decides(tmp_path):
    assert [table_suffix(p) for p in ("-", None, "/dev/null", "x.NPZ", "a.b.tsv")] == [
        ".tsv",
        ".tsv",
        ".tsv",
        ".npz",
        ".tsv",
    ]
    for name in ("x.csv", "x", "x.tsv.gz", ".tsv"):
        with pytest.raises(UsageError, match=r"\.tsv, \.parquet, \.npz"):
            table_suffix(name)


def test_parquet_without_pyarrow(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SystemFault, match=r"pip install hybridna\[formats\]"):
        table_suffix("x.parquet")


def test_fasta_record():
    assert fasta_record("a", "ACGTA", width=2) == ">a\nAC\nGT\nA\n"
    assert fasta_record("a", "ACGT", {"label": "300", "p": 0.5}) == ">a label=300 p=0.5\nACGT\n"
