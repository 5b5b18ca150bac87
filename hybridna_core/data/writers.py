"""Outputs: written beside the target under a temporary name, made durable, then renamed.

check_output (before any work) -> open_output or atomic_output -> rows -> flush, fsync, close -> rename, fsync folder
"""

import contextlib
import errno
import io
import json
import os
import secrets
import stat
import sys
import tempfile
import zipfile

import numpy as np

from hybridna_core.errors import SystemFault, UsageError

_STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
# Faults of the device that an output lies on; others are faults of the code and stay what they are.
_DEVICE_ERRORS = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EIO", "EROFS", "EFBIG", "EACCES", "EPERM", "ESTALE", "ENXIO", "ENODEV", "EMFILE")
    if hasattr(errno, name)
)
_INDEX_SUFFIXES = (".fai", ".gzi", ".tbi", ".csi")
TABLE_SUFFIXES = (".tsv", ".parquet", ".npz")


def is_stdout(path):
    """Tell whether `path` means standard output."""
    return path is None or os.fspath(path) in _STDOUT


def is_in_place(path):
    """Tell whether `path` is a device or pipe, which is written to and never replaced."""
    if path.startswith(("/dev/fd/", "/proc/self/fd/")):
        return True
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or stat.S_ISBLK(mode) or stat.S_ISSOCK(mode)


def check_output(path, inputs=(), force=False):
    """Raise if `path` cannot or must not be written; to be called before any work.

    inputs  files that the command reads; the output may be none of them, by any name
    force   an existing output may be replaced
    Raises UsageError for a folder, an input and an existing output, SystemFault for the folder it would lie in.
    """
    if is_stdout(path):
        return
    path = os.fspath(path)
    if not path or "\0" in path:
        raise UsageError(f"{path!r} is no file name", where="output", hint="give -o FILE")
    if os.path.isdir(path) or path.endswith(os.sep):
        raise UsageError("the output is a folder", where=path, hint="give a file name inside it")
    if is_in_place(path):
        return
    for name in inputs:
        if name is None or os.fspath(name) == "-":
            continue
        for suffix in ("", *_INDEX_SUFFIXES):
            if _same_file(path, os.fspath(name) + suffix):
                kind = "index of the input" if suffix else "input"
                raise UsageError(f"the output is the {kind} {os.fspath(name)}", where=path, hint="give another -o FILE")
    if _name_is_too_long(path):
        raise UsageError("the output's name is longer than names can be", where=path, hint="give another -o FILE")
    if os.path.exists(path) and not force:
        raise UsageError("the output exists already", where=path, hint="give --force to replace it")
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise SystemFault(f"the folder {folder} does not exist", where=path, hint="make it first (mkdir -p)")
    # Trying is the only sure test: permission bits say nothing of read-only mounts, quotas or the superuser.
    temporary = _temporary_name(folder, "")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as error:
        raise SystemFault(f"the folder {folder} cannot be written to: {error.strerror}", where=path) from None
    os.unlink(temporary)


def _same_file(path, other):
    # No file's name holds a NUL, and the functions below refuse one.
    if "\0" in os.fspath(other):
        return False
    try:
        return os.path.samefile(path, other)
    except OSError:
        return os.path.realpath(path) == os.path.realpath(other)


def _name_is_too_long(path):
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    return False


def _temporary_name(folder, suffix):
    # Not made from the target's name, which may already be as long as names can be.
    return os.path.join(folder, f".hybridna-{os.getpid()}-{secrets.token_hex(4)}.tmp{suffix}")


def system_fault(error, path):
    """Return the SystemFault for an OSError of writing to `path`."""
    where = "standard output" if is_stdout(path) else os.fspath(path)
    hint = "free some space and run again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
    return SystemFault(f"writing failed: {error.strerror or error}", where=where, hint=hint)


