"""Matched alleles: the classes that alleles fall into, and alleles of each class drawn from a genome.

variant -> classify -> class
stretches of the genome -> every base's trinucleotide, counted, then drawn by rank -> SNVs; places and lengths -> indels

Classes are those of a score that is the mean of both strands: a substitution and its reverse complement are one.
"""

import bisect
import itertools
import random
from typing import NamedTuple

import numpy as np

from hybridna_core.data.variants import Allele, Haplotype, Piece, Variant, first_difference
from hybridna_core.tokenizer import BASE_IDS, A, N, T, decode, encode, reverse_complement, reverse_complement_ids

# Lengths of insertions and deletions that are one class: first and last, bp.
LENGTHS = (
    *((n, n) for n in range(1, 7)), (7, 8), (9, 12), (13, 16), (17, 24), (25, 32), (33, 50),
)  # fmt: skip
CONTEXTS = tuple(f"{left}{base}{right}" for left in "ACGT" for base in "CT" for right in "ACGT")
# Bases looked at at once.
PIECE = 2**20


class Match(NamedTuple):
    """An allele drawn for a class; pos counts from 1, ref and alt as in VCF."""

    group: str
    contig: str
    pos: int
    ref: str
    alt: str
    allele: Allele


def name_substitution(context, alt):
    """Name the class of a substitution: `A[C>T]G`, always with C or T in the middle. context: three bases"""
    if context[1] in "AG":
        context, alt = reverse_complement(context), reverse_complement(alt)
    return f"{context[0]}[{context[1]}>{alt}]{context[2]}"


def name_length(kind, length):
    """Name the class of an insertion (`ins`) or deletion (`del`) of so many bases, None beyond the longest."""
    for first, last in LENGTHS:
        if first <= length <= last:
            return f"{kind}{first}" if first == last else f"{kind}{first}-{last}"
    return None


def list_classes():
    """Return the names of all classes, in order."""
    snvs = [name_substitution(context, alt) for context in CONTEXTS for alt in "ACGT" if alt != context[1]]
    return [*snvs, *(name_length(kind, first) for kind in ("ins", "del") for first, _ in LENGTHS)]


def classify(variant, genome):
    """Return the class of a variant, however it is spelt; None for what has none.

    One base changed, bases put in, or bases taken out: other changes, longer ones, substitutions beside an unknown base
    or at a contig's very end, and alleles that the genome itself holds have no class.
    """
    length = genome.contigs[variant.contig]
    change = sum(piece.length for piece in variant.pieces) - (variant.end - variant.start)
    if variant.sign < 0 or abs(change) > LENGTHS[-1][1]:
        return None
    pieces = [Piece(0, variant.start), *variant.pieces, Piece(variant.end, length)]
    kept = []
    for is_reverse, start in ((False, variant.start), (True, length - variant.end)):
        whole, changed = (Haplotype(genome, variant.contig, p, is_reverse) for p in ([Piece(0, length)], pieces))
        kept.append(first_difference(whole, changed, start))
    before, behind = kept
    if change:
        # The two ends reach each other, so what is between them in the longer one is all that differs.
        is_pure = before + behind >= min(length, length + change)
        return name_length("ins" if change > 0 else "del", abs(change)) if is_pure else None
    if before + behind != length - 1 or not 0 < before < length - 1:
        return None
    context = genome.fetch(variant.contig, before - 1, before + 2)
    alt = decode(Haplotype(genome, variant.contig, pieces).ids(before, before + 1))
    return None if "N" in context + alt else name_substitution(context, alt)


# Drawing


def draw_matches(genome, stretches, per_class, seed, horizon):
    """Draw alleles of every class from stretches of a genome; return Matches in the genome's order.

    stretches  (contig, start, end), 0-based half-open, disjoint, in the genome's order
    per_class  alleles of each class; fewer where there are not as many
    horizon    insertions are shorter

    Substitutions are drawn by trinucleotide, the same bases for the three that are possible, so that they share what is
    read. Each class has its own random numbers, so that what is drawn for one does not depend on the others.
    """
    found = list(draw_substitutions(genome, stretches, per_class, seed))
    for kind, (first, last) in itertools.product(("ins", "del"), LENGTHS):
        last = min(last, horizon - 1) if kind == "ins" else last
        if first <= last:
            found += draw_indels(genome, stretches, per_class, seed, kind, first, last)
    order = {name: i for i, name in enumerate(genome.contigs)}
    return sorted(found, key=lambda match: (order[match.contig], match.pos, match.ref, match.alt))


