"""Input files as bytes: found by name, recognised by content, decompressed, cut into lines.

path -> check_input -> open_input -> read_chunks (plain, gzip, BGZF) -> read_lines -> (number, bytes, ended)
"""

import io
import logging
import os
import stat
import sys
import zlib

from hybridna_core.errors import DataError, SystemFault, UsageError, nearest

CHUNK_BYTES = 2**18
LINE_BYTES_LIMIT = 64 * 2**20
BGZF_EOF = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# Longer beginnings first where one begins another.
_SIGNATURES = (
    (b"##fileformat=VCF", "VCF"),
    (b"##gff-version", "GFF"),
    (b"version https://git-lfs", "a Git LFS pointer (fetch the file itself with git lfs pull)"),
    (b"BAM\x01", "BAM"),
    (b"BCF\x02", "BCF"),
    (b"CRAM", "CRAM"),
    (b"@HD\t", "SAM"),
    (b"@SQ\t", "SAM"),
    (b"\xeb\xf2\x89\x87", "bigBed"),
    (b"\x87\x89\xf2\xeb", "bigBed"),
    (b"\x26\xfc\x8f\x88", "bigWig"),
    (b"\x88\x8f\xfc\x26", "bigWig"),
    (b"\x43\x27\x41\x1a", "2bit"),
    (b"\x1a\x41\x27\x43", "2bit"),
    (b"PK\x03\x04", "a zip archive (xlsx?)"),
    (b"\x89HDF", "HDF5"),
    (b"PAR1", "Parquet"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"%PDF", "PDF"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x1f\x8b", "gzip"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3", "SQLite"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
)


logger = logging.getLogger("hybridna")


def warn(kind, message):
    """Log a warning of a kind; the command line prints at most ten of each."""
    logger.warning(message, extra={"kind": kind})


def check_input(path, *, random_access=False):
    """Return `path` as text if it names something readable; `-` is standard input.

    random_access  a regular file is needed: `-` raises UsageError, a pipe SystemFault
    Raises SystemFault for what is missing, a folder, or not readable.
    """
    path = os.fspath(path)
    if path == "-":
        if random_access:
            raise UsageError("standard input cannot be read at random", where="-", hint="give a file")
        return path
    if not path or "\0" in path:
        raise UsageError("the file name is empty" if not path else "the file name holds a NUL", hint="give a file")
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise SystemFault("no such file", where=path, hint=_missing_hint(path)) from None
    except OSError as error:
        raise SystemFault(error.strerror, where=path) from None
    if stat.S_ISDIR(mode):
        raise SystemFault("is a folder", where=path, hint="give a file")
    if stat.S_ISSOCK(mode) or (random_access and not stat.S_ISREG(mode)):
        raise SystemFault("is not a regular file", where=path, hint="write it to disk first")
    if not os.access(path, os.R_OK):
        raise SystemFault("no permission to read it", where=path, hint=f"its mode is {stat.filemode(mode)}")
    return path


def _missing_hint(path):
    folder, name = os.path.split(path)
    try:
        names = os.listdir(folder or ".")
    except OSError:
        return f"the folder {folder!r} is not there either"
    close = nearest(name, names)
    return f"did you mean {os.path.join(folder, close)}?" if close else "check the spelling and the folder"


def looks_like(head):
    """Name the format that the first bytes of a file belong to, or None when nothing is recognised."""
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if head[257:262] == b"ustar":
        return "a tar archive"
    text = head.lstrip()
    if text[:14].lower() == b"<!doctype html" or text[:5].lower() == b"<html":
        return "an HTML page (a failed download?)"
    if text.startswith(b"<?xml"):
        return "XML"
    if text.startswith(b">"):
        return "FASTA"
    if text.startswith(b"@"):
        return "FASTQ"
    return None


def is_bgzf(head):
    """Tell whether `head` (18 bytes or more) begins a BGZF block, gzip with the block size in its header."""
    return head[:4] == b"\x1f\x8b\x08\x04" and head[12:14] == b"BC"


def open_input(path):
    """Open a file, or standard input for `-`, for reading bytes; raise SystemFault or UsageError."""
    path = check_input(path)
    if path == "-":
        stream = sys.stdin
        if stream is None or stream.closed:
            raise UsageError("standard input is closed", where="-", hint="give a file or pipe data in")
        if stream.isatty():
            raise UsageError("standard input is a terminal", where="-", hint="give a file or pipe data in")
        # Closing the wrapper must not close the interpreter's own standard input.
        return open(stream.fileno(), "rb", closefd=False)
    try:
        return open(path, "rb")
    except OSError as error:
        raise SystemFault(error.strerror, where=path) from None


class _Rewound:
    """A stream whose first bytes were read already and come again."""

    def __init__(self, head, handle):
        self.head, self.handle = io.BytesIO(head), handle

    def read(self, n):
        data = self.head.read(n)
        return data if len(data) == n else data + self.handle.read(n - len(data))


def read_chunks(path, *, allow_missing_eof=False):
    """Yield the content of a plain, gzip or BGZF file (or `-`) as bytes, decompressed, in pieces of at most 256 KiB.

    allow_missing_eof  take a BGZF file without its end block for whole
    Raises DataError with the byte offset for cut or damaged compression.
    """
    with open_input(path) as handle:
        head = _read(handle, 64, path)
        stream = _Rewound(head, handle)
        if is_bgzf(head):
            for _, data in bgzf_blocks(stream, path, allow_missing_eof=allow_missing_eof):
                if data:
                    yield data
        elif head[:2] == b"\x1f\x8b":
            yield from _gunzip(stream, path)
        else:
            while data := _read(stream, CHUNK_BYTES, path):
                yield data


def _read(handle, n, path):
    try:
        return handle.read(n)
    except OSError as error:
        raise SystemFault(f"reading failed: {error.strerror}", where=path) from None


def bgzf_blocks(handle, path, *, offset=0, allow_missing_eof=False):
    """Yield (offset of the block in the file, its bytes decompressed) for each BGZF block from `handle` on.

    Raises DataError for a block that is cut or damaged, and at the end when the end block is missing.
    """
    last_empty = False
    while fixed := _read(handle, 12, path):
        extra = _read(handle, int.from_bytes(fixed[10:12], "little"), path) if len(fixed) == 12 else b""
        size = _bgzf_size(fixed, extra)
        if size is None:
            short = len(fixed) < 12 or len(extra) < int.from_bytes(fixed[10:12], "little")
            what = "cut inside a block" if short else "not a BGZF block"
            raise DataError(f"{what} at byte {offset:,}", where=path, hint="fetch the file again")
        body = _read(handle, size - 12 - len(extra), path)
        if len(body) < size - 12 - len(extra):
            raise DataError(f"cut inside the block at byte {offset:,}", where=path, hint="fetch the file again")
        data = _inflate(body, path, offset)
        yield offset, data
        last_empty = not data
        offset += size
    if not last_empty and not allow_missing_eof:
        raise _missing_eof(path)


def _missing_eof(path):
    what = "the BGZF end block is missing, so the file may be truncated"
    return DataError(what, where=path, hint="fetch it again, or give --allow-missing-eof")


def _bgzf_size(fixed, extra):
    """Size in bytes of the block with this header, or None when it is no BGZF header."""
    if len(fixed) < 12 or fixed[:4] != b"\x1f\x8b\x08\x04":
        return None
    at = 0
    while at + 4 <= len(extra):
        length = int.from_bytes(extra[at + 2 : at + 4], "little")
        if extra[at : at + 2] == b"BC" and length == 2 and at + 6 <= len(extra):
            size = int.from_bytes(extra[at + 4 : at + 6], "little") + 1
            return size if size >= 12 + len(extra) + 8 else None
        at += 4 + length
    return None


def _inflate(body, path, offset):
    due, size = int.from_bytes(body[-8:-4], "little"), int.from_bytes(body[-4:], "little")
    try:
        # One byte more than BGZF allows, so that a bomb is noticed and not unpacked.
        data = zlib.decompressobj(-15).decompress(body[:-8], 65537)
    except zlib.error:
        data = None
    if data is None or len(data) != size or zlib.crc32(data) != due:
        what = f"the block at byte {offset:,} is damaged (checksum or length differs)"
        raise DataError(what, where=path, hint="fetch the file again")
    return data


def _gunzip(stream, path):
    """Yield the content of a gzip stream of one or more members."""
    offset, member, ended = 0, zlib.decompressobj(31), False
    while raw := _read(stream, 2**16, path):
        offset += len(raw)
        while raw:
            if ended:
                raw = raw.lstrip(b"\0")
                if not raw:
                    break
                member, ended = zlib.decompressobj(31), False
            try:
                data = member.decompress(raw, CHUNK_BYTES)
            except zlib.error:
                what = f"gzip data are damaged before byte {offset:,}"
                raise DataError(what, where=path, hint="fetch the file again") from None
            ended = member.eof
            raw = member.unused_data if ended else member.unconsumed_tail
            if data:
                yield data
    if not ended:
        raise DataError(f"gzip data are cut at byte {offset:,}", where=path, hint="fetch the file again")


def read_lines(chunks, path):
    """Cut byte chunks into lines: yield (number from 1, line without its newline, whether a newline ended it)."""
    number, rest = 0, b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            number += 1
            yield number, line, True
        if len(rest) > LINE_BYTES_LIMIT:
            raise DataError(f"a line of over {LINE_BYTES_LIMIT:,} bytes", where=f"{path}:{number + 1}")
    if rest:
        yield number + 1, rest, False


def printable(raw, limit=40):
    """The first printable characters of raw bytes, for messages."""
    text = raw[: 4 * limit].decode("utf-8", "replace").replace("\t", " ")
    return "".join(c for c in text if c.isprintable())[:limit]
