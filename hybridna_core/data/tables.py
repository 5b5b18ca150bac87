"""Tables of vectors: rows spooled as they come, then laid out as the format that the output's suffix names.

cells, vectors -> one spool, in input order -> TSV, npz, npy with a TSV, Parquet, HDF5 or AnnData, block by block

An array's size stands before its first row, and columns lie apart in most formats, so rows are kept in the order in
which they come until all are there. A spool is also what a run that was killed goes on with.
"""

import io
import json
import os
import zipfile
from typing import NamedTuple

import numpy as np

from hybridna_core.data.writers import is_in_place, is_stdout, load_pyarrow
from hybridna_core.errors import SystemFault, UsageError

SUFFIXES = {".tsv": None, ".npz": None, ".npy": None, ".parquet": "pyarrow", ".h5": "h5py", ".hdf5": "h5py",
            ".h5ad": "h5py"}  # fmt: skip
BLOCK_BYTES = 2**22
_BLANKS = str.maketrans("\t\r\n", "   ")


class Layout(NamedTuple):
    """What a row is.

    columns  name -> str or int, in order
    arrays   names of its vectors, one or more
    width    numbers per vector
    dtype    of the numbers, float32 or float16
    meta     dict, kept as JSON where a format can hold it
    """

    columns: dict
    arrays: tuple
    width: int
    dtype: np.dtype
    meta: dict

    @property
    def row_bytes(self):
        return len(self.arrays) * self.width * self.dtype.itemsize


def table_suffix(path):
    """Return the suffix that decides a table's format; standard output and devices are TSV.

    Raises UsageError for an unknown suffix, SystemFault when the format's package is not installed.
    """
    if is_stdout(path) or is_in_place(os.fspath(path)):
        return ".tsv"
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix not in SUFFIXES:
        what = f"the suffix {suffix!r} is no table format" if suffix else "the name has no suffix"
        raise UsageError(what, where=os.fspath(path), hint=f"end it in {', '.join(SUFFIXES)}")
    if SUFFIXES[suffix] is not None:
        load_package(SUFFIXES[suffix])
    return suffix


def load_package(package):
    """Import what only some formats need."""
    if package == "pyarrow":
        return load_pyarrow()
    try:
        import h5py
    except ImportError:
        hint = "pip install hybridna[formats]"
        raise SystemFault("writing HDF5 needs h5py, which is not installed", hint=hint) from None
    return h5py


def keys_beside(path):
    """Return the path of the TSV with the columns of an .npy file."""
    return os.path.splitext(os.fspath(path))[0] + ".tsv"


# The spool


def spell_row(layout, cells, vectors):
    """Return a row as bytes: a line of cells, and the numbers. vectors (arrays, width), or None for no vector"""
    line = "\t".join(str(cell).translate(_BLANKS) for cell in cells) + "\n"
    if vectors is None:
        vectors = np.full((len(layout.arrays), layout.width), np.nan)
    return line.encode("utf-8", "surrogateescape") + np.ascontiguousarray(vectors, layout.dtype).tobytes()


