"""GenBank and EMBL flat files: the sequences alone, read one record after the other through Biopython.

path -> text, decompressed -> Biopython's scanner without features -> (name, letters)
"""

import io
import warnings

from hybridna_core.data.inputs import check_input, read_chunks, warn
from hybridna_core.data.letters import mend_letters
from hybridna_core.errors import DataError, UsageError


def flat_format(path):
    """Return "GenBank" or "EMBL" when the content begins like one, plain or gzip, else None."""
    for chunk in read_chunks(check_input(path, random_access=True), allow_missing_eof=True):
        head = chunk[:64].lstrip()
        if head.startswith(b"LOCUS "):
            return "GenBank"
        # Release files of the NCBI begin with a banner that names the division.
        if b"Genetic Sequence Data Bank" in chunk[:512]:
            return "GenBank"
        return "EMBL" if head.startswith(b"ID   ") else None
    return None


def read_flat_file(path, format_name, *, other_letters=None, rna=False, allow_missing_eof=False):
    """Yield (name, letters) of each record that has bases, in file order; letters are upper-case bytes over ACGTN.

    The name is accession and version. A record is in memory whole. Raises DataError for a broken file, letters that
    are no bases, and names that stand twice.
    """
    if other_letters not in (None, "n"):
        raise UsageError(f"is {other_letters!r}, must be 'n'", where="--other-letters")
    from Bio.GenBank.Scanner import EmblScanner, GenBankScanner

    scanner = {"GenBank": GenBankScanner, "EMBL": EmblScanner}[format_name]()
    seen = set()
    chunks = _Stream(read_chunks(path, allow_missing_eof=allow_missing_eof))
    with io.TextIOWrapper(io.BufferedReader(chunks, 2**18), encoding="latin-1") as text:
        records = scanner.parse_records(text, do_features=False)
        while True:
            record = _next_record(records, path, format_name)
            if record is None:
                break
            if record.id in seen:
                raise DataError(f"record {record.id!r} stands twice", where=path, hint="names must differ")
            seen.add(record.id)
            letters = _letters(record)
            if not letters:
                warn("empty-contig", f"{path}: record {record.id} has no bases; skipped")
                continue
            where = f"{path}: {record.id}:"
            letters, found = mend_letters(letters, where, 1, other_letters=other_letters, rna=rna)
            if found:
                warn("other-letters", f"{path}: record {record.id} holds {found}; read as N")
            # Flat files are in lower case throughout; it does not mean that anything is masked.
            yield record.id, letters.upper()
    if not seen:
        raise DataError("no sequence found", where=path, hint="was the download complete?")


def _next_record(records, path, format_name):
    """Return the next record, or None at the end; Biopython's warnings and errors become ours."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            record = next(records, None)
        except (ValueError, AssertionError, KeyError, IndexError) as error:
            raise _not_whole(path, format_name, error) from None
    for one in said:
        # Biopython takes these for small matters.
        if "Premature end" in str(one.message) or "Expected sequence length" in str(one.message):
            raise _not_whole(path, format_name, one.message)
        warn("flat-file", f"{path}: {_one_line(one.message)}")
    return record


def _not_whole(path, format_name, message):
    what = f"not a whole {format_name} file ({_one_line(message)})"
    return DataError(what, where=path, hint="was the download complete?")


def _one_line(message):
    return " ".join(str(message).split())[:200]


def _letters(record):
    """Return a record's letters as bytes, empty when the file does not hold them."""
    from Bio.Seq import UndefinedSequenceError

    try:
        return bytes(record.seq)
    except UndefinedSequenceError:
        return b""


class _Stream(io.RawIOBase):
    """Chunks of bytes as a file."""

    def __init__(self, chunks):
        self.chunks, self.rest = chunks, memoryview(b"")

    def readable(self):
        return True

    def readinto(self, buffer):
        if not self.rest:
            self.rest = memoryview(next(self.chunks, b""))
        count = min(len(buffer), len(self.rest))
        buffer[:count], self.rest = self.rest[:count], self.rest[count:]
        return count
