"""Score the variants of a VCF or BCF: log P(alternative) - log P(reference), written into the same records.

records -> alleles judged against the genome (the first thousand before the model loads) -> Scorer -> INFO fields
appended -> VCF, bgzip or BCF; or a table

The definition is that of docs/scoring.md; the engine is scoring.Scorer.
"""

import collections
import contextlib
import functools
import itertools
import os
import shlex
import time
from typing import NamedTuple

from hybridna_core.calibration import Calibration
from hybridna_core.checkpoint import load_model
from hybridna_core.data.genome import open_genome, read_renames
from hybridna_core.data.inputs import check_input, warn
from hybridna_core.data.judging import (
    GUARD_RECORDS,
    check_any_known,
    check_contigs,
    go_on,
    guard,
    judge,
    no_contig_known,
)
from hybridna_core.data.partial import finish_renaming, hold_outputs
from hybridna_core.data.shards import cut, drop_part, mark_part, parse_shard
from hybridna_core.data.variants import CHECK_REF, SCORED
from hybridna_core.data.vcf import INFO_KEY, Header, VcfReader, read_regions
from hybridna_core.data.vcf_output import choose_output_type
from hybridna_core.data.writers import check_output, is_stdout, load_pyarrow
from hybridna_core.errors import DataError, UsageError
from hybridna_core.haplotype_scores import HaplotypeScorer, check_rule, check_samples
from hybridna_core.memory import spell_bytes
from hybridna_core.score_fields import (
    Order,
    ScoredVcf,
    ScoreTable,
    check_fields,
    check_index,
    check_old_index,
    choose_fields,
    describe,
    index_output,
    is_bgzip_name,
    one_line,
    spell_run,
    strip_header,
    strip_samples,
    take_fingerprint,
)
from hybridna_core.score_parquet import ScoreParquet
from hybridna_core.scoring import Scorer, check_distance, estimate, is_name, make_plan, name_model, read_config
from hybridna_core.skipped import SkippedTable, read_statuses

# Letters of output types that are no VCF.
TABLES = "tp"


class Summary(NamedTuple):
    """What a run did: `alleles` is `scored` plus the reasons among `statuses`.

    records   of the input that were looked at
    alleles   alternative alleles; a record without any counts as one
    scored    alleles with a score
    statuses  status -> alleles
    edge      alleles scored beside a contig end
    unknown   alleles scored though unknown bases were read
    tokens, memory, time  of a dry run: tokens to read, estimates spelt out
    haplotypes  counts of clusters and of genotypes, see haplotype_scores
    """

    records: int
    alleles: int
    scored: int
    statuses: dict
    edge: int
    unknown: int
    window: int
    horizon: int
    model: str
    output: str | None
    seconds: float
    tokens: int | None = None
    memory: str | None = None
    time: str | None = None
    haplotypes: dict | None = None

    def to_dict(self):
        return {name: value for name, value in self._asdict().items() if value is not None}


