"""Calibrate: score alleles drawn from a reference, by class, so that a variant's score can be compared with its like.

genome, regions -> stretches -> Matches of each class -> Scorer -> quantiles of each class, a line per allele
"""

import os
import shlex
import time
from collections import Counter
from typing import NamedTuple

import numpy as np

from hybridna_core.checkpoint import load_model
from hybridna_core.data.genome import open_genome, read_renames
from hybridna_core.data.inputs import check_input, warn
from hybridna_core.data.matched import draw_matches, list_classes
from hybridna_core.data.regions import read_bed
from hybridna_core.data.variants import SCORED
from hybridna_core.data.vcf import merge_regions, read_regions
from hybridna_core.data.writers import check_output, is_stdout, open_output
from hybridna_core.errors import DataError, UsageError
from hybridna_core.memory import spell_bytes
from hybridna_core.score_fields import ScoreTable, is_bgzip_name, one_line, spell_number, spell_run
from hybridna_core.scoring import Scorer, estimate, is_name, make_plan, name_model, read_config

SEED_LIMIT = 2**64
QUANTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)


class Summary(NamedTuple):
    """What a run did.

    bases     of the stretches that alleles were drawn from
    classes   with an allele
    fewest    alleles of the class that has fewest
    statuses  status -> alleles drawn; those without a score are left out of the file
    memory, time  of a dry run: estimates spelt out
    """

    bases: int
    classes: int
    alleles: int
    scored: int
    fewest: int
    statuses: dict
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


def calibrate(
    fasta_ref, output="-", *, model="base", window=None, horizon=None, stride=1, per_class=200, regions=None,
    regions_file=None, exclude_bed=None, rename_chrs=None, seed=0, force=False, device="auto", dtype="float32",
    dry_run=False, rebuild_index=False, other_letters=None, rna=False, allow_missing_eof=False,
    allow_nonfinite=False, progress=None,
):  # fmt: skip
    """Score alleles of every class drawn from a reference and write a calibration for score_variants; return a Summary.

    fasta_ref    the reference genome, plain or bgzip
    output       .tsv, or .tsv.gz for bgzip; `-` for standard output
    model        name, folder, or a loaded model
    window, horizon, stride  as of score_variants, which must be given the same three
    per_class    alleles of each class
    regions      `chr:beg-end`, 1-based inclusive, comma-separated or a list; regions_file: a table or BED of them:
                 alleles are drawn from these alone
    exclude_bed  BED of regions from which none are drawn
    rename_chrs  table of contig names, old and new, for regions named otherwise than the genome
    seed         of the draw
    dry_run      draw, estimate memory and time, load no model and write nothing

    Raises HybriDNAError kinds; on an error nothing is at `output`.
    """
    start = time.monotonic()
    check_options(output, per_class, seed)
    if not dry_run:
        check_output(output, inputs=(fasta_ref, regions_file, exclude_bed, rename_chrs), force=force)
    config = read_config(model)
    plan = make_plan(config, window, horizon, stride)
    renames = read_renames(rename_chrs) if rename_chrs is not None else {}
    wanted = read_regions(regions, regions_file)
    with open_genome(fasta_ref, rebuild_index, other_letters, rna, allow_missing_eof) as genome:
        stretches = find_stretches(genome, wanted, exclude_bed, renames, allow_missing_eof)
        matches = draw_matches(genome, stretches, per_class, seed, plan.horizon)
        if not matches:
            what = "no known bases to draw from"
            raise DataError(what, where=genome.path, hint="widen --regions, or exclude less")
        bases = sum(end - first for _, first, end in stretches)
        if dry_run:
            scorer = Scorer(None, genome, plan, config)
            scores = score_matches(matches, scorer, progress)
            memory, seconds = estimate(config, plan, scorer.tokens, device, dtype)
            return summarise(matches, scores, bases, scorer, name_model(model), None, start)._replace(
                memory=f"about {spell_bytes(memory)}", time=f"about {seconds:,.0f} s"
            )
        if is_name(model):
            model = load_model(model, device=device, dtype=dtype, allow_nonfinite=allow_nonfinite)
        scorer = Scorer(model, genome, plan)
        scores = score_matches(matches, scorer, progress)
        used = [name for name in genome.contigs if name in {contig for contig, _, _ in stretches}]
        run = spell_run(genome, model, plan, used, {"PerClass": per_class, "Seed": str(seed)})
        asked = {
            "regions": regions if regions is None or isinstance(regions, str) else ",".join(regions),
            "regions_file": regions_file, "exclude_bed": exclude_bed, "rename_chrs": rename_chrs,
        }  # fmt: skip
        command = spell_options(fasta_ref, model, plan, per_class, seed, asked)
        with open_output(output, force) as handle:
            lines = [run, f"##hybridna_calibrateCommand={command}", *spell_classes(matches, scores)]
            options = {"fields": ("LLR", "EDGE"), "labels": ("class",), "is_bgzf": is_bgzip_name(output)}
            with ScoreTable(handle, lines, **options) as table:
                for match, score in zip(matches, scores, strict=True):
                    if score.llr is not None:
                        keys = (match.contig, str(match.pos), match.ref, match.alt, match.group)
                        table.add([key.encode() for key in keys], score)
                genome.check_unchanged()
    return summarise(matches, scores, bases, scorer, model.name, str(output), start)


