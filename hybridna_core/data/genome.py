"""FASTA random access: contig naming, windows of bases, an index that is built safely and never stale.

path -> check -> .fai (and .gzi) read and compared with the file, else built by one validating scan -> windows of bases

Index files are those of samtools. Windows are read here and not by htslib, whose reader takes 2^31 - 1 for the length
of any longer contig, skips bytes that are no letters, and needs its index on disk.
"""

import hashlib
import itertools
import os
import threading

from hybridna_core.data.fasta_index import FastaText, usable_index, write_index
from hybridna_core.data.fasta_scan import scan_fasta
from hybridna_core.data.inputs import (
    BGZF_EOF,
    BYTE_ORDER_MARK,
    bgzf_blocks,
    check_input,
    is_bgzf,
    looks_like,
    open_input,
    read_chunks,
    warn,
)
from hybridna_core.data.letters import FINE, mend_letters
from hybridna_core.errors import DataError, UsageError, nearest
from hybridna_core.tokenizer import encode

_DIGEST_PIECE = 2**20
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
        self._warned, self._digests, self._lock = set(), {}, threading.Lock()
        with open_input(self.path) as handle:
            self._identity = _identity(os.fstat(handle.fileno()))
        compressed = _check_head(self.path, allow_missing_eof)
        index = None
        if not rebuild_index:
            index = usable_index(self.path, compressed)
        if index is None:
            index = scan_fasta(self.path, other_letters=other_letters, rna=rna, allow_missing_eof=allow_missing_eof)
            self.check_unchanged()
            self._warned.update(index.warned)
            write_index(self.path, index)
        self.contigs, self._rows = {}, {}
        for i, (name, length) in enumerate(zip(index.names, index.lengths, strict=True)):
            if length:
                self.contigs[name], self._rows[name] = length, i
            else:
                warn("empty-contig", f"{self.path}: contig {name} has no bases; skipped")
        if not self.contigs:
            raise DataError("no contig has any bases", where=self.path, hint="was the download complete?")
        self._index, self._text = index, FastaText(self.path, index.blocks)

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
        # Both reading directions of a variant may ask at once, and the file is read at one place.
        with self._lock:
            raw = self._raw(contig, start, end)
        if not raw.translate(None, FINE):
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
