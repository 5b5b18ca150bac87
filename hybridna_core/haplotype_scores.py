"""Joint scores of haplotypes: records wait until the clusters that they belong to are closed, and leave in order.

records with their Scores -> genotypes -> Tracks -> closed clusters -> joint score of each distinct one
-> FORMAT values HAP and EPI -> the same records

The definition is that of docs/scoring.md; what is read is laid out by data.haplotypes.compare_jointly.
"""

import collections
import heapq
import math
from typing import NamedTuple

from hybridna_core.data.genotypes import PHASES, SampleColumns, place_alleles, read_call
from hybridna_core.data.haplotypes import VARIANTS_LIMIT, Member, Track, combine, compare_jointly, trim
from hybridna_core.data.inputs import warn
from hybridna_core.data.variants import SCORED
from hybridna_core.data.vcf import reach
from hybridna_core.errors import DataError, GuardError, UsageError
from hybridna_core.memory import spell_bytes
from hybridna_core.score_fields import HAPLOTYPE_FIELDS, Order, spell_number
from hybridna_core.scoring import Plan

# Of records that wait for their clusters.
HELD_LIMIT = 2**30  # bytes


class JointScore(NamedTuple):
    """What a cluster on one haplotype ends with; numbers are None where there is no score.

    llr     log P(haplotype) - log P(reference), nats
    excess  that minus the sum of the variants' own, nats
    """

    status: str
    llr: float | None = None
    excess: float | None = None


class Held:
    """A record that waits. waiting: members whose outcome is open; values: sample -> haplotype -> JointScore"""

    def __init__(self, record, alleles, scores, columns):
        self.record, self.alleles, self.scores, self.columns = record, alleles, scores, columns
        self.waiting, self.values, self.trimmed = 0, {}, {}
        self.size, self.reach = sum(map(len, record.columns)), reach(record)


def score_jointly(scorer, variants, room):
    """Return the JointScore of several variants of one haplotype, in order and without overlap.

    room  bases that the model reads at once
    """
    window, horizon, stride = scorer.plan
    status, readings = compare_jointly(variants, scorer.genome, window, horizon, stride, room)
    if status != "ok":
        return JointScore(status)
    contig, joint, excess = variants[0].contig, [], []
    for reading in readings:
        plan = Plan(reading.window, reading.horizon, stride)
        together, *alone = (scorer.compare(contig, comparison, plan) for comparison in reading.comparisons)
        joint.append(together)
        excess.append(math.fsum([together, *(-value for value in alone)]))
    llr, excess = (math.fsum(values) / len(values) for values in (joint, excess))
    if not (math.isfinite(llr) and math.isfinite(excess)):
        where = f"{contig}:{variants[0].start + 1}"
        raise GuardError("the model gives no finite number", where=where, hint="hybridna models check FOLDER")
    return JointScore("ok", llr, excess)


def check_samples(header, path):
    """Raise DataError for a file without samples."""
    if not sample_names(header):
        hint = "haplotypes are read from GT of phased samples; leave out --haplotypes"
        raise DataError("the file has no samples", where=path, hint=hint)


def check_rule(haplotypes, phase, kind, check_ref):
    """Raise UsageError for an unknown rule, and for options that do not go with haplotypes. kind: of the output"""
    if not haplotypes:
        if phase != "r":
            raise UsageError("means nothing without --haplotypes", where="--phase")
        return
    if phase not in PHASES:
        known = ", ".join(f"{letter} ({what})" for letter, what in PHASES.items())
        raise UsageError(f"is {phase!r}", where="--phase", hint=f"one of {known}")
    if kind in "tp":
        raise UsageError("a table has no samples", where="--haplotypes", hint="write VCF or BCF (-O z)")
    if check_ref == "s":
        what = "haplotypes are compared with the genome, which --check-ref s turns around"
        raise UsageError(what, where="--haplotypes", hint="bcftools norm --check-ref s first")


def sample_names(header):
    return header.lines[-1].split("\t")[9:]