class Spool:
    """Rows that were written by `spell_row`, read back as often as need be.

    path, size  the file, and how many bytes of it hold rows
    """

    def __init__(self, path, size, layout):
        self.path, self.size, self.layout = path, size, layout
        self.longest = [1] * len(layout.columns)
        self.count = 0
        for cells in self._lines():
            self.count += 1
            self.longest = [max(n, len(cell)) for n, cell in zip(self.longest, cells, strict=True)]

    def _lines(self):
        """Yield the cells of each row as text."""
        with open(self.path, "rb") as handle:
            while handle.tell() < self.size:
                yield _cells(handle.readline())
                handle.seek(self.layout.row_bytes, os.SEEK_CUR)

    def column(self, index):
        """Yield the values of a column in blocks of a few thousand."""
        kind, block = list(self.layout.columns.values())[index], []
        for cells in self._lines():
            block.append(kind(cells[index]))
            if len(block) == 4096:
                yield block
                block = []
        if block:
            yield block

    def rows(self):
        """Yield (cells of each row, numbers (rows, arrays, width)) in blocks of a few MB."""
        step = max(1, BLOCK_BYTES // self.layout.row_bytes)
        with open(self.path, "rb") as handle:
            done = 0
            while done < self.count:
                count = min(step, self.count - done)
                cells, numbers = [], np.empty((count, len(self.layout.arrays), self.layout.width), self.layout.dtype)
                for row in range(count):
                    cells.append(_cells(handle.readline()))
                    handle.readinto(memoryview(numbers[row]).cast("B"))
                done += count
                yield cells, numbers


def _cells(line):
    return line[:-1].decode("utf-8", "surrogateescape").split("\t")


# The formats


def write_table(spool, path, suffix):
    """Write a spool's rows to new files; return the paths: the one of the format, and beside .npy its keys."""
    if suffix == ".npy":
        with open(path, "wb") as handle, open(f"{path}.keys", "wb") as keys:
            _write_npy(spool, handle, keys)
        return [path, f"{path}.keys"]
    if suffix in (".h5", ".hdf5", ".h5ad"):
        with _Sink(path) as sink, load_package("h5py").File(sink, "w") as file:
            (_write_anndata if suffix == ".h5ad" else _write_hdf5)(spool, file)
        return [path]
    with open(path, "wb") as handle:
        {".tsv": _write_tsv, ".npz": _write_npz, ".parquet": _write_parquet}[suffix](spool, handle)
    return [path]


def finish_table(outputs, layout, suffix):
    """Lay out what was spooled to the first of a run's Outputs as a format, and put it in place."""
    handle = outputs.handles[0]
    handle.flush()
    spool = Spool(handle.name, handle.tell(), layout)
    made, *keys = write_table(spool, outputs.name_aside("table"), suffix)
    outputs.finish([(path, keys_beside(outputs.paths[0])) for path in keys], made)


def spell_tsv_header(layout):
    """Return the first line of a TSV, bytes."""
    names = [f"{name}_{i}" for name in layout.arrays for i in range(layout.width)]
    return ("\t".join([*layout.columns, *names]) + "\n").encode()


def spell_tsv_row(layout, cells, vectors):
    """Return a line of a TSV, bytes; a missing vector leaves its cells empty."""
    words = [str(cell).translate(_BLANKS) for cell in cells]
    if vectors is None:
        words += [""] * (len(layout.arrays) * layout.width)
    else:
        # So many digits bring any float32, or float16, back exactly.
        digits = 9 if layout.dtype.itemsize == 4 else 5
        words += [f"{x:.{digits}g}" for x in np.asarray(vectors, layout.dtype).ravel().tolist()]
    return ("\t".join(words) + "\n").encode("utf-8", "surrogateescape")


def _spell_part(layout):
    """Return the line that tells of the part that a table is, where its format holds no meta; else nothing."""
    return f"{layout.meta['part']}\n".encode() if "part" in layout.meta else b""


def _write_tsv(spool, handle):
    handle.write(_spell_part(spool.layout) + spell_tsv_header(spool.layout))
    for rows, numbers in spool.rows():
        for cells, vectors in zip(rows, numbers, strict=True):
            is_missing = np.isnan(vectors[0, 0])
            handle.write(spell_tsv_row(spool.layout, cells, None if is_missing else vectors))


def _write_npy(spool, handle, keys):
    layout = spool.layout
    shape = (spool.count, layout.width) if len(layout.arrays) == 1 else (spool.count, len(layout.arrays), layout.width)
    _write_array_header(handle, layout.dtype.str, shape)
    keys.write(_spell_part(layout) + ("\t".join(layout.columns) + "\n").encode())
    for rows, numbers in spool.rows():
        handle.write(numbers.tobytes())
        keys.writelines(("\t".join(cells) + "\n").encode("utf-8", "surrogateescape") for cells in rows)


def _write_array_header(handle, dtype, shape):
    description = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(handle, description)


def _write_npz(spool, handle):
    layout = spool.layout
    with zipfile.ZipFile(handle, "w", zipfile.ZIP_STORED) as archive:
        for i, (name, kind) in enumerate(layout.columns.items()):
            dtype = "<i8" if kind is int else f"<U{spool.longest[i]}"
            blocks = (np.array(block, dtype).tobytes() for block in spool.column(i))
            _write_member(archive, name, dtype, (spool.count,), blocks)
        for i, name in enumerate(layout.arrays):
            blocks = (np.ascontiguousarray(numbers[:, i]).tobytes() for _, numbers in spool.rows())
            _write_member(archive, name, layout.dtype.str, (spool.count, layout.width), blocks)
        text = np.array(json.dumps(layout.meta, sort_keys=True))
        _write_member(archive, "meta", text.dtype.str, (), [text.tobytes()])


def _write_member(archive, name, dtype, shape, blocks):
    header = io.BytesIO()
    _write_array_header(header, dtype, shape)
    # A ZipInfo made by name carries no time of day, so equal runs give equal bytes.
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        member.write(header.getvalue())
        for block in blocks:
            member.write(block)


def _write_parquet(spool, handle):
    arrow, layout = load_package("pyarrow"), spool.layout
    number = arrow.from_numpy_dtype(layout.dtype)
    fields = [arrow.field(name, arrow.int64() if kind is int else arrow.string())
              for name, kind in layout.columns.items()]  # fmt: skip
    fields += [arrow.field(name, arrow.list_(number, layout.width)) for name in layout.arrays]
    metadata = {"hybridna": json.dumps(layout.meta, sort_keys=True)}
    schema = arrow.schema(fields, metadata=metadata)
    with arrow.parquet.ParquetWriter(handle, schema) as writer:
        for rows, numbers in spool.rows():
            arrays = [
                arrow.array([kind(cell) for cell in column])
                for kind, column in zip(layout.columns.values(), zip(*rows, strict=True), strict=True)
            ]
            for i in range(len(layout.arrays)):
                flat = arrow.array(np.ascontiguousarray(numbers[:, i]).ravel())
                arrays.append(arrow.FixedSizeListArray.from_arrays(flat, layout.width))
            writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))