def score_variants(
    vcf, fasta_ref, output="-", *, model="base", window=None, horizon=None, stride=1, per_strand=False,
    output_type=None, write_index=False, regions=None, regions_file=None, check_ref="w", rename_chrs=None,
    embedding_distance=None, calibration=None, info_prefix="HD_", replace=False, shard=None, skipped=None,
    strict=False, fail_on=None, no_version=False, force=False, device="auto", dtype="float32", dry_run=False,
    rebuild_index=False,
    other_letters=None, rna=False, allow_missing_eof=False, allow_nonfinite=False, haplotypes=False, phase="r",
    progress=None,
):  # fmt: skip
    """Score every alternative allele of a VCF or BCF and write the same records with the scores; return a Summary.

    vcf            VCF, VCF.gz or BCF; `-` for standard input
    fasta_ref      the reference genome, plain or bgzip
    output         `-` for standard output; the suffix sets the type unless `output_type` (v, z, b, u, t, p) does
    model          name, folder, or a loaded model
    window         bases of prefix and horizon together; the smaller of 8,192 and what the model reads when None
    horizon        known bases counted from the first changed base on; half the window when None
    stride         prefixes begin at multiples of it
    per_strand     write HD_FWD and HD_REV, too
    embedding_distance  "cosine" or "l2": write HD_DIST, the distance of the two alleles' embeddings, too
    calibration    file of calibrate, made with the same model, window, horizon, stride and reference: write HD_PCT and
                   HD_PHRED, where the score lies among those of matched alleles, too
    regions        `chr:beg-end`, 1-based inclusive, comma-separated or a list; regions_file: a table or BED of them
    check_ref      where REF is not what the genome has: e stop, w mark, x mark as excluded, s swap where ALT fits
    rename_chrs    table of contig names, old and new, for records named otherwise than the genome
    info_prefix    of the fields' names
    replace        overwrite fields that are there already
    shard          `i/n`: score part i of n of the records alone, i from 1; hybridna merge joins the parts
    skipped        file that takes a line for each allele without a score; bgzip if its name ends in .gz
    strict         raise DataError at the end if any allele has no score, and for contig lengths that differ
    fail_on        raise DataError at the end if any allele has one of these statuses, comma-separated or a list
    haplotypes     score the alternatives of each sample's haplotypes together, too; needs sorted records
    phase          what becomes of genotypes that are not phased: a letter of data.genotypes.PHASES
    dry_run        judge all records, estimate memory and time, load no model and write nothing

    Raises HybriDNAError kinds; on an error nothing is at `output`, but for `strict` and `fail_on`. Unless input or
    output is a stream, what was done by a kill or a fault of the system is kept beside it, and the same call goes on.
    """
    start = time.monotonic()
    shard = parse_shard(shard)
    if shard is not None and (vcf == "-" or (os.path.exists(vcf) and not os.path.isfile(vcf))):
        what = "the parts of an input are found by reading it first, and a stream is gone then"
        raise UsageError(what, where="--shard", hint="write the input to a file")
    if shard is not None and haplotypes:
        what = "parts are cut between any two records, haplotypes reach over several"
        raise UsageError(what, where="--shard", hint="shard by contig, with --regions, and bcftools concat")
    kind = check_options(vcf, fasta_ref, output, output_type, write_index, check_ref, info_prefix, force, dry_run)
    if shard is not None and kind == "p":
        raise UsageError("parts in Parquet cannot be merged", where="--shard", hint="write a table (-O t)")
    check_rule(haplotypes, phase, kind, check_ref)
    failing = read_statuses(fail_on)
    check_distance(embedding_distance)
    if skipped is not None and not dry_run:
        check_skipped(skipped, output, (vcf, fasta_ref, rename_chrs), force)
    config = read_config(model)
    plan = make_plan(config, window, horizon, stride)
    renames = read_renames(rename_chrs) if rename_chrs is not None else {}
    wanted = read_regions(regions, regions_file)
    fields, tally = choose_fields(per_strand, embedding_distance, calibration), Tally()
    facts = {} if embedding_distance is None else {"Distance": embedding_distance}
    matched = None
    if calibration is not None:
        matched = Calibration(calibration, allow_missing_eof)
        matched.check_plan(plan)
        facts |= matched.describe()
    with (
        contextlib.nullcontext() if dry_run else hold_outputs((output, skipped), force) as outputs,
        open_genome(fasta_ref, rebuild_index, other_letters, rna, allow_missing_eof) as genome,
        VcfReader(vcf, regions=wanted, allow_missing_eof=allow_missing_eof) as reader,
    ):
        if matched is not None:
            matched.check_reference(genome)
        if kind not in TABLES:
            check_fields(reader.header, info_prefix, fields, replace, vcf, haplotypes)
        if haplotypes:
            check_samples(reader.header, vcf)
        check_contigs(reader.header, genome, renames, wanted, strict, vcf)
        arriving = reader.records()
        judged = judge(arriving, genome, reader.path, renames, check_ref, plan.horizon)
        if kind not in TABLES:
            judged = ((strip_samples(record, info_prefix, replace, vcf), alleles) for record, alleles in judged)
        ahead = list(itertools.islice(judged, GUARD_RECORDS))
        is_whole = len(ahead) < GUARD_RECORDS
        guard(ahead, is_whole, reader.header, genome, renames, vcf)
        mine = None
        if shard is not None:
            again = functools.partial(read_again, vcf, regions=wanted, allow_missing_eof=allow_missing_eof)
            mine = cut(shard, again, plan)
            if ahead and not any(genome.resolve(record.contig, renames) for record in again()):
                raise no_contig_known(None, genome, vcf)
        joint = None
        if haplotypes:
            joint = HaplotypeScorer(reader.header, phase, config.bases_at_once, info_prefix, vcf)
        if dry_run:
            scorer = Scorer(None, genome, plan, config)
            records = go_on(ahead, arriving, judged, mine)
            score_records(records, scorer, (), tally, joint=joint, progress=progress)
            memory, seconds = estimate(config, plan, scorer.tokens, device, dtype, embedding_distance)
            return summarise(tally, plan, name_model(model), None, start, joint)._replace(
                tokens=scorer.tokens, memory=f"about {spell_bytes(memory)}", time=f"about {seconds:,.0f} s"
            )
        if is_name(model):
            model = load_model(model, device=device, dtype=dtype, allow_nonfinite=allow_nonfinite)
        if matched is not None:
            matched.check_model(model)
        used = contigs_in_use(ahead, is_whole, reader.header, genome, renames)
        asked = {
            "rename_chrs": rename_chrs,
            "embedding_distance": embedding_distance,
            "calibration": calibration,
            "info_prefix": info_prefix,
        }
        options = spell_options(vcf, fasta_ref, model, plan, check_ref, per_strand, joint, asked)
        if joint is not None:
            facts["Haplotypes"] = joint.rule
        scorer = Scorer(model, genome, plan, distance=embedding_distance, calibration=matched)
        run_line = spell_run(genome, model, plan, used, facts)
        if kind in TABLES:
            header = Header([] if no_version else [run_line, f"##hybridna_score_variantsCommand={options}"])
        else:
            header = drop_part(strip_header(reader.header, info_prefix) if replace else reader.header)
            lines = describe(
                header, genome, renames, model, plan, info_prefix, fields, facts, no_version, used, options
            )
            header = header.extended(lines)
        fingerprint = None
        # Neither records that wait for their haplotypes nor a Parquet file that is not whole can be gone on with.
        if joint is None and kind != "p":
            settings = [options, kind, is_bgzip_name(output), wanted, renames, replace]
            fingerprint = take_fingerprint(vcf, header, run_line, settings)
        if shard is not None:
            header, fingerprint = mark_part(header, shard, mine, kind, fingerprint)
        before, held = outputs.begin(fingerprint)
        tally.restore(before)
        with contextlib.ExitStack() as stack:
            handle = outputs.handles[0]
            if kind == "t":
                options = {"fields": fields, "labels": ("id",), "is_bgzf": is_bgzip_name(output), "held": held[0]}
                writers = [stack.enter_context(ScoreTable(handle, header.lines, **options))]
            elif kind == "p":
                meaning = {"horizon": plan.horizon, **facts}
                writers = [stack.enter_context(ScoreParquet(handle, output, header.lines, fields, meaning))]
            else:
                options = {"prefix": info_prefix, "fields": fields, "replace": replace, "path": vcf, "held": held[0]}
                writers = [stack.enter_context(ScoredVcf(handle, kind, header, **options))]
            if skipped is not None:
                options = {"is_bgzf": is_bgzip_name(skipped), "held": held[1]}
                writers.append(stack.enter_context(SkippedTable(outputs.handles[1], genome, renames, **options)))

            def keep():
                if outputs.is_due():
                    genome.check_unchanged()
                    outputs.save([writer.settle() for writer in writers], tally.to_state())

            order = Order(vcf, "bcftools sort first") if write_index else None
            records = go_on(ahead, arriving, judged, mine, tally.records, order)
            score_records(records, scorer, writers, tally, joint, order, progress, keep)
            if mine is None:
                check_any_known(tally, genome, vcf)
            genome.check_unchanged()
        outputs.finish(index_output(outputs, output, kind, genome.contigs.values()) if write_index else ())
        if tally.records == 0 and mine is None:
            asked = regions is not None or regions_file is not None
            warn("empty-input", f"{vcf}: no records{' in the regions asked for' * asked}")
    summary = summarise(tally, plan, model.name, str(output), start, joint)
    check_statuses(tally, strict, failing, vcf)
    return summary


