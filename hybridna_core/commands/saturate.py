"""Score every single change of a region: each base to each other one and, if asked, away.

region string or BED -> Region -> per base: alleles -> Scorer, where neighbours share what is read -> table, picture
"""

import contextlib
import os
import shlex
import time
from collections import Counter
from typing import NamedTuple

from hybridna_core.checkpoint import load_model
from hybridna_core.data.genome import open_genome, read_renames
from hybridna_core.data.inputs import check_input
from hybridna_core.data.partial import finish_renaming, hold_outputs
from hybridna_core.data.regions import is_bed_name, parse_region, read_bed
from hybridna_core.data.variants import SCORED, Allele, Piece, Variant
from hybridna_core.data.vcf import Header
from hybridna_core.data.writers import check_output, is_stdout
from hybridna_core.effect_plot import EffectGrid, check_plot, draw_effects
from hybridna_core.errors import DataError, UsageError
from hybridna_core.memory import spell_bytes
from hybridna_core.score_fields import (
    Order,
    ScoreTable,
    choose_fields,
    index_output,
    is_bgzip_name,
    one_line,
    spell_run,
    take_fingerprint,
)
from hybridna_core.scoring import Scorer, estimate, is_name, make_plan, name_model, read_config
from hybridna_core.tokenizer import encode


class Summary(NamedTuple):
    """What a run did: `alleles` is `scored` plus the reasons among `statuses`.

    regions   of the input
    left_out  status -> regions that have no lines in the table
    bases     of the others
    statuses  status -> alleles
    edge      alleles scored beside a contig end
    unknown   alleles scored though unknown bases were read
    tokens    read; of a dry run: to be read
    memory, time  of a dry run: estimates spelt out
    """

    regions: int
    left_out: dict
    bases: int
    alleles: int
    scored: int
    statuses: dict
    edge: int
    unknown: int
    tokens: int
    window: int
    horizon: int
    stride: int
    model: str
    output: str | None
    seconds: float
    memory: str | None = None
    time: str | None = None

    def to_dict(self):
        return {name: value for name, value in self._asdict().items() if value is not None}


