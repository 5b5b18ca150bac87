"""Which intervals or sequences of an evaluation were read in a training run.

run folder -> windows of the steps done, drawn again -> compared with VCF, BED or FASTA -> TSV
"""

import itertools
import os
import time
from array import array
from collections import Counter
from typing import NamedTuple

import numpy as np

from hybridna_core.data.inputs import check_input, looks_like, read_chunks, warn
from hybridna_core.data.writers import check_output, open_output
from hybridna_core.errors import DataError, ModelError, UsageError

INTERVAL_COLUMNS = ("contig", "start", "end", "name", "species", "status", "windows", "bases_read", "share")
SEQUENCE_COLUMNS = ("name", "length", "status", "kmers", "kmers_seen", "share")
# As in scoring: so many reference alleles that differ mean that this is another assembly.
JUDGED, WRONG_SHARE, WRONG_LEAST = 1000, 0.05, 20
ROWS_AT_ONCE = 100_000


class LeakageSummary(NamedTuple):
    """What was compared: rows by status, and steps and windows of the training that were looked at."""

    kind: str
    steps: int
    windows: int
    rows: dict
    seconds: float

    def to_dict(self):
        return self._asdict()


def leakage(run, evaluation, output="-", *, steps=None, species=None, kmer=32, min_share=0.0, run_file=None,
            rename_chrs=None, strict=False, force=False, allow_missing_eof=False, progress=None):  # fmt: skip
    """Say which records of a VCF, BED or FASTA file were read in a training run; write a TSV of one row per record.

    run        folder that `pretrain` wrote to
    steps      look at the first so many steps; all that its newest snapshot has done when None
    species    name of the only species to look at; None: all whose contigs the records name
    kmer       bases of the words that FASTA records are compared by, 8 to 32; both strands count
    min_share  a record counts as seen when more than this share of its bases (of its k-mers) was read
    run_file   the run file, where it no longer lies where the run was begun
    strict     raise DataError at the end if anything was seen, or could not be compared

    Windows are drawn again and counted against the ledger of the snapshot, so that another run file or changed
    genomes are noticed. Memory: about 40 bytes a window; FASTA records a few at a time. Raises HybriDNAError kinds.
    """
    from hybridna_core.data.genome import read_renames
    from hybridna_core.run_config import read_run
    from hybridna_core.train.corpora import make_corpora, open_species, read_record
    from hybridna_core.train.fingerprint import take_fingerprint
    from hybridna_core.train.snapshots import find_snapshot

    started = time.monotonic()
    if not 8 <= kmer <= 32:
        raise UsageError(f"is {kmer}, must be 8 to 32", where="--kmer")
    if not 0 <= min_share < 1:
        raise UsageError(f"is {min_share}, must be 0 or more and below 1", where="--min-share")
    check_output(output, inputs=(evaluation, rename_chrs), force=force)
    evaluation = check_input(evaluation, random_access=True)
    kind = _recognise(evaluation, allow_missing_eof)
    renames = read_renames(rename_chrs) if rename_chrs else None
    record = read_record(run)
    _, position = find_snapshot(os.path.join(run, "snapshots"))
    if position is None:
        raise ModelError("no snapshot, so nothing is known to have been trained on", where=run)
    if steps is None:
        steps = position["step"]
    elif not 0 <= steps <= position["step"]:
        raise UsageError(f"is {steps:,}, but {position['step']:,} steps were done", where="--steps")
    config = read_run(check_input(run_file or record["run"], random_access=True), record["set"])
    genomes = open_species(config, exclude_bed=record["exclude_bed"], **record["reading"])
    names = [one.name for one in genomes]
    if species is not None and species not in names:
        raise UsageError(f"no species {species!r} in this run", where="--species", hint=f"there are {', '.join(names)}")
    known = position["run"].get("genomes")
    if known is not None and known != take_fingerprint(config, genomes)["genomes"]:
        what = "the genomes, or what is held out of them, are not those that were trained on"
        raise DataError(what, where=run, hint="put the old files back")
    reads, windows = draw_again(config, genomes, make_corpora(config, genomes), steps, progress)
    if steps == position["step"]:
        _check_ledger(reads, position, run)
    reads = {name: read for name, read in reads.items() if species in (None, name)}
    if kind == "FASTA":
        rows = _judge_sequences(evaluation, list(reads.values()), kmer, min_share, allow_missing_eof)
        columns = SEQUENCE_COLUMNS
    else:
        source = _variants if kind in ("VCF", "BCF") else _regions
        rows = _judge_intervals(source(evaluation, allow_missing_eof), reads, evaluation, renames, min_share)
        columns = INTERVAL_COLUMNS
    # A file that is broken from its first line on leaves nothing, not even a header.
    first = list(itertools.islice(rows, 1))
    statuses = Counter()
    with open_output(output, force=force) as handle:
        handle.write(("\t".join(columns) + "\n").encode())
        for row in itertools.chain(first, rows):
            statuses[row[columns.index("status")]] += 1
            handle.write(("\t".join(map(_spell, row)) + "\n").encode())
    summary = LeakageSummary(kind, steps, windows, dict(statuses), time.monotonic() - started)
    found = sum(count for status, count in statuses.items() if status != "unseen")
    if strict and found:
        counts = ", ".join(f"{status} {count:,}" for status, count in statuses.items() if status != "unseen")
        what = f"{found:,} of {sum(statuses.values()):,} rows were seen in training or not compared ({counts})"
        raise DataError(what, where=evaluation, hint="the output is complete; leave out --strict to accept it")
    return summary