def check_options(output, per_class, seed):
    """Check the numbers and the output's name."""
    if per_class < 1:
        raise UsageError(f"is {per_class:,}, must be at least 1", where="--per-class")
    if not 0 <= seed < SEED_LIMIT:
        raise UsageError(f"is {seed}, must be 0 to 2^64 - 1", where="--seed")
    # Devices and named pipes have no suffix.
    is_named = not is_stdout(output) and (os.path.isfile(output) or not os.path.exists(output))
    if is_named and not os.fspath(output).lower().endswith((".tsv", ".tsv.gz", ".tsv.bgz")):
        raise UsageError("the output is a table", where=os.fspath(output), hint="end its name in .tsv or .tsv.gz")


def find_stretches(genome, wanted, exclude_bed, renames, allow_missing_eof=False):
    """Return what alleles are drawn from: (contig, start, end), 0-based half-open, disjoint, in the genome's order.

    wanted  (contig, start, end) of merge_regions; None for the whole genome
    Raises DataError for a region on a contig that is not there; one that passes a contig's end is cut.
    """
    found = {name: [] for name in genome.contigs}
    for name, start, end in wanted or [(name, 0, length) for name, length in genome.contigs.items()]:
        contig = genome.resolve(name, renames)
        if contig is None:
            close = genome.suggest(name)
            hint = f"did you mean {close}?" if close else None
            raise DataError(f"no contig {name!r} in {genome.path}", where="--regions", hint=hint)
        end = min(end, genome.contigs[contig])
        if start < end:
            found[contig].append((contig, start, end))
    if exclude_bed is not None:
        exclude_bed = check_input(exclude_bed)
        options = {"clip": True, "renames": renames, "use_strand": False, "allow_missing_eof": allow_missing_eof}
        left_out = {name: [] for name in genome.contigs}
        holes = [region for region in read_bed(exclude_bed, genome, **options) if region.status == "ok"]
        for hole in merge_regions(holes):
            left_out[hole[0]].append(hole)
        found = {name: subtract(stretches, left_out[name]) for name, stretches in found.items()}
    return [stretch for stretches in found.values() for stretch in sorted(stretches)]


def subtract(stretches, holes):
    """Return what is left of one contig's stretches without holes; holes are sorted and disjoint."""
    left = []
    for contig, start, end in stretches:
        for _, first, last in holes:
            if first < end and last > start:
                if start < first:
                    left.append((contig, start, first))
                start = max(start, last)
        if start < end:
            left.append((contig, start, end))
    return left


def score_matches(matches, scorer, progress=None):
    """Return the Score of each Match."""
    scores = []
    for match in matches:
        scores.append(scorer.score(match.allele))
        if progress is not None:
            progress(len(scores), len(matches))
    return scores


def spell_classes(matches, scores):
    """Return a header line for each class: how many scores, and their quantiles."""
    by_class = {name: [] for name in list_classes()}
    for match, score in zip(matches, scores, strict=True):
        if score.llr is not None:
            by_class[match.group].append(np.float32(score.llr))
    lines = []
    for name, values in by_class.items():
        if not values:
            warn("empty-class", f"no alleles of class {name}: such variants will have no percentile")
            continue
        # A score that is there, not one between two.
        found = np.percentile(np.array(values), QUANTILES, method="inverted_cdf")
        pairs = ",".join(f"Q{q}={spell_number(value)}" for q, value in zip(QUANTILES, found, strict=True))
        lines.append(f"##hybridna_class=<ID={name},Count={len(values)},{pairs}>")
    return lines


def summarise(matches, scores, bases, scorer, model, output, start):
    statuses = Counter(score.status for score in scores)
    counts = Counter(match.group for match, score in zip(matches, scores, strict=True) if score.llr is not None)
    scored = sum(statuses[status] for status in SCORED)
    fewest = min(counts.values(), default=0)
    return Summary(
        bases, len(counts), len(matches), scored, fewest, dict(statuses), scorer.tokens, *scorer.plan, model, output,
        time.monotonic() - start,
    )  # fmt: skip


def spell_options(fasta_ref, model, plan, per_class, seed, asked):
    """Spell the command line, of what decides the numbers: no threads, no output, no date. asked: other options"""
    words = ["calibrate", "--fasta-ref", fasta_ref, "--model", model.name, "--window", plan.window]
    words += ["--horizon", plan.horizon, "--stride", plan.stride, "--per-class", per_class, "--seed", seed]
    for option, value in asked.items():
        words += [] if value is None else [f"--{option.replace('_', '-')}", value]
    return one_line(shlex.join(str(word) for word in words))