@contextlib.contextmanager
def device_faults(path):
    """Turn errors of the output's device into SystemFault; a reader that went away stays BrokenPipeError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, BrokenPipeError) or error.errno not in _DEVICE_ERRORS:
            raise
        raise system_fault(error, path) from error


@contextlib.contextmanager
def atomic_output(path, force=False):
    """Yield a temporary name beside `path` to write to; on success it becomes `path`, on error nothing stays.

    The name keeps the suffix of `path`. Devices and pipes are yielded themselves; `-` is yielded as /dev/stdout, but
    open_output is better there, since opening that anew cuts off what a redirected output already holds.
    Raises UsageError if the output exists without `force`, SystemFault when the disk fails or is full.
    """
    path = "/dev/stdout" if is_stdout(path) else os.fspath(path)
    if path == "/dev/stdout" or is_in_place(path):
        with device_faults(path):
            yield path
        return
    # A symbolic link is followed, so that the file it names is replaced and not the link.
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    temporary = _temporary_name(folder, "." + name.split(".", 1)[1] if "." in name and len(name) < 128 else "")
    try:
        with device_faults(path):
            # Created here, so that the mode follows the umask whoever writes it.
            try:
                os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            except OSError as error:
                raise system_fault(error, path) from error
            yield temporary
            descriptor = os.open(temporary, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if os.path.lexists(target) and not force:
                raise UsageError("the output appeared while this ran", where=path, hint="give --force to replace it")
            os.replace(temporary, target)
            sync_folder(folder)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def sync_folder(folder):
    """Make a rename durable; some file systems know no fsync of folders."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def open_output(path, force=False):
    """Yield a binary handle whose content becomes `path` on success: None or `-` is standard output.

    Raises as atomic_output; every error of flush, fsync and close counts. BrokenPipeError passes.
    """
    if is_stdout(path):
        if sys.stdout is None or sys.stdout.closed:
            raise SystemFault("standard output is closed", hint="give -o FILE")
        with device_faults(path):
            sys.stdout.flush()
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        return
    with atomic_output(path, force) as temporary, open(temporary, "wb", buffering=2**17) as handle:
        try:
            yield handle
            handle.flush()
            if temporary != os.fspath(path):
                os.fsync(handle.fileno())
        except BaseException:
            # Closing would try to flush again and hide the first error behind a second one.
            with contextlib.suppress(OSError):
                handle.raw.close()
            raise


def fasta_record(name, sequence, fields=None, width=80):
    """Return one FASTA record as text; `fields` follow the name as key=value."""
    header = " ".join([f">{name}", *(f"{key}={value}" for key, value in (fields or {}).items())])
    lines = [sequence[i : i + width] for i in range(0, len(sequence), width)]
    return "\n".join([header, *lines]) + "\n"


def table_suffix(path):
    """Return the suffix that decides a table's format; standard output and devices are TSV.

    Raises UsageError for an unknown suffix, SystemFault when Parquet is asked for without pyarrow.
    """
    if is_stdout(path) or is_in_place(os.fspath(path)):
        return ".tsv"
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix not in TABLE_SUFFIXES:
        what = f"the suffix {suffix!r} is no table format" if suffix else "the name has no suffix"
        raise UsageError(what, where=os.fspath(path), hint=f"end it in {', '.join(TABLE_SUFFIXES)}")
    if suffix == ".parquet":
        load_pyarrow()
    return suffix


def load_pyarrow():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        hint = "pip install hybridna[formats]"
        raise SystemFault("writing Parquet needs pyarrow, which is not installed", hint=hint) from None
    return pyarrow


@contextlib.contextmanager
def open_table(path, columns, *, vector=None, width=0, meta=None, force=False):
    """Yield add(values, numbers), which appends one row to a TSV, Parquet or npz table, as the suffix of `path` says.

    columns  name -> str, int or float, in order
    vector   name of a column of `width` float32 numbers each, or None; add(values, None) leaves it missing:
             empty in TSV, NaN elsewhere
    meta     dict kept as JSON: in Parquet under the key `hybridna`, in npz as the array `meta`; TSV has none
    Memory does not grow with the number of rows.
    """
    suffix = table_suffix(path)
    kind = {".tsv": _TsvTable, ".parquet": ParquetTable, ".npz": _NpzTable}[suffix]
    with (
        open_output(path, force) as handle,
        contextlib.closing(kind(handle, path, columns, vector, width, meta)) as table,
    ):
        table.begin()
        yield table.add
        table.finish()


def _text(value):
    """A cell of a TSV: tabs and line ends, which no cell can hold, become blanks."""
    if isinstance(value, str):
        return value.translate(_BLANKS)
    return repr(float(value)) if isinstance(value, float | np.floating) else str(value)


_BLANKS = str.maketrans("\t\r\n", "   ")


class _TsvTable:
    def __init__(self, handle, path, columns, vector, width, meta):
        self.handle, self.columns, self.vector, self.width = handle, columns, vector, width

    def begin(self):
        names = [*self.columns, *(f"{self.vector}_{i}" for i in range(self.width))]
        self.handle.write(("\t".join(names) + "\n").encode())

    def add(self, values, numbers=None):
        cells = [_text(v) for v in values]
        if numbers is None:
            cells += [""] * self.width
        else:
            # Nine digits bring any float32 back exactly.
            cells += [f"{x:.9g}" for x in np.asarray(numbers, dtype=np.float32).tolist()]
        self.handle.write(("\t".join(cells) + "\n").encode())

    def finish(self):
        pass

    def close(self):
        pass