def draw_again(config, genomes, corpora, steps, progress=None):
    """Draw the windows of the first steps of a run again; return {species: Read}, and how many windows there are."""
    from hybridna_core.data.overlap import Read

    sets, done = [[] for _ in genomes], 0
    begins = np.cumsum([0, *(stage.steps for stage in config.stage)]).tolist()
    counts = [
        max(0, min(steps - begin, stage.steps)) * (stage.batch_tokens // stage.context_length)
        for begin, stage in zip(begins, config.stage, strict=False)
    ]
    for corpus, count in zip(corpora, counts, strict=True):
        starts = [array("q") for _ in genomes]
        for i in range(count):
            kind, start, _ = corpus.draw(i)
            starts[kind].append(start)
            done += 1
            if progress and done % 10_000 == 0:
                progress(done, sum(counts))
        for kind, found in enumerate(starts):
            sets[kind].append((np.array(found, dtype=np.int64), corpus.bases))
    return {one.name: Read(one.train.store, part) for one, part in zip(genomes, sets, strict=True)}, sum(counts)


def _check_ledger(reads, position, run):
    """Raise DataError unless the windows drawn again are those that the run counted."""
    for name, read in reads.items():
        counted = position["ledger"].get(name, {}) if "ledger" in position else None
        found = {}
        for starts, bases in read.sets:
            contigs, numbers = np.unique(read.store.contig_at(starts), return_counts=True)
            for contig, number in zip(contigs.tolist(), numbers.tolist(), strict=True):
                entry = found.setdefault(read.store.name(contig), [0, 0])
                entry[0] += number
                entry[1] += number * bases
        if counted is not None and found != counted:
            what = f"the windows of {name} are not those that were trained on: run file or genomes changed"
            raise DataError(what, where=run, hint="put the old ones back; a run gone on with --new-data cannot be told")


def _recognise(path, allow_missing_eof):
    """Return VCF, BCF, FASTA or BED; raise DataError for another format."""
    chunks = read_chunks(path, allow_missing_eof=allow_missing_eof)
    head = next(chunks, b"")
    chunks.close()
    found = looks_like(head)
    if found is None:
        return "BED"
    if found not in ("VCF", "BCF", "FASTA"):
        raise DataError(f"looks like {found}, not VCF, BED or FASTA", where=path)
    return found


class _Interval(NamedTuple):
    """One record to be asked about; status is ok or why it cannot be; ref the reference allele of a VCF or None."""

    contig: str
    start: int
    end: int
    name: str
    status: str
    line: int
    ref: str | None = None


def _regions(path, allow_missing_eof):
    from hybridna_core.data.regions import read_bed

    for region in read_bed(path, use_strand=False, allow_missing_eof=allow_missing_eof):
        yield _Interval(region.contig, region.start, region.end, region.name, region.status, region.line)


def _variants(path, allow_missing_eof):
    from hybridna_core.data.vcf import VcfReader, to_text

    with VcfReader(path, allow_missing_eof=allow_missing_eof) as reader:
        for record in reader.records():
            name = to_text(record.columns[2])
            status = "bad_pos" if record.pos is None else "ok"
            # POS 0 is a telomere: one base before the contig.
            start = (record.pos or 0) - 1
            yield _Interval(record.contig, start, start + len(record.ref), name, status, record.number, record.ref)


def _judge_intervals(intervals, reads, path, renames, min_share):
    """Yield a row per interval and species that has its contig; raise DataError if none has any of them."""
    total = unknown = judged = wrong = 0
    example, told = None, set()
    for one in intervals:
        total += 1
        homes = [(name, read, read.store.resolve(one.contig, renames)) for name, read in reads.items()]
        homes = [home for home in homes if home[2] is not None]
        if not homes:
            unknown, example = unknown + 1, example or one
            yield (*one[:4], ".", "unknown_contig" if one.status == "ok" else one.status, None, None, None)
        if len(homes) > 1 and one.contig not in told:
            told.add(one.contig)
            what = f"{path}: {len(homes)} species have a contig {one.contig}: a row for each; --species names one"
            warn("several-species", what)
        for name, read, contig in homes:
            status, store = one.status, read.store
            if status == "ok" and not 0 <= one.start <= one.end <= store.contigs[contig]:
                status = "out_of_range"
            if status != "ok":
                yield (*one[:4], name, status, None, None, None)
                continue
            start = int(store.offsets[store.numbers[contig]]) + one.start
            end = start + one.end - one.start
            if one.ref is not None and len(homes) == 1 and judged < JUDGED:
                judged += 1
                wrong += _differs(store, start, one.ref)
                if judged == JUDGED:
                    _check_assembly(path, wrong, judged)
            windows, bases = read.windows(start, end)
            share = read.covered(start, end) / (end - start)
            yield (*one[:4], name, "seen" if share > min_share else "unseen", windows, bases, share)
    _check_assembly(path, wrong, judged)
    if total and unknown == total:
        stores = [read.store for read in reads.values()]
        close = next((name for store in stores if (name := store.suggest(example.contig))), None)
        hint = f"did you mean {close}? give --rename-chrs FILE" if close else "is it another genome?"
        what = f"no species has any of its contigs (the first: {example.contig})"
        raise DataError(what, where=f"{path}:{example.line}", hint=hint)


def _differs(store, start, ref):
    """Tell whether a reference allele of plain bases differs from the genome."""
    from hybridna_core.tokenizer import decode

    there = decode(store.ids(start, start + len(ref)))
    return any(a != b for a, b in zip(ref.upper(), there, strict=True) if a in "ACGT" and b != "N")


def _check_assembly(path, wrong, judged):
    """Raise DataError when so many reference alleles differ that the genome is another one."""
    if wrong >= WRONG_LEAST and wrong > WRONG_SHARE * judged:
        what = f"{wrong:,} of {judged:,} reference alleles differ from the genomes of the run"
        raise DataError(what, where=path, hint="is it another assembly?")


def _judge_sequences(path, reads, k, min_share, allow_missing_eof):
    """Yield a row per FASTA record, in order; as many wait in memory as hold KMERS_AT_ONCE k-mers."""
    from hybridna_core.data.overlap import KMERS_AT_ONCE, kmers, read_sequences

    rows, parts, held = [], [], 0
    for name, ids in read_sequences(path, allow_missing_eof=allow_missing_eof):
        rows.append([name, len(ids), 0, 0])
        for at in range(0, len(ids), KMERS_AT_ONCE):
            found, _ = kmers(ids[at : at + KMERS_AT_ONCE + k - 1], k)
            parts.append((rows[-1], found))
            held += len(found)
            if held >= KMERS_AT_ONCE:
                _count_seen(parts, reads, k)
                parts, held = [], 0
        if not parts or len(rows) >= ROWS_AT_ONCE:
            _count_seen(parts, reads, k)
            yield from (_sequence_row(row, k, min_share) for row in rows)
            rows, parts, held = [], [], 0
    _count_seen(parts, reads, k)
    yield from (_sequence_row(row, k, min_share) for row in rows)


def _count_seen(parts, reads, k):
    """Add to rows of (name, length, k-mers, seen) how many of their next k-mers there are and were read."""
    from hybridna_core.data.overlap import find_kmers

    if not parts:
        return
    wanted, places = np.unique(np.concatenate([found for _, found in parts]), return_inverse=True)
    seen = find_kmers(wanted, reads, k)[places] if len(wanted) else np.zeros(0, dtype=bool)
    at = 0
    for row, found in parts:
        row[2] += len(found)
        row[3] += int(np.count_nonzero(seen[at : at + len(found)]))
        at += len(found)


def _sequence_row(row, k, min_share):
    name, length, count, seen = row
    if not count:
        return name, length, "too_short" if length < k else "too_many_n", 0, None, None
    return name, length, "seen" if seen / count > min_share else "unseen", count, seen, seen / count


def _spell(value):
    """Spell a cell: `.` for what is not known, four decimals of a share."""
    if value is None:
        return "."
    return f"{value:.4f}" if isinstance(value, float) else str(value)
