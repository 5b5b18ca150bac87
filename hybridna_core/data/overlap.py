"""What was read in training, to be asked about stretches of contigs and about sequences.

starts of windows -> sorted, merged -> windows, bases and shares of a stretch; read stretches -> k-mers -> hits
"""

import numpy as np

from hybridna_core.data.inputs import read_chunks, read_lines
from hybridna_core.errors import DataError
from hybridna_core.tokenizer import A, T, encode

# k-mers of evaluation sequences held at a time, of 12 bytes each and as much again while they are sorted.
KMERS_AT_ONCE = 2**24
# Bases of a training genome read at a time.
PIECE = 2**21
_FILTER_BITS = 24
_SCATTER = np.uint64(0x9E3779B97F4A7C15)


class Read:
    """The windows that were read of one species.

    store  its Store
    sets   list of (starts, bases): sorted starts of windows by number in the store, and how long each of them is
    """

    def __init__(self, store, sets):
        self.store = store
        self.sets = [(np.sort(starts), bases) for starts, bases in sets if len(starts)]
        self.starts, self.ends = _merge(self.sets)
        self._before = np.concatenate(([0], np.cumsum(self.ends - self.starts)))

    def windows(self, start, end):
        """Return how many windows overlap [start, end), and how many bases of it they read in all."""
        count = bases = 0
        for starts, length in self.sets:
            first, last = np.searchsorted(starts, (start - length + 1, end), side="left")
            count += int(last - first)
            touched = starts[first:last]
            bases += int((np.minimum(touched + length, end) - np.maximum(touched, start)).sum())
        return count, bases

    def covered(self, start, end):
        """Count the bases of [start, end) that some window read."""
        return self._up_to(end) - self._up_to(start)

    def _up_to(self, base):
        run = int(np.searchsorted(self.starts, base, side="left"))
        return int(self._before[run]) - (max(0, int(self.ends[run - 1]) - base) if run else 0)

    def pieces(self, overlap):
        """Yield the ids of everything that was read, in pieces that share `overlap` bases, never across contigs."""
        for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True):
            for at in range(start, end, PIECE):
                yield self.store.ids(at, min(at + PIECE + overlap, end))


def _merge(sets):
    """Merge windows into disjoint stretches: sorted starts and ends."""
    if not sets:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    starts = np.concatenate([starts for starts, _ in sets])
    ends = np.concatenate([starts + bases for starts, bases in sets])
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    # What only touches stays apart: no window read across it, and it may be the end of a contig.
    first = np.concatenate(([True], starts[1:] >= ends[:-1]))
    return starts[first], ends[np.concatenate((first[1:], [True]))]


def kmers(ids, k):
    """Return each k-mer of token ids as a number that is the same for its reverse complement; k is 32 at most.

    returns  (n,) uint64 of those without N, and (n,) int64 where each begins
    """
    if len(ids) < k:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    known = (ids >= A) & (ids <= T)
    codes = np.where(known, ids - A, 0).astype(np.uint64)
    whole = np.flatnonzero(np.convolve(~known, np.ones(k, dtype=np.int64), "valid") == 0) if not known.all() else None
    forward = _words(codes, k)
    reverse = _words((np.uint64(3) - codes)[::-1], k)[::-1]
    found = np.minimum(forward, reverse)
    if whole is None:
        return found, np.arange(len(found))
    return found[whole], whole


def _words(codes, k):
    """Read every k codes of two bits as one number: k is put together from powers of two."""
    word, size, found, done = codes, 1, None, 0
    while True:
        if k & size:
            if found is None:
                found = word
            else:
                count = min(len(found), len(word) - done)
                found = (found[:count] << np.uint64(2 * size)) | word[done : done + count]
            done += size
        if 2 * size > k:
            return found[: len(codes) - k + 1]
        word = (word[:-size] << np.uint64(2 * size)) | word[size:]
        size *= 2


def find_kmers(wanted, reads, k):
    """Tell which of the given k-mers (sorted, unique) stand in what was read: (n,) bool."""
    seen = np.zeros(len(wanted), dtype=bool)
    shift = np.uint64(64 - _FILTER_BITS)
    # Nearly all k-mers of the genomes are none of the wanted; a table of bytes says so faster than a search.
    maybe = np.zeros(2**_FILTER_BITS, dtype=bool)
    maybe[(wanted * _SCATTER) >> shift] = True
    for read in reads:
        for ids in read.pieces(k - 1):
            found, _ = kmers(ids, k)
            found = found[maybe[(found * _SCATTER) >> shift]]
            at = np.minimum(np.searchsorted(wanted, found), len(wanted) - 1)
            seen[at[wanted[at] == found]] = True
    return seen


def read_sequences(path, *, allow_missing_eof=False):
    """Yield (name, ids) of each record of a FASTA file of any line length; a record is in memory whole.

    Letters that are no bases are read as N. Raises DataError for what is no FASTA.
    """
    name, parts = None, []
    for number, raw, _ in read_lines(read_chunks(path, allow_missing_eof=allow_missing_eof), path):
        line = raw.strip()
        if line.startswith(b">"):
            if name is not None:
                yield name, np.concatenate([encode(b""), *parts])
            words = line[1:].split()
            if not words:
                raise DataError("a record without a name", where=f"{path}:{number}")
            name, parts = words[0].decode("utf-8", "replace"), []
        elif line:
            if name is None:
                raise DataError("text before the first '>'", where=f"{path}:{number}", hint="is this FASTA?")
            if not line.isalpha():
                raise DataError("a sequence holds letters only", where=f"{path}:{number}", hint="is this FASTA?")
            parts.append(encode(line))
    if name is None:
        raise DataError("no sequence found", where=path, hint="was the download complete?")
    yield name, np.concatenate([encode(b""), *parts])
