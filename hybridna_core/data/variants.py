"""Variants: what a record's alleles do to a contig, and what has to be read to score them.

Record -> judge (contig, POS, REF against the genome) -> per ALT: Variant, or the reason why not
Variant -> reference and alternative as pieces -> first changed base, per direction -> Comparison (ids to read)

The alternative contig is a short list of pieces (stretches of the contig, reversed or not, and given bases) and is
never built, so that a deletion of any length costs nothing.
"""

import re
from typing import NamedTuple

import numpy as np

from hybridna_core.data.inputs import printable, warn
from hybridna_core.data.vcf import to_bytes
from hybridna_core.errors import DataError
from hybridna_core.tokenizer import N, encode, reverse_complement_ids

SCORED = ("ok", "swapped")
REASONS = (
    "ref_mismatch", "bad_pos", "bad_ref", "ambiguous_ref", "bad_alt", "no_alt", "spanning", "symbolic", "breakend",
    "imprecise", "no_change", "unknown_contig", "out_of_range", "too_long", "too_many_n", "excluded",
)  # fmt: skip
CHECK_REF = {"e": "stop", "w": "mark as ref_mismatch", "x": "mark as excluded", "s": "swap where ALT matches"}
UNKNOWN_SHARE_LIMIT = 0.05

_LITERAL = re.compile(r"[ACGT]+")
_AMBIGUOUS = re.compile(r"[ACGTNRYKMSWBDHV]+")
_INTERVAL = re.compile(r"(-?[0-9]{1,18}),(-?[0-9]{1,18})")
# INFO keys that hold the inserted bases themselves; SEQ, CONSENSUS and others hold reads or flanks, too.
_INSERTED = ("SVINSSEQ", "INSSEQ")


class Piece(NamedTuple):
    """Bases of a haplotype: the stretch [start, end) of the contig, 0-based, perhaps reversed; or given ids."""

    start: int
    end: int
    reverse: bool = False
    ids: np.ndarray | None = None

    @property
    def length(self):
        return self.end - self.start

    def turned(self):
        """The reverse complement of the piece."""
        if self.ids is None:
            return self._replace(reverse=not self.reverse)
        return self._replace(ids=reverse_complement_ids(self.ids))


class Variant(NamedTuple):
    """One alternative allele: the stretch [start, end) of the contig, 0-based half-open, gives way to pieces.

    contig  as the genome names it
    sign    -1 when the contig itself holds ALT, so that the score changes its sign
    """

    contig: str
    start: int
    end: int
    pieces: tuple
    sign: int = 1


class Allele(NamedTuple):
    """A record's alternative allele on its way: `variant` is None where `status` says why there is no score."""

    status: str
    variant: Variant | None = None


class Haplotype:
    """A contig with or without an allele, read from one end; `reverse` is the reading direction `-`.

    Coordinates count from the end where reading begins.
    """

    def __init__(self, genome, contig, pieces, reverse=False):
        pieces = [piece for piece in pieces if piece.length > 0]
        self.genome, self.contig = genome, contig
        self.pieces = [piece.turned() for piece in reversed(pieces)] if reverse else pieces
        self.length = sum(piece.length for piece in pieces)

    def ids(self, start, end):
        """Token ids of [start, end). (end - start,) uint8"""
        found, at = [], 0
        for piece in self.pieces:
            low, high = max(start - at, 0), min(end - at, piece.length)
            if low < high:
                found.append(self._read(piece, low, high))
            at += piece.length
            if at >= end:
                break
        return np.concatenate(found) if found else np.zeros(0, dtype=np.uint8)

    def _read(self, piece, low, high):
        if piece.ids is not None:
            return piece.ids[low:high]
        if piece.reverse:
            return reverse_complement_ids(self.genome.ids(self.contig, piece.end - high, piece.end - low))
        return self.genome.ids(self.contig, piece.start + low, piece.start + high)


class Comparison(NamedTuple):
    """What one direction reads of a variant.

    strand         + or -
    start, change  of the prefix and of the first changed base, counted from where reading begins
    prefix         ids before the first changed base, common to both
    reference, alternative  ids from there on, each with equally many known bases
    is_short       a contig end shortened the prefix or the horizon
    """

    strand: str
    start: int
    change: int
    prefix: np.ndarray
    reference: np.ndarray
    alternative: np.ndarray
    is_short: bool

    @property
    def known(self):
        """Bases that each allele counts."""
        return int(np.count_nonzero(self.reference != N))

    @property
    def unknown_share(self):
        """Share of unknown bases in prefix and horizon, of the allele that has more."""
        shares = []
        for suffix in (self.reference, self.alternative):
            unknown = np.count_nonzero(self.prefix == N) + np.count_nonzero(suffix == N)
            shares.append(unknown / max(len(self.prefix) + len(suffix), 1))
        return max(shares)


