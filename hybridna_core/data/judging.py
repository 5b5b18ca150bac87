"""Whether a VCF and a genome belong together: records judged as they come, and stops where nearly all do not fit.

records -> alleles -> the first thousand guarded before the model loads -> at the end, whether any contig was known
"""

import itertools

from hybridna_core.data.inputs import warn
from hybridna_core.data.variants import read_alleles
from hybridna_core.errors import DataError, nearest

GUARD_RECORDS, GUARD_SHARE, GUARD_LEAST = 1000, 0.05, 20


def check_contigs(header, genome, renames, regions, strict, path):
    """Compare declared lengths and asked-for regions with the genome."""
    declared = header.contigs
    for name, length in declared.items():
        there = genome.contigs.get(genome.resolve(name, renames))
        if None not in (length, there) and length != there:
            what = f"contig {name} has {length:,} bp in the header and {there:,} in {genome.path}"
            if strict:
                raise DataError(what, where=path, hint="another genome build?")
            warn("contig-length", f"{path}: {what}; another genome build?")
    for name in dict.fromkeys(contig for contig, _, _ in regions or ()):
        if name not in declared and genome.resolve(name, renames) is None:
            close = nearest(name, [*declared, *genome.contigs][:2000])
            hint = f"did you mean {close}?" if close else None
            raise DataError(f"no contig {name!r} in the header or the genome", where="--regions", hint=hint)


def judge(records, genome, path, renames, check_ref, horizon):
    """Yield (record, its alleles) for every record."""
    told = set()
    for record in records:
        alleles = read_alleles(record, genome, path=path, renames=renames, check_ref=check_ref, horizon=horizon)
        if alleles[0].status == "unknown_contig" and record.contig not in told and len(told) < 1000:
            told.add(record.contig)
            close = genome.suggest(record.contig)
            hint = f"; did you mean {close}? give --rename-chrs FILE" if close else ""
            where = f"{path}:{record.number}"
            warn("unknown_contig", f"{where}: contig {record.contig} is not in {genome.path}{hint}")
        yield record, alleles


def guard(ahead, is_whole, header, genome, renames, path):
    """Raise DataError when the first records show that VCF and genome do not belong together."""
    unknown = [record for record, alleles in ahead if alleles[0].status == "unknown_contig"]
    # Sorted files may begin with contigs that the genome lacks, and go on with others.
    is_final = is_whole or not any(genome.resolve(name, renames) for name in header.contigs)
    if ahead and len(unknown) == len(ahead) and is_final:
        raise no_contig_known(unknown[0].contig, genome, path)
    mismatched = [r for r, alleles in ahead if any(a.status in ("ref_mismatch", "excluded") for a in alleles)]
    if len(mismatched) >= GUARD_LEAST and len(mismatched) > GUARD_SHARE * len(ahead):
        first = mismatched[0]
        what = f"{len(mismatched):,} of the first {len(ahead):,} records ({len(mismatched) / len(ahead):.0%})"
        what = f"{what} have another REF than {genome.path}, the first at {first.contig}:{first.pos}"
        hint = "the wrong genome build, or contig names that mean other sequences?"
        raise DataError(what, where=path, hint=hint)


def check_any_known(tally, genome, path):
    """Raise DataError when no record at all has a contig of the genome."""
    if tally.records and tally.statuses["unknown_contig"] == tally.alleles:
        raise no_contig_known(None, genome, path)


def no_contig_known(example, genome, path):
    close = genome.suggest(example) if example is not None else None
    what = f"no record has a contig of {genome.path}"
    if example is not None:
        what += f" (the first has {example}{f', there it is {close}' if close else ''})"
    hint = "give --rename-chrs FILE with lines `old new`" if close else "is it the right genome?"
    return DataError(what, where=path, hint=hint)


def go_on(ahead, arriving, judged, mine=None, done=0, order=None):
    """Return an iterator over the records, each with its alleles, that are left to be scored.

    ahead     those that were judged before
    arriving  Records that are not yet; judged: the same with their alleles
    mine      Cut that they are a part of, or None
    done      how many of them are done
    """
    first = 0 if mine is None else mine.first
    behind = itertools.islice(arriving, max(first + done - len(ahead), 0))
    for number, record in enumerate(itertools.chain((record for record, _ in ahead[: first + done]), behind)):
        if order is not None and number >= first:
            order.check(record.contig, record.pos, record.number)
    records = itertools.chain(ahead[first + done :], judged)
    return records if mine is None else itertools.islice(records, mine.records - done)
