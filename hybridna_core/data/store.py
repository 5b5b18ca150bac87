"""Packed genomes: four bits a base in a memory-mapped file beside the FASTA, packed once.

FASTA, GenBank, EMBL -> letters -> codes, runs of N, hashes -> store -> bases of any stretch

A base is a code (A C G T N are 0 to 4) and a bit for lower case; two bases fill a byte, the first in its upper half.
The file is a header page, the packed bases, then tables: contigs, runs of N, and a hash of every block of packed bases.
Bases are numbered through the whole file, from 0; every contig begins at an even number. Memory holds the tables
alone: some 60 bytes and the name per contig, 40 per run of N, 16 per 131,072 bases.
"""

import contextlib
import errno
import hashlib
import json
import logging
import mmap
import os
import secrets
import shutil
import tempfile
from collections import OrderedDict
from functools import cached_property

import numpy as np

from hybridna_core.data.flatfiles import flat_format, read_flat_file
from hybridna_core.data.genome import ContigNames, open_genome
from hybridna_core.data.inputs import check_input, warn
from hybridna_core.errors import DataError, SystemFault
from hybridna_core.tokenizer import A, C, G, N, T

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

log = logging.getLogger("hybridna")

SUFFIX = ".packed"
MAGIC = b"hybridna packed bases\n"
VERSION = 1
HEADER_BYTES = 4096
BLOCK_BYTES = 2**16
NEIGHBOURHOOD = 2**21
# Letters read and packed at a time; even, so that a contig's pieces meet at whole bytes.
PIECE = 2**23
# A dry run reads genomes below this size for their runs of N, and takes larger ones as known throughout.
SCAN_LIMIT = 10**9
_HASH = 16
_UNKNOWN, _MASKED = 4, 8
_CODES = bytes.maketrans(b"ACGTNacgtn", bytes([0, 1, 2, 3, 4, 8, 9, 10, 11, 12]))
_IDS = np.full(16, N, dtype=np.uint8)
_IDS[[0, 1, 2, 3, 8, 9, 10, 11]] = [A, C, G, T] * 2
_BYTES = np.arange(256)
# What a byte's two bases are, side by side as one number, so that a table look-up gives both.
_ID_PAIRS = np.stack([_IDS[_BYTES >> 4], _IDS[_BYTES & 15]], axis=1).view(np.uint16).ravel()
_MASK_PAIRS = np.stack([_BYTES >> 7, _BYTES >> 3 & 1], axis=1).astype(np.uint8).view(np.uint16).ravel()
# What may be told to be read as a base, and so is part of what a store holds.
_LENIENT = ("other_letters", "rna", "allow_missing_eof")