# From record to variants


def read_alleles(record, genome, *, path="", renames=None, check_ref="w", horizon=None):
    """Judge a record; return one Allele per ALT, in order (one for a record without).

    path     file that messages name
    renames  dict of contig names, old -> new
    horizon  inserted stretches of so many bases or more are too long
    Raises DataError for a REF that differs from the genome when `check_ref` is `e`.
    """
    alts = record.alts or ["."]
    contig, status = _judge(record, genome, path, renames, check_ref)
    alleles = []
    for index, alt in enumerate(alts):
        # The base before a symbolic event is no part of it, so an unknown one does no harm.
        if status is None or (status == "ambiguous_ref" and alt.startswith("<") and len(record.ref) == 1):
            allele = _read_alt(record, index, alt, genome, contig, horizon)
            if allele.status == "bad_alt":
                where = f"{path}:{record.number}: {record.contig}:{record.pos}"
                warn("bad_alt", f"{where}: ALT {printable(to_bytes(alt))!r} is no allele; marked bad_alt")
        elif status == "ref_mismatch" and check_ref == "s":
            allele = _swap(record, alt, genome, contig, horizon)
        else:
            allele = Allele("excluded" if status == "ref_mismatch" and check_ref == "x" else status)
        alleles.append(allele)
    if status == "ref_mismatch" and any(allele.variant is None for allele in alleles):
        _tell_mismatch(record, genome, contig, path, check_ref)
    return alleles


def _judge(record, genome, path, renames, check_ref):
    """Return the contig's name in the genome, or None, and the reason that bars the whole record, or None."""
    where = f"{path}:{record.number}"
    contig = genome.resolve(record.contig, renames)
    if contig is None:
        return None, "unknown_contig"
    pos, ref = record.pos, record.ref.upper()
    if pos is None:
        warn("bad_pos", f"{where}: POS {printable(record.columns[1])!r} is not a position; marked bad_pos")
        return contig, "bad_pos"
    if not _AMBIGUOUS.fullmatch(ref):
        warn("bad_ref", f"{where}: {record.contig}:{pos}: REF {printable(to_bytes(ref))!r} is no bases; marked bad_ref")
        return contig, "bad_ref"
    if pos == 0 or pos - 1 + len(ref) > genome.contigs[contig]:
        if pos:
            what = f"passes the end of the contig ({genome.contigs[contig]:,} bp)"
            warn("out_of_range", f"{where}: {record.contig}:{pos}: REF {what}; marked out_of_range")
        return contig, "out_of_range"
    if not _LITERAL.fullmatch(ref):
        return contig, "ambiguous_ref"
    there = genome.fetch(contig, pos - 1, pos - 1 + len(ref))
    if there == ref:
        return contig, None
    # An unknown base of the genome contradicts nothing.
    if all(a in (b, "N") for a, b in zip(there, ref, strict=True)):
        return contig, "ambiguous_ref"
    return contig, "ref_mismatch"


def _tell_mismatch(record, genome, contig, path, check_ref):
    there = genome.fetch(contig, record.pos - 1, record.pos - 1 + len(record.ref))
    where = f"{record.contig}:{record.pos}"
    what = f"REF is {printable(to_bytes(record.ref), 20)}, {genome.path} has {printable(there.encode(), 20)}"
    if check_ref == "e":
        hint = "another genome build? --check-ref w marks such records and goes on"
        raise DataError(what, where=f"{path}:{record.number}: {where}", hint=hint)
    marked = "excluded" if check_ref == "x" else "ref_mismatch"
    warn("ref_mismatch", f"{path}:{record.number}: {where}: {what}; marked {marked}")


def _read_alt(record, index, alt, genome, contig, horizon):
    if alt == ".":
        return Allele("no_alt")
    if alt == "*":
        return Allele("spanning")
    if alt.startswith("<") and alt.endswith(">"):
        return _read_symbolic(record, index, alt[1:-1], genome, contig, horizon)
    # Bases beside a sequence that is named and lies elsewhere.
    if re.fullmatch(r"[ACGTNacgtn]+<[^<>]+>|<[^<>]+>[ACGTNacgtn]+", alt):
        return Allele("symbolic")
    # [p[t, ]p]t and the single ones, t. and .t
    if re.fullmatch(r"[ACGTNacgtn.]*[][][^][]+[][][ACGTNacgtn.]*|\.[ACGTNacgtn]+|[ACGTNacgtn]+\.", alt):
        return Allele("breakend")
    return _literal(contig, record.pos - 1, record.ref.upper(), alt.upper(), horizon)


