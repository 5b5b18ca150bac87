"""Haplotypes: which variants stand together on one, and what has to be read to score them jointly.

alleles of one haplotype of one sample -> Track -> clusters, each closed as soon as nothing can join it
cluster -> variants in order, or why they cannot be put in together -> per direction: JointReading
"""

import itertools
from typing import NamedTuple

import numpy as np

from hybridna_core.data.variants import Piece, first_difference, lay_out_direction, put_in
from hybridna_core.tokenizer import N

# Variants of one cluster; each costs a reading of the whole stretch.
VARIANTS_LIMIT = 32
REASONS = (
    "overlap", "no_change", "too_many_variants", "too_wide", "too_long", "too_many_n", "unknown_allele",
    "phase_sets", "ploidy",
)  # fmt: skip


class Member(NamedTuple):
    """An alternative allele on a haplotype.

    start, end  bases that change, 0-based half-open; equal for an insertion
    owner       who is told of the outcome
    variant     as `trim` leaves it, None where the allele changes nothing more (`*` under a deletion)
    reason      why its haplotype cannot be built, else None
    phase_set   PS of a phased heterozygous call, None where phasing is no question
    ploidy      haplotypes of the call
    """

    start: int
    end: int
    owner: object = None
    variant: object = None
    reason: str | None = None
    phase_set: bytes | None = None
    ploidy: int = 2


def trim(variant, genome):
    """Take off the bases that the allele of a variant has in common with the reference, as records are normalised.

    The last ones go first, but for a base before an indel, which thus does not overlap what changes that base.
    """
    if len(variant.pieces) != 1 or variant.pieces[0].ids is None:
        return variant
    ids, reference = variant.pieces[0].ids, genome.ids(variant.contig, variant.start, variant.end)
    behind = count_equal(ids[:0:-1], reference[:0:-1])
    ids, reference = ids[: len(ids) - behind], reference[: len(reference) - behind]
    before = count_equal(ids, reference)
    ids, reference = ids[before:], reference[before:]
    last = count_equal(ids[::-1], reference[::-1])
    ids = ids[: len(ids) - last]
    pieces = (Piece(0, len(ids), ids=ids),) if len(ids) else ()
    return variant._replace(start=variant.start + before, end=variant.end - behind - last, pieces=pieces)


def count_equal(a, b):
    """Return how many ids at the start of two arrays agree."""
    length = min(len(a), len(b))
    unequal = np.flatnonzero(a[:length] != b[:length])
    return int(unequal[0]) if len(unequal) else length


class Track:
    """The alleles of one haplotype of one sample that still may get neighbours.

    reach  variants closer than so many bases form a cluster
    room   bases from a cluster's first change to the end of its reading at most
    """

    def __init__(self, reach, room):
        self.reach, self.room, self.members = reach, room, []

    @property
    def end(self):
        """Where the last change ends; what begins `reach` bases further on joins nothing here."""
        return max(member.end for member in self.members)

    def covers(self, position):
        """Tell whether a variant here takes away or replaces a base of the contig, 0-based."""
        return any(m.start <= position < m.end and (m.variant or m.reason) for m in self.members)

    def add(self, member):
        """Add a member; return the members of clusters that have just become too large to be scored.

        Such a cluster shrinks to one member with the reason, so that a track stays small.
        """
        self.members.append(member)
        start = min(m.start for m in self.members)
        if len(self.members) <= VARIANTS_LIMIT and self.end - start + self.reach <= self.room:
            return []
        kept, released = [], []
        for cluster in self.clusters():
            reason = self._find_excess(cluster)
            if reason is None:
                kept += cluster
            else:
                first = next((m.reason for m in cluster if m.reason), reason)
                kept.append(Member(cluster[0].start, max(m.end for m in cluster), reason=first))
                released += [m for m in cluster if m.owner is not None]
        self.members = kept
        return released

    def _find_excess(self, cluster):
        # A star under a deletion changes nothing more.
        count = sum(m.variant is not None or m.reason is not None for m in cluster)
        if count > VARIANTS_LIMIT:
            return "too_many_variants"
        span = max(m.end for m in cluster) - cluster[0].start
        return "too_wide" if count > 1 and span + self.reach > self.room else None

    def clusters(self):
        """Return the members in lists of those that stand together, in order."""
        found, end = [], None
        for member in sorted(self.members, key=lambda m: (m.start, m.end)):
            if end is None or member.start - end >= self.reach:
                found.append([])
                end = member.end
            found[-1].append(member)
            end = max(end, member.end)
        return found


def combine(cluster, horizon):
    """Return the variants of a cluster in order, and why they cannot be put in together, or None."""
    variants = sorted((m.variant for m in cluster if m.variant is not None), key=lambda v: (v.start, v.end))
    reasons = [m.reason for m in cluster if m.reason is not None]
    if reasons:
        return variants, reasons[0]
    if len({m.ploidy for m in cluster}) > 1:
        return variants, "ploidy"
    if len({m.phase_set for m in cluster if m.phase_set is not None}) > 1:
        return variants, "phase_sets"
    for one, other in itertools.pairwise(variants):
        # Two insertions at one place have no order.
        if other.start < one.end or one.start == other.start == other.end:
            return variants, "overlap"
    inserted = sum(max(sum(p.length for p in v.pieces) - (v.end - v.start), 0) for v in variants)
    return variants, "too_long" if len(variants) > 1 and inserted >= horizon else None


class JointReading(NamedTuple):
    """What one direction reads of a cluster.

    window, horizon  bases of prefix and stretch together, known bases of the stretch
    comparisons      Comparison of all variants together, then of each alone
    """

    window: int
    horizon: int
    comparisons: list


def compare_jointly(variants, genome, window, horizon, stride, room):
    """Lay out what has to be read to score variants of one haplotype together and each alone over the same stretch.

    variants  in order, without overlap
    room      bases that the model reads at once
    returns   status (ok, no_change, too_wide, too_many_n, out_of_range) and the JointReading of each direction that
              counts a base

    The stretch begins at the first base that any of them changes, alone or with the others, and ends `horizon` known
    bases after the last such begin, both counted on the reference in reading direction.
    """
    contig = variants[0].contig
    length = genome.contigs[contig]
    readings, unknown = [], False
    for strand in "+-":
        reference = put_in((), genome, contig, strand)
        sets = [variants, *((variant,) for variant in variants)]
        alternatives = [put_in(some, genome, contig, strand) for some in sets]
        changes = []
        for some, alternative in zip(sets, alternatives, strict=True):
            nearest = length - some[-1].end if strand == "-" else some[0].start
            change = first_difference(reference, alternative, nearest)
            changes.append(None if change == reference.length == alternative.length else change)
        if changes[0] is None:
            return "no_change", []
        # A variant that alone changes nothing has a score of 0.
        alternatives = [a for a, change in zip(alternatives, changes, strict=True) if change is not None]
        first, last = (pick(c for c in changes if c is not None) for pick in (min, max))
        # Indels in a repeat differ far from where they are written.
        if horizon + last - first > room:
            return "too_wide", []
        before = min(window - horizon, room - horizon - (last - first))
        counted = horizon + int(np.count_nonzero(reference.ids(first, last) != N))
        found = lay_out_direction(strand, reference, alternatives, first, before + counted, counted, stride)
        unknown |= found is None
        readings += [JointReading(before + counted, counted, found)] if found else []
    if unknown:
        return "too_many_n", []
    return ("ok", readings) if readings else ("out_of_range", [])