def score_records(records, scorer, writers, tally, joint=None, order=None, progress=None, keep=None):
    """Score records in turn, write each at once, and keep count.

    writers  of VCF or tables; none for a Scorer that only counts
    joint    HaplotypeScorer, which holds records back until their haplotypes are complete
    order    sees to it that they are sorted
    keep     called after each record, to save now and then what was done
    """
    scored = score_alleles(records, scorer, order)
    for record, _, scores in scored if joint is None else joint.records(scored, scorer):
        tally.add(scores)
        for writer in writers:
            writer.write_record(record, scores)
        if keep is not None:
            keep()
        if progress is not None:
            progress(tally.records, None)


def score_alleles(records, scorer, order):
    """Yield (record, its alleles, their Scores). order: sees to it that records are sorted"""
    for record, alleles in records:
        if order is not None:
            order.check(record.contig, record.pos, record.number)
        yield record, alleles, [scorer.score(allele) for allele in alleles]


def read_again(vcf, **options):
    """Yield the records of a file that was opened before, without its warnings."""
    with VcfReader(vcf, warned=True, **options) as reader:
        yield from reader.records()


# Checks before any work


def check_options(vcf, fasta_ref, output, output_type, write_index, check_ref, info_prefix, force, dry_run):
    """Check what can be checked before anything is read; return the output type."""
    if check_ref not in CHECK_REF:
        known = ", ".join(f"{letter} ({what})" for letter, what in CHECK_REF.items())
        raise UsageError(f"is {check_ref!r}", where="--check-ref", hint=f"one of {known}")
    if not INFO_KEY.fullmatch(info_prefix + "LLR"):
        what = f"{info_prefix!r} cannot begin a VCF key"
        raise UsageError(what, where="--info-prefix", hint="letters, digits, _ and ., not a digit first")
    kind = choose_output_type(output, output_type)
    if kind == "p":
        load_pyarrow()
    check_index(output, kind in "zb" or (kind == "t" and is_bgzip_name(output)), write_index)
    for path in (vcf, fasta_ref):
        check_input(path, random_access=path is fasta_ref)
    if not dry_run:
        finish_renaming(output)
        check_output(output, inputs=(vcf, fasta_ref), force=force)
        check_old_index(output, write_index, force)
    return kind


