"""Tables of vectors: every format opens in the library that reads it and holds what was put in, in flat memory."""

import json
import subprocess
import sys
import tracemalloc

import anndata
import h5py
import numpy as np
import pandas
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridna_core.data.tables import (
    SUFFIXES,
    Layout,
    Spool,
    keys_beside,
    spell_row,
    spell_tsv_row,
    table_suffix,
    write_table,
)
from hybridna_core.errors import SystemFault, UsageError

COLUMNS = {"contig": str, "start": int, "name": str}
ROWS = [("chr1", 5, "a"), ("é long name", 2**62, ""), ("", -1, "tab\tand\nline")]
VECTORS = [np.float32([[1.5, -2, 1e-30]]), None, np.float32([[0.1, 3e38, 0]])]
META = {"b": 1, "a": "é"}


def lay_out(dtype="float32", arrays=("embedding",), width=3):
    return Layout(COLUMNS, arrays, width, np.dtype(dtype), META)


def write(folder, suffix, rows=ROWS, vectors=VECTORS, layout=None):
    """Write rows as one format; return the path, its keys beside it where the format has such."""
    layout = layout or lay_out()
    data = folder / "data"
    with open(data, "wb") as handle:
        for cells, vector in zip(rows, vectors, strict=True):
            handle.write(spell_row(layout, cells, vector))
        size = handle.tell()
        handle.write(b"\0" * 1000)  # what was reserved
    path = folder / f"t{suffix}"
    made, *keys = write_table(Spool(data, size, layout), str(path), suffix)
    if keys:
        (folder / "t.npy.keys").rename(keys_beside(made))
    return path


def frame(path):
    """Read TSV, keeping cells as they stand."""
    return pandas.read_csv(path, sep="\t", dtype=str, keep_default_na=False)


def read(path):
    """Read any format with the library of its users: columns as lists, arrays by name."""
    suffix = path.suffix
    if suffix == ".tsv":
        table = frame(path)
        arrays, numbers = {}, table.iloc[:, 3:].replace("", "nan").astype(np.float32).to_numpy()
        for i, name in enumerate(table.columns[3:]):
            arrays.setdefault(name.rpartition("_")[0], []).append(numbers[:, i])
        return {c: table[c].tolist() for c in COLUMNS}, {k: np.stack(v, axis=1) for k, v in arrays.items()}, None
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as table:
            arrays = {k: table[k] for k in table.files if k not in (*COLUMNS, "meta")}
            return {c: table[c].tolist() for c in COLUMNS}, arrays, json.loads(str(table["meta"]))
    if suffix == ".npy":
        array = np.load(path, mmap_mode="r")
        names = ["embedding"] if array.ndim == 2 else ["layer_1", "layer_2"]
        arrays = {name: array if array.ndim == 2 else array[:, i] for i, name in enumerate(names)}
        table = frame(keys_beside(path))
        return {c: table[c].tolist() for c in COLUMNS}, arrays, None
    if suffix == ".parquet":
        table = pandas.read_parquet(path)
        meta = json.loads(pyarrow.parquet.read_schema(path).metadata[b"hybridna"])
        names = [c for c in table.columns if c not in COLUMNS]
        arrays = {name: np.array(table[name].tolist()).reshape(len(table), 3) for name in names}
        return {c: table[c].tolist() for c in COLUMNS}, arrays, meta
    if suffix in (".h5", ".hdf5"):
        with h5py.File(path) as file:
            columns = {c: (file[c].asstr()[:] if kind is str else file[c][:]).tolist() for c, kind in COLUMNS.items()}
            arrays = {name: file[name][:] for name in file if name not in COLUMNS}
            return columns, arrays, json.loads(file.attrs["hybridna"])
    table = anndata.read_h5ad(path)
    others = dict(table.layers)
    arrays = {"layer_1" if others else "embedding": table.X, **others}
    return {c: table.obs[c].tolist() for c in COLUMNS}, arrays, json.loads(table.uns["hybridna"])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip(tmp_path, suffix, dtype):
    vectors = [np.float32([[1.5, -2, 1e-3]]), None, np.float32([[0.1, 6e4, 0]])]
    columns, arrays, meta = read(write(tmp_path, suffix, vectors=vectors, layout=lay_out(dtype)))
    start = [str(row[1]) if suffix in (".tsv", ".npy") else row[1] for row in ROWS]
    assert columns == {"contig": [r[0] for r in ROWS], "start": start, "name": ["a", "", "tab and line"]}
    expected = np.array([vectors[0][0], [np.nan] * 3, vectors[2][0]], dtype)
    found = arrays["embedding"]
    assert found.dtype == (dtype if suffix != ".tsv" else "float32")
    assert list(arrays) == ["embedding"] and np.array_equal(found.astype(dtype), expected, equal_nan=True)
    assert meta in (META, None)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_several_arrays(tmp_path, suffix):
    vectors = [np.arange(6, dtype=np.float32).reshape(2, 3) + i for i in range(3)]
    _, arrays, _ = read(write(tmp_path, suffix, vectors=vectors, layout=lay_out(arrays=("layer_1", "layer_2"))))
    assert sorted(arrays) == ["layer_1", "layer_2"]
    for i, name in enumerate(sorted(arrays)):
        assert np.array_equal(arrays[name], np.stack(vectors)[:, i])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_equal_rows_give_equal_bytes(tmp_path, suffix):
    first = write(tmp_path, suffix).read_bytes()
    assert write(tmp_path, suffix).read_bytes() == first


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_table_without_rows(tmp_path, suffix):
    columns, arrays, _ = read(write(tmp_path, suffix, [], []))
    assert columns == {name: [] for name in COLUMNS} and arrays["embedding"].shape == (0, 3)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_many_rows_in_flat_memory(tmp_path, suffix):
    count = 10000
    layout = lay_out(width=64)
    rows = [(f"r{i}", i, "x" * (i % 7)) for i in range(count)]
    data = tmp_path / "data"
    with open(data, "wb") as handle:
        for i, cells in enumerate(rows):
            handle.write(spell_row(layout, cells, np.full((1, 64), i)))
        size = handle.tell()
    tracemalloc.start()
    try:
        write_table(Spool(data, size, layout), str(tmp_path / f"t{suffix}"), suffix)
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()
    if suffix == ".npy":
        assert np.array_equal(np.load(tmp_path / "t.npy")[:, 63], np.arange(count))
    elif suffix == ".h5ad":
        table = anndata.read_h5ad(tmp_path / "t.h5ad", backed="r")
        assert table.shape == (count, 64) and table.obs["contig"].tolist()[-1] == "r9999"
        assert np.array_equal(table.X[:, 5], np.arange(count))


