"""FASTA random access: contig naming, windows of bases, an index that is built safely and never stale.

path -> check -> .fai (and .gzi) read and compared with the file, else built by one validating scan -> windows of bases

The scan is our own because it must name line, column and letter of what is wrong in the same pass; the index files it
writes are those of samtools. Windows are read here too: htslib's reader takes 2^31 - 1 for the length of any longer
contig, skips bytes that are no letters, and needs its index on disk.
"""

import contextlib
import hashlib
import io
import itertools
import os
import re
import secrets
from array import array
from bisect import bisect_right
from collections import Counter
from typing import NamedTuple

import numpy as np

from hybridna_core.data.inputs import (
    BGZF_EOF,
    BYTE_ORDER_MARK,
    bgzf_blocks,
    check_input,
    is_bgzf,
    looks_like,
    open_input,
    printable,
    read_chunks,
    warn,
)
from hybridna_core.errors import DataError, SystemFault, UsageError, nearest
from hybridna_core.tokenizer import encode

_FINE = b"ACGTNacgtn"
_IUPAC = b"RYKMSWBDHV"
_LETTERS = bytes(b for b in range(65, 123) if bytes([b]).isalpha())
# Every letter that is no base, as N of its own case.
_TO_N = bytes.maketrans(_LETTERS, bytes(b if b in _FINE else ord("n" if b >= 97 else "N") for b in _LETTERS))
_HEADER_BYTES_LIMIT = 2**20
_DIGEST_PIECE = 2**20
_CHECKED_CONTIGS = 256
_MITOCHONDRION = ("chrM", "MT", "M", "chrMT", "Mito", "chrmt", "mt")


def open_genome(path, rebuild_index=False, other_letters=None, rna=False, allow_missing_eof=False):
    """Open a FASTA file, plain or bgzip, for random access; its index is built when absent or stale.

    rebuild_index      build the index even if there is one
    other_letters      "n": letters that are no nucleotide code are read as N; None: they raise DataError
    rna                read U as T; otherwise U raises DataError
    allow_missing_eof  take a bgzip file without its end block for whole
    Raises UsageError for `-`, SystemFault for a file that cannot be read, DataError for what is wrong in it.
    """
    if other_letters not in (None, "n"):
        raise UsageError(f"is {other_letters!r}, must be 'n'", where="--other-letters")
    return Genome(path, rebuild_index, other_letters, rna, allow_missing_eof)


class ContigNames:
    """Finding contigs by name, for whatever has `contigs`: a dict name -> length in bp, in file order."""

    def resolve(self, contig, renames=None):
        """Return the name of a contig in this file, or None: as it stands, else through `renames`, never by a guess."""
        if contig in self.contigs:
            return contig
        renamed = (renames or {}).get(contig)
        return renamed if renamed in self.contigs else None

    def alias(self, contig):
        """Return the contig here that differs from `contig` only by convention (chr1/1, chrM/MT), or None."""
        others = [contig[3:] if contig.startswith("chr") else "chr" + contig]
        if contig in _MITOCHONDRION:
            others += _MITOCHONDRION
        return next((other for other in others if other in self.contigs), None)

    def suggest(self, contig):
        """Return the contig here that `contig` was probably meant to be, for messages, or None."""
        if found := self.alias(contig):
            return found
        # Comparing with millions of names would take minutes.
        return nearest(contig, list(itertools.islice(self.contigs, 2000)))