def check_skipped(skipped, output, inputs, force):
    """Raise if the table of alleles without a score cannot be written, or would go where the output goes."""
    check_output(skipped, inputs=inputs, force=force)
    if is_stdout(skipped) and is_stdout(output):
        raise UsageError("would go to standard output, as the scores do", where="--skipped", hint="name a file")
    if not is_stdout(skipped) and not is_stdout(output) and os.path.realpath(skipped) == os.path.realpath(output):
        raise UsageError("is the output itself", where="--skipped", hint="give another name")


def check_statuses(tally, strict, failing, path):
    """Raise DataError when alleles ended as --strict or --fail-on do not allow."""
    option, what, counts = "--strict", "have no score", tally.reasons() if strict else {}
    if not counts:
        option, what = "--fail-on", "ended as --fail-on names"
        counts = {status: tally.statuses[status] for status in failing if tally.statuses[status]}
    if counts:
        reasons = ", ".join(f"{status} {count:,}" for status, count in counts.items())
        what = f"{sum(counts.values()):,} of {tally.alleles:,} alleles {what} ({reasons})"
        raise DataError(what, where=path, hint=f"the output is complete; leave out {option} to accept it")


# Counting


class Tally:
    """Counts what became of the alleles."""

    def __init__(self):
        self.records = self.edge = self.unknown = 0
        self.statuses = collections.Counter()

    def add(self, scores):
        self.records += 1
        self.statuses.update(score.status for score in scores)
        self.edge += sum(score.is_edge is True for score in scores)
        self.unknown += sum(score.has_unknown for score in scores)

    def to_state(self):
        """Return the counts as what JSON can hold."""
        return {**vars(self), "statuses": dict(self.statuses)}

    def restore(self, state):
        """Take over the counts of an earlier run, or of none."""
        if state is not None:
            vars(self).update(state, statuses=collections.Counter(state["statuses"]))

    @property
    def alleles(self):
        return self.statuses.total()

    @property
    def scored(self):
        return sum(self.statuses[status] for status in SCORED)

    def reasons(self):
        """Status -> alleles for those without a score, the most frequent first."""
        return {status: count for status, count in self.statuses.most_common() if status not in SCORED}


def summarise(tally, plan, model, output, start, joint=None):
    scored = {status: tally.statuses[status] for status in SCORED if tally.statuses[status]}
    return Summary(
        tally.records, tally.alleles, tally.scored, {**scored, **tally.reasons()}, tally.edge, tally.unknown,
        plan.window, plan.horizon, model, output, time.monotonic() - start,
        haplotypes=None if joint is None else joint.to_dict(),
    )  # fmt: skip


# The header


def contigs_in_use(ahead, is_whole, header, genome, renames):
    """Contigs of the genome that records may refer to, so far as is known before they are all read."""
    names = [record.contig for record, _ in ahead]
    if not is_whole:
        names += header.contigs or genome.contigs
    found = {genome.resolve(name, renames) for name in dict.fromkeys(names)}
    return [name for name in genome.contigs if name in found]


def spell_options(vcf, fasta_ref, model, plan, check_ref, per_strand, joint, asked):
    """Spell the command line, of what decides the numbers: no threads, no output, no date. asked: other options"""
    words = ["score-variants", "--fasta-ref", fasta_ref, "--model", model.name, "--window", plan.window]
    words += ["--horizon", plan.horizon, "--stride", plan.stride, "--check-ref", check_ref]
    for option, value in asked.items():
        words += [] if value is None else [f"--{option.replace('_', '-')}", value]
    words += ["--per-strand"] * per_strand
    words += [*(["--haplotypes", "--phase", joint.phase] if joint is not None else []), vcf]
    return one_line(shlex.join(str(word) for word in words))
