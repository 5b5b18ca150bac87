"""`hybridna embed`: one vector per region, sequence or allele."""

from typing import Annotated

import typer

from hybridna_cli.console import reporting
from hybridna_cli.options import (
    AllowMissingEof,
    AllowNonfinite,
    BatchSize,
    Device,
    DryRun,
    Dtype,
    Force,
    Input,
    Model,
    OtherLetters,
    Output,
    Quiet,
    RebuildIndex,
    RenameChrs,
    Rna,
    Shard,
    Strict,
    SummaryJson,
    Threads,
)


def embed(
    regions: Input,
    fasta_ref: Annotated[
        str | None,
        typer.Option(
            "-f", "--fasta-ref", envvar="HYBRIDNA_FASTA", metavar="FILE", show_default=False,
            help="Genome of a BED or VCF, plain or bgzip; a FASTA file to embed needs none.",
        ),
    ] = None,
    output: Output = "-",
    input_type: Annotated[
        str | None,
        typer.Option(
            "--input-type", metavar="bed|fasta|vcf", show_default="by content; standard input is BED",
            help="What FILE is.",
        ),
    ] = None,
    model: Model = "base",
    pool: Annotated[
        str,
        typer.Option(
            "--pool", metavar="POOL",
            help="mean of the vectors of a region's bases, max of each number, last base, center:N for the mean of the "
            "middle N, per-base for a row per base.",
        ),
    ] = "mean",
    layer: Annotated[
        str,
        typer.Option(
            "--layer", metavar="N[,N...]",
            help="What is pooled: 0 the embedding of the bases, i what leaves block i, -1 the final norm; several give "
            "an array each.",
        ),
    ] = "-1",
    echo: Annotated[
        str | None,
        typer.Option(
            "--echo", metavar="same|rc", show_default=False,
            help="Read the region twice in one pass, the second time as it is or as its reverse complement, and pool "
            "the second reading. Twice the region and the start token must fit the context.",
        ),
    ] = None,
    average_strands: Annotated[
        bool, typer.Option("--average-strands", help="Read the reverse complement, too, and take the mean of both.")
    ] = False,
    long: Annotated[
        str,
        typer.Option(
            "--long", metavar="mark|windows|stream",
            help="Regions longer than the context: marked too_long; read in windows and pooled as one; or read in one "
            "pass with the state carried on, attention looking back on all of it.",
        ),
    ] = "mark",
    window: Annotated[
        int | None,
        typer.Option(
            "--window", metavar="BASES", show_default="the smaller of 1024 and what the model reads at once",
            help="Of a VCF: bases read of each allele, half of them before the variant.",
        ),
    ] = None,
    numbers: Annotated[
        str, typer.Option("--numbers", metavar="float32|float16", help="Precision of the numbers written.")
    ] = "float32",
    max_n_share: Annotated[
        float,
        typer.Option("--max-n-share", metavar="SHARE", help="Mark regions with more unknown bases as too_many_n."),
    ] = 0.05,
    clip: Annotated[
        bool, typer.Option("--clip", help="Cut regions at contig ends instead of marking them out_of_range.")
    ] = False,
    rename_chrs: RenameChrs = None,
    batch_size: BatchSize = "auto",
    shard: Shard = None,
    strict: Strict = False,
    dry_run: DryRun = False,
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
    """Embed the regions of a BED file, the sequences of a FASTA file, or both alleles of a VCF's variants.

    One row each, in input order, as .npz, .npy with its keys in a .tsv, .parquet, .h5, .h5ad (AnnData) or .tsv. Strand
    - means that the reverse complement is read. What cannot be embedded keeps its row, with the reason in the column
    `status` and no vector (empty in TSV, NaN elsewhere). Unknown bases are read as N and counted in `unknown`. A run
    that was killed goes on where it was when the same command is given again.
    """
    from hybridna_core.commands import embed as core

    with reporting("embed", quiet, summary_json) as report:
        report.summary = core.embed(
            regions, fasta_ref, output, model=model, pool=pool, layer=layer, echo=echo,
            average_strands=average_strands, long=long, window=window, input_type=input_type, max_n_share=max_n_share,
            clip=clip, rename_chrs=rename_chrs, numbers=numbers, batch_size=batch_size, shard=shard, strict=strict,
            force=force, device=device, dtype=dtype, dry_run=dry_run,
            rebuild_index=rebuild_index, other_letters=other_letters, rna=rna, allow_missing_eof=allow_missing_eof,
            allow_nonfinite=allow_nonfinite, progress=report.progress,
        )  # fmt: skip
