"""Reading a FASTA file once from end to end: every line and letter checked, and where its lines are.

pieces of text -> header or lines -> widths, letters, lengths -> FastaIndex

The scan is our own because it must name line, column and letter of what is wrong in the same pass as it finds what
an index holds.
"""

import re
from array import array
from collections import Counter
from typing import NamedTuple

import numpy as np

from hybridna_core.data.inputs import (
    BYTE_ORDER_MARK,
    bgzf_blocks,
    is_bgzf,
    looks_like,
    open_input,
    printable,
    read_chunks,
    warn,
)
from hybridna_core.data.letters import FINE, IUPAC, explain_letter, first_bad
from hybridna_core.errors import DataError

HEADER_BYTES_LIMIT = 2**20


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
                if len(self.header) > HEADER_BYTES_LIMIT:
                    raise self._error(f"a header of over {HEADER_BYTES_LIMIT:,} bytes")
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
            if b"\n" in line or len(line) > HEADER_BYTES_LIMIT:
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
        if rest := text.translate(None, FINE + b"\r\n"):
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
        plain = rest.translate(None, IUPAC)
        if plain:
            flat = re.sub(rb"[\r\n]", b"N", text)
            bad = first_bad(flat, self.other_letters, self.rna)
            if bad is not None:
                self._bad_letter(text, bad, offset)
        self.others.update(rest.decode("ascii"))

    def _bad_letter(self, text, bad, offset):
        byte = text[bad]
        line = self.line + text[:bad].count(b"\n")
        column = bad - text.rfind(b"\n", 0, bad) + (self.partial if b"\n" not in text[:bad] else 0)
        if byte >= 128:
            raise self._error(f"not UTF-8 or no base, at byte offset {offset + bad:,}", line=line, column=column)
        what, hint = explain_letter(byte)
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