class Genome(ContigNames):
    """An open FASTA file; may be used after a fork.

    contigs  name -> length in bp, in file order
    """

    def __init__(self, path, rebuild_index, other_letters, rna, allow_missing_eof):
        self.path = check_input(path, random_access=True)
        self.other_letters, self.rna = other_letters, rna
        self._warned, self._digests = set(), {}
        with open_input(self.path) as handle:
            self._identity = _identity(os.fstat(handle.fileno()))
        compressed = _check_head(self.path, allow_missing_eof)
        index = None
        if not rebuild_index:
            index = _usable_index(self.path, compressed)
        if index is None:
            index = scan_fasta(self.path, other_letters=other_letters, rna=rna, allow_missing_eof=allow_missing_eof)
            self.check_unchanged()
            self._warned.update(index.warned)
            _write_index(self.path, index)
        self.contigs, self._rows = {}, {}
        for i, (name, length) in enumerate(zip(index.names, index.lengths, strict=True)):
            if length:
                self.contigs[name], self._rows[name] = length, i
            else:
                warn("empty-contig", f"{self.path}: contig {name} has no bases; skipped")
        if not self.contigs:
            raise DataError("no contig has any bases", where=self.path, hint="was the download complete?")
        self._index, self._text = index, _Text(self.path, index.blocks)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._text.close()

    def fetch(self, contig, start, end):
        """Return the bases of [start, end), 0-based half-open, as upper-case text over A, C, G, T, N.

        Nucleotide codes for several bases become N with one warning per contig. Raises DataError for an unknown
        contig, a range outside it, other letters, and a damaged file.
        """
        return self.letters(contig, start, end).upper().decode("ascii")

    def letters(self, contig, start, end):
        """Return the bases of [start, end) as bytes over A, C, G, T, N in the case of the file; raise as `fetch`."""
        raw = self._raw(contig, start, end)
        if not raw.translate(None, _FINE):
            return raw
        where = f"{self.path}: {contig}:"
        raw, found = mend_letters(raw, where, start + 1, other_letters=self.other_letters, rna=self.rna)
        if found and contig not in self._warned:
            self._warned.add(contig)
            warn("other-letters", f"{self.path}: contig {contig} holds {found}; read as N")
        return raw

    def ids(self, contig, start, end):
        """Return the bases of [start, end), 0-based half-open, as token ids: (end - start,) uint8."""
        return encode(self.fetch(contig, start, end))

    def digest(self, contig):
        """Return the hex MD5 of the contig's upper-case letters, as in SAM's M5 tag."""
        if contig not in self._digests:
            length = self._length(contig)
            md5 = hashlib.md5(usedforsecurity=False)
            for start in range(0, length, _DIGEST_PIECE):
                md5.update(self._raw(contig, start, min(start + _DIGEST_PIECE, length)).upper())
            self._digests[contig] = md5.hexdigest()
        return self._digests[contig]

    def check_unchanged(self):
        """Raise DataError if the file was changed or replaced since it was opened."""
        try:
            now = _identity(os.stat(self.path))
        except OSError:
            now = None
        if now != self._identity:
            raise DataError("the file changed since the start", where=self.path, hint="run again")

    def _length(self, contig):
        if contig not in self.contigs:
            close = self.suggest(contig)
            hint = f"did you mean {close}?" if close else None
            raise DataError(f"no contig {contig!r} in {self.path}", where=contig, hint=hint)
        return self.contigs[contig]

    def _raw(self, contig, start, end):
        """The letters of [start, end) as they stand, as bytes."""
        length = self._length(contig)
        if not 0 <= start <= end <= length:
            what = f"[{start:,}, {end:,}) is outside the contig of {length:,} bp"
            raise DataError(what, where=f"{contig}:{start + 1}-{end}")
        if start == end:
            return b""
        i = self._rows[contig]
        offset, bases, width = (column[i] for column in self._index[2:5])
        first = offset + start // bases * width + start % bases
        last = offset + (end - 1) // bases * width + (end - 1) % bases + 1
        try:
            raw = self._text.read(first, last - first).translate(None, b"\r\n")
        except DataError:
            self.check_unchanged()
            raise
        if len(raw) != end - start:
            self.check_unchanged()
            what = f"{end - start:,} bases due, {len(raw):,} read from {self.path}; the index is wrong"
            raise DataError(what, where=f"{contig}:{start + 1}-{end}", hint="give --rebuild-index")
        return raw