class _Sink:
    """A new file for HDF5, whose library crashes when writing fails: the first fault is kept and raised at the end."""

    def __init__(self, path):
        self.handle, self.fault = open(path, "w+b", buffering=0), None  # noqa: SIM115
        self.read, self.readinto = self.handle.read, self.handle.readinto
        self.seek, self.tell = self.handle.seek, self.handle.tell

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.close()
        if self.fault is not None:
            raise self.fault

    def write(self, data):
        rest = memoryview(data)
        while len(rest):
            done = self._try(self.handle.write, rest)
            rest = rest[len(rest) if done is None else done :]
        return len(data)

    def truncate(self, size=None):
        self._try(self.handle.truncate, size)
        return size

    def flush(self):
        pass

    def _try(self, act, argument):
        try:
            return None if self.fault is not None else act(argument)
        except OSError as error:
            self.fault = error
            return None


def _write_hdf5(spool, file):
    layout = spool.layout
    file.attrs["hybridna"] = json.dumps(layout.meta, sort_keys=True)
    file.attrs.create("columns", list(layout.columns), (len(layout.columns),), load_package("h5py").string_dtype())
    for i, (name, kind) in enumerate(layout.columns.items()):
        _write_column(file, name, kind, spool.count, spool.column(i))
    _write_arrays(spool, [_create(file, name, spool) for name in layout.arrays])


def _write_anndata(spool, file):
    """Write AnnData's layout, version 0.1.0: the first array is X, others are layers; keys in obs, meta in uns.

    Written with h5py block by block, as anndata itself wants every key in memory at once.
    """
    layout = spool.layout
    _mark(file, "anndata", "0.1.0")
    for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
        _mark(file.create_group(name), "dict", "0.1.0")
    text = file["uns"].create_dataset("hybridna", data=json.dumps(layout.meta, sort_keys=True))
    _mark(text, "string", "0.2.0")
    for name, count in (("obs", spool.count), ("var", layout.width)):
        table = file.create_group(name)
        _mark(table, "dataframe", "0.2.0")
        table.attrs["_index"] = "_index"
        columns = list(layout.columns) if name == "obs" else []
        table.attrs.create("column-order", columns, (len(columns),), load_package("h5py").string_dtype())
        numbers = ([str(i) for i in range(j, min(j + 4096, count))] for j in range(0, count, 4096))
        _mark(_write_column(table, "_index", str, count, numbers), "string-array", "0.2.0")
    for i, (name, kind) in enumerate(layout.columns.items()):
        column = _write_column(file["obs"], name, kind, spool.count, spool.column(i))
        _mark(column, "array" if kind is int else "string-array", "0.2.0")
    places = [(file, "X"), *((file["layers"], name) for name in layout.arrays[1:])]
    datasets = [_create(group, name, spool) for group, name in places]
    for dataset in datasets:
        _mark(dataset, "array", "0.2.0")
    _write_arrays(spool, datasets)


def _mark(thing, kind, version):
    thing.attrs["encoding-type"], thing.attrs["encoding-version"] = kind, version


def _write_column(group, name, kind, count, blocks):
    dtype = "<i8" if kind is int else load_package("h5py").string_dtype()
    dataset, done = group.create_dataset(name, (count,), dtype), 0
    for block in blocks:
        dataset[done : done + len(block)] = np.array(block, "<i8") if kind is int else block
        done += len(block)
    return dataset


def _create(group, name, spool):
    return group.create_dataset(name, (spool.count, spool.layout.width), spool.layout.dtype)


def _write_arrays(spool, datasets):
    done = 0
    for _, numbers in spool.rows():
        for i, dataset in enumerate(datasets):
            dataset[done : done + len(numbers)] = numbers[:, i]
        done += len(numbers)
