"""`hybridna leakage`: say which records of an evaluation were read in training."""

from typing import Annotated

import typer

from hybridna_cli.console import reporting
from hybridna_cli.options import AllowMissingEof, Force, Output, Quiet, RenameChrs, SummaryJson


def leakage(
    run: Annotated[
        str, typer.Argument(metavar="RUN_FOLDER", show_default=False, help="Folder that pretrain wrote to.")
    ],
    evaluation: Annotated[str, typer.Argument(metavar="FILE", show_default=False, help="VCF, BCF, BED or FASTA.")],
    output: Output = "-",
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", metavar="N", show_default="all done", help="Look at the first so many training steps."
        ),
    ] = None,
    species: Annotated[
        str | None,
        typer.Option("--species", metavar="NAME", show_default="all", help="Look at one species of the run alone."),
    ] = None,
    kmer: Annotated[
        int, typer.Option("--kmer", metavar="K", help="Bases of the words that FASTA records are compared by, 8 to 32.")
    ] = 32,
    min_share: Annotated[
        float,
        typer.Option("--min-share", metavar="SHARE", help="Count as seen what was read to more than this share."),
    ] = 0.0,
    run_file: Annotated[
        str | None,
        typer.Option("--run-file", metavar="FILE", show_default="where it was", help="The run file, if it moved."),
    ] = None,
    rename_chrs: RenameChrs = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 when anything was seen, or could not be compared.")
    ] = False,
    force: Force = False,
    allow_missing_eof: AllowMissingEof = False,
    quiet: Quiet = False,
    summary_json: SummaryJson = None,
):  # fmt: skip
    """Say which records of a VCF, BED or FASTA file were read in a training run; TSV out, a row per record.

    The windows of the steps done are drawn again and compared: of a VCF record the bases of REF, of a BED line its
    stretch, of a FASTA record its words of --kmer bases, on both strands. A contig that several species have gets a
    row for each.
    """
    from hybridna_core.commands import leakage as core

    with reporting("leakage", quiet, summary_json) as report:
        report.summary = core.leakage(
            run, evaluation, output, steps=steps, species=species, kmer=kmer, min_share=min_share, run_file=run_file,
            rename_chrs=rename_chrs, strict=strict, force=force, allow_missing_eof=allow_missing_eof,
            progress=report.progress,
        )  # fmt: skip