def _literal(contig, start, ref, alt, horizon, sign=1):
    if not _LITERAL.fullmatch(alt):
        return Allele("bad_alt")
    if alt == ref:
        return Allele("no_change")
    if horizon is not None and len(alt) - len(ref) >= horizon:
        return Allele("too_long")
    piece = Piece(0, len(alt), ids=encode(alt))
    return Allele("swapped" if sign < 0 else "ok", Variant(contig, start, start + len(ref), (piece,), sign))


def _swap(record, alt, genome, contig, horizon):
    """Take ALT for the reference where the genome holds it."""
    start, ref, alt = record.pos - 1, record.ref.upper(), alt.upper()
    fits = _LITERAL.fullmatch(alt) and start + len(alt) <= genome.contigs[contig]
    if not fits or genome.fetch(contig, start, start + len(alt)) != alt:
        return Allele("ref_mismatch")
    return _literal(contig, start, alt, ref, horizon, sign=-1)


def _read_symbolic(record, index, name, genome, contig, horizon):
    kind, inserted = name.split(":")[0], _read_inserted(record, index)
    if kind not in ("DEL", "DUP", "INV", "INS") or (kind == "DUP" and name not in ("DUP", "DUP:TANDEM")):
        return Allele("symbolic")
    if inserted is None or (kind == "INS" and not inserted):
        return Allele("symbolic")
    # At which end of an inversion bases were inserted is not said.
    if _is_imprecise(record) or (kind == "INV" and inserted):
        return Allele("imprecise")
    # POS is the base before the event; counted from 0, it is the event's first base.
    start, ends = record.pos, _read_ends(record, index)
    if kind == "INS":
        # END is POS; some write the base after, or as far on as bases were inserted.
        is_fitting = ends <= {start, start + 1, start + len(inserted)}
        if not is_fitting or _read_length(record, index) not in (None, len(inserted)):
            return Allele("imprecise")
        ends = {start}
    if not ends:
        return Allele("symbolic")
    if len(ends) > 1:
        return Allele("imprecise")
    (end,) = ends
    if end > genome.contigs[contig]:
        return Allele("out_of_range")
    if end <= start and kind != "INS":
        return Allele("no_change" if end == start else "symbolic")
    if horizon is not None and len(inserted) - (end - start) * (kind == "DEL") >= horizon:
        return Allele("too_long")
    stretch, given = Piece(start, end), Piece(0, len(inserted), ids=encode(inserted))
    pieces = {"DUP": (stretch, given, stretch), "INV": (stretch._replace(reverse=True),)}.get(kind, (given,))
    return Allele("ok", Variant(contig, start, end, pieces))


def _read_inserted(record, index):
    """Return the bases that INFO says a symbolic allele inserts, "" where it says none, None where they are unclear."""
    found = set()
    for key in _INSERTED:
        texts = (record.info(key) or ".").upper().split(",")
        if texts != ["."] and len(texts) != len(record.alts):
            return None
        found.add(texts[index] if texts != ["."] else ".")
    found.discard(".")
    if not found:
        return ""
    text = found.pop()
    return text if not found and _LITERAL.fullmatch(text) else None


def _is_imprecise(record):
    if record.info("IMPRECISE") is not None:
        return True
    if re.search(r"[1-9]", record.info("CILEN") or ""):
        return True
    length = record.info("HOMLEN") or ""
    homology = int(length) if re.fullmatch("[0-9]{1,18}", length) else 0
    for text in filter(None, (record.info("CIPOS"), record.info("CIEND"))):
        ends = _INTERVAL.fullmatch(text)
        # An event that slides along equal bases stays the same one.
        slides = ends is not None and int(ends[1]) <= 0 <= int(ends[2]) <= int(ends[1]) + homology
        if re.search(r"[1-9]", text) and not slides:
            return True
    return False


def _read_length(record, index):
    """Return what SVLEN says of an allele, without its sign; None where it says nothing. Unit: bases"""
    lengths = (record.info("SVLEN") or "").split(",")
    is_given = len(lengths) == len(record.alts) and re.fullmatch(r"-?[0-9]{1,18}", lengths[index])
    return abs(int(lengths[index])) if is_given else None


def _read_ends(record, index):
    """Return the set of ends, 0-based half-open, that SVLEN and END give to a symbolic allele; two when they differ."""
    length = _read_length(record, index)
    ends = set() if length is None else {record.pos + length}
    end = record.info("END") or ""
    # With several alleles END is that of the longest.
    if re.fullmatch(r"[0-9]{1,18}", end) and (len(record.alts) == 1 or not ends):
        ends.add(int(end))
    return ends