def saturate(
    regions, fasta_ref, output="-", *, model="base", window=None, horizon=None, stride=8, deletions=False,
    per_strand=False, write_index=False, plot=None, clip=False, rename_chrs=None, strict=False, no_version=False,
    force=False, device="auto", dtype="float32", dry_run=False, rebuild_index=False, other_letters=None, rna=False,
    allow_missing_eof=False, allow_nonfinite=False, progress=None,
):  # fmt: skip
    """Score all single-base substitutions of regions, in order, into a table; return a Summary.

    regions      `chr:beg-end`, 1-based inclusive, or a BED file, plain or compressed; `-` for BED on standard input.
                 Strands are not looked at: a score is the mean of both
    fasta_ref    the reference genome, plain or bgzip
    output       .tsv, or .tsv.gz for bgzip; `-` for standard output
    model        name, folder, or a loaded model
    window, horizon, stride  as of score_variants, which gives the same numbers with the same three
    deletions    score the deletion of each base, too, spelt with the base before it
    per_strand   add the columns fwd and rev
    write_index  index the table (.tbi, .csi for long contigs), which needs sorted regions
    plot         .png to draw the effects into, up to 40 rows of 100 bases; needs matplotlib
    clip         cut regions at contig ends instead of marking them out_of_range
    rename_chrs  table of contig names, old and new, for regions named otherwise than the genome
    strict       raise DataError at the end if a region was left out or an allele has no score
    dry_run      count, estimate memory and time, load no model and write nothing

    An unknown base gets one line, ALT `.`, marked ambiguous_ref. Raises HybriDNAError kinds; on an error nothing is at
    `output`, but for `strict`.
    """
    begun = time.monotonic()
    check_table(output, write_index)
    if plot is not None:
        check_plot(plot)
    is_bed = regions == "-" or is_bed_name(regions) or os.path.exists(regions)
    if not dry_run:
        inputs = (regions if is_bed else None, fasta_ref, rename_chrs)
        finish_renaming(output)
        check_output(output, inputs=inputs, force=force)
        if plot is not None:
            check_output(plot, inputs=inputs, force=force)
    if is_bed:
        regions = check_input(regions)
    config = read_config(model)
    plan = make_plan(config, window, horizon, stride)
    renames = read_renames(rename_chrs) if rename_chrs is not None else {}
    tally = {"regions": Counter(), "bases": 0, "statuses": Counter(), "edge": 0, "unknown": 0}
    with (
        contextlib.nullcontext() if dry_run else hold_outputs([output], force) as outputs,
        open_genome(fasta_ref, rebuild_index, other_letters, rna, allow_missing_eof) as genome,
    ):

        def find(warned=False):
            if not is_bed:
                return [parse_region(regions, genome)]
            options = {"clip": clip, "renames": renames, "allow_missing_eof": allow_missing_eof, "warned": warned}
            return read_bed(regions, genome, use_strand=False, **options)

        # Every line is checked before the model loads, where the file can be read twice.
        is_twice = not is_bed or (regions != "-" and os.path.isfile(regions))
        total, used = None, set(genome.contigs)
        if is_twice:
            total, used = 0, set()
            for region in find():
                total += region.length * (region.status == "ok")
                used.add(region.contig)
        if dry_run:
            scorer = Scorer(None, genome, plan, config)
            for _ in score_regions(find(warned=is_twice), genome, scorer, deletions, tally):
                pass
            memory, seconds = estimate(config, plan, scorer.tokens, device, dtype)
            return summarise(tally, scorer, name_model(model), None, begun)._replace(
                memory=f"about {spell_bytes(memory)}", time=f"about {seconds:,.0f} s"
            )
        if is_name(model):
            model = load_model(model, device=device, dtype=dtype, allow_nonfinite=allow_nonfinite)
        scorer, used, grid = (
            Scorer(model, genome, plan),
            [name for name in genome.contigs if name in used],
            EffectGrid(),
        )
        command = spell_options(regions, fasta_ref, model, plan, deletions, per_strand, clip, rename_chrs)
        run_line = spell_run(genome, model, plan, used)
        lines = [] if no_version else [run_line, f"##hybridna_saturateCommand={command}"]
        fingerprint = None
        # A plot takes every score, and those of an earlier run are in its table only.
        if is_twice and plot is None:
            settings = [command, is_bgzip_name(output), renames]
            fingerprint = take_fingerprint(regions if is_bed else None, Header(lines), run_line, settings)
        before, (held,) = outputs.begin(fingerprint)
        if before is not None:
            tally.update(before, statuses=Counter(before["statuses"]))
        done, order = tally["statuses"].total(), Order(regions, "bedtools sort first") if write_index else None
        options = {"fields": choose_fields(per_strand), "is_bgzf": is_bgzip_name(output), "held": held}
        with ScoreTable(outputs.handles[0], lines, **options) as table:
            found = find(warned=is_twice)
            for region, start, pos, ref, alt, score in score_regions(found, genome, scorer, deletions, tally, done):
                if order is not None:
                    order.check(region.contig, pos, region.line)
                if score is None:
                    continue
                table.add((region.contig.encode(), b"%d" % pos, ref.encode(), alt.encode()), score)
                if outputs.is_due():
                    genome.check_unchanged()
                    counts = {name: tally[name] for name in ("statuses", "edge", "unknown")}
                    outputs.save([table.settle()], {**counts, "records": tally["statuses"].total()})
                if plot is not None:
                    grid.add(region, start, ref, alt, score)
                if progress is not None:
                    progress(tally["bases"], total)
            genome.check_unchanged()
        outputs.finish(index_output(outputs, output, "t", genome.contigs.values()) if write_index else ())
    if plot is not None:
        title = f"{model.name}, window {plan.window:,}, horizon {plan.horizon:,}, stride {plan.stride:,}"
        draw_effects(grid, plot, title=f"hybridna saturate: {title}", deletions=deletions, force=force)
    summary = summarise(tally, scorer, model.name, str(output), begun)
    left_out = sum(summary.left_out.values())
    if strict and (left_out or summary.scored < summary.alleles):
        what = f"{left_out:,} regions were left out, {summary.alleles - summary.scored:,} alleles have no score"
        raise DataError(what, where=regions, hint="the output is complete; leave out --strict to accept it")
    return summary