class ParquetTable:
    """Writes rows as Parquet in groups of `rows`; None is null. Further types: float (32 bits), int8, by name."""

    def __init__(self, handle, path, columns, vector, width, meta, rows=1024):
        self.pyarrow = arrow = load_pyarrow()
        self.handle, self.columns, self.vector, self.width = handle, columns, vector, width
        types = {str: arrow.string(), int: arrow.int64(), float: arrow.float64()}
        types |= {"float": arrow.float32(), "int8": arrow.int8()}
        self.group = rows
        fields = [arrow.field(name, types[kind]) for name, kind in columns.items()]
        if vector:
            fields.append(arrow.field(vector, arrow.list_(arrow.float32(), width)))
        metadata = {"hybridna": json.dumps(meta, sort_keys=True)} if meta else None
        self.schema = arrow.schema(fields, metadata=metadata)
        self.rows, self.vectors, self.writer = [], [], None

    def begin(self):
        self.writer = self.pyarrow.parquet.ParquetWriter(self.handle, self.schema)

    def add(self, values, numbers=None):
        self.rows.append(tuple(values))
        if self.vector:
            self.vectors.append(np.full(self.width, np.nan, np.float32) if numbers is None else np.float32(numbers))
        if len(self.rows) == self.group:
            self.flush()

    def flush(self):
        """Write what is held as a row group."""
        if not self.rows:
            return
        arrow = self.pyarrow
        arrays = [
            arrow.array(list(column), self.schema.field(i).type)
            for i, column in enumerate(zip(*self.rows, strict=True))
        ]
        if self.vector:
            flat = arrow.array(np.concatenate(self.vectors))
            arrays.append(arrow.FixedSizeListArray.from_arrays(flat, self.width))
        self.writer.write_table(arrow.Table.from_arrays(arrays, schema=self.schema))
        self.rows, self.vectors = [], []

    def finish(self):
        self.flush()
        self.writer.close()

    def close(self):
        # After an error the end of the file is not worth writing, but pyarrow must not try it later either.
        with contextlib.suppress(Exception):
            self.writer.close()


class _NpzTable:
    """Spools rows to unnamed files beside the target, since an array's size stands before its first row."""

    ROWS = 4096

    def __init__(self, handle, path, columns, vector, width, meta):
        self.handle, self.columns, self.vector, self.width, self.meta = handle, columns, vector, width, meta
        folder = os.path.dirname(os.path.realpath(path))
        self.cells = tempfile.TemporaryFile(dir=folder, prefix=".hybridna-")  # noqa: SIM115
        self.numbers = tempfile.TemporaryFile(dir=folder, prefix=".hybridna-")  # noqa: SIM115
        self.count = 0
        self.longest = [1] * len(columns)

    def begin(self):
        pass

    def add(self, values, numbers=None):
        cells = [_text(v) for v in values]
        self.longest = [max(n, len(cell)) for n, cell in zip(self.longest, cells, strict=True)]
        self.cells.write(("\t".join(cells) + "\n").encode())
        if self.vector:
            row = np.full(self.width, np.nan, np.float32) if numbers is None else np.asarray(numbers, np.float32)
            self.numbers.write(row.tobytes())
        self.count += 1

    def finish(self):
        with zipfile.ZipFile(self.handle, "w", zipfile.ZIP_STORED) as archive:
            for i, (name, kind) in enumerate(self.columns.items()):
                dtype = {int: "<i8", float: "<f8"}.get(kind, f"<U{self.longest[i]}")
                self._array(archive, name, dtype, (self.count,), self._column(i, kind, dtype))
            if self.vector:
                self._array(archive, self.vector, "<f4", (self.count, self.width), self._pieces())
            if self.meta:
                text = np.array(json.dumps(self.meta, sort_keys=True))
                self._array(archive, "meta", text.dtype.str, (), [text.tobytes()])

    def _array(self, archive, name, dtype, shape, pieces):
        header = io.BytesIO()
        description = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(header, description)
        # A ZipInfo made by name carries no time of day, so equal runs give equal bytes.
        with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
            member.write(header.getvalue())
            for piece in pieces:
                member.write(piece)

    def _column(self, i, kind, dtype):
        self.cells.seek(0)
        block = []
        for line in self.cells:
            block.append(kind(line.decode().rstrip("\n").split("\t")[i]))
            if len(block) == self.ROWS:
                yield np.array(block, dtype=dtype).tobytes()
                block = []
        if block:
            yield np.array(block, dtype=dtype).tobytes()

    def _pieces(self):
        self.numbers.seek(0)
        while piece := self.numbers.read(2**20):
            yield piece

    def close(self):
        # Spools that cannot be flushed any more (disk full) are given up with the output.
        with contextlib.suppress(OSError):
            self.cells.close()
        with contextlib.suppress(OSError):
            self.numbers.close()