class HaplotypeScorer:
    """Adds joint scores to records that come sorted by contig and position; keeps count of clusters and calls.

    header  of the input
    phase   letter of PHASES
    room    bases that the model reads at once
    prefix  of the fields' names
    path    of the input, for messages

    clusters  status -> clusters, one for each haplotype of a sample
    distinct  of them scored by reading: equal ones of several samples and lone variants are not read again
    calls     unphased, missing, bad -> genotypes
    """

    def __init__(self, header, phase, room, prefix, path):
        self.phase, self.room, self.path = phase, room, path
        self.rule = f"phase {phase}, clusters of up to {VARIANTS_LIMIT} variants"
        self.keys = [(prefix + name).encode() for name in HAPLOTYPE_FIELDS]
        self.names = sample_names(header)
        self.order = Order(path, "bcftools sort first", "--haplotypes")
        self.clusters, self.calls, self.distinct = collections.Counter(), collections.Counter(), 0
        self.queue, self.size, self.contig = collections.deque(), 0, None
        # (sample, haplotype) -> Track; and (position from which nothing joins it, sample, haplotype), a heap.
        self.tracks, self.ends = {}, []
        self.has_genotypes = False

    def records(self, scored, scorer):
        """Yield (record, alleles, scores) again, in order, with the values in the sample columns.

        Raises DataError for records out of order, and for unphased calls where the rule refuses them.
        """
        self.scorer, any_record = scorer, False
        for record, alleles, scores in scored:
            any_record = True
            if record.pos is not None:
                self.order.check(record.contig, record.pos, record.number)
            if record.contig != self.contig:
                self._close(math.inf)
                self.contig = record.contig
            elif record.pos is not None:
                self._close(record.pos - 1)
            columns = SampleColumns(record.columns[8]) if len(record.columns) > 8 else None
            held = Held(record, alleles, scores, columns)
            self.queue.append(held)
            self.size += held.size
            if columns is not None:
                self._place(held)
            yield from self._release()
            if self.size > HELD_LIMIT:
                what = f"records whose haplotypes are not complete take more than {spell_bytes(HELD_LIMIT)}"
                hint = "a smaller --horizon makes smaller clusters"
                raise DataError(what, where=f"{self.path}:{record.number}", hint=hint)
        self._close(math.inf)
        yield from self._release()
        if any_record and not self.has_genotypes:
            warn("no-genotypes", f"{self.path}: no record has genotypes (GT), so there are no haplotypes")

    # From genotypes to tracks

    def _place(self, held):
        genotypes = held.columns.values(b"GT")
        self.has_genotypes |= bool(genotypes)
        # Thousands of samples have few different genotypes.
        placed = {}
        for text, count in collections.Counter(genotypes).items():
            placed[text] = alleles, _ = self._read(held, text, count)
            if alleles is None:
                self._refuse(held, genotypes.index(text), text)
        sets = None
        for sample, text in enumerate(genotypes):
            alleles, has_phase = placed[text]
            if not alleles:
                continue
            if has_phase and sets is None:
                sets = held.columns.values(b"PS") or [b"."] * len(genotypes)
            for haplotype, allele in enumerate(alleles):
                if allele:
                    phase_set = sets[sample] if has_phase else None
                    self._add(held, sample, haplotype, allele - 1, phase_set, len(alleles))

    def _read(self, held, text, count):
        """Count a genotype; return its allele on each haplotype and whether PS matters.

        Alleles are empty where there is nothing to add, None where the rule refuses the call or has it skipped.
        """
        call = read_call(text)
        if call is None or max((a for a in call.alleles if a), default=0) > len(held.record.alts):
            self.calls["bad"] += count
            return (), False
        if None in call.alleles:
            self.calls["missing"] += count
        if call.alt is None:
            return (), False
        if call.is_heterozygous and not call.is_phased:
            self.calls["unphased"] += count
        has_phase = call.is_heterozygous and call.is_phased and self.phase not in "am"
        return place_alleles(call, self.phase), has_phase

    def _refuse(self, held, sample, text):
        """Raise DataError for an unphased call unless such are skipped."""
        if self.phase != "r":
            return
        record = held.record
        name = self.names[sample] if sample < len(self.names) else f"number {sample + 1}"
        what = f"sample {name} is heterozygous and not phased ({text.decode()})"
        hint = "--phase s skips such calls, --phase a takes them as they stand"
        raise DataError(what, where=f"{self.path}:{record.number}: {record.contig}:{record.pos}", hint=hint)

    def _add(self, held, sample, haplotype, index, phase_set, ploidy):
        status = held.alleles[index].status
        if status == "no_change":
            return
        key = sample, haplotype
        owner = held, sample, haplotype, index
        track = self.tracks.get(key)
        if status in ("bad_pos", "unknown_contig"):
            self.clusters["unknown_allele"] += 1
            held.values.setdefault(sample, [None] * ploidy)
            return
        start, end = held.reach
        member = Member(start, end, owner, None, None, phase_set, ploidy)
        if status == "spanning":
            # A deletion that is there already says all.
            is_covered = track is not None and track.covers(start)
            member = member._replace(end=start, reason=None if is_covered else "unknown_allele")
        elif status not in SCORED:
            member = member._replace(reason="unknown_allele")
        else:
            if index not in held.trimmed:
                held.trimmed[index] = trim(held.alleles[index].variant, self.scorer.genome)
            variant = held.trimmed[index]
            member = member._replace(start=variant.start, end=variant.end, variant=variant)
        if track is None:
            track = self.tracks[key] = Track(self.scorer.plan.horizon, self.room)
        held.waiting += 1
        self._settle(track.add(member), None)
        heapq.heappush(self.ends, (track.end + track.reach, *key))

    # From tracks to values

    def _close(self, position):
        """Close the tracks that nothing can join any more which begins at a position or after it."""
        known = {}
        while self.ends and self.ends[0][0] <= position:
            key = heapq.heappop(self.ends)[1:]
            track = self.tracks.get(key)
            if track is None or track.end + track.reach > position:
                continue
            del self.tracks[key]
            for cluster in track.clusters():
                score = self._score(cluster, known)
                self.clusters[score.status] += 1
                self._settle([member for member in cluster if member.owner is not None], score)

    def _score(self, cluster, known):
        """Return the JointScore of a cluster. known: those of the same moment, by their alleles"""
        variants, reason = combine(cluster, self.scorer.plan.horizon)
        if reason is not None:
            return JointScore(reason)
        # Where one variant stands alone, the joint score is its own.
        if len(variants) == 1:
            held, _, _, index = next(member.owner for member in cluster if member.variant is not None)
            score = held.scores[index]
            return JointScore("ok", score.llr, 0.0) if score.llr is not None else JointScore(score.status)
        key = tuple((id(member.owner[0]), member.owner[3]) for member in cluster)
        if key not in known:
            self.distinct += 1
            known[key] = score_jointly(self.scorer, variants, self.room)
        return known[key]

    def _settle(self, members, score):
        for member in members:
            held, sample, haplotype, _ = member.owner
            held.waiting -= 1
            held.values.setdefault(sample, [None] * member.ploidy)[haplotype] = score

    def _release(self):
        """Yield the records at the front of the queue that wait for nothing."""
        while self.queue and self.queue[0].waiting == 0:
            held = self.queue.popleft()
            self.size -= held.size
            record = held.record
            values = {sample: spell(scores) for sample, scores in held.values.items()}
            values = {sample: texts for sample, texts in values.items() if texts is not None}
            if values:
                text = held.columns.extended(self.keys, values)
                record = record._replace(columns=[*record.columns[:8], text])
            yield record, held.alleles, held.scores

    def to_dict(self):
        """Counts for the summary."""
        found = {"clusters": self.clusters.total(), "clusters_read": self.distinct}
        found |= {f"clusters_{status}": count for status, count in self.clusters.most_common()}
        return found | {f"calls_{kind}": count for kind, count in sorted(self.calls.items())}


def spell(scores):
    """Spell the values of a sample's haplotypes, HAP and EPI; None when there is none at all."""
    if not any(score is not None and score.llr is not None for score in scores):
        return None
    pairs = [(None, None) if score is None else (score.llr, score.excess) for score in scores]
    return [",".join(map(spell_number, values)).encode() for values in zip(*pairs, strict=True)]