def mend_letters(raw, where, first, *, other_letters=None, rna=False):
    """Turn letters that are no base into N, U into T with `rna`; return the letters and which became N, as text.

    raw    bytes without line ends; case is kept
    where  what messages put before the position of a letter
    first  position of the first letter, for messages
    Raises DataError for what cannot be read as a base.
    """
    if rna:
        raw = raw.replace(b"U", b"T").replace(b"u", b"t")
    bad = _first_bad(raw, other_letters, rna)
    if bad is not None:
        what, hint = _explain_letter(raw.upper()[bad])
        raise DataError(what, where=f"{where}{first + bad}", hint=hint)
    found = "".join(sorted(set(raw.translate(None, _FINE).upper().decode("ascii"))))
    return raw.translate(_TO_N), found


def read_renames(path):
    """Read a table `old new` of contig names, one pair per line, blank-separated; return a dict old -> new."""
    renames = {}
    text = b"".join(read_chunks(path)).removeprefix(BYTE_ORDER_MARK)
    for number, line in enumerate(text.split(b"\n"), start=1):
        try:
            words = line.decode("utf-8").split()
        except UnicodeDecodeError:
            raise DataError("not UTF-8", where=f"{path}:{number}") from None
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2:
            raise DataError(f"{len(words)} words, not two", where=f"{path}:{number}", hint="each line is: old new")
        if renames.setdefault(words[0], words[1]) != words[1]:
            raise DataError(f"{words[0]!r} is given two new names", where=f"{path}:{number}")
    return renames


def _identity(status):
    return status.st_size, status.st_mtime_ns, status.st_ino


def _is_other_letter(byte):
    return 65 <= (byte & 0xDF) <= 90


def _first_bad(raw, other_letters, rna):
    """Index of the first byte that cannot be read as a base, or None. `raw` without line ends."""
    fine = _FINE + _IUPAC + _IUPAC.lower() + (b"Uu" if rna else b"")
    rest = raw.translate(None, fine)
    if other_letters:
        # U without --rna stays an error: N would hide that all is RNA.
        rest = bytes(b for b in rest if not _is_other_letter(b) or b in b"Uu")
    return min((raw.index(bytes([b])) for b in set(rest)), default=None)


def _explain_letter(byte):
    """What to say about a byte that is no base: (what, hint)."""
    if byte in b"Uu":
        return "U, so this looks like RNA", "give --rna to read U as T"
    if _is_other_letter(byte):
        return f"the letter {chr(byte)!r} is no nucleotide", "a protein? or give --other-letters n to read it as N"
    if byte in b" \t" or 33 <= byte < 127:
        return f"{chr(byte)!r} inside a sequence", "a sequence holds letters only"
    return f"binary content (byte {byte})", "is this FASTA?"


def _check_head(path, allow_missing_eof):
    """Recognise the file by its first bytes and its end; return whether it is bgzip. Raises DataError."""
    with open_input(path) as handle:
        head = handle.read(64)
        if not head:
            raise DataError("no sequence found, the file is empty", where=path, hint="was the download complete?")
        if head[:2] == b"\x1f\x8b":
            if not is_bgzf(head):
                hint = f"gunzip -c {path} | bgzip > NEW.fa.gz"
                raise DataError("compressed by gzip, which cannot be read at random", where=path, hint=hint)
            handle.seek(max(0, os.fstat(handle.fileno()).st_size - len(BGZF_EOF)))
            if handle.read() != BGZF_EOF and not allow_missing_eof:
                # The blocks are walked only now, to say where the cut is.
                handle.seek(0)
                for _ in bgzf_blocks(handle, path):
                    pass
                raise DataError("bytes follow the last BGZF block", where=path, hint="fetch the file again")
            return True
        format_name = looks_like(head)
        if format_name not in (None, "FASTA", "FASTQ"):
            raise DataError(f"looks like {format_name}, not FASTA", where=path)
        return False


class FastaIndex(NamedTuple):
    """What .fai and .gzi hold. All lists have one item per contig, except `blocks`.

    offsets      of the first base, in bytes of the decompressed file
    line_bases   bases per line
    line_widths  bytes per line, its end included
    blocks       (compressed, decompressed) byte offsets of every BGZF block but the first; None for a plain file
    warned       contigs whose letters were warned of while building
    """

    names: list
    lengths: array
    offsets: array
    line_bases: array
    line_widths: array
    blocks: list | None = None
    warned: frozenset = frozenset()


