"""Tables of vectors read back, to join the parts that several processes made of one.

part -> Layout, what it says of its shard, rows in order -> spool of all -> the format again
"""

import contextlib
import json
import os

import numpy as np

from hybridna_core.data.shards import read_part
from hybridna_core.data.tables import SUFFIXES, Layout, keys_beside, load_package, spell_row
from hybridna_core.errors import DataError

NUMBERS = ("start", "end", "pos", "unknown", "base")
ROWS = 4096


def is_table(path):
    """Tell whether a file is a part of embed's output, by its suffix; of a TSV by its first line."""
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix != ".tsv":
        return suffix in SUFFIXES
    part = read_first_line(path)
    return part is not None and part.kind == "embed"


def read_first_line(path):
    """Return the Part that a TSV begins with, or None."""
    with open(path, "rb") as handle:
        return read_part(handle.readline(1000).decode("utf-8", "replace").rstrip("\n"))


@contextlib.contextmanager
def open_part(path):
    """Yield (Part, Layout without it, iterator of (cells, numbers (rows, arrays, width))) of a part."""
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    opener = {".npz": _open_npz, ".npy": _open_npy, ".parquet": _open_parquet}.get(suffix, _open_hdf5)
    try:
        with opener(path) as (line, names, arrays, width, dtype, meta, rows):
            part = read_part(line)
            if part is None:
                raise _no_part(path)
            columns = {name: int if name in NUMBERS else str for name in names}
            yield part, Layout(columns, tuple(arrays), width, np.dtype(dtype), meta), rows
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"cannot be read: {error}", where=path, hint="is it whole? copy it again") from error


def _no_part(path):
    return DataError("is no part of a sharded run", where=path, hint="parts are what embed --shard i/n writes")


def copy_lines(path, handle, is_first):
    """Append the rows of a TSV to another, with their header if they are the first; return how many there were."""
    with open(path, "rb") as source:
        source.readline()
        header = source.readline()
        if is_first:
            handle.write(header)
        count = 0 if header.endswith(b"\n") else -1
        for line in source:
            handle.write(line)
            # A row whose end is missing is none.
            count += line.endswith(b"\n")
    return count


def copy_rows(layout, rows, handle):
    """Append rows to a spool; return how many there were."""
    count = 0
    for cells, numbers in rows:
        for row, vectors in zip(cells, numbers, strict=True):
            handle.write(spell_row(layout, row, vectors))
            count += 1
    return count


def _take_meta(text):
    meta = json.loads(text)
    return meta.pop("part", ""), meta


def _array_names(meta):
    return ["embedding"] if len(meta["layers"]) == 1 else [f"layer_{layer}" for layer in meta["layers"]]


@contextlib.contextmanager
def _open_npz(path):
    with np.load(path, allow_pickle=False) as table:
        line, meta = _take_meta(str(table["meta"]))
        arrays = _array_names(meta)
        names = [name for name in table.files if name not in (*arrays, "meta")]
        columns, numbers = [table[name].tolist() for name in names], [table[name] for name in arrays]
        rows = _blocks(lambda a, b: list(zip(*(c[a:b] for c in columns), strict=True)), numbers)
        yield line, names, arrays, numbers[0].shape[1], numbers[0].dtype, meta, rows


@contextlib.contextmanager
def _open_npy(path):
    numbers = np.load(path, mmap_mode="r", allow_pickle=False)
    numbers = numbers[:, None] if numbers.ndim == 2 else numbers
    with open(keys_beside(path), encoding="utf-8", errors="surrogateescape", newline="\n") as keys:
        line, names = keys.readline().rstrip("\n"), keys.readline().rstrip("\n").split("\t")

        def read_keys():
            line = keys.readline()
            cells = line.rstrip("\n").split("\t")
            if not line.endswith("\n") or len(cells) != len(names):
                raise ValueError(f"{keys.name} is cut")
            return cells

        def rows():
            for start in range(0, len(numbers), ROWS):
                block = numbers[start : start + ROWS]
                yield [read_keys() for _ in block], block
            if keys.read(1):
                raise ValueError(f"{keys.name} has more lines than there are vectors")

        yield line, names, [f"layer_{i}" for i in range(numbers.shape[1])], numbers.shape[2], numbers.dtype, {}, rows()


@contextlib.contextmanager
def _open_parquet(path):
    with load_package("pyarrow").parquet.ParquetFile(path) as file:
        line, meta = _take_meta(file.schema_arrow.metadata[b"hybridna"])
        arrays = _array_names(meta)
        names = [name for name in file.schema_arrow.names if name not in arrays]
        kind = file.schema_arrow.field(arrays[0]).type

        def rows():
            for batch in file.iter_batches(ROWS):
                cells = list(zip(*(batch.column(name).to_pylist() for name in names), strict=True))
                flat = [batch.column(name).flatten().to_numpy().reshape(len(cells), -1) for name in arrays]
                yield cells, np.stack(flat, axis=1)

        yield line, names, arrays, kind.list_size, kind.value_type.to_pandas_dtype(), meta, rows()


@contextlib.contextmanager
def _open_hdf5(path):
    with load_package("h5py").File(path) as file:
        is_anndata = "obs" in file
        text = file["uns/hybridna"].asstr()[()] if is_anndata else file.attrs["hybridna"]
        line, meta = _take_meta(text)
        arrays = _array_names(meta)
        names = list(file["obs"].attrs["column-order"] if is_anndata else file.attrs["columns"])
        tables = file["obs"] if is_anndata else file
        columns = [tables[name] if name in NUMBERS else tables[name].asstr() for name in names]
        places = ["X", *(f"layers/{name}" for name in arrays[1:])] if is_anndata else arrays
        numbers = [file[place] for place in places]
        rows = _blocks(lambda a, b: list(zip(*(c[a:b].tolist() for c in columns), strict=True)), numbers)
        yield line, names, arrays, numbers[0].shape[1], numbers[0].dtype, meta, rows


def _blocks(cells, arrays):
    for start in range(0, len(arrays[0]), ROWS):
        yield cells(start, start + ROWS), np.stack([array[start : start + ROWS] for array in arrays], axis=1)
