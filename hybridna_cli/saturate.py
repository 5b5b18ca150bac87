"""`hybridna saturate`: every single change of a region, scored into a table."""

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
    NoVersion,
    OtherLetters,
    Output,
    Quiet,
    RebuildIndex,
    RenameChrs,
    Rna,
    Strict,
    SummaryJson,
    Threads,
    Window,
    check_stdin,
)


def saturate(
    regions: Annotated[str, typer.Argument(metavar="REGION|BED", callback=check_stdin, show_default=False)],
    fasta_ref: Fasta,
    output: Output = "-",
    deletions: Annotated[bool, typer.Option("--deletions", help="Score the deletion of each base, too.")] = False,
    write_index: Annotated[bool, typer.Option("-W", "--write-index", help="Index the table (.tbi).")] = False,
    plot: Annotated[
        str | None,
        typer.Option(
            "--plot", metavar="FILE.png", show_default=False,
            help="Draw the effects, up to 40 rows of 100 bases: letters as tall as they count, and a heat map.",
        ),
    ] = None,
    model: Model = "base",
    window: Window = None,
    horizon: Horizon = None,
    stride: Annotated[
        int,
        typer.Option(
            "--stride", metavar="BASES",
            help="Begin what is read at multiples of so many bases; so many neighbours share a reading.",
        ),
    ] = 8,
    per_strand: Annotated[
        bool, typer.Option("--per-strand", help="Add the two reading directions, columns fwd and rev.")
    ] = False,
    clip: Annotated[
        bool, typer.Option("--clip", help="Cut regions at contig ends instead of marking them out_of_range.")
    ] = False,
    rename_chrs: RenameChrs = None,
    strict: Strict = False,
    no_version: NoVersion = False,
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
    """Score every single-base change of a region (chr:beg-end, counted from 1) or of a BED file's regions.

    One line per change: #chrom pos ref alt llr edge status, .tsv or bgzip .tsv.gz; llr is what score-variants writes as
    HD_LLR with the same window, horizon and stride. An unknown base gets one line, marked ambiguous_ref. Regions that
    do not fit the genome are left out with a warning.
    """
    from hybridna_core.commands import saturate as core

    with reporting("saturate", quiet, summary_json) as report:
        report.summary = core.saturate(
            regions, fasta_ref, output, deletions=deletions, write_index=write_index, plot=plot, model=model,
            window=window, horizon=horizon, stride=stride, per_strand=per_strand, clip=clip, rename_chrs=rename_chrs,
            strict=strict, no_version=no_version, device=device, dtype=dtype, force=force, dry_run=dry_run,
            rebuild_index=rebuild_index, other_letters=other_letters, rna=rna, allow_missing_eof=allow_missing_eof,
            allow_nonfinite=allow_nonfinite, progress=report.progress,
        )  # fmt: skip
