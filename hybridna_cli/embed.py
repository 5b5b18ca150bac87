"""`hybridna embed`: one vector per region of a BED file."""

from typing import Annotated

import typer

from hybridna_cli.console import reporting
from hybridna_cli.options import (
    AllowMissingEof,
    AllowNonfinite,
    Device,
    Dtype,
    Fasta,
    Force,
    Input,
    Model,
    OtherLetters,
    Output,
    Quiet,
    RebuildIndex,
    RenameChrs,
    Rna,
    Strict,
    SummaryJson,
    Threads,
)


def embed(
    regions: Input,
    fasta_ref: Fasta,
    output: Output = "-",
    model: Model = "base",
    pool: Annotated[
        str,
        typer.Option(
            "--pool", metavar="mean|last", help="Mean over the region's tokens, or the vector of the last one."
        ),
    ] = "mean",
    echo: Annotated[
        str | None,
        typer.Option(
            "--echo", metavar="same|rc", show_default=False,
            help="Read the region twice in one pass, the second time as it is or as its reverse complement, and pool "
            "the second reading. Twice the region and the start token must fit the context.",
        ),
    ] = None,
    max_n_share: Annotated[
        float,
        typer.Option("--max-n-share", metavar="SHARE", help="Mark regions with more unknown bases as too_many_n."),
    ] = 0.05,
    clip: Annotated[
        bool, typer.Option("--clip", help="Cut regions at contig ends instead of marking them out_of_range.")
    ] = False,
    rename_chrs: RenameChrs = None,
    strict: Strict = False,
    force: Force = False,
    device: Device = "auto",
    dtype: Dtype = "float32",
    threads: Threads = None,
    rebuild_index: RebuildIndex = False,
    other_letters: OtherLetters = None,
    rna: Rna = False,
    allow_missing_eof: AllowMissingEof = False,
    allow_nonfinite: AllowNonfinite = False,
    quiet: Quiet = False,
    summary_json: SummaryJson = None,
):  # fmt: skip
    """Embed the regions of a BED file; .npz, .tsv or .parquet out, one row per region in input order.

    Strand - means that the reverse complement is read. A region longer than the model's context is marked too_long
    and not cut: attention was never trained beyond it. Marked regions keep their row, with the reason in the column
    `status` and no vector (empty in TSV, NaN elsewhere). Unknown bases are read as N and counted in `unknown`.
    """
    from hybridna_core.commands import embed as core

    with reporting("embed", quiet, summary_json) as report:
        report.summary = core.embed(
            regions, fasta_ref, output, model=model, pool=pool, echo=echo, max_n_share=max_n_share, clip=clip,
            rename_chrs=rename_chrs, strict=strict, force=force, device=device, dtype=dtype,
            rebuild_index=rebuild_index, other_letters=other_letters, rna=rna, allow_missing_eof=allow_missing_eof,
            allow_nonfinite=allow_nonfinite, progress=report.progress,
        )  # fmt: skip