def check_table(output, write_index):
    """Check the output's name and whether it can be indexed."""
    # Devices and named pipes have no suffix.
    is_named = not is_stdout(output) and (os.path.isfile(output) or not os.path.exists(output))
    if is_named and not os.fspath(output).lower().endswith((".tsv", ".tsv.gz", ".tsv.bgz")):
        raise UsageError("the output is a table", where=os.fspath(output), hint="end its name in .tsv or .tsv.gz")
    if write_index and not is_bgzip_name(output):
        raise UsageError("an index is made for a bgzip table", where="--write-index", hint="give -o FILE.tsv.gz")


def score_regions(regions, genome, scorer, deletions, tally, done=0):
    """Yield (region, start, pos, ref, alt, Score) for every allele and keep count.

    start: of the base that changes, 0-based; pos: from 1
    done: alleles that an earlier run has scored and counted, whose Score is None
    """
    for region in regions:
        tally["regions"][region.status] += 1
        if region.status != "ok":
            continue
        for start in range(region.start, region.end):
            for pos, ref, alt, allele in change_base(genome, region.contig, start, deletions):
                if done > 0:
                    done -= 1
                    yield region, start, pos, ref, alt, None
                    continue
                score = scorer.score(allele)
                tally["statuses"][score.status] += 1
                tally["edge"] += score.is_edge is True
                tally["unknown"] += score.has_unknown
                yield region, start, pos, ref, alt, score
            tally["bases"] += 1


def change_base(genome, contig, start, deletions):
    """Yield (pos, ref, alt, Allele) of what can become of one base, by pos. start: 0-based; pos: from 1"""
    first = max(start - 1, 0)
    text = genome.fetch(contig, first, min(start + 2, genome.contigs[contig]))
    base = text[start - first]
    # Spelt with the base before it, at the contig's start with the one behind.
    ref = text[:2]
    if deletions and len(ref) == 2:
        allele = Allele(
            "ambiguous_ref" if "N" in ref else "ok", None if "N" in ref else Variant(contig, start, start + 1, ())
        )
        yield first + 1, ref, ref[0] if start else ref[1], allele
    if base == "N":
        yield start + 1, "N", ".", Allele("ambiguous_ref")
        return
    for alt in "ACGT".replace(base, ""):
        piece = Piece(0, 1, ids=encode(alt))
        yield start + 1, base, alt, Allele("ok", Variant(contig, start, start + 1, (piece,)))


def summarise(tally, scorer, model, output, start):
    statuses = dict(tally["statuses"].most_common())
    scored = sum(statuses.get(status, 0) for status in SCORED)
    left_out = {status: count for status, count in tally["regions"].items() if status != "ok"}
    return Summary(
        tally["regions"].total(), left_out, tally["bases"], sum(statuses.values()), scored, statuses, tally["edge"],
        tally["unknown"], scorer.tokens, *scorer.plan, model, output, time.monotonic() - start,
    )  # fmt: skip


def spell_options(regions, fasta_ref, model, plan, deletions, per_strand, clip, rename_chrs):
    """Spell the command line, of what decides the numbers and lines: no threads, no output, no date."""
    words = ["saturate", "--fasta-ref", fasta_ref, "--model", model.name, "--window", plan.window]
    words += ["--horizon", plan.horizon, "--stride", plan.stride, *["--deletions"] * deletions]
    words += [*["--per-strand"] * per_strand, *["--clip"] * clip]
    words += ["--rename-chrs", rename_chrs] if rename_chrs is not None else []
    return one_line(shlex.join(str(word) for word in (*words, regions)))