class Store(ContigNames):
    """The bases of one genome file, numbered through from 0; may be used after a fork.

    path     the genome file
    file     the store, None when nothing was packed (then nothing can be read)
    offsets  (contigs,) int64, number of each contig's first base
    lengths  (contigs,) int64, bp
    unknown  (runs, 2) int64, the runs of N, half-open, in order; none crosses a contig's end
    digests  (contigs, 2, 16) uint8, of each contig's bases, and of its lower case
    """

    def __init__(self, path, file, names, name_ends, lengths, unknown, hashes, digests):
        self.path, self.file = path, file
        self._names, self._name_ends = names, name_ends
        self.lengths, self.unknown, self.digests = lengths, unknown, digests
        self.offsets = np.cumsum(lengths + lengths % 2) - (lengths + lengths % 2)
        starts, ends = unknown.T if len(unknown) else (np.zeros(0, np.int64),) * 2
        self._unknown_starts, self._unknown_ends = np.ascontiguousarray(starts), np.ascontiguousarray(ends)
        self._unknown_before = np.concatenate(([0], np.cumsum(ends - starts)))
        self._hashes = hashes
        self._checked = bytearray(len(hashes) // _HASH)
        self._identity = None if file is None else _identity(os.stat(file))

    def name(self, contig):
        """Return the name of contig number `contig`."""
        begin = int(self._name_ends[contig - 1]) if contig else 0
        return self._names[begin : int(self._name_ends[contig])].decode("utf-8")

    @cached_property
    def contigs(self):
        """Name -> length in bp, in file order."""
        return {self.name(i): int(length) for i, length in enumerate(self.lengths)}

    @cached_property
    def numbers(self):
        """Name -> number of the contig."""
        return {name: i for i, name in enumerate(self.contigs)}

    def contig_at(self, base):
        """Return the number of the contig that a base (or an array of bases) lies in."""
        return np.searchsorted(self.offsets, base, side="right") - 1

    def count_unknown(self, start, end):
        """Count the N of [start, end); arrays give an array."""
        return self._unknown_up_to(end) - self._unknown_up_to(start)

    def _unknown_up_to(self, base):
        if not len(self.unknown):
            return np.zeros_like(base)
        run = np.searchsorted(self._unknown_starts, base, side="left")
        # The last run that begins before `base` may reach beyond it.
        over = np.where(run > 0, np.maximum(0, self._unknown_ends[run - 1] - base), 0)
        return self._unknown_before[run] - over

    def ids(self, start, end):
        """Return the bases [start, end) as token ids: (end - start,) uint8. Raises as `packed`."""
        return _unpack(self.packed(start, end), start, end, _ID_PAIRS)

    def masked(self, start, end):
        """Tell for each base of [start, end) whether it is in lower case: (end - start,) bool. Raises as `packed`."""
        return _unpack(self.packed(start, end), start, end, _MASK_PAIRS).view(bool)

    def packed(self, start, end):
        """Return the bytes that hold the bases [start, end), every block of them compared with its hash at first use.

        Raises DataError with the byte offset for a block that is damaged, and for a store that changed since it was
        opened; SystemFault when it cannot be read.
        """
        first, last = int(start) // 2, (int(end) + 1) // 2
        mapped = _mapped(self.file, self._identity)
        for block in range(first // BLOCK_BYTES, -(-last // BLOCK_BYTES)):
            if not self._checked[block]:
                self._check(mapped, block)
        raw = mapped[HEADER_BYTES + first : HEADER_BYTES + last]
        _forget(mapped, HEADER_BYTES + first, HEADER_BYTES + last)
        return raw

    def _check(self, mapped, block):
        begin = HEADER_BYTES + block * BLOCK_BYTES
        end = min(begin + BLOCK_BYTES, HEADER_BYTES + self._payload_bytes)
        if _block_hash(mapped[begin:end]) != self._hashes[_HASH * block : _HASH * (block + 1)]:
            what = f"packed bases are damaged in the block at byte {begin:,}; nothing of it was trained on"
            raise DataError(what, where=self.file, hint="delete this file, and it is packed again")
        _forget(mapped, begin, end)
        self._checked[block] = 1

    @cached_property
    def _payload_bytes(self):
        return int(((self.lengths + 1) // 2).sum())


def open_store(path, *, rebuild_index=False, other_letters=None, rna=False, allow_missing_eof=False):
    """Open the packed store of a FASTA, GenBank or EMBL file; it is packed first when absent, stale or damaged.

    The store lies beside the file, or in the cache folder where that folder cannot be written to. Options are those of
    `open_genome`; with rebuild_index the store is packed anew. Any number of processes may do this at once: one packs,
    the others wait. Raises as `open_genome`, and SystemFault when the disk has no room.
    """
    path = check_input(path, random_access=True)
    options = {"other_letters": other_letters, "rna": rna, "allow_missing_eof": allow_missing_eof}
    if not rebuild_index and (store := _find(path, options)) is not None:
        return store
    target = _target(path)
    with _only_one(target) as alone:
        # Another process may have packed it meanwhile.
        if not rebuild_index and (store := _find(path, options, say=False)) is not None:
            return store
        if alone:
            _remove_left_over(target)
        _pack(path, target, rebuild_index, options)
    store = _read(target, path, options)
    if store is None:
        raise DataError("the file changed while it was packed", where=path, hint="run again")
    return store


def scan_store(path, *, rebuild_index=False, **options):
    """Return a Store that knows contigs and runs of N but holds no bases; nothing is written but an index.

    A packed store is used when there is one. Without, files of over a billion bases are taken as known throughout,
    with a warning, since reading them takes long.
    """
    path = check_input(path, random_access=True)
    whole = {key: options.get(key, default) for key, default in zip(_LENIENT, (None, False, False), strict=True)}
    if not rebuild_index and (store := _find(path, whole)) is not None:
        return store
    tables = _Tables()
    with _Letters(path, rebuild_index, whole) as letters:
        if letters.bases is not None and letters.bases > SCAN_LIMIT:
            what = f"{path}: not packed yet; its {letters.bases:,} bases are all counted as known"
            warn("store", what)
            for name, length in letters.genome.contigs.items():
                tables.begin(name)
                tables.length = length
        else:
            for name, piece in letters:
                if name is not None:
                    tables.begin(name)
                tables.add(np.frombuffer(piece.translate(_CODES), dtype=np.uint8))
    tables.finish()
    return tables.store(path, None)


def _identity(status):
    return status.st_size, status.st_mtime_ns, status.st_ino


def _unpack(raw, start, end, pairs):
    skip = int(start) % 2
    return pairs[np.frombuffer(raw, dtype=np.uint8)].view(np.uint8)[skip : skip + int(end) - int(start)]


def _block_hash(data):
    return hashlib.blake2b(data, digest_size=_HASH).digest()


# Open maps by file, the longest unused first. Each holds a file descriptor, of which there may be few.
_MAPS = OrderedDict()


def _mapped(file, identity):
    """Return the memory map of a store, opened when it is not; raise DataError if the file is another one by now."""
    if file is None:
        raise ValueError("a store that was only scanned holds no bases")
    key = file, identity
    if key in _MAPS:
        _MAPS.move_to_end(key)
        return _MAPS[key]
    while len(_MAPS) >= _most_maps():
        _MAPS.popitem(last=False)[1].close()
    try:
        with open(file, "rb") as handle:
            # A file cut short would end the process with a bus error.
            if _identity(os.fstat(handle.fileno())) != identity:
                raise DataError("the store changed since the start", where=file, hint="run again")
            mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise SystemFault(f"reading failed: {error.strerror}", where=file) from None
    if hasattr(mmap, "MADV_RANDOM"):
        # Windows lie anywhere, so reading ahead would read in vain.
        mapped.madvise(mmap.MADV_RANDOM)
    _MAPS[key] = mapped
    return mapped


def _most_maps():
    try:
        import resource

        return max(4, min(512, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
    except (ImportError, ValueError):
        return 64


def _forget(mapped, begin, end):
    """Let go of the pages just read: they stay in the system's cache, but count no longer as this process's memory."""
    if hasattr(mmap, "MADV_DONTNEED"):
        # The system maps what it has of the neighbourhood along with a page.
        begin = max(0, begin - NEIGHBOURHOOD) // mmap.PAGESIZE * mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, begin, min(len(mapped), end + NEIGHBOURHOOD) - begin)


class _Letters:
    """The letters of a genome file in pieces: (name at a contig's first piece, else None; bytes).

    bases   in the whole file, None when that is not known beforehand
    genome  the open Genome of a FASTA file, None for a flat file
    """

    def __init__(self, path, rebuild_index, options):
        self.path, self.options, self.genome, self.bases = path, options, None, None
        self.format = flat_format(path)
        if self.format is None:
            self.genome = open_genome(path, rebuild_index=rebuild_index, **options)
            self.bases = sum(self.genome.contigs.values())
        self._identity = _identity(os.stat(path))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.genome is not None:
            self.genome.close()

    def __iter__(self):
        if self.genome is None:
            for name, letters in read_flat_file(self.path, self.format, **self.options):
                for at in range(0, len(letters), PIECE):
                    yield (None if at else name), letters[at : at + PIECE]
        else:
            for name, length in self.genome.contigs.items():
                for at in range(0, length, PIECE):
                    yield (None if at else name), self.genome.letters(name, at, min(at + PIECE, length))

    def source(self):
        """Return what tells this file from others: size and time. Raises DataError if it changed meanwhile."""
        if _identity(os.stat(self.path)) != self._identity:
            raise DataError("the file changed since the start", where=self.path, hint="run again")
        return {"size": self._identity[0], "mtime_ns": self._identity[1]}


class _Tables:
    """What is written behind the packed bases, filled contig by contig."""

    def __init__(self):
        self.names, self.name_ends, self.lengths = bytearray(), [], []
        self.runs, self.open = [], None  # the run of N that the last piece left open
        self.hashes, self.digests = bytearray(), bytearray()
        self.length, self.base = None, 0
        self.rest = b""

    def begin(self, name):
        self._end()
        self.names += name.encode("utf-8")
        self.name_ends.append(len(self.names))
        self.length = 0
        self.bases, self.lower = (hashlib.blake2b(digest_size=_HASH) for _ in range(2))

    def _end(self):
        if self.length is None:
            return
        self._close_run()
        self.digests += self.bases.digest() + self.lower.digest()
        self.lengths.append(self.length)
        self.base += self.length + self.length % 2

    def add(self, codes):
        """Note the runs of N of a contig's next piece. (n,) uint8"""
        unknown = codes & 7 == _UNKNOWN
        at = self.base + self.length
        self.length += len(codes)
        if not unknown.any():
            self._close_run()
            return
        edges = np.flatnonzero(np.diff(unknown.view(np.int8), prepend=0, append=0)).reshape(-1, 2) + at
        if self.open is not None:
            if edges[0, 0] == self.open[1]:
                edges[0, 0] = self.open[0]
            else:
                self._close_run()
        self.open = None
        if unknown[-1]:
            self.open = tuple(edges[-1].tolist())
            edges = edges[:-1]
        self.runs.append(edges)

    def _close_run(self):
        if self.open is not None:
            self.runs.append(np.array([self.open], dtype=np.int64))
            self.open = None

    def pack(self, codes):
        """Pack codes two to a byte, and hash them. (n,) uint8 -> bytes"""
        if len(codes) % 2:
            codes = np.append(codes, np.uint8(0))
        packed = (codes[0::2] << 4) | codes[1::2]
        self.bases.update(packed & 0x77)
        self.lower.update(packed & 0x88)
        raw = packed.tobytes()
        waiting = self.rest + raw
        whole = len(waiting) - len(waiting) % BLOCK_BYTES
        view = memoryview(waiting)
        for at in range(0, whole, BLOCK_BYTES):
            self.hashes += _block_hash(view[at : at + BLOCK_BYTES])
        self.rest = waiting[whole:]
        return raw

    def finish(self):
        self._end()
        if self.rest:
            self.hashes += _block_hash(self.rest)

    def columns(self):
        """Return the tables as arrays, in the order of the file."""
        runs = np.concatenate(self.runs) if self.runs else np.zeros((0, 2), dtype=np.int64)
        return {
            "names": np.frombuffer(bytes(self.names), dtype=np.uint8),
            "name_ends": np.array(self.name_ends, dtype="<i8"),
            "lengths": np.array(self.lengths, dtype="<i8"),
            "unknown": runs.astype("<i8").reshape(-1, 2),
            "hashes": np.frombuffer(bytes(self.hashes), dtype=np.uint8),
            "digests": np.frombuffer(bytes(self.digests), dtype=np.uint8).reshape(-1, 2, _HASH),
        }

    def store(self, path, file):
        return _make_store(path, file, self.columns())


def _make_store(path, file, columns):
    return Store(path, file, columns["names"].tobytes(), columns["name_ends"], columns["lengths"], columns["unknown"],
                 columns["hashes"].tobytes(), columns["digests"])  # fmt: skip


def _places(path):
    """List where the store of a genome file may lie: beside it, then the cache folder."""
    whole = os.path.realpath(path)
    name = hashlib.sha256(os.fsencode(whole)).hexdigest()[:16] + SUFFIX
    return path + SUFFIX, os.path.join(_cache_folder(), name)


def _cache_folder():
    """Return the folder for stores that cannot lie beside their genomes; $HYBRIDNA_CACHE comes first."""
    if folder := os.environ.get("HYBRIDNA_CACHE"):
        return folder
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    if not os.path.isabs(home) or not _is_writable(home):
        home = os.path.join(tempfile.gettempdir(), f"hybridna-{os.getuid() if hasattr(os, 'getuid') else 0}")
    return os.path.join(home, "hybridna")


def _is_writable(folder):
    """Tell whether files can be made in a folder, or in the nearest one above it that is there."""
    while not os.path.exists(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    # The superuser may write anywhere; a folder that nobody may write to is left alone all the same.
    return os.path.isdir(folder) and bool(os.stat(folder).st_mode & 0o222) and os.access(folder, os.W_OK | os.X_OK)


def _target(path):
    """Choose where to pack a genome file to, and say so once when that is not beside it."""
    beside, cached = _places(path)
    folder = os.path.dirname(os.path.abspath(beside))
    if _is_writable(folder):
        return beside
    try:
        os.makedirs(os.path.dirname(cached), exist_ok=True)
    except OSError as error:
        hint = "make one of the two writable, or set HYBRIDNA_CACHE to a folder"
        raise SystemFault(f"{folder} is read-only and the cache folder cannot be made ({error.strerror})",
                          where=os.path.dirname(cached), hint=hint) from None  # fmt: skip
    warn("store", f"{path}: its folder is read-only; packed into {cached}")
    return cached


@contextlib.contextmanager
def _only_one(target):
    """Let one process at a time pack; yield whether that is sure: where there are no locks all pack the same."""
    name = target + ".lock"
    try:
        handle = _lock(name, target)
    except OSError:
        # Some network file systems know no locks.
        handle = None
    try:
        yield handle is not None
    finally:
        if handle is not None:
            # Before the lock goes, so that nobody waits for a file that is no longer there.
            with contextlib.suppress(OSError):
                os.unlink(name)
            handle.close()


def _lock(name, target):
    if fcntl is None:
        return None
    while True:
        handle = open(name, "ab")  # noqa: SIM115
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("waiting for another process that packs %s", target.removesuffix(SUFFIX))
                fcntl.flock(handle, fcntl.LOCK_EX)
            # Whoever held the lock has deleted the file; the next to come would lock another one.
            with contextlib.suppress(FileNotFoundError):
                if os.stat(name).st_ino == os.fstat(handle.fileno()).st_ino:
                    return handle
        except BaseException:
            handle.close()
            raise
        handle.close()


def _find(path, options, say=True):
    """Open the store of a genome file if there is a sound one that fits it, else return None; `say` why not."""
    for file in _places(path):
        if os.path.exists(file) and (store := _read(file, path, options, say)) is not None:
            return store
    return None


def _read(file, path, options, say=True):
    """Read the header and tables of a store; return None if it cannot be used, and `say` why.

    It fits when the genome file has the size and time of then, and every letter read leniently may be so now.
    """
    try:
        with open(file, "rb") as handle:
            header = _read_header(handle.read(HEADER_BYTES))
            size = os.fstat(handle.fileno()).st_size
            columns = None if header is None else _read_tables(handle, header, size)
    except OSError as error:
        _tell(say, f"{file}: cannot be read ({error.strerror})")
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        # A header that is whole and yet none of ours.
        columns = None
    if columns is None:
        _tell(say, f"{file}: damaged, or of another release; packing it again")
        return None
    now = os.stat(path)
    if header["source"] != {"size": now.st_size, "mtime_ns": now.st_mtime_ns}:
        _tell(say, f"{file}: not that of the file as it is now; packing it again")
        return None
    if any(header["options"][key] and not options[key] for key in _LENIENT):
        return None
    return _make_store(path, file, columns)


def _tell(say, text):
    if say:
        warn("store", text)


def _read_header(raw):
    """Return the header of a store, None when it is none of ours or damaged."""
    if len(raw) != HEADER_BYTES or not raw.startswith(MAGIC):
        return None
    digest, _, rest = raw[len(MAGIC) :].partition(b"\n")
    if hashlib.sha256(rest).hexdigest().encode() != digest:
        return None
    header = json.loads(rest.rstrip(b"\0"))
    return header if header["version"] == VERSION else None


def _read_tables(handle, header, size):
    """Return the tables of a store as arrays, None when they are damaged or the file has another size."""
    if size != HEADER_BYTES + header["payload"] + sum(table["bytes"] for table in header["tables"].values()):
        return None
    handle.seek(HEADER_BYTES + header["payload"])
    columns, digest = {}, hashlib.sha256()
    for name, table in header["tables"].items():
        raw = handle.read(table["bytes"])
        digest.update(raw)
        columns[name] = np.frombuffer(raw, dtype=table["dtype"]).reshape(table["shape"])
    return columns if digest.hexdigest() == header["digest"] else None


def _write_header(header):
    rest = json.dumps(header).encode().ljust(HEADER_BYTES - len(MAGIC) - 65, b"\0")
    return MAGIC + hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest


def _pack(path, target, rebuild_index, options):
    """Write the store of a genome file under a temporary name, flush it to disk, and rename it."""
    folder = os.path.dirname(os.path.abspath(target))
    temporary = os.path.join(folder, f".hybridna-{os.path.basename(target)}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    if len(os.path.basename(temporary)) > 250:
        temporary = os.path.join(folder, f".hybridna-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with _Letters(path, rebuild_index, options) as letters, open(temporary, "xb") as handle:
            log.info("packing %s%s", path, "" if letters.bases is None else f" ({letters.bases:,} bases)")
            _reserve(handle, path, letters)
            handle.seek(HEADER_BYTES)
            tables, payload = _Tables(), 0
            for name, piece in letters:
                if name is not None:
                    tables.begin(name)
                codes = np.frombuffer(piece.translate(_CODES), dtype=np.uint8)
                tables.add(codes)
                payload += handle.write(tables.pack(codes))
            tables.finish()
            columns, digest = tables.columns(), hashlib.sha256()
            for column in columns.values():
                raw = column.tobytes()
                digest.update(raw)
                handle.write(raw)
            handle.truncate()
            shapes = {
                name: {"bytes": c.nbytes, "dtype": c.dtype.str, "shape": list(c.shape)} for name, c in columns.items()
            }
            header = {"version": VERSION, "payload": payload, "tables": shapes, "digest": digest.hexdigest(),
                      "source": letters.source(), "options": options}  # fmt: skip
            handle.seek(0)
            handle.write(_write_header(header))
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, target)
    except OSError as error:
        hint = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
        raise SystemFault(f"packing {path} failed: {error.strerror}", where=target, hint=hint) from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _reserve(handle, path, letters):
    """Take the room that the packed bases need before any is written; raise SystemFault when there is too little."""
    # Flat files tell the number of bases only at their end; text is larger than what is packed from it.
    needed = os.path.getsize(path) if letters.bases is None else letters.bases // 2 + letters.bases // 4096
    needed += HEADER_BYTES
    free = shutil.disk_usage(os.path.dirname(handle.name)).free
    try:
        if needed > free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if letters.bases is not None and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle.fileno(), 0, needed)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            return
        what = f"packing needs {needed:,} bytes, {free:,} are free ({error.strerror})"
        hint = "free some space"
        raise SystemFault(what, where=os.path.dirname(handle.name), hint=hint) from None


def _remove_left_over(target):
    """Delete what killed processes were packing into; whoever calls this holds the lock, so nobody is at it now."""
    folder, name = os.path.split(os.path.abspath(target))
    for left in os.listdir(folder):
        if left.startswith(f".hybridna-{name}-") and left.endswith(".tmp"):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(folder, left))
