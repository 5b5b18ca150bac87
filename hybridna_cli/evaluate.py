"""`hybridna evaluate`: how well a model does on a named task, with simple baselines beside it."""

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
    Model,
    OtherLetters,
    Output,
    Quiet,
    RebuildIndex,
    Rna,
    Seed,
    SummaryJson,
    Threads,
    Window,
)

evaluate_app = typer.Typer(no_args_is_help=True, help="Measure a model on a task, with simple baselines beside it.")


@evaluate_app.command("coding")
def coding(
    fasta_ref: Fasta,
    cds: Annotated[
        str,
        typer.Option(
            "--cds", metavar="FILE", show_default=False, help="GFF3, or BED (.bed, .bed.gz), of coding sequence."
        ),
    ],
    output: Output = "-",
    variants: Annotated[
        str | None,
        typer.Option("--variants", metavar="FILE", show_default=False, help="Also write a line per change, TSV."),
    ] = None,
    model: Model = "base",
    codon_table: Annotated[
        int, typer.Option("--codon-table", metavar="N", help="Genetic code, by NCBI's numbers.")
    ] = 1,
    contig: Annotated[
        list[str] | None,
        typer.Option("--contig", metavar="NAME", show_default="all", help="Draw from this contig; repeatable."),
    ] = None,
    sites: Annotated[
        int, typer.Option("--sites", metavar="N", help="Changes drawn of stop-gained and of synonymous each.")
    ] = 1000,
    missense: Annotated[int, typer.Option("--missense", metavar="N", help="Missense changes drawn beside them.")] = 0,
    background: Annotated[
        list[str] | None,
        typer.Option(
            "--background",
            metavar="FILE",
            show_default=False,
            help="FASTA, or run file (.toml) for its training bases, that the order-5 Markov model counts; repeatable.",
        ),
    ] = None,
    window: Annotated[
        int, typer.Option("--window", metavar="BASES", help="Bases read per allele and direction.")
    ] = 1024,
    horizon: Annotated[
        int | None,
        typer.Option(
            "--horizon", metavar="BASES", show_default="half the window", help="Bases counted of each allele."
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "float32",
    threads: Threads = None,
    rebuild_index: RebuildIndex = False,
    other_letters: OtherLetters = None,
    rna: Rna = False,
    allow_missing_eof: AllowMissingEof = False,
    allow_nonfinite: AllowNonfinite = False,
    force: Force = False,
    quiet: Quiet = False,
    summary_json: SummaryJson = None,
):
    """AUROC of -HD_LLR, stop-gained against synonymous single-base changes in coding sequence.

    Over all changes, and within strata of substitution, codon position and both, with 95 % intervals (transcripts
    drawn whole), beside a Markov model and a regression on substitution and codon position. Left out: first codons,
    stop codons, transcripts with a stop inside, bases in more than one transcript. With --variants, a run that was
    stopped goes on when it is called again. The table is TSV, or Markdown where OUTPUT ends in .md.
    """
    from hybridna_core.commands import evaluate as core

    with reporting("evaluate coding", quiet, summary_json) as report:
        report.summary = core.evaluate_coding(
            fasta_ref, cds, output, model=model, variants=variants, codon_table=codon_table, contigs=contig or (),
            sites=sites, missense=missense, background=background or (), window=window, horizon=horizon, seed=seed,
            device=device, dtype=dtype, force=force, rebuild_index=rebuild_index, other_letters=other_letters, rna=rna,
            allow_missing_eof=allow_missing_eof, allow_nonfinite=allow_nonfinite, progress=report.progress,
        )  # fmt: skip


@evaluate_app.command("genome")
def genome(
    run: Annotated[str, typer.Argument(metavar="RUN.TOML", show_default=False, help="Run file with held-out bases.")],
    output: Output = "-",
    model: Model = "base",
    max_bases: Annotated[
        int,
        typer.Option("--max-bases", "--limit", metavar="N", help="Bases measured per set, in windows spread evenly."),
    ] = 500_000,
    max_order: Annotated[int, typer.Option("--max-order", metavar="K", help="Highest Markov order, to 12.")] = 12,
    window: Window = None,
    device: Device = "auto",
    threads: Threads = None,
    rebuild_index: RebuildIndex = False,
    other_letters: OtherLetters = None,
    rna: Rna = False,
    allow_missing_eof: AllowMissingEof = False,
    allow_nonfinite: AllowNonfinite = False,
    force: Force = False,
    quiet: Quiet = False,
    summary_json: SummaryJson = None,
):
    """Bits per base on a run file's held-out bases, beside Markov models trained on its training bases.

    Beside them, learning from the measured bases alone: a compressor (GeCo3 or cmix if there is one, else xz) and an
    adaptive mixture of orders 1 to 20 on both strands. The table is TSV, or Markdown where OUTPUT ends in .md.
    """
    from hybridna_core.commands import evaluate as core

    with reporting("evaluate genome", quiet, summary_json) as report:
        report.summary = core.evaluate_genome(
            run, output, model=model, max_bases=max_bases, max_order=max_order, window=window, device=device,
            force=force, rebuild_index=rebuild_index, other_letters=other_letters, rna=rna,
            allow_missing_eof=allow_missing_eof, allow_nonfinite=allow_nonfinite, progress=report.progress,
        )  # fmt: skip