def draw_substitutions(genome, stretches, per_class, seed):
    """Yield the Matches of substitutions."""
    counts = np.zeros(len(CONTEXTS), dtype=np.int64)
    for _, _, codes in read_contexts(genome, stretches):
        counts += np.bincount(codes[codes >= 0], minlength=len(CONTEXTS))
    wanted = []
    for context, count in zip(CONTEXTS, counts.tolist(), strict=True):
        ranks = random.Random(f"{seed} {context}").sample(range(count), min(per_class, count))
        wanted.append(np.array(sorted(ranks), dtype=np.int64))
    seen = np.zeros(len(CONTEXTS), dtype=np.int64)
    for contig, start, codes in read_contexts(genome, stretches):
        here = np.bincount(codes[codes >= 0], minlength=len(CONTEXTS))
        for code, ranks in enumerate(wanted):
            low, high = np.searchsorted(ranks, (seen[code], seen[code] + here[code]))
            if low < high:
                places = np.flatnonzero(codes == code)[ranks[low:high] - seen[code]]
                for place in places.tolist():
                    yield from substitute(genome, contig, start + place)
        seen += here


def substitute(genome, contig, place):
    """Yield the three Matches of one base. place: 0-based"""
    context = genome.fetch(contig, place - 1, place + 2)
    for alt in "ACGT".replace(context[1], ""):
        variant = Variant(contig, place, place + 1, (Piece(0, 1, ids=encode(alt)),))
        yield Match(name_substitution(context, alt), contig, place + 1, context[1], alt, Allele("ok", variant))


def read_contexts(genome, stretches):
    """Yield (contig, start, codes): for each base from start on the number of its trinucleotide among CONTEXTS, or -1.

    -1 stands for bases beside an unknown one and at a contig's end.
    """
    for contig, first, last in stretches:
        first, last = max(first, 1), min(last, genome.contigs[contig] - 1)
        for start in range(first, last, PIECE):
            end = min(start + PIECE, last)
            ids = genome.ids(contig, start - 1, end + 1)
            is_known = (ids >= A) & (ids <= T)
            # A, C, G, T as 0 to 3: the complement of i is 3 - i.
            bases = ids.astype(np.int64) - BASE_IDS[0]
            left, middle, right = bases[:-2], bases[1:-1], bases[2:]
            is_purine = middle % 2 == 0
            left, right = np.where(is_purine, 3 - right, left), np.where(is_purine, 3 - left, right)
            middle = np.where(is_purine, 3 - middle, middle)
            codes = (left * 2 + (middle == 3)) * 4 + right
            yield contig, start, np.where(is_known[:-2] & is_known[1:-1] & is_known[2:], codes, -1)


def draw_indels(genome, stretches, per_class, seed, kind, first, last):
    """Return Matches of insertions or deletions of `first` to `last` bases, all lengths alike.

    The bases put in are those of another place, of either strand.
    """
    draw, group = random.Random(f"{seed} {name_length(kind, first)}"), name_length(kind, first)
    ends = list(itertools.accumulate(end - start for _, start, end in stretches))
    found = {}
    # Where most is unknown, many draws fail.
    for _ in range(50 * per_class + 1000):
        if len(found) == per_class or not ends:
            break
        length = draw.randint(first, last)
        contig, start, ids = read_stretch(genome, stretches, ends, draw, length if kind == "del" else 1)
        given = read_stretch(genome, stretches, ends, draw, length)[2] if kind == "ins" else None
        is_reverse = kind == "ins" and draw.random() < 0.5
        if ids is None or (kind == "ins" and given is None):
            continue
        before = genome.fetch(contig, start - 1, start)
        if before == "N":
            continue
        if kind == "del":
            ref, alt, end, pieces = before + decode(ids), before, start + length, ()
        else:
            given = reverse_complement_ids(given) if is_reverse else given
            ref, alt, end, pieces = before, before + decode(given), start, (Piece(0, length, ids=given),)
        match = Match(group, contig, start, ref, alt, Allele("ok", Variant(contig, start, end, pieces)))
        found.setdefault((contig, start, ref, alt), match)
    return list(found.values())


def read_stretch(genome, stretches, ends, draw, length):
    """Draw a place; return contig, start and the ids there, None for them where they are not all known or no base is
    before them.

    ends  of the stretches, were they one after the other
    """
    at = draw.randrange(ends[-1])
    i = bisect.bisect_right(ends, at)
    contig, _, end = stretches[i]
    place = end - (ends[i] - at)
    if place + length > end or place == 0:
        return contig, place, None
    ids = genome.ids(contig, place, place + length)
    return contig, place, None if (ids == N).any() else ids