# From variant to what is read


def compare(variant, genome, window, horizon, stride=1):
    """Lay out what has to be read to score a variant.

    window   bases of prefix and horizon together
    horizon  known bases that each allele counts at most
    stride   prefixes begin at multiples of it, counted on the contig
    returns  status (ok, no_change, too_many_n, out_of_range) and the Comparison of each direction that counts a base
    """
    length = genome.contigs[variant.contig]
    comparisons, unknown = [], False
    for strand in "+-":
        reference = put_in((), genome, variant.contig, strand)
        alternative = put_in((variant,), genome, variant.contig, strand)
        change = first_difference(reference, alternative, length - variant.end if strand == "-" else variant.start)
        if change == reference.length == alternative.length:
            return "no_change", []
        found = lay_out_direction(strand, reference, [alternative], change, window, horizon, stride)
        unknown |= found is None
        comparisons += found or []
    if unknown:
        return "too_many_n", []
    return ("ok", comparisons) if comparisons else ("out_of_range", [])


def put_in(variants, genome, contig, strand):
    """Return the Haplotype of a contig with variants put in, sorted and without overlap, read in a direction."""
    pieces, at = [], 0
    for variant in variants:
        pieces += [Piece(at, variant.start), *variant.pieces]
        at = variant.end
    pieces.append(Piece(at, genome.contigs[contig]))
    return Haplotype(genome, contig, pieces, strand == "-")


def lay_out_direction(strand, reference, alternatives, change, window, horizon, stride):
    """Lay out what one direction reads of alternatives that equal the reference before a place.

    change   that place, counted from where reading begins
    returns  a Comparison for each alternative, all with equally many known bases; none if that is 0; None where too
             many are unknown
    """
    earliest = change - (window - horizon)
    # On the contig the prefix of `-` ends where that of `+` begins, so its multiples count from the other end.
    offset = reference.length % stride if strand == "-" else 0
    start = min(max(0, -(-(earliest - offset) // stride) * stride + offset), change)
    prefix = reference.ids(start, change)
    patience = UNKNOWN_SHARE_LIMIT * (window + horizon) + 1 - np.count_nonzero(prefix == N)
    # The shorter ones first: what they have left bounds what is counted, and thus read, of the others.
    suffixes, known = {}, horizon
    for haplotype in sorted((reference, *alternatives), key=lambda haplotype: haplotype.length):
        suffix = read_known(haplotype, change, known, patience)
        if suffix is None:
            return None
        suffixes[haplotype], known = suffix, int(np.count_nonzero(suffix != N))
    if known == 0:
        return []
    first, *others = (cut_known(suffixes[haplotype], known) for haplotype in (reference, *alternatives))
    is_short = earliest < 0 or known < horizon
    found = [Comparison(strand, start, change, prefix, first, other, is_short) for other in others]
    return None if any(one.unknown_share > UNKNOWN_SHARE_LIMIT for one in found) else found


def first_difference(a, b, start):
    """Return the first coordinate from `start` on where two haplotypes differ; the shorter one's length if none."""
    end, step = min(a.length, b.length), 64
    while start < end:
        stop = min(start + step, end)
        unequal = np.flatnonzero(a.ids(start, stop) != b.ids(start, stop))
        if len(unequal):
            return start + int(unequal[0])
        start, step = stop, min(2 * step, 2**20)
    return end


def read_known(haplotype, start, wanted, patience):
    """Read ids from `start` on until `wanted` known bases are among them, or the end.

    returns  (n,) uint8, or None as soon as more than `patience` unknown bases are passed and known ones follow
    """
    parts, known, unknown = [], 0, 0
    while known < wanted and start < haplotype.length:
        part = haplotype.ids(start, min(start + wanted - known, haplotype.length))
        parts.append(part)
        fresh = int(np.count_nonzero(part != N))
        known, unknown, start = known + fresh, unknown + len(part) - fresh, start + len(part)
        if unknown > patience:
            if has_known(haplotype, start):
                return None
            break
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint8)


def has_known(haplotype, start):
    """Say whether a haplotype has a known base from `start` on."""
    # From the end, as what is unknown there is a telomere, and in the middle may be millions of bases.
    end, step = haplotype.length, 64
    while end > start:
        first = max(start, end - step)
        if np.any(haplotype.ids(first, end) != N):
            return True
        end, step = first, min(2 * step, 2**20)
    return False


def cut_known(ids, count):
    """Cut ids after the known base of the given number, from 1."""
    return ids[: np.flatnonzero(ids != N)[count - 1] + 1]