LIMITED = """
import os, resource, sys
import numpy as np
from hybridna_core.data.partial import hold_outputs
from hybridna_core.data.tables import Layout, Spool, spell_row, write_table
from hybridna_core.errors import SystemFault

layout = Layout({"name": str}, ("x",), 64, np.dtype("float32"), {"a": 1})

def write(path, suffix):
    with hold_outputs([path]) as outputs:
        outputs.begin({"run": "1"})
        handle = outputs.handles[0]
        for i in range(100):
            handle.write(spell_row(layout, (f"row {i}",), np.full((1, 64), i)))
        handle.flush()
        made, *_ = write_table(Spool(handle.name, handle.tell(), layout), outputs.name_aside("table"), suffix)
        outputs.finish(made=made)

folder, suffix = sys.argv[1:]
whole = os.path.join(folder, "whole" + suffix)
write(whole, suffix)
size, faults = os.path.getsize(whole), 0
for limit in range(200, size, max(1, (size - 200) // 12)):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write(os.path.join(folder, "out" + suffix), suffix)
    except SystemFault as error:
        assert "too large" in str(error), error
        faults += 1
    assert os.listdir(folder) == ["whole" + suffix], os.listdir(folder)
print("faults", faults)
"""


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".h5"])
def test_disk_that_fills_at_any_point(tmp_path, suffix):
    # A limit on file size acts on real writes at real places, as a full disk does.
    command = [sys.executable, "-W", "error", "-c", LIMITED, str(tmp_path), suffix]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[1]) >= 12 and result.stderr == ""


@settings(max_examples=200, deadline=None)
@given(st.floats(width=32, allow_nan=False), st.floats(width=16, allow_nan=False))
def test_tsv_numbers_come_back_exactly(single, half):
    for number, dtype in ((single, np.float32), (half, np.float16)):
        layout = lay_out(dtype, width=1)
        assert dtype(spell_tsv_row(layout, (), [[number]]).decode()) == dtype(number)


def test_suffix_decides(tmp_path):
    names = ("-", None, "/dev/null", "x.NPZ", "a.b.tsv", "a.h5ad")
    assert [table_suffix(p) for p in names] == [".tsv", ".tsv", ".tsv", ".npz", ".tsv", ".h5ad"]
    for name in ("x.csv", "x", "x.tsv.gz", ".tsv"):
        with pytest.raises(UsageError, match=r"\.tsv, \.npz, \.npy, \.parquet, \.h5, \.hdf5, \.h5ad"):
            table_suffix(name)


@pytest.mark.parametrize(("package", "suffix"), [("pyarrow", ".parquet"), ("h5py", ".h5"), ("h5py", ".h5ad")])
def test_package_that_is_missing(monkeypatch, package, suffix):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemFault, match=rf"needs {package}, which is not installed; pip install hybridna\[formats\]"):
        table_suffix(f"x{suffix}")


def test_packages_are_loaded_only_when_asked_for():
    code = "import sys; from hybridna_core.data import tables; tables.table_suffix('x.npz'); " \
           "print([m for m in ('h5py', 'pyarrow', 'anndata', 'pandas') if m in sys.modules])"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
