"""Index files of FASTA: read and compared with the file, or written, and the text by byte offset that they lead to.

.fai, .gzi -> checked -> FastaIndex, or None to build it; FastaIndex -> .fai, .gzi beside the file; offset -> text
"""

import contextlib
import io
import os
import re
import secrets
from array import array
from bisect import bisect_right

import numpy as np

from hybridna_core.data.fasta_scan import HEADER_BYTES_LIMIT, FastaIndex
from hybridna_core.data.inputs import BYTE_ORDER_MARK, bgzf_blocks, open_input, printable, warn
from hybridna_core.errors import DataError, SystemFault

_CHECKED_CONTIGS = 256


def usable_index(path, compressed):
    """Read the index files beside a FASTA file; return a FastaIndex that fits it, or None to build one.

    Raises DataError for an index that is no index, and for a FASTA file that is shorter than its index says.
    """
    fai, gzi = path + ".fai", path + ".gzi"
    if not os.path.exists(fai):
        warn("index", f"{path}: no index (.fai); building it")
        return None
    index = read_fai(fai)
    if compressed:
        blocks = _read_gzi(gzi, path)
        if blocks is None:
            return None
        index = index._replace(blocks=blocks)
    changed = os.stat(path).st_mtime_ns
    with contextlib.closing(FastaText(path, index.blocks)) as text:
        try:
            size, fits = text.size(), _fits(text, index)
        except DataError:
            # A block is not where the index has it. Building it anew finds out which of the two is wrong.
            size, fits = None, False
    end = int(_ends(index).max())
    if size is not None and end > size:
        what = f"the file is shorter than its index says ({size:,} bytes of text, {end:,} due)"
        raise DataError(what, where=path, hint="fetch it again, or give --rebuild-index if this is the right file")
    for name in (fai, gzi) if compressed else (fai,):
        if os.stat(name).st_mtime_ns < changed:
            warn("index", f"{name}: older than the FASTA file; building it again")
            return None
    if not fits:
        warn("index", f"{fai}: does not fit the FASTA file; building it again")
        return None
    return index


def read_fai(path):
    """Read a .fai file into a FastaIndex; raise DataError naming the line that is no index line."""
    names, columns = [], [array("q") for _ in range(4)]
    seen = set()
    hint = "delete it, or give --rebuild-index"
    with open_input(path) as handle:
        for number, line in enumerate(handle, start=1):
            fields = line.rstrip(b"\r\n").split(b"\t")
            where = f"{path}:{number}"
            # Lengths of 18 digits and fewer fit into 64 bits.
            if len(fields) != 5 or not fields[0] or not all(f.isdigit() and len(f) <= 18 for f in fields[1:]):
                raise DataError(f"not a line of a FASTA index: {printable(line)!r}", where=where, hint=hint)
            try:
                name = fields[0].decode("utf-8")
            except UnicodeDecodeError:
                raise DataError("the name is not UTF-8", where=where, hint=hint) from None
            length, _, bases, width = values = [int(f) for f in fields[1:]]
            if name in seen or (length and not 0 < bases <= width):
                raise DataError(f"contig {name!r} has impossible values or stands twice", where=where, hint=hint)
            seen.add(name)
            names.append(name)
            for column, value in zip(columns, values, strict=True):
                column.append(value)
    if not names:
        raise DataError("the index is empty", where=path, hint=hint)
    return FastaIndex(names, *columns)


