"""`hybridna calibrate`: scores of alleles drawn from a reference, beside which a variant's score gets a percentile."""

from typing import Annotated

import typer

from hybridna_cli.console import reporting
from hybridna_cli.options import (
    AllowMissingEof,
    AllowNonfinite,
    Device,
    DryRun,
    Dtype,
    Fasta,
    Force,
    Horizon,
    Model,
    OtherLetters,
    Output,
    Quiet,
    RebuildIndex,
    RenameChrs,
    Rna,
    Seed,
    SummaryJson,
    Threads,
    Window,
)


def calibrate(
    fasta_ref: Fasta,
    output: Output = "-",
    model: Model = "base",
    window: Window = None,
    horizon: Horizon = None,
    stride: Annotated[
        int, typer.Option("--stride", metavar="BASES", help="Begin what is read at multiples of so many bases.")
    ] = 1,
    per_class: Annotated[
        int, typer.Option("-n", "--per-class", metavar="N", help="Alleles of each of 120 classes.")
    ] = 200,
    regions: Annotated[
        str | None,
        typer.Option(
            "-r", "--regions", metavar="REGIONS", show_default=False,
            help="Draw from these alone: chr, chr:beg-end, ...; counted from 1.",
        ),
    ] = None,
    regions_file: Annotated[
        str | None,
        typer.Option(
            "-R", "--regions-file", metavar="FILE", show_default=False,
            help="The same from a file: BED if it ends in .bed or .bed.gz, else contig, beg, end counted from 1.",
        ),
    ] = None,
    exclude_bed: Annotated[
        str | None,
        typer.Option("--exclude-bed", metavar="BED", show_default=False, help="Draw from outside these regions."),
    ] = None,
    rename_chrs: RenameChrs = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "float32",
    threads: Threads = None,
    force: Force = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    summary_json: SummaryJson = None,
    rebuild_index: RebuildIndex = False,
    other_letters: OtherLetters = None,
    rna: Rna = False,
    allow_missing_eof: AllowMissingEof = False,
    allow_nonfinite: AllowNonfinite = False,
):  # fmt: skip
    """Draw alleles from a reference and score them, for score-variants --calibration.

    Substitutions are drawn by trinucleotide and new base (96 classes, both strands alike), insertions and deletions
    of up to 50 bases by length (24). One line per allele: #chrom pos ref alt class llr edge, .tsv or bgzip .tsv.gz,
    after a table of each class's quantiles. Window, horizon, stride and model must be those of the scoring.
    """
    from hybridna_core.commands import calibrate as core

    with reporting("calibrate", quiet, summary_json) as report:
        report.summary = core.calibrate(
            fasta_ref, output, model=model, window=window, horizon=horizon, stride=stride, per_class=per_class,
            regions=regions, regions_file=regions_file, exclude_bed=exclude_bed, rename_chrs=rename_chrs, seed=seed,
            device=device, dtype=dtype, force=force, dry_run=dry_run, rebuild_index=rebuild_index,
            other_letters=other_letters, rna=rna, allow_missing_eof=allow_missing_eof,
            allow_nonfinite=allow_nonfinite, progress=report.progress,
        )  # fmt: skip