def scan_fasta(path, *, other_letters=None, rna=False, allow_missing_eof=False):
    """Read a FASTA file once from end to end, check every line and letter, and return its FastaIndex.

    Memory is flat but for the index itself. Raises DataError with line and column.
    """
    scanner = _Scanner(path, other_letters, rna)
    blocks = None
    with open_input(path) as handle:
        compressed = is_bgzf(handle.read(18))
        handle.seek(0)
        if compressed:
            blocks, inside = [], 0
            for offset, data in bgzf_blocks(handle, path, allow_missing_eof=allow_missing_eof):
                if offset and data:
                    blocks.append((offset, inside))
                inside += len(data)
                scanner.feed(data)
        else:
            while data := handle.read(2**20):
                scanner.feed(data)
    return scanner.finish()._replace(blocks=blocks)


class _Scanner:
    """Validates FASTA text given in pieces of any size, and notes where its lines are."""

    def __init__(self, path, other_letters, rna):
        self.path, self.other_letters, self.rna = path, other_letters, rna
        self.offset, self.line = 0, 1  # bytes before the piece at hand; line it begins in, from 1
        self.held = b""
        self.header = None  # bytes of the header being read, or None
        self.seen = {}  # name -> (line, byte offset) of its header
        self.names = []
        self.lengths, self.offsets = array("q"), array("q")
        self.line_bases, self.line_widths = array("q"), array("q")
        self.warned = set()
        self.crlf = None
        self.name = None
        self.first = True

    def feed(self, piece):
        chunk = self.held + piece
        if self.first:
            if len(chunk) < 3 and BYTE_ORDER_MARK.startswith(chunk):
                self.held = chunk
                return
            self.first = False
            if chunk.startswith(BYTE_ORDER_MARK):
                warn("byte-order-mark", f"{self.path}: begins with a byte-order mark; skipped")
                chunk, self.offset = chunk[3:], 3
        # A carriage return waits for the byte that follows it.
        self.held = b"\r" if chunk.endswith(b"\r") else b""
        chunk = chunk[: len(chunk) - len(self.held)]
        self._read(chunk)
        self.offset += len(chunk)

    def finish(self):
        if self.held:
            self._read(self.held)
        if self.header is not None:
            self._begin(self.offset)
        self._end()
        if not self.seen:
            raise DataError("no sequence found", where=self.path, hint="was the download complete?")
        if not self.names:
            raise DataError("no contig has any bases", where=self.path, hint="was the download complete?")
        return FastaIndex(
            self.names, self.lengths, self.offsets, self.line_bases, self.line_widths, None, frozenset(self.warned)
        )

    def _read(self, chunk):
        at = 0
        while at < len(chunk):
            if self.header is not None:
                stop = chunk.find(b"\n", at)
                self.header += chunk[at : stop if stop >= 0 else len(chunk)]
                if len(self.header) > _HEADER_BYTES_LIMIT:
                    raise self._error(f"a header of over {_HEADER_BYTES_LIMIT:,} bytes")
                if stop < 0:
                    return
                self._line_end(self.header.endswith(b"\r"), self.line)
                at = stop + 1
                self._begin(self.offset + at)
                self.line += 1
            elif chunk[at] == 62 and (self.name is None or self.partial == 0):
                self._end()
                self.header, self.header_at = bytearray(), self.offset + at
                at += 1
            else:
                stop = chunk.find(b"\n>", at)
                stop = len(chunk) if stop < 0 else stop + 1
                if self.name is None:
                    self._preface(chunk[at:stop])
                else:
                    self._sequence(chunk[at:stop], self.offset + at)
                at = stop

    def _error(self, what, hint=None, line=None, column=None):
        where = f"{self.path}:{line or self.line}" + (f":{column}" if column else "")
        return DataError(what, where=where, hint=hint)

    def _preface(self, text):
        """Text before the first header: blank lines only, else DataError."""
        bad = text.lstrip(b" \t\r\n")
        self.line += text[: len(text) - len(bad)].count(b"\n")
        if not bad:
            return
        if bad[:1] == b"@":
            raise self._error("looks like FASTQ", "convert it with seqtk seq -a or samtools fasta")
        if format_name := looks_like(bad):
            raise self._error(f"looks like {format_name}, not FASTA")
        if b"\0" in bad[:4096]:
            at = self.offset + text.index(b"\0")
            raise self._error(f"binary content at byte offset {at:,}", "is this FASTA?")
        first = bad.split(b"\n", 1)[0]
        raise self._error(f"text before the first '>': {printable(first)!r}", "a FASTA file begins with '>'")

    def _begin(self, offset):
        """Close the header line and open its contig; its bases begin at byte `offset`."""
        raw = bytes(self.header).removesuffix(b"\r")
        self.header = None
        self.name = self._header_name(raw)
        self.length, self.begin = 0, offset
        self.width = None  # bytes of a full line, its end included
        self.partial = 0  # bytes of the line that the last piece left open
        self.short = None  # number of the first line that is shorter than the others
        self.others = Counter()

    def _header_name(self, raw):
        start = self.header_at + 1
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._error(f"not UTF-8 at byte offset {start + error.start:,}") from None
        control = re.search(r"[\x00-\x08\x0a-\x1f\x7f]", text)
        if control:
            at = start + len(text[: control.start()].encode())
            raise self._error(f"binary content at byte offset {at:,}", "is this FASTA?")
        name = re.split(r"[ \t]", text, maxsplit=1)[0]
        if not name:
            raise self._error("a contig without a name", "a name follows '>' at once")
        if name in self.seen:
            line, at = self.seen[name]
            other = self._header_at(at)
            if other == text:
                raise self._error(f"contig {name!r} was in line {line} already", "names must differ")
            what = f"{text!r} and {other!r} in line {line} are the same name up to the first blank"
            raise self._error(what, "names must differ")
        self.seen[name] = (self.line, self.header_at)
        return name

    def _header_at(self, at):
        """Text of the header at byte `at`, read again: keeping them all would take memory for a rare message."""
        passed, line = 0, b""
        for data in read_chunks(self.path, allow_missing_eof=True):
            line += data[max(0, at + 1 - passed) :]
            passed += len(data)
            if b"\n" in line or len(line) > _HEADER_BYTES_LIMIT:
                break
        return line.split(b"\n", 1)[0].removesuffix(b"\r").decode("utf-8", "replace")

    def _line_end(self, is_crlf, line):
        if self.crlf is None:
            self.crlf = bool(is_crlf)
        if self.crlf != bool(is_crlf):
            raise self._error("line ends change between CRLF and LF", "convert the file with dos2unix", line=line)

    def _sequence(self, text, offset):
        """Check a piece of one contig's lines; it begins at byte `offset` and ends anywhere."""
        raw = np.frombuffer(text, dtype=np.uint8)
        breaks = np.flatnonzero(raw == 10)
        returns = text.count(b"\r")
        if breaks.size:
            before = raw[breaks - 1] == 13
            before[0] &= breaks[0] > 0
            self._line_end(before[0], self.line)
            if before.any() != before.all():
                self._line_end(not self.crlf, self.line + int(np.flatnonzero(before != before[0])[0]))
        if returns != (breaks.size if self.crlf else 0):
            ends = set(breaks - 1)
            at = next(i for i in np.flatnonzero(raw == 13) if i not in ends)
            raise self._error(
                f"a carriage return inside a line, at byte offset {offset + int(at):,}",
                "line ends must be LF or CRLF",
                line=self.line + text[:at].count(b"\n"),
            )
        if rest := text.translate(None, _FINE + b"\r\n"):
            self._letters(text, rest, offset)
        if breaks.size:
            widths = np.diff(breaks, prepend=-1)
            widths[0] += self.partial
            self._widths(widths)
            self.partial = len(text) - 1 - int(breaks[-1])
        else:
            self.partial += len(text)
        self.length += len(text) - breaks.size - returns
        self.line += breaks.size

    def _widths(self, widths):
        """Compare the widths of complete lines with the contig's first."""
        end = 2 if self.crlf else 1
        if self.width is None and widths[0] > end:
            self.width = int(widths[0])
        first = 0
        if self.short is None:
            differ = np.flatnonzero(widths != self.width)
            if not differ.size:
                return
            first = int(differ[0])
            if self.width is not None and widths[first] > self.width:
                raise self._uneven(self.line + first, widths[first] - end)
            self.short, self.blank = self.line + first, widths[first] == end
            first += 1
        after = np.flatnonzero(widths[first:] > end)
        if after.size:
            at = first + int(after[0])
            raise self._uneven(self.line + at, widths[at] - end)

    def _uneven(self, line, bases):
        if self.short is not None and self.blank:
            what = f"contig {self.name} has a blank line inside (line {self.short})"
            return self._error(what, "rewrap it, for example with seqtk seq -l 60", line=line)
        due = self.width - (2 if self.crlf else 1)
        where = f", line {self.short} is shorter" if self.short is not None else ""
        what = f"contig {self.name} has lines of unequal length ({bases} bases here, {due} in its first line{where})"
        return self._error(what, "rewrap it, for example with seqtk seq -l 60", line=line)

    def _letters(self, text, rest, offset):
        """Count letters that are read as N; raise DataError for the first that cannot be read at all."""
        rest = rest.upper().replace(b"U", b"") if self.rna else rest.upper()
        plain = rest.translate(None, _IUPAC)
        if plain:
            flat = re.sub(rb"[\r\n]", b"N", text)
            bad = _first_bad(flat, self.other_letters, self.rna)
            if bad is not None:
                self._bad_letter(text, bad, offset)
        self.others.update(rest.decode("ascii"))

    def _bad_letter(self, text, bad, offset):
        byte = text[bad]
        line = self.line + text[:bad].count(b"\n")
        column = bad - text.rfind(b"\n", 0, bad) + (self.partial if b"\n" not in text[:bad] else 0)
        if byte >= 128:
            raise self._error(f"not UTF-8 or no base, at byte offset {offset + bad:,}", line=line, column=column)
        what, hint = _explain_letter(byte)
        if (byte < 32 and byte != 9) or byte == 127:
            what = f"binary content at byte offset {offset + bad:,}"
        raise self._error(what, hint, line=line, column=column)

    def _end(self):
        """Close the contig at hand, if there is one."""
        if self.name is None:
            return
        if not self.length:
            warn("empty-contig", f"{self.path}:{self.seen[self.name][0]}: contig {self.name} has no bases; skipped")
        else:
            if self.partial and self.width is not None:
                bases = self.partial
                if self.short is not None or bases > self.width - (2 if self.crlf else 1):
                    raise self._uneven(self.line, bases)
            # A single line without a newline has one in the index all the same, as samtools writes it.
            end = 2 if self.crlf and self.width else 1
            width = self.width or self.partial + 1
            self.names.append(self.name)
            self.lengths.append(self.length)
            self.offsets.append(self.begin)
            self.line_bases.append(width - end)
            self.line_widths.append(width)
        if self.others:
            found = ", ".join(f"{letter} {count:,}" for letter, count in sorted(self.others.items()))
            total = sum(self.others.values())
            message = f"{self.path}: contig {self.name}: {total:,} letters beyond A, C, G, T, N read as N ({found})"
            warn("other-letters", message)
            self.warned.add(self.name)
        self.name = None


def _usable_index(path, compressed):
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
    with contextlib.closing(_Text(path, index.blocks)) as text:
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
    if gaps.min() < 3 or gaps.max() > 2 * _HEADER_BYTES_LIMIT or not np.isin((widths - bases)[filled], (1, 2)).all():
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


class _Text:
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


def _write_index(path, index):
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