def _read_gzi(gzi, path):
    """Block offsets from a .gzi file, or None (with a warning) when it cannot be right."""
    try:
        with open(gzi, "rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            count = int.from_bytes(handle.read(8), "little")
            # Compared before anything of that size is allocated.
            if size < 8 or size != 8 + 16 * count:
                warn("index", f"{gzi}: its size does not fit its count; building it again")
                return None
            offsets = np.frombuffer(handle.read(), dtype="<u8").reshape(count, 2)
    except OSError:
        warn("index", f"{path}: no index of blocks (.gzi); building it")
        return None
    if count and (offsets[-1, 0] >= os.path.getsize(path) or (np.diff(offsets.astype(np.int64), axis=0) < 0).any()):
        warn("index", f"{gzi}: its offsets do not fit the FASTA file; building it again")
        return None
    return [(int(a), int(b)) for a, b in offsets]


def _ends(index):
    """Byte after the last base of each contig, as the index has it."""
    lengths, offsets, bases, widths = (np.array(column, dtype=np.int64) for column in index[1:5])
    full = (lengths - 1) // np.maximum(bases, 1)
    return np.where(lengths > 0, offsets + full * widths + lengths - full * bases, offsets)


def _fits(text, index):
    """Compare headers in the file with the index: all gaps by arithmetic, up to 256 of them by reading."""
    offsets = np.array(index.offsets, dtype=np.int64)
    ends = _ends(index)
    gaps = offsets - np.concatenate(([0], ends[:-1]))
    bases, widths = (np.array(column, dtype=np.int64) for column in (index.line_bases, index.line_widths))
    filled = np.array(index.lengths) > 0
    if gaps.min() < 3 or gaps.max() > 2 * HEADER_BYTES_LIMIT or not np.isin((widths - bases)[filled], (1, 2)).all():
        return False
    chosen = np.unique(np.linspace(0, len(offsets) - 1, _CHECKED_CONTIGS).astype(int))
    for i in chosen:
        if not _is_header(text.read(int(offsets[i] - gaps[i]), int(gaps[i])), index.names[i], i == 0):
            return False
    tail = text.read(int(ends[-1]), 4096)
    return all(not line.strip() or line.startswith(b">") for line in tail.split(b"\n"))


def _is_header(gap, name, first):
    """Tell whether the text between two contigs is the header of `name`, perhaps after contigs without bases."""
    gap = gap.removeprefix(BYTE_ORDER_MARK) if first else gap
    *before, header = gap.rstrip(b"\r\n").split(b"\n")
    found = re.split(rb"[ \t\r]", header, maxsplit=1)[0]
    if not gap.endswith(b"\n") or found != b">" + name.encode():
        return False
    return all(not line.strip() or line.startswith(b">") for line in before)


class FastaText:
    """The text of a FASTA file by byte offset, decompressed where it is bgzip."""

    KEPT = 8  # blocks of up to 64 KiB: neighbouring windows share them

    def __init__(self, path, blocks):
        self.path, self.handle, self.kept = path, open_input(path), {}
        self.starts = None if blocks is None else [(0, 0), *blocks]

    def close(self):
        self.handle.close()

    def read(self, offset, n):
        """Return the n bytes from `offset` on, fewer at the end of the file."""
        if self.starts is None:
            return self._pread(n, offset)
        i = bisect_right(self.starts, offset, key=lambda start: start[1]) - 1
        skip = offset - self.starts[i][1]
        data = bytearray()
        while len(data) < skip + n and i < len(self.starts):
            data += self._block(i)
            i += 1
        return bytes(data[skip : skip + n])

    def size(self):
        """Length of the whole text in bytes."""
        if self.starts is None:
            return os.fstat(self.handle.fileno()).st_size
        return self.starts[-1][1] + len(self._block(len(self.starts) - 1))

    def _pread(self, n, offset):
        data = b""
        try:
            # The system may return less than asked for, of large reads and from network drives.
            while len(data) < n and (piece := os.pread(self.handle.fileno(), n - len(data), offset + len(data))):
                data += piece
        except OSError as error:
            raise SystemFault(f"reading failed: {error.strerror}", where=self.path) from None
        return data

    def _block(self, i):
        if i not in self.kept:
            compressed, inside = self.starts[i]
            raw = io.BytesIO(self._pread(2**16, compressed))
            _, data = next(bgzf_blocks(raw, self.path, offset=compressed), (0, b""))
            if i + 1 < len(self.starts) and inside + len(data) != self.starts[i + 1][1]:
                what = f"the block at byte {compressed:,} is not as long as the index (.gzi) says"
                raise DataError(what, where=self.path, hint="give --rebuild-index")
            while len(self.kept) >= self.KEPT:
                del self.kept[next(iter(self.kept))]
            self.kept[i] = data
        return self.kept[i]


def _index_bytes(index):
    """The content of .fai, and of .gzi or None."""
    rows = zip(index.names, index.lengths, index.offsets, index.line_bases, index.line_widths, strict=True)
    fai = "".join("\t".join(map(str, row)) + "\n" for row in rows).encode()
    if index.blocks is None:
        return fai, None
    blocks = np.array(index.blocks, dtype="<u8").reshape(-1, 2)
    return fai, len(blocks).to_bytes(8, "little") + blocks.tobytes()


def write_index(path, index):
    """Write .gzi and .fai beside the FASTA file, each under a temporary name and renamed; warn when that fails.

    Any number of processes may do so at once: all write the same bytes, and .fai, which is looked for, comes last.
    """
    fai, gzi = _index_bytes(index)
    folder = os.path.dirname(os.path.abspath(path))
    # The superuser may write anywhere; a folder that nobody may write to is left alone all the same.
    if not os.stat(folder).st_mode & 0o222 or not os.access(folder, os.W_OK):
        warn("index", f"{path}: the folder is read-only; the index is kept for this run only")
        return
    temporary = os.path.join(folder, f".hybridna-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    newest = os.stat(path).st_mtime_ns
    try:
        for content, name in ((gzi, path + ".gzi"), (fai, path + ".fai")):
            if content is None:
                continue
            with open(temporary, "xb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
            status = os.stat(temporary)
            if status.st_mtime_ns < newest:
                # A FASTA file dated in the future would otherwise have a stale index for ever.
                os.utime(temporary, ns=(newest, newest))
            os.replace(temporary, name)
    except OSError as error:
        warn("index", f"{path}: the index cannot be written ({error.strerror}); it is kept for this run only")
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
